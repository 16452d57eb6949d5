"""Beam search and beam sampling by the rules of Hugging Face transformers 5.

Of the best max(2, 1 + number of eos ids) * K pairs of path and token, those that end (all do at
step T) join the finished set if they are among the first K; the best K others go on. Where a row
has fewer pairs, transformers fills up with scores of -1e9; here such paths do not exist.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from egattn.generate.config import BeamSearch, Sampling
from egattn.generate.filters import filter_logits
from egattn.generate.search import (
    Choice,
    Eos,
    History,
    Paths,
    Reorder,
    Step,
    check_start,
    decode,
    eos_ids,
    gather_paths,
    is_eos,
    row_keys,
    trace,
)


class Beams(NamedTuple):
    """Finished hypotheses, the best first."""

    paths: Paths
    """The sequences, R per row."""
    score: Float[Array, "batch sequences"]
    """What ranks them: accumulated log-probability / length**length_penalty; -inf if missing."""


class _Finished(NamedTuple):
    score: Float[Array, "batch beams"]
    log_probability: Float[Array, "batch beams"]
    end: Int[Array, "batch beams"]
    parent: Int[Array, "batch beams"]
    token: Int[Array, "batch beams"]


class _State(NamedTuple):
    score: Float[Array, "batch beams"]
    log_probability: Float[Array, "batch beams"]
    finished: _Finished


class _Candidates(NamedTuple):
    score: Float[Array, "batch candidates"]
    log_probability: Float[Array, "batch candidates"]
    parent: Int[Array, "batch candidates"]
    token: Int[Array, "batch candidates"]


def beam_search(
    step: Step,
    logits: Float[Array, "batch vocab"],
    cache: Any,
    search: BeamSearch,
    *,
    max_new_tokens: int,
    eos: Eos = None,
    pad: int = 0,
    reorder: Reorder = gather_paths,
    key: Array | None = None,
) -> Beams:
    """Beam search with the candidates, scores and stopping of transformers' `generate`.

    Args:
      step: The model.
      logits: Logits [B, V] after the prompt.
      cache: The model's cache with K equal paths per row.
      search: Width, score and end.
      max_new_tokens: Most tokens T to generate.
      eos: Ids that end a sequence.
      pad: Token after the end.
      reorder: Reorders the cache before each step.
      key: PRNG key for beam sampling.

    Returns:
      The R best finished hypotheses of each row.

    Raises:
      ValueError: If an argument is out of range, or beam sampling has no key.

    Reference:
      huggingface/transformers 5.24.0, generation/utils.py, `_beam_search`.
    """
    check_start(logits, max_new_tokens)
    search.check(logits.shape[1])
    if search.sampling is not None and key is None:
        raise ValueError("beam sampling needs a key, got None")
    ends = eos_ids(eos)

    def select(t: Array, logits: Array, state: _State) -> tuple[_State, Choice]:
        candidates = _candidates(state, logits, ends, search.sampling, key, t)
        ended = is_eos(candidates.token, ends) | (t + 1 >= max_new_tokens)
        state, parents, tokens = _advance(state, candidates, ended, t + 1, search.length_penalty)
        stops = _stops(search, max_new_tokens, t + 1, state)
        tokens = jnp.where(state.score > -jnp.inf, tokens, pad)
        return state, Choice(tokens, parents, finished=stops, record=())

    state = _start(logits.shape[0], search.num_beams)
    sizes = {"num_paths": search.num_beams, "max_new_tokens": max_new_tokens}
    state, history = decode(step, select, state, logits, cache, pad=pad, reorder=reorder, **sizes)
    best = jax.tree.map(lambda x: x[:, : search.returned], state.finished)
    return _beams(history, best, pad)


def _beams(history: History, best: _Finished, pad: int) -> Beams:
    lengths = jnp.where(best.score > -jnp.inf, best.end + 1, 0)
    last = (best.end, best.parent, best.token)
    return Beams(trace(history, *last, lengths, best.log_probability, pad), best.score)


def _start(batch: int, beams: int) -> _State:
    # Only one path is live, or all K would be the same.
    first = jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf)
    score = jnp.broadcast_to(first, (batch, beams)).astype(jnp.float32)
    nothing, zero = jnp.full_like(score, -jnp.inf), jnp.zeros((batch, beams), jnp.int32)
    return _State(score, score, _Finished(nothing, nothing, zero, zero, zero))


def _candidates(
    state: _State,
    logits: Array,
    ends: Array,
    sampling: Sampling | None,
    key: Array | None,
    t: Array,
) -> _Candidates:
    """Takes or draws the best pairs of path and token, descending by score."""
    batch, beams, vocab = logits.shape
    spare = max(2, 1 + ends.size)
    log_probs = jax.nn.log_softmax(logits)
    added = log_probs if sampling is None else filter_logits(log_probs, sampling, keep=spare)
    flat = (state.score[..., None] + added).reshape(batch, -1)
    count = min(spare * beams, beams * vocab)
    if sampling is None or key is None:
        score, index = lax.top_k(flat, count)
    else:
        # The largest of scores with Gumbel noise are a sample without replacement.
        noise = jax.vmap(lambda key: jax.random.gumbel(key, flat.shape[1:]))
        drawn = lax.top_k(flat + noise(row_keys(key, batch, t)), count)[1]
        score, order = lax.top_k(jnp.take_along_axis(flat, drawn, 1), count)
        index = jnp.take_along_axis(drawn, order, 1)
    plain = (state.log_probability[..., None] + log_probs).reshape(batch, -1)
    plain = jnp.take_along_axis(plain, index, 1)
    return _Candidates(score, plain, index // vocab, index % vocab)


def _advance(
    state: _State, candidates: _Candidates, ended: Array, length: Array, length_penalty: float
) -> tuple[_State, Array, Array]:
    """Moves candidates that ended to the finished set; returns what the others continue."""
    beams = state.score.shape[1]
    score, order = lax.top_k(jnp.where(ended, -jnp.inf, candidates.score), beams)
    running = _take(candidates, order)
    log_probability = jnp.where(score > -jnp.inf, running.log_probability, -jnp.inf)

    # Candidates beyond the first K only keep the search going.
    enters = ended & (jnp.arange(ended.shape[1]) < beams) & (candidates.score > -jnp.inf)
    normalised = candidates.score / length.astype(jnp.float32) ** length_penalty
    new = _Finished(
        score=jnp.where(enters, normalised, -jnp.inf),
        log_probability=jnp.where(enters, candidates.log_probability, -jnp.inf),
        end=jnp.broadcast_to(length - 1, ended.shape),
        parent=candidates.parent,
        token=candidates.token,
    )
    merged = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), state.finished, new)
    finished = _take(merged, lax.top_k(merged.score, beams)[1])
    return _State(score, log_probability, finished), running.parent, running.token


def _take(tree: Any, index: Array) -> Any:
    return jax.tree.map(lambda x: jnp.take_along_axis(x, index, 1), tree)


def _stops(search: BeamSearch, max_new_tokens: int, length: Array, state: _State) -> Array:
    """Rows [B] whose finished set can no longer change, or shall not."""
    best, finished = state.score[:, 0], state.finished.score
    if search.early_stopping == "never" and search.length_penalty > 0:
        length = jnp.int32(max_new_tokens)
    possible = best / length.astype(jnp.float32) ** search.length_penalty
    # A missing path or hypothesis scores -inf: without the one a row stops, without the other not.
    stops = possible <= jnp.min(finished, 1)
    if search.early_stopping is True:
        stops = stops | jnp.all(finished > -jnp.inf, 1)
    return stops

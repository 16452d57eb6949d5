"""Path-weighted joint nucleus: one top-p over all pairs of path and token, weighted by the path."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from egattn.generate.config import JointNucleus
from egattn.generate.filters import above_share, nucleus, tempered
from egattn.generate.search import (
    Choice,
    Eos,
    Paths,
    Reorder,
    Step,
    check_start,
    decode,
    eos_ids,
    gather_paths,
    is_eos,
    row_keys,
    trace_slots,
)
from egattn.generate.vote import vote


class JointPaths(NamedTuple):
    """Paths of each row, which of them is the answer, and how each step went."""

    paths: Paths
    """K sequences per row, pairwise distinct; those with log-probability -inf do not exist."""
    choice: Int[Array, " batch"]
    """The path that `final` chooses."""
    tempered_log_probability: Float[Array, "batch paths"]
    """Accumulated log-probability at the sampling temperature: what weighted the paths."""
    score: Float[Array, "batch paths"]
    """Perturbed log-probability in mode "sbs"; elsewhere the tempered log-probability."""
    exact: Bool[Array, "batch steps"]
    """Whether the candidates sufficed, so that more of them could not change the step."""
    nucleus_size: Int[Array, "batch steps"]
    """Pairs of path and token in the nucleus; 0 once the row has finished."""
    nucleus_mass: Float[Array, "batch steps"]
    """Their share of the weight of all K * V pairs."""
    live: Int[Array, "batch steps"]
    """Paths that exist after the step, finished ones included; 0 once the row has finished."""


class _State(NamedTuple):
    tempered: Float[Array, "batch paths"]
    log_probability: Float[Array, "batch paths"]
    score: Float[Array, "batch paths"]
    done: Bool[Array, "batch paths"]
    lengths: Int[Array, "batch paths"]


def joint_nucleus(
    step: Step,
    logits: Float[Array, "batch vocab"],
    cache: Any,
    key: Array,
    rules: JointNucleus,
    *,
    max_new_tokens: int,
    eos: Eos = None,
    pad: int = 0,
    reorder: Reorder = gather_paths,
) -> JointPaths:
    """Keeps K paths; each step draws the next K from one nucleus over all pairs of path and token.

    A pair weighs (probability of the path)**path_exponent times that of the token. Finished paths
    stay in the pool with their weight: they can be displaced, and short answers are favoured.

    Args:
      step: The model.
      logits: Logits [B, V] after the prompt.
      cache: The model's cache with K equal paths per row.
      key: PRNG key; a row's number chooses its draws, the batch size does not.
      rules: How paths are weighted, drawn and chosen between.
      max_new_tokens: Most tokens T to generate.
      eos: Ids that end a sequence.
      pad: Token after the end.
      reorder: Reorders the cache before each step.

    Returns:
      The paths, the answer and statistics of each step.

    Raises:
      ValueError: If an argument is out of range, or mode "sbs" is given what it does not use.

    Reference:
      A construction after Li & Li, arXiv 2409.19790; Kool et al., arXiv 1903.06059 ("sbs").
    """
    check_start(logits, max_new_tokens)
    batch, vocab = logits.shape
    rules.check(vocab)
    ends = eos_ids(eos)

    def select(t: Array, logits: Array, state: _State) -> tuple[_State, Choice]:
        return _select(rules, row_keys(key, batch, t), ends, pad, logits, state)

    state = _start(batch, rules.num_paths)
    sizes = {"num_paths": rules.num_paths, "max_new_tokens": max_new_tokens}
    state, history = decode(step, select, state, logits, cache, pad=pad, reorder=reorder, **sizes)
    paths = trace_slots(history, state.lengths, state.log_probability, pad)
    inexact, *statistics = (x.T for x in history.record)
    # No step has the number T, so this key is fresh.
    choice = _choose(rules, row_keys(key, batch, max_new_tokens), paths, state)
    return JointPaths(paths, choice, state.tempered, state.score, ~inexact, *statistics)


def _start(batch: int, paths: int) -> _State:
    # Only one path is live, or all K would be the same.
    first = jnp.where(jnp.arange(paths) == 0, 0.0, -jnp.inf)
    weight = jnp.broadcast_to(first, (batch, paths)).astype(jnp.float32)
    none = jnp.zeros((batch, paths), jnp.int32)
    return _State(weight, weight, weight, none > 0, none)


def _select(
    rules: JointNucleus, keys: Array, ends: Array, pad: int, logits: Array, state: _State
) -> tuple[_State, Choice]:
    value, token, plain = _candidates(rules, logits, state.done, pad)
    weight = _path_weight(rules, state)
    joint = weight[..., None] + value
    pool = _pool(rules, joint, jax.nn.logsumexp(weight, 1), state.done, logits.shape[-1])
    score, pair = _draw(rules, keys, pool, state, value)
    parent, alive = pair // value.shape[2], score > -jnp.inf

    def take(x: Array) -> Array:
        return jnp.take_along_axis(x.reshape(x.shape[0], -1), pair, 1)

    def child(total: Array, added: Array) -> Array:
        return jnp.where(alive, jnp.take_along_axis(total, parent, 1) + take(added), -jnp.inf)

    tokens, was_done = take(token), jnp.take_along_axis(state.done, parent, 1)
    lengths = jnp.take_along_axis(state.lengths, parent, 1) + ~was_done
    tempered = child(state.tempered, value)
    new = _State(
        tempered=tempered,
        log_probability=child(state.log_probability, plain),
        score=score if rules.mode == "sbs" else tempered,
        done=was_done | is_eos(tokens, ends) | ~alive,
        lengths=jnp.where(alive, lengths, 0),
    )
    choice = Choice(
        tokens=jnp.where(alive, tokens, pad),
        parents=parent,
        finished=jnp.all(new.done, 1),
        record=(~pool.exact, pool.size, pool.mass, jnp.sum(alive, 1, dtype=jnp.int32)),
    )
    return new, choice


def _candidates(
    rules: JointNucleus, logits: Array, done: Array, pad: int
) -> tuple[Array, Array, Array]:
    """Log-probabilities at temperature and their tokens, and at temperature 1, all [B, K, M]."""
    count = rules.candidates(logits.shape[-1])
    value, token = lax.top_k(jax.nn.log_softmax(tempered(logits, rules.temperature)), count)
    plain = jnp.take_along_axis(jax.nn.log_softmax(logits), token, -1)
    # A finished path goes on as itself, with certainty, whatever the model says of its padding.
    itself = jnp.where(jnp.arange(count) == 0, 0.0, -jnp.inf)
    done = done[..., None]
    token = jnp.where(done, pad, token)
    return jnp.where(done, itself, value), token, jnp.where(done, itself, plain)


def _path_weight(rules: JointNucleus, state: _State) -> Float[Array, "batch paths"]:
    """Log-weight of each path; -inf for one that does not exist, whatever the exponent."""
    exists = state.tempered > -jnp.inf
    return jnp.where(exists, rules.path_exponent * jnp.where(exists, state.tempered, 0), -jnp.inf)


class _Pool(NamedTuple):
    weight: Float[Array, "batch pairs"]
    """Log-weights, descending; ties in the order of paths, then candidates."""
    order: Int[Array, "batch pairs"]
    """Pair k * M + m of each rank."""
    kept: Bool[Array, "batch pairs"]
    """Whether each rank is in the nucleus."""
    exact: Bool[Array, " batch"]
    size: Int[Array, " batch"]
    mass: Float[Array, " batch"]


def _pool(rules: JointNucleus, joint: Array, normaliser: Array, done: Array, vocab: int) -> _Pool:
    """Sorts the pairs, joint [B, K, M], and finds the nucleus.

    The normaliser [B] counts all K * V pairs, since each path's probabilities sum to 1.
    """
    batch, paths, candidates = joint.shape
    weight, order = lax.top_k(joint.reshape(batch, -1), paths * candidates)
    log_share = weight - normaliser[:, None]
    if rules.min_p is None:
        kept = nucleus(log_share, rules.p)
    else:
        kept = above_share(weight, weight[:, :1], rules.min_p)
    size = jnp.sum(kept, 1, dtype=jnp.int32)
    mass = jnp.sum(jnp.where(kept, jnp.exp(log_share), 0.0), 1)
    # Tokens may be hidden behind a path's last candidate, each lighter than it.
    hides = ~done & (joint[:, :, -1] > -jnp.inf) & (candidates < vocab)
    last = order % candidates == candidates - 1
    last = last & jnp.take_along_axis(hides, order // candidates, 1)
    exact = ~jnp.any(last & _matters(rules, kept, size, mass), 1)
    return _Pool(weight, order, kept, exact, size, mass)


def _matters(
    rules: JointNucleus, kept: Array, size: Array, mass: Array
) -> Bool[Array, "batch pairs"]:
    """Ranks of the nucleus behind which another pair could still have been in it."""
    complete = (mass >= rules.p) & (jnp.asarray(rules.p) < 1) & (rules.min_p is None)
    # Behind the pair that fills the nucleus, or takes the last place, nothing is looked for.
    end = jnp.where(complete, size - 1, size)
    end = jnp.minimum(end, rules.num_paths - 1) if rules.mode == "topk" else end
    return kept & (jnp.arange(kept.shape[1]) < end[:, None])


def _draw(
    rules: JointNucleus, keys: Array, pool: _Pool, state: _State, value: Array
) -> tuple[Array, Array]:
    """Scores and pairs of the next K paths, [B, K]; a score of -inf is no path."""
    paths, candidates = value.shape[1:]
    if rules.mode == "sbs":
        fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
        gumbel = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, (candidates,))))
        noise = gumbel(fold(keys, jnp.arange(paths)))
        perturbed = _perturb(state.score, state.tempered, value, noise)
        score, pair = lax.top_k(perturbed.reshape(len(perturbed), -1), paths)
        return score, pair
    score = pool.weight
    if rules.mode == "gumbel":
        # By rank, so that a draw does not depend on how many candidates stand behind it.
        score = score + jax.vmap(lambda key: jax.random.gumbel(key, score.shape[1:]))(keys)
    score, rank = lax.top_k(jnp.where(pool.kept, score, -jnp.inf), paths)
    return score, jnp.take_along_axis(pool.order, rank, 1)


def _perturb(
    score: Float[Array, "batch paths"],
    total: Float[Array, "batch paths"],
    value: Float[Array, "batch paths candidates"],
    noise: Float[Array, "batch paths candidates"],
) -> Float[Array, "batch paths candidates"]:
    """Gumbel-perturbed log-probabilities of children whose largest equals their parent's.

    Reference:
      Kool et al., arXiv 1903.06059, section 4.1 and appendix B.3.
    """
    exists = (score > -jnp.inf)[..., None]
    score = jnp.where(exists, score[..., None], 0.0)
    perturbed = jnp.where(exists, total[..., None] + value + noise, 0.0)
    gap = perturbed - jnp.max(perturbed, -1, keepdims=True)
    shift = score - perturbed + jnp.log(-jnp.expm1(gap))
    shifted = score - jnp.maximum(shift, 0.0) - jnp.log1p(jnp.exp(-jnp.abs(shift)))
    return jnp.where(exists, shifted, -jnp.inf)


def _choose(rules: JointNucleus, keys: Array, paths: Paths, state: _State) -> Int[Array, " batch"]:
    if rules.final == "vote":
        return vote(paths.tokens, state.tempered)
    if rules.final == "best":
        penalty = ((5 + state.lengths) / 6) ** rules.length_exponent
        return jnp.argmax(state.tempered / penalty, 1)
    if rules.mode == "sbs":
        return jnp.argmax(state.score, 1)
    return jax.vmap(jax.random.categorical)(keys, state.tempered)

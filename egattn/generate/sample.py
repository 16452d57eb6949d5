"""Sampling: greedy, temperature, top-k, top-p, min-p; several independent samples per prompt."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from egattn.generate.config import Sampling
from egattn.generate.filters import filter_logits, tempered
from egattn.generate.search import (
    Choice,
    Eos,
    Paths,
    Step,
    check_start,
    decode,
    eos_ids,
    is_eos,
    row_keys,
    trace_slots,
)


class Samples(NamedTuple):
    """Independent samples."""

    paths: Paths
    """The sequences, S per row."""
    token_log_probability: Float[Array, "batch samples steps"]
    """Log-probability of each token under the model at temperature 1; 0 after the end."""
    tempered_log_probability: Float[Array, "batch samples steps"]
    """The same at the sampling temperature, before any truncation; at temperature 0, 0."""


class _State(NamedTuple):
    done: Bool[Array, "batch samples"]
    lengths: Int[Array, "batch samples"]
    log_probability: Float[Array, "batch samples"]


def sample(
    step: Step,
    logits: Float[Array, "batch vocab"],
    cache: Any,
    key: Array,
    sampling: Sampling,
    *,
    max_new_tokens: int,
    num_samples: int = 1,
    eos: Eos = None,
    pad: int = 0,
) -> Samples:
    """Samples independent continuations.

    Args:
      step: The model.
      logits: Logits [B, V] after the prompt.
      cache: The model's cache with S equal paths per row.
      key: PRNG key; the numbers of row and sample choose the draws, the batch size does not.
      sampling: Temperature and truncations. At temperature 0, the lowest id wins a tie.
      max_new_tokens: Most tokens T to generate.
      num_samples: Samples per row S.
      eos: Ids that end a sequence.
      pad: Token after the end.

    Returns:
      The samples.

    Raises:
      ValueError: If an argument is out of range.

    Reference:
      Holtzman et al., arXiv 1904.09751 (top-p); Nguyen et al., arXiv 2407.01082 (min-p).
    """
    check_start(logits, max_new_tokens, num_samples=num_samples)
    sampling.check(logits.shape[-1])
    ends, shape = eos_ids(eos), (logits.shape[0], num_samples)

    def select(t: Array, logits: Array, state: _State) -> tuple[_State, Choice]:
        return _advance(state, logits, _draw(sampling, key, t, logits), sampling, ends, pad)

    state, history = decode(
        step,
        select,
        _State(jnp.zeros(shape, bool), jnp.zeros(shape, jnp.int32), jnp.zeros(shape)),
        logits,
        cache,
        num_paths=num_samples,
        max_new_tokens=max_new_tokens,
        pad=pad,
        # Samples never change places.
        reorder=lambda cache, parents: cache,
    )
    paths = trace_slots(history, state.lengths, state.log_probability, pad)
    return Samples(paths, *(jnp.moveaxis(x, 0, 2) for x in history.record))


def _draw(sampling: Sampling, key: Array, t: Array, logits: Array) -> Int[Array, "batch samples"]:
    batch, samples, _ = logits.shape

    def drawn() -> Array:
        fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
        keys = fold(row_keys(key, batch, t), jnp.arange(samples))
        draw = jax.vmap(jax.vmap(jax.random.categorical))
        # The largest at 0, lest others overflow.
        highest = jnp.max(logits, -1, keepdims=True)
        return draw(keys, filter_logits(logits - highest, sampling))

    # Drawing costs as much as two layers; the temperature is known when the program runs.
    greedy = jnp.asarray(sampling.temperature == 0)
    return lax.cond(greedy, lambda: jnp.argmax(logits, -1), drawn)


def _advance(
    state: _State, logits: Array, chosen: Array, sampling: Sampling, ends: Array, pad: int
) -> tuple[_State, Choice]:
    plain = _log_probability(logits, chosen)
    drawn = _log_probability(tempered(logits, sampling.divisor), chosen)
    drawn = jnp.where(sampling.temperature == 0, 0.0, drawn)
    plain, drawn = (jnp.where(state.done, 0.0, x) for x in (plain, drawn))
    done = state.done | is_eos(chosen, ends)
    choice = Choice(
        tokens=jnp.where(state.done, pad, chosen),
        parents=jnp.broadcast_to(jnp.arange(chosen.shape[1]), chosen.shape),
        finished=jnp.all(done, 1),
        record=(plain, drawn),
    )
    return _State(done, state.lengths + ~state.done, state.log_probability + plain), choice


def _log_probability(
    logits: Float[Array, "batch samples vocab"], tokens: Int[Array, "batch samples"]
) -> Float[Array, "batch samples"]:
    return jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], -1)[..., 0]

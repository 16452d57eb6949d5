"""What all decoding shares: the model's side, one loop, and the way back along the paths."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from egattn.generate.config import check_count

Eos = int | Sequence[int] | Int[Array, "*eos"] | None
"""Ids that end a sequence: one, several, or none."""


Step = Callable[[Any, Int[Array, "batch paths"], Int[Array, ""]], tuple[Array, Any, Any]]
"""(cache, tokens, t) -> (logits [B, K, V], observed, cache): feeds one token per path.

t counts the generated tokens fed before; `observed` is any pytree of arrays [B, K, ...], kept per
token; the cache keeps its shapes and dtypes.
"""

Reorder = Callable[[Any, Int[Array, "batch paths"]], Any]
"""(cache, parents) -> cache in which path k continues what path parents[b, k] was."""


class Choice(NamedTuple):
    """What a selection rule decides at one step."""

    tokens: Int[Array, "batch paths"]
    """Next token of each path."""
    parents: Int[Array, "batch paths"]
    """Which path of the step before each path continues."""
    finished: Bool[Array, " batch"]
    """Rows in which nothing is left to do."""
    record: Any
    """Pytree of arrays [B, ...] to keep for this step."""


Select = Callable[[Array, Float[Array, "batch paths vocab"], Any], tuple[Any, Choice]]
"""(t, float32 logits, state) -> (state, choice); leaves of the state are [B, ...]."""


class History(NamedTuple):
    """What happened at each step; slots are not paths, see `trace`."""

    tokens: Int[Array, "steps batch paths"]
    """Token chosen by each slot."""
    parents: Int[Array, "steps batch paths"]
    """Slot that each slot continues."""
    entropy: Float[Array, "steps batch paths"]
    """Entropy in nats of the distribution that each slot had before the selection."""
    observed: Any
    """What `step` reported while the slot's token was fed: [T, B, K, ...]."""
    record: Any
    """What the selection rule recorded: [T, B, ...]; zero once a row has finished."""


class Paths(NamedTuple):
    """Generated sequences with what belongs to each of their tokens."""

    tokens: Int[Array, "batch paths steps"]
    """Tokens, an end-of-sequence token included; pad after the end."""
    lengths: Int[Array, "batch paths"]
    """Number of tokens before the padding; 0 for a path that does not exist."""
    log_probability: Float[Array, "batch paths"]
    """Log-probability under the model at temperature 1; -inf for a path that does not exist."""
    entropy: Float[Array, "batch paths steps"]
    """Entropy in nats of the distribution, at temperature 1, that each token came from; else 0."""
    observed: Any
    """What `step` reported while each token was fed, [B, K, T, ...]. The last token is never fed:
    entries from lengths - 1 on are 0."""


def gather_paths(cache: Any, parents: Int[Array, "batch paths"]) -> Any:
    """Reorders a cache whose leaves are arrays [B, K, ...].

    Args:
      cache: Pytree of arrays.
      parents: Path to continue, [B, K].

    Returns:
      The cache in which path k is what path parents[b, k] was.

    Raises:
      ValueError: If a leaf has no such axes.
    """

    def gather(leaf: Array) -> Array:
        if leaf.shape[:2] != parents.shape:
            raise ValueError(
                f"cache leaves need to be [batch, paths, ...] = {parents.shape}, got {leaf.shape}"
            )
        index = parents.reshape(parents.shape + (1,) * (leaf.ndim - 2))
        return jnp.take_along_axis(leaf, index, 1)

    return jax.tree.map(gather, cache)


def next_token_entropy(logits: Float[Array, "*batch vocab"]) -> Float[Array, "*batch"]:
    """Shannon entropy of softmax(logits) in nats; logits may be -inf."""
    log_probs = jax.nn.log_softmax(logits)
    # 0 * -inf would be NaN where a token is impossible.
    return -jnp.sum(jnp.where(log_probs > -jnp.inf, jnp.exp(log_probs) * log_probs, 0.0), -1)


def eos_ids(eos: Eos) -> Int[Array, " eos"]:
    """The ids that end a sequence as an array, empty for None."""
    return jnp.atleast_1d(jnp.asarray(() if eos is None else eos, jnp.int32))


def is_eos(tokens: Int[Array, "*batch"], eos: Int[Array, " eos"]) -> Bool[Array, "*batch"]:
    """Which tokens end a sequence."""
    return jnp.any(tokens[..., None] == eos, -1)


def row_keys(key: Array, batch: int, t: int | Array) -> Array:
    """One PRNG key per row, [B], for step t; a row's key depends on nothing else.

    Args:
      key: Key of the whole generation.
      batch: Number of rows B.
      t: Step.
    """
    fold = jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(key, row), t))
    return fold(jnp.arange(batch))


def check_start(logits: Array, max_new_tokens: int, **counts: int) -> None:
    """Checks what every algorithm is given: logits [B, V] and counts that are at least 1."""
    if logits.ndim != 2:
        raise ValueError(f"logits must be [batch, vocab], got {logits.shape}")
    for name, count in {"max_new_tokens": max_new_tokens, **counts}.items():
        check_count(name, count)


def decode(
    step: Step,
    select: Select,
    state: Any,
    logits: Float[Array, "batch vocab"],
    cache: Any,
    *,
    num_paths: int,
    max_new_tokens: int,
    pad: int,
    reorder: Reorder = gather_paths,
) -> tuple[Any, History]:
    """Runs a selection rule until every row has finished or T tokens are there.

    A finished row is frozen: its state no longer changes and it is fed `pad`, so that what comes
    out of a row does not depend on the rows beside it.

    Args:
      step: The model.
      select: The rule.
      state: What the rule carries; leaves [B, ...].
      logits: Logits [B, V] after the prompt.
      cache: The model's cache with K equal paths per row.
      num_paths: Paths per row K.
      max_new_tokens: Most tokens T to generate.
      pad: What a finished row is fed.
      reorder: Reorders the cache before each step.

    Returns:
      The rule's last state and the history of T steps.
    """
    batch, vocab = logits.shape
    first = jnp.broadcast_to(logits[:, None], (batch, num_paths, vocab)).astype(jnp.float32)
    own = jnp.broadcast_to(jnp.arange(num_paths, dtype=jnp.int32), (batch, num_paths))
    history = History(
        tokens=_buffer(max_new_tokens, own),
        # Steps that never happen leave every path where it is.
        parents=jnp.broadcast_to(own, (max_new_tokens, *own.shape)),
        entropy=_buffer(max_new_tokens, own.astype(jnp.float32)),
        observed=_buffer(max_new_tokens, jax.eval_shape(step, cache, own, own[0, 0])[1]),
        record=_buffer(max_new_tokens, jax.eval_shape(select, own[0, 0], first, state)[1].record),
    )
    start = _Carry(jnp.int32(0), cache, own, own, jnp.zeros(batch, bool), state, history)

    def body(carry: _Carry) -> _Carry:
        cache = reorder(carry.cache, carry.parents)
        logits, observed, cache = step(cache, carry.tokens, carry.t - 1)
        history = carry.history
        history = history._replace(observed=_put(history.observed, observed, carry.t - 1))
        return _advance(select, pad, carry._replace(cache=cache, history=history), logits)

    def goes_on(carry: _Carry) -> Array:
        return (carry.t < max_new_tokens) & ~jnp.all(carry.finished)

    # The first choice needs no step and the last none after it: T tokens cost T - 1 steps.
    last = lax.while_loop(goes_on, body, _advance(select, pad, start, first))
    return last.state, last.history


class _Carry(NamedTuple):
    t: Array
    cache: Any
    tokens: Array
    parents: Array
    finished: Array
    state: Any
    history: History


def _advance(select: Select, pad: int, carry: _Carry, logits: Array) -> _Carry:
    """Lets the rule choose in the rows that have not finished, and records it."""
    logits, finished = logits.astype(jnp.float32), carry.finished
    state, choice = select(carry.t, logits, carry.state)
    tokens = _frozen(finished, jnp.full_like(carry.tokens, pad), choice.tokens)
    own = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    parents = _frozen(finished, own, choice.parents.astype(jnp.int32))
    record = jax.tree.map(lambda x: _frozen(finished, jnp.zeros_like(x), x), choice.record)
    happened = History(tokens, parents, next_token_entropy(logits), (), record)
    history = _put(carry.history._replace(observed=()), happened, carry.t)
    return carry._replace(
        t=carry.t + 1,
        tokens=tokens,
        parents=parents,
        finished=finished | choice.finished,
        state=jax.tree.map(lambda old, new: _frozen(finished, old, new), carry.state, state),
        history=history._replace(observed=carry.history.observed),
    )


def _frozen(finished: Bool[Array, " batch"], old: Array, new: Array) -> Array:
    return jnp.where(finished.reshape(finished.shape + (1,) * (new.ndim - 1)), old, new)


def _buffer(steps: int, like: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros((steps, *x.shape), x.dtype), like)


def _put(buffers: Any, values: Any, t: int | Array) -> Any:
    put = lax.dynamic_update_index_in_dim
    return jax.tree.map(lambda buffer, value: put(buffer, value, t, 0), buffers, values)


def trace(
    history: History,
    end: Int[Array, "batch sequences"],
    parent: Int[Array, "batch sequences"],
    token: Int[Array, "batch sequences"],
    lengths: Int[Array, "batch sequences"],
    log_probability: Float[Array, "batch sequences"],
    pad: int,
) -> Paths:
    """Follows sequences back to the prompt and collects what belongs to them.

    Selection never moves what was recorded: it costs one pass here instead of one per step.

    Args:
      history: What `decode` returned.
      end: Step t of each sequence's last choice, [B, H].
      parent: Slot that this choice continued.
      token: Token of this choice.
      lengths: Tokens of each sequence before the padding.
      log_probability: Log-probability of each sequence.
      pad: Token after the end.

    Returns:
      H sequences per row.
    """
    steps = jnp.arange(history.tokens.shape[0])

    def back(after: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        t, parents = inputs
        before = jnp.where(t == end, parent, jnp.take_along_axis(parents, after, 1))
        return before, before

    # Steps after a sequence's end walk from slot 0, unused.
    _, before = lax.scan(back, jnp.zeros_like(parent), (steps, history.parents), reverse=True)
    after = jnp.concatenate([before[1:], before[:1]])

    def collect(x: Array, slots: Array, count: Array, empty: int = 0) -> Array:
        index = slots.reshape(slots.shape + (1,) * (x.ndim - 3))
        x = jnp.moveaxis(jnp.take_along_axis(x, index, 2), 0, 2)
        kept = steps < count[..., None]
        return jnp.where(kept.reshape(kept.shape + (1,) * (x.ndim - 3)), x, empty)

    tokens = jnp.where(
        steps == end[..., None], token[..., None], collect(history.tokens, after, end)
    )
    return Paths(
        tokens=jnp.where(steps < lengths[..., None], tokens, pad),
        lengths=lengths,
        log_probability=log_probability,
        entropy=collect(history.entropy, before, lengths),
        observed=jax.tree.map(lambda x: collect(x, after, lengths - 1), history.observed),
    )


def trace_slots(
    history: History,
    lengths: Int[Array, "batch paths"],
    log_probability: Float[Array, "batch paths"],
    pad: int,
) -> Paths:
    """Collects the paths that the K slots hold after the last step, see `trace`."""
    end = jnp.full_like(lengths, history.tokens.shape[0] - 1)
    last = (history.parents[-1], history.tokens[-1])
    return trace(history, end, *last, lengths, log_probability, pad)

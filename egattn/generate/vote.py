"""Voting between sequences that give the same answer."""

from collections.abc import Callable, Hashable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def vote(
    labels: Int[Array | np.ndarray, "batch paths *answer"], log_weight: Float[Array, "batch paths"]
) -> Int[Array, " batch"]:
    """Picks, per row, the heaviest path among those whose common label weighs most.

    Args:
      labels: What the paths answer: integers or arrays of them, compared as a whole, [B, K, ...].
        `answer_labels` makes them from anything.
      log_weight: Log-weight of each path; -inf does not vote.

    Returns:
      Indices into the paths, [B].
    """
    batch, paths = log_weight.shape
    flat = labels.reshape(batch, paths, -1)
    same = jnp.all(flat[:, :, None] == flat[:, None], -1)
    total = jax.nn.logsumexp(jnp.where(same, log_weight[:, None], -jnp.inf), -1)
    # Sums of equal sets in another order may differ in the last bit: a class has one sum.
    first = jnp.argmax(same, -1)
    total = jnp.take_along_axis(total, first, 1)
    winning = total == jnp.max(total, 1, keepdims=True)
    return jnp.argmax(jnp.where(winning, log_weight, -jnp.inf), 1)


def answer_labels(
    tokens: Int[Array, "batch paths steps"],
    lengths: Int[Array, "batch paths"],
    answer: Callable[[Sequence[int]], Hashable],
) -> Int[np.ndarray, "batch paths"]:
    """Numbers the distinct answers of sequences, on the host, for `vote`.

    Args:
      tokens: Sequences [B, K, T].
      lengths: Their lengths [B, K].
      answer: Extracts the answer from the tokens of one sequence.

    Returns:
      Labels [B, K]; equal ones mean equal answers.
    """
    seen: dict[Hashable, int] = {}
    sequences = np.asarray(tokens).reshape(-1, tokens.shape[-1]).tolist()
    counted = zip(sequences, np.ravel(lengths).tolist(), strict=True)
    labels = [seen.setdefault(answer(path[:length]), len(seen)) for path, length in counted]
    return np.array(labels).reshape(lengths.shape)

"""Attention, entropy and gradients in float64 NumPy: what implementations are compared with.

It shares no code with the implementations: a head at a time, a block of rows at a time, each line a
formula of the definition.
"""

import dataclasses
from collections.abc import Iterator

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]

# Rows whose scores are held at a time.
_ROWS = 512


@dataclasses.dataclass(frozen=True)
class Problem:
    """Inputs of attention, and cotangents of its output and entropy.

    Attributes:
      query: [B, T, H, D].
      key: [B, S, K, D].
      value: [B, S, K, D].
      out_cotangent: Weights of the output in a scalar loss, [B, T, H, D].
      entropy_cotangent: Weights of the entropy in the same loss, [B, H, T].
      temperature: Broadcastable to [B, H, T].
      scale: Factor of the scores; default D ** -0.5.
      causal: Whether query i sees keys j <= i + S - T only.
      segment_ids: Document of each position [B, T]; negative for padding.
    """

    query: Array
    key: Array
    value: Array
    out_cotangent: Array
    entropy_cotangent: Array
    temperature: Array | None = None
    scale: float | None = None
    causal: bool = True
    segment_ids: npt.NDArray[np.int32] | None = None

    def rounded(self, dtype: npt.DTypeLike = ml_dtypes.bfloat16) -> "Problem":
        """The problem that a caller with this dtype really poses."""
        names = ("query", "key", "value", "out_cotangent")
        arrays = {name: np.asarray(getattr(self, name), dtype) for name in names}
        return dataclasses.replace(
            self, **{name: x.astype(np.float64) for name, x in arrays.items()}
        )

    def temperatures(self) -> Array:
        """Temperature of each row, [B, H, T]."""
        batch, length, heads, _ = self.query.shape
        one = np.ones(()) if self.temperature is None else self.temperature
        return np.broadcast_to(one, (batch, heads, length)).astype(np.float64)

    def seen(self, b: int, rows: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
        """Which keys the queries at `rows` of batch entry b see, [rows, S]."""
        length, source = self.query.shape[1], self.key.shape[1]
        seen = np.ones((len(rows), source), bool)
        if self.causal:
            seen = rows[:, None] + (source - length) >= np.arange(source)
        if self.segment_ids is not None:
            ids = self.segment_ids[b]
            seen = seen & (ids[rows, None] == ids) & (ids[rows, None] >= 0)
        return seen


@dataclasses.dataclass(frozen=True)
class Solution:
    """Output, entropy, and gradients of `sum(out * w) + sum(entropy * u)` by input name.

    `terms` are the gradients with every term made positive, so that nothing cancels: what float32
    rounding is proportional to, however small the gradients themselves.
    """

    out: Array
    entropy: Array
    gradients: dict[str, Array]
    terms: dict[str, Array]


def solve(problem: Problem) -> Solution:
    """Output, entropy and gradients; rows that see no key keep the zeros they start with."""
    p = problem
    q, k, v, do = (x.astype(np.float64) for x in (p.query, p.key, p.value, p.out_cotangent))
    scale = q.shape[-1] ** -0.5 if p.scale is None else p.scale
    t = p.temperatures()
    out, entropy = np.zeros_like(q), np.zeros_like(t)
    inputs = {"query": q, "key": k, "value": v, "temperature": t}
    gradients, terms = ({name: np.zeros_like(x) for name, x in inputs.items()} for _ in range(2))
    for b, h, rows, seen in _blocks(p):
        g = h * k.shape[2] // q.shape[2]
        row, keys, values, weights = q[b, rows, h], k[b, :, g], v[b, :, g], do[b, rows, h]
        temperature = t[b, h, rows, None]
        s = scale / temperature * (row @ keys.T)
        a, log_a = _softmax(s, seen)
        out[b, rows, h] = a @ values
        entropy[b, h, rows] = -(a * log_a).sum(1)

        entropy_part = p.entropy_cotangent[b, h, rows, None] * (log_a + 1)
        da = weights @ values.T - entropy_part
        da_terms = np.abs(weights) @ np.abs(values).T + np.abs(entropy_part)
        ds = a * (da - (a * da).sum(1, keepdims=True))
        ds_terms = a * (da_terms + (a * da_terms).sum(1, keepdims=True))
        for total, d, sign in ((gradients, ds, np.positive), (terms, ds_terms, np.abs)):
            scaled = sign(scale / temperature) * d
            total["query"][b, rows, h] += scaled @ sign(keys)
            total["key"][b, :, g] += scaled.T @ sign(row)
            total["value"][b, :, g] += a.T @ sign(weights)
            total["temperature"][b, h, rows] += (d * sign(-s / temperature)).sum(1)
    for total in (gradients, terms):
        dt = total.pop("temperature")
        if p.temperature is not None:
            total["temperature"] = _sum_to_shape(dt, p.temperature.shape)
    return Solution(out, entropy, gradients, terms)


def _blocks(p: Problem) -> Iterator[tuple[int, int, npt.NDArray[np.int64], npt.NDArray[np.bool_]]]:
    """Batch entry, query head, positions of rows that see any key, and which keys they see."""
    batch, length, heads, _ = p.query.shape
    for b, first in np.ndindex(batch, -(-length // _ROWS)):
        rows = np.arange(first * _ROWS, min(length, (first + 1) * _ROWS))
        seen = p.seen(b, rows)
        any_key = seen.any(1)
        if any_key.any():
            yield from ((b, h, rows[any_key], seen[any_key]) for h in range(heads))


def _softmax(s: Array, seen: npt.NDArray[np.bool_]) -> tuple[Array, Array]:
    """Softmax over the keys that are seen, and its logarithm; both 0 at the others."""
    x = s - s.max(1, where=seen, initial=-np.inf, keepdims=True)
    e = np.exp(x, where=seen, out=np.zeros_like(x))
    log_a = np.where(seen, x - np.log(e.sum(1, keepdims=True)), 0.0)
    return np.exp(log_a, where=seen, out=np.zeros_like(x)), log_a


def _sum_to_shape(x: Array, shape: tuple[int, ...]) -> Array:
    """Adjoint of broadcasting `shape` to `x.shape`."""
    x = x.sum(axis=tuple(range(x.ndim - len(shape))))
    stretched = tuple(axis for axis, size in enumerate(shape) if size == 1)
    return x.sum(axis=stretched, keepdims=True)


def relative_error(actual: Array, expected: Array, terms: Array | float = 0.0) -> float:
    """Norm-wise relative error; where terms cancel to less than a tenth, relative to that tenth."""
    error = float(np.linalg.norm(actual - expected))
    size = float(max(np.linalg.norm(expected), np.linalg.norm(terms) / 10))
    if size == 0:
        return 0.0 if error == 0 else float("inf")
    return error / size

"""Attention with entropy, its gradients and the statistics, in float64, one row at a time.

Each line is a formula of the definition, applied to the keys that a row sees and to no others; so
there is no mask, no infinity and nothing shared with the library.
"""

import dataclasses
from collections.abc import Iterator

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]


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

    def rounded(self) -> "Problem":
        """The problem that a bfloat16 caller really poses."""
        names = ("query", "key", "value", "out_cotangent")
        return dataclasses.replace(
            self, **{name: to_bfloat16(getattr(self, name)) for name in names}
        )

    def temperatures(self) -> Array:
        """Temperature of each row, [B, H, T]."""
        batch, length, heads, _ = self.query.shape
        one = np.ones(()) if self.temperature is None else self.temperature
        return np.broadcast_to(one, (batch, heads, length)).astype(np.float64)

    def rows(self) -> Iterator[tuple[int, int, int, int, npt.NDArray[np.int64]]]:
        """Batch entry, query head, its key head, position and visible keys of rows that see any."""
        batch, length, heads, _ = self.query.shape
        group = heads // self.key.shape[2]
        for b in range(batch):
            for i in range(length):
                seen = self.visible_keys(b, i)
                if len(seen):
                    yield from ((b, h, h // group, i, seen) for h in range(heads))

    def visible_keys(self, b: int, i: int) -> npt.NDArray[np.int64]:
        """Keys that query i of batch entry b sees."""
        length, source = self.query.shape[1], self.key.shape[1]
        keys = np.arange(source)
        if self.causal:
            keys = keys[keys <= i + source - length]
        if self.segment_ids is not None:
            own = self.segment_ids[b, i]
            keys = keys[self.segment_ids[b, keys] == own] if own >= 0 else keys[:0]
        return keys


@dataclasses.dataclass(frozen=True)
class Options:
    """A problem in words; its numbers follow from the seed."""

    length: int = 64
    batch: int = 2
    kv_heads: int = 2
    group: int = 2
    head_dim: int = 16
    layout: str = "square"
    causal: bool = True
    temperature: str = "none"
    scale_factor: float | None = None
    seed: int = 0

    def name(self) -> str:
        mask = "causal" if self.causal else "full"
        return f"{self.layout}-{mask}-{self.temperature}-{self.length}x{self.head_dim}"

    def problem(self) -> Problem:
        rng = np.random.default_rng(self.seed)
        heads = self.kv_heads * self.group
        rows = (self.batch, heads, self.length)
        ratio = {"more_keys": 1.5, "fewer_keys": 0.6}.get(self.layout, 1)
        queries = (self.batch, self.length, heads, self.head_dim)
        keys = (self.batch, max(1, round(ratio * self.length)), self.kv_heads, self.head_dim)
        return Problem(
            query=normal(rng, queries),
            key=normal(rng, keys),
            value=normal(rng, keys),
            out_cotangent=normal(rng, queries),
            entropy_cotangent=normal(rng, rows),
            temperature=self._temperature(rng, rows),
            scale=self.scale_factor and self.scale_factor * self.head_dim**-0.5,
            causal=self.causal,
            segment_ids=self._segment_ids(rng) if self.layout == "segments" else None,
        )

    def _temperature(self, rng: np.random.Generator, rows: tuple[int, ...]):
        _, heads, length = rows
        shapes = {"per_head": (heads, 1), "per_row": (heads, length), "per_example": rows}
        if self.temperature == "none":
            return None
        return rng.uniform(0.7, 1.5, shapes[self.temperature]).astype(np.float32)

    def _segment_ids(self, rng: np.random.Generator):
        """Documents with padding among them; in one entry of the batch they are interleaved."""
        ids = rng.choice(
            [0, 1, 2, 7, -1, -2], (self.batch, self.length), p=[0.3, 0.3, 0.1, 0.1, 0.1, 0.1]
        )
        ids[: self.batch - 1].sort(axis=1)
        return ids[:, ::-1].astype(np.int32)


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


def normal(rng: np.random.Generator, shape: tuple[int, ...]):
    """Unit normal numbers that float32 holds exactly."""
    return rng.standard_normal(shape).astype(np.float32).astype(np.float64)


def to_bfloat16(x: npt.ArrayLike) -> Array:
    """Nearest bfloat16 values."""
    return np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float64)


def solve(problem: Problem) -> Solution:
    """Output, entropy and gradients; rows that see no key keep the zeros they start with."""
    p = problem
    q, k, v, do = (x.astype(np.float64) for x in (p.query, p.key, p.value, p.out_cotangent))
    scale = q.shape[-1] ** -0.5 if p.scale is None else p.scale
    t = p.temperatures()
    out, entropy = np.zeros_like(q), np.zeros_like(t)
    inputs = {"query": q, "key": k, "value": v, "temperature": t}
    gradients, terms = ({name: np.zeros_like(x) for name, x in inputs.items()} for _ in range(2))
    for b, h, g, i, seen in p.rows():
        row, keys, values, weights = q[b, i, h], k[b, seen, g], v[b, seen, g], do[b, i, h]
        factor = scale / t[b, h, i]
        s = factor * keys @ row
        a, log_a = softmax(s)
        out[b, i, h] = a @ values
        entropy[b, h, i] = -a @ log_a

        entropy_part = p.entropy_cotangent[b, h, i] * (log_a + 1)
        da = values @ weights - entropy_part
        da_terms = np.abs(values) @ np.abs(weights) + np.abs(entropy_part)
        ds, ds_terms = a * (da - a @ da), a * (da_terms + a @ da_terms)
        for total, d, sign in ((gradients, ds, np.positive), (terms, ds_terms, np.abs)):
            total["query"][b, i, h] += sign(factor) * d @ sign(keys)
            total["key"][b, seen, g] += sign(factor) * np.outer(d, sign(row))
            total["value"][b, seen, g] += np.outer(a, sign(weights))
            total["temperature"][b, h, i] += d @ sign(-s) / t[b, h, i]
    for total in (gradients, terms):
        dt = total.pop("temperature")
        if p.temperature is not None:
            total["temperature"] = sum_to_shape(dt, p.temperature.shape)
    return Solution(out, entropy, gradients, terms)


def softmax(s: Array) -> tuple[Array, Array]:
    """Softmax and its logarithm."""
    x = s - s.max()
    log_a = x - np.log(np.exp(x).sum())
    return np.exp(log_a), log_a


def sum_to_shape(x: Array, shape: tuple[int, ...]) -> Array:
    """Adjoint of broadcasting `shape` to `x.shape`."""
    x = x.sum(axis=tuple(range(x.ndim - len(shape))))
    stretched = tuple(axis for axis, size in enumerate(shape) if size == 1)
    return x.sum(axis=stretched, keepdims=True)


def loss(problem: Problem) -> float:
    """The scalar whose gradients `solve` returns."""
    solution = solve(problem)
    mixed = np.vdot(solution.out, problem.out_cotangent)
    return float(mixed + np.vdot(solution.entropy, problem.entropy_cotangent))

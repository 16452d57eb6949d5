"""Attention problems in words, and the float64 oracle that solves them."""

import dataclasses

import ml_dtypes
import numpy as np
import numpy.typing as npt

from egattn.doctor.oracle import Array as Array
from egattn.doctor.oracle import Problem as Problem
from egattn.doctor.oracle import Solution as Solution
from egattn.doctor.oracle import relative_error as relative_error
from egattn.doctor.oracle import solve as solve


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


def normal(rng: np.random.Generator, shape: tuple[int, ...]):
    """Unit normal numbers that float32 holds exactly."""
    return rng.standard_normal(shape).astype(np.float32).astype(np.float64)


def to_bfloat16(x: npt.ArrayLike) -> Array:
    """Nearest bfloat16 values."""
    return np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float64)


def loss(problem: Problem) -> float:
    """The scalar whose gradients `solve` returns."""
    solution = solve(problem)
    mixed = np.vdot(solution.out, problem.out_cotangent)
    return float(mixed + np.vdot(solution.entropy, problem.entropy_cotangent))

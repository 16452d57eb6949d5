"""Every attention implementation that can run here, against the float64 oracle on the host."""

import concurrent.futures
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egattn.attention import entropy_attention, implementations
from egattn.attention.select import NAMES
from egattn.doctor.oracle import Array, Problem, Solution, relative_error, solve
from egattn.doctor.row import Row, failed

DTYPES = ("float32", "bfloat16", "float16")


class Bounds(NamedTuple):
    """Largest errors that are right."""

    output: float
    """Norm-wise relative error of the output."""
    entropy: float
    """Largest difference of an entropy, nats."""
    gradient: float
    """Norm-wise relative error of each gradient."""


# Of unit normal inputs. Float16 has 8 times the digits of bfloat16.
BOUNDS = {
    "float32": Bounds(1e-6, 2e-6, 1e-5),
    "bfloat16": Bounds(4e-3, 1e-3, 6e-3),
    "float16": Bounds(5e-4, 1.25e-4, 7.5e-4),
}
# A difference of numbers as large as the scores, one of them rounded: see `egattn.attention.cudnn`.
CUDNN_ENTROPY = 5


class Shape(NamedTuple):
    """A small problem; heads are 64 wide, which every implementation takes."""

    batch: int
    length: int
    heads: int
    kv_heads: int
    source: int | None = None
    """Keys; default: as many as queries."""
    causal: bool = True
    segments: bool = False


SHAPES = {
    "causal": Shape(2, 128, 2, 2),
    # Beyond one tile of any implementation, along queries and keys.
    "grouped": Shape(1, 640, 4, 2),
    "long rows": Shape(1, 64, 2, 1, source=2048, causal=False),
    "segments": Shape(2, 200, 2, 2, segments=True),
}


def check_attention() -> list[Row]:
    """A row for each implementation and dtype: the largest errors in units of their bounds."""
    problems = {name: make_problem(shape) for name, shape in SHAPES.items()}
    found: dict[str, list[Row]] = {name: [] for name in NAMES}
    for dtype in DTYPES:
        posed = {name: problem.rounded(dtype) for name, problem in problems.items()}
        expected = {name: solve(problem) for name, problem in posed.items()}
        for name, rows in found.items():
            rows.append(check_implementation(name, dtype, posed, expected))
    return [row for name, rows in found.items() for row in _shortened(name, rows)]


def _shortened(name: str, rows: list[Row]) -> list[Row]:
    """One row for an implementation that can run with no dtype."""
    if any(row.ok is not None for row in rows):
        return rows
    return [rows[-1]._replace(name=name)]


def make_problem(shape: Shape) -> Problem:
    """Unit normal inputs; temperatures 1 and 2, by which every dtype divides without rounding."""
    rng = np.random.default_rng(0)
    batch, length, heads, kv_heads, source, causal, segments = shape
    queries, keys = (batch, length, heads, 64), (batch, source or length, kv_heads, 64)
    positions = np.arange(length)
    # Three documents and padding; in the last entry of the batch they are interleaved.
    ids = np.where(positions < length - 10, 3 * positions // length, -1)
    return Problem(
        query=rng.standard_normal(queries),
        key=rng.standard_normal(keys),
        value=rng.standard_normal(keys),
        out_cotangent=rng.standard_normal(queries),
        entropy_cotangent=rng.standard_normal((batch, heads, length)).astype(np.float32),
        temperature=rng.choice([1.0, 2.0], (heads, length)),
        causal=causal,
        segment_ids=np.stack([ids, positions % 3]).astype(np.int32) if segments else None,
    )


def check_implementation(
    implementation: str, dtype: str, problems: dict[str, Problem], expected: dict[str, Solution]
) -> Row:
    """The row of an implementation and dtype.

    Args:
      implementation: Its name.
      dtype: Of query, key and value.
      problems: Inputs by name of the shape, rounded to the dtype.
      expected: The oracle's solutions.
    """
    name = f"{implementation} {dtype}"
    lacks = {shape: _lacks(implementation, dtype, p) for shape, p in problems.items()}
    able = [shape for shape, lack in lacks.items() if lack is None]
    if not able:
        return Row(name, None, str(next(iter(lacks.values()))))
    largest: dict[str, float] = {}
    where: dict[str, str] = {}
    began, running = time.perf_counter(), 0.0
    # Compiling takes most of the time, and one core.
    with concurrent.futures.ThreadPoolExecutor() as pool:
        ready = {
            shape: pool.submit(prepare, implementation, dtype, problems[shape]) for shape in able
        }
    compiling = time.perf_counter() - began
    for shape, prepared in ready.items():
        try:
            actual, seconds = attend(prepared.result())
        except Exception as error:
            return failed(name, error)._replace(found=f"{shape}: {failed(name, error).found}")
        running += seconds
        for key, error in errors(actual, expected[shape], bounds(implementation, dtype)).items():
            # Not a number is larger than any number.
            if key not in largest or np.isnan(error) or error > largest[key]:
                largest[key], where[key] = error, shape
    wrong = [f"{key} at {where[key]}" for key, error in largest.items() if not error <= 1]
    left_out = [f"not {shape}: {lack}" for shape, lack in lacks.items() if lack]
    found = "; ".join([f"wrong: {', '.join(wrong)}"] * bool(wrong) + left_out)
    times = {"compile s": compiling, "run ms": 1e3 * running}
    return Row(name, not wrong, found, {**largest, **times})


def _lacks(implementation: str, dtype: str, problem: Problem) -> str | None:
    query, key = (jax.ShapeDtypeStruct(x.shape, dtype) for x in (problem.query, problem.key))
    found = implementations(query, key, key, causal=problem.causal, segment_ids=problem.segment_ids)
    return found[implementation]


def bounds(implementation: str, dtype: str) -> Bounds:
    """The bounds of an implementation."""
    found = BOUNDS[dtype]
    if implementation == "cudnn":
        return found._replace(entropy=CUDNN_ENTROPY * found.entropy)
    return found


def prepare(implementation: Any, dtype: str, problem: Problem) -> Callable[[], Any]:
    """Compiles an implementation for a problem; returns the call that solves it."""
    run = jax.jit(jax.value_and_grad(_loss(implementation, problem), has_aux=True))
    inputs = {
        name: jnp.asarray(getattr(problem, name), dtype) for name in ("query", "key", "value")
    }
    inputs["temperature"] = jnp.asarray(problem.temperature, jnp.float32)
    weights = [jnp.asarray(problem.out_cotangent, dtype)]
    weights.append(jnp.asarray(problem.entropy_cotangent, jnp.float32))
    return functools.partial(run.lower(inputs, *weights).compile(), inputs, *weights)


def attend(solve: Callable[[], Any]) -> tuple[Solution, float]:
    """What `prepare` made solves; and how many seconds that takes."""
    times = []
    result: Any = None
    for _ in range(4):
        start = time.perf_counter()
        result = jax.block_until_ready(solve())
        times.append(time.perf_counter() - start)
    (_, (out, entropy)), gradients = result
    wide: dict[str, Array] = {name: np.asarray(x, np.float64) for name, x in gradients.items()}
    solution = Solution(np.asarray(out, np.float64), np.asarray(entropy, np.float64), wide, {})
    return solution, min(times)


def _loss(implementation: Any, problem: Problem) -> Callable:
    ids = None if problem.segment_ids is None else jnp.asarray(problem.segment_ids)

    def loss(inputs, out_cotangent, entropy_cotangent):
        out, entropy = entropy_attention(
            **inputs, causal=problem.causal, segment_ids=ids, implementation=implementation
        )
        weighted = out.astype(jnp.float32) * out_cotangent.astype(jnp.float32)
        return weighted.sum() + (entropy * entropy_cotangent).sum(), (out, entropy)

    return loss


def errors(actual: Solution, expected: Solution, bounds: Bounds) -> dict[str, float]:
    """Errors by name, in units of their bounds."""
    difference = np.abs(actual.entropy - expected.entropy).max()
    found = {
        "output": relative_error(actual.out, expected.out) / bounds.output,
        "entropy": float(difference) / bounds.entropy,
    }
    for name, gradient in actual.gradients.items():
        found[f"d{name}"] = relative_error(gradient, expected.gradients[name]) / bounds.gradient
    return found

"""How large every number of a program gets, and whether fixed point can hold it."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.extend
import numpy as np


@dataclasses.dataclass(frozen=True)
class FixedPoint:
    """Numbers as integers modulo 2^field_bits, in units of 2^-fraction_bits: SPU's defaults."""

    field_bits: int = 64
    """Bits of the ring."""
    fraction_bits: int = 18
    """Bits behind the binary point."""
    exp_iterations: int = 8
    """Squarings n in exp(x) = (1 + x / 2^n)^(2^n)."""

    def limits(self, operation: str) -> tuple[float, float]:
        """Smallest and largest magnitude that an operation may take in or give out.

        Everything but products and functions only has to be a number of the ring. A product has
        twice the fraction's bits before it is cut. One bit is kept free. The ranges of functions
        are those in which SPU was seen to be right: exp of -2^(n+1) and below is garbage, and the
        inverse square root loses digits at the ends.
        """
        whole = self.field_bits - 2
        return {
            "product": (0.0, 2.0 ** (whole - 2 * self.fraction_bits)),
            "exp": (0.0, 2.0 ** (self.exp_iterations + 1) * 15 / 16),
            "rsqrt": (1e-3, 1e5),
            "denominator": (1.0, 4096.0),
        }.get(operation, (0.0, 2.0 ** (whole - self.fraction_bits)))


@dataclasses.dataclass(frozen=True)
class Range:
    """Magnitudes of the numbers of one kind in one part of a program."""

    part: str
    """Part of the program, e.g. layers.0/softmax."""
    operation: str
    """product, sum (of what is not a product), or what exp, rsqrt or a denominator takes."""
    smallest: float
    """Smallest magnitude seen."""
    largest: float
    """Largest magnitude seen."""


_PRODUCTS = ("dot_general", "mul", "integer_pow", "square")
_CALLS = ("jit", "pjit", "custom_jvp_call", "custom_vjp_call")


def measure(program: Callable, arguments: Iterable[Sequence[Any]]) -> list[Range]:
    """Runs a program in plain float32 and returns the ranges of all it is given and computes.

    Args:
      program: A traceable function.
      arguments: Its arguments, once for every time that it is run.

    Raises:
      NotImplementedError: If the program has loops or branches, which are not looked into.
    """
    seen: dict[tuple[str, str], tuple[float, float]] = {}
    for args in arguments:
        closed, leaves = jax.make_jaxpr(program)(*args), jax.tree.leaves(args)
        found = _evaluate(closed.jaxpr, closed.consts, leaves)[1]
        for key, value in [*((("arguments", "sum"), x) for x in leaves), *found]:
            size = np.abs(np.asarray(value))
            low, high = seen.get(key, (math.inf, 0.0))
            # A NaN stays one.
            seen[key] = float(np.minimum(low, size.min())), float(np.maximum(high, size.max()))
    return [Range(*key, *ends) for key, ends in seen.items()]


def _evaluate(jaxpr, consts: Sequence[Any], args: Sequence[Any], part: str = ""):
    """Results of a jaxpr and, for each number on the way, (part, operation) and the array."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    seen = []

    def read(x):
        return x.val if isinstance(x, jax.extend.core.Literal) else values[x]

    for eqn in jaxpr.eqns:
        primitive = eqn.primitive.name
        name = "/".join(filter(None, (part, str(eqn.source_info.name_stack))))
        operands = [read(x) for x in eqn.invars]
        inner = list(jax.extend.core.jaxprs_in_params(eqn.params))
        if primitive in _CALLS:
            closed = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
            results, below = _evaluate(inner[0], getattr(closed, "consts", ()), operands, name)
            seen += below
        elif inner:
            raise NotImplementedError(f"{name}: {primitive} is not looked into")
        else:
            results = eqn.primitive.bind(*operands, **eqn.params)
            results = results if eqn.primitive.multiple_results else [results]
            seen += [((name, kind), x) for kind, x in _numbers(primitive, operands, results[0])]
        values |= zip(eqn.outvars, results, strict=True)
    return [read(x) for x in jaxpr.outvars], seen


def _numbers(primitive: str, operands: Sequence[Any], result: Any):
    """What has to stay in range, as (operation, array)."""
    if primitive in ("exp", "rsqrt"):
        yield primitive, operands[0]
    if primitive == "div":
        yield "denominator", operands[1]
    if primitive in (*_PRODUCTS, "div"):
        yield "product", result
    elif np.issubdtype(np.asarray(result).dtype, np.floating):
        yield "sum", result


def check(ranges: Iterable[Range], fixed_point: FixedPoint) -> None:
    """Raises ValueError that names what leaves the range of fixed point, the worst first."""
    problems = []
    for r in ranges:
        low, high = fixed_point.limits(r.operation)
        # Written so that a NaN is a problem.
        if not (low <= r.smallest and r.largest <= high):
            excess = max(r.largest / high, low / max(r.smallest, 1e-30))
            excess = math.inf if math.isnan(excess) else excess
            allowed = f"allowed {low:g} to {high:g}"
            problems.append((excess, f"{r.part} {r.operation}: {_ends(r)}, {allowed}"))
    if problems:
        listed = "; ".join(text for _, text in sorted(problems, reverse=True)[:3])
        bits = f"{fixed_point.field_bits} bits with {fixed_point.fraction_bits} of fraction"
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"activations leave the range of {bits}: {listed}{more}")


def _ends(r: Range) -> str:
    return f"magnitudes {r.smallest:.3g} to {r.largest:.3g}"

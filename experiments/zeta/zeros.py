"""Finds the zeros in a box, proves their number and each of them, and does it in three other ways.

python -m experiments.zeta zeros --box 0.05 0.95 10 102
python -m experiments.zeta control --box 0.05 0.95 80 90
"""

import dataclasses
import functools
import math
import time
from typing import Any, Literal

import numpy as np

from experiments.zeta import balls
from experiments.zeta.box import Box
from experiments.zeta.count import count as float_count
from experiments.zeta.eta import Eta
from experiments.zeta.euler_maclaurin import EulerMaclaurin
from experiments.zeta.evaluator import Evaluator
from experiments.zeta.functions import ZETA, DirichletSeries
from experiments.zeta.scan import sign_scan
from experiments.zeta.search import find, windows
from experiments.zeta.taylor import Taylor

PROVED, FLOAT = "proved in this box", "float certificate"
PROVING = balls.AVAILABLE
"""Whether results are proved, and heights beyond 1000 reached."""
# A polish may leave its window, by a step or so.
_MARGIN = 1.2
# What counts as on the line where nothing is proved.
_ON_LINE = 1e-9

Method = Literal["auto", "euler-maclaurin", "eta", "taylor"]


@dataclasses.dataclass(frozen=True)
class Result:
    """What `--json` prints."""

    function: str
    box: list[float]
    zeros: list[list[float]]
    """sigma and t as the search found them, by rising t."""
    count: int
    """Zeros that the box has."""
    certificate: str
    """Of the count: by balls, "proved in this box", or "float certificate"."""
    proved: list[bool]
    """Whether balls prove that this zero exists and is alone within 1e-3 (above 2000, 1e-6)."""
    on_line: list[bool]
    """Whether it lies on sigma = 1/2: by proof, else to 1e-9."""
    off_line: list[bool]
    """Whether a ball about it excludes sigma = 1/2."""
    largest_error: float | None
    """Of the zeros, from the middles of the proofs' balls; None without proofs."""
    evaluations: int
    """Of the function, by the search; the count is apart."""
    ablation_evaluations: int
    """By random starts with the same polish, which has found the same zeros."""
    scan_evaluations: int
    """By a sign scan of the line with step 0.2."""
    scan_count: int
    """Zeros of the box that it saw."""
    bisections: int
    evaluator: str
    seed: int
    seconds: float
    """All of this."""
    proof_seconds: float | None
    """Of it, for the proofs of count and zeros."""


def solve(function: DirichletSeries, box: Box, seed: int = 0, method: Method = "auto") -> Result:
    """Searches a box, checks the result in balls where python-flint is installed, and compares.

    Args:
      function: Which.
      box: Where.
      seed: Decides every draw.
      method: How the function is computed; "auto": Euler-Maclaurin, above height 1000 Taylor
        polynomials.

    Raises:
      ValueError: If a zero lies on the boundary, or the box is beyond the evaluator's trust.
      NotImplementedError: Where only balls reach so high, without python-flint.
    """
    began = time.perf_counter()
    evaluator = choose(function, box, method)
    # First, for it may refuse a height.
    scan = sign_scan(function, box)
    counted = _counter(function, evaluator)
    start = time.perf_counter()
    number = counted(box)
    proving = time.perf_counter() - start
    found = find(function, evaluator, box, number, counted, seed)
    ablation = find(function, evaluator, box, number, counted, seed, rounds=1)
    start = time.perf_counter()
    proofs = [balls.prove(function, *zero) for zero in found.zeros] if balls.AVAILABLE else []
    proving += time.perf_counter() - start
    middles = np.array([(proof.sigma, proof.t) for proof in proofs]).reshape(-1, 2)
    near = np.abs(found.zeros[:, 0] - 0.5) < _ON_LINE
    return Result(
        function=function.name,
        box=list(dataclasses.astuple(box)),
        zeros=found.zeros.tolist(),
        count=number,
        certificate=PROVED if balls.AVAILABLE else FLOAT,
        proved=[bool(proofs)] * len(found.zeros),
        on_line=[proof.on_line for proof in proofs] if proofs else near.tolist(),
        off_line=[proof.excludes_half for proof in proofs] if proofs else (~near).tolist(),
        largest_error=float(np.abs(found.zeros - middles).max(initial=0)) if proofs else None,
        evaluations=found.evaluations,
        ablation_evaluations=ablation.evaluations,
        scan_evaluations=scan.evaluations,
        scan_count=sum(box.contains(0.5, float(t)) for t in scan.zeros),
        bisections=found.bisections,
        evaluator=evaluator.trust.name,
        seed=seed,
        seconds=time.perf_counter() - began,
        proof_seconds=proving if balls.AVAILABLE else None,
    )


def choose(function: DirichletSeries, box: Box, method: Method) -> Evaluator:
    """The evaluator of a method.

    Raises:
      ValueError: If it does not compute this function, or is not to be trusted in the box.
    """
    direct = EulerMaclaurin(function, box.t_high)
    if method == "auto":
        method = "euler-maclaurin" if box.t_high <= direct.trust.t_high else "taylor"
    if method == "eta" and function != ZETA:
        raise ValueError(f"expected zeta for the eta series, got {function.name}")
    if method == "taylor":
        # Before it is cut into windows, which may be very many.
        Taylor.trust.check(box)
        parts = windows(function, box)
        reach = max(math.hypot(*corner) for corner in (*parts.low, *parts.high))
        evaluator = Taylor(function, _MARGIN * reach)
    else:
        evaluator = direct if method == "euler-maclaurin" else Eta(box.t_high)
    evaluator.trust.check(box)
    return evaluator


def _counter(function: DirichletSeries, evaluator: Evaluator):
    if balls.AVAILABLE:
        return functools.partial(balls.count, function)
    return functools.partial(float_count, evaluator)


def describe(result: Result) -> str:
    """The result as text."""
    lines = [f"{'sigma':>20} {'t':>22}  "]
    for (sigma, t), proved, on_line in zip(
        result.zeros, result.proved, result.on_line, strict=True
    ):
        place = "on the line" if on_line else "off the line"
        lines.append(f"{sigma:20.15f} {t:22.14f}  {place}{', proved' if proved else ''}")
    low, high, bottom, top = result.box
    lines.append(
        f"{result.function} in [{low:g}, {high:g}] x [{bottom:.12g}, {top:.12g}]: "
        f"{len(result.zeros)} zeros found of {result.count}, the count {result.certificate}"
    )
    lines += _methods(result)
    return "\n".join(lines)


def _methods(result: Result) -> list[str]:
    rows: list[tuple[str, Any, Any]] = [
        ("cross-entropy search and polish", result.evaluations, len(result.zeros)),
        ("random starts, same polish", result.ablation_evaluations, len(result.zeros)),
        ("sign scan of the line", result.scan_evaluations, result.scan_count),
    ]
    return [f"{name:32} {cost:7,} evaluations, {found} zeros" for name, cost, found in rows]

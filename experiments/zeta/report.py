"""Everything in one run, and a page of it with figures.

python -m experiments.zeta report
python -m experiments.zeta demo      # the same, and what it finds as it finds it
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from egattn.report.document import document, figure, paragraph, section, table
from egattn.report.figures import drawing
from egattn.report.output import PAGE, replaced_report
from experiments.zeta import figures, frequency, precision, rare, zeros
from experiments.zeta.box import Box
from experiments.zeta.functions import DAVENPORT_HEILBRONN, ZETA
from experiments.zeta.statement import LIMITS

_ZEROS, _CONTROL = Box(0.05, 0.95, 10, 102), Box(0.05, 0.95, 80, 90)
_LEHMER = Box(0.05, 0.95, 7004.5, 7005.5)
_RARE = Box(0, 1, 10, 30)
_LEVELS = (0.01, 1e-6)
_FAILING_RUNS = 1
_SAMPLES, _RUNS = (10_000, 100_000, 1_000_000), 32


@dataclasses.dataclass(frozen=True)
class Failure:
    """A way to do it wrong, and what comes out."""

    family: str
    eps: float
    ratio: float
    """Estimate over exact."""
    relative_error: float | None
    """As reported; None where nothing was hit."""
    levels: int
    reached: bool
    seed: int


@dataclasses.dataclass(frozen=True)
class Findings:
    """What `--json` prints."""

    searches: list[zeros.Result]
    rare: list[rare.Result]
    failures: list[Failure]
    frequency: frequency.Result
    precision: precision.Result
    page: str
    seconds: float


def run(out: Path, seed: int = 0, say: Callable[[str], None] = lambda text: None) -> Findings:
    """Computes everything and writes the page.

    Args:
      out: Directory to make; a report that is already there is replaced.
      seed: Decides every draw.
      say: Takes each result as text, as soon as it is there.

    Raises:
      ValueError: If `out` holds something else.
      OSError: If it cannot be written.
    """
    began = time.perf_counter()
    # Before the work: a directory that must not be replaced is told at once.
    with replaced_report(out) as staging:
        found = _collect(seed, say)
        with drawing():
            plots = [
                figures.landscape(seed),
                figures.search(seed),
                figures.contraction(seed),
                figures.control(found.searches[1]),
                figures.rare_levels(found.rare),
                figures.law(found.frequency),
                figures.bits(found.precision),
            ]
            for plot in plots:
                plot.write(staging)
        seconds = time.perf_counter() - began
        found = dataclasses.replace(found, page=str(out / PAGE), seconds=seconds)
        (staging / PAGE).write_text(_page(found, plots, staging), encoding="utf-8")
    return found


def describe(found: Findings) -> str:
    """Where the page is."""
    return f"report: {found.page} ({found.seconds:.0f} s)"


def failures(box: Box, exact: dict[float, float], runs: int, seed: int) -> list[Failure]:
    """One normal distribution where three are needed: with likelihood ratios, and without."""
    rows = []
    for eps, area in exact.items():
        for name, start in (
            ("one normal, likelihood ratios", rare.mixture(box, 1)),
            ("one normal, no likelihood ratios", rare.unweighted(box)),
        ):
            for number in range(seed, seed + runs):
                event = rare.estimate(box, start, eps, number)
                error = event.relative_error if event.probability else None
                rows.append(
                    Failure(
                        *(name, eps, event.probability / area, error, len(event.levels)),
                        *(event.reached, number),
                    )
                )
    return rows


def _collect(seed: int, say: Callable[[str], None]) -> Findings:
    searches = []
    for function, box in ((ZETA, _ZEROS), (DAVENPORT_HEILBRONN, _CONTROL), (ZETA, _LEHMER)):
        # Above the direct evaluators' trust there are only balls.
        if box.t_high <= 1000 or zeros.PROVING:
            searches.append(zeros.solve(function, box, seed))
            say(zeros.describe(searches[-1]) + "\n")
    events = []
    for eps in _LEVELS:
        events.append(rare.run(_RARE, eps, seed=seed))
        say(rare.describe(events[-1]) + "\n")
    exact = {event.eps: event.exact for event in events}
    wrong = failures(_RARE, {_LEVELS[0]: exact[_LEVELS[0]]}, _FAILING_RUNS, seed)
    for row in wrong:
        say(_failure(row))
    law = frequency.run(_RARE, 0.2, _SAMPLES, _RUNS, seed)
    say("\n" + frequency.describe(law) + "\n")
    rounding = precision.run(seed)
    say(precision.describe(rounding) + "\n")
    return Findings(searches, events, wrong, law, rounding, "", 0.0)


def _failure(row: Failure) -> str:
    error = "nothing hit" if row.relative_error is None else f"error {row.relative_error:.3f}"
    end = "" if row.reached else ", where it was given up: worth nothing"
    return (
        f"done wrong, {row.family}: ratio {row.ratio:.3f}, {error} as reported, "
        f"after {row.levels} levels{end}"
    )


def _page(found: Findings, plots: list[Any], staging: Path) -> str:
    by_name = {plot.name: figure(plot, staging) for plot in plots}
    parts = [
        "".join(map(paragraph, LIMITS)),
        section("What it costs, and what else would have found it", _methods(found)),
        section("Zeros", _zeros(found)),
        by_name["landscape"],
        by_name["search"],
        by_name["contraction"],
        by_name["control"],
        by_name["rare"],
        section("Rare events", _rare(found)),
        section("Done wrong", _failures(found)),
        by_name["law"],
        by_name["bits"],
        section("Numbers near the first zero", _grid(found)),
        f"<footer><p>Made by <code>python -m experiments.zeta report</code>, seed "
        f"{found.searches[0].seed}, in {found.seconds:.0f} s.</p></footer>",
    ]
    lead = "Cross-entropy search, rare events and rounding on the zeta function"
    return document("Zeta, searched", lead, parts)


def _methods(found: Findings) -> str:
    header = ["box", "zeros", "search and polish", "random starts, same polish", "sign scan of Z"]
    rows = [
        [
            f"{r.function} {Box(*r.box)}",
            f"{len(r.zeros)} of {r.count}, {r.certificate}",
            f"{r.evaluations:,}",
            f"{r.ablation_evaluations:,}",
            f"{r.scan_evaluations:,} ({r.scan_count} found)",
        ]
        for r in found.searches
    ]
    text = (
        "Evaluations of the function until all zeros of the box were found. The random starts are "
        "the same program with one round instead of four: the fit adds nothing here. The sign scan "
        "sees only the line, and of two zeros within a step none."
    )
    return table(header, rows) + paragraph(text)


def _zeros(found: Findings) -> str:
    header = ["sigma", "t", "proved", "line"]
    rows = [
        [
            f"{s:.15f}",
            f"{t:.13f}",
            "yes" if proved else "no",
            "on the line" if on else "off the line",
        ]
        for r in found.searches
        for (s, t), proved, on in zip(r.zeros, r.proved, r.on_line, strict=True)
    ]
    return table(header, rows)


def _rare(found: Findings) -> str:
    header = ["eps", "estimate", "exact", "ratio", "standard error / exact", "evaluations", "naive"]
    rows = [
        [
            f"{r.eps:g}",
            f"{r.estimate:.6e}",
            f"{r.exact:.6e}",
            f"{r.ratio:.4f}",
            f"{r.standard_error / r.exact:.4f}",
            f"{r.evaluations:,}",
            f"{r.naive_cost:.1e}",
        ]
        for r in found.rare
    ]
    text = "Naive: uniform draws for a standard error of 1 percent. Here the method earns its keep."
    return table(header, rows) + paragraph(text)


def _failures(found: Findings) -> str:
    header = ["family", "eps", "ratio", "reported relative error", "levels", "reached"]
    rows = [
        [
            *(r.family, f"{r.eps:g}", f"{r.ratio:.3f}"),
            "none" if r.relative_error is None else f"{r.relative_error:.4f}",
            *(str(r.levels), "yes" if r.reached else "no"),
        ]
        for r in found.failures
    ]
    shares = np.array(found.rare[0].hits_per_zero) / max(sum(found.rare[0].hits_per_zero), 1)
    text = (
        "With likelihood ratios, one normal distribution cannot follow three regions and stalls. "
        "Without them it collapses to one zero, and reports a small error of a wrong number: its "
        f"share of the area, {shares[0]:.2f}. A small standard error does not show that no "
        "region is missed."
    )
    return table(header, rows) + paragraph(text)


def _grid(found: Findings) -> str:
    header = ["format", "nearest number", "step", "|zeta| there", "worst of 30 zeros"]
    rows = [
        [
            *(str(r["format"]), f"{r['nearest']:.17g}", f"{r['step']:.3g}"),
            *(f"{r['zeta']:.3g}", f"{r['worst_zeta']:.3g}"),
        ]
        for r in found.precision.grid
    ]
    text = "A computed zeta is hardly ever exactly 0, so that is no criterion of a zero."
    return table(header, rows) + paragraph(text)

"""The registered claims, and what the results say of each: docs/registered.md.

A difference is paired: both nets with one seed, hence one order of the data. Its standard error is
that of the mean over seeds, and its bounds are those of Student's t that 5 % lie beyond.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from scipy.stats import t as student

from egattn.report.table import markdown
from experiments.paper.studies.verdicts import training
from experiments.paper.study import LOWER, MILLION, Rates

Lines = Mapping[tuple[str, ...], Mapping[str, Any]]
# Percent (or points) beyond the limit below which a gain counts as none.
_NO_GAIN = 1.0
_EREG = "ereg_sm_t_scfuffn"


class Claim(NamedTuple):
    """That a net differs from another one by less than a limit."""

    text: str
    net: str
    against: str
    limit: float = 0.0
    """In percent of the perplexity; below 0 for a gain."""
    paper: str = ""
    """The same difference there."""


CLAIMS = (
    Claim("ReLU costs less than 5 % against GELU", "sm_ln_r", "sm_ln_g", 5.0, "+2.6"),
    Claim("temperatures lower the perplexity", "sm_t_scfuffn", "sm_scfuffn"),
    Claim("so does the penalty, hard", _EREG, "sm_t_scfuffn"),
    Claim("so does the penalty, excess", f"{_EREG}-excess", "sm_t_scfuffn"),
    Claim("the excess is better than the hard step", f"{_EREG}-excess", _EREG),
    Claim("a ceiling per row costs less than 2 %, hard", f"{_EREG}-row", _EREG, 2.0),
    Claim(
        "a ceiling per row costs less than 2 %, excess", f"{_EREG}-excess-row", f"{_EREG}-excess", 2
    ),
    Claim("both are better than neither, hard", _EREG, "sm_scfuffn", paper="-7.8"),
    Claim("both are better than neither, excess", f"{_EREG}-excess", "sm_scfuffn", paper="-7.8"),
    Claim("within 25 % of SM+LN+G, hard", _EREG, "sm_ln_g", 25.0, "+19.3"),
    Claim("within 25 % of SM+LN+G, excess", f"{_EREG}-excess", "sm_ln_g", 25.0, "+19.3"),
)


class Setting(NamedTuple):
    """Where the claims are looked at."""

    name: str
    tokens: int
    seeds: tuple[int, ...]
    rates: Rates | None = None
    more_text: bool = False


SETTINGS = (
    Setting("100 M, 1e-3", 100 * MILLION, (0, 1, 2)),
    Setting("400 M, 1e-3", 400 * MILLION, (0, 1), more_text=True),
    Setting("100 M, 3e-4", 100 * MILLION, (0, 1), LOWER),
)


def verdict(differences: Sequence[float], limit: float) -> str:
    """What paired differences say of the claim that they are below a limit.

    Returns:
      `holds` if all of them and the upper bound of their mean are; `does not hold` if none of them
      is, or the lower bound of the mean is above a percent below the limit; `open` otherwise.
    """
    if len(differences) < 2:
        return "open"
    mean = statistics.mean(differences)
    reach = float(student.ppf(0.95, len(differences) - 1)) * standard_error(differences)
    if max(differences) < limit and mean + reach < limit:
        return "holds"
    if min(differences) > limit or mean - reach > limit - _NO_GAIN:
        return "does not hold"
    return "open"


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of two values or more."""
    return statistics.stdev(values) / math.sqrt(len(values))


def claims_table(lines: Lines) -> str:
    """All claims in all settings as Markdown, as far as runs of both nets are there.

    Args:
      lines: Results by the options of the training.
    """
    rows = []
    for setting in SETTINGS:
        for claim in CLAIMS:
            found = differences(claim, setting, lines)
            if found:
                rows.append(_row(claim, setting, found))
    return markdown(rows) if rows else "No run yet.\n"


def differences(claim: Claim, setting: Setting, lines: Lines) -> list[float]:
    """Percent of the perplexity above the other net's, seed by seed; of those that train."""
    return [
        100 * (ours["perplexity"] / theirs["perplexity"] - 1)
        for ours, theirs in _pairs(claim, setting, lines)
        if "perplexity" in ours and "perplexity" in theirs
    ]


def _pairs(claim: Claim, setting: Setting, lines: Lines) -> list[tuple[Mapping, Mapping]]:
    _, tokens, seeds, rates, more_text = setting
    found = []
    for seed in seeds:
        ours, theirs = (
            lines.get(
                tuple(
                    training(
                        net, seed=seed, tokens=tokens, rates=rates, more_text=more_text
                    ).words()
                )
            )
            for net in (claim.net, claim.against)
        )
        if ours is not None and theirs is not None:
            found.append((ours, theirs))
    return found


def _row(claim: Claim, setting: Setting, found: list[float]) -> dict[str, str]:
    error = f" ± {standard_error(found):.1f}" if len(found) > 1 else ""
    return {
        "claim": claim.text,
        "net": f"`{claim.net}`",
        "against": f"`{claim.against}`",
        "tokens, rate": setting.name,
        "Δ % by seed": " ".join(f"{x:+.1f}" for x in found),
        "mean ± standard error": f"{statistics.mean(found):+.1f}{error}",
        "verdict": verdict(found, claim.limit),
        "paper": claim.paper,
    }

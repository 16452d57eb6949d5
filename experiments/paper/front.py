"""Perplexity against what private inference sends: which nets no other one beats in both.

A net counts with the shared rates or the lower ones, whichever are better at a budget, all its
seeds together; rates at which a seed diverged do not count. Traffic is the estimate that `egattn
cost` gives for one forward pass over the context.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from egattn.model import DecoderConfig
from egattn.private.communication import communication
from egattn.report.table import markdown
from experiments.paper.studies import every_training
from experiments.paper.study import LOWER, MILLION, Training

Lines = Mapping[tuple[str, ...], Mapping[str, Any]]
BUDGETS = (20 * MILLION, 100 * MILLION)


class Point(NamedTuple):
    """A net at a budget."""

    net: str
    gigabytes: float
    """Estimated traffic of a forward pass."""
    perplexity: float
    """Mean over seeds."""
    spread: float
    """Standard deviation over seeds; 0 with one."""
    seeds: int
    rate: str
    """Peak learning rate."""


def points(lines: Lines, tokens: int) -> list[Point]:
    """All nets of 12 layers and 128 positions that train at a budget, by traffic, best first.

    Args:
      lines: Results by the options of the training.
      tokens: The budget.
    """
    groups: dict[tuple[str, ...], dict[int, tuple[Training, Mapping[str, Any]]]] = {}
    for run in every_training():
        key = tuple(run.words())
        wanted = (run.num_layers, run.data, run.tokens) == (12, "128", tokens)
        if wanted and run.rates in (None, LOWER) and key in lines:
            groups.setdefault(_without_seed(key), {})[run.seed] = (run, lines[key])
    best: dict[str, Point] = {}
    for members in groups.values():
        if all("perplexity" in line for _, line in members.values()):
            point = _point(list(members.values()))
            if point.net not in best or point.perplexity < best[point.net].perplexity:
                best[point.net] = point
    return sorted(best.values(), key=lambda point: (point.gigabytes, point.perplexity))


def front(found: Sequence[Point]) -> list[Point]:
    """Those of the points, which are sorted, with a lower perplexity than all that send less."""
    kept: list[Point] = []
    for point in found:
        if not kept or point.perplexity < kept[-1].perplexity:
            kept.append(point)
    return kept


def front_table(lines: Lines) -> str:
    """The front at each budget as Markdown, least traffic first.

    Args:
      lines: Results by the options of the training.
    """
    rows = []
    for tokens in BUDGETS:
        for point in front(points(lines, tokens)):
            spread = f" ± {point.spread:.2f}" if point.seeds > 1 else ""
            row = {"tokens": f"{tokens / MILLION:g} M", "net": f"`{point.net}`"}
            row |= {"GB": f"{point.gigabytes:.2f}", "perplexity": f"{point.perplexity:.2f}{spread}"}
            rows.append(row | {"seeds": point.seeds, "rate": point.rate})
    return markdown(rows) if rows else "No run yet.\n"


def _without_seed(words: tuple[str, ...]) -> tuple[str, ...]:
    where = words.index("--seed")
    return words[:where] + words[where + 2 :]


def _point(members: Sequence[tuple[Training, Mapping[str, Any]]]) -> Point:
    run, line = members[0]
    values = [line["perplexity"] for _, line in members]
    config = line["config"]
    model: dict[str, Any] = {
        name.removeprefix("model."): tuple(value) if isinstance(value, list) else value
        for name, value in config.items()
        if name.startswith("model.")
    }
    return Point(
        run.net if run.rates is None else run.net.removesuffix(f"-{run.rates.name}"),
        communication(DecoderConfig(**model)).bytes / 1e9,
        statistics.mean(values),
        statistics.stdev(values) if len(values) > 1 else 0.0,
        len(values),
        f"{config['optimizer.learning_rate']:g}",
    )

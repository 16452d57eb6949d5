"""The results of the studies as tables, beside the paper's.

    python -m experiments.paper tables                  prints them
    python -m experiments.paper tables depth --smoke    one, of `run depth --smoke`
    python -m experiments.paper tables --write          puts them into docs/results.md

A difference is in percent of the perplexity of a study's first net with as many layers, positions
and tokens, seed by seed; a spread is the standard deviation over seeds; heads are high whose
entropy is above three quarters of uniform attention's; speeds are of trainings that had a device to
themselves.
"""

import dataclasses
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from egattn.entropy import uniform_entropy
from egattn.report.table import markdown
from experiments.paper.claims import claims_table
from experiments.paper.evaluations import NEAR_UNIFORM, PAIRS, evaluations, evaluations_table
from experiments.paper.front import front_table
from experiments.paper.result import results
from experiments.paper.run import Config as RunConfig
from experiments.paper.run import smoke
from experiments.paper.studies import STUDIES, every_training, load
from experiments.paper.study import MILLION, Training

# By the options of the training, see `results`.
Lines = dict[tuple[str, ...], dict[str, Any]]
PAGE = Path("docs/results.md")
# In the page, around each table.
_TABLE = r"(<!-- table {} -->\n).*?(<!-- end -->)"
_RANGES = "heads per range, %"
_HIGH = "high, %"


@dataclasses.dataclass(frozen=True)
class Config:
    """What to show."""

    study: tyro.conf.Positional[str] = "all"
    """Name of a study, or `all`."""
    smoke: bool = False
    """The results at toy size, below `root`/smoke."""
    root: Path = RunConfig.root
    """As the runner's."""
    results: Path = RunConfig.results
    """File of results."""
    write: bool = False
    """Write the tables into docs/results.md instead of printing them."""


def table(trainings: Sequence[Training], lines: Lines) -> str:
    """A study as Markdown: a row per net and budget, over its seeds; what is not done is absent.

    Args:
      trainings: The study.
      lines: Results by the options of the training; others than today's are passed over.
    """
    first = {_budget(training): training for training in reversed(trainings)}
    rows = []
    for (net, *budget), members in _groups(trainings, lines).items():
        reference = first[tuple(budget)]
        row = {"net": f"`{net}`", **_budget_columns(trainings, members[0]), "seeds": len(members)}
        row |= _measured(members, reference, lines)
        ours, base = members[0].paper, reference.paper
        row["paper"] = "" if ours is None else f"{ours:g}"
        row["paper Δ %"] = "" if ours is None or base is None else _delta([(ours, base)])
        rows.append(row)
    empty = {name for row in rows for name in row} - {
        name for row in rows for name, value in row.items() if value != ""
    }
    rows = [{name: row[name] for name in row if name not in empty} for row in rows]
    return markdown(rows) if rows else "No run yet.\n"


def divergences(trainings: Sequence[Training], lines: Lines) -> str:
    """The nets that diverged as Markdown: when, and each layer's entropy at the log line before.

    Args:
      trainings: Of any studies; what has several names counts once, by the one that names no rates.
      lines: Results by the options of the training.
    """
    named = sorted(trainings, key=lambda training: training.rates is None)
    trainings = list({tuple(training.words()): training for training in named}.values())
    rows = []
    for members in _groups(trainings, lines).values():
        stops = [lines[tuple(training.words())]["diverged"] for training in members]
        stops = [stop for stop in stops if stop]
        if stops:
            row = {"net": f"`{members[0].net}`", **_budget_columns(trainings, members[0])}
            row |= {"seeds": len(members), "steps": members[0].steps}
            row["diverged at step"] = ", ".join(str(stop["step"]) for stop in stops)
            heads = stops[0]["head_entropy_before"] or ()
            row["layers, nats"] = " ".join(f"{statistics.mean(layer):.2f}" for layer in heads)
            rows.append(row)
    return markdown(rows) if rows else "None.\n"


def _groups(trainings: Sequence[Training], lines: Lines) -> dict[tuple, list[Training]]:
    """The trainings that are done by net and budget, that is, over seeds."""
    groups: dict[tuple, list[Training]] = {}
    for training in trainings:
        if tuple(training.words()) in lines:
            groups.setdefault((training.net, *_budget(training)), []).append(training)
    return groups


def _budget(training: Training) -> tuple[int, int, int]:
    return training.num_layers, training.context_length, training.tokens


def _budget_columns(trainings: Sequence[Training], training: Training) -> dict[str, Any]:
    """Layers, positions and tokens, as far as they vary within the study."""
    columns = {"layers": "num_layers", "T": "context_length", "tokens": "tokens"}
    found = {
        title: getattr(training, name)
        for title, name in columns.items()
        if len({getattr(other, name) for other in trainings}) > 1
    }
    return found | ({"tokens": f"{training.tokens / MILLION:g} M"} if "tokens" in found else {})


def _measured(members: list[Training], reference: Training, lines: Lines) -> dict[str, Any]:
    found = [lines[tuple(training.words())] for training in members]
    stops = [line["diverged"] for line in found if line["diverged"]]
    values, pairs, shares, high = [], [], [], []
    for training, line in zip(members, found, strict=True):
        base = lines.get(tuple(dataclasses.replace(reference, seed=training.seed).words()), {})
        if "perplexity" in line:
            values.append(line["perplexity"])
            shares.append([100 * n / sum(line["ranges"]) for n in line["ranges"]])
            high.append(_high(line["config"]["model.context_length"], line["head_entropy"]))
        if "perplexity" in line and "perplexity" in base:
            pairs.append((line["perplexity"], base["perplexity"]))
    alone = [line for line in found if line["runners_per_device"] == 1]
    speeds = [line["tokens_per_second"] for line in alone if line["tokens_per_second"]]
    uses = [line["mfu"] for line in alone if line["mfu"]]
    return {
        "perplexity": _spread(values, ".2f") if values else _stopped(stops),
        "Δ %": _delta(pairs) if pairs else "",
        _RANGES: " ".join(f"{statistics.mean(x):.0f}" for x in zip(*shares, strict=True)),
        _HIGH: f"{statistics.mean(high):.0f}" if high else "",
        "diverged": f"{len(stops)} of {len(found)}" if stops and values else "",
        "tokens/s": f"{statistics.median(speeds) / 1000:.0f} k" if speeds else "",
        "MFU": f"{statistics.median(uses):.2f}" if uses else "",
    }


def _high(context_length: int, heads: Sequence[Sequence[float]]) -> float:
    """Percent of the heads that are near uniform attention."""
    least = NEAR_UNIFORM * uniform_entropy(context_length)
    return 100 * statistics.mean(value > least for layer in heads for value in layer)


def _stopped(stops: list[dict[str, Any]]) -> str:
    """Where all of a net's trainings diverged."""
    steps = ", ".join(str(stop["step"]) for stop in stops)
    layers = sorted({layer for stop in stops for layer in stop["layers"]})
    where = f", layers {', '.join(map(str, layers))}" if layers else ""
    return f"diverged at step {steps}{where}"


def _delta(pairs: Sequence[tuple[float, float]]) -> str:
    return _spread([100 * (x / y - 1) for x, y in pairs], "+.1f")


def _spread(values: Sequence[float], form: str) -> str:
    mean = format(statistics.mean(values), form)
    if len(values) == 1:
        return mean
    return f"{mean} ± {format(statistics.stdev(values), form.strip('+'))}"


def filled(page: str, lines: Lines) -> str:
    """The page with its tables made anew.

    Raises:
      ValueError: If the page has no place for one of them.
    """
    contents = {name: table(load(name), lines) for name in STUDIES}
    contents["divergences"] = divergences(every_training(), lines)
    contents |= _others(lines)
    for name, content in contents.items():
        pattern = _TABLE.format(name)
        page, count = re.subn(pattern, lambda m, c=content: m[1] + c + m[2], page, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"{PAGE}: expected one place for the table {name}, got {count}")
    return page


def _others(lines: Lines) -> dict[str, str]:
    """Tables that are no study's."""
    return {
        "claims": claims_table(lines),
        "evaluations": evaluations_table(PAIRS, evaluations()),
        "front": front_table(lines),
    }


def main(config: Config) -> None:
    """Prints the tables, or writes them.

    Raises:
      ValueError: If there is no such study, a line is not one of a result, or there is no place in
        the page for what is to be written.
    """
    if config.write and (config.smoke or config.study != "all"):
        raise ValueError("--write is for the tables of all studies at full size")
    lines = results(smoke(config.root) if config.smoke else config.results)
    if config.smoke:
        lines = _by_full_size(lines)
    if config.write:
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), lines), encoding="utf-8")
        return
    studies = STUDIES if config.study == "all" else (config.study,)
    for name in studies:
        print(f"{name}\n\n{table(load(name), lines)}")
    shown = [training for name in studies for training in load(name)]
    print(f"divergences\n\n{divergences(shown, lines)}")
    if config.study == "all" and not config.smoke:
        for name, content in _others(lines).items():
            print(f"{name}\n\n{content}")


def _by_full_size(lines: Lines) -> Lines:
    """Results at toy size by the options that their trainings have at full size."""
    found = {tuple(t.words()): lines.get(tuple(t.smoke_words())) for t in every_training()}
    return {words: line for words, line in found.items() if line is not None}

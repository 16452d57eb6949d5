"""Evaluations on the way, from the logs of runs, finished or not: how a difference comes and goes.

    python -m experiments.paper evaluations runs/studies/runs/*

adds a line per run directory to the file of evaluations; a run that is there already is passed
over. Evaluations on the way are of 512 windows.
"""

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from egattn.report.runs import RunLog, load_runs
from egattn.report.table import markdown
from experiments.paper.result import append
from experiments.paper.studies import every_training
from experiments.paper.studies.verdicts import training
from experiments.paper.study import LOWER, MILLION, Training

FILE = Path("experiments/paper/results/evaluations.jsonl")
# Share of uniform attention's entropy above which a head is high.
NEAR_UNIFORM = 0.75
# Parts of a run over which the training loss is averaged.
PARTS = 40
_QUARTERS = (1, 2, 3)
# What decides whether the penalty is more than a head start: with it and without.
_SETTINGS: tuple[dict[str, Any], ...] = (
    {"seed": 1, "tokens": 100 * MILLION},
    {"seed": 2, "tokens": 100 * MILLION},
    {"seed": 0, "tokens": 100 * MILLION, "rates": LOWER},
    {"seed": 0, "tokens": 400 * MILLION, "more_text": True},
)
PAIRS = tuple(
    (training(net, **setting), training("sm_t_scfuffn", **setting))
    for net in ("ereg_sm_t_scfuffn", "ereg_sm_t_scfuffn-excess")
    for setting in _SETTINGS
)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to read, and where to write."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories of studies."""
    out: Path = FILE
    """File with one line per run."""


def main(config: Config) -> None:
    """Adds the runs to the file.

    Raises:
      ValueError: If a directory holds no run of a study.
    """
    known = {run.name: run for run in every_training()}
    done = evaluations(config.out)
    for run in load_runs(config.runs):
        name = run.path.name
        if name not in known:
            raise ValueError(f"expected the directory of a study's run, got {run.path}")
        # One that was stopped early has no evaluation, and nothing to tell.
        if name not in done and run.validation:
            append(config.out, {"run": name, **_read(run, known[name].steps)})


def _read(run: RunLog, steps: int) -> dict[str, Any]:
    logged = run.train["step"]
    part = np.ceil(logged * PARTS / steps).astype(int)
    whole = range(1, int(run.last_step * PARTS / steps) + 1)
    columns = (run.validation[name] for name in ("step", "loss", "head_entropy"))
    return {
        "steps": steps,
        "last_step": run.last_step,
        "validation": {
            str(int(step)): {
                "loss": round(float(loss), 5),
                "high": round(100 * float((heads > NEAR_UNIFORM * run.uniform_entropy).mean()), 1),
                "layer_entropy": [round(float(x), 2) for x in heads.mean(-1)],
            }
            for step, loss, heads in zip(*columns, strict=True)
        },
        "training": [round(float(run.train["loss"][part == k].mean()), 4) for k in whole],
    }


def evaluations(path: Path = FILE) -> dict[str, dict[str, Any]]:
    """Lines by the name of the run."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return {line["run"]: line for line in map(json.loads, text.splitlines())}


def evaluations_table(pairs: Sequence[tuple[Training, Training]], lines: Mapping) -> str:
    """Percent by which the first net's perplexity is above the second's along the way, as Markdown.

    Args:
      pairs: Trainings of one seed, budget and text each; those without a line are passed over.
      lines: From `evaluations`.
    """
    rows = []
    for one, other in pairs:
        if one.name in lines and other.name in lines:
            rows.append(_row(one, other, lines[one.name], lines[other.name]))
    return markdown(rows) if rows else "No run yet.\n"


def _row(one: Training, other: Training, ours: Mapping, theirs: Mapping) -> dict[str, Any]:
    row = {"net": f"`{one.net}`", "against": f"`{other.net}`"}
    row |= {"tokens": f"{one.tokens / 1e6:g} M", "seed": one.seed}
    for quarter in _QUARTERS:
        step = str(-(-one.steps // 4) * quarter)
        there = [x["validation"][step] for x in (ours, theirs) if step in x["validation"]]
        both = len(there) == 2
        row[f"at {quarter}/4"] = _percent(*(x["loss"] for x in there)) if both else ""
    # At the last of the three, or the last before a stop.
    high = [list(x["validation"].values())[:3][-1]["high"] for x in (ours, theirs)]
    row["heads high then, %"] = " and ".join(f"{x:.0f}" for x in high)
    parts = min(len(ours["training"]), len(theirs["training"]))
    last = (statistics.mean(x["training"][parts - 4 : parts]) for x in (ours, theirs))
    row["training, last tenth in common"] = _percent(*last)
    row["which is"] = f"{100 * (parts - 4) / PARTS:g} to {100 * parts / PARTS:g} %"
    return row


def _percent(loss: float, other: float) -> str:
    return f"{100 * (math.exp(loss - other) - 1):+.1f}"

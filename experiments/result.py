"""A finished training as one line of JSON, and the file that holds those lines."""

import contextlib
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.table import commit
from egattn.report.runs import Run, load_runs
from egattn.report.summary import range_counts
from egattn.train.evaluate import read_run
from egattn.train.flops import utilisation
from egattn.train.nonfinite import FILE as NONFINITE
from egattn.train.records import append_line, read_lines

# Of a config: where, not what.
_PATHS = ("run", "data", "init_from")
# Points of a curve, at most.
_POINTS = 40


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock file, made if missing, against other runners; waits for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def append(path: Path, line: dict[str, Any]) -> None:
    """Adds a line to the results; several runners may do so at once."""
    with locked(path.with_suffix(".lock")), path.open("a", encoding="utf-8") as file:
        append_line(file, line)


def results(path: Path) -> dict[str, dict[str, Any]]:
    """The last line of each run, by its name.

    Raises:
      ValueError: If a line is not one of a result.
    """
    found = {}
    for number, text in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
        try:
            line = json.loads(text)
            found[line["run"]] = line
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"{path} line {number}: expected the result of a run") from None
    return found


def read(directory: Path) -> dict[str, Any] | None:
    """What a training came to; None if it neither finished nor diverged.

    Losses in nats per token, entropies in nats; `loss` is of the whole validation split, `curve`
    of the training; `diverged` tells the step, the layers whose entropies were not finite then and
    the heads' entropies [L, H] logged before it.
    """
    config = read_run(directory)
    (run,) = load_runs([directory])
    stops = [x for x in read_lines(directory / NONFINITE) if x["action"] == "stopped"]
    evaluated = run.validation and int(run.validation["step"][-1]) == config.steps
    if not stops and not evaluated:
        return None
    return {
        **_environment(run),
        "config": {name: value for name, value in run.config.items() if name not in _PATHS},
        "tokens": run.last_step * config.batch_size * config.model.context_length,
        **_speed(run, config.model),
        "diverged": _diverged(run, stops[-1]) if stops else None,
        **(_evaluation(run) if evaluated else {}),
        "curve": _curve(run),
    }


def _environment(run: Run) -> dict[str, Any]:
    names = ("time", "versions", "devices", "parameters")
    return {"commit": commit(), **{name: run.start(name) for name in names}}


def _speed(run: Run, model: Any) -> dict[str, Any]:
    """Median over the logged intervals but the first, which holds compilation."""
    rates = run.train["tokens_per_second"][1:]
    if not len(rates):
        return {"tokens_per_second": None, "mfu": None}
    rate = float(np.median(rates))
    return {"tokens_per_second": round(rate), "mfu": utilisation(model, rate)}


def _diverged(run: Run, stop: dict[str, Any]) -> dict[str, Any]:
    before = np.flatnonzero(run.train["step"] < stop["step"])
    heads = _rounded(run.train["head_entropy"][before[-1]]) if len(before) else None
    layers = np.flatnonzero(stop["nonfinite"]).tolist()
    return {"step": stop["step"], "layers": layers, "head_entropy_before": heads}


def _evaluation(run: Run) -> dict[str, Any]:
    last = {name: column[-1] for name, column in run.validation.items()}
    return {
        **{name: float(last[name]) for name in ("loss", "perplexity", "bits_per_byte")},
        "windows": int(last["windows"]),
        "head_entropy": _rounded(last["head_entropy"]),
        "ranges": range_counts(last["head_entropy"]).tolist(),
        "learned": {name: _rounded(value) for name, value in run.learned.items()},
    }


def _curve(run: Run) -> dict[str, Any]:
    """Loss and layers' mean entropy [L] against the step, thinned out."""
    count = len(run.train["step"])
    kept = np.unique(np.linspace(0, count - 1, min(count, _POINTS)).round().astype(int))
    return {
        "step": run.train["step"][kept].astype(int).tolist(),
        "loss": _rounded(run.train["loss"][kept]),
        "layer_entropy": _rounded(run.train["head_entropy"][kept].mean(-1)),
    }


def _rounded(values: Any) -> Any:
    """Four significant digits."""
    return jax.tree.map(lambda x: float(f"{x:.4g}"), np.asarray(values).tolist())

"""A finished training as one line of JSON, and the file that holds those lines."""

import json
import statistics
from pathlib import Path
from typing import Any

import jax
import numpy as np

from egattn.entropy import range_counts
from egattn.report.runs import Run, load_runs
from egattn.report.table import commit
from egattn.run import RunDirectory
from egattn.run.lines import append_line, read_lines
from egattn.run.lock import locked
from egattn.train.config import TrainConfig
from egattn.train.flops import utilisation

# Of a config: where, not what.
_PATHS = ("run", "data", "init_from")
# What every line has.
_NEEDED = {"run", "words", "diverged", "runners_per_device"}
# Points of a curve, at most.
_POINTS = 40
# Numbers of one learned parameter, at most.
_MOST = 1000


def append(path: Path, line: dict[str, Any]) -> None:
    """Adds a line to the results; several runners may do so at once."""
    with locked(path.with_suffix(".lock"), wait=True):
        kept = _complete(path)
        with path.open("ab") as file:
            # A line that a kill has torn is none.
            file.truncate(len(kept.encode()))
            append_line(file, line)


def results(path: Path) -> dict[tuple[str, ...], dict[str, Any]]:
    """The last line of each training, by its options.

    Raises:
      ValueError: If a line is not one of a result.
    """
    found = {}
    for number, text in enumerate(_complete(path).splitlines(), 1):
        try:
            line = json.loads(text)
            if not line.keys() >= _NEEDED:
                raise ValueError
            found[tuple(line["words"])] = line
        except (ValueError, TypeError, AttributeError):
            raise ValueError(f"{path} line {number}: expected the result of a training") from None
    return found


def _complete(path: Path) -> str:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return text[: text.rfind("\n") + 1]


def read(directory: Path) -> dict[str, Any] | None:
    """What a training came to; None if it neither finished nor diverged.

    Losses in nats per token, entropies in nats; `loss` is of the whole validation split, `curve`
    of the training; `diverged` tells the step, the layers whose entropies were not finite then and
    the heads' entropies [L, H] logged before it.
    """
    config = TrainConfig.read(directory)
    (run,) = load_runs([directory])
    stops = [x for x in read_lines(RunDirectory(directory).nonfinite) if x["action"] == "stopped"]
    evaluated = run.validation and int(run.validation["step"][-1]) == config.steps
    if not stops and not evaluated:
        return None
    diverged = _diverged(run, stops[-1]) if stops else None
    if evaluated and not np.isfinite(run.validation["perplexity"][-1]):
        diverged = _diverged(run, _last_evaluation(run))
    return {
        **_environment(run),
        "config": {name: value for name, value in run.config.items() if name not in _PATHS},
        "tokens": run.last_step * config.batch_size * config.model.context_length,
        **_speed(run, config.model),
        "diverged": diverged,
        **(_evaluation(run) if diverged is None else {}),
        "curve": _curve(run),
    }


def _environment(run: Run) -> dict[str, Any]:
    names = ("time", "versions", "devices", "parameters")
    return {"commit": commit(), **{name: run.start(name) for name in names}}


def _speed(run: Run, model: Any) -> dict[str, Any]:
    """Mean over all steps but those until the first log line, which compile.

    None of a run that was resumed, which compiles again.
    """
    rates = run.train["tokens_per_second"][1:]
    if not len(rates) or len(run.starts) > 1:
        return {"tokens_per_second": None, "mfu": None}
    rate = statistics.harmonic_mean(rates, weights=np.diff(run.train["step"]))
    return {"tokens_per_second": round(rate), "mfu": utilisation(model, rate)}


def _diverged(run: Run, stop: dict[str, Any]) -> dict[str, Any]:
    before = np.flatnonzero(run.train["step"] < stop["step"])
    heads = _rounded(run.train["head_entropy"][before[-1]]) if len(before) else None
    layers = np.flatnonzero(stop["nonfinite"]).tolist()
    return {"step": stop["step"], "layers": layers, "head_entropy_before": heads}


def _last_evaluation(run: Run) -> dict[str, Any]:
    """The last step, as one whose numbers were not finite."""
    bad = ~np.isfinite(run.validation["head_entropy"][-1])
    return {"step": int(run.validation["step"][-1]), "nonfinite": bad.sum(-1)}


def _evaluation(run: Run) -> dict[str, Any]:
    last = {name: column[-1] for name, column in run.validation.items()}
    return {
        **{name: float(last[name]) for name in ("loss", "perplexity", "bits_per_byte")},
        "windows": int(last["windows"]),
        "head_entropy": _rounded(last["head_entropy"]),
        "ranges": range_counts(last["head_entropy"]).tolist(),
        "learned": {name: _rounded(_short(value)) for name, value in run.learned.items()},
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


def _short(value: np.ndarray) -> np.ndarray:
    """Slopes per feature as their mean per layer."""
    return value if value.size <= _MOST else value.mean(-1)


def _rounded(values: Any) -> Any:
    """Four significant digits."""
    return jax.tree.map(lambda x: float(f"{x:.4g}"), np.asarray(values).tolist())

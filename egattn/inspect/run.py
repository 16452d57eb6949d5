"""What a run is: its config, its checkpoints, their parameters, and what it has logged."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from egattn.convert.convert import ORIGIN
from egattn.data import load_manifest
from egattn.entropy import range_counts
from egattn.inspect.architecture import architecture
from egattn.inspect.parameters import counts, learned, table
from egattn.report.runs import load_runs
from egattn.report.summary import compare
from egattn.run import RunDirectory
from egattn.run.integrity import check_intact, is_sealed
from egattn.run.lines import to_json
from egattn.train.config import TrainConfig
from egattn.train.variables import describe_variables, read_variables


def inspect_run(path: Path, step: int | None, shapes: bool, verify: bool) -> dict[str, Any]:
    """Says what a run is.

    Args:
      path: Run directory.
      step: Checkpoint to look into; None: the newest intact one.
      shapes: Whether to read no array of the checkpoint, and thereby no checksum.
      verify: Whether to compare the checksums of the data.

    Returns:
      Plain values; None for numbers that are not finite.

    Raises:
      FileNotFoundError: If the checkpoint asked for is not there or not intact.
      ValueError: If the config or the records are not those of a run.
    """
    run = TrainConfig.read(path)
    saved = _checkpoints(run, shapes)
    step = saved["newest"] if step is None else _check(run, saved, step, shapes)
    tokens = None if step is None else step * run.batch_size * run.model.context_length
    values = {"kind": "run", "path": str(path), "preset": run.preset}
    values |= {"step": step, "steps": run.steps, "tokens_seen": tokens}
    values |= {"architecture": architecture(run.model), "model": dataclasses.asdict(run.model)}
    values |= {"penalty": dataclasses.asdict(run.penalty), "data": _data(run, verify)}
    values |= {"initialised_from": _origin(run), "checkpoints": saved}
    if step is not None:
        values |= _parameters(run, step, shapes)
    return json.loads(to_json(values | {"evaluation": _evaluation(path)}))


def _checkpoints(run: TrainConfig, shapes: bool) -> dict[str, Any]:
    directory = RunDirectory(run.run)
    steps = directory.saved_steps()
    found: dict[str, Any] = {"steps": steps, "checked": not shapes, "newest": None, "problems": []}
    if shapes:
        sealed = [step for step in steps if is_sealed(directory.checkpoint(step))]
        return found | {"newest": max(sealed, default=None)}
    try:
        found["newest"], problems = directory.newest()
        found["problems"] = list(problems.values())
    except FileNotFoundError as error:
        # What a run without an intact checkpoint is, is still to be said.
        found["problems"] = [str(error)]
    return found


def _check(run: TrainConfig, saved: dict[str, Any], step: int, shapes: bool) -> int:
    """Raises FileNotFoundError unless a checkpoint can be looked into."""
    directory = RunDirectory(run.run)
    # Checksums are not compared twice, nor where no array is read.
    trusted = step == saved["newest"] or (shapes and is_sealed(directory.checkpoint(step)))
    if not trusted:
        check_intact(directory.checkpoints, step)
    return step


def _parameters(run: TrainConfig, step: int, shapes: bool) -> dict[str, Any]:
    checkpoint = RunDirectory(run.run).checkpoint(step)
    variables = describe_variables(checkpoint) if shapes else read_variables(checkpoint)
    rows = table(run.model, variables)
    found: dict[str, Any] = {"parameters": {**counts(run.model, rows), "table": rows}}
    return found if shapes else found | {"learned": learned(run.model, variables["params"])}


def _data(run: TrainConfig, verify: bool) -> dict[str, Any]:
    """Where the training data are, and whether they are still what the run was trained on."""
    about = {"path": str(run.data), "sha256": run.data_sha256 or None}
    try:
        manifest = load_manifest(run.data, verify=verify)
    except FileNotFoundError:
        return about | {"state": "missing"}
    except ValueError as error:
        return about | {"state": "damaged", "problem": str(error)}
    state = "same" if manifest.sha256 == run.data_sha256 else "other"
    if not run.data_sha256:
        # A converted run, which was trained elsewhere.
        state = "present"
    return about | {"state": state, "verified": verify}


def _origin(run: TrainConfig) -> dict[str, Any]:
    if run.init_from is not None:
        return {"kind": "run", "path": str(run.init_from), "sha256": run.init_sha256 or None}
    if (run.run / ORIGIN).is_dir():
        return {"kind": "hugging_face", "path": str(run.run / ORIGIN)}
    return {"kind": "seed", "seed": run.seed}


def _evaluation(path: Path) -> dict[str, Any] | None:
    """The last evaluation that the run has logged."""
    log = RunDirectory(path).metrics
    # A run that was killed at its start has a log without one whole line.
    if not log.is_file() or b"\n" not in log.read_bytes():
        return None
    (run,) = load_runs([path])
    (row,) = compare([run])
    heads = run.final_entropy
    if heads is None:
        return None
    return {
        "step": row.evaluated_at,
        "windows": row.windows,
        "loss": row.loss,
        "perplexity": row.perplexity,
        "bits_per_byte": row.bits_per_byte,
        "max_entropy": run.max_entropy,
        "uniform_entropy": run.uniform_entropy,
        "head_entropy": heads,
        "range_counts": range_counts(heads),
    }

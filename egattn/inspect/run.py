"""What a run is: its config, its checkpoints, their parameters, and what it has log."""

from pathlib import Path

import numpy as np

from egattn.convert.convert import ORIGIN
from egattn.data import load_manifest
from egattn.entropy import range_counts
from egattn.inspect.architecture import architecture
from egattn.inspect.found_run import (
    Checkpoints,
    DataOfRun,
    Evaluation,
    FromHuggingFace,
    FromRun,
    FromSeed,
    Origin,
    RunFound,
)
from egattn.inspect.parameters import learned, parameters
from egattn.report.runs import load_runs
from egattn.run import RunDirectory
from egattn.run.integrity import check_intact, is_sealed
from egattn.train.config import TrainConfig
from egattn.train.variables import describe_variables, read_variables


def inspect_run(path: Path, step: int | None, shapes: bool, verify: bool) -> RunFound:
    """Says what a run is.

    Args:
      path: Run directory.
      step: Checkpoint to look into; None: the newest intact one.
      shapes: Whether to read no array of the checkpoint, and thereby no checksum.
      verify: Whether to compare the checksums of the data.

    Raises:
      FileNotFoundError: If the checkpoint asked for is not there or not intact.
      ValueError: If the config or the records are not those of a run.
    """
    config = TrainConfig.read(path)
    directory = RunDirectory(path)
    saved = _checkpoints(directory, shapes)
    wanted, step = step, saved.newest if step is None else _check(directory, saved, step, shapes)
    variables = None
    if step is not None:
        read = describe_variables if shapes else read_variables
        try:
            variables = read(directory.checkpoint(step))
        except Exception:
            # Orbax raises many things where a run that goes on has deleted what is being read.
            if wanted is not None or directory.checkpoint(step).exists():
                raise
            return inspect_run(path, None, shapes, verify)
    model, tokens = config.model, config.batch_size * config.model.context_length
    return RunFound(
        path=path,
        preset=config.preset,
        step=step,
        steps=config.steps,
        tokens_seen=None if step is None else step * tokens,
        architecture=architecture(model),
        model=model,
        penalty=config.penalty,
        data=_data(config, verify),
        initialised_from=_origin(config),
        checkpoints=saved,
        parameters=None if variables is None else parameters(model, variables),
        learned=None if variables is None or shapes else learned(model, variables["params"]),
        evaluation=_evaluation(directory),
    )


def _checkpoints(directory: RunDirectory, shapes: bool) -> Checkpoints:
    steps = directory.saved_steps()
    if shapes:
        sealed = [step for step in steps if is_sealed(directory.checkpoint(step))]
        return Checkpoints(steps, checked=False, newest=max(sealed, default=None), problems=[])
    try:
        newest, problems = directory.newest()
    except FileNotFoundError as error:
        # What a run without an intact checkpoint is, is still to be said.
        return Checkpoints(steps, checked=True, newest=None, problems=[str(error)])
    return Checkpoints(steps, checked=True, newest=newest, problems=list(problems.values()))


def _check(directory: RunDirectory, saved: Checkpoints, step: int, shapes: bool) -> int:
    """Raises FileNotFoundError unless a checkpoint can be looked into."""
    # Checksums are not compared twice, nor where no array is read.
    trusted = step == saved.newest or (shapes and is_sealed(directory.checkpoint(step)))
    if not trusted:
        check_intact(directory.checkpoints, step)
    return step


def _data(config: TrainConfig, verify: bool) -> DataOfRun:
    """Where the training data are, and whether they are still what the run was trained on."""
    path, sha256 = config.data, config.data_sha256 or None
    try:
        manifest = load_manifest(path, verify=verify)
    except FileNotFoundError:
        return DataOfRun(path, sha256, "missing")
    except ValueError as error:
        return DataOfRun(path, sha256, "damaged", problem=str(error))
    if sha256 is None:
        # A converted run, which was trained elsewhere.
        return DataOfRun(path, None, "present", verify)
    return DataOfRun(path, sha256, "same" if manifest.sha256 == sha256 else "other", verify)


def _origin(config: TrainConfig) -> Origin:
    if config.init_from is not None:
        return FromRun(config.init_from, config.init_sha256 or None)
    companions = config.run / ORIGIN
    return FromHuggingFace(companions) if companions.is_dir() else FromSeed(config.seed)


def _evaluation(directory: RunDirectory) -> Evaluation | None:
    """The last evaluation that the run has log."""
    metrics = directory.metrics
    # A run that was killed at its start has a log without one whole line.
    if not metrics.is_file() or b"\n" not in metrics.read_bytes():
        return None
    (log,) = load_runs([directory.path])
    if not log.validation:
        return None
    last = {name: column[-1] for name, column in log.validation.items()}
    return Evaluation(
        step=int(last["step"]),
        windows=int(last["windows"]),
        loss=float(last["loss"]),
        perplexity=float(last["perplexity"]),
        bits_per_byte=float(last["bits_per_byte"]),
        max_entropy=log.max_entropy,
        uniform_entropy=log.uniform_entropy,
        head_entropy=last["head_entropy"],
        range_counts=np.asarray(range_counts(last["head_entropy"])),
    )

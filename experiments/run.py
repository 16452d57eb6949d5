"""Trains what a study consists of, as far as it is not done, and writes down what came out.

    python -m experiments.run nonlinearity
    python -m experiments.run all --minutes 25
    python -m experiments.run normalization --match 100M
    python -m experiments.run nonlinearity --smoke

What the results hold is not trained again; what was stopped goes on from its checkpoint. With
several GPUs start a runner on each (CUDA_VISIBLE_DEVICES=0, 1, ...): they share out the runs. Two
on one GPU (XLA_PYTHON_CLIENT_MEM_FRACTION=0.45) compile while the other one trains. A diverged net
is a result; a run that fails otherwise is reported at the end, after all others. Checkpoints are
deleted once the result is written.
"""

import dataclasses
import gc
import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import tyro

from egattn import cli
from egattn.data import load_manifest
from egattn.train import Preempted
from experiments.result import append, locked, read, results
from experiments.study import VOCAB_SIZE, Training, every_run, load


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run, and where."""

    study: tyro.conf.Positional[str]
    """Name of a study, or `all`."""
    match: str = ""
    """Only runs whose name contains this, such as `-100M-s0`; default: all."""
    minutes: float | None = None
    """Stop after so long; the same command continues. Default: no limit."""
    smoke: bool = False
    """Everything at toy size, to see that it works; below `root`/smoke."""
    root: Path = Path("runs/studies")
    """Directory of data and run directories."""
    results: Path = Path("experiments/results/studies.jsonl")
    """File with one line per finished run."""
    runners_per_device: int = 1
    """How many such commands share a device; results with more than one tell no speed."""


def main(config: Config) -> int:
    """Runs a study; returns the number of runs that failed.

    Raises:
      ValueError: If there is no such study or run, a number makes no sense, or the results belong
        to other data.
    """
    if config.minutes is not None and not config.minutes >= 0:
        raise ValueError(f"expected minutes of at least 0, got {config.minutes}")
    if config.runners_per_device < 1:
        raise ValueError(f"expected at least 1 runner per device, got {config.runners_per_device}")
    if config.smoke:
        root = config.root / "smoke"
        config = dataclasses.replace(config, root=root, results=root / "results.jsonl")
    cli.quiet()
    runs = every_run() if config.study == "all" else load(config.study)
    runs = [run for run in runs if config.match in run.name]
    if not runs:
        raise ValueError(f"no run of {config.study} has {config.match!r} in its name")
    end = time.monotonic() + 60 * (float("inf") if config.minutes is None else config.minutes)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(config.root / "compiled"))
    failed: list[Training] = []
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        _run_all(config, runs, end, failed)
    except (Preempted, KeyboardInterrupt):
        print("stopped; the same command continues")
    finally:
        signal.signal(signal.SIGTERM, before)
    # At toy size and in the grid of rates, runs of several names are the same one.
    wanted = {_words(config, run) for run in runs}
    print(f"{len(wanted & results(config.results).keys())} of {len(wanted)} runs are done")
    for run in failed:
        print(f"failed: {run.name}", file=sys.stderr)
    return len(failed)


def _stop(*_: Any) -> None:
    # Not Preempted, which is for trainings to raise.
    raise KeyboardInterrupt


def _run_all(config: Config, runs: list[Training], end: float, failed: list[Training]) -> None:
    """Trains what is not done, one after the other; adds what fails to `failed`."""
    data: dict[str, Path] = {}
    for run in runs:
        if time.monotonic() >= end:
            raise Preempted
        with locked(config.root / "locks" / run.name, wait=False) as free:
            # Only now: another runner may just have finished it.
            if not free or _words(config, run) in results(config.results):
                continue
            # Outside of the guard below: without data nothing runs.
            data[run.data] = data.get(run.data) or _data(config, run)
            try:
                _run(config, run, data[run.data], end)
            except Preempted:
                raise
            except Exception:
                # The others need not wait until this is understood.
                traceback.print_exc()
                failed.append(run)
        # The arrays of a finished run would stay on the device.
        gc.collect()


def _run(config: Config, run: Training, data: Path, end: float) -> None:
    """Trains one run and writes its result down.

    Raises:
      Preempted: If it was stopped on the way.
    """
    directory = config.root / "runs" / run.name
    words = list(_words(config, run))
    print(f"\n$ egattn train {directory} --data {data} {' '.join(words)}", flush=True)
    with _stopped_at(end):
        try:
            cli.train([str(directory), "--data", str(data), *words])
        except FloatingPointError as error:
            print(error)
    line = read(directory)
    if line is None:
        raise Preempted
    shared = {"runners_per_device": config.runners_per_device}
    append(config.results, {"run": run.name, "words": words, **shared, **line})
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)


def _words(config: Config, run: Training) -> tuple[str, ...]:
    return tuple(run.smoke_words() if config.smoke else run.words())


def _data(config: Config, run: Training) -> Path:
    """Prepared data with windows of a length; all lengths share a tokenizer and a split.

    Raises:
      ValueError: If the results are of other data, or more text is wanted that is not there.
    """
    first = config.root / "data" / "128"
    data = first.with_name(run.data)
    size = f"--vocab-size {VOCAB_SIZE}"
    if config.smoke:
        size = "--vocab-size 512 --max-bytes 300000 --validation-fraction 0.1"
    with locked(config.root / "data.lock"):
        if not first.exists():
            cli.prepare([str(first), *size.split()])
        if not data.exists():
            if run.more_text and not config.smoke:
                raise ValueError(f"expected {data}, made by python -m experiments.more_text")
            size += f" --tokenizer {first}/tokenizer.json --context-length {run.context_length}"
            cli.prepare([str(data), *size.split()])
        manifest = load_manifest(data, verify=False)
        kept = config.results.with_name(f"{config.results.stem}-data-{data.name}.json")
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            values = {"sha256": manifest.sha256, **dataclasses.asdict(manifest)}
            partial = kept.with_suffix(".partial")
            partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
            os.replace(partial, kept)
        known = json.loads(kept.read_text(encoding="utf-8"))["sha256"]
    if known != manifest.sha256:
        raise ValueError(
            f"{kept} says that the results are of data {known}, got {manifest.sha256}: for results "
            "of one's own, say with other packages installed, pass --results"
        )
    return data


@contextmanager
def _stopped_at(end: float) -> Iterator[None]:
    """Sends this process SIGTERM, upon which trainings save and end, when the time is up."""
    if end == float("inf"):
        yield
        return
    timer = threading.Timer(end - time.monotonic(), os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Config, description=__doc__)) != 0)
    except ValueError as error:
        print(f"experiments.run: {error}", file=sys.stderr)
        sys.exit(2)

"""Trains what a study consists of, as far as it is not done, and writes down what came out.

    python -m experiments.paper run nonlinearity
    python -m experiments.paper run all --minutes 25
    python -m experiments.paper run normalization --match 100M
    python -m experiments.paper run nonlinearity --smoke

What the results hold is not trained again; what was stopped goes on from its checkpoint. With
several GPUs start a runner on each (CUDA_VISIBLE_DEVICES=0, 1, ...): they share out the trainings.
Two on one GPU (XLA_PYTHON_CLIENT_MEM_FRACTION=0.45) compile while the other one trains. A diverged
net is a result; a training that fails otherwise is reported at the end, after all others.
Checkpoints are deleted once the result is written.
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

import jax
import tyro

from egattn import cli
from egattn.data import load_manifest
from egattn.run import Preempted
from egattn.run.lines import replaced
from egattn.run.lock import locked
from egattn.run.signals import listening
from experiments.paper.result import append, read, results
from experiments.paper.studies import every_training, load
from experiments.paper.study import VOCAB_SIZE, Training


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run, and where."""

    study: tyro.conf.Positional[str]
    """Name of a study, or `all`."""
    match: str = ""
    """Only trainings whose name contains this, such as `-100M-s0`; default: all."""
    minutes: float | None = None
    """Stop after so long; the same command continues. Default: no limit."""
    smoke: bool = False
    """Everything at toy size, to see that it works; below `root`/smoke."""
    root: Path = Path("runs/studies")
    """Directory of data and run directories."""
    results: Path = Path("experiments/paper/results/studies.jsonl")
    """File with one line per finished training."""
    runners_per_device: int = 1
    """How many such commands share a device; results with more than one tell no speed."""


def main(config: Config) -> int:
    """Trains a study; returns the number of trainings that failed.

    Raises:
      ValueError: If there is no such study or training, a number makes no sense, or the results
        belong to other data.
    """
    if config.minutes is not None and not config.minutes >= 0:
        raise ValueError(f"expected minutes of at least 0, got {config.minutes}")
    if config.runners_per_device < 1:
        raise ValueError(f"expected at least 1 runner per device, got {config.runners_per_device}")
    if config.smoke:
        config = dataclasses.replace(config, root=config.root / "smoke", results=smoke(config.root))
    cli.quiet()
    trainings = every_training() if config.study == "all" else load(config.study)
    trainings = [training for training in trainings if config.match in training.name]
    if not trainings:
        raise ValueError(f"no training of {config.study} has {config.match!r} in its name")
    end = time.monotonic() + 60 * (float("inf") if config.minutes is None else config.minutes)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(config.root / "compiled"))
    failed: list[Training] = []
    try:
        # A signal ends the training under way, and leaves time to say how far all have come.
        with listening() as stop, stop.keeping():
            _train_all(config, trainings, end, failed)
    except Preempted:
        print("stopped; the same command continues")
    # At toy size and in the grid of rates, trainings of several names are the same one.
    wanted = {_words(config, training) for training in trainings}
    print(f"{len(wanted & results(config.results).keys())} of {len(wanted)} trainings are done")
    for training in failed:
        print(f"failed: {training.name}", file=sys.stderr)
    return len(failed)


def smoke(root: Path) -> Path:
    """The file of the results at toy size."""
    return root / "smoke" / "results.jsonl"


def _train_all(
    config: Config, trainings: list[Training], end: float, failed: list[Training]
) -> None:
    """Trains what is not done, one after the other; adds what fails to `failed`."""
    data: dict[str, Path] = {}
    for training in trainings:
        if time.monotonic() >= end:
            raise Preempted
        with locked(config.root / "locks" / training.name) as free:
            # Only now: another runner may just have finished it.
            if not free or _words(config, training) in results(config.results):
                continue
            # Outside of the guard below: without data nothing runs.
            name = training.data
            data[name] = data.get(name) or _data(config, training)
            try:
                _train(config, training, data[name], end)
            except Preempted:
                raise
            except Exception:
                # The others need not wait until this is understood.
                traceback.print_exc()
                failed.append(training)
        # The arrays of a finished training would stay on the device.
        gc.collect()


def _train(config: Config, training: Training, data: Path, end: float) -> None:
    """Trains and writes the result down.

    Raises:
      Preempted: If it was stopped on the way.
    """
    directory = config.root / "runs" / training.name
    words = list(_words(config, training))
    print(f"\n$ egattn train {directory} --data {data} {' '.join(words)}", flush=True)
    with _stopped_at(end):
        try:
            cli.train([str(directory), "--data", str(data), *words])
        except FloatingPointError as error:
            print(error)
    line = read(directory)
    if line is None:
        raise RuntimeError(f"{directory} neither finished nor diverged")
    shared = {"runners_per_device": config.runners_per_device}
    append(config.results, {"run": training.name, "words": words, **shared, **line})
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)


def _words(config: Config, training: Training) -> tuple[str, ...]:
    return tuple(training.smoke_words() if config.smoke else training.words())


def _data(config: Config, training: Training) -> Path:
    """Prepared data with windows of a length; all lengths share a tokenizer and a split.

    Each document is cut by itself, as the paper does.

    Raises:
      ValueError: If the results are of other data, or more text is wanted that is not there.
    """
    first = config.root / "data" / "128"
    data = first.with_name(training.data)
    size = f"--packing paper --vocab-size {VOCAB_SIZE}"
    if config.smoke:
        size = "--packing paper --vocab-size 512 --max-bytes 300000 --validation-fraction 0.1"
    with locked(config.root / "data.lock", wait=True):
        if not first.exists():
            cli.prepare([str(first), *size.split()])
        if not data.exists():
            if training.more_text and not config.smoke:
                raise ValueError(f"expected {data}, made by python -m experiments.paper more-text")
            length = training.context_length
            size += f" --tokenizer {first}/tokenizer.json --context-length {length}"
            cli.prepare([str(data), *size.split()])
        manifest = load_manifest(data, verify=False)
        kept = config.results.with_name(f"{config.results.stem}-data-{data.name}.json")
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            values = {"sha256": manifest.sha256, **dataclasses.asdict(manifest)}
            with replaced(kept) as file:
                file.write(json.dumps(values, indent=2).encode() + b"\n")
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

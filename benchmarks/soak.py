"""Kills a training run again and again, and compares it with one that nothing interrupted.

    python -m benchmarks.soak --cycles 30 --out results

Every cycle continues the run and sends SIGKILL: after a random number of steps and a random part of
a second, often while a checkpoint is being written, and every fourth time at any moment from the
start of the process on. Nothing may be lost beyond the last completed save, no cycle may fail, the
run directory must not grow, and at the end everything in the last checkpoint must be, to the bit,
what it is in the other run.
"""

import dataclasses
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from egattn.report.table import write_table
from egattn.run import RunDirectory
from egattn.sharding import make_mesh
from egattn.train.config import TrainConfig
from egattn.train.evaluate import load_state

_EGATTN = [sys.executable, "-c", "from egattn.cli import main; main()"]
_OPTIONS = (
    "--preset ereg_sm_t_scfuffn --model.num-layers 2 --model.num-heads 2 --model.embed-dim 64 "
    "--batch-size 8 --log-every 1 --evaluate-every 100000 --checkpoint-every 2"
)
_DATA = "--max-bytes 1000000 --vocab-size 2048 --context-length 64 --validation-fraction 0.2"
# Most steps that a cycle waits for, and how many more may pass until the kill.
_STEPS, _LATE = 20, 20
# Seconds within which a process has certainly begun to train.
_STARTED = 10.0


@dataclasses.dataclass(frozen=True)
class Config:
    """How often to kill, and when."""

    cycles: int = 30
    """Kills."""
    seconds: float = 0.3
    """Most seconds between the last awaited step and the kill."""
    seed: int = 0
    """Seed of the times."""
    out: Path | None = None
    """Directory for soak.json and soak.md; default: print only."""


class Run:
    """A run directory and the command that starts or continues it."""

    def __init__(self, path: Path, data: Path, steps: int):
        words = f"train {path} --data {data} {_OPTIONS} --steps {steps}".split()
        self.path, self._command = path, [*_EGATTN, *words]

    def start(self) -> subprocess.Popen:
        """Starts or continues it."""
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "JAX_PLATFORMS": "cpu"}
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self._command, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=environment
        )

    def finish(self) -> None:
        """Trains to the end."""
        with self.start() as process:
            text = process.communicate()[0]
        if process.returncode:
            raise SystemExit(f"a run failed with status {process.returncode}:\n{text}")

    def saves(self) -> tuple[int, list[str]]:
        """Newest completed save, and what uncompleted ones have left."""
        where = RunDirectory(self.path).checkpoints
        entries = list(where.iterdir()) if where.exists() else []
        sealed = [int(e.name) for e in entries if (e / "checksums.json").exists()]
        return max(sealed, default=0), [
            e.name for e in entries if str(e.name) not in map(str, sealed)
        ]

    def megabytes(self) -> float:
        """Size on disk of everything but the logs, which grow with the steps."""
        files = [f for f in self.path.rglob("*") if f.is_file() and "tensorboard" not in f.parts]
        return sum(f.stat().st_size for f in files if f.name != "metrics.jsonl") / 1e6

    def state(self) -> dict[str, np.ndarray]:
        """Everything in its newest checkpoint."""
        leaves = jax.tree.leaves_with_path(load_state(TrainConfig.read(self.path), make_mesh()))
        return {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}


def kill(run: Run, steps: int, seconds: float) -> dict[str, Any]:
    """Continues a run, kills it so long after so many steps; returns what was seen."""
    before, _ = run.saves()
    text, seen = "", 0
    with run.start() as process:
        assert process.stdout is not None
        while seen < steps and (line := process.stdout.readline()):
            text += line
            seen += line.startswith("step ")
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        text += process.stdout.read()
    if process.returncode != -signal.SIGKILL:
        raise SystemExit(f"a cycle ended by itself with status {process.returncode}:\n{text}")
    after, uncompleted = run.saves()
    trained = [int(step) for step in re.findall(r"^step (\d+)  loss", text, re.MULTILINE)]
    resumed = re.search(r"resumed at step (\d+)", text)
    first = int(resumed[1]) if resumed else 0
    row = {
        "last save": before,
        "resumed at": first if trained else "-",
        "killed after step": trained[-1] if trained else "-",
        "last save then": after,
        "save under way": " ".join(uncompleted) or "-",
        "MB": round(run.megabytes(), 2),
    }
    # A save every second step: one perhaps under way, the next one waiting for it.
    if trained and (first != before or trained[0] != before + 1 or after < trained[-1] - 4):
        raise SystemExit(f"lost steps: {row}\n{text}")
    return row


def compare(killed: Run, other: Run) -> None:
    """Raises SystemExit unless both end with the same state, in directories of about one size."""
    mine, theirs = killed.state(), other.state()
    differ = [k for k in theirs if mine[k].tobytes() != theirs[k].tobytes()]
    if mine.keys() != theirs.keys() or differ:
        raise SystemExit(f"the killed run differs from the other one in {differ}")
    sizes = f"{killed.megabytes():.2f} MB, the other one {other.megabytes():.2f} MB"
    if killed.megabytes() > 1.01 * other.megabytes():
        raise SystemExit(f"the killed run's directory grew to {sizes}")
    print(f"{len(mine)} arrays identical to the bit; directory {sizes}")


def main(config: Config) -> list[dict[str, Any]]:
    """Runs the cycles and both runs to their end; exits with an error if anything was lost."""
    rng, rows = random.Random(config.seed), []
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        subprocess.run([*_EGATTN, *f"prepare {data} {_DATA}".split()], check=True)
        # The number of steps decides the schedule: the same for both, and enough for all cycles.
        steps = config.cycles * (_STEPS + _LATE)
        killed, other = (Run(Path(scratch) / name, data, steps) for name in ("killed", "other"))
        for cycle in range(config.cycles):
            at_once = cycle % 4 == 3
            wait = rng.uniform(0, _STARTED if at_once else config.seconds)
            rows.append(kill(killed, 0 if at_once else rng.randint(1, _STEPS), wait))
            print(rows[-1], flush=True)
        killed.finish()
        other.finish()
        compare(killed, other)
    write_table("soak", config, rows, config.out)
    return rows


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

"""What saving costs a training run: the same steps with and without checkpoints.

    python -m benchmarks.save_overhead --out results

Whole runs, alternating, each a process of its own, on the Python files of this interpreter. Both
log, and compile from the same cache; tokens/s counts the steps after the first ten, which hold
compilation.
"""

import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import tyro

from egattn.data import PrepareConfig, load_manifest, prepare
from egattn.model import DecoderConfig
from egattn.report.table import quartiles, write_table
from egattn.train import TrainConfig, train

# Steps not timed, and steps between log lines.
_SKIPPED = 10


@dataclasses.dataclass(frozen=True)
class Config:
    """What to train, and how often to save it."""

    steps: int = 400
    """Steps timed."""
    every: int = 50
    """Steps between saves."""
    rounds: int = 4
    """Pairs of runs."""
    batch_size: int = 128
    """Sequences per step."""
    context_length: int = 128
    """Positions per sequence."""
    vocab_size: int = 50304
    """Vocabulary."""
    max_bytes: int = 30_000_000
    """Bytes of source text, at most."""
    seed: int = 0
    """Seed of parameters and data order."""
    model: DecoderConfig = dataclasses.field(
        default_factory=lambda: DecoderConfig.preset("sm_ln_g", dtype="bfloat16")
    )
    """Architecture."""
    out: Path | None = None
    """Directory for save_overhead.json and save_overhead.md; default: print only."""


def tokens_per_second(config: Config, data: Path, run: Path, every: int) -> float:
    """Rate of one run, everything that its loop does included."""
    size = load_manifest(data).vocab_size
    model = dataclasses.replace(config.model, vocab_size=size, context_length=config.context_length)
    steps = config.steps + _SKIPPED
    train(
        TrainConfig(
            run,
            data=data,
            model=model,
            # One more, so that the timed steps end neither with a save nor with an evaluation.
            steps=steps + 1,
            batch_size=config.batch_size,
            seed=config.seed,
            log_every=_SKIPPED,
            evaluate_every=steps + 1,
            checkpoint_every=every,
        )
    )
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    rates = [x["tokens_per_second"] for x in lines if x["kind"] == "train"]
    timed = rates[1 : 1 + config.steps // _SKIPPED]
    # What it wrote would otherwise be on its way to the disk during the next run.
    shutil.rmtree(run)
    return len(timed) / sum(1 / rate for rate in timed)


def _alone(*args: Any) -> float:
    """`tokens_per_second` in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as process:
        return process.submit(tokens_per_second, *args).result()


def pair(config: Config, scratch: Path, index: int) -> dict[str, Any]:
    """One run of each, every second time in the other order."""
    saves = {"no saves, tokens/s": config.steps + 2 * _SKIPPED}
    saves[f"a save every {config.every} steps, tokens/s"] = config.every
    names = list(saves)[:: -1 if index % 2 else 1]
    rates = {name: _alone(config, scratch / "data", scratch / "run", saves[name]) for name in names}
    without, with_saves = (rates[name] for name in saves)
    row: dict[str, Any] = {name: f"{rates[name]:,.0f}" for name in saves}
    row["cost, %"] = round(100 * (1 - with_saves / without), 2)
    print(row, flush=True)
    return row


def main(config: Config) -> list[dict[str, Any]]:
    """Runs the pairs; returns the table's rows."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{scratch}/cache"
        prepare(
            PrepareConfig(
                scratch / "data",
                max_bytes=config.max_bytes,
                vocab_size=config.vocab_size,
                context_length=config.context_length,
            )
        )
        # Fills the cache.
        _alone(dataclasses.replace(config, steps=_SKIPPED), scratch / "data", scratch / "run", 1000)
        rows = [pair(config, scratch, index) for index in range(config.rounds)]
    low, median, high = quartiles([row["cost, %"] for row in rows])
    rows.append({"cost, %": f"median {median:.2f} ({low:.2f} to {high:.2f})"})
    write_table("save_overhead", config, rows, config.out)
    return rows


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

"""Run directories written by hand, for tests of what reads them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

CONTEXT = 32


def plain(values: Any) -> Any:
    """Lists in which what is not finite is null, as runs write them."""
    if isinstance(values, list):
        return [plain(value) for value in values]
    return values if values is None or math.isfinite(values) else None


def make_run(path: Path, heads: np.ndarray, **options: Any) -> Path:
    """Writes a run of three logged steps; `heads` are its last head entropies [L, H]."""
    losses = options.get("losses", [5.0, 4.0, 3.5])
    evaluated = options.get("evaluated", {20: 3.75, 30: 3.25})
    layers, width = heads.shape
    model = {"num_layers": layers, "num_heads": width, "context_length": CONTEXT}
    config = {"run": str(path), "preset": options.get("preset", "sm_ln_g"), "steps": 30}
    config |= {"seed": options.get("seed", 7), "penalty": {"weight": options.get("weight", 0.0)}}
    start = {"kind": "start", "time": "2031-02-03T04:05:06+00:00", "versions": {"jax": "0.10.2"}}
    start |= {"devices": "8 x imaginary", "mesh": {"replica": 8}}
    records: list[dict[str, Any]] = [start | {"parameters": 1234567, "tokens_per_step": 2048}]
    for step, loss, speed in zip((10, 20, 30), losses, (100.0, 900.0, 700.0), strict=True):
        entropy = {"head_entropy": plain(heads.tolist())}
        speed = {"tokens_per_second": speed, "nonfinite": np.isnan(heads).sum(1).tolist()}
        records.append({"kind": "train", "step": step, "loss": plain(loss), **entropy, **speed})
        if step in evaluated:
            loss = evaluated[step]
            values = {"loss": plain(loss), "perplexity": plain(math.exp(loss))}
            values["bits_per_byte"] = plain(loss / 3)
            learned = {"learned": options.get("learned", {}), "windows": 64, **entropy}
            records.append({"kind": "validation", "step": step, **values, **learned})
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config | {"model": model}))
    (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    if "temperature" in options:
        np.savez(path / "learned.npz", temperature=options["temperature"])
    return path


def entropies(layers: int, heads: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.05, math.log(CONTEXT), (layers, heads))

"""What entropy costs a training step: the whole jitted step with and without it, in one run.

    python -m benchmarks.step_time                      # the demo's size
    python -m benchmarks.step_time --preset sm_ln_g --num-layers 12 --num-heads 12 --embed-dim 768

Three steps on the same batch, interleaved, medians of the rounds:

- with entropy: the step that `egattn train` runs, statistics and penalty on;
- penalty off: the same step without penalty and statistics, same attention implementation;
- stock attention: no entropy anywhere, `jax.nn.dot_product_attention` in its place.
"""

import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.table import write_table
from egattn.model import attention
from egattn.sharding import make_mesh
from egattn.train.config import PenaltyConfig, TrainConfig
from egattn.train.step import batch_sharding, init_state, make_train_step


@dataclasses.dataclass(frozen=True)
class Config:
    """Size of the model and of the measurement."""

    preset: str = "ereg_sm_t_scfuffn"
    num_layers: int = 4
    num_heads: int = 4
    embed_dim: int = 128
    context_length: int = 128
    vocab_size: int = 2048
    batch_size: int = 16
    rounds: int = 40
    """Steps timed of each kind."""
    out: Path | None = None
    """Directory for step_time.json and step_time.md; default: print only."""


def stock_attention(query, key, value, temperature=None, *, causal, segment_ids, **_):
    """Attention without entropy, for the baseline."""
    assert segment_ids is None
    if temperature is not None:
        query = query / temperature.T[:, :, None].astype(query.dtype)
    out = jax.nn.dot_product_attention(query, key, value, is_causal=causal)
    return out, jnp.zeros((query.shape[0], query.shape[2], query.shape[1]), jnp.float32)


def build(config: Config, *, penalty: bool, stock: bool):
    """Returns a compiled step (without the parts switched off) and its initial state."""
    train = TrainConfig.preset_defaults(
        config.preset,
        Path(),
        threshold=0.5,
        **{
            name: getattr(config, name)
            for name in ("num_layers", "num_heads", "embed_dim", "context_length", "vocab_size")
        },
    )
    weight = 0.16 if penalty else 0.0
    train = dataclasses.replace(
        train, batch_size=config.batch_size, penalty=PenaltyConfig(weight=weight)
    )
    mesh = make_mesh()
    step, state = make_train_step(train, mesh), init_state(train, mesh)
    rows = np.random.default_rng(0).integers(
        0, config.vocab_size, (1, config.batch_size, config.context_length + 1)
    )
    tokens = jax.device_put(rows.astype(np.int32), batch_sharding(mesh))

    def without_statistics(state, tokens):
        state, metrics = step(state, tokens)
        return state, metrics["loss"]

    chosen = step if penalty else jax.jit(without_statistics, donate_argnums=0)
    patched = stock_attention if stock else attention.entropy_attention
    with mock.patch.object(attention, "entropy_attention", patched):
        return chosen.lower(state, tokens).compile(), state, tokens


def main(config: Config) -> list[dict[str, Any]]:
    """Times the three steps and prints their medians, ratios and spread."""
    kinds = {
        "stock attention": {"penalty": False, "stock": True},
        "penalty off": {"penalty": False, "stock": False},
        "with entropy": {"penalty": True, "stock": False},
    }
    steps = {name: build(config, **options) for name, options in kinds.items()}
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for round_index in range(config.rounds + 3):
        for name, (step, state, tokens) in steps.items():
            start = time.perf_counter()
            state, _ = jax.block_until_ready(step(state, tokens))
            steps[name] = (step, state, tokens)
            if round_index >= 3:
                times[name].append(time.perf_counter() - start)
    rows = []
    for name in kinds:
        pairs = [a / b for a, b in zip(times["with entropy"], times[name], strict=True)]
        low, middle, high = statistics.quantiles(pairs, n=4)
        tokens_per_second = (
            config.batch_size * config.context_length / statistics.median(times[name])
        )
        rows.append(
            {
                "step": name,
                "median ms": round(1e3 * statistics.median(times[name]), 2),
                "tokens/s": round(tokens_per_second),
                "with entropy / this (median)": round(middle, 3),
                "quartiles": f"{low:.3f} to {high:.3f}",
            }
        )
    write_table("step_time", config, rows, config.out)
    return rows


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

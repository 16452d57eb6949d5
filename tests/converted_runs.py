"""Conversions and their results, and runs of any preset that nothing was trained for."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egattn._config import to_json
from egattn.convert import ConvertConfig, convert
from egattn.model import Decoder
from egattn.model.linear import SPECTRAL
from egattn.run import RunDirectory
from egattn.run.checkpoints import Saver
from egattn.sharding import make_mesh
from egattn.train import TrainConfig, TrainState
from egattn.train.evaluate import load_state
from egattn.train.step import init_state


def one_device():
    return make_mesh("replica=1", jax.devices()[:1])


def to_run(source: Path, name: str = "run", **fields: Any) -> Path:
    run = source.parent / name
    convert(ConvertConfig(source, run, **fields))
    return run


def back(run: Path, name: str = "back") -> Path:
    convert(ConvertConfig(run, run.parent / name))
    return run.parent / name


def apply(run: Path, tokens: np.ndarray):
    """Logits and entropies of a run's decoder."""
    config = TrainConfig.read(run)
    state = load_state(config, one_device())
    # One layer to compile instead of all.
    model = dataclasses.replace(config.model, implementation="reference", scan_layers=True)
    variables = {"params": state.params, SPECTRAL: state.spectral}
    output: Any = jax.jit(Decoder(model).apply)(variables, jnp.asarray(tokens))
    return np.asarray(output.logits), np.asarray(output.entropy)


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    """Whether names, types and bits are the same."""
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and a[name].tobytes() == b[name].tobytes() for name in a
    )


def make_run(
    directory: Path, preset: str, vocab_size: int = 300, seed: int = 0, **fields: Any
) -> TrainConfig:
    """A run of a preset, its parameters moved away from where they start."""
    sizes = {"vocab_size": vocab_size, "context_length": 16, "num_layers": 2, "num_heads": 2}
    config = TrainConfig.preset_defaults(preset, directory, embed_dim=16, **sizes, **fields)
    directory.mkdir()
    (directory / "config.json").write_text(to_json(config))
    rng, state = np.random.default_rng(seed), init_state(config, one_device())
    params, spectral = jax.tree.map(
        lambda x: x + rng.normal(0, 0.1, x.shape).astype(np.float32), (state.params, state.spectral)
    )
    with Saver(RunDirectory(directory), keep=1) as saver:
        saver.save(1, TrainState(state.step + 1, params, spectral, state.opt_state), {})
    return config

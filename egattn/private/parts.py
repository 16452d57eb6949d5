"""The operations of one layer, embedding and head, each a program of its own, to measure its cost.

Weights and activations are random: what an operation costs depends on shapes alone.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from egattn.model import Decoder, DecoderConfig
from egattn.private import program
from egattn.private.artifact import (
    Input,
    Program,
    check_ranges,
    compile_program,
    write_artifact,
)
from egattn.private.fold import fold


@dataclasses.dataclass(frozen=True)
class PartsConfig:
    """Writes the operations of an architecture's first layer, each as a program for two parties."""

    out: tyro.conf.Positional[Path]
    """Directory to make, with one program each inside."""
    preset: tyro.conf.Suppress[str] = "sm_ln_g"
    """The architecture that `model` started from."""
    model: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)
    """Architecture; programs have its context length."""
    only: tuple[str, ...] = ()
    """Names of the parts to write; default: all."""
    gelu: program.Gelu = "tanh"
    """Form of GELU, where the network has any."""
    seed: int = 0
    """Seed of weights and activations."""

    @classmethod
    def preset_defaults(cls, preset: str, out: Path) -> "PartsConfig":
        """Returns the defaults of a preset."""
        return cls(out, preset=preset, model=DecoderConfig.preset(preset))


@dataclasses.dataclass(frozen=True)
class Part:
    """One operation."""

    function: Callable
    """Of a dict of weights and of the inputs."""
    inputs: dict[str, tuple[int, ...]]
    """Shapes of the inputs, by name; those of "tokens" without the vocabulary."""
    weights: tuple[str, ...] | None = ()
    """Names of its weights; None: all of the layer's."""


def parts(config: DecoderConfig, gelu: program.Gelu) -> dict[str, Part]:
    """Returns the operations of a decoder's first layer, and the whole layer at the end."""
    c, length, kind = config, config.context_length, config.layer_kinds[0]
    x, rows = {"x": (length, c.embed_dim)}, (c.num_heads, length)
    found = {
        "embedding": Part(program.embed, {"tokens": (length,)}, ("embedding", "position")),
        "qkv": _linear("qkv", c.embed_dim, length),
        "scores": Part(
            lambda w, query, key: program.scores(query, key),
            {"query": (*rows, c.head_dim), "key": (*rows, c.head_dim)},
        ),
        "softmax": Part(lambda w, s: program.softmax(s), {"scores": (*rows, length)}),
        "values": Part(
            lambda w, p, value: program.values(p, value),
            {"probabilities": (*rows, length), "value": (*rows, c.head_dim)},
        ),
        "out": _linear("out", c.embed_dim, length),
        "head": _linear("head", c.embed_dim, length),
    }
    if c.temperature is not None:
        found["temperature"] = Part(
            lambda w, query: program.cool(query, w["inverse_temperature"]),
            {"query": (*rows, c.head_dim)},
            ("inverse_temperature",),
        )
    if c.pre_norm == "layer_norm":
        found["layer_norm"] = Part(
            lambda w, x: program.layer_norm(w["attention_norm.epsilon"], x),
            x,
            ("attention_norm.epsilon",),
        )
    if kind == "fused" or (kind == "mlp" and c.activation in ("identity", "leaky_relu")):
        found["linear"] = _linear("linear", c.embed_dim, length)
    if kind == "mlp" and c.activation != "identity":
        found["up"] = _linear("up", c.embed_dim, length)
        found["activation"] = Part(
            lambda w, h: program.activate(c, gelu, h), {"h": (length, c.ffn_dim)}
        )
        found["down"] = _linear("down", c.ffn_dim, length)
    found["layer"] = Part(lambda w, x: program.block(c, gelu, w, x), x, None)
    return found


def _linear(name: str, inputs: int, length: int) -> Part:
    weights = (f"{name}.kernel", f"{name}.bias")
    return Part(functools.partial(program.linear, name), {"x": (length, inputs)}, weights)


def write_parts(config: PartsConfig) -> list[str]:
    """Writes the programs; returns their names.

    Raises:
      FileExistsError: If the directory of one of them exists.
      ValueError: If `only` names a part that the architecture lacks.
    """
    c = config.model
    one = dataclasses.replace(c, num_layers=1, feed_forward=c.layer_kinds[0])
    found = parts(one, config.gelu)
    for name in config.only:
        if name not in found:
            raise ValueError(f"expected parts in {sorted(found)}, got {name!r}")
    tokens = jnp.zeros((1, c.context_length), jnp.int32)
    variables: Any = jax.jit(Decoder(one).init)(jax.random.key(config.seed), tokens)
    # The initial activations' size; every gain and bias of a norm is 1 and 0.
    weights = fold(one, variables, c.context_length, scale=one.init_std)
    layer = program.sub_weights(weights, "layers.0.")
    own = {**weights, **layer}
    rng = np.random.default_rng(config.seed)
    names = [name for name in found if name in (config.only or found)]
    for name in names:
        part = found[name]
        wanted = layer
        if part.weights is not None:
            wanted = {n: own[n] for n in part.weights if n in own}
        inputs = [_random(rng, n, shape, one) for n, shape in part.inputs.items()]
        title = f"{name}, {config.preset}"
        artifact = Program("part", title, part.function, wanted, inputs, "result")
        about = {"config": dataclasses.asdict(one), "ranges": check_ranges(artifact)}
        write_artifact(config.out / name, artifact, compile_program(artifact), about, {})
    return names


def _random(rng: np.random.Generator, name: str, shape: tuple[int, ...], c: DecoderConfig) -> Input:
    """One case of plausible activations."""
    shape = (1, *shape)
    if name == "tokens":
        return Input(name, "client", rng.integers(0, c.vocab_size, shape, np.int32), c.vocab_size)
    values = rng.normal(size=shape)
    if name == "scores":
        values *= 2
    if name == "probabilities":
        values = np.tril(np.exp(values))
        values /= values.sum(-1, keepdims=True)
    if name == "query":
        values /= math.sqrt(c.head_dim)
    return Input(name, "shared", values.astype(np.float32))

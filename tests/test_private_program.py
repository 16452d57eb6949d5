"""The program that two parties compute, against the decoder itself and against exact functions."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egattn.model import PRESETS, Decoder, DecoderConfig
from egattn.private.fold import fold
from egattn.private.program import forward, gelu_polynomial, gelu_tanh, softmax

SMALL: dict[str, Any] = {
    "vocab_size": 60,
    "context_length": 12,
    "num_layers": 2,
    "num_heads": 4,
    "embed_dim": 16,
    "init_std": 0.1,
}

# Everything that a config can ask for beside the presets.
OTHERS: dict[str, dict[str, Any]] = {
    "biases everywhere": {"biases": ("q", "k", "v", "o", "ffn")},
    "biases, no activation": {"activation": "identity", "biases": ("q", "k", "v", "o", "ffn")},
    "grouped heads": {"num_kv_heads": 2, "tie_embeddings": False},
    "one slope": {"activation": "leaky_relu", "slope_scope": "model", "ffn_scaling": True},
    "slope per layer": {"activation": "leaky_relu", "biases": ("ffn",)},
    "slope per feature": {"activation": "leaky_relu", "slope_scope": "feature"},
    "layer norm and scaling": {"ffn_scaling": True, "temperature": 0.5},
    "mixed layers": {"feed_forward": ("mlp", "none"), "hidden_dim": 24},
    "weight norm": {
        "weight_reparam": "weight_norm",
        "reparam_matrices": ("q", "k", "v", "o", "ffn"),
    },
    "spectral norm": {"weight_reparam": "spectral_norm", "reparam_matrices": ("q", "ffn")},
}
CONFIGS = {name: DecoderConfig.preset(name, **SMALL) for name in PRESETS} | {
    name: DecoderConfig(**SMALL, **fields) for name, fields in OTHERS.items()
}


def trained(config: DecoderConfig, rng: np.random.Generator) -> dict[str, Any]:
    """Variables in which no parameter is at its initial value; betas have either sign."""
    tokens = jnp.zeros((1, config.context_length), jnp.int32)
    variables = jax.jit(Decoder(config).init)(jax.random.key(0), tokens)

    def moved(path, x):
        noise = np.asarray(rng.normal(size=x.shape), np.float32)
        if path[-1].key == "beta":
            return jnp.sign(noise) * (1 + 0.1 * noise)
        return x + 0.05 * noise if path[0].key == "params" else x

    return jax.tree_util.tree_map_with_path(moved, variables)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_program_computes_the_decoder_s_logits(name, rng):
    config = CONFIGS[name]
    variables = trained(config, rng)
    # A prompt shorter than the context.
    length = 9
    tokens = jnp.asarray(rng.integers(0, config.vocab_size, length), jnp.int32)
    weights = fold(config, variables, length, scale=0.25)
    one_hot = jax.nn.one_hot(tokens, config.vocab_size)
    logits = jax.jit(functools.partial(forward, config, "tanh"))(weights, one_hot)
    expected: Any = jax.jit(Decoder(config).apply)(variables, tokens[None])
    error = np.abs(np.asarray(logits) - np.asarray(expected.logits[0])).max()
    assert error <= 2e-5 * np.abs(expected.logits).max()

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
from egattn.private.program import forward, gelu_polynomial, gelu_tanh, product, softmax

pytestmark = pytest.mark.slow

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


def test_large_matrices_are_multiplied_in_pieces(monkeypatch, rng):
    monkeypatch.setattr("egattn.private.program.PIECE", 10)
    for inputs, outputs, pieces in ((10, 25, 3), (25, 10, 3), (25, 21, 9), (10, 3, 1)):
        x, kernel = rng.normal(size=(3, inputs)), rng.normal(size=(inputs, outputs))
        arrays = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)
        np.testing.assert_allclose(product(*arrays), x @ kernel, atol=1e-5)
        assert str(jax.make_jaxpr(product)(*arrays)).count("dot_general") == pieces


def test_gelu_forms_against_their_definitions():
    x = np.linspace(-30, 30, 60001)
    tanh = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    exact = np.asarray(gelu_tanh(jnp.asarray(x, jnp.float32)))
    polynomial = np.asarray(gelu_polynomial(jnp.asarray(x, jnp.float32)))
    np.testing.assert_allclose(exact, tanh, rtol=0, atol=4e-6)
    # As the docstrings say.
    assert 1.7e-3 < np.abs(polynomial - tanh).max() < 1.8e-3
    np.testing.assert_allclose(polynomial[x >= 3.3], x[x >= 3.3], rtol=1e-6, atol=6e-4)
    np.testing.assert_allclose(polynomial[x <= -3.3], 0, atol=6e-4)


def test_what_a_query_does_not_see_has_no_weight_whatever_its_score(rng):
    length = 7
    s = rng.normal(size=(3, length, length)) * 5
    seen = np.tril(np.ones((length, length), bool))
    exponentials = np.where(seen, np.exp(s), 0)
    expected = exponentials / exponentials.sum(-1, keepdims=True)
    # Scores of 1e6 would win the row, and next to them exp would see less than any limit.
    hostile = np.where(seen, s, 1e6).astype(np.float32)
    np.testing.assert_allclose(softmax(jnp.asarray(hostile)), expected, atol=1e-6)
    assert np.all(np.asarray(softmax(jnp.asarray(hostile)))[:, ~seen] == 0)


def test_what_cannot_be_folded_is_named(rng):
    config = CONFIGS["sm_scfuffn"]
    variables = trained(config, rng)
    params = variables["params"]
    nothing = {**params, "blocks_0": {**params["blocks_0"], "alpha": jnp.array([1.0, 0.0])}}
    with pytest.raises(ValueError, match="layer 1: cannot fold alpha = 0"):
        fold(config, {"params": nothing}, 9, 1.0)
    embedding = params["token_embedding"]["embedding"].at[3, 2].set(jnp.nan)
    broken = {**params, "token_embedding": {"embedding": embedding}}
    with pytest.raises(ValueError, match=r"finite weights.*token_embedding"):
        fold(config, {"params": broken}, 9, 1.0)

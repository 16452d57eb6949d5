"""The decoder against a float64 NumPy forward pass, and its options against each other."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import egattn
from egattn.model import PRESETS, Linear
from egattn.model.learned import learned_values
from egattn.model.linear import SPECTRAL

SIZE = {
    "vocab_size": 300,
    "context_length": 24,
    "num_layers": 2,
    "num_heads": 4,
    "embed_dim": 32,
    "init_std": 0.1,
}
GROUPS = {
    "QK": ("q", "k"),
    "FFN": ("ffn",),
    "QK+FFN": ("q", "k", "ffn"),
    "QKV+FFN": ("q", "k", "v", "ffn"),
    "QKVO+FFN": ("q", "k", "v", "o", "ffn"),
}


def preset(name, **overrides):
    return egattn.DecoderConfig.preset(name, **{**SIZE, **overrides})


@pytest.fixture(scope="module")
def tokens():
    return jax.random.randint(jax.random.key(1), (2, 24), 0, 300)


def init(config, tokens):
    return jax.jit(egattn.Decoder(config).init)(jax.random.key(0), tokens)


def apply(config, variables, tokens):
    return jax.jit(egattn.Decoder(config).apply)(variables, tokens)


def perturbed(variables, scale=0.05):
    """Parameters away from their symmetric initial values, so that each of them matters."""
    leaves, tree = jax.tree.flatten(variables["params"])
    keys = jax.random.split(jax.random.key(7), len(leaves))
    leaves = [x + scale * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return {**variables, "params": jax.tree.unflatten(tree, leaves)}


class NumpyDecoder:
    """One example at a time, one head at a time, float64: written from the paper's formulas."""

    def __init__(self, config, params):
        self.c = config
        self.p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def layer(self, index):
        for run, (kind, count) in enumerate(self.c.layer_runs):
            if index < count:
                return kind, jax.tree.map(lambda x, i=index: x[i], self.p[f"blocks_{run}"])
            index -= count
        raise IndexError(index)

    @staticmethod
    def norm(x, p):
        centred = x - x.mean(-1, keepdims=True)
        return (
            centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]
        )

    def matrix(self, name, p):
        w = p["kernel"]
        if "gain" in p and self.c.weight_reparam == "weight_norm":
            w = w / np.sqrt((w**2).sum(0)) * p["gain"]
        elif "gain" in p:
            w = w / np.linalg.svd(w)[1][0] * p["gain"]
        return w

    def linear(self, name, p, x):
        return x @ self.matrix(name, p[name]) + p[name].get("bias", 0.0)

    def attention(self, p, x):
        c, length = self.c, len(x)
        q, k, v = (self.linear(name, p, x) for name in "qkv")
        size, outs, entropies = c.head_dim, [], []
        for h in range(c.num_heads):
            g = h // (c.num_heads // c.kv_heads)
            out, entropy = np.zeros((length, size)), np.zeros(length)
            for i in range(length):
                t = np.exp(p["log_temperature"][h, i]) if "log_temperature" in p else 1.0
                keys = k[: i + 1, g * size : (g + 1) * size]
                s = keys @ q[i, h * size : (h + 1) * size] / np.sqrt(size) / t
                a = np.exp(s - s.max())
                a /= a.sum()
                out[i] = a @ v[: i + 1, g * size : (g + 1) * size]
                entropy[i] = -sum(w * np.log(w) for w in a if w > 0)
            outs.append(out)
            entropies.append(entropy)
        return self.linear("o", p, np.concatenate(outs, 1)), np.stack(entropies)

    def activation(self, h, p):
        slope = p.get("slope", self.p.get("slope"))
        return {
            "gelu": lambda: 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3))),
            "relu": lambda: np.maximum(h, 0),
            "leaky_relu": lambda: np.where(h >= 0, h, slope * h),
            "identity": lambda: h,
        }[self.c.activation]()

    def feed_forward(self, kind, p, x):
        if kind == "fused":
            return self.linear("fused", p, x)
        return self.linear("down", p, self.activation(self.linear("up", p, x), p))

    def __call__(self, tokens):
        c = self.c
        table = self.p["token_embedding"]["embedding"]
        x = table[tokens] + self.p["position_embedding"]["embedding"][: len(tokens)]
        entropies = []
        for index in range(c.num_layers):
            kind, p = self.layer(index)
            normed = self.norm(x, p["attention_norm"]) if c.pre_norm == "layer_norm" else x
            attended, entropy = self.attention(p["attention"], normed)
            entropies.append(entropy)
            x = x + attended
            if kind == "none":
                continue
            normed = self.norm(x, p["ffn_norm"]) if c.pre_norm == "layer_norm" else x
            y = self.feed_forward(kind, p["feed_forward"], normed)
            x = p["beta"] * x + y / p["alpha"] if c.ffn_scaling else x + y
        if c.final_norm == "layer_norm":
            x = self.norm(x, self.p["final_norm"])
        head = table if c.tie_embeddings else self.p["head"]
        return x @ head[: c.vocab_size].T, np.stack(entropies)


def check_against_numpy(config, variables, tokens, tolerance=2e-5):
    output = apply(config, variables, tokens)
    oracle = NumpyDecoder(config, variables["params"])
    for b in range(len(tokens)):
        logits, entropy = oracle(np.asarray(tokens[b]))
        error = np.linalg.norm(output.logits[b] - logits) / np.linalg.norm(logits)
        assert error < tolerance
        assert np.abs(output.entropy[:, b] - entropy).max() < tolerance


class TestForward:
    @pytest.mark.parametrize("name", [n for n in PRESETS if n != "sm_snorm"])
    def test_preset_equals_numpy(self, name, tokens):
        config = preset(name)
        check_against_numpy(config, perturbed(init(config, tokens)), tokens)

    @pytest.mark.parametrize(
        "overrides",
        [
            {"num_kv_heads": 2, "tie_embeddings": False, "biases": ("q", "k", "v", "o", "ffn")},
            {"activation": "leaky_relu", "slope_scope": "model"},
            {"activation": "leaky_relu", "slope_scope": "layer"},
            {"activation": "leaky_relu", "slope_scope": "feature"},
            {"feed_forward": ("none", "mlp"), "hidden_dim": 20},
            {"ffn_scaling": True, "temperature": 2.0, "final_norm": "none"},
            {"implementation": "reference", "scale_residual_init": True},
        ],
        ids=lambda o: "-".join(o),
    )
    def test_option_equals_numpy(self, overrides, tokens):
        config = preset("sm_ln_r", **overrides)
        check_against_numpy(config, perturbed(init(config, tokens)), tokens)

    def test_deepest_layers_without_feed_forward_equal_numpy(self, tokens):
        config = preset("sm_scfuffn", feed_forward=("fused", "none"))
        variables = init(config, tokens)
        assert "feed_forward" not in variables["params"]["blocks_1"]
        check_against_numpy(config, perturbed(variables), tokens)

    def test_spectral_norm_equals_numpy_once_its_power_iteration_has_converged(self, tokens):
        config = preset("sm_snorm")
        variables = perturbed(init(config, tokens))
        run = jax.jit(lambda v: egattn.Decoder(config).apply(v, tokens, mutable=[SPECTRAL])[1])
        for _ in range(300):
            variables = {**variables, **run(variables)}
        check_against_numpy(config, variables, tokens)

    def test_bfloat16_keeps_float32_logits_and_entropy_near(self, tokens):
        config = preset("ereg_sm_t_scfuffn", temperature=1.0)
        variables = init(config, tokens)
        exact = apply(config, variables, tokens)
        rough = apply(dataclasses.replace(config, dtype="bfloat16"), variables, tokens)
        assert rough.logits.dtype == rough.entropy.dtype == jnp.float32
        error = jnp.linalg.norm(rough.logits - exact.logits) / jnp.linalg.norm(exact.logits)
        assert 1e-5 < error < 2e-2
        assert jnp.abs(rough.entropy - exact.entropy).max() < 2e-2

    def test_future_tokens_do_not_change_the_past(self, tokens):
        config = preset("sm_ln_g")
        variables = init(config, tokens)
        changed = tokens.at[:, 10].set((tokens[:, 10] + 1) % 300)
        a, b = (apply(config, variables, t) for t in (tokens, changed))
        assert jnp.array_equal(a.logits[:, :10], b.logits[:, :10])
        assert not jnp.allclose(a.logits[:, 10:], b.logits[:, 10:])

    def test_a_segment_is_as_if_alone(self, tokens):
        config = preset("ereg_sm_t_scfuffn")
        variables = perturbed(init(config, tokens))
        segments = jnp.where(jnp.arange(24) < 10, 4, 1)[None].repeat(2, 0)
        run = jax.jit(egattn.Decoder(config).apply)
        packed = run(variables, tokens, segments)
        for start, stop in ((0, 10), (10, 24)):
            # What follows changes nothing, and one length compiles once.
            alone = run(variables, jnp.roll(tokens, -start, 1))
            for found, expected in (
                (packed.logits[:, start:stop], alone.logits[:, : stop - start]),
                (packed.entropy[..., start:stop], alone.entropy[..., : stop - start]),
            ):
                np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.slow
class TestReparametrisation:
    @pytest.mark.parametrize("reparam", ["weight_norm", "spectral_norm"])
    @pytest.mark.parametrize("group", GROUPS)
    def test_starts_as_the_plain_network(self, reparam, group, tokens):
        plain = preset("sm", num_layers=1)
        changed = dataclasses.replace(plain, weight_reparam=reparam, reparam_matrices=GROUPS[group])
        expected = apply(plain, init(plain, tokens), tokens)
        variables = init(changed, tokens)
        actual = apply(changed, variables, tokens)
        assert jnp.abs(actual.logits - expected.logits).max() < 1e-5
        attention = variables["params"]["blocks_0"]["attention"]
        assert {m for m in "qkvo" if "gain" in attention[m]} == set(GROUPS[group]) - {"ffn"}

    def test_spectral_gain_is_the_largest_singular_value(self):
        layer = Linear(7, reparam="spectral_norm")
        variables = layer.init(jax.random.key(0), jnp.ones((1, 5)))
        kernel = np.asarray(variables["params"]["kernel"], np.float64)
        expected = np.linalg.svd(kernel)[1][0]
        assert abs(variables["params"]["gain"] - expected) < 1e-6 * expected

    def test_scaled_feed_forward_starts_as_the_plain_network(self, tokens):
        plain, scaled = preset("sm"), preset("sm_scffn")
        expected = apply(plain, init(plain, tokens), tokens).logits
        assert jnp.array_equal(apply(scaled, init(scaled, tokens), tokens).logits, expected)


class TestLayerLoop:
    @pytest.mark.parametrize("name", ["sm_ln_g", "sm_snorm", "ereg_sm_t_scfuffn"])
    @pytest.mark.parametrize("option", [{"scan_layers": True}, {"remat": True}])
    def test_changes_neither_parameters_nor_numbers(self, name, option, tokens):
        plain, changed = preset(name), preset(name, **option)
        variables = init(plain, tokens)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6),
            variables,
            init(changed, tokens),
        )

        def loss(config):
            def value(params):
                output = egattn.Decoder(config).apply({**variables, "params": params}, tokens)
                # Ignored: Linen types what apply returns as anything or a pair.
                return (output.logits**2).mean() + output.entropy.mean()  # pyright: ignore - there is one

            return jax.jit(jax.value_and_grad(value))(variables["params"])

        (a, grads_a), (b, grads_b) = loss(plain), loss(changed)
        assert abs(a - b) <= 1e-6 * abs(a)
        for x, y in zip(jax.tree.leaves(grads_a), jax.tree.leaves(grads_b), strict=True):
            assert jnp.linalg.norm(x - y) <= 1e-5 * jnp.linalg.norm(x) + 1e-7


class TestLearnedValues:
    def test_every_kind_is_found_with_its_shape(self, tokens):
        config = preset("ereg_sm_t_scfuffn", feed_forward=("fused", "none"))
        values = learned_values(init(config, tokens)["params"])
        shapes = {name: value.shape for name, value in values.items()}
        assert shapes == {
            "temperature": (2, 4, 24),
            "alpha": (1,),
            "beta": (1,),
            "threshold": (2, 4),
        }
        assert jnp.allclose(values["temperature"], 0.1)

    @pytest.mark.parametrize(
        ("scope", "shape"), [("model", ()), ("layer", (2,)), ("feature", (2, 128))]
    )
    def test_slopes_are_shared_as_asked(self, scope, shape, tokens):
        config = preset("sm_r", activation="leaky_relu", slope_scope=scope)
        slope = learned_values(init(config, tokens)["params"])["slope"]
        assert slope.shape == shape
        assert jnp.all(slope == 0.25)


@pytest.mark.slow
class TestInsideOtherModels:
    def test_attention_layer_inside_a_linen_module(self):
        class Classifier(nn.Module):
            @nn.compact
            def __call__(self, x):
                y, entropy = egattn.EntropyAttention(
                    num_heads=2, context_length=8, temperature=0.5, causal=False
                )(x)
                return nn.Dense(3)((x + y).mean(1)), entropy

        x = jax.random.normal(jax.random.key(0), (2, 8, 16))
        result: Any = Classifier().init_with_output(jax.random.key(1), x)
        (logits, entropy), variables = result
        assert logits.shape == (2, 3)
        assert entropy.shape == (2, 2, 8)
        assert variables["params"]["EntropyAttention_0"]["log_temperature"].shape == (2, 8)

        def entropy_loss(params):
            entropy: Any = Classifier().apply({"params": params}, x)[1]
            return entropy.mean()

        grads = jax.grad(entropy_loss)(variables["params"])["EntropyAttention_0"]
        for name in ("q", "k"):
            assert jnp.linalg.norm(grads[name]["kernel"]) > 0
        assert jnp.all(grads["log_temperature"] > 0)

    def test_decoder_through_the_nnx_bridge(self, tokens):
        config = preset("sm_t_scfuffn")
        model = nnx.bridge.ToNNX(egattn.Decoder(config), rngs=nnx.Rngs(0)).lazy_init(tokens)
        output: Any = model(tokens)
        assert output.logits.shape == (2, 24, 300)

        def loss(model: Any):
            return model(tokens).entropy.mean()

        grads = nnx.grad(loss)(model)
        assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(nnx.state(grads)))

    def test_feed_forward_alone(self):
        x = jax.random.normal(jax.random.key(0), (2, 5, 8))
        for kind in ("mlp", "fused"):
            y, _ = egattn.FeedForward(kind=kind).init_with_output(jax.random.key(1), x)
            assert y.shape == x.shape


class TestBadConfig:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"num_heads": 5}, "num_heads must divide embed_dim, got 5 and 32"),
            ({"num_kv_heads": 3}, "num_kv_heads must divide num_heads, got 3 and 4"),
            ({"temperature": 0.0}, "temperature must be > 0 and finite, got 0.0"),
            ({"temperature": float("nan")}, "temperature must be > 0 and finite, got nan"),
            ({"threshold": 1.5}, "threshold must lie in"),
            ({"activation": "gleu"}, "unknown activation 'gleu'; did you mean 'gelu'"),
            ({"feed_forward": "fused"}, "activation must be 'identity', got 'gelu'"),
            ({"feed_forward": ("mlp",)}, "must name 2 layers, got 1"),
            ({"biases": ("q", "w")}, "unknown biases 'w'"),
            ({"num_layers": 0}, "num_layers must be >= 1, got 0"),
            (
                {"embed_dims": 3},
                "unknown DecoderConfig field 'embed_dims'; did you mean 'embed_dim'",
            ),
        ],
        ids=str,
    )
    def test_is_named(self, fields, message):
        with pytest.raises(ValueError, match=message):
            preset("sm_ln_g", **fields)

    def test_unknown_preset_names_the_nearest(self):
        with pytest.raises(
            ValueError, match="unknown preset 'sm_scfufn'; did you mean 'sm_scfuffn'"
        ):
            egattn.DecoderConfig.preset("sm_scfufn")

    def test_too_many_positions(self):
        config = preset("sm_ln_g")
        with pytest.raises(ValueError, match="expected at most 24 positions, got 25"):
            egattn.Decoder(config).init(jax.random.key(0), jnp.zeros((1, 25), jnp.int32))

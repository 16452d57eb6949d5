"""The PyTorch side of the benchmarks trains the networks that the library trains."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egattn
from egattn.train.cross_entropy import cross_entropy

pytestmark = pytest.mark.slow

torch = pytest.importorskip("torch", reason="PyTorch is not installed: it is only a benchmark's")
from benchmarks import torch_networks  # noqa: E402 - needs torch

SIZE = torch_networks.Size(16, vocab_size=128, num_layers=2, num_heads=2, embed_dim=32)
# Ours, theirs, and whether the matrix is stored as its transpose.
NAMES = (
    ("attention/o/kernel", "attention.o.weight", True),
    ("attention/log_temperature", "attention.log_temperature", False),
    ("attention_norm/scale", "attention_norm.weight", False),
    ("attention_norm/bias", "attention_norm.bias", False),
    ("ffn_norm/scale", "ffn_norm.weight", False),
    ("ffn_norm/bias", "ffn_norm.bias", False),
    ("feed_forward/up/kernel", "up.weight", True),
    ("feed_forward/down/kernel", "down.weight", True),
    ("feed_forward/fused/kernel", "fused.weight", True),
    ("alpha", "alpha", False),
    ("beta", "beta", False),
)


def flat(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(key.key for key in path): np.asarray(x) for path, x in leaves}


def torch_state(params):
    """The same parameters under the names of the PyTorch module."""
    ours = flat(params)
    block = {k.removeprefix("blocks_0/"): v for k, v in ours.items() if k.startswith("blocks_0/")}
    state = {
        "token_embedding.weight": ours["token_embedding/embedding"],
        "position_embedding.weight": ours["position_embedding/embedding"],
        "threshold": ours["threshold"],
    }
    if "final_norm/scale" in ours:
        state["final_norm.weight"] = ours["final_norm/scale"]
        state["final_norm.bias"] = ours["final_norm/bias"]
    for i in range(SIZE.num_layers):
        kernels = [block[f"attention/{matrix}/kernel"][i].T for matrix in "qkv"]
        biases = [block[f"attention/{matrix}/bias"][i] for matrix in "qk"]
        state[f"blocks.{i}.attention.qkv.weight"] = np.concatenate(kernels)
        state[f"blocks.{i}.attention.qk_bias"] = np.concatenate(biases)
        for name, theirs, transposed in NAMES:
            if name in block:
                x = block[name][i]
                state[f"blocks.{i}.{theirs}"] = x.T if transposed else x
    return {name: torch.from_numpy(np.array(x)) for name, x in state.items()}


def library_losses(params, config, tokens):
    """Cross entropy, penalty, and entropies, by the library's own functions."""
    features: Any = egattn.Decoder(config).apply(
        {"params": params}, tokens[:, :-1], method="features"
    )
    weights = jnp.full(tokens[:, 1:].shape, 1 / tokens[:, 1:].size)
    loss = cross_entropy(features.hidden, features.head, tokens[:, 1:], weights, config.vocab_size)
    penalty = egattn.entropy_penalty(
        features.entropy,
        params["threshold"],
        egattn.max_entropy(config.context_length),
        tolerance=torch_networks.TOLERANCE,
        reduction="head",
    )
    return loss + torch_networks.PENALTY_WEIGHT * penalty, (loss, features.entropy)


@pytest.mark.parametrize("network", ["sm_ln_g", "sm_t_scfuffn"])
def test_losses_entropies_and_gradients_equal_the_librarys(network, rng):
    config = egattn.DecoderConfig.preset(
        network,
        **SIZE._asdict(),
        threshold=torch_networks.INITIAL_THRESHOLD,
        init_std=0.1,
    )
    tokens = rng.integers(0, SIZE.vocab_size, (3, SIZE.context_length + 1))
    params = egattn.Decoder(config).init(jax.random.key(0), jnp.asarray(tokens[:, :-1]))["params"]
    # Biases, scales and thresholds at their initial values would hide a mix-up of theirs.
    params = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype("f4"), params)
    (objective, (loss, entropy)), gradients = jax.value_and_grad(library_losses, has_aux=True)(
        params, config, jnp.asarray(tokens)
    )

    model = torch_networks.Decoder(network, SIZE, entropy=True)
    model.load_state_dict(torch_state(params))
    losses = model(torch.from_numpy(tokens))
    _, entropies = model.features(torch.from_numpy(tokens[:, :-1]))
    np.testing.assert_allclose(torch.stack(entropies).detach(), entropy, atol=1e-5)
    np.testing.assert_allclose(losses.head_entropy.detach(), entropy.mean((1, 3)), atol=1e-5)
    np.testing.assert_allclose(float(losses.cross_entropy.detach()), loss, rtol=1e-5)
    np.testing.assert_allclose(float(losses.objective.detach()), objective, rtol=1e-5)

    losses.objective.backward()
    theirs: Any = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, expected in torch_state(gradients).items():
        error = np.linalg.norm(theirs.pop(name).numpy() - expected.numpy())
        assert error <= 1e-4 * np.linalg.norm(expected.numpy()), name
    assert not theirs


def test_the_published_entropy_of_stored_attention_is_entropy_up_to_its_epsilon(rng):
    attention = torch.softmax(torch.from_numpy(rng.standard_normal((2, 3, 5, 5))), -1)
    expected = -(attention * attention.log()).sum(-1)
    np.testing.assert_allclose(torch_networks.stored_entropy(attention), expected, atol=1e-7)

"""Blocked cross entropy against the dense formula in float64."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from egattn.train.cross_entropy import _logsumexp, cross_entropy
from tests.jaxprs import intermediates


def dense(hidden, head, targets, weights, vocab_size, dtype=np.float64):
    """Loss and its gradients by the textbook formulas, float64, from logits rounded to a dtype."""
    h, head, w = (np.asarray(x, np.float64) for x in (hidden, head, weights))
    real = head[:vocab_size]
    logits = (h @ real.T).astype(dtype).astype(np.float64)
    top = logits.max(-1, keepdims=True)
    logsumexp = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
    nll = logsumexp - np.take_along_axis(logits, np.asarray(targets)[..., None], -1)[..., 0]
    dlogits = (np.exp(logits - logsumexp[..., None]) - np.eye(vocab_size)[targets]) * w[..., None]
    dhead = np.zeros_like(head)
    dhead[:vocab_size] = np.einsum("btv,btd->vd", dlogits, h)
    return (w * nll).sum(), dlogits @ real, dhead, nll


def problem(rng, batch, length, width=16, vocab_size=300):
    hidden = rng.standard_normal((batch, length, width), np.float32)
    head = rng.standard_normal((384, width), np.float32)
    targets = rng.integers(0, vocab_size, (batch, length)).astype(np.int32)
    return hidden, head, targets, rng.random((batch, length), np.float32), vocab_size


def value_and_gradients(hidden, head, targets, weights, vocab_size):
    def loss(hidden, head, weights):
        return 3.0 * cross_entropy(hidden, head, targets, weights, vocab_size)

    hidden, head, targets, weights = map(jnp.asarray, (hidden, head, targets, weights))
    return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(hidden, head, weights)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 7), (3, 128), (40, 33), (1100, 2)])
def test_equals_dense_formula(rng, batch, length):
    inputs = problem(rng, batch, length)
    expected = dense(*inputs)
    value, grads = value_and_gradients(*inputs)
    assert abs(value / 3 - expected[0]) < 1e-6 * expected[0]
    for actual, exact in zip(grads, expected[1:], strict=True):
        assert np.linalg.norm(np.asarray(actual) / 3 - exact) < 2e-6 * np.linalg.norm(exact)


def test_value_alone_equals_the_differentiated_value(rng):
    hidden, head, targets, weights, vocab = problem(rng, 3, 50)
    arrays = map(jnp.asarray, (hidden, head, targets, weights))
    # Ignored: how many arrays there are is not in their type.
    alone = cross_entropy(*arrays, vocab)  # pyright: ignore[reportCallIssue]
    assert abs(alone - dense(hidden, head, targets, weights, vocab)[0]) < 1e-6 * alone


def test_padding_rows_of_the_head_never_matter(rng):
    hidden, head, targets, weights, vocab = problem(rng, 2, 9)
    loud = head.copy()
    loud[vocab:] = 1e3
    a, b = (value_and_gradients(hidden, x, targets, weights, vocab) for x in (head, loud))
    assert a[0] == b[0]
    assert np.array_equal(a[1][0], b[1][0])
    assert np.all(np.asarray(b[1][1][vocab:]) == 0)


def test_huge_logits_stay_finite(rng):
    hidden, head, targets, weights, vocab = problem(rng, 2, 9)
    value, grads = value_and_gradients(1e3 * hidden, head, targets, weights, vocab)
    exact = dense(1e3 * hidden, head, targets, weights, vocab)
    assert abs(value / 3 - exact[0]) < 1e-6 * exact[0]
    assert all(np.isfinite(x).all() for x in grads)


def test_bfloat16_products(rng):
    hidden, head, targets, weights, vocab = problem(rng, 3, 64)
    rough = jnp.asarray(hidden, jnp.bfloat16)
    value, grads = value_and_gradients(rough, jnp.asarray(head), targets, weights, vocab)
    rounded = jnp.asarray(head, jnp.bfloat16).astype(jnp.float32)
    exact = dense(rough.astype(jnp.float32), rounded, targets, weights, vocab, jnp.bfloat16)
    assert grads[0].dtype == jnp.bfloat16
    assert grads[1].dtype == jnp.float32
    assert abs(value / 3 - exact[0]) < 1e-5 * exact[0]
    for actual, expected in zip(grads, exact[1:], strict=True):
        actual = np.asarray(actual, np.float64) / 3
        assert np.linalg.norm(actual - expected) < 6e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("width", [1, 3, 128, 50_304])
def test_logsumexp_in_one_pass(rng, width):
    """The form that a GPU runs."""
    x = (10 * rng.standard_normal((3, 5, width))).astype(np.float32)
    # Padding comes as the lowest value, whole groups of it or all but one.
    x[1, :, 1:] = x[2, :, width // 2 :] = jnp.finfo(jnp.float32).min
    x[2, 0, 0] = 1e4
    top = x.max(-1, keepdims=True).astype(np.float64)
    exact = np.log(np.exp(x - top).sum(-1)) + top[..., 0]
    actual = jax.jit(_logsumexp)(jnp.asarray(x))
    assert np.all(np.abs(actual - exact) <= 2e-6 * np.maximum(1, np.abs(exact)))
    x[0, 0, -1] = np.nan
    assert np.isnan(_logsumexp(jnp.asarray(x))[0, 0])


def test_logsumexp_of_a_sharded_vocabulary_moves_partial_results_only(rng):
    mesh = jax.make_mesh((2, 4), ("batch", "vocab"), axis_types=(AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, PartitionSpec("batch", None, "vocab"))
    x = jax.device_put(rng.standard_normal((4, 8, 3072), np.float32), sharding)
    compiled = jax.jit(_logsumexp).lower(x).compile()
    assert np.abs(compiled(x) - jax.nn.logsumexp(np.asarray(x), axis=-1)).max() <= 1e-5
    text = compiled.as_text()
    assert text is not None
    gathered = re.findall(r"= f32\[([\d,]+)\]\S* all-gather\(", text)
    assert gathered
    assert all(shape == "2,8,4" for shape in gathered)


@pytest.mark.parametrize("batch", [1, 4, 256])
def test_no_array_holds_all_logits(rng, batch):
    length, padded = 32, 384
    *arrays, vocab = problem(rng, batch, length)
    hidden, head, targets, weights = map(jnp.asarray, arrays)
    jaxpr = jax.make_jaxpr(
        jax.value_and_grad(lambda h, w: cross_entropy(h, w, targets, weights, vocab), (0, 1))
    )(hidden, head)
    assert max(aval.size for aval in intermediates(jaxpr.jaxpr)) < batch * length * padded

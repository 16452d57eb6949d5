"""Standard errors against what repeating the measurement shows."""

import jax.numpy as jnp
import numpy as np
import pytest

from egattn import flow


def autoregressive(rng, shape, memory):
    """Numbers of variance 1 along the last axis, each correlated with the last by `memory`."""
    noise = rng.normal(size=shape)
    for i in range(1, shape[-1]):
        noise[..., i] = memory * noise[..., i - 1] + np.sqrt(1 - memory**2) * noise[..., i]
    return noise


def test_independent_samples():
    samples = np.random.default_rng(0).normal(3, 2, (400, 5))
    value, error = flow.mean(jnp.asarray(samples))
    np.testing.assert_allclose(value, samples.mean(0), rtol=1e-5)
    np.testing.assert_allclose(error, samples.std(0, ddof=1) / 20, rtol=1e-4)


def test_blocks_know_the_memory_of_a_trajectory():
    runs = autoregressive(np.random.default_rng(0), (300, 2000), 0.9)
    spread = runs.mean(1).std()
    blocks = np.array(flow.mean(jnp.asarray(runs.T), blocks=20).standard_error)
    single = np.array(flow.mean(jnp.asarray(runs.T)).standard_error)
    assert abs(np.sqrt(np.mean(blocks**2)) / spread - 1) < 0.15
    assert np.all(single < spread / 2)


def test_samples_beyond_the_last_block_count_in_the_mean():
    samples = jnp.array([1.0, 3.0, 1.0, 3.0, 10.0])
    value, error = flow.mean(samples, blocks=2)
    assert value == pytest.approx(3.6)
    assert error == 0


def test_error_of_a_ratio():
    rng = np.random.default_rng(0)
    below = rng.normal(2, 0.5, (1000, 200))
    above = 3 * below + rng.normal(0, 1, below.shape)
    value, error = flow.ratio(jnp.asarray(above.T), jnp.asarray(below.T))
    ratios = above.mean(1) / below.mean(1)
    np.testing.assert_allclose(value, ratios, rtol=1e-5)
    assert abs(float(jnp.mean(error)) / ratios.std() - 1) < 0.05


@pytest.mark.parametrize("blocks", [1, 6])
def test_too_few_blocks_or_samples(blocks):
    with pytest.raises(ValueError, match=f"expected 2 to 5 .* got {blocks}"):
        flow.mean(jnp.ones(5), blocks=blocks)
    with pytest.raises(ValueError, match="got 1"):
        flow.mean(jnp.ones(1))

"""Maps against sums over boxes, and the current of a linear process."""

import numpy as np
import pytest

from egattn import flow
from tests.flow.gaussian import Gaussian, draw


def test_bins_are_means_and_densities():
    rng = np.random.default_rng(0)
    where, what = rng.uniform(-1.2, 1.2, (500, 2)), rng.normal(size=(500, 3))
    found = flow.binned(where, what, bins=(4, 5), bounds=[(-1, 1), (0, 1)])
    assert found.density.shape == (4, 5)
    assert found.mean.shape == found.weighted.shape == (4, 5, 3)
    for i in range(4):
        for j in range(5):
            left, low = -1 + 0.5 * i, 0.2 * j
            inside = (where[:, 0] >= left) & (where[:, 0] < left + 0.5)
            inside &= (where[:, 1] >= low) & (where[:, 1] < low + 0.2)
            np.testing.assert_allclose(found.mean[i, j], what[inside].mean(0))
            np.testing.assert_allclose(found.density[i, j], inside.sum() / 500 / 0.1)
            np.testing.assert_allclose(found.weighted[i, j], what[inside].sum(0) / 500 / 0.1)


def test_empty_bins_have_no_mean_and_no_current():
    found = flow.binned([[0.1], [0.2]], [1.0, 2.0], bins=[2], bounds=[(0, 1)])
    np.testing.assert_array_equal(found.mean, [1.5, np.nan])
    np.testing.assert_array_equal(found.weighted, [3, 0])
    np.testing.assert_array_equal(found.edges[0], [0, 0.5, 1])


def test_current_of_a_gyrator():
    exact = Gaussian(np.array([[-1, -0.5], [-0.5, -1]]), np.array([1.0, 5.0]))
    z = np.asarray(draw(exact.covariance, 400_000))
    found = flow.binned(z, z @ exact.velocity.T, bins=(8, 8), bounds=[(-1, 1), (-2, 2)])
    middles = [(edge[1:] + edge[:-1]) / 2 for edge in found.edges]
    x = np.stack(np.meshgrid(*middles, indexing="ij"), -1)
    exponent = np.einsum("...i,ij,...j", x, exact.score, x) / 2
    density = np.exp(exponent) / (2 * np.pi * np.sqrt(np.linalg.det(exact.covariance)))
    current = density[..., None] * (x @ exact.velocity.T)
    np.testing.assert_allclose(found.density, density, atol=0.1 * density.max())
    np.testing.assert_allclose(found.weighted, current, atol=0.05 * np.abs(current).max())


@pytest.mark.parametrize(
    ("where", "what", "bounds"),
    [
        (np.zeros((3, 2)), np.zeros(4), [(0, 1)] * 2),
        (np.zeros((3, 2)), np.zeros(3), [(0, 1)]),
        (np.zeros(3), np.zeros(3), [(0, 1)]),
    ],
)
def test_shapes_that_disagree(where, what, bounds):
    with pytest.raises(ValueError, match=r"expected coordinates \[samples, coordinates\]"):
        flow.binned(where, what, bins=[2] * len(bounds), bounds=bounds)

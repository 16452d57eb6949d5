"""The ring on a grid: numbers of an independent solution, and what holds on any grid."""

import numpy as np
import pytest
from scipy.integrate import cumulative_trapezoid

from experiments.active_matter.fokker_planck import PUBLISHED, Ring, production, solve

COARSE, FINE = (200, 60), (400, 120)


@pytest.fixture(scope="module")
def grids():
    return solve(COARSE), solve(FINE)


def extrapolated(grids, of):
    """To cells of no size: the error falls with the square of the cell."""
    coarse, fine = (np.asarray(of(grid)) for grid in grids)
    return fine + (fine - coarse) / 3


def deviation(solution, quantity) -> float:
    return float(np.sqrt(solution.mean(quantity**2) - solution.mean(quantity) ** 2))


def fields(solution):
    return solution.fields(np.stack(np.meshgrid(solution.x, solution.g, indexing="ij"), -1))


class TestRing:
    def test_entropy_production(self, grids):
        # Central finite volumes on up to 1200 x 360 cells; direct simulation has 0.399 +- 0.002.
        found = extrapolated(grids, lambda s: s.production)
        np.testing.assert_allclose(found, [0.3645, 0.0325], atol=2e-4)
        assert found.sum() == pytest.approx(0.3970, abs=2e-4)
        exact = production(PUBLISHED)
        assert exact is not None
        np.testing.assert_allclose(exact, found)

    def test_where_grids_are_too_coarse_nothing_is_exact(self):
        assert production(Ring(noise=1e-4)) is None

    def test_deviations_of_divergences(self, grids):
        def of(solution):
            x, g = np.moveaxis(fields(solution).divergence, -1, 0)
            return [deviation(solution, q) for q in (x, g, x + g)]

        np.testing.assert_allclose(extrapolated(grids, of), [0.0813, 0.0270, 0.0834], atol=2e-4)

    def test_centre_and_orbits(self, grids):
        centre = extrapolated(grids, lambda s: s.centre())
        np.testing.assert_allclose(centre, [3.262, -0.190], atol=2e-3)
        period = extrapolated(grids, lambda s: s.orbit((8.0, 1.5)).t[-1])
        assert period == pytest.approx(120.3, abs=0.2)
        orbit = grids[1].orbit((8.0, 1.5)).y
        np.testing.assert_allclose(orbit.min(1), [1.81, -1.745], atol=0.02)
        np.testing.assert_allclose(orbit.max(1), [14.19, 1.745], atol=0.02)
        np.testing.assert_allclose(orbit[:, -1], orbit[:, 0], atol=0.01)

    def test_density(self, grids):
        solution = grids[1]
        assert solution.density.min() > 0
        i, j = np.unravel_index(solution.density.argmax(), solution.density.shape)
        assert solution.density[i, j] == pytest.approx(0.0912, abs=5e-4)
        # To a cell of this grid.
        assert abs(abs(solution.x[i] - 8) - (8 - 2.03)) <= 0.04
        assert abs(abs(solution.g[j]) - 0.78) <= 0.1
        np.testing.assert_allclose(solution.density, solution.density[::-1, ::-1], atol=1e-9)


class TestAnyGrid:
    def test_stream_function_is_constant_along_orbits(self, grids):
        def change(solution):
            psi = solution.stream_at(solution.orbit((8.0, 0.5)).y.T)
            return np.ptp(psi) / abs(solution.stream).max()

        coarse, fine = map(change, grids)
        assert fine < coarse / 3
        assert fine < 0.005

    def test_propulsions_are_normal_and_nothing_leaks(self, grids):
        solution = grids[1]
        marginal = solution.density.sum(0) * (solution.x[1] - solution.x[0])
        normal = np.exp(-(solution.g**2) / 2) / np.sqrt(2 * np.pi)
        np.testing.assert_allclose(marginal, normal, atol=1e-3)
        np.testing.assert_allclose(solution.stream[:, [0, -1]], 0, atol=1e-12)

    def test_equilibrium_has_boltzmann_density_and_no_current(self):
        ring = Ring(speed=0.0)
        solution = solve((400, 20), ring)
        x = np.linspace(0, ring.length, 64001)
        potential = -cumulative_trapezoid(ring.force(x), x, initial=0)
        boltzmann = np.exp((potential.min() - potential) / ring.noise)
        exact = np.interp(solution.x, x, boltzmann / np.trapezoid(boltzmann, x))
        marginal = solution.density.sum(1) * (solution.g[1] - solution.g[0])
        np.testing.assert_allclose(marginal, exact, atol=2e-3 * exact.max())
        assert solution.production.sum() < 1e-10

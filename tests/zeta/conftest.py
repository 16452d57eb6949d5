"""Float64, and results that several tests look at."""

import jax
import pytest

from experiments.zeta.box import Box

ZEROS, CONTROL = Box(0.05, 0.95, 10.0, 102.0), Box(0.05, 0.95, 80.0, 90.0)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def solved():
    """Zeros of zeta and of the control, searched and proved."""
    from experiments.zeta.functions import DAVENPORT_HEILBRONN, ZETA
    from experiments.zeta.zeros import solve

    with jax.enable_x64(True):
        return {"zeta": solve(ZETA, ZEROS), "control": solve(DAVENPORT_HEILBRONN, CONTROL)}

"""Modules of exact cases compute in double precision."""

import jax
import pytest


@pytest.fixture(scope="module")
def double():
    with jax.enable_x64(True):
        yield

"""Forms of computation that releases of jax are known to get wrong, executed here.

Each has numbers that float32 holds, and what they give in float64 on the host. The bounds leave
room for any order of summation: what they find is no rounding.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from egattn.doctor.row import Row, failed

Array = npt.NDArray[np.floating]
# Else accelerators' products have the digits of bfloat16.
_product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class Form(NamedTuple):
    """A computation, and what is right."""

    compute: Callable[..., Any]
    """In jax, on float32 arrays."""
    oracle: Callable[..., Array]
    """In NumPy, on the same numbers in float64."""
    inputs: list[Array]
    bound: float
    """Largest error of an element, relative to the largest element of its row."""


def forms() -> dict[str, Form]:
    """The forms by name, with the number of jax's issue."""
    rng = np.random.default_rng(0)
    count = np.arange(32_769, dtype=np.float32)
    points = np.stack([count, 0 * count, 0 * count], axis=1)
    rows = rng.random((64, 2048), np.float32)
    left, right = rng.standard_normal((2, 256, 256)).astype(np.float32)
    bias = rng.standard_normal(256).astype(np.float32)
    return {
        # 0.10.2 on CPUs: 0.78 % too small.
        "vmapped product, squares summed (#39103)": Form(
            jax.jit(jax.vmap(lambda row: jnp.sum(_product(jnp.eye(3), row) ** 2))),
            lambda x: (x**2).sum(1),
            [points],
            1e-5,
        ),
        # 0.10.2 and 0.11.0 on some NVIDIA GPUs: the bias is not scaled.
        "scaled product with a bias (#39336)": Form(
            jax.jit(lambda a, b, c: (_product(a, b) + c) / 64),
            lambda a, b, c: (a @ b + c) / 64,
            [left, right, bias],
            1e-5,
        ),
        # 0.11.0 and 0.11.1 on some NVIDIA GPUs: wrong where nothing is jitted.
        "single operations, not jitted (#40633)": Form(
            lambda x: jnp.sqrt(jnp.ones(4) + 1 + x),
            lambda x: np.sqrt(2 + x),
            [np.arange(4, dtype=np.float32)],
            1e-6,
        ),
        # Softmax and entropy are made of such sums; 1e-4 would be float32 in the worst order.
        "row sums of 2,048 numbers": Form(
            jax.jit(lambda x: x.sum(1)), lambda x: x.sum(1), [rows], 1e-5
        ),
    }


def check_forms() -> list[Row]:
    """A row for each form."""
    rows = []
    for name, form in forms().items():
        try:
            rows.append(check_form(name, form))
        except Exception as error:
            rows.append(failed(name, error))
    return rows


def check_form(name: str, form: Form) -> Row:
    """The row of one form: its largest error against float64."""
    actual = np.asarray(form.compute(*map(jnp.asarray, form.inputs)), np.float64)
    expected = form.oracle(*(x.astype(np.float64) for x in form.inputs))
    # A row of a product is as exact as its largest element.
    size = np.abs(expected).max(-1, keepdims=True) if expected.ndim > 1 else np.abs(expected)
    error = float((np.abs(actual - expected) / np.maximum(size, 1e-30)).max())
    found = f"relative error {error:.1e}, allowed {form.bound:.0e}"
    return Row(name, error <= form.bound, found)

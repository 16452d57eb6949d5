"""Divergences of vector fields, exact or estimated, of all components or some."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from egattn._spelling import unknown
from egattn.flow.process import Field

Method = Literal["forward", "reverse", "hutchinson"]


def divergence(
    field: Field,
    z: Float[Array, "*shape"],
    *,
    part: ArrayLike | None = None,
    method: Method = "forward",
    key: Array | None = None,
    probes: int = 1,
) -> tuple[Float[Array, "*shape"], Float[Array, ""]]:
    """Divergence of a vector field at one sample: the sum of `divergence_terms`.

    Args:
      field: The vector field f.
      z: The sample.
      part: The components i to sum over, see `divergence_terms`.
      method: How to differentiate, see `divergence_terms`.
      key: Random key of "hutchinson".
      probes: Number of probes of "hutchinson".

    Returns:
      f(z), of all components, and the divergence.
    """
    value, terms = divergence_terms(field, z, part=part, method=method, key=key, probes=probes)
    return value, terms.sum()


def divergence_terms(
    field: Field,
    z: Float[Array, "*shape"],
    *,
    part: ArrayLike | None = None,
    method: Method = "forward",
    key: Array | None = None,
    probes: int = 1,
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """The terms d f_i / d z_i of a divergence, at one sample.

    Args:
      field: The vector field f.
      z: The sample.
      part: The components i to differentiate, boolean, broadcastable to z, known before anything
        is compiled: what is left out costs nothing. None for all.
      method: "forward" and "reverse" are exact and cost one product with the Jacobian, or with its
        transpose, per component; "hutchinson" costs one per probe, is right on average only, and
        so are its terms.
      key: Random key of "hutchinson".
      probes: Number of probes of "hutchinson": vectors of random signs, which have less variance
        than normal ones.

    Returns:
      f(z), of all components, and the terms, 0 for components that are left out.

    Raises:
      ValueError: If the method is unknown, or "hutchinson" has no key or no probe.

    Reference:
      Hutchinson, Commun. Stat. Simul. Comput. 18 (1989), 1059.
    """
    if method not in get_args(Method):
        raise ValueError(unknown("divergence method", method, get_args(Method)))
    mask = np.broadcast_to(True if part is None else np.asarray(part, bool), z.shape)
    if method == "hutchinson":
        return _estimate(field, z, mask, key, probes)
    chosen = np.flatnonzero(mask)
    directions = jnp.zeros((chosen.size, z.size), z.dtype).at[np.arange(chosen.size), chosen].set(1)
    directions = directions.reshape(chosen.size, *z.shape)
    if method == "forward":
        value, rows = _products(field, z, directions)
    else:
        value, pullback = jax.vjp(field, z)
        (rows,) = jax.vmap(pullback)(directions)
    diagonal = rows.reshape(chosen.size, z.size)[np.arange(chosen.size), chosen]
    return value, jnp.zeros(z.size, value.dtype).at[chosen].set(diagonal).reshape(z.shape)


def _products(field: Field, z: Array, directions: Array) -> tuple[Array, Array]:
    """f(z), computed once, and the products of its Jacobian with each direction."""
    push = jax.vmap(lambda tangent: jax.jvp(field, (z,), (tangent,)), out_axes=(None, 0))
    return push(directions)


def _estimate(field: Field, z: Array, mask: np.ndarray, key: Array | None, probes: int):
    if key is None:
        raise ValueError("expected a key for hutchinson, got none")
    if probes < 1:
        raise ValueError(f"expected at least 1 probe, got {probes}")
    signs = jax.random.rademacher(key, (probes, *z.shape), z.dtype) * mask
    value, products = _products(field, z, signs)
    return value, (signs * products).mean(0)

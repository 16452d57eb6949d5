"""A guard against jumps, which a divergence does not see and an optimiser does.

Derivatives miss what a network does where it jumps, when a neighbour enters a list say. Then
integration by parts fails, which implicit score matching rests on: the loss goes below that of the
true score, and its "lower bound" above the truth.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from egattn.flow import estimate
from egattn.flow.estimate import Estimate
from egattn.flow.process import Field

# Gauss-Legendre nodes along a segment: fine for smooth fields, and a few percent off at a kink.
_NODES = 16
# Differences of rounded numbers are off by this many units in the last place.
_ROUNDING = 8


def missing_divergence(
    field: Field,
    z: Float[Array, "*shape"],
    key: Array,
    *,
    radius: ArrayLike,
    part: ArrayLike | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """What the derivative of a field misses on a random segment around a sample.

    With u normal, the mean of u.(f(z + r u) - f(z - r u)) / (2 r) is the divergence around z, jumps
    included. With the integral of the derivative in place of the difference it is without them. On
    a segment that no jump crosses both are the same number.

    Args:
      field: f.
      z: The sample, the middle of the segment; the ends are not put back into a period.
      key: Random key.
      radius: r, broadcastable to z: below the distance on which f varies smoothly.
      part: Components that divergences are taken of, boolean, broadcastable to z; None for all.

    Returns:
      Difference less integral, the integral, and how far rounding can take the first from 0.
    """
    u = jax.random.normal(key, z.shape, z.dtype)
    if part is not None:
        u = jnp.where(jnp.asarray(part), u, 0.0)
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    slope = jax.vmap(lambda t: jax.jvp(field, (z + t * radius * u,), (radius * u,))[1])
    slopes = slope(jnp.asarray(nodes, z.dtype))
    integral = jnp.tensordot(jnp.asarray(weights, z.dtype), slopes, 1)
    last, first = field(z + radius * u), field(z - radius * u)
    scaled = u / (2 * jnp.asarray(radius))
    # Inputs are rounded too, and slopes carry that on.
    rounding = jnp.abs(last) + jnp.abs(first) + jnp.abs(integral)
    allowance = _ROUNDING * jnp.finfo(z.dtype).eps * jnp.sum(jnp.abs(scaled) * rounding)
    return jnp.sum(scaled * (last - first - integral)), jnp.sum(scaled * integral), allowance


def check_continuous(
    field: Field,
    samples: Float[Array, "samples *shape"],
    key: Array,
    *,
    radius: ArrayLike,
    part: ArrayLike | None = None,
    tolerance: float = 0.05,
) -> Estimate:
    """Refuses a field with jumps, of which neither implicit score matching nor its bound is true.

    Args:
      field: The network, s or v, that is trained or evaluated with its divergence. If coordinates
        are periodic, with them wrapped.
      samples: Samples of the process.
      key: Random key.
      radius: See `missing_divergence`. Shorter segments cross a jump less often: take as many more
        samples.
      part: Components that divergences are taken of. Jumps along the others do no harm.
      tolerance: Largest mean size of what is missing, as a fraction of what is not.

    Returns:
      The mean divergence that is missing, to be added to the one that derivatives give.

    Raises:
      ValueError: If more is missing: there are jumps, or the field is too steep for this radius.
    """
    keys = jax.random.split(key, len(samples))
    measure = jax.jit(jax.vmap(partial(missing_divergence, field, radius=radius, part=part)))
    missing, found, allowance = measure(samples, keys)
    size, scale = float(jnp.abs(missing).mean()), float(jnp.abs(found).mean())
    # Written so that nan does not pass.
    if not size <= tolerance * scale + float(allowance.mean()):
        raise ValueError(
            "implicit score matching and its bound need a continuous network: expected derivatives "
            f"to miss at most {tolerance:.3g} of its changes, got {size / max(scale, 1e-30):.3g}; "
            "match velocities, denoise, or let it jump nowhere"
        )
    return estimate.mean(missing)

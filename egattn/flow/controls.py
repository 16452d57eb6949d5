"""Control variates: averages over samples without most of their noise.

A stationary state keeps every average, so the process's generator L has E[L phi] = 0 for every
phi, known without a score or a solution. Such functions explain most of what varies in an
estimate; what they explain is not error.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Float

from egattn.flow.estimate import Estimate
from egattn.flow.process import Process


def generator(
    process: Process,
    observables: Callable[[Array], Array],
    z: Float[Array, "*shape"],
) -> Float[Array, " observables"]:
    """L phi = sum_i b_i d phi / d z_i + D_i d^2 phi / d z_i^2, the mean rate of change of phi.

    Costs two nested forward derivatives of all observables per component of z with D_i > 0.

    Args:
      process: The process.
      observables: From a sample to the values phi [observables]; twice differentiable, and of the
        process's period where it has one.
      z: The sample.
    """
    _, drifting = jax.jvp(observables, (z,), (process.drift(z),))
    deviation = jnp.sqrt(jnp.broadcast_to(jnp.asarray(process.diffusion, z.dtype), z.shape))
    directions = jnp.diag(deviation.ravel()).reshape(z.size, *z.shape)

    def along(direction):
        def slope(y):
            return jax.jvp(observables, (y,), (direction,))[1]

        return jax.jvp(slope, (z,), (direction,))[1]

    return drifting + jax.vmap(along)(directions).sum(0)


def controlled(samples: npt.ArrayLike, controls: npt.ArrayLike) -> Estimate:
    """Mean of samples whose variation controls explain in part, and its standard error.

    Least squares of the samples in the controls and 1, in double precision on the host; the
    coefficient of 1 is the estimate. The coefficients are of the same samples, which costs a bias
    of the order of controls / samples of the standard deviation squared: take far more samples.

    Args:
      samples: Independent samples [samples, ...].
      controls: Their controls [samples, controls], of mean 0: values of `generator`.

    Returns:
      The estimate and its error, in double precision. Without controls they are those of `mean`.

    Raises:
      ValueError: If there are not at least two samples more than controls, or as many of one as of
        the other.

    Reference:
      Assaraf & Caffarel, Phys. Rev. Lett. 83 (1999), 4682; Oates, Girolami & Chopin, J. R. Stat.
      Soc. B 79 (2017), 695.
    """
    y, c = np.asarray(samples, np.float64), np.asarray(controls, np.float64)
    if len(y) != len(c):
        raise ValueError(f"expected the controls of {len(y)} samples, got those of {len(c)}")
    count, terms = c.shape
    if count < terms + 2:
        raise ValueError(f"{terms} controls need at least {terms + 2} samples, got {count}")
    scale = np.sqrt(np.mean(c**2, 0))
    # Columns of 0 explain nothing.
    unit = c / np.where(scale > 0, scale, 1.0)
    centred = y.reshape(count, -1) - y.mean(0).reshape(-1)
    basis = np.concatenate([np.ones((count, 1)), unit], 1)
    # Collinear controls, which the normal equations would blow up, share their part.
    weights, *_ = np.linalg.lstsq(basis.T @ basis / count, basis.T @ centred / count, rcond=1e-10)
    left = centred - basis @ weights
    variance = (left**2).sum(0) / (count - 1 - terms)
    shape = y.shape[1:]
    error = np.sqrt(variance / count).reshape(shape)
    return Estimate(y.mean(0) + weights[0].reshape(shape), error)

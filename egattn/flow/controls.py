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

# Share of the largest eigenvalue below which directions of controls are taken for one.
_COLLINEAR = 1e-10


def generator(
    process: Process,
    observables: Callable[[Array], Array],
    z: Float[Array, "*shape"],
) -> Float[Array, " observables"]:
    """L phi = sum_i b_i d phi / d z_i + D_i d^2 phi / d z_i^2, the mean rate of change of phi.

    Costs two nested forward derivatives of all observables per component of z.

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


def whitening(
    controls: npt.ArrayLike, *, ridge: float = 1e-4
) -> Float[np.ndarray, "controls controls"]:
    """Matrix W after which controls c W are uncorrelated and of unit variance.

    Args:
      controls: Of many samples [samples, controls], of mean 0: values of `generator`.
      ridge: What is added to the variance of each control, as a share of it, lest noise be blown up
        where several tell the same.
    """
    c = np.asarray(controls, np.float64)
    scale = np.sqrt(np.mean(c**2, 0))
    # Columns of 0 stay 0.
    inverse = 1 / np.where(scale > 0, scale, np.inf)
    unit = c * inverse
    variances, directions = np.linalg.eigh(unit.T @ unit / len(c) + ridge * np.eye(len(scale)))
    return inverse[:, None] * directions / np.sqrt(variances)


def stationary_weights(
    controls: Float[Array, "samples controls"],
) -> Float[Array, " samples"]:
    """Weights with which to learn from a batch: its sums are those of a larger one, on average.

    Sample i has (1 - c_i . m_i) / n with m_i the mean control of the others. Since c_i has the mean
    0, sum_i w_i f(z_i) has the expectation E f for any f; what controls explain of its variation is
    reduced to about controls / samples. Some weights are negative.

    Args:
      controls: Whitened controls c of each sample, see `whitening`, of samples other than these;
        far fewer than samples.

    Raises:
      ValueError: If there is only one sample.
    """
    if len(controls) < 2:
        raise ValueError(f"stationary weights need at least 2 samples, got {len(controls)}")
    others = (controls.sum(0) - controls) / (len(controls) - 1)
    return (1 - (controls * others).sum(1)) / len(controls)


def controlled(samples: npt.ArrayLike, controls: npt.ArrayLike) -> Estimate:
    """Mean of samples whose variation controls explain in part, and its standard error.

    Least squares of the samples in the controls and 1, in double precision on the host; the
    coefficient of 1 is the estimate. Samples have to be of the stationary law: what controls say of
    it replaces what samples say, and the error knows nothing of another law, nor of an integrator's
    bias. Take far more samples than controls, whose coefficients are guessed from the same samples.

    Args:
      samples: Independent samples [samples, ...].
      controls: Their controls [samples, controls], of mean 0: values of `generator`.

    Returns:
      The estimate and its error, in double precision. Without controls they are those of `mean`.

    Raises:
      ValueError: If controls are not finite or not those of the samples, or if there are not at
        least two samples more than controls.

    Reference:
      Assaraf & Caffarel, Phys. Rev. Lett. 83 (1999), 4682; Oates, Girolami & Chopin, J. R. Stat.
      Soc. B 79 (2017), 695.
    """
    y, c = np.asarray(samples, np.float64), np.asarray(controls, np.float64)
    if c.ndim != 2 or len(y) != len(c):
        raise ValueError(f"expected controls [{len(y)} samples, controls], got shape {c.shape}")
    if not np.all(np.isfinite(c)):
        raise ValueError("controls must be finite")
    count, terms = c.shape
    if count < terms + 2:
        raise ValueError(f"{terms} controls need at least {terms + 2} samples, got {count}")
    scale = np.sqrt(np.mean(c**2, 0))
    # Columns of 0 explain nothing.
    unit = c / np.where(scale > 0, scale, 1.0)
    centred = y.reshape(count, -1) - y.mean(0).reshape(-1)
    basis = np.concatenate([np.ones((count, 1)), unit], 1)
    gram = basis.T @ basis / count
    # Collinear controls, which the normal equations would blow up, share their part.
    inverse = np.linalg.pinv(gram, rcond=_COLLINEAR, hermitian=True)
    rank = np.linalg.matrix_rank(gram, tol=_COLLINEAR * np.linalg.norm(gram, 2), hermitian=True)
    weights = inverse @ (basis.T @ centred / count)
    left = centred - basis @ weights
    variance = (left**2).sum(0) / (count - rank)
    shape = y.shape[1:]
    error = np.sqrt(variance * inverse[0, 0] / count).reshape(shape)
    return Estimate(y.mean(0) + weights[0].reshape(shape), error)

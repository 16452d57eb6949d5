"""Integration in time: the process itself, and its probability flow."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from egattn._extras import import_extra
from egattn.flow.process import Field, Process, wrap


def transition(
    process: Process, z: Float[Array, "*shape"], step: ArrayLike
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Mean and standard deviation of the sample after one step, before it is wrapped.

    Euler-Maruyama, z + h b(z) and sqrt(2 D h); where the process names a relaxation rate k, the
    exact step of that Ornstein-Uhlenbeck process, e^(-k h) z and sqrt(D / k (1 - e^(-2 k h))).

    Args:
      process: The process.
      z: The sample.
      step: Duration h of the step.
    """
    return _transition(process, z, process.drift(z), step)


def _transition(process: Process, z: Array, drift: Array, step: ArrayLike) -> tuple[Array, Array]:
    mean = z + step * drift
    variance = jnp.broadcast_to(2 * jnp.asarray(process.diffusion) * step, z.shape)
    if process.relaxation is not None:
        rate = jnp.asarray(process.relaxation)
        relaxes = rate > 0
        # Never 0, lest the branch that is not taken divide by it.
        rate = jnp.where(relaxes, rate, 1.0)
        mean = jnp.where(relaxes, jnp.exp(-rate * step) * z, mean)
        exact = -jnp.expm1(-2 * rate * step) * process.diffusion / rate
        variance = jnp.where(relaxes, exact, variance)
    return mean, jnp.sqrt(variance).astype(z.dtype)


def advance(
    process: Process, z: Float[Array, "*shape"], noise: Float[Array, "*shape"], step: ArrayLike
) -> Float[Array, "*shape"]:
    """One step of Heun's method: `transition`, then the drift's mean over both of its ends.

    Laws and averages are off by O(h^2); steps of `transition` alone are off by O(h), a per cent
    where h times the stiffness is 0.02. Components that relax exactly stay exact.

    Args:
      process: The process.
      z: The sample.
      noise: Standard normal numbers.
      step: Duration h of the step.

    Reference:
      Milstein & Tretyakov, Stochastic Numerics for Mathematical Physics (2004), section 2.2, for
      additive noise.
    """
    here = process.drift(z)
    mean, deviation = _transition(process, z, here, step)
    ahead = mean + deviation * noise
    there = process.drift(wrap(ahead, process.period, process.origin))
    corrected = ahead + step / 2 * (there - here)
    if process.relaxation is not None:
        corrected = jnp.where(jnp.asarray(process.relaxation) > 0, ahead, corrected)
    return wrap(corrected, process.period, process.origin)


def simulate(
    process: Process,
    z: Float[Array, "*shape"],
    key: Array,
    *,
    step: ArrayLike,
    steps: int,
    every: int = 1,
) -> Float[Array, "frames *shape"]:
    """A trajectory of the process, by steps of `advance`.

    Args:
      process: The process.
      z: Where it starts.
      key: Random key.
      step: Duration of a step.
      steps: Number of steps.
      every: Steps from one frame to the next; divides `steps`.

    Returns:
      The samples after `every`, `2 * every`, ... steps.

    Raises:
      ValueError: If `every` does not divide `steps`.
    """
    if every < 1 or steps % every:
        raise ValueError(f"every must divide the {steps} steps, got {every}")

    def one(z, key):
        noise = jax.random.normal(key, z.shape, z.dtype)
        return advance(process, z, noise, step), None

    def frame(z, key):
        z, _ = jax.lax.scan(one, z, jax.random.split(key, every))
        return z, z

    return jax.lax.scan(frame, z, jax.random.split(key, steps // every))[1]


def ends(
    process: Process,
    z: Float[Array, "*shape"],
    key: Array,
    *,
    duration: ArrayLike,
    substeps: int,
) -> Float[Array, "2 *shape"]:
    """Where a sample is after a while, with some noise and with the opposite noise.

    What `egattn.flow.velocity_matching` asks for.

    Args:
      process: The process.
      z: The sample.
      key: Random key.
      duration: The while.
      substeps: Number of steps it is cut into.
    """
    signs = jnp.array([1, -1], z.dtype).reshape(2, *[1] * z.ndim)
    move = jax.vmap(partial(advance, process), (0, 0, None))

    def one(both, key):
        noise = jax.random.normal(key, z.shape, z.dtype)
        return move(both, signs * noise, duration / substeps), None

    both = jnp.broadcast_to(z, (2, *z.shape))
    return jax.lax.scan(one, both, jax.random.split(key, substeps))[0]


def probability_flow(
    velocity: Field,
    z: Float[Array, "*shape"],
    times: Float[Array, " times"],
    *,
    period: ArrayLike | None = None,
    origin: ArrayLike = 0.0,
    rtol: float = 1e-5,
    atol: float = 1e-6,
    max_steps: int = 100_000,
) -> Float[Array, "times *shape"]:
    """Solution of dz/dt = v(z): Tsitouras' 5(4) method with adaptive steps, by diffrax.

    Args:
      velocity: v, of the probability flow say.
      z: Where it starts, at time 0.
      times: When to tell where it is, ascending from 0 or later on.
      period: Period of each component, see `egattn.flow.wrap`; v is asked at wrapped samples.
      origin: Where periods begin.
      rtol: Relative tolerance of a step.
      atol: Absolute tolerance of a step.
      max_steps: Largest number of steps; more are an error.

    Returns:
      Samples at these times, not wrapped, so that orbits that close and that go round differ.

    Raises:
      ValueError: If diffrax is not installed.
    """
    diffrax = import_extra("diffrax", "flow", "the probability flow")
    return diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, z, args: velocity(wrap(z, period, origin))),
        diffrax.Tsit5(),
        t0=0.0,
        t1=times[-1],
        dt0=None,
        y0=z,
        saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
        max_steps=max_steps,
    ).ys

"""The four systems: one particle in a trap, a crystal, two particles on a ring, a cluster."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from egattn.flow import Process
from experiments.active_matter import forces
from experiments.active_matter.gaussian import Gaussian, gaussian, hexagonal, springs

Name = Literal["trap", "crystal", "ring", "cluster"]

RATE = 0.1
"""gamma, of all systems: a particle keeps its direction for 1 / gamma."""
TRAP = 0.05
"""A, the stiffness of the trap."""
STRENGTH, STIFFNESS = 2.5, 7.5
"""k and beta of the repulsion."""
RING = 16.0
"""Circumference of the ring."""
# At distance 2 a contact's stiffness is k sigmoid(0); only nearest neighbours touch.
_SPRING, _SPACING, _REACH = STRENGTH / 2, 2.0, 2.5
# Time step over the fastest relaxation time: laws are off by about its square / 4.
_STEP = 0.05
# Root mean square of the coordinates of 64 particles in the trap, about.
_CLUSTER = 4.3


@dataclasses.dataclass(frozen=True)
class SystemConfig:
    """Which system, and what may be chosen about it."""

    name: Name
    """trap, crystal, ring or cluster."""
    speed: float = 0.2
    """v0, of each component of the propulsion."""
    particles: int = 64
    """How many; one in the trap and on the ring, whose coordinate is relative."""
    noise: float = 0.1
    """eps, thermal noise of positions."""
    packing: float = 0.1
    """Share of the cluster's box that particles cover."""

    def __post_init__(self):
        """Checks the values."""
        if self.name not in get_args(Name):
            raise ValueError(f"system must be one of {', '.join(get_args(Name))}, got {self.name}")
        if not (self.noise > 0 and math.isfinite(self.noise)):
            raise ValueError(f"noise must be > 0 and finite, got {self.noise}")
        if not (self.speed >= 0 and math.isfinite(self.speed)):
            raise ValueError(f"speed must be >= 0 and finite, got {self.speed}")
        if self.name in ("trap", "ring"):
            if self.particles != 1:
                raise ValueError(f"{self.name} has 1 particle, got particles {self.particles}")
        elif not 2 <= self.particles <= 400:
            raise ValueError(f"{self.name} needs 2 to 400 particles, got {self.particles}")
        if not 0 < self.packing < 1:
            raise ValueError(f"packing must lie in (0, 1), got {self.packing}")
        if self.name == "cluster" and self.box < 2 * forces.REACH:
            raise ValueError(
                f"the box must be at least twice the reach {forces.REACH:g}, got a side of "
                f"{self.box:.3g} for {self.particles} particles and packing {self.packing}"
            )

    @property
    def box(self) -> float:
        """Side of the cluster's periodic box."""
        return math.sqrt(self.particles * math.pi / self.packing)


DEFAULTS = {
    "trap": SystemConfig("trap", particles=1),
    "crystal": SystemConfig("crystal"),
    "ring": SystemConfig("ring", speed=0.25, particles=1),
    "cluster": SystemConfig("cluster"),
}
"""Each system as it is published, or as its exact answer is best known."""


class System(NamedTuple):
    """Particles with positions x and propulsions g, in units of radius and mobility.

    dx = (F(x) + v0 g) dt + sqrt(2 eps) dW and dg = -gamma g dt + sqrt(2 gamma) dW. A state is
    z [2, N, d] = (x, g).
    """

    config: SystemConfig
    particles: int
    """N."""
    dimensions: int
    """d."""
    force: Callable[[Array], Array]
    """F of positions [N, d]."""
    force_divergence: Callable[[Array], Array]
    """Of each particle's force with respect to its position, [N]."""
    start: Callable[[Array], Array]
    """Draws a state before the burn-in, of a key."""
    burn_in: float
    """Time until the start is forgotten; 0 where the start has the stationary law."""
    dt: float
    """Time step."""
    spacing: float
    """Time between snapshots that count as independent."""
    symmetry: Callable[[Array, Array], Array]
    """Maps a state to one that is equally likely, of a key and the state."""
    period: float | None = None
    """Side of the periodic box."""
    lower: float = 0.0
    """Its lower edge."""
    exact: Gaussian | None = None
    """Law and entropy production, where forces are linear."""

    @property
    def size(self) -> int:
        """N d, the degrees of freedom."""
        return self.particles * self.dimensions

    def drift(self, z: Float[Array, "2 particles dimensions"]) -> Float[Array, "..."]:
        """b(z)."""
        x, g = z
        return jnp.stack([self.force(x) + self.config.speed * g, -RATE * g])

    def drift_divergence(self, z: Float[Array, "2 particles dimensions"]) -> Float[Array, "..."]:
        """div b of each particle, in closed form: [2, N], of its position and propulsion."""
        return jnp.stack(
            [self.force_divergence(z[0]), jnp.full(self.particles, -RATE * self.dimensions)]
        )

    @property
    def diffusion(self) -> np.ndarray:
        """The diagonal of D, of positions and of propulsions: [2, 1, 1]."""
        return _kinds(self.config.noise, RATE)

    @property
    def process(self) -> Process:
        """The system as `egattn.flow` takes it."""
        return Process(
            self.drift,
            diffusion=self.diffusion,
            period=None if self.period is None else _kinds(self.period, np.inf),
            origin=_kinds(self.lower, 0.0),
            relaxation=_kinds(0.0, RATE),
        )


def _kinds(x: float, g: float) -> np.ndarray:
    """A number for positions and one for propulsions, as they broadcast to a state."""
    return np.array([x, g])[:, None, None]


def make_system(config: SystemConfig) -> System:
    """Returns the system that a config names."""
    make = {"trap": _trap, "crystal": _crystal, "ring": _ring, "cluster": _cluster}
    return make[config.name](config)


def _linear(config: SystemConfig, hessian: np.ndarray, sites: np.ndarray, symmetry: Any) -> System:
    exact = gaussian(hessian, sites, config.speed, RATE, config.noise)
    diagonal = np.diag(hessian).reshape(sites.shape).sum(1)

    def force(x):
        away = (x - jnp.asarray(sites, x.dtype)).reshape(-1)
        return -(jnp.asarray(hessian, x.dtype) @ away).reshape(x.shape)

    return System(
        config=config,
        particles=len(sites),
        dimensions=sites.shape[1],
        force=force,
        force_divergence=lambda x: -jnp.asarray(diagonal, x.dtype),
        start=exact.sample,
        burn_in=0.0,
        dt=min(_STEP / np.linalg.eigvalsh(hessian).max(), 0.1),
        spacing=20.0,
        symmetry=symmetry,
        exact=exact,
    )


def _trap(config: SystemConfig) -> System:
    return _linear(config, TRAP * np.eye(2), np.zeros((1, 2)), _turned)


def _crystal(config: SystemConfig) -> System:
    sites = hexagonal(config.particles, _SPACING)
    hessian = springs(sites, _SPRING, TRAP, _REACH)

    def inverted(key: Array, z: Array) -> Array:
        """Displacements and propulsions with the other sign."""
        rest = jnp.stack([jnp.asarray(sites, z.dtype), jnp.zeros_like(z[1])])
        return jnp.where(jax.random.bernoulli(key), z, 2 * rest - z)

    return _linear(config, hessian, sites, inverted)


def _ring(config: SystemConfig) -> System:
    def start(key):
        x, g = jax.random.normal(key, (2, 1, 1))
        return jnp.stack([jnp.mod(RING / 2 + RING / 4 * x, RING), g])

    def mirrored(key: Array, z: Array) -> Array:
        """The two particles exchanged."""
        return jnp.where(jax.random.bernoulli(key), z, mirror(z))

    parameters = {"strength": STRENGTH, "stiffness": STIFFNESS, "period": RING}
    # Of g, or the time to spread over the ring.
    memory = max(1 / RATE, (RING / (2 * np.pi)) ** 2 / (config.noise + config.speed**2 / RATE))
    return System(
        config=config,
        particles=1,
        dimensions=1,
        force=functools.partial(forces.ring_force, **parameters),
        force_divergence=functools.partial(forces.ring_divergence, **parameters),
        start=start,
        burn_in=10 * memory,
        dt=_STEP / STRENGTH,
        spacing=5 * memory,
        symmetry=mirrored,
        period=RING,
    )


def mirror(z: Float[Array, "2 1 1"]) -> Float[Array, "2 1 1"]:
    """The ring with its particles exchanged: (16 - x, -g)."""
    return jnp.array([RING, 0.0], z.dtype)[:, None, None] - z


def _cluster(config: SystemConfig) -> System:
    half, shape = config.box / 2, (config.particles, 2)
    parameters: dict[str, Any] = {
        "strength": STRENGTH,
        "stiffness": STIFFNESS,
        "period": config.box,
    }

    def start(key):
        x, g = jax.random.normal(key, (2, *shape))
        # About as wide as it will be, so that the trap has little to do.
        return jnp.stack([jnp.mod(_CLUSTER * x + half, config.box) - half, g])

    return System(
        config=config,
        particles=config.particles,
        dimensions=2,
        # The trap pulls towards the middle of the box.
        force=lambda x: forces.repulsion(x, **parameters) - TRAP * x,
        force_divergence=lambda x: forces.repulsion_divergence(x, **parameters) - 2 * TRAP,
        start=start,
        # Five relaxation times of the trap.
        burn_in=5 / TRAP,
        # Contacts of six neighbours relax in about this.
        dt=_STEP / (2.5 * STRENGTH),
        spacing=10.0,
        symmetry=_turned,
        period=config.box,
        lower=-half,
    )


def _turned(key: Array, z: Array) -> Array:
    """Turned by a multiple of 90 degrees and perhaps mirrored, as a square box allows."""
    signs, swap = jax.random.split(key)
    z = z * jax.random.rademacher(signs, (2,), z.dtype)
    return jnp.where(jax.random.bernoulli(swap), z, z[..., ::-1])

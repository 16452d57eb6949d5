"""What a network says of entropy production on given snapshots, and whether to believe it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from egattn.flow import Estimate, dissipation, mean, production, score_of
from egattn.flow.divergence import Method
from experiments.active_matter.networks import Network, attention_entropy, field
from experiments.active_matter.objective import velocity_of
from experiments.active_matter.systems import System

# Network evaluations with all their tangents that one piece of work may consist of.
_PIECE = 16384
_POSITIONS = np.array([True, False])[:, None, None]


class Measured(NamedTuple):
    """Numbers of each snapshot, per degree of freedom, in double precision."""

    samples: dict[str, np.ndarray]
    """By name, [snapshots]."""
    exact: int
    """How many of them, the first, have exact divergences; 0 if all are estimated."""
    trajectories: int
    """How many they are of: these are independent, the snapshots of one are not."""
    entropy: np.ndarray
    """Mean attention entropy of each head, [layers, heads], in nats."""

    def followed_by(self, more: "Measured") -> "Measured":
        """With more snapshots, whose divergences are estimated."""
        both = {k: np.concatenate([x, more.samples[k]]) for k, x in self.samples.items()}
        return self._replace(samples=both, trajectories=more.trajectories)

    def values(self) -> dict[str, Any]:
        """Means, with the standard error of the most important ones."""
        s = self.samples
        total = s["total_x"] + s["total_g"]
        # Deviations would be those of the estimates.
        sharp = slice(self.exact or None)
        divergence = (s["div_x"] + s["div_g"])[sharp]
        residual = divergence + s["advection"][sharp]
        epr, bound, identity, change = map(
            self._mean, (total, s["bound"], s["identity"], s["div_x"] + s["div_g"])
        )
        return {
            "epr": float(epr.value),
            "epr_x": float(s["total_x"].mean()),
            "epr_g": float(s["total_g"].mean()),
            "epr_standard_error": float(epr.standard_error),
            "epr_lower_bound": float(bound.value),
            "epr_lower_bound_standard_error": float(bound.standard_error),
            "epr_identity": float(identity.value),
            "epr_identity_standard_error": float(identity.standard_error),
            "div_v": float(change.value),
            "div_v_standard_error": float(change.standard_error),
            "div_v_std": float(divergence.std()),
            "div_g_v_g": float(s["div_g"].mean()),
            "residual_mean": float(residual.mean()),
            "residual_std": float(residual.std()),
            "stein": float(-s["stein"].mean()),
            "score_matching": float(s["score_matching"].mean()),
            "attention_entropy": self.entropy.tolist(),
            "snapshots": len(total),
            "snapshots_exact": self.exact,
            "per_dof": True,
        }

    def _mean(self, x: np.ndarray) -> Estimate:
        times = len(x) // self.trajectories
        each = x[: times * self.trajectories].reshape(times, -1).mean(0)
        # The mean in double precision and of all; the error is small enough for single precision.
        error = mean(jnp.asarray(each - each.mean(), jnp.float32)).standard_error
        return Estimate(jnp.float32(x.mean()), error)


class Measure:
    """Evaluates a network piece by piece."""

    def __init__(self, system: System, network: Network, method: Method = "forward"):
        """Args: system and network, and how divergences are taken.

        `method` is that of `egattn.flow.divergence_terms`; "hutchinson" is right on average only,
        so that `residual_std` is too large.
        """
        self.system, self.network = system, network
        self.method: Method = method
        tangents = 1 if method == "hutchinson" else 2 * system.size
        self.piece = max(1, _PIECE // tangents // system.particles)
        self._entropy = jax.jit(functools.partial(attention_entropy, network))

    def __call__(
        self,
        params: PyTree,
        snapshots: Float[Array, "snapshots 2 particles dimensions"],
        trajectories: int | None = None,
        seed: int = 0,
        check: Callable[[], None] = lambda: None,
    ) -> Measured:
        """Returns the numbers of each snapshot.

        Args:
          params: The network's parameters.
          snapshots: Stationary states that it has not been trained on: those of all trajectories at
            one time, then at the next.
          trajectories: How many trajectories they are of; by default each is of its own.
          seed: Of "hutchinson".
          check: Called between pieces; it may raise.
        """
        keys = jax.random.split(jax.random.key(seed), len(snapshots))
        found = []
        for start in range(0, len(snapshots), self.piece):
            check()
            rows = slice(start, start + self.piece)
            numbers = self._numbers(params, snapshots[rows], keys[rows])
            found.append(jax.tree.map(lambda x: np.asarray(x, np.float64), numbers))
        samples = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
        entropy = self._entropy(params, snapshots[:64])
        exact = 0 if self.method == "hutchinson" else len(snapshots)
        count = trajectories or len(snapshots)
        return Measured(samples, exact, count, np.asarray(entropy, np.float64))

    @functools.cached_property
    def _numbers(self) -> Callable:
        def numbers(params, z, keys):
            velocity = velocity_of(self.system, field(self.network, params))
            return jax.vmap(functools.partial(_of_one, self.system, velocity, self.method))(z, keys)

        return jax.jit(numbers)


def _of_one(system: System, velocity: Any, method: Method, z: Array, key: Array):
    """The numbers of one snapshot."""
    process, speed = system.process, system.config.speed
    score = score_of(process, velocity)
    local = production(process, velocity, z, method=method, key=key)

    def drive(z):
        return jnp.stack([speed * z[1], jnp.zeros_like(z[1])])

    s = score(z)
    known = system.drift_divergence(z).sum(-1) - local.system.sum((1, 2))
    div_s = jnp.sum(known / system.diffusion[:, 0, 0])
    numbers = {
        "total_x": local.total[0].sum(),
        "total_g": local.total[1].sum(),
        "bound": local.bound.sum(),
        "div_x": local.system[0].sum(),
        "div_g": local.system[1].sum(),
        "advection": local.advection.sum(),
        "identity": dissipation(process, z, driving=drive, part=_POSITIONS).sum(),
        "stein": jnp.sum(s[1] * z[1]),
        # Per component of z, as the loss is.
        "score_matching": (jnp.sum(s**2) + 2 * div_s) / 2,
    }
    return {name: x / system.size for name, x in numbers.items()}


def in_words(values: dict[str, Any]) -> str:
    """An evaluation in one line."""
    return (
        f"entropy production {values['epr']:.4f} (x {values['epr_x']:.4f}, g {values['epr_g']:.4f})"
        f"  at least {values['epr_lower_bound']:.4f} +- "
        f"{values['epr_lower_bound_standard_error']:.4f}  identity {values['epr_identity']:.4f} +- "
        f"{values['epr_identity_standard_error']:.4f} per degree of freedom"
    )

"""What a network says of entropy production on given snapshots, and whether to believe it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from egattn.flow import controlled, dissipation, production, score_of
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
    controls: np.ndarray | None = None
    """Of each snapshot, [snapshots, controls], if what is learned is to be controlled."""

    def followed_by(self, more: "Measured") -> "Measured":
        """With more snapshots, whose divergences are estimated."""
        both = {k: np.concatenate([x, more.samples[k]]) for k, x in self.samples.items()}
        return self._replace(samples=both, trajectories=self.trajectories + more.trajectories)

    def values(self) -> dict[str, Any]:
        """Means with their standard errors, and deviations."""
        s = self.samples
        divergence = s["div_x"] + s["div_g"]
        learned = {
            "epr": s["total_x"] + s["total_g"],
            "epr_x": s["total_x"],
            "epr_g": s["total_g"],
            "epr_lower_bound": s["bound"],
            "score_matching": s["score_matching"],
        }
        # Controls would hide what these say of the snapshots themselves.
        checks = {
            "epr_identity": s["identity"],
            "div_v": divergence,
            "div_g_v_g": s["div_g"],
            "residual_mean": divergence + s["advection"],
            "stein": -s["stein"],
        }
        none = np.zeros((len(divergence), 0))
        controls = none if self.controls is None else self.controls
        found = self._means(learned, controls) | self._means(checks, none)
        # Deviations would be those of the estimates.
        sharp = slice(self.exact or None)
        return found | {
            "div_v_std": float(divergence[sharp].std()),
            "residual_std": float(checks["residual_mean"][sharp].std()),
            "attention_entropy": self.entropy.tolist(),
            "snapshots": len(divergence),
            "snapshots_exact": self.exact,
            "controls": controls.shape[1],
            "per_dof": True,
        }

    def _means(self, samples: dict[str, np.ndarray], controls: np.ndarray) -> dict[str, float]:
        """And their standard errors, over trajectories, which are independent."""
        columns = np.stack(list(samples.values()), 1)
        estimate = controlled(*(_by_trajectory(x, self.trajectories) for x in (columns, controls)))
        found = {}
        for name, value, error in zip(samples, *estimate, strict=True):
            found |= {name: float(value), f"{name}_standard_error": float(error)}
        return found


def _by_trajectory(samples: np.ndarray, trajectories: int) -> np.ndarray:
    """Averages over each trajectory, of which there is one snapshot after the other's."""
    times, more = divmod(len(samples), trajectories)
    sums = samples[: times * trajectories].reshape(times, trajectories, -1).sum(0)
    sums[:more] += samples[times * trajectories :]
    return sums / (times + (np.arange(trajectories) < more))[:, None]


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
        seed: int = 0,
        check: Callable[[], None] = lambda: None,
    ) -> Measured:
        """Returns the numbers of each snapshot.

        Args:
          params: The network's parameters.
          snapshots: Stationary states that it has not been trained on. `trajectories` of the result
            counts each as one of its own; replace it otherwise.
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
        return Measured(samples, exact, len(snapshots), np.asarray(entropy, np.float64))

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

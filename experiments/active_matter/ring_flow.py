"""The ring's probability flow: its centre, and whether its orbits close, as exact ones do.

In two dimensions a flow that keeps a density has a stream function, and so closed orbits. From the
stationary Fokker-Planck equation on a grid: centres (3.262, -0.190) and mirrored, turning once in
100.5; the orbit through (8, 1.5) closes after 120.3, the one through (8, 0.5) after 215.4
(`fokker_planck.py`).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import root

from egattn.flow import Field
from experiments.active_matter.config import TrainConfig
from experiments.active_matter.integration import integrate
from experiments.active_matter.systems import DEFAULTS, RING
from experiments.active_matter.trained import Trained

CENTER, CENTER_PERIOD = (3.262, -0.190), 100.5
"""Of the exact flow."""
ORBITS = {1.5: 120.3, 0.5: 215.4}
"""Exact periods of orbits through x = 8, by g there."""
_INTERVAL = 0.05


def is_published(config: TrainConfig) -> bool:
    """Whether a training is of the ring whose flow these numbers are of."""
    return config.of_system() == DEFAULTS["ring"]


def portrait(trained: Trained) -> dict[str, Any]:
    """Measures a trained network's flow.

    Returns:
      `center` (x, g) near the exact one and `center_period`, the period of small orbits; the same
      of the orbits through (8, 1.5) and (8, 0.5): `orbit_period`, and `orbit_gap` by which g has
      changed at the return, over the orbit's range of g; `drift_at_exact_period`, how far from its
      start it is after the exact period, as a share of its ranges in x and g. None where an orbit
      does not return.
    """
    center, period = stagnation(trained.velocity, CENTER)
    found: dict[str, Any] = {"center": center, "center_period": period}
    for start, exact in ORBITS.items():
        prefix = "orbit" if start == 1.5 else "inner_orbit"
        found |= {f"{prefix}_{k}": v for k, v in orbit(trained, start, exact).items()}
    return found


def portrait_in_words(values: dict[str, Any]) -> str:
    """A portrait in one line."""
    x, g = values["center"]
    words = f"flow centre ({x:.3f}, {g:.3f}); orbit through (8, 1.5) "
    if values["orbit_period"] is None:
        return words + "does not return"
    return words + (
        f"returns after {values['orbit_period']:.1f}, closed to {values['orbit_gap']:.2%}; after "
        f"{ORBITS[1.5]} it is {values['orbit_drift_at_exact_period']:.2%} away"
    )


def stagnation(velocity: Field, guess: tuple[float, float]) -> tuple[list[float], float | None]:
    """Where the flow stands still, and the period of small orbits around it, if there are."""
    flat = jax.jit(lambda y: velocity(y.reshape(2, 1, 1)).reshape(2))
    slope = jax.jit(jax.jacfwd(flat))
    found = root(lambda y: np.asarray(flat(jnp.float32(y)), float), guess, jac=slope, tol=1e-6)
    frequency = np.abs(np.linalg.eigvals(np.asarray(slope(jnp.float32(found.x)))).imag).max()
    return found.x.tolist(), float(2 * np.pi / frequency) if frequency else None


def orbit(trained: Trained, start: float, exact: float) -> dict[str, float | None]:
    """Follows the orbit through (8, start) for up to 1.5 exact periods; see `portrait`."""
    z = np.array([RING / 2, start])[None, :, None, None]
    times = np.arange(1, round(1.5 * exact / _INTERVAL)) * _INTERVAL
    path = integrate(trained.system, trained.velocity, z, times).reshape(-1, 2)
    x, g = path.T
    ranges = np.ptp(path, 0)
    late = np.argmin(np.abs(times - exact))
    away = np.abs(path[late] - [RING / 2, start]) / ranges
    # Upwards through x = 8: the orbit has come round.
    crossed = np.flatnonzero((x[:-1] < RING / 2) & (x[1:] >= RING / 2))
    found = {"period": None, "gap": None, "drift_at_exact_period": float(away.max())}
    if len(crossed):
        i = crossed[0]
        share = (RING / 2 - x[i]) / (x[i + 1] - x[i])
        found["period"] = float(times[i] + share * _INTERVAL)
        found["gap"] = float(abs(g[i] + share * (g[i + 1] - g[i]) - start) / ranges[1])
    return found

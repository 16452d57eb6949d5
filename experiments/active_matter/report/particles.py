"""Many particles: one snapshot coloured by local quantities, and radial profiles."""

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from egattn.report.style import WIDTH, Plot, canvas
from experiments.active_matter.report.plane import (
    PRODUCTION,
    QUANTITIES,
    Quantity,
    coordinates,
    local,
    of_particles,
)
from experiments.active_matter.report.subject import Subject

_SHOWN = (PRODUCTION, *(q for q in QUANTITIES if q.name in ("v_g", "div_g_v_g")))
_OURS, _EXACT = "#0072B2", "#333333"
_RINGS = 14


def particles(subject: Subject) -> list[Plot]:
    """The pictures of a system of many particles."""
    return [_snapshot(subject), _profiles(subject)]


def _snapshot(subject: Subject) -> Plot:
    """The first held-out snapshot."""
    figure = canvas(WIDTH, 4.4)
    z, v = subject.ours.z[0], subject.ours.velocity[0]
    values = {q: of_particles(subject.ours, q)[0] for q in _SHOWN}
    for ax, quantity in zip(figure.subplots(1, 3, sharey=True), _SHOWN, strict=True):
        mesh = discs(ax, z[0], values[quantity], quantity)
        bar = figure.colorbar(mesh, ax=ax, orientation="horizontal", pad=0.02, shrink=0.9)
        bar.outline.set_visible(False)
        bar.formatter = StrMethodFormatter("{x:.3g}")
        bar.locator = MaxNLocator(5)
        bar.update_ticks()
        frame(ax, z[0])
        ax.set(title=quantity.label, xlabel="x")
        ax.label_outer()
    ax = figure.axes[0]
    ax.set_ylabel("y")
    arrows = {"angles": "xy", "width": 0.005, "color": "#D55E00", "zorder": 3, "clip_on": False}
    # The layout is not to make room for arrows that point out of the panel.
    ax.quiver(*z[0].T, *v[0].T, **arrows).set_in_layout(False)
    return Plot(
        "particles",
        "One snapshot",
        "Particles of one held-out snapshot, drawn to size, coloured by their own part of local "
        "entropy production |v_x|²/eps + |v_g|²/gamma (with v_x as arrows), by |v_g| and by "
        "div_g v_g. Bright discs are those that the flow moves most, in units of their noise.",
        figure,
        ("particle", "x", "y", "g_x", "g_y", "v_x", "v_y", *(q.name for q in _SHOWN)),
        [
            (i, *z[0, i], *z[1, i], *v[0, i], *(values[q][i] for q in _SHOWN))
            for i in range(len(z[0]))
        ],
        "Three pictures of the same cluster of discs: local entropy production with arrows of "
        "velocity, speed of the propulsion, divergence of its flow.",
    )


def discs(
    ax: Axes, x: np.ndarray, values: np.ndarray, quantity: Quantity, top: float | None = None
) -> EllipseCollection:
    """Draws particles of radius 1 in colours that end at `top`, by default the largest value."""
    top = float(np.abs(values).max()) if top is None else top
    found = EllipseCollection(
        np.full(len(x), 2.0),
        np.full(len(x), 2.0),
        np.zeros(len(x)),
        units="xy",
        offsets=x,
        offset_transform=ax.transData,
        array=values,
        cmap=colormaps["RdBu_r" if quantity.signed else "viridis"],
        edgecolor="#222222",
        linewidth=0.5,
    )
    found.set_clim(-top if quantity.signed else 0.0, top)
    ax.add_collection(found)
    return found


def frame(ax: Axes, x: np.ndarray) -> None:
    """Equal axes that hold all particles, without a grid."""
    centre, half = (x.max(0) + x.min(0)) / 2, np.ptp(x, 0).max() / 2 + 1.5
    ax.set(xlim=(centre[0] - half, centre[0] + half), ylim=(centre[1] - half, centre[1] + half))
    ax.set_aspect("equal")
    ax.grid(False)


def _profiles(subject: Subject) -> Plot:
    """Means over particles in rings around the trap's centre."""
    figure = canvas(WIDTH, 5.2)
    ours, known = subject.ours, subject.exact
    radius = np.linalg.norm(coordinates(subject.system, ours.z), axis=1)
    # As many particles in each ring.
    edges = np.quantile(radius, np.linspace(0, 1, _RINGS + 1))
    ring = np.clip(np.searchsorted(edges, radius, "right") - 1, 0, _RINGS - 1)
    middle = np.array([radius[ring == i].mean() for i in range(_RINGS)])
    rows = []
    for ax, quantity in zip(figure.subplots(2, 3).ravel(), QUANTITIES, strict=True):
        mean, error = _of_rings(local(ours, quantity), ring)
        looks = {"marker": "o", "markersize": 4, "linestyle": "none" if known else "-"}
        ax.errorbar(middle, mean, error, color=_OURS, label="learned", **looks)
        exact = np.full(_RINGS, np.nan)
        if known is not None:
            exact, _ = _of_rings(local(known, quantity), ring)
            ax.plot(middle, exact, color=_EXACT, linewidth=1, zorder=3, label="exact")
        if quantity.signed:
            ax.axhline(0, color="#999999", linewidth=0.8)
        else:
            ax.set_ylim(bottom=0)
        ax.set(title=quantity.label, xlabel="distance from the centre of the trap")
        rows += [
            (quantity.name, *numbers)
            for numbers in zip(edges[:-1], edges[1:], mean, error, exact, strict=True)
        ]
    if known is not None:
        figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return Plot(
        "profiles",
        "Radial profiles",
        "Mean over the particles of all snapshots in rings around the centre of the trap that hold "
        "equally many; bars are standard errors, as if particles were independent.",
        figure,
        ("quantity", "from", "to", "learned", "standard_error", "exact"),
        rows,
        "Six curves of a particle's velocities and divergences against its distance from the "
        "centre.",
    )


def _of_rings(values: np.ndarray, ring: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    groups = [values[ring == i] for i in range(_RINGS)]
    error = [x.std() / max(len(x) - 1, 1) ** 0.5 for x in groups]
    return np.array([x.mean() for x in groups]), np.array(error)

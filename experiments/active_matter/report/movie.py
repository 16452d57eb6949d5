"""The flow in motion: tracers in the phase plane, or the particles themselves."""

from typing import Any

import jax
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize

from egattn.report.animation import Animation
from egattn.report.style import WIDTH, Plot, canvas
from experiments.active_matter.integration import integrate
from experiments.active_matter.report.particles import discs, frame
from experiments.active_matter.report.plane import PRODUCTION, make_plane
from experiments.active_matter.report.portrait import draw_density, histogram
from experiments.active_matter.report.subject import Subject
from experiments.active_matter.systems import RATE, RING

FRAMES = 60
# Of tracers: how many, for how long, and how many frames their tails last.
_TRACERS, _TIME, _TAIL = 300, 120.0, 4
# Of particles: the persistence time is 10.
_PARTICLE_TIME = 20.0
_TOLERANCE = 1e-3


def tracers(subject: Subject) -> Plot:
    """Independent samples of a one-particle system, carried by the flow."""
    system = subject.system
    plane = make_plane(system, subject.snapshots)
    times = np.linspace(0, _TIME, FRAMES)
    z = integrate(system, subject.velocity, subject.snapshots[:_TRACERS], times, _TOLERANCE)
    points, colours = z[..., 0, 0], _production(subject, z).sum(-1)
    if system.period is not None:
        points[..., 0] %= RING
    figure = canvas(6.4, 4.3)
    ax = figure.subplots()
    density, edges = histogram(subject, plane)
    draw_density(ax, density, edges, float(density.max()))
    looks: Any = {"cmap": "viridis", "clim": (0, float(np.quantile(colours, 0.98)))}
    tails = LineCollection([], linewidths=0.8, alpha=0.5, **looks)
    ax.add_collection(tails)
    dots = ax.scatter(*points[0].T, s=12, zorder=3, edgecolors="#222222", linewidths=0.3)
    dots.set(array=colours[0], **looks)
    bar = figure.colorbar(dots, ax=ax, pad=0.02, label=PRODUCTION.label, extend="max")
    bar.outline.set_visible(False)
    ax.set(xlabel=plane.axes[0], ylabel=plane.axes[1], xlim=plane.bounds[0], ylim=plane.bounds[1])
    ax.grid(False)

    def draw(k: int) -> None:
        dots.set_offsets(points[k])
        dots.set_array(colours[k])
        tails.set_segments(list(points[max(k - _TAIL, 0) : k + 1].swapaxes(0, 1)))
        tails.set_array(colours[k])
        ax.set_title(f"t = {times[k]:.0f}")

    rows = [
        (times[k], i, *points[k, i].round(4), colours[k, i].round(4))
        for k in range(FRAMES)
        for i in range(z.shape[1])
    ]
    return Plot(
        "movie",
        "The flow in motion",
        f"{z.shape[1]} held-out samples carried by the learned flow for a time of {_TIME:.0f}, "
        "coloured by their local entropy production, over the density. They move for ever, and "
        "their cloud stays as it is: that is a stationary state out of equilibrium.",
        figure,
        ("time", "tracer", *plane.names, PRODUCTION.name),
        rows,
        "Points that circulate in the phase plane.",
        Animation(draw, FRAMES),
    )


def moving_particles(subject: Subject) -> list[Plot]:
    """The particles of one snapshot carried by the flow: their paths, and a movie."""
    times = np.linspace(0, _PARTICLE_TIME, FRAMES)
    start = subject.snapshots[:1]
    z = integrate(subject.system, subject.velocity, start, times, _TOLERANCE)
    exact = None
    if subject.exact_velocity is not None:
        exact = integrate(subject.system, subject.exact_velocity, start, times, _TOLERANCE)
    return [
        _paths(times, z[:, 0], None if exact is None else exact[:, 0]),
        _movie(subject, times, z),
    ]


def _paths(times: np.ndarray, z: np.ndarray, exact: np.ndarray | None) -> Plot:
    flows = {"learned": z} | ({} if exact is None else {"exact": exact})
    figure = canvas(WIDTH if len(flows) > 1 else 6.0, 4.8)
    for ax, (name, path) in zip(
        figure.subplots(1, len(flows), squeeze=False)[0], flows.items(), strict=True
    ):
        x = path[:, 0]
        segments = np.stack([x[:-1], x[1:]], 2).reshape(-1, 2, 2)
        lines = LineCollection(list(segments), cmap="viridis", linewidths=1.6)
        lines.set_array(np.repeat(times[1:], x.shape[1]))
        lines.set_clim(0, times[-1])
        ax.add_collection(lines)
        ax.plot(*x[0].T, "o", color="#777777", markersize=2.5)
        frame(ax, x.reshape(-1, 2))
        ax.set(title=f"{name}: dz/dt = v(z)", xlabel="x", ylabel="y")
    scale = ScalarMappable(Normalize(0, times[-1]), "viridis")
    bar = figure.colorbar(scale, ax=figure.axes, pad=0.02, label="time")
    bar.outline.set_visible(False)
    rows = [
        (name, time, i, *path[k, 0, i].round(4))
        for name, path in flows.items()
        for k, time in enumerate(times)
        for i in range(path.shape[2])
    ]
    return Plot(
        "paths",
        "Paths of the probability flow",
        f"Where the flow takes the particles of one snapshot (dots) in a time of "
        f"{times[-1]:.0f}, without noise; a particle keeps its propulsion for "
        f"{1 / RATE:.0f}. In equilibrium they would all stand still.",
        figure,
        ("flow", "time", "particle", "x", "y"),
        rows,
        "Paths of all particles, coloured by time.",
    )


def _movie(subject: Subject, times: np.ndarray, z: np.ndarray) -> Plot:
    places = z[:, 0, 0]
    colours = _production(subject, z)[:, 0]
    figure = canvas(5.6, 4.8)
    ax = figure.subplots()
    top = float(np.quantile(colours, 0.98))
    cluster = discs(ax, places[0], colours[0], PRODUCTION, top)
    frame(ax, places.reshape(-1, 2))
    bar = figure.colorbar(cluster, ax=ax, pad=0.02, label=PRODUCTION.label, extend="max")
    bar.outline.set_visible(False)
    ax.set(xlabel="x", ylabel="y")

    def draw(k: int) -> None:
        cluster.set_offsets(places[k])
        cluster.set_array(colours[k])
        ax.set_title(f"t = {times[k]:.1f}")

    return Plot(
        "movie",
        "The flow in motion",
        f"The same particles carried by the learned flow for a time of {times[-1]:.0f}, coloured "
        "by their own part of the local entropy production.",
        figure,
        ("time", "particle", "x", "y", PRODUCTION.name),
        [
            (times[k], i, *places[k, i].round(4), colours[k, i].round(4))
            for k in range(FRAMES)
            for i in range(places.shape[1])
        ],
        "Discs that drift and change colour.",
        Animation(draw, FRAMES),
    )


def _production(subject: Subject, z: np.ndarray) -> np.ndarray:
    """Local entropy production of each particle, [times, states, N]."""
    system = subject.system
    flat = z.reshape(-1, *z.shape[2:]).astype(np.float32)
    v = np.asarray(jax.jit(jax.vmap(subject.velocity))(flat)).reshape(z.shape)
    return (v**2 / system.diffusion).sum((2, 4))

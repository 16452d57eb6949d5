"""The phase portrait: orbits of the probability flow over the density, learned and exact."""

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap

from egattn.flow import Field, binned
from egattn.report.style import WIDTH, Plot, canvas
from experiments.active_matter.fokker_planck import Solution
from experiments.active_matter.integration import integrate
from experiments.active_matter.report.plane import Plane, coordinates, make_plane
from experiments.active_matter.report.subject import Subject
from experiments.active_matter.systems import RING

# Centres of the ring's flow in the published portrait, read off its picture.
PUBLISHED = (3.7, -0.10)
_LINE, _OURS, _THEIRS = "#12304f", "#D55E00", "#CC79A7"
_DENSITY = LinearSegmentedColormap.from_list("density", colormaps["Blues"](np.linspace(0, 0.6, 64)))
_BINS = (48, 40)
# Longer than any period but that of orbits along the saddle's.
_TIME, _FRAMES = 260.0, 1301
# Starts in the plane: on the ring's midline, and within one of the two eddies.
_OUTER, _INNER = (0.25, 0.5, 1.0, 1.5, 2.0, 2.5), (4.2, 5.3, 6.6)
_SHARES = (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)


def portrait(subject: Subject) -> Plot:
    """The orbits of a one-particle system's flow, beside the exact ones."""
    system = subject.system
    plane = make_plane(system, subject.snapshots)
    starts = _starts(subject, plane)
    paths = {"learned": _orbits(subject, subject.velocity, starts)}
    figure = canvas(WIDTH, 4.4)
    learned, exact = figure.subplots(1, 2, sharey=True)
    density, edges = histogram(subject, plane)
    top = float(density.max())
    mesh = draw_density(learned, density, edges, top)
    _lines(learned, plane, paths["learned"])
    if subject.solution is None:
        draw_density(exact, density, edges, top)
        assert subject.exact_velocity is not None
        paths["exact"] = _orbits(subject, subject.exact_velocity, starts)
        _lines(exact, plane, paths["exact"])
    else:
        _level_lines(exact, subject.solution, starts, top)
        if "portrait" in subject.values:
            _centres(learned, exact, subject)
    bar = figure.colorbar(mesh, ax=[learned, exact], pad=0.02, label=r"density $\rho$")
    bar.outline.set_visible(False)
    learned.set_title("learned: orbits of dz/dt = v(z)")
    exact.set_title("exact")
    for ax in (learned, exact):
        ax.set(xlabel=plane.axes[0], xlim=plane.bounds[0], ylim=plane.bounds[1])
        ax.grid(False)
    learned.set_ylabel(plane.axes[1])
    rows = [
        (name, index, _TIME * k / (_FRAMES - 1), *point)
        for name, of_name in paths.items()
        for index, path in enumerate(of_name)
        for k, point in enumerate(path[::5].tolist())
    ]
    return Plot(
        "portrait",
        "Phase portrait of the probability flow",
        _caption(subject),
        figure,
        ("flow", "orbit", "time", *plane.names),
        rows,
        "Two phase portraits side by side, learned and exact: closed orbits around the centres of "
        "the flow, over the density in blue.",
    )


def _orbits(subject: Subject, velocity: Field, starts: np.ndarray) -> np.ndarray:
    """Follows the flow from points of the plane: [orbits, times, 2], not wrapped."""
    system = subject.system
    z = np.zeros((len(starts), 2, 1, system.dimensions))
    z[:, :, 0, 0] = starts
    times = np.linspace(0, _TIME, _FRAMES)
    return integrate(system, velocity, z, times)[..., 0, 0].swapaxes(0, 1)


def _starts(subject: Subject, plane: Plane) -> np.ndarray:
    if subject.solution is None:
        return np.array([(share * plane.bounds[0][1], 0.0) for share in _SHARES])
    g = -0.19
    inner = [(x, g) for x in _INNER] + [(RING - x, -g) for x in _INNER]
    return np.array([(RING / 2, g) for g in _OUTER] + inner)


def histogram(subject: Subject, plane: Plane) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Density of the samples in bins, and the bins' edges."""
    points = coordinates(subject.system, subject.snapshots)
    found = binned(points, points[:, 0], bins=_BINS, bounds=np.asarray(plane.bounds))
    return found.density, found.edges


def draw_density(ax: Axes, density: np.ndarray, edges: Any, top: float) -> ScalarMappable:
    """Draws a density in pale blue, on which lines and points stand out."""
    return ax.pcolormesh(*edges, density.T, cmap=_DENSITY, vmin=0, vmax=top, rasterized=True)


def _lines(ax: Axes, plane: Plane, paths: np.ndarray) -> None:
    """Orbits with an arrow each; where one leaves the period it goes on at the other side."""
    (left, right), _ = plane.bounds
    for path in paths:
        inside = np.where(np.abs(path[:, :1] - (left + right) / 2) <= right - left, path, np.nan)
        ax.plot(*inside.T, color=_LINE, linewidth=0.9)
        _arrow(ax, path)


def _arrow(ax: Axes, path: np.ndarray) -> None:
    tail, head = path[2], path[5]
    ax.annotate(
        "",
        head,
        tail,
        arrowprops={"arrowstyle": "-|>", "color": _LINE, "mutation_scale": 11, "linewidth": 0.9},
    )


def _level_lines(ax: Axes, solution: Solution, starts: np.ndarray, top: float) -> None:
    """The exact orbits: level lines of the stream function, through the same points."""
    x, g = solution.edges
    draw_density(ax, solution.density, (x, g), top)
    if solution.ring.speed == 0:
        return
    levels = np.unique(solution.stream_at(starts).round(9))
    ax.contour(
        x, g, solution.stream.T, levels=levels, colors=_LINE, linewidths=0.9, linestyles="solid"
    )
    for start in starts:
        step = solution.fields(start).velocity
        _arrow(ax, start + step * np.arange(6)[:, None] * _TIME / (_FRAMES - 1))


def _centres(learned: Axes, exact: Axes, subject: Subject) -> None:
    """Centres of the learned, exact and published flows, on both panels."""
    solution, ours = subject.solution, subject.values["portrait"]["center"]
    assert solution is not None
    marks = [
        ("published", PUBLISHED, "s", _THEIRS),
        ("exact", tuple(solution.centre()), "o", "black"),
        ("learned", tuple(ours), "x", _OURS),
    ]
    for ax in (learned, exact):
        for name, (x, g), marker, colour in marks:
            fill: dict[str, Any] = {} if marker == "x" else {"markerfacecolor": "none"}
            ax.plot(
                [x, RING - x],
                [g, -g],
                marker,
                color=colour,
                markersize=7,
                markeredgewidth=1.6,
                label=f"{name} centre ({x:.2f}, {g:.2f})",
                **fill,
            )
    handles, names = learned.get_legend_handles_labels()
    figure: Any = learned.figure
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=8)


def _caption(subject: Subject) -> str:
    text = (
        "Orbits of dz/dt = v(z), which carry the same density as the noisy dynamics, over that "
        f"density; integrated for a time of {_TIME:.0f}. A stationary flow in a plane has a stream "
        "function, so exact orbits close, if they are not slower; learned ones that drift show an "
        "error of the score. "
    )
    if subject.solution is None:
        return text + "Right: the same from the closed form."
    text += (
        "Right: level lines of the stream function of the Fokker-Planck equation on a grid of "
        f"{len(subject.solution.x)} x {len(subject.solution.g)} cells, through the same starts. "
    )
    if "portrait" not in subject.values:
        return text
    return text + (
        "The published portrait has its centres near (3.7, -0.10) and (12.3, 0.10), 0.45 off, and "
        "its inner orbits spiral outwards."
    )

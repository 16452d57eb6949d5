"""Maps over the plane: conditional means, density weighted, and errors where these are known."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from egattn.flow import Map, binned
from egattn.report.style import WIDTH, Plot, canvas
from experiments.active_matter.report.fields import Fields
from experiments.active_matter.report.plane import (
    QUANTITIES,
    Plane,
    Quantity,
    coordinates,
    local,
    make_plane,
    phase_plane,
)
from experiments.active_matter.report.subject import Subject

# Of means, which a sample in a bin is enough for, and of densities, which are counts.
_MEANS = {True: (80, 60), False: (48, 48)}
_COUNTS = {True: (48, 40), False: (40, 40)}
# Colours end where only this share of the bins would be beyond.
_CLIPPED = 0.01


def maps(subject: Subject) -> list[Plot]:
    """All maps of a run."""
    plane = make_plane(subject.system, subject.ours.z)
    points = coordinates(subject.system, subject.ours.z)
    flat = phase_plane(subject.system)

    def all_of(fields: Fields, bins: tuple[int, int]) -> dict[Quantity, Map]:
        values = np.stack([local(fields, q) for q in QUANTITIES], -1)
        edges, density, mean = binned(points, values, bins=bins, bounds=np.asarray(plane.bounds))
        return {q: Map(edges, density, mean[..., i]) for i, q in enumerate(QUANTITIES)}

    ours = all_of(subject.ours, _MEANS[flat])
    plots = [
        _conditional(subject, plane, ours),
        _weighted(subject, plane, all_of(subject.ours, _COUNTS[flat])),
    ]
    if subject.exact is not None:
        plots.append(_errors(subject, plane, ours, all_of(subject.exact, _MEANS[flat])))
    return plots


def _conditional(subject: Subject, plane: Plane, found: dict[Quantity, Map]) -> Plot:
    values = {q: m.mean for q, m in found.items()}
    return Plot(
        "conditional",
        "Local maps: conditional means",
        f"Mean of each quantity over the held-out samples in a bin of the {_space(subject)}. "
        "The square of the first is the local entropy production rate: it counts velocities in "
        "units of the noise, eps in x and gamma in g. Where div v is positive the flow thins the "
        "density out, where it is negative it gathers; on average div_g v_g and div_x v_x cancel. "
        "White bins have no sample.",
        _six(plane, values, {q: q.label for q in QUANTITIES}),
        (*plane.names, *(q.name for q in QUANTITIES)),
        _rows(found, values),
        f"Six colour maps over the {_space(subject)}: three magnitudes of the velocity, three "
        "divergences.",
    )


def _weighted(subject: Subject, plane: Plane, found: dict[Quantity, Map]) -> Plot:
    values = {q: m.weighted for q, m in found.items()}
    return Plot(
        "weighted",
        "Local maps: density weighted",
        "The same times the density of the samples: the first three show where current flows, the "
        "last three where the rates of change come from that add up to the averages in the table; "
        "the integral of rho div v is 0 in a stationary state.",
        _six(plane, values, {q: rf"$\rho\,${q.label}" for q in QUANTITIES}),
        (*plane.names, "density", *(f"rho_{q.name}" for q in QUANTITIES)),
        _rows(found, values, density=True),
        f"Six colour maps over the {_space(subject)}, bright where current flows.",
    )


def _errors(
    subject: Subject, plane: Plane, ours: dict[Quantity, Map], exact: dict[Quantity, Map]
) -> Plot:
    values = {q: ours[q].mean - exact[q].mean for q in QUANTITIES}
    return Plot(
        "errors",
        "Local maps: learned minus exact",
        "Difference of the conditional means from the exact solution on the same samples, on a "
        "scale of its own. Errors gather where samples are rare, at the edge of the density, and "
        "weigh little in averages.",
        _six(plane, values, {q: f"error of {q.label}" for q in QUANTITIES}, signed=True),
        (*plane.names, *(f"error_{q.name}" for q in QUANTITIES)),
        _rows(ours, values),
        "Six colour maps of differences, red where the learned value is too large, blue where it "
        "is too small.",
    )


def _space(subject: Subject) -> str:
    return "phase plane" if phase_plane(subject.system) else "plane of places"


def _six(
    plane: Plane,
    values: dict[Quantity, np.ndarray],
    labels: dict[Quantity, str],
    signed: bool = False,
) -> Figure:
    figure = canvas(WIDTH, 7.6 if plane.equal else 5.4)
    for ax, quantity in zip(figure.subplots(2, 3).ravel(), QUANTITIES, strict=True):
        colour_map(ax, plane, values[quantity], labels[quantity], signed or quantity.signed)
    return figure


def colour_map(ax: Axes, plane: Plane, values: np.ndarray, label: str, signed: bool) -> None:
    """One map [x bins, y bins] with its colour bar; empty bins stay white."""
    figure: Figure = ax.figure  # pyright: ignore[reportAssignmentType] - no panel lies in a subfigure
    finite = values[np.isfinite(values)]
    top = float(np.quantile(np.abs(finite), 1 - _CLIPPED)) if finite.size else 0.0
    top = top or 1.0
    (left, right), (low, high) = plane.bounds
    image = ax.imshow(
        values.T,
        origin="lower",
        extent=(left, right, low, high),
        aspect="equal" if plane.equal else "auto",
        cmap=colormaps["RdBu_r" if signed else "viridis"].with_extremes(bad="white"),
        vmin=-top if signed else 0.0,
        vmax=top,
        interpolation="nearest",
    )
    clipped = finite.size and float(np.abs(finite).max()) > top
    extend = ("both" if signed else "max") if clipped else "neither"
    bar = figure.colorbar(image, ax=ax, pad=0.02, extend=extend)
    bar.locator, bar.formatter = MaxNLocator(5), StrMethodFormatter("{x:.3g}")
    bar.outline.set_visible(False)
    bar.update_ticks()
    ax.set(title=label, xlabel=plane.axes[0], ylabel=plane.axes[1])
    ax.grid(False)


def _rows(
    found: dict[Quantity, Map], values: dict[Quantity, np.ndarray], density: bool = False
) -> Sequence[tuple]:
    """A row per bin that has samples, with the bin's centre."""
    first = found[QUANTITIES[0]]
    x, y = ((edge[1:] + edge[:-1]) / 2 for edge in first.edges)
    return [
        (x[i], y[j], *([first.density[i, j]] * density), *(values[q][i, j] for q in QUANTITIES))
        for i, j in np.argwhere(first.density > 0)
    ]

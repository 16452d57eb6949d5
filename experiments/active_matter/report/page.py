"""The report's page."""

import re
from collections.abc import Sequence
from pathlib import Path

from egattn.report.document import document, environment, figure, origin
from egattn.report.style import Plot
from experiments.active_matter.report.checks import checks
from experiments.active_matter.report.curves import curves
from experiments.active_matter.report.maps import maps
from experiments.active_matter.report.movie import moving_particles, tracers
from experiments.active_matter.report.numbers import comparison, details
from experiments.active_matter.report.particles import particles
from experiments.active_matter.report.plane import phase_plane
from experiments.active_matter.report.portrait import portrait
from experiments.active_matter.report.subject import Subject


def draw(subjects: Sequence[Subject]) -> list[list[Plot]]:
    """All figures: those of all runs together, then those of each run, in reading order.

    Call within `egattn.report.figures.drawing`.
    """
    several = len(subjects) > 1
    own = [[_named(plot, subject, several) for plot in _of_run(subject)] for subject in subjects]
    return [[curves(subjects)], *own]


def _of_run(subject: Subject) -> list[Plot]:
    if phase_plane(subject.system):
        return [portrait(subject), tracers(subject), *maps(subject), checks(subject)]
    flow = moving_particles(subject)
    return [*particles(subject), *flow, *maps(subject), checks(subject)]


def _named(plot: Plot, subject: Subject, several: bool) -> Plot:
    """Tells runs apart in titles and file names."""
    if not several:
        return plot
    # Labels are distinct, and stay so: what a file name cannot hold is written as a number.
    prefix = re.sub(r"[^\w.-]", lambda found: f"%{ord(found[0]):x}", subject.label)
    return plot._replace(
        name=f"{prefix}_{plot.name}", title=f"{subject.label}: {plot.title.lower()}"
    )


def render(
    subjects: Sequence[Subject],
    plots: Sequence[Sequence[Plot]],
    images: Path,
    command: Sequence[str],
) -> str:
    """Builds the page.

    Args:
      subjects: The runs.
      plots: What `draw` made of them.
      images: Directory in which the figures were written.
      command: The command that makes this report.

    Returns:
      HTML; everything that comes from run files is escaped, images are embedded.
    """
    shared, *own = [[figure(plot, images) for plot in group] for group in plots]
    parts = [comparison(subjects), *shared]
    for subject, figures in zip(subjects, own, strict=True):
        parts += [*figures, details(subject)]
    names = ", ".join(subject.label for subject in subjects)
    return document(
        "Active matter: probability flow and entropy production",
        f"{len(subjects)} run{'s' * (len(subjects) > 1)}: {names}. Particles at x with propulsion "
        "g follow dx = (F(x) + v0 g) dt + sqrt(2 eps) dW and dg = -gamma g dt + sqrt(2 gamma) dW; "
        "networks learned the velocity v = b - D grad log rho of the flow that carries the same "
        "density.",
        [*parts, origin(command, {subject.label: _facts(subject) for subject in subjects})],
    )


def _facts(subject: Subject) -> dict[str, object]:
    return {
        "directory": subject.path,
        "seed": subject.config.seed,
        "steps": f"{subject.step:,} of {subject.config.steps:,}",
        "evaluated": f"{len(subject.snapshots):,} held-out samples",
        **environment(subject.kind("start")),
    }

"""Report of trained runs: pictures and numbers in one HTML page."""

import dataclasses
from pathlib import Path

import tyro

from egattn.report.figures import drawing
from egattn.report.output import PAGE, check_replaceable, replaced_report
from experiments.active_matter.report.page import draw, render
from experiments.active_matter.report.subject import read_subjects


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Which runs, and where the report goes."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories."""
    out: Path = Path("report/active_matter")
    """Directory to make; a report that is already there is replaced."""
    samples: int | None = None
    """Held-out snapshots of each run; by default as many as evaluations take."""
    seed: int = 1
    """Of the snapshots; the one that evaluations take."""

    def __post_init__(self):
        """Checks the values."""
        if self.samples is not None and self.samples < 16:
            raise ValueError(f"samples must be at least 16, got {self.samples}")


def write_report(config: ReportConfig) -> Path:
    """Writes `index.html`, and each figure as PNG or GIF with its data as CSV.

    Args:
      config: The runs and the directory to write.

    Returns:
      Path of the page.

    Raises:
      FileNotFoundError: If a run directory is missing, is not a run's, or has no checkpoint.
      ValueError: If a run is of something else, or `out` holds something else than a report.
      OSError: If `out` cannot be written.
    """
    check_replaceable(config.out.resolve())
    subjects = read_subjects(config.runs, config.samples, config.seed)
    command = ["python", "-m", "experiments.active_matter", "report", *map(str, config.runs)]
    command += ["--out", str(config.out)]
    if config.samples is not None:
        command += ["--samples", str(config.samples)]
    command += ["--seed", str(config.seed)]
    with replaced_report(config.out) as directory:
        with drawing():
            plots = draw(subjects)
            for plot in (plot for group in plots for plot in group):
                plot.write(directory)
        text = render(subjects, plots, directory, command)
        (directory / PAGE).write_text(text, encoding="utf-8")
    return config.out / PAGE

"""Report: figures and one HTML page from run directories."""

import dataclasses
from pathlib import Path

import tyro

from egattn.report.figures import draw, drawing
from egattn.report.output import PAGE, replaced_report
from egattn.report.page import render
from egattn.report.runs import load_runs
from egattn.report.summary import Row as Row
from egattn.report.summary import compare
from egattn.report.summary import comparison as comparison
from egattn.report.summary import summary_lines as summary_lines


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Compares runs in an HTML page with figures."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories; the first is the one that others are compared with."""
    out: Path = Path("report")
    """Directory to make; a report that is already there is replaced."""


def write_report(config: ReportConfig) -> Path:
    """Writes `index.html`, and each figure as PNG with its data as CSV.

    Args:
      config: The runs and the directory to write.

    Returns:
      Path of the page.

    Raises:
      FileNotFoundError: If a run directory is missing or is not a run's.
      ValueError: If a run's file is damaged, or `out` holds something else than a report.
      OSError: If `out` cannot be written.
    """
    logs = load_runs(config.runs)
    command = ["egattn", "report", *map(str, config.runs), "--out", str(config.out)]
    with replaced_report(config.out) as directory:
        with drawing():
            plots = draw(logs)
            for plot in plots:
                plot.write(directory)
        text = render(logs, compare(logs), plots, directory, command)
        (directory / PAGE).write_text(text, encoding="utf-8")
    return config.out / PAGE

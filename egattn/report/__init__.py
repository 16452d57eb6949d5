"""Report: figures and one HTML page from run directories."""

import dataclasses
import os
import tempfile
from pathlib import Path

import tyro

from egattn.report.figures import draw, drawing
from egattn.report.page import GENERATOR, render
from egattn.report.runs import load_runs
from egattn.report.summary import Row as Row
from egattn.report.summary import compare
from egattn.report.summary import comparison as comparison
from egattn.report.summary import summary_lines as summary_lines
from egattn.run.staging import staged_directory

_PAGE = "index.html"


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
    runs = load_runs(config.runs)
    out = config.out.resolve()
    _check_replaceable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    command = ["egattn", "report", *map(str, config.runs), "--out", str(config.out)]
    # The old report leaves last and in one step: until then it stays whole.
    with (
        tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.old.") as old,
        staged_directory(out) as staging,
    ):
        with drawing():
            plots = draw(runs)
            for plot in plots:
                plot.write(staging)
        text = render(runs, compare(runs), plots, staging, command)
        (staging / _PAGE).write_text(text, encoding="utf-8")
        if out.exists():
            os.replace(out, Path(old) / "report")
    return config.out / _PAGE


def _check_replaceable(out: Path) -> None:
    """Raises ValueError unless `out` is missing, empty, or made by this command alone."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f"expected a directory to write the report to, got the file {out}")
    entries = list(out.iterdir())
    if not entries:
        return
    index = out / _PAGE
    ours = index.is_file() and GENERATOR in index.read_text(encoding="utf-8", errors="replace")
    others = [e.name for e in entries if e != index and e.suffix not in (".png", ".csv")]
    if not ours or others:
        holds = ", ".join(sorted(others)[:3]) or "figures without a report's page"
        raise ValueError(f"{out} is neither empty nor only a report: it holds {holds}")

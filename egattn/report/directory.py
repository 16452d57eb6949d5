"""A report's directory, which replaces an older one in one step."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from egattn.report.html import generator_tag
from egattn.run.staging import staged_directory

PAGE = "index.html"
_SUFFIXES = (".png", ".csv", ".gif")


@contextlib.contextmanager
def report_directory(out: Path, generator: str) -> Iterator[Path]:
    """Gives a directory to fill with a page and figures, and renames it to `out` at the end.

    Args:
      out: What to make; missing, empty, or a report that the same program made.
      generator: Name of the program, as on its pages.

    Yields:
      The directory to fill.

    Raises:
      ValueError: If `out` holds something else than such a report.
      OSError: If it cannot be written.
    """
    target = out.resolve()
    _check_replaceable(target, generator)
    target.parent.mkdir(parents=True, exist_ok=True)
    # The old report leaves last and in one step: until then it stays whole.
    with (
        tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.old.") as old,
        staged_directory(target) as staging,
    ):
        yield staging
        if target.exists():
            os.replace(target, Path(old) / "report")


def _check_replaceable(out: Path, generator: str) -> None:
    """Raises ValueError unless `out` is missing, empty, or made by this program alone."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f"expected a directory to write the report to, got the file {out}")
    entries = list(out.iterdir())
    if not entries:
        return
    index = out / PAGE
    text = index.read_text(encoding="utf-8", errors="replace") if index.is_file() else ""
    ours = generator_tag(generator) in text
    others = [e.name for e in entries if e != index and e.suffix not in _SUFFIXES]
    if not ours or others:
        holds = ", ".join(sorted(others)[:3]) or "figures without a report's page"
        raise ValueError(f"{out} is neither empty nor only a report: it holds {holds}")

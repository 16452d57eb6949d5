"""The directory of a report, which replaces an older one and nothing else."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from egattn.report.document import GENERATOR
from egattn.run.staging import staged_directory

PAGE = "index.html"


@contextmanager
def replaced_report(out: Path) -> Iterator[Path]:
    """Gives a directory to fill with `PAGE`, pictures and data; at the end it is `out`.

    Args:
      out: Directory to make; a report that is already there is replaced, at once and whole.

    Yields:
      The directory to fill.

    Raises:
      ValueError: If `out` holds something else than a report.
      OSError: If `out` cannot be written.
    """
    out = out.resolve()
    check_replaceable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    # The old report leaves last and in one step: until then it stays whole. It is deleted once the
    # new one is there.
    with ExitStack() as stack, staged_directory(out) as staging:
        yield staging
        if out.exists():
            prefix = f".{out.name}.old."
            old = stack.enter_context(tempfile.TemporaryDirectory(dir=out.parent, prefix=prefix))
            os.replace(out, Path(old) / "report")


def check_replaceable(out: Path) -> None:
    """Raises ValueError unless `out` is missing, empty, or holds a report alone."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f"expected a directory to write the report to, got the file {out}")
    entries = list(out.iterdir())
    if not entries:
        return
    index = out / PAGE
    ours = index.is_file() and GENERATOR in index.read_text(encoding="utf-8", errors="replace")
    others = [e.name for e in entries if e != index and e.suffix not in (".png", ".gif", ".csv")]
    if not ours or others:
        holds = ", ".join(sorted(others)[:3]) or "figures without a report's page"
        raise ValueError(f"{out} is neither empty nor only a report: it holds {holds}")

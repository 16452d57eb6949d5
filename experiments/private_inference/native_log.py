"""SPU reports communication only in its log, which native code writes: catching and reading it."""

from __future__ import annotations

import ctypes
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

_SECTION = re.compile(r"\b(HLO|HAL|MPC) profiling:")
_ROW = re.compile(
    r"- (\S+), executed (\d+) times, duration ([\d.e+-]+)s, "
    r"send bytes (\d+) recv bytes (\d+), send actions (\d+), recv actions (\d+)"
)
_TOTAL = re.compile(
    r"Link details: total send bytes (\d+), recv bytes (\d+), "
    r"send actions (\d+), recv actions (\d+)"
)
_COUNTS = ("sent_bytes", "received_bytes", "messages", "received_messages")


def parse(text: str) -> dict[str, Any]:
    """Reads what one execution reported.

    Args:
        text: the log from before the execution to after it.

    Returns:
        The link's totals (`sent_bytes`, `received_bytes`, `messages`, `received_messages`) and
        `operations`: one list of rows per level, "HLO", "HAL" and "MPC". Each level counts all of
        the execution again in its own words, so they must never be added together.

    Raises:
        ValueError: if the text does not contain exactly one execution.
    """
    totals = _TOTAL.findall(text)
    if len(totals) != 1:
        raise ValueError(f"expected one 'Link details' line in SPU's log, got {len(totals)}")
    operations: dict[str, list[dict[str, Any]]] = {"HLO": [], "HAL": [], "MPC": []}
    level = ""
    for line in text.splitlines():
        if section := _SECTION.search(line):
            level = section[1]
        elif (row := _ROW.search(line)) and level:
            name, count, seconds, *counts = row.groups()
            operations[level].append(
                {"name": name, "count": int(count), "seconds": float(seconds)}
                | dict(zip(_COUNTS, map(int, counts), strict=True))
            )
    return dict(zip(_COUNTS, map(int, totals[0]), strict=True)) | {"operations": operations}


class NativeLog:
    """Sends what native code prints to a file, for the rest of the process.

    File descriptors 1 and 2 lead to the file; `sys.stdout` and `sys.stderr` still lead where they
    did. Nothing restores the descriptors: native threads outlive the last Python line, and their
    farewells belong in the file too.

    Args:
        path: where to keep the log; by default it vanishes with the process.
    """

    def __init__(self, path: Path | None = None):
        # Never closed: what goes on in it ends with the process.
        self._file = tempfile.TemporaryFile() if path is None else path.open("w+b")  # noqa: SIM115
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            getattr(sys, name).flush()
            kept = os.fdopen(os.dup(descriptor), "w", buffering=1, encoding="utf-8")
            os.dup2(self._file.fileno(), descriptor)
            setattr(sys, name, kept)

    def mark(self) -> int:
        """The log's present end."""
        ctypes.CDLL(None).fflush(None)
        return os.fstat(self._file.fileno()).st_size

    def since(self, mark: int) -> str:
        """What was written after a mark."""
        # pread: the offset of this open file is where the next native line goes.
        return os.pread(self._file.fileno(), self.mark() - mark, mark).decode(errors="replace")

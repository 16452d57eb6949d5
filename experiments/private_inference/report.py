"""The result, for people and as JSON."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from errors import Failure

TOP = 8
WITHHELD = (
    "costs are withheld because there is nothing to compare the output with: no client/expected.npz"
)


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    return {"cpu": _cpu_model(), "cores": os.cpu_count(), "platform": platform.platform()}


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions(spu_version: str) -> dict[str, str]:
    """What ran."""
    return {"spu": spu_version, "python": platform.python_version(), "numpy": np.__version__}


def utc_now() -> str:
    """The time, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def commit() -> str | None:
    """The commit of this program, with "-dirty" if its files differ; None if nobody knows."""
    try:
        name = _git("rev-parse", "--short", "HEAD")
        # Results that earlier runs left in this directory are no change of the program.
        changes = _git("status", "--porcelain", "--", ".", ":(exclude)results")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{name}-dirty" if changes else name


def _git(*words: str) -> str:
    # Without optional locks a run cannot get into the way of another git command.
    return subprocess.run(
        ["git", "--no-optional-locks", *words],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Writes the result whole or not at all, with the mode that any new file would have."""
    text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".egattn-private-") as directory:
            file = Path(directory, "result.json")
            file.write_text(text)
            os.replace(file, path)
    except OSError as error:
        raise Failure(f"--out {path}: {error.strerror}") from error


def table(result: dict[str, Any]) -> str:
    """The result as a person wants to see it."""
    network = result["network"]
    shaped = (
        f", {network['bandwidth_mbit']:g} Mbit/s and {network['round_trip_ms']:g} ms round trip"
        if network
        else ""
    )
    lines = [
        f"{result['name']}: {result['protocol']}, {result['parties']} parties, "
        f"{result['link']} link{shaped}",
        "",
        *(_costs(result["runs"]) + _check(result["check"]) if result["check"] else [WITHHELD]),
    ]
    if result["next_token"]:
        lines.append(f"next token: {result['next_token']['text']!r}")
    return "\n".join(lines)


def _costs(runs: list[dict[str, Any]]) -> list[str]:
    lines = [
        f"{'run':6}{'MB sent':>12}{'MB received':>13}{'messages':>10}{'seconds':>10}{'CPU s':>10}"
    ]
    for run in runs:
        lines.append(
            f"{run['run']:6}{run['sent_bytes'] / 1e6:12.3f}{run['received_bytes'] / 1e6:13.3f}"
            f"{run['messages']:10d}{run['seconds']:10.2f}{run['cpu_seconds']:10.2f}"
        )
    return lines + _operations(runs[-1])


def _operations(run: dict[str, Any]) -> list[str]:
    rows = sorted(
        run["operations"]["HLO"],
        key=lambda row: row["sent_bytes"] + row["received_bytes"],
        reverse=True,
    )
    lines = [
        "",
        f"{'operation, ' + run['run'] + ' run':30}{'MB':>12}{'messages':>10}{'seconds':>10}",
    ]
    for row in rows[:TOP]:
        megabytes = (row["sent_bytes"] + row["received_bytes"]) / 1e6
        lines.append(
            f"{row['name']:30}{megabytes:12.3f}{row['messages']:10d}{row['seconds']:10.2f}"
        )
    return lines


def _check(check: dict[str, Any]) -> list[str]:
    lines = [
        "",
        f"max error {check['max_error']:.3g} of {check['largest_expected']:.3g} "
        f"({check['relative_error']:.2%}, bound {check['bounds']['max_error']:.2%})",
    ]
    if check["agreement"]:
        agreeing, positions = check["agreement"]
        lines.append(f"argmax agreement {agreeing}/{positions}")
    return lines

"""The result, for people and as JSON."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from errors import Failure

TOP = 8


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


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Writes the result whole or not at all."""
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(result, file, indent=1, allow_nan=False)
            file.write("\n")
        os.chmod(file.name, 0o644)  # temporary files are private; a result is not
        os.replace(file.name, path)
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
        f"{'run':6}{'MB sent':>12}{'MB received':>13}{'messages':>10}{'seconds':>10}{'CPU s':>10}",
    ]
    for run in result["runs"]:
        lines.append(
            f"{run['run']:6}{run['sent_bytes'] / 1e6:12.3f}{run['received_bytes'] / 1e6:13.3f}"
            f"{run['messages']:10d}{run['seconds']:10.2f}{run['cpu_seconds']:10.2f}"
        )
    return "\n".join(lines + _operations(result["runs"][-1]) + _check(result))


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


def _check(result: dict[str, Any]) -> list[str]:
    check = result["check"]
    lines = [
        "",
        f"max error {check['max_error']:.3g} of {check['largest_expected']:.3g} "
        f"({check['relative_error']:.2%}, bound {check['bounds']['max_error']:.2%})",
    ]
    if check["agreement"]:
        agreeing, positions = check["agreement"]
        lines.append(f"argmax agreement {agreeing}/{positions}")
    if result["next_token"]:
        lines.append(f"next token: {result['next_token']['text']!r}")
    return lines

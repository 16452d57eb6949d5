"""Results of a measurement as a Markdown table and JSON, with what produced them."""

import dataclasses
import json
import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax


def jax_about() -> dict[str, str]:
    """Devices and versions of a measurement that runs on JAX."""
    return {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
    }


def write_table(
    name: str,
    config: Any,
    rows: list[dict[str, Any]],
    out: Path | None,
    about: dict[str, str] | None = None,
) -> None:
    """As `save_table`, and prints the table."""
    print(save_table(name, config, rows, out, about), flush=True)


def save_table(
    name: str,
    config: Any,
    rows: list[dict[str, Any]],
    out: Path | None,
    about: dict[str, str] | None = None,
) -> str:
    """Returns the rows as Markdown; with `out`, also writes NAME.md and NAME.json there.

    Args:
      name: Name of the files.
      config: Dataclass with the options, its seed among them.
      rows: One dict per row; a column that a row lacks stays empty.
      out: Directory, made if missing.
      about: Device and versions; default: those of JAX.
    """
    header = {
        **(about or jax_about()),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "commit": commit(),
        "config": dataclasses.asdict(config),
    }
    text = markdown(rows) + "\n" + ", ".join(f"{key}: {value}" for key, value in header.items())
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.md").write_text(text + "\n", encoding="utf-8")
        data = json.dumps({**header, "rows": rows}, indent=2, default=str)
        (out / f"{name}.json").write_text(data + "\n", encoding="utf-8")
    return text


def markdown(rows: list[dict[str, Any]]) -> str:
    """A Markdown table with the columns of all rows, in order of first appearance."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(row.get(c, "")) for c in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    low, _, high = statistics.quantiles(values, n=4)
    return low, statistics.median(values), high


def digits(value: float, significant: int = 3) -> float:
    """Rounds to so many significant digits."""
    return float(f"{value:.{significant}g}")


def commit() -> str:
    """The commit measured; GIT_COMMIT says it where the code is a copy without its history."""
    if "GIT_COMMIT" in os.environ or shutil.which("git") is None:
        return os.environ.get("GIT_COMMIT", "unknown")
    result = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or "unknown"

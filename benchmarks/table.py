"""Results of a benchmark as a Markdown table and JSON, with what produced them."""

import dataclasses
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax


def write_table(name: str, config: Any, rows: list[dict[str, Any]], out: Path | None) -> None:
    """Prints the rows as Markdown; with `out`, also writes NAME.md and NAME.json there."""
    about = {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "jax": jax.__version__,
        "commit": _commit(),
        "config": dataclasses.asdict(config),
    }
    header = list(rows[0])
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(str(row[key]) for key in header) + " |" for row in rows]
    lines += ["", ", ".join(f"{key}: {value}" for key, value in about.items())]
    text = "\n".join(lines) + "\n"
    print(text)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.md").write_text(text, encoding="utf-8")
        data = json.dumps({**about, "rows": rows}, indent=2, default=str)
        (out / f"{name}.json").write_text(data + "\n", encoding="utf-8")


def _commit() -> str:
    result = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or "unknown"

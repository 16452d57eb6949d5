"""Shows what a compiled step needs, as tables or JSON."""

import dataclasses
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from egattn.compile.plan import Plan

GIB = 2**30


def to_json(result: Any) -> str:
    """Returns plans as indented JSON."""
    plain = [dataclasses.asdict(p) for p in result] if isinstance(result, list) else None
    return json.dumps(dataclasses.asdict(result) if plain is None else plain, indent=2)


def verdict(plan: Plan) -> str:
    """Whether it fits, and by how much."""
    needed, hbm = plan.needed_bytes / GIB, plan.hbm_bytes / GIB
    if plan.memory is None:
        return f"does not fit: needs {needed:.2f} GiB of {hbm:.2f} GiB"
    if not plan.fits:
        return f"compiles and does not fit: needs {needed:.2f} GiB of {hbm:.2f} GiB"
    return f"compiles and fits: {needed:.2f} GiB of {hbm:.2f} GiB, {hbm - needed:.2f} GiB free"


def show(plan: Plan) -> None:
    """Prints one plan."""
    console = Console(highlight=False, soft_wrap=True)
    mesh = ", ".join(f"{axis}={size}" for axis, size in plan.mesh.items())
    console.print(f"{plan.topology}: {plan.chips:,} x {plan.chip} ({mesh})")
    console.print(verdict(plan))

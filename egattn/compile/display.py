"""Shows what a compiled step needs, as tables or JSON."""

import dataclasses
import json

from rich.console import Console
from rich.table import Table

from egattn.compile.plan import Plan
from egattn.compile.search import Search

_GIB, _MIB = 2**30, 2**20


def to_json(result: Plan | Search) -> str:
    """Returns the result as indented JSON; sizes in bytes, times in seconds."""
    return json.dumps(dataclasses.asdict(result), indent=2)


def verdict(plan: Plan) -> str:
    """Whether it fits, and by how much."""
    needed, hbm = plan.needed_bytes / _GIB, plan.hbm_bytes / _GIB
    if plan.fits:
        return f"compiles and fits: {needed:.2f} GiB of {hbm:.2f} GiB, {hbm - needed:.2f} GiB free"
    kind = "does not fit" if plan.memory is None else "compiles and does not fit"
    return f"{kind}: needs {needed:.2f} GiB of {hbm:.2f} GiB, {needed - hbm:.2f} GiB too much"


def mesh_text(plan: Plan) -> str:
    """The mesh as `--mesh` takes it, axes of size 1 left out."""
    return ",".join(f"{axis}={size}" for axis, size in plan.mesh.items() if size > 1)


def show(plan: Plan) -> None:
    """Prints one plan."""
    console = _console()
    per_chip = plan.batch_size / plan.chips
    for line in (
        f"chips: {plan.topology} = {plan.chips:,} x {plan.chip}, mesh {mesh_text(plan)}",
        f"model: {plan.preset}, {plan.parameters:,} parameters",
        f"batch: {plan.batch_size:,} sequences of {plan.context_length} tokens, {per_chip:g} per "
        f"chip, in {plan.accumulation} microbatches",
        f"FLOPs per step: {plan.flops:.4g}, per chip {plan.flops_per_chip:.4g} "
        f"({1e3 * plan.compute_seconds:.2f} ms at the bfloat16 peak)",
        f"{'compiled in' if plan.memory else 'XLA gave up after'} "
        f"{plan.compile_seconds:.1f} s (effort {plan.effort}, jax {plan.jax}, "
        f"libtpu {plan.libtpu})",
    ):
        console.print(line)
    console.print(_memory_table(plan))
    if plan.memory is not None:
        console.print(_collectives_table(plan))
    if plan.collectives.uncertain:
        console.print(
            f"{plan.collectives.uncertain} collectives in loops of unknown length count once"
        )
    console.print(verdict(plan))


def show_search(found: Search) -> None:
    """Prints a search's plans, best first, and how many meshes were not compiled."""
    columns = ("mesh", "state GiB", "needed GiB", "free GiB", "sent MiB", "comm ms", "compute ms")
    table = Table(*columns, box=None, pad_edge=False)
    for plan in found.plans:
        table.add_row(
            mesh_text(plan),
            f"{plan.state_bytes / _GIB:.2f}",
            f"{plan.needed_bytes / _GIB:.2f}",
            f"{(plan.hbm_bytes - plan.needed_bytes) / _GIB:.2f}",
            f"{plan.collectives.traffic / _MIB:,.0f}" if plan.memory else "",
            f"{1e3 * plan.communication_seconds:.1f}" if plan.memory else "",
            f"{1e3 * plan.compute_seconds:.1f}",
        )
    console = _console()
    console.print(table)
    fitting = sum(plan.fits for plan in found.plans)
    console.print(
        f"{fitting} of {len(found.plans)} meshes compiled fit; not compiled: {found.too_large} "
        f"whose state alone is too large, {found.not_tried} beyond --search-limit"
    )


def _console() -> Console:
    # Into a file rich assumes 80 columns and would cut cells.
    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=120)


def _memory_table(plan: Plan) -> Table:
    table = Table("memory per chip", "GiB", box=None, pad_edge=False)
    rows = {"state (by its shapes)": plan.state_bytes}
    if plan.memory is not None:
        rows |= {
            "arguments": plan.memory.arguments,
            "outputs not aliased": plan.memory.outputs,
            "temporaries": plan.memory.temporaries,
            "code": plan.memory.code,
        }
    rows |= {"needed": plan.needed_bytes, "HBM": plan.hbm_bytes}
    for name, size in rows.items():
        table.add_row(name, f"{size / _GIB:.3f}")
    return table


def _collectives_table(plan: Plan) -> Table:
    columns = ("collectives per chip and step", "count", "MiB", "sent MiB")
    table = Table(*columns, box=None, pad_edge=False)
    for kind, volume in plan.collectives.kinds.items():
        size, traffic = volume.bytes / _MIB, volume.traffic / _MIB
        table.add_row(kind, f"{volume.count:,}", f"{size:,.1f}", f"{traffic:,.1f}")
    total, traffic = plan.collectives.bytes / _MIB, plan.collectives.traffic / _MIB
    table.add_row("all", "", f"{total:,.1f}", f"{traffic:,.1f}")
    return table

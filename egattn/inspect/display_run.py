"""Shows what `inspect` finds in a run."""

from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from egattn.inspect.found_run import (
    Checkpoints,
    DataOfRun,
    Evaluation,
    FromHuggingFace,
    FromSeed,
    Origin,
    Parameters,
    RunFound,
    Spread,
)
from egattn.inspect.layout import number, short, show_facts, table

if TYPE_CHECKING:
    from egattn.train.config import PenaltyConfig


def show_run(console: Console, found: RunFound) -> None:
    """Prints what a run is."""
    console.print(f"{found.path}: a run of {found.preset}", soft_wrap=True)
    show_facts(console, found.architecture)
    facts = {
        "penalty": _penalty(found.penalty),
        "started from": _origin(found.initialised_from),
        "data": _data(found.data),
        "checkpoints": _checkpoints(found.checkpoints),
    }
    show_facts(console, facts)
    for problem in found.checkpoints.problems:
        show_facts(console, {"": problem})
    if found.parameters is not None:
        console.print(
            f"\nstep {found.step:,} of {found.steps:,}, {found.tokens_seen:,} tokens seen, "
            + _count(found.parameters)
        )
        _parameters(console, found.parameters)
    if found.learned:
        _learned(console, found.learned)
    if found.evaluation is None:
        console.print("\nno evaluation logged")
    else:
        _evaluation(console, found.evaluation)


def _penalty(penalty: "PenaltyConfig") -> str:
    if not penalty.weight:
        return "off"
    rising = f" from {penalty.warmup:.0%} of the steps on" if penalty.warmup else ""
    return (
        f"{penalty.kind}, {penalty.reduction}, weight {penalty.weight:g}{rising}, "
        f"tolerance {penalty.tolerance:g} of the {penalty.ceiling} ceiling"
    )


def _origin(origin: Origin) -> str:
    if isinstance(origin, FromSeed):
        return f"random parameters, seed {origin.seed}"
    if isinstance(origin, FromHuggingFace):
        return f"a Hugging Face model, its other files in {origin.path}"
    return f"weights of {origin.path}, checkpoint's checksum {short(origin.sha256)}"


def _data(data: DataOfRun) -> str:
    state = {
        "missing": "not there",
        "damaged": f"damaged: {data.problem}",
        "other": "now other data",
        "present": "there, not trained on",
        "same": "there, the same",
    }[data.state]
    if data.state == "same":
        state += ", checksums compared" if data.verified else " by manifest and sizes"
    checksum = f", checksum {short(data.sha256)}" if data.sha256 else ""
    return f"{data.path}{checksum}: {state}"


def _checkpoints(saved: Checkpoints) -> str:
    steps = ", ".join(map(str, saved.steps)) or "none"
    if saved.newest is None:
        return steps
    kind = "newest intact" if saved.checked else "newest complete, checksums not compared"
    return f"{steps}; {kind}: {saved.newest}"


def _count(parameters: Parameters) -> str:
    unused = f", {parameters.padding:,} of them padding" if parameters.padding else ""
    return f"{parameters.count:,} parameters{unused}"


def _parameters(console: Console, parameters: Parameters) -> None:
    sizes = [variable.size for variable in parameters.table if variable.size is not None]
    bad = any(size.nonfinite for size in sizes)
    columns = ["parameter", "layers", "shape", "type", "elements"]
    columns += ["L2 norm", "RMS"] * bool(sizes) + ["not finite"] * bad
    cells = []
    for x in parameters.table:
        shape = "x".join(map(str, x.shape)) or "scalar"
        line = [x.name, x.layers or "", shape, x.dtype, f"{x.elements:,}"]
        if x.size is not None:
            line += [number(x.size.norm), number(x.size.rms)] + [f"{x.size.nonfinite:,}"] * bad
        cells.append(line)
    console.print(table(columns, cells, left=(0, 1, 2, 3)))
    if sizes and not bad:
        console.print("all numbers are finite")


def _learned(console: Console, learned: dict[str, list[Spread]]) -> None:
    """A row per layer, a column per quantity."""
    layers: dict[int | None, dict[str, str]] = {}
    for name, spreads in learned.items():
        for spread in spreads:
            layers.setdefault(spread.layer, {})[name] = _spread(spread)
    order = sorted(layers, key=lambda layer: -1 if layer is None else layer)
    cells = [
        ["all" if layer is None else str(layer)] + [layers[layer].get(x, "") for x in learned]
        for layer in order
    ]
    console.print("\nlearned; least/median/largest where a layer has several")
    console.print(table(["layer", *learned], cells))


def _spread(spread: Spread) -> str:
    least, median, largest = map(number, (spread.min, spread.median, spread.max))
    # Of numbers that are not finite it says so once.
    alike = spread.min == spread.max or least == "not finite"
    return least if alike else f"{least}/{median}/{largest}"


def _evaluation(console: Console, found: Evaluation) -> None:
    console.print(
        f"\nlast evaluation, step {found.step:,}, {found.windows:,} windows: loss "
        f"{number(found.loss, '.4f')} nats/token, perplexity {number(found.perplexity, '.3f')}, "
        f"bits/byte {number(found.bits_per_byte, '.4f')}"
    )
    top, heads, counts = found.max_entropy, found.head_entropy, found.range_counts
    console.print(
        f"attention entropy, nats; ceiling log T = {top:.3f}, a causal head that attends to all "
        f"alike has {found.uniform_entropy:.3f}"
    )
    columns = ["layer", "mean", "% of ceiling", "lowest head", "highest head", "not finite"]
    console.print(table(columns, [_entropy_row(i, row, top) for i, row in enumerate(heads)]))
    largest = heads[np.isfinite(heads)].max(initial=0.0)
    console.print(
        f"heads per quarter of the largest, {largest:.3f}: {' '.join(map(str, counts))} of "
        f"{heads.size}; {counts[0]} near collapse, {counts[3]} near overload"
    )


def _entropy_row(layer: int, heads: np.ndarray, ceiling: float) -> list[str]:
    finite = heads[np.isfinite(heads)]
    if not finite.size:
        return [str(layer), "", "", "", "", str(heads.size)]
    share = f"{100 * finite.mean() / ceiling:.1f}" if ceiling else ""
    low, high = f"{finite.min():.3f}", f"{finite.max():.3f}"
    return [str(layer), f"{finite.mean():.3f}", share, low, high, str(heads.size - finite.size)]

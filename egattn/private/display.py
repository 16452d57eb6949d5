"""Shows what private inference costs, as tables or JSON."""

import dataclasses
import json
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from egattn.private.cost import Cost, Nonlinearity, cost
from egattn.private.paper import PAPER, billions

_SYMBOLS = {"softmax": "SM", "layer_norm": "LN", "gelu": "G", "relu": "R", "leaky_relu": "LR"}


def to_json(result: Cost) -> str:
    """Returns the counts as indented JSON."""
    return json.dumps(dataclasses.asdict(result), indent=2)


def paper_json() -> str:
    """Returns the paper's rows, each with what is counted here, as indented JSON."""
    rows = [
        {**dataclasses.asdict(row), "counted": dataclasses.asdict(cost(row.config))}
        for row in PAPER
    ]
    return json.dumps(rows, indent=2)


def show(result: Cost) -> None:
    """Prints one network's counts."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"nonlinear operations: {operations(result.nonlinearities)}")
    if result.final:
        console.print(f"after the blocks: {operations(result.final)}")
    flops, parameters = dataclasses.asdict(result.flops), result.parameters
    table = Table("FLOPs of one sequence", "10^9", box=None, pad_edge=False)
    for name, value in flops.items():
        table.add_row(name, f"{value / 1e9:,.2f}")
    console.print(table)
    table = Table("parameters", "", box=None, pad_edge=False)
    for name, count in {**parameters, "all": sum(parameters.values())}.items():
        table.add_row(name, f"{count:,}")
    console.print(table)


def show_paper() -> None:
    """Prints the paper's tables beside what is counted here; GB and minutes are the paper's."""
    columns = ("table", "net", "#nonlinear operations", "FLOPs FFN", "paper", "attention", "paper")
    table = Table(*columns, "paper's GB", "paper's min", box=None, pad_edge=False)
    for row in PAPER:
        counted = cost(row.config)
        table.add_row(
            str(row.table),
            row.net,
            operations(counted.nonlinearities),
            f"{billions(counted.flops.feed_forward)}B",
            f"{row.feed_forward}B",
            f"{billions(counted.flops.attention)}B",
            f"{row.attention}B",
            f"{row.gigabytes:.2f}",
            f"{row.minutes:.2f}",
        )
    Console(highlight=False, soft_wrap=True, width=160).print(table)


def operations(nonlinearities: Iterable[Nonlinearity]) -> str:
    """Nonlinear operations as the paper's tables print them."""
    return ", ".join(
        f"{_SYMBOLS[n.kind]} {n.count}×R^{{{n.shape[0]}×{n.shape[1]}}}"  # noqa: RUF001
        for n in nonlinearities
    )

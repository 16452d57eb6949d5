"""Shows what private inference costs, as tables or JSON."""

import dataclasses
import json
from collections.abc import Iterable
from typing import Any

from rich.table import Table

from egattn.model import DecoderConfig
from egattn.private.communication import Communication, calibration, communication
from egattn.private.cost import Nonlinearity, cost
from egattn.private.paper import PAPER, billions
from egattn.private.program import Gelu
from egattn.run.console import PlainConsole

_SYMBOLS = {"softmax": "SM", "layer_norm": "LN", "gelu": "G", "relu": "R", "leaky_relu": "LR"}


def to_json(config: DecoderConfig, gelu: Gelu) -> str:
    """Returns one network's counts and estimates as indented JSON."""
    return json.dumps(_as_dict(config, gelu), indent=2)


def paper_json() -> str:
    """Returns the paper's rows, each with counts and estimates, as indented JSON."""
    rows = [{**dataclasses.asdict(row), "counted": _as_dict(row.config)} for row in PAPER]
    return json.dumps(rows, indent=2)


def _as_dict(config: DecoderConfig, gelu: Gelu = "tanh") -> dict[str, Any]:
    estimate = communication(config, gelu)
    return {
        **dataclasses.asdict(cost(config)),
        "estimated_communication": {**dataclasses.asdict(estimate), "bytes": estimate.bytes},
        "estimated_from": calibration()["provenance"],
    }


def show(config: DecoderConfig, gelu: Gelu) -> None:
    """Prints one network's counts and estimates."""
    result = cost(config)
    console = PlainConsole(soft_wrap=True)
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
    console.print(_traffic_table(communication(config, gelu)))
    source = calibration()["provenance"]
    console.print(
        f"estimated from operations measured under {source['protocol']}, SPU "
        f"{source['versions']['spu']}, with 128 positions of width 768; "
        "docs/private_inference.md compares estimates with whole networks"
    )


def _traffic_table(estimate: Communication) -> Table:
    table = Table("communication, estimated", "count", "MB each", "MB", box=None, pad_edge=False)
    for t in (*estimate.blocks, estimate.embedding, estimate.head):
        # The sign of the paper's tables, which is no x.
        sizes = "×".join(map(str, t.sizes))  # noqa: RUF001 - a product sign
        each, together = (f"{bytes / 1e6:,.2f}" for bytes in (t.bytes, t.count * t.bytes))
        table.add_row(f"{t.part} {sizes}", str(t.count), each, together)
    table.add_row("all", "", "", f"{estimate.bytes / 1e6:,.2f}")
    table.add_row("keys, once per connection", "", "", f"{estimate.setup / 1e6:,.2f}")
    return table


def show_paper() -> None:
    """Prints the paper's tables beside what is counted and estimated here."""
    columns = ("table", "net", "#nonlinear operations", "FLOPs FFN", "paper", "attention", "paper")
    table = Table(*columns, "est. GB", "paper's GB", "paper's min", box=None, pad_edge=False)
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
            f"{communication(row.config).bytes / 1e9:.2f}",
            f"{row.gigabytes:.2f}",
            f"{row.minutes:.2f}",
        )
    PlainConsole(soft_wrap=True, width=160).print(table)


def operations(nonlinearities: Iterable[Nonlinearity]) -> str:
    """Nonlinear operations as the paper's tables print them."""
    # Their sign, which is no x.
    return ", ".join(
        f"{_SYMBOLS[n.kind]} {n.count}×R^{{{n.shape[0]}×{n.shape[1]}}}"  # noqa: RUF001 - a product sign
        for n in nonlinearities
    )

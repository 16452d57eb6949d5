"""What the paper's tables say about the cost of private inference."""

import dataclasses
import decimal
from typing import Any

from egattn.model import DecoderConfig


@dataclasses.dataclass(frozen=True)
class PaperRow:
    """One row of the paper's Tables 3, 4, 7 and 8: GPT-2 small's width, one forward pass."""

    table: int
    """Number of the table."""
    net: str
    """The paper's name of the network."""
    config: DecoderConfig
    """The same network."""
    feed_forward: str
    """FLOPs of the feed-forward, billions as printed."""
    attention: str
    """FLOPs of attention, billions as printed."""
    gigabytes: float
    """Communication."""
    minutes: float
    """Latency at 100 Mbit/s and 80 ms."""


def billions(value: int) -> str:
    """A number in billions with the paper's digits.

    The paper rounds to two decimals and then, half up, to one: 7.248 is printed as 7.3.
    """
    exact = decimal.Decimal(value) / 10**9
    for digits in ("0.01", "0.1"):
        exact = exact.quantize(decimal.Decimal(digits), decimal.ROUND_HALF_UP)
    return str(exact)


def _row(
    table: int, net: str, preset: str, flops: str, gigabytes: float, minutes: float, **fields: Any
) -> PaperRow:
    feed_forward, attention = flops.split("/")
    config = DecoderConfig.preset(preset, **fields)
    return PaperRow(table, net, config, feed_forward, attention, gigabytes, minutes)


def _without_deep(layers: int, removed: int) -> dict[str, Any]:
    """A network whose deepest layers have no feed-forward."""
    kinds = ("fused",) * (layers - removed) + ("none",) * removed
    return {"num_layers": layers, "feed_forward": kinds}


PAPER: tuple[PaperRow, ...] = (
    _row(3, "SM+LN+G", "sm_ln_g", "14.5/7.7", 25.32, 8.21),
    _row(3, "SM+LN+R", "sm_ln_r", "14.5/7.7", 9.44, 6.06),
    _row(3, "SM+ScFFN", "sm_scffn", "14.5/7.7", 6.95, 5.68),
    _row(3, "SM+ScFuFFN", "sm_scfuffn", "1.8/7.7", 6.43, 4.76),
    _row(3, "EReg(SM(t)+ScFuFFN)", "ereg_sm_t_scfuffn", "1.8/7.7", 6.43, 4.76),
    _row(3, "SM+ScFuFFN_6", "sm_scfuffn", "0.9/7.7", 6.29, 4.23, **_without_deep(12, 6)),
    _row(4, "SM+LN+G", "sm_ln_g", "58.0/36.2", 145.24, 30.74, context_length=512),
    _row(4, "SM+LN+R", "sm_ln_r", "58.0/36.2", 81.71, 23.54, context_length=512),
    _row(4, "SM+ScFuFFN", "sm_scfuffn", "7.3/36.2", 69.68, 19.44, context_length=512),
    _row(7, "SM+LN+G", "sm_ln_g", "29.0/16.3", 58.51, 16.57, context_length=256),
    _row(7, "SM+LN+R", "sm_ln_r", "29.0/16.3", 26.73, 12.59, context_length=256),
    _row(7, "SM+ScFuFFN", "sm_scfuffn", "3.6/16.3", 20.72, 10.45, context_length=256),
    _row(
        7,
        "SM+ScFuFFN_6",
        "sm_scfuffn",
        "1.8/16.3",
        20.59,
        10.32,
        context_length=256,
        **_without_deep(12, 6),
    ),
    _row(8, "SM+LN+G", "sm_ln_g", "21.7/11.6", 37.17, 10.77, num_layers=18),
    _row(8, "SM+LN+R", "sm_ln_r", "21.7/11.6", 13.34, 8.04, num_layers=18),
    _row(8, "SM+ScFuFFN", "sm_scfuffn", "2.7/11.6", 8.83, 6.07, num_layers=18),
    _row(8, "SM+ScFuFFN_4", "sm_scfuffn", "2.1/11.6", 8.79, 5.85, **_without_deep(18, 4)),
)
"""Tables 3 and 8 have 128 tokens, 7 has 256, 4 has 512; GB and minutes include embedding and head,
FLOPs do not."""

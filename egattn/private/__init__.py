"""What private inference of a decoder costs."""

from egattn.private.config import CostConfig
from egattn.private.cost import Cost, Flops, Nonlinearity, cost
from egattn.private.paper import PAPER, PaperRow, billions

__all__ = [
    "PAPER",
    "Cost",
    "CostConfig",
    "Flops",
    "Nonlinearity",
    "PaperRow",
    "billions",
    "cost",
]

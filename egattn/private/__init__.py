"""Private inference of a decoder: what it costs, and programs for two parties."""

from egattn.private.communication import Communication, Traffic, communication
from egattn.private.config import CostConfig
from egattn.private.cost import Cost, Flops, Nonlinearity, cost
from egattn.private.paper import PAPER, PaperRow, billions

__all__ = [
    "PAPER",
    "Communication",
    "Cost",
    "CostConfig",
    "Flops",
    "Nonlinearity",
    "PaperRow",
    "Traffic",
    "billions",
    "communication",
    "cost",
]

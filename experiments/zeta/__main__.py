"""Cross-entropy search on zeta: zeros with proofs, a control, rare events, what rounding does.

python -m experiments.zeta demo
python -m experiments.zeta zeros --box 0.05 0.95 10 102 --json
python -m experiments.zeta control --box 0.05 0.95 80 90
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import tyro

from egattn.run import command_line
from experiments.zeta import zeros
from experiments.zeta.box import Box
from experiments.zeta.functions import DAVENPORT_HEILBRONN, ZETA
from experiments.zeta.statement import LIMITS

Numbers = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Zeros:
    """Zeros of zeta in a box, their number and each of them proved."""

    box: Numbers = (0.05, 0.95, 10.0, 102.0)
    """sigma from and to, t from and to."""
    seed: int = 0
    """Decides every draw."""
    evaluator: zeros.Method = "auto"
    """How zeta is computed."""
    json: bool = False
    """Print one object."""

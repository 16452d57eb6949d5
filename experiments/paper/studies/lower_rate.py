"""Nets that diverge at the shared rates, and those to hold them against, at a lower peak.

    python -m experiments.paper run lower_rate

The best rates of the study `rates` for SM and weight norm. As in the paper's Tables 2, 3, 5, 6 and
8. An H100, two runners: about 50 minutes. Expected at 20 M tokens: SM+LN+G 42.9 ± 0.3, weight norm,
ScFFN and SM 6 to 8 % above it, spectral norm 19 %, SM+G 23 %, ScFuFFN 32 %, SM+R 41 %; nothing
diverges.
"""

import dataclasses

from experiments.paper.studies import depth, normalization, relu, verdicts
from experiments.paper.study import LOWER, Training, main_rows

_PAPER = {
    "sm_ln_g": 2.69,
    "sm_r": 2.94,
    "sm_g": 3.20,
    "sm": None,
    "sm_wnorm": 3.640,
    "sm_snorm": 3.624,
    "sm_scffn": 3.50,
    "sm_scfuffn": 3.48,
}


def _lower(training: Training) -> Training:
    return dataclasses.replace(training, net=f"{training.net}-{LOWER.name}", rates=LOWER)


_TRAININGS = (
    *main_rows(_PAPER),
    *normalization.GROUPS,
    *(training for training in relu.SLOPES if training.preset == "sm_r"),
    *depth.TRAININGS,
)
# One of the verdicts' is a main row as well.
TRAININGS = tuple(dict.fromkeys((*map(_lower, _TRAININGS), *verdicts.LOWER_TRAININGS)))

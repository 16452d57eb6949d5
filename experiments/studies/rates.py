"""Learning rate and warm-up per family: the grid by which the recipe of the others was chosen.

python -m experiments.run rates
"""

from experiments.study import Rates, Training

_FAMILIES = ("sm_ln_g", "sm_ln", "sm_r", "sm", "sm_wnorm", "sm_scfuffn")
_GRID = tuple(Rates(rate, warmup) for rate in ("1e-3", "3e-4") for warmup in ("0.05", "0.3"))
RUNS = tuple(
    Training(f"{net}-lr{rates.learning_rate}-w{rates.warmup}", net, rates=rates)
    for net in _FAMILIES
    for rates in _GRID
)

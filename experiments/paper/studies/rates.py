"""Learning rate, warm-up and second moment: the grid by which the recipe of the others is chosen.

    python -m experiments.paper run rates

An H100, two runners: about 22 minutes. Expected: SM and weight norm diverge at 1e-3 (but for one
that is worse) and are best at 3e-4 with 30 % warm-up and b2 = 0.999; the others are best at 1e-3
with 30 % warm-up, or within 3 % of it: SM+LN+G 27.6, SM+LN 38.7, SM+R 43.1, SM+ScFuFFN 32.7.
"""

from experiments.paper.study import Rates, Training

_NETS = ("sm_ln_g", "sm_ln", "sm_r", "sm", "sm_wnorm", "sm_scfuffn")
_GRID = (
    *(Rates(rate, warmup) for rate in ("1e-3", "3e-4") for warmup in ("0.05", "0.3")),
    # .999 remembers more steps than 20 M tokens have.
    Rates("1e-3", "0.05", b2="0.95"),
    Rates("1e-3", "0.3", b2="0.95"),
    Rates("3e-4", "0.3", b2="0.95"),
)
TRAININGS = tuple(
    Training(f"{net}-{rates.name}", net, rates=rates) for net in _NETS for rates in _GRID
)

"""How long the warm-up must be, and whether its share of the steps or their number decides.

    python -m experiments.paper run warmup

At 1e-3: 5, 10, 20 and 30 % of 306 steps are 15, 31, 61 and 92 steps; 5 % of 1,526 are 76. What the
study `rates` has is not trained again. An H200, two runners: about 5 minutes. Expected at 20 M
tokens: SM+LN+G 56.5, 38.4, 30.1, 27.6; SM+ScFuFFN 45.2, 38.2, 32.6, 32.7.
"""

from experiments.paper.study import MILLION, Rates, Training

_NETS = ("sm_ln_g", "sm_scfuffn")


def _trainings(tokens: int, shares: tuple[str, ...]) -> list[Training]:
    grid = [Rates("1e-3", share) for share in shares]
    return [
        Training(f"{net}-{rates.name}", net, tokens=tokens * MILLION, rates=rates)
        for net in _NETS
        for rates in grid
    ]


TRAININGS = (*_trainings(20, ("0.05", "0.1", "0.2", "0.3")), *_trainings(100, ("0.05", "0.3")))

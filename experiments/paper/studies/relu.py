"""Leaky ReLUs whose slopes are learned, with and without LayerNorm: ReLU's Revival.

    python -m experiments.paper run relu

An H100, two runners: about 5 minutes. Expected: with LayerNorm one slope per model or layer falls
from 0.25 to 0.15 to 0.22, and the nets are 7 to 10 % above ReLU; without it they diverge.

Source: Jha & Reagen, arXiv 2410.09637: without LayerNorm the slopes go to 0, that is, to ReLU.
"""

from experiments.paper.study import Training

_PAPER = {"sm_ln_g": 2.69, "sm_ln_r": 2.76, "sm_g": 3.20, "sm_r": 2.94}
_LEARNED = "--model.activation leaky_relu --model.slope-scope"
SLOPES = tuple(
    Training(f"{net}-{scope}_slopes", net, f"{_LEARNED} {scope}")
    for net in ("sm_ln_r", "sm_r")
    for scope in ("model", "layer", "feature")
)
TRAININGS = (*(Training(net, net, paper=value) for net, value in _PAPER.items()), *SLOPES)

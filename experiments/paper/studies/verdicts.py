"""What three seeds at 100 M tokens say of the verdicts that one seed left open.

    python -m experiments.paper run verdicts

The registered plan is docs/registered.md. Eight nets at the shared rates with three seeds; at the
lower ones the study `lower_rate` has the fused nets with two. An H200 alone trains a fused net in
77 s, the others in 140 s. Expected: SM+LN+G 7.59, with ReLU 4.9 % above it; SM+ScFuFFN 10.47 ±
0.06, with temperatures -2.6 ± 0.5 %, with the penalty as well -3.4 ± 0.3 % (hard) and -4.1 ± 0.4 %
(excess), standard errors.
"""

from typing import NamedTuple

from experiments.paper.study import LOWER, MILLION, Rates, Training

_EREG = "ereg_sm_t_scfuffn"


class Net(NamedTuple):
    """What a net is trained with."""

    preset: str
    options: str = ""
    paper: float | None = None
    """Perplexity there."""


NETS = {
    "sm_ln_g": Net("sm_ln_g", paper=2.69),
    "sm_ln_r": Net("sm_ln_r", paper=2.76),
    "sm_scfuffn": Net("sm_scfuffn", paper=3.48),
    "sm_t_scfuffn": Net("sm_t_scfuffn"),
    _EREG: Net(_EREG, paper=3.21),
    f"{_EREG}-excess": Net(_EREG, "--penalty.kind excess"),
    f"{_EREG}-row": Net(_EREG, "--penalty.ceiling row"),
    f"{_EREG}-excess-row": Net(_EREG, "--penalty.kind excess --penalty.ceiling row"),
}
_LOWER_NETS = ("sm_scfuffn", "sm_t_scfuffn", _EREG, f"{_EREG}-excess")


def training(
    net: str, *, seed: int, tokens: int, rates: Rates | None = None, more_text: bool = False
) -> Training:
    """One of the nets of the plan; rates other than the shared ones are in its name."""
    preset, options, paper = NETS[net]
    return Training(
        net if rates is None else f"{net}-{rates.name}",
        preset,
        options,
        tokens=tokens,
        seed=seed,
        rates=rates,
        more_text=more_text,
        paper=paper,
    )


TRAININGS = tuple(
    training(net, seed=seed, tokens=100 * MILLION) for seed in (0, 1, 2) for net in NETS
)
# In the tables of the study `lower_rate`, which has the net that they are held against.
LOWER_TRAININGS = tuple(
    training(net, seed=seed, tokens=100 * MILLION, rates=LOWER)
    for seed in (0, 1)
    for net in _LOWER_NETS
)

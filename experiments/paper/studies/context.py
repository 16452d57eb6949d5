"""Longer contexts: T = 256 (the paper's Table 7), T = 512 at budgets 1 : 2 : 4 (its Table 4).

    python -m experiments.paper run context

The paper's T = 512 is on another text (Languini, 1.2, 2.4 and 4.8 billion tokens). The penalty's
weight, which is per position here, stays that of T = 128. An H100, two runners: about 20 minutes.
Expected at T = 512 and 20, 40, 80 M tokens: SM+LN+G 36.5, 13.7, 6.9; SM+ScFuFFN 45.1, 15.7,
divergence; with temperatures and penalty 38.4, 13.4, 9.0.
"""

from experiments.paper.study import MILLION, Training

_PAPER = {
    # At T = 256, and at T = 512 with one, two and four times the tokens.
    "sm_ln_g": (2.35, 25.71, 23.32, 21.29),
    "sm_ln_r": (2.41, 26.06, 23.55, 21.58),
    "sm_scfuffn": (3.03, 33.77, 30.82, 28.59),
    "ereg_sm_t_scfuffn": (2.92, 31.54, 28.70, 26.55),
}
TRAININGS = tuple(
    Training(net, net, tokens=tokens * MILLION, context_length=length, paper=_PAPER[net][column])
    for column, (length, tokens) in enumerate(((256, 20), (512, 20), (512, 40), (512, 80)))
    for net in _PAPER
)

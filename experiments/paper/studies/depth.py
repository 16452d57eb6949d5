"""Eighteen layers: the paper's Table 8.

    python -m experiments.paper run depth

An H100, two runners: about 3 minutes. Expected: SM+LN+G 29.9, SM+LN+R 31.2, SM+ScFuFFN 55.9; the
net with penalty diverges at step 108. The study `lower_rate` has them where all of them train.
"""

from experiments.paper.study import Training

_PAPER = {"sm_ln_g": 2.56, "sm_ln_r": 2.63, "sm_scfuffn": 3.24, "ereg_sm_t_scfuffn": 3.13}
TRAININGS = tuple(Training(net, net, num_layers=18, paper=value) for net, value in _PAPER.items())

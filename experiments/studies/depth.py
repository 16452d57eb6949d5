"""Eighteen layers: the paper's Table 8.

python -m experiments.run depth
"""

from experiments.study import Training

_PAPER = {"sm_ln_g": 2.56, "sm_ln_r": 2.63, "sm_scfuffn": 3.24, "ereg_sm_t_scfuffn": 3.13}
RUNS = tuple(Training(net, net, num_layers=18, paper=value) for net, value in _PAPER.items())

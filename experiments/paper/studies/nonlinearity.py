"""What LayerNorm, GELU and ReLU are good for: the paper's Table 2, Figures 2 and 3.

    python -m experiments.paper run nonlinearity

An H100, two runners: about 25 minutes. Expected at 20 M tokens (three seeds) and 100 M (one seed):
SM+LN+G 27.7 ± 0.4 and 7.59, SM+LN+R 3.0 ± 0.4 % and 5 % above it, SM+LN 41 and 35 %, SM+R 54 ± 2
and 21 %; SM and SM+G diverge within a third of the steps.
"""

from experiments.paper.study import main_rows

TRAININGS = main_rows(
    {"sm_ln_g": 2.69, "sm_ln_r": 2.76, "sm_ln": 3.38, "sm_g": 3.20, "sm_r": 2.94, "sm": None}
)

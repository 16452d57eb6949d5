"""What LayerNorm, GELU and ReLU are good for: the paper's Table 2, Figures 2 and 3.

python -m experiments.run nonlinearity
"""

from experiments.study import main_rows

RUNS = main_rows(
    {"sm_ln_g": 2.69, "sm_ln_r": 2.76, "sm_ln": 3.38, "sm_g": 3.20, "sm_r": 2.94, "sm": None}
)

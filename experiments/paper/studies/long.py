"""Four times the tokens of the other studies, two seeds, on more text.

    python -m experiments.paper more-text DIRECTORY
    python -m experiments.paper run long

The registered plan, docs/registered.md, says which of the two penalties is run and in which order:
the better one was the excess. Validation is that of the other studies. An H200 alone should train a
fused net in 5.2 minutes, SM+LN+G in 9.6. Nothing has finished yet; at 300 M tokens SM(t)+ScFuFFN
had 9.07 and EReg, excess, 9.11 (512 windows).
"""

from experiments.paper.studies.verdicts import training
from experiments.paper.study import MILLION

_NETS = (
    "sm_ln_g",
    "sm_scfuffn",
    "sm_t_scfuffn",
    "ereg_sm_t_scfuffn",
    "ereg_sm_t_scfuffn-excess",
)
TRAININGS = tuple(
    training(net, seed=seed, tokens=400 * MILLION, more_text=True)
    for seed in (0, 1)
    for net in _NETS
)

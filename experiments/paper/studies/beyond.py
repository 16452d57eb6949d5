"""Beyond the paper: does the gain come from temperatures or from the penalty, and which penalty?

    python -m experiments.paper run beyond

Fused nets with and without either one, at the same rates and budget, three seeds; and penalties
with a ceiling per row (log of the keys that it sees), with the excess over the margin only, and of
the head's mean (Algorithm 1 to the letter). An H100, two runners: about 13 minutes. Expected
against SM+ScFuFFN: temperatures -7 ± 3 %, penalty -2 ± 5 %, both -15 ± 4 %, with the excess -17 ± 2
%.
"""

from experiments.paper.study import Training

_EREG = "ereg_sm_t_scfuffn"
_NETS = {
    "sm_scfuffn": ("sm_scfuffn", "", 3.48),
    "sm_t_scfuffn": ("sm_t_scfuffn", "", None),
    "sm_scfuffn-penalty": ("sm_scfuffn", "--model.threshold 0.5 --penalty.weight 0.16", None),
    _EREG: (_EREG, "", 3.21),
    f"{_EREG}-row": (_EREG, "--penalty.ceiling row", None),
    f"{_EREG}-excess": (_EREG, "--penalty.kind excess", None),
    f"{_EREG}-head": (_EREG, "--penalty.reduction head", None),
}
TRAININGS = tuple(
    Training(net, preset, options, seed=seed, paper=paper)
    for seed in (0, 1, 2)
    for net, (preset, options, paper) in _NETS.items()
)

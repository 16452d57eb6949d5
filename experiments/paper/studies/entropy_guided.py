"""Fused layers, temperature and penalty: the paper's Table 3, Figures 5 and 6.

    python -m experiments.paper run entropy_guided

An H100, two runners: about 25 minutes. Expected at 20 M tokens (three seeds) and 100 M (one seed):
SM+ScFuFFN 33.8 ± 1.0 and 10.5, with temperatures 31.4 ± 1.5 and 10.2, with the penalty 28.8 ± 0.9
and 10.2. ScFFN diverges, and so does t = 0.01 without the penalty.
"""

from experiments.paper.study import Training, main_rows

_EREG = "ereg_sm_t_scfuffn"
TRAININGS = (
    *main_rows(
        {
            "sm_ln_g": 2.69,
            "sm_scffn": 3.50,
            "sm_scfuffn": 3.48,
            "sm_t_scfuffn": None,
            "ereg_sm_t_scfuffn": 3.21,
        }
    ),
    # The presets start at t = 0.1.
    *(
        Training(f"{net}-t{t}", net, f"--model.temperature {t}")
        for net in ("sm_t_scfuffn", _EREG)
        for t in ("1", "0.01")
    ),
    Training(f"{_EREG}-excess", _EREG, "--penalty.kind excess"),
    *(Training(f"sm_scfuffn_{i}", "sm_scfuffn", without_ffn=i) for i in (2, 4, 6)),
)

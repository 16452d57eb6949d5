"""The penalty's free margin gamma, and how many heads it leaves at high entropy: Figures 7 and 8.

    python -m experiments.paper run tolerance

An H100, two runners: about 5 minutes. Expected: heads near uniform attention 63 % without the
penalty, 15 to 22 % up to gamma = 0.1, rising to 49 % at 0.3; perplexity 28.6 to 31.9, of which the
spread over seeds is 1.
"""

from experiments.paper.study import Training

TRAININGS = (
    Training("sm_t_scfuffn", "sm_t_scfuffn"),
    # Its own is 0.2.
    Training("ereg_sm_t_scfuffn", "ereg_sm_t_scfuffn", paper=3.21),
    *(
        Training(f"ereg_sm_t_scfuffn-g{gamma}", "ereg_sm_t_scfuffn", f"--penalty.tolerance {gamma}")
        for gamma in ("0", "0.05", "0.1", "0.15", "0.25", "0.3")
    ),
)

"""Weight norm, spectral norm or scaling instead of LayerNorm: the paper's Tables 5 and 6.

    python -m experiments.paper run normalization

An H100, two runners: about 20 minutes. Expected at 20 M tokens: spectral norm on the feed-forward
72 ± 9, everything with weight norm and ScFFN diverges; at 100 M: spectral norm 11.5, weight norm
12.2. The study `lower_rate` has them where all of them train.
"""

from experiments.paper.study import Training, main_rows

_MATRICES = {
    # With the paper's perplexities with weight norm and spectral norm.
    "qk": ("q k", 3.89, 4.25),
    "qk_ffn": ("q k ffn", 3.88, 4.23),
    "qkv_ffn": ("q k v ffn", 3.93, 4.26),
    "qkvo_ffn": ("q k v o ffn", 3.98, 4.34),
}
GROUPS = tuple(
    Training(f"{net}-{group}", net, f"--model.reparam-matrices {matrices}", paper=paper[which])
    for which, net in enumerate(("sm_wnorm", "sm_snorm"))
    for group, (matrices, *paper) in _MATRICES.items()
)
TRAININGS = (
    *main_rows({"sm_ln_g": 2.69, "sm_wnorm": 3.640, "sm_snorm": 3.624, "sm_scffn": 3.50}),
    *GROUPS,
)

"""The named shapes on which attention is tested and measured."""

from typing import NamedTuple


class AttentionSpec(NamedTuple):
    """Shape of one self-attention."""

    batch: int
    """Windows B."""
    length: int
    """Positions T of each window."""
    heads: int = 12
    """Query heads H."""
    kv_heads: int = 12
    """Key and value heads K; K divides H."""
    head_dim: int = 64
    """Width D of a head."""
    causal: bool = True
    """Whether query i sees only keys j <= i."""
    documents: int = 1
    """Equal documents packed into each window; more than one needs segment ids."""
    dtype: str = "bfloat16"
    """Type of queries, keys and values."""


# GPT-2 small's heads at 16,384 tokens: the shapes that results are quoted for.
MAIN_SPECS = {
    "128x128": AttentionSpec(128, 128),
    "32x512": AttentionSpec(32, 512),
    "8x2048": AttentionSpec(8, 2048),
    "2x8192": AttentionSpec(2, 8192),
}

SPECS = {
    **MAIN_SPECS,
    "8x2048_d128": AttentionSpec(8, 2048, heads=6, kv_heads=6, head_dim=128),
    "8x2048_gqa": AttentionSpec(8, 2048, kv_heads=4),
    "8x2048_segments": AttentionSpec(8, 2048, documents=4),
    "8x2048_full": AttentionSpec(8, 2048, causal=False),
    "small": AttentionSpec(2, 64, heads=2, kv_heads=2),
    "small_gqa": AttentionSpec(2, 64, heads=4, kv_heads=2),
    "small_segments": AttentionSpec(2, 64, heads=2, kv_heads=2, documents=2),
}
"""All named shapes; the small ones suit a CPU."""

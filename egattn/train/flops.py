"""Analytic FLOPs and the share of the hardware's peak that they use."""

import jax

from egattn.model import DecoderConfig

# Dense bfloat16 peak per device, FLOP/s, as the makers state it.
_PEAK = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def flops_per_token(config: DecoderConfig) -> float:
    """FLOPs of forward and backward per token: 3 x (2 per matrix entry + 4 T d for attention).

    Counts whole attention rows although causal ones are half empty, as is usual for MFU.

    Reference:
      Chowdhery et al., PaLM, arXiv 2204.02311, Appendix B.
    """
    d, length = config.embed_dim, config.context_length
    attention = 2 * d * d + 2 * d * config.kv_heads * config.head_dim
    feed_forward = {"mlp": 2 * d * config.ffn_dim, "fused": d * d, "none": 0}
    layers = sum(attention + feed_forward[kind] for kind in config.layer_kinds)
    matrices = layers + d * config.vocab_size
    return 3.0 * (2 * matrices + 4 * length * d * config.num_layers)


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 peak of a device, FLOP/s, by its `device_kind`; None where unknown (CPU)."""
    # The longest name first, so that a "TPU v5 lite" is not taken for a "TPU v5".
    names = sorted(_PEAK, key=len, reverse=True)
    return next((_PEAK[name] for name in names if device_kind.startswith(name)), None)


def utilisation(config: DecoderConfig, tokens_per_second: float) -> float | None:
    """Model FLOPs utilisation over all devices, or None where the peak is unknown (CPU)."""
    peak = peak_flops(jax.devices()[0].device_kind)
    if peak is None:
        return None
    return flops_per_token(config) * tokens_per_second / (peak * jax.device_count())

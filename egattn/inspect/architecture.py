"""An architecture in a few lines."""

from egattn.model import DecoderConfig
from egattn.model.layers import run_spans

_NORMS = {"layer_norm": "LayerNorm", "none": "no norm"}


def architecture(c: DecoderConfig) -> dict[str, str]:
    """Returns what people ask first about a decoder, a line each by its topic."""
    kinds = [f"{layers} {kind}" for (kind, _), layers in zip(c.layer_runs, spans(c), strict=True)]
    head = "tied" if c.tie_embeddings else "separate"
    between = {"identity": "nothing", "leaky_relu": f"leaky_relu, slope per {c.slope_scope}"}
    lines = {
        "layers": f"{c.num_layers}, width {c.embed_dim}, context {c.context_length}",
        "heads": f"{c.num_heads} of width {c.head_dim}"
        + (f", {c.kv_heads} for keys and values" if c.kv_heads != c.num_heads else "")
        + (", learned temperatures" if c.temperature is not None else ""),
        "vocabulary": f"{c.vocab_size:,} tokens in {c.padded_vocab_size:,} rows, {head} head",
        "feed-forward": f"layers {'; '.join(kinds)}",
        "norms": f"{_NORMS[c.pre_norm]} in blocks, {_NORMS[c.final_norm]} before the head",
    }
    if "mlp" in c.layer_kinds:
        activation = between.get(c.activation, c.activation)
        lines["feed-forward"] += f" (hidden width {c.ffn_dim}, between them {activation})"
    if c.ffn_scaling:
        lines["feed-forward"] += ", learned alpha and beta"
    if c.weight_reparam != "none" and c.reparam_matrices:
        lines["matrices"] = f"{', '.join(c.reparam_matrices)} under {c.weight_reparam}"
    return lines | {
        "biases": ", ".join(c.biases) or "none",
        "precision": f"{c.dtype} matrix products",
    }


def spans(c: DecoderConfig) -> list[str]:
    """Layers of each run of one kind, e.g. ["0-2", "3"]."""
    pairs = [(start, start + count - 1) for start, count in run_spans(c)]
    return [str(first) if first == last else f"{first}-{last}" for first, last in pairs]

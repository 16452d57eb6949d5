"""A checkpoint's parameters: what they are, without their values or with them."""

import math
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from egattn.inspect.architecture import spans
from egattn.model import DecoderConfig
from egattn.model.learned import learned_values
from egattn.model.linear import SPECTRAL

# Elements whose squares are added up at a time.
_PIECE = 2**20


def table(config: DecoderConfig, variables: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns a row per array, stacked layers together.

    Args:
      config: The decoder's configuration.
      variables: What `read_variables` returns, or `describe_variables` for rows without numbers.
    """
    rows = []
    leaves: dict[str, Any] = dict(flatten_dict(variables, sep="/"))
    for name, value in leaves.items():
        name = name.removeprefix("params/")
        row = {"name": name, "layers": _layers(config, name), "shape": list(value.shape)}
        row |= {"dtype": str(value.dtype), "elements": math.prod(value.shape)}
        rows.append(row | (_size(value) if isinstance(value, np.ndarray) else {}))
    return rows


def counts(config: DecoderConfig, rows: list[dict[str, Any]]) -> dict[str, int]:
    """Returns the number of parameters, and how many of them no token uses."""
    trained = [row for row in rows if not row["name"].startswith(f"{SPECTRAL}/")]
    unused = (config.padded_vocab_size - config.vocab_size) * config.embed_dim
    return {
        "count": sum(row["elements"] for row in trained),
        "padding": unused * (1 if config.tie_embeddings else 2),
    }


def learned(config: DecoderConfig, params: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Summarises what `learned_values` returns: least, median and largest value of each layer.

    Args:
      config: The decoder's configuration.
      params: The "params" collection.
    """
    kinds = config.layer_kinds
    scaled = [layer for layer, kind in enumerate(kinds) if kind != "none"]
    activated = [layer for layer, kind in enumerate(kinds) if kind == "mlp"]
    layers: dict[str, list[int]] = {"alpha": scaled, "beta": scaled, "slope": activated}
    found = {}
    for name, stacked in learned_values(params).items():
        values = np.asarray(stacked, np.float64)
        # One slope for the whole model has no layer.
        where = layers.get(name, range(config.num_layers)) if values.ndim else [None]
        parts = zip(where, np.atleast_1d(values), strict=True)
        found[name] = [{"layer": layer, **_spread(part)} for layer, part in parts]
    return found


def _layers(config: DecoderConfig, name: str) -> str | None:
    run = next((part for part in name.split("/") if part.startswith("blocks_")), None)
    return None if run is None else spans(config)[int(run.removeprefix("blocks_"))]


def _size(value: np.ndarray) -> dict[str, Any]:
    """Norm and root mean square in float64, without a copy of the whole array in that type."""
    flat = value.reshape(-1)
    pieces = [flat[i : i + _PIECE] for i in range(0, flat.size, _PIECE)]
    squares = math.fsum(float(np.square(piece.astype(np.float64)).sum()) for piece in pieces)
    bad = sum(piece.size - np.count_nonzero(np.isfinite(piece)) for piece in pieces)
    rms = math.sqrt(squares / flat.size) if flat.size else 0.0
    return {"norm": math.sqrt(squares), "rms": rms, "nonfinite": int(bad)}


def _spread(values: np.ndarray) -> dict[str, float]:
    if not np.isfinite(values).all():
        return dict.fromkeys(("min", "median", "max"), math.nan)
    return {
        "min": float(values.min()),
        "median": float(np.median(values)),
        "max": float(values.max()),
    }

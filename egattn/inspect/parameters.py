"""A checkpoint's parameters: what they are, without their values or with them."""

import math
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from egattn.inspect.architecture import spans
from egattn.inspect.found_run import Parameters, Size, Spread, Variable
from egattn.model import DecoderConfig
from egattn.model.learned import learned_values
from egattn.model.linear import SPECTRAL

# Elements whose squares are added up at a time.
_PIECE = 2**20


def parameters(config: DecoderConfig, variables: dict[str, Any]) -> Parameters:
    """Says what the arrays of a checkpoint are.

    Args:
      config: The decoder's configuration.
      variables: What `read_variables` returns, or `describe_variables` for arrays without sizes.
    """
    table = []
    leaves: dict[str, Any] = dict(flatten_dict(variables, sep="/"))
    for name, value in leaves.items():
        name = name.removeprefix("params/")
        table.append(
            Variable(
                name=name,
                layers=_layers(config, name),
                shape=list(value.shape),
                dtype=str(value.dtype),
                elements=math.prod(value.shape),
                size=_size(value) if isinstance(value, np.ndarray) else None,
            )
        )
    trained = [variable for variable in table if not variable.name.startswith(f"{SPECTRAL}/")]
    unused = (config.padded_vocab_size - config.vocab_size) * config.embed_dim
    return Parameters(
        count=sum(variable.elements for variable in trained),
        padding=unused * (1 if config.tie_embeddings else 2),
        table=table,
    )


def learned(config: DecoderConfig, params: dict[str, Any]) -> dict[str, list[Spread]]:
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
        found[name] = [_spread(layer, part) for layer, part in parts]
    return found


def _layers(config: DecoderConfig, name: str) -> str | None:
    blocks = next((part for part in name.split("/") if part.startswith("blocks_")), None)
    return None if blocks is None else spans(config)[int(blocks.removeprefix("blocks_"))]


def _size(value: np.ndarray) -> Size:
    """Norm and root mean square in float64, without a copy of the whole array in that type."""
    flat = value.reshape(-1)
    pieces = [flat[i : i + _PIECE] for i in range(0, flat.size, _PIECE)]
    squares = math.fsum(float(np.square(piece.astype(np.float64)).sum()) for piece in pieces)
    bad = sum(piece.size - np.count_nonzero(np.isfinite(piece)) for piece in pieces)
    rms = math.sqrt(squares / flat.size) if flat.size else 0.0
    return Size(math.sqrt(squares), rms, int(bad))


def _spread(layer: int | None, values: np.ndarray | np.floating) -> Spread:
    if not np.isfinite(values).all():
        return Spread(layer, math.nan, math.nan, math.nan)
    return Spread(layer, float(values.min()), float(np.median(values)), float(values.max()))

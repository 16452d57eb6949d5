"""A decoder's variables by name, one entry per layer: a layout that no run of equal layers shapes.

"token_embedding.embedding", "layers.3.attention.q.kernel"; the spectral norm's vectors stand under
"spectral.".
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from egattn.model import Decoder, DecoderConfig
from egattn.model.linear import SPECTRAL

LAYER = re.compile(r"layers\.(\d+)\.(.*)")


def unstack(config: DecoderConfig, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the variables, collections "params" and "spectral", by name.

    Args:
      config: The decoder's configuration.
      variables: Its variables, as `Decoder.init` returns them.
    """
    flat = {}
    for collection, prefix in (("params", ""), (SPECTRAL, f"{SPECTRAL}.")):
        leaves: dict[tuple[str, ...], Any] = dict(flatten_dict(variables.get(collection, {})))
        for (first, *rest), value in leaves.items():
            if not first.startswith("blocks_"):
                flat[prefix + ".".join([first, *rest])] = value
                continue
            start, count = run_spans(config)[int(first.removeprefix("blocks_"))]
            for i in range(count):
                flat[prefix + ".".join(["layers", str(start + i), *rest])] = value[i]
    return flat


def stack(config: DecoderConfig, flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the variables of the names given: the inverse of `unstack`.

    A variable must be given for all layers of a run or for none.
    """
    runs = run_spans(config)
    run_of = [run for run, (_, count) in enumerate(runs) for _ in range(count)]
    stacked: dict[tuple[str, ...], Any] = {}
    layers: dict[tuple[str, ...], dict[int, Any]] = {}
    for name, value in flat.items():
        collection = SPECTRAL if name.startswith(f"{SPECTRAL}.") else "params"
        name = name.removeprefix(f"{SPECTRAL}.")
        match = LAYER.fullmatch(name)
        if match is None:
            stacked[(collection, *name.split("."))] = value
        else:
            layer, rest = int(match[1]), match[2].split(".")
            path = (collection, f"blocks_{run_of[layer]}", *rest)
            layers.setdefault(path, {})[layer] = value
    for path, values in layers.items():
        start, count = runs[int(path[1].removeprefix("blocks_"))]
        parts = [values[start + i] for i in range(count)]
        on_host = isinstance(parts[0], np.ndarray)
        stacked[path] = np.stack(parts) if on_host else jnp.stack(parts)
    return {"params": {}, SPECTRAL: {}, **unflatten_dict(stacked)}


def per_layer(config: DecoderConfig, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the variables of the same decoder with `stacked=False`.

    Args:
      config: The decoder's configuration.
      variables: Its variables, as `Decoder.init` returns them, or stacked in the same way.
    """
    result = {}
    for collection, values in variables.items():
        result[collection] = {k: v for k, v in values.items() if not k.startswith("blocks_")}
        for run, (start, count) in enumerate(run_spans(config)):
            block = values.get(f"blocks_{run}", {})
            for i in range(count):
                result[collection][f"blocks_{start + i}"] = jax.tree.map(lambda x, i=i: x[i], block)
    return result


def shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every variable by name."""
    return dict(_shapes(config))


@functools.lru_cache
def _shapes(config: DecoderConfig) -> tuple[tuple[str, tuple[int, ...]], ...]:
    # The same variables, and one layer to trace instead of all.
    decoder = Decoder(dataclasses.replace(config, scan_layers=True))
    flat = jax.eval_shape(
        lambda key, tokens: unstack(config, dict(decoder.init(key, tokens))),
        jax.eval_shape(lambda: jax.random.key(0)),
        jax.ShapeDtypeStruct((1, 1), jnp.int32),
    )
    return tuple((name, value.shape) for name, value in flat.items())


def run_spans(config: DecoderConfig) -> list[tuple[int, int]]:
    """Returns first layer and number of layers of each run of equal layers."""
    counts = [count for _, count in config.layer_runs]
    return list(zip(itertools.accumulate(counts, initial=0), counts, strict=False))

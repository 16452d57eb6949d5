"""What the entropy-guided parts of a network have learned, gathered from its parameters."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array


def learned_values(params: dict[str, Any]) -> dict[str, Array]:
    """Returns those of the following that the parameters hold, stacked over layers.

    `threshold` [L, H] (fraction of the maximum entropy), `temperature` [L, H, T], `alpha` and
    `beta` [L'] and `slope` ([], [L'] or [L', features]); L' counts the layers that have one.

    Args:
      params: The "params" collection of a `Decoder`.
    """
    runs = [params[f"blocks_{i}"] for i in range(sum(k.startswith("blocks_") for k in params))]
    found = {
        "temperature": [
            jnp.exp(run["attention"]["log_temperature"])
            for run in runs
            if "log_temperature" in run["attention"]
        ],
        "alpha": [run["alpha"] for run in runs if "alpha" in run],
        "beta": [run["beta"] for run in runs if "beta" in run],
        "slope": [
            run["feed_forward"]["slope"] for run in runs if "slope" in run.get("feed_forward", {})
        ],
    }
    values = {name: jnp.concatenate(parts) for name, parts in found.items() if parts}
    values |= {name: params[name] for name in ("threshold", "slope") if name in params}
    return values

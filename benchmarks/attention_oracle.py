"""Attention, entropy and gradients of one key head in float64 NumPy, a block of rows at a time."""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]

_ROWS = 512


def solve(
    query: Array,
    key: Array,
    value: Array,
    out_cotangent: Array,
    entropy_cotangent: Array,
    *,
    causal: bool,
    segment_ids: npt.NDArray[np.int32] | None = None,
) -> dict[str, Array]:
    """Returns `output`, `entropy`, `dq`, `dk` and `dv` of self-attention.

    Args:
      query: Query heads that share the key head, [G, T, D].
      key: [T, D].
      value: [T, D].
      out_cotangent: [G, T, D].
      entropy_cotangent: [G, T].
      causal: Whether query i sees only keys j <= i.
      segment_ids: Document of each position [T]; None means one document.
    """
    scale, length = query.shape[-1] ** -0.5, query.shape[1]
    result = {name: np.zeros_like(query) for name in ("output", "dq")}
    result |= {"entropy": np.zeros(query.shape[:2])}
    result |= {name: np.zeros_like(key) for name in ("dk", "dv")}
    for head, first in np.ndindex(len(query), -(-length // _ROWS)):
        rows = np.arange(first * _ROWS, min(length, (first + 1) * _ROWS))
        seen = np.ones((len(rows), length), bool)
        if causal:
            seen = rows[:, None] >= np.arange(length)
        if segment_ids is not None:
            seen = seen & (segment_ids[rows, None] == segment_ids)
        q, do, de = (x[head, rows] for x in (query, out_cotangent, entropy_cotangent))
        s = np.where(seen, scale * q @ key.T, -np.inf)
        s -= s.max(-1, keepdims=True)
        a = np.exp(s)
        log_a = np.where(seen, s - np.log(a.sum(-1, keepdims=True)), 0.0)
        a /= a.sum(-1, keepdims=True)
        # dE/da = -(log a + 1), then through the softmax.
        da = do @ value.T - de[:, None] * (log_a + 1)
        ds = scale * a * (da - (a * da).sum(-1, keepdims=True))
        result["output"][head, rows] = a @ value
        result["entropy"][head, rows] = -(a * log_a).sum(-1)
        result["dq"][head, rows] = ds @ key
        result["dk"] += ds.T @ q
        result["dv"] += a.T @ do
    return result


def errors(actual: dict[str, Array], expected: dict[str, Array]) -> dict[str, float]:
    """Norm-wise relative errors; of the entropy the largest difference in nats."""

    def error(name: str) -> float:
        difference = actual[name] - expected[name]
        if name == "entropy":
            return float(np.abs(difference).max())
        return float(np.linalg.norm(difference) / np.linalg.norm(expected[name]))

    return {name: error(name) for name in actual}

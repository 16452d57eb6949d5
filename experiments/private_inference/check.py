"""Compares secure outputs with the plaintext ones: a cost is worth nothing if the result is wrong.

Both figures are needed. Fixed point can leave every argmax in place while the values are far off,
and a small error relative to the largest logit can still exchange tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from errors import Failure

# Expected outputs may be all zeros: no fraction of that is an error that fixed point could keep to.
FLOOR = 1e-3


def check(
    outputs: Sequence[np.ndarray],
    expected: np.ndarray,
    *,
    argmax: bool,
    max_error: float,
    min_agreement: float,
) -> dict[str, Any]:
    """Compares the output of every run; the worst of them counts.

    Args:
        outputs: one array per run, as `expected` shaped.
        expected: what plaintext gave.
        argmax: whether the largest entry of the last axis must agree too.
        max_error: largest allowed error, as a fraction of the largest expected magnitude, or of
            FLOOR if that is larger.
        min_agreement: smallest allowed fraction of positions whose argmax agrees.

    Returns:
        The figures, as they stand in the result's JSON.

    Raises:
        Failure: if they miss a bound.
    """
    largest = float(np.abs(expected).max())
    scale = max(largest, FLOOR)
    # NaN must win here, and it does: np.max propagates it.
    error = float(np.max([np.abs(np.float64(output) - expected).max() for output in outputs]))
    agreement = None
    if argmax:
        wanted = expected.argmax(-1)
        agreement = [min(int((output.argmax(-1) == wanted).sum()) for output in outputs)]
        agreement.append(wanted.size)
    close = error <= max_error * scale
    agrees = agreement is None or agreement[0] >= min_agreement * agreement[1]
    if not (close and agrees):
        shown = f"max error {error:.3g}, bound {max_error * scale:.3g} ({max_error:g} of "
        shown += f"{scale:g}; " if scale > largest else "the "
        shown += f"largest expected value {largest:.3g})"
        if agreement is not None:
            shown += f"; argmax agreement {agreement[0]}/{agreement[1]}, bound {min_agreement:g}"
        raise Failure(f"costs are withheld because the outputs disagree: {shown}")
    return {
        "max_error": error,
        "largest_expected": largest,
        "relative_error": error / scale,
        "agreement": agreement,
        "bounds": {"max_error": max_error, "min_agreement": min_agreement if argmax else None},
    }

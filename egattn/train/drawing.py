"""A decoder's entropies and learned parameters as TensorBoard events."""

from typing import Any

import numpy as np

from egattn.entropy import range_shares
from egattn.run.records import Board


def draw(board: Board, kind: str, step: int, values: dict[str, Any], top: float) -> None:
    """Adds a record of a run.

    Args:
      board: Where to.
      kind: "train" or "validation".
      step: Its step.
      values: What `make_train_step` or `Evaluator` return; with `learned` of an evaluation.
      top: Largest possible entropy, nats.
    """
    heads = np.asarray(values["head_entropy"])
    if kind == "train":
        _layers(board, "entropy_layer", step, heads.mean(1))
        _layers(board, "nonfinite_layer", step, values["nonfinite"])
        return
    _heads(board, "entropy", step, heads, top)
    for index, share in enumerate(range_shares(heads)):
        board.scalar(f"entropy_range_share/{index}", step, share)
    for name, value in values["learned"].items():
        if value.ndim == 2 and name != "slope":
            _heads(board, name, step, value, 1.0 if name == "threshold" else float(value.max()))
        else:
            _layers(board, name, step, value.reshape(-1) if value.ndim < 2 else value.mean(1))
    board.flush()


def _layers(board: Board, name: str, step: int, values: np.ndarray) -> None:
    for layer, value in enumerate(values):
        board.scalar(f"{name}/{layer:02d}", step, value)


def _heads(board: Board, name: str, step: int, values: np.ndarray, top: float) -> None:
    """One scalar per head, a histogram and a layers x heads heat map."""
    for layer, row in enumerate(values):
        for head, value in enumerate(row):
            board.scalar(f"{name}_head/{layer:02d}/{head:02d}", step, value)
    board.histogram(name, step, values)
    board.heat_map(f"{name}_map", step, values, top)

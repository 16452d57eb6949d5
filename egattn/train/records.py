"""What a run writes while it trains: `metrics.jsonl`, `learned.npz` and TensorBoard events."""

import json
import math
import os
from pathlib import Path
from typing import Any, TextIO

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import colormaps
from tensorboardX import SummaryWriter

from egattn.entropy import range_shares


class Records:
    """Writer of a run's logs; does nothing on processes other than 0."""

    def __init__(self, run: Path, max_entropy: float, resumed_at: int):
        self._run, self._max_entropy = run, max_entropy
        self._active = jax.process_index() == 0
        if not self._active:
            return
        path = run / "metrics.jsonl"
        drop_after(path, resumed_at)
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=resumed_at + 1)

    def __enter__(self):
        """Returns itself."""
        return self

    def __exit__(self, *_):
        """Flushes and closes the files."""
        if self._active:
            self._file.close()
            self._board.close()

    def start(self, **fields: Any) -> None:
        """Records how this process began: versions, devices, mesh."""
        if self._active:
            self._line({"kind": "start", **fields})

    def train(self, step: int, values: dict[str, Any]) -> None:
        """Records a training step: scalars, `head_entropy` [L, H] and `nonfinite` [L]."""
        if not self._active:
            return
        self._line({"kind": "train", "step": step, **values})
        self._scalars("train", step, values)
        heads = np.asarray(values["head_entropy"])
        for layer, mean in enumerate(heads.mean(1)):
            self._board.add_scalar(f"entropy_layer/{layer:02d}", mean, step)
        for layer, count in enumerate(values["nonfinite"]):
            self._board.add_scalar(f"nonfinite_layer/{layer:02d}", count, step)

    def validation(self, step: int, values: dict[str, Any], learned: dict[str, Any]) -> None:
        """Records an evaluation and the learned parameters (`model.learned.learned_values`)."""
        if not self._active:
            return
        learned = {name: np.asarray(value) for name, value in learned.items()}
        small = dict(learned)
        if "temperature" in small:
            small["temperature"] = np.exp(np.log(small["temperature"]).mean(-1))
        self._line({"kind": "validation", "step": step, **values, "learned": small})
        self._scalars("validation", step, values)
        heads = np.asarray(values["head_entropy"])
        self._heads("entropy", step, heads, self._max_entropy)
        for index, share in enumerate(np.asarray(range_shares(jnp.asarray(heads)))):
            self._board.add_scalar(f"entropy_range_share/{index}", share, step)
        for name, value in small.items():
            if value.ndim == 2 and name != "slope":
                self._heads(name, step, value, 1.0 if name == "threshold" else value.max())
            else:
                for layer, x in enumerate(value.reshape(-1) if value.ndim < 2 else value.mean(1)):
                    self._board.add_scalar(f"{name}/{layer:02d}", x, step)
        self._board.flush()
        _write_npz(self._run / "learned.npz", learned)

    def evaluated(self, step: int) -> bool:
        """Whether this step's evaluation is on record; only process 0 knows."""
        lines = read_lines(self._run / "metrics.jsonl") if self._active else []
        return any(x["kind"] == "validation" and x["step"] == step for x in lines)

    def _scalars(self, group: str, step: int, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, int | float):
                self._board.add_scalar(f"{group}/{name}", value, step)

    def _heads(self, name: str, step: int, values: np.ndarray, top: float) -> None:
        """One scalar per head, a histogram and a layers x heads heat map."""
        for layer, row in enumerate(values):
            for head, value in enumerate(row):
                self._board.add_scalar(f"{name}_head/{layer:02d}/{head:02d}", value, step)
        if np.isfinite(values).all():
            self._board.add_histogram(name, values.reshape(-1), step)
        pixels = colormaps["viridis"](np.clip(np.nan_to_num(values / top), 0, 1))[..., :3]
        image = np.kron(pixels, np.ones((24, 24, 1)))
        self._board.add_image(f"{name}_map", image.astype(np.float32), step, dataformats="HWC")

    def _line(self, record: dict[str, Any]) -> None:
        append_line(self._file, record)


def append_line(file: TextIO, record: dict[str, Any]) -> None:
    """Writes a record as one line of JSON, numbers that are not finite as null."""
    file.write(to_json(record) + "\n")
    file.flush()


def to_json(record: dict[str, Any]) -> str:
    """Returns numbers and arrays as one line of JSON; what is not finite becomes null."""
    return json.dumps(_plain(record), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def drop_after(path: Path, step: int) -> None:
    """Removes records of steps that a resumed run will compute again, and a torn last line."""
    if not path.exists():
        return
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        for record in read_lines(path):
            if record.get("step", 0) <= step:
                append_line(file, record)
    os.replace(partial, path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the records of a file of `append_line`, up to a line that a kill has torn."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def _write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, allow_pickle=False, **arrays)
    os.replace(partial, path)

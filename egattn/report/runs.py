"""Reads run directories: `config.json`, `metrics.jsonl` and `learned.npz`, strictly."""

import dataclasses
import json
import math
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from egattn._config import flatten
from egattn.entropy import uniform_entropy
from egattn.run import RunDirectory
from egattn.run.lines import read_lines

# Arrays of each kind of record, with their number of dimensions.
_FIELDS: dict[str, dict[str, int]] = {
    "start": {},
    "train": {"step": 0, "loss": 0, "tokens_per_second": 0, "head_entropy": 2, "nonfinite": 1},
    "validation": {
        "step": 0,
        "loss": 0,
        "perplexity": 0,
        "bits_per_byte": 0,
        "windows": 0,
        "head_entropy": 2,
    },
    "save": {"step": 0},
}
_LEARNED = {"threshold": (2,), "temperature": (2,), "alpha": (1,), "beta": (1,), "slope": (0, 1, 2)}


@dataclasses.dataclass(frozen=True)
class RunLog:
    """What a run has written down; numbers that were not finite are NaN."""

    label: str
    """Name of the directory, with parents or a number where two runs would share it."""
    path: Path
    """The directory."""
    config: dict[str, Any]
    """Leaves of the config by dotted name."""
    starts: list[dict[str, Any]]
    """One record per start or resume."""
    train: dict[str, np.ndarray]
    """Columns over N logged steps: `step`, `loss`, `tokens_per_second` [N], `head_entropy`
    [N, L, H] (nats) and `nonfinite` [N, L]; empty if nothing was logged."""
    validation: dict[str, np.ndarray]
    """Columns over evaluations: `step`, `loss`, `perplexity`, `bits_per_byte`, `windows` [N] and
    `head_entropy` [N, L, H]; empty if the run was never evaluated."""
    learned: dict[str, np.ndarray]
    """Of the last evaluation: `threshold`, `temperature` [L, H], `alpha`, `beta` [L'], `slope`."""
    temperature: np.ndarray | None
    """Temperature of every query position [L, H, T] at the last evaluation."""

    @property
    def max_entropy(self) -> float:
        """Entropy of a uniform row of the context's length, nats."""
        return math.log(self.config["model.context_length"])

    @property
    def uniform_entropy(self) -> float:
        """Entropy of a head that attends uniformly, nats."""
        return uniform_entropy(self.config["model.context_length"])

    @property
    def final_entropy(self) -> np.ndarray | None:
        """Head entropies [L, H] of the last evaluation, nats."""
        return self.validation["head_entropy"][-1] if self.validation else None

    @property
    def last_step(self) -> int:
        """Last step that was logged or evaluated; 0 if none was."""
        return max((int(c["step"][-1]) for c in (self.train, self.validation) if c), default=0)

    def start(self, name: str) -> Any:
        """Value that the last start recorded under a name, or None."""
        return self.starts[-1].get(name) if self.starts else None


def load_runs(paths: Sequence[Path]) -> list[RunLog]:
    """Reads run directories.

    Args:
      paths: The directories; a directory may be named twice.

    Returns:
      What they say, in the given order, with distinct labels.

    Raises:
      FileNotFoundError: If a directory is missing or is not a run's.
      ValueError: If there is no run, or a file does not hold what a run writes.
    """
    if not paths:
        raise ValueError("expected at least one run directory, got none")
    return [_load(path, label) for path, label in zip(paths, labels(paths), strict=True)]


def _load(path: Path, label: str) -> RunLog:
    directory = RunDirectory(path)
    if not path.is_dir():
        raise FileNotFoundError(f"expected a run directory, got {path}, which is no directory")
    for file in (directory.config, directory.metrics):
        if not file.is_file():
            raise FileNotFoundError(f"{path} is not a run directory: it has no {file.name}")
    records = _records(directory.metrics)
    return RunLog(
        label=label,
        path=path,
        config=_config(directory.config),
        starts=records["start"],
        train=_columns(records["train"]),
        validation=_columns(records["validation"]),
        learned=records["validation"][-1]["learned"] if records["validation"] else {},
        temperature=_temperature(path / "learned.npz"),
    )


def labels(paths: Sequence[Path]) -> list[str]:
    """Names of runs: shortest ends of paths that differ; a number for one that is named twice."""
    resolved = [path.resolve() for path in paths]
    ends = {path: path.name or str(path) for path in resolved}
    for depth in range(2, max(len(path.parts) for path in ends)):
        counts = Counter(ends.values())
        for path, end in ends.items():
            if counts[end] > 1:
                ends[path] = str(Path(*path.parts[-depth:]))
    seen: Counter[str] = Counter()
    found = []
    for path in resolved:
        label = ends[path]
        seen[label] += 1
        found.append(f"{label} ({seen[label]})" if seen[label] > 1 else label)
    return found


def _config(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_bytes().decode())
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected an object, got {tree!r}")
    leaves = dict(flatten(tree))
    length = leaves.get("model.context_length")
    if type(length) is not int or length < 1:
        raise ValueError(f"{path}: expected a positive model.context_length, got {length!r}")
    return leaves


def _records(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Records by kind, as arrays; a last line that a killed process left unfinished is dropped."""
    records: dict[str, list[dict[str, Any]]] = {kind: [] for kind in _FIELDS}
    shapes: dict[str, tuple[int, ...]] = {}
    for number, record in enumerate(read_lines(path), 1):
        try:
            kind, values = _record(record, shapes)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} line {number}: {error}") from None
        records[kind].append(values)
    if not any(records.values()):
        raise ValueError(f"{path}: expected records of a run, got none")
    return records


def _record(record: Any, shapes: dict[str, tuple[int, ...]]) -> tuple[str, dict[str, Any]]:
    """Checks a record against its kind's fields and against the shapes seen before."""
    kind = record.get("kind") if isinstance(record, dict) else None
    if kind not in _FIELDS:
        raise ValueError(f"expected an object of kind {', '.join(_FIELDS)}, got {kind!r}")
    if kind == "start":
        for name in ("parameters", "tokens_per_step"):
            if type(record.get(name, 0)) is not int:
                raise ValueError(f"expected a whole {name}, got {record[name]!r}")
        return kind, record
    values: dict[str, Any] = {}
    for name, dimensions in _FIELDS[kind].items():
        values[name] = _array(record, name, (dimensions,))
        known = shapes.setdefault(name, values[name].shape)
        if values[name].shape != known:
            raise ValueError(f"expected {name} of shape {known}, got {values[name].shape}")
    for name in ("step", "windows"):
        if name in values and type(record[name]) is not int:
            raise ValueError(f"expected a whole {name}, got {record[name]!r}")
    if kind == "validation":
        learned = record.get("learned") or {}
        values["learned"] = {
            name: _array(learned, name, allowed)
            for name, allowed in _LEARNED.items()
            if name in learned
        }
    return kind, values


def _array(record: dict[str, Any], name: str, dimensions: tuple[int, ...]) -> np.ndarray:
    if name not in record:
        raise ValueError(f"missing {name!r}")
    try:
        array = np.asarray(record[name], np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"expected numbers as {name}, got {record[name]!r}"[:200]) from None
    if array.ndim not in dimensions:
        wanted = " or ".join(map(str, dimensions))
        raise ValueError(f"expected {name} with {wanted} dimensions, got {array.ndim}")
    return array


def _columns(records: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    names = [name for name in records[0] if name != "learned"] if records else []
    return {name: np.stack([record[name] for record in records]) for name in names}


def _temperature(path: Path) -> np.ndarray | None:
    if not path.exists():
        return None
    try:
        # Opened here because np.load leaves a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if "temperature" not in arrays:
                return None
            temperature = np.asarray(arrays["temperature"], np.float64)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: expected arrays written by training, got {error}") from None
    if temperature.ndim != 3:
        raise ValueError(f"{path}: expected temperature [L, H, T], got {temperature.shape}")
    return temperature

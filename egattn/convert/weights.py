"""Tensors of a directory in safetensors format, read with distrust: no pickle, all checked."""

import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}

_MOST_JSON = 2**24
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
_SHARD = re.compile(r"\w[\w.-]*\.safetensors", re.ASCII)


class Tensor(NamedTuple):
    """Where a tensor lies and what it is."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


class Weights:
    """The tensors of a directory: what they are at once, their values one at a time.

    Raises:
      FileNotFoundError: If there is no file in safetensors format.
      ValueError: If a file or the index of shards is damaged, or they disagree.
    """

    def __init__(self, directory: Path):
        self._directory = directory
        self.tensors: dict[str, Tensor] = {}
        for file, expected in _files(directory).items():
            found = _header(file)
            if expected is not None and expected != found.keys():
                name = min(expected ^ found.keys())
                raise ValueError(f"{INDEX} and {file.name} disagree about tensor {name!r:.100}")
            for name, tensor in found.items():
                self.tensors[name] = tensor

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor as float32, which holds every float16 and bfloat16 exactly.

        Raises:
          ValueError: If it is of another type or has a number that is not finite.
        """
        tensor = self.tensors[name]
        if tensor.dtype not in DTYPES:
            raise ValueError(
                f"{tensor.file}: {name} is {tensor.dtype}, expected one of {', '.join(DTYPES)}"
            )
        try:
            with safe_open(tensor.file, framework="np") as file:
                value = np.asarray(file.get_tensor(name), np.float32)
        except SafetensorError as error:
            raise ValueError(f"{tensor.file}: {str(error)!r:.300}") from None
        bad = value.size - np.count_nonzero(np.isfinite(value))
        if bad:
            raise ValueError(f"{tensor.file}: {name} has {bad} numbers that are not finite")
        return value


def write(path: Path, tensors: Mapping[str, np.ndarray], form: str) -> None:
    """Writes a file in safetensors format; `form` is what its metadata call the format."""
    contiguous = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    save_file(contiguous, path, metadata={"format": form})


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it is too large, no JSON object, or has a key twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected {path.name} in {path.parent}, got no such file")
    if path.stat().st_size > _MOST_JSON:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, expected at most {_MOST_JSON}")
    return _parse_json(path.read_bytes(), path)


def _parse_json(text: bytes, path: Path) -> dict[str, Any]:
    try:
        values = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not well-formed: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, got {values!r:.100}")
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the name {key!r:.100} occurs twice")
        values[key] = value
    return values


def _files(directory: Path) -> dict[Path, set[str] | None]:
    """Files to read, and the names that the index says are in each."""
    if (directory / SINGLE).is_file():
        return {directory / SINGLE: None}
    if (directory / INDEX).is_file():
        return _shards(directory)
    pickles = sorted(x.name for x in directory.iterdir() if x.suffix in _PICKLES)
    if pickles:
        raise ValueError(
            f"{directory / pickles[0]} is a pickle, which may run any code when read: save the "
            f"model as {SINGLE} (save_pretrained of a recent transformers does)"
        )
    raise FileNotFoundError(f"expected {SINGLE} or {INDEX} in {directory}, got neither")


def _shards(directory: Path) -> dict[Path, set[str] | None]:
    path = directory / INDEX
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{path}: expected weight_map to name tensors, got {weight_map!r:.100}")
    files: dict[Path, set[str] | None] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _SHARD.fullmatch(file):
            raise ValueError(f"{path}: expected a file of this directory, got {file!r:.100}")
        names = files.setdefault(directory / file, set())
        assert names is not None
        names.add(name)
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{path} names {file.name}, which is missing")
    return files


def _header(path: Path) -> dict[str, Tensor]:
    """Tensors of a file; the library has checked that their bytes fill it, none shared."""
    with path.open("rb") as file:
        prefix = file.read(8)
        size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= size <= min(_MOST_JSON, path.stat().st_size - 8):
            raise ValueError(f"{path} is not in safetensors format, or truncated")
        text = file.read(size)
    try:
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        # It may quote names, which may be anything.
        raise ValueError(f"{path}: {str(error)!r:.300}") from None
    # The library takes the last one of several tensors with one name.
    entries = _parse_json(text, path)
    entries.pop("__metadata__", None)
    return {
        name: Tensor(path, entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()
    }

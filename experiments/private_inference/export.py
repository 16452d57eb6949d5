"""Reads an export and checks it: every party opens the files that belong to it, and no other."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from errors import UsageError

FORMAT = 1
OWNERS = {"client": 0, "server": 1, "shared": -1}  # the rank that knows the value; -1: nobody


@dataclass(frozen=True)
class Argument:
    """One parameter of the program: who owns it, its float32 shape, how its array is stored."""

    name: str
    owner: str
    shape: tuple[int, ...]
    encoding: str


@dataclass(frozen=True)
class Export:
    """What meta.json says; `files` maps the other files' names to their SHA-256."""

    directory: Path
    kind: str
    name: str
    field_bits: int
    fraction_bits: int
    exp_iterations: int
    arguments: tuple[Argument, ...]
    output_name: str
    output_shape: tuple[int, ...]
    cases: int
    lengths: tuple[int, ...] | None
    files: dict[str, str]

    def require_case(self, case: int) -> None:
        """Raises UsageError unless the export has this case."""
        if not 0 <= case < self.cases:
            raise UsageError(f"--case {case}: {self.directory} has cases 0 to {self.cases - 1}")

    def require_owners(self) -> None:
        """Raises UsageError if some argument belongs to no party that could read it."""
        if any(argument.owner == "shared" for argument in self.arguments):
            raise UsageError(
                f"{self.directory} is a part with shared inputs: parts are measured in one process"
            )

    def path(self, name: str) -> Path:
        """A file of the export, after comparing its SHA-256 with the one in meta.json.

        Raises:
            UsageError: if the file is missing, not listed, or not the one that was exported.
        """
        path = self.directory / name
        if name not in self.files:
            raise UsageError(f"{self.directory / 'meta.json'} lists no {name}")
        digest = hashlib.sha256()
        try:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from error
        if digest.hexdigest() != self.files[name]:
            raise UsageError(f"{path}: changed since it was exported (SHA-256 differs)")
        return path

    def program(self) -> str:
        """The program, StableHLO as text."""
        return self.path("model.mlir").read_text()

    def values(self, owners: Iterable[str], case: int) -> dict[str, np.ndarray]:
        """The float32 arguments that these owners have, one-hot where the program wants it.

        Args:
            owners: of "client", "server", "shared"; only their files are opened.
            case: which of the client's inputs.

        Raises:
            UsageError: if an array is missing, has another shape or type, or is not finite.
        """
        values: dict[str, np.ndarray] = {}
        for owner in owners:
            mine = [argument for argument in self.arguments if argument.owner == owner]
            if not mine:
                continue
            name = "weights.npz" if owner == "server" else "inputs.npz"
            path = self.path(name)
            stored = _arrays(path, [argument.name for argument in mine])
            for argument in mine:
                array, where = stored[argument.name], f"{path}: {argument.name}"
                if owner != "server":
                    array = self._select(array, case, _stored_shape(argument), where)
                values[argument.name] = _decode(array, argument, where)
        return values

    def expected(self, case: int) -> np.ndarray:
        """The plaintext output of a case, without the padding behind the prompt."""
        path = self.path("expected.npz")
        where = f"{path}: {self.output_name}"
        array = _arrays(path, [self.output_name])[self.output_name]
        array = self._select(array, case, self.output_shape, where)
        return _finite(self.unpadded(array, case), where)

    def unpadded(self, output: np.ndarray, case: int) -> np.ndarray:
        """An output without the positions behind the prompt, which mean nothing."""
        return output if self.lengths is None else output[: self.lengths[case]]

    def tokens(self) -> list[str]:
        """The vocabulary's strings."""
        path = self.path("tokens.json")
        tokens = _json(path)
        if not isinstance(tokens, list) or len(tokens) != self.output_shape[-1]:
            raise UsageError(f"{path}: expected a list of {self.output_shape[-1]} strings")
        return tokens

    def _select(
        self, array: np.ndarray, case: int, shape: tuple[int, ...], where: str
    ) -> np.ndarray:
        _same_shape(array, (self.cases, *shape), where)
        return array[case]


def read_export(directory: Path) -> Export:
    """Reads meta.json; the other files are opened when they are needed.

    Raises:
        UsageError: if this is not an export, or one of another format.
    """
    path = directory / "meta.json"
    if not path.is_file():
        raise UsageError(f"{directory} is not an export: it has no meta.json")
    meta = _json(path)
    if not isinstance(meta, dict) or "format" not in meta:
        raise UsageError(f"{path}: not the meta.json of an export")
    if meta["format"] != FORMAT:
        raise UsageError(
            f"{path}: format {meta['format']}, and this program reads format {FORMAT}; export again"
        )
    try:
        export = _export(directory, meta)
    except KeyError as error:
        raise UsageError(f"{path}: {error.args[0]!r} is missing") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{path}: malformed ({error})") from error
    _validate(export, path)
    return export


def _export(directory: Path, meta: dict[str, Any]) -> Export:
    fixed_point, output = meta["fixed_point"], meta["output"]
    return Export(
        directory=directory,
        kind=meta["kind"],
        name=str(meta["name"]),
        field_bits=int(fixed_point["field_bits"]),
        fraction_bits=int(fixed_point["fraction_bits"]),
        exp_iterations=int(fixed_point["exp_iterations"]),
        arguments=tuple(
            Argument(item["name"], item["owner"], _shape(item["shape"]), item["encoding"])
            for item in meta["arguments"]
        ),
        output_name=output["name"],
        output_shape=_shape(output["shape"]),
        cases=int(meta["cases"]),
        lengths=tuple(int(n) for n in meta["lengths"]) if meta["kind"] == "model" else None,
        files=dict(meta["files"]),
    )


def _validate(export: Export, path: Path) -> None:
    if export.kind not in ("model", "part"):
        raise UsageError(f"{path}: kind {export.kind!r}, expected 'model' or 'part'")
    for argument in export.arguments:
        if argument.owner not in OWNERS:
            raise UsageError(f"{path}: {argument.name} has unknown owner {argument.owner!r}")
        if argument.encoding not in ("array", "one_hot"):
            raise UsageError(f"{path}: {argument.name} has unknown encoding {argument.encoding!r}")
    if export.field_bits not in (32, 64, 128):
        raise UsageError(f"{path}: field_bits {export.field_bits}, expected 32, 64 or 128")
    if export.lengths is not None:
        if len(export.output_shape) != 2:
            raise UsageError(f"{path}: a model's output must be [positions, tokens]")
        window = export.output_shape[0]
        if len(export.lengths) != export.cases or not all(
            0 < length <= window for length in export.lengths
        ):
            raise UsageError(
                f"{path}: lengths must be {export.cases} numbers from 1 to {window}, "
                f"got {list(export.lengths)}"
            )


def _shape(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _stored_shape(argument: Argument) -> tuple[int, ...]:
    return argument.shape[:-1] if argument.encoding == "one_hot" else argument.shape


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not readable as JSON ({error})") from error


def _arrays(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            absent = [name for name in names if name not in archive.files]
            if absent:
                raise UsageError(f"{path}: no array {absent[0]!r}")
            return {name: archive[name] for name in names}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path}: not readable as npz ({error})") from error


def _decode(array: np.ndarray, argument: Argument, where: str) -> np.ndarray:
    _same_shape(array, _stored_shape(argument), where)
    if argument.encoding == "array":
        return _finite(array, where)
    if array.dtype.kind not in "iu":
        raise UsageError(f"{where}: expected integers, got {array.dtype}")
    size = argument.shape[-1]
    if array.size and (array.min() < 0 or array.max() >= size):
        raise UsageError(f"{where}: expected tokens from 0 to {size - 1}, got others")
    return (array[..., None] == np.arange(size)).astype(np.float32)


def _same_shape(array: np.ndarray, shape: tuple[int, ...], where: str) -> None:
    if array.shape != shape:
        raise UsageError(f"{where}: expected shape {list(shape)}, got {list(array.shape)}")


def _finite(array: np.ndarray, where: str) -> np.ndarray:
    if array.dtype.kind != "f":
        raise UsageError(f"{where}: expected floats, got {array.dtype}")
    if not np.isfinite(array).all():
        raise UsageError(f"{where}: contains values that are not finite")
    return np.ascontiguousarray(array, np.float32)

"""Reads an export and checks it: every party opens the files that belong to it, and no other."""

from __future__ import annotations

import contextlib
import hashlib
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from errors import UsageError

FORMAT = 1
FIELD_BITS = 64  # what egattn writes, and all that is tested
OWNERS = {"client": 0, "server": 1, "shared": -1}  # the rank that knows the value; -1: nobody


@dataclass(frozen=True)
class Argument:
    """One parameter of the program: who owns it, its float32 shape, how its array is stored."""

    name: str
    owner: str
    shape: tuple[int, ...]
    encoding: str


@dataclass(frozen=True)
class Program:
    """What program.json says, which every party reads."""

    directory: Path
    kind: str
    name: str
    field_bits: int
    fraction_bits: int
    exp_iterations: int
    arguments: tuple[Argument, ...]
    output_name: str
    output_shape: tuple[int, ...]
    model_sha256: str

    def require_owners(self) -> None:
        """Raises UsageError if some argument belongs to no party that could read it."""
        if any(argument.owner == "shared" for argument in self.arguments):
            raise UsageError(
                f"{self.directory} is a part with shared inputs: parts are measured in one process"
            )

    def text(self) -> str:
        """The program itself, StableHLO as text."""
        path = self.directory / "model.mlir"
        _verify(path, self.model_sha256)
        return path.read_text(encoding="utf-8")


@dataclass(frozen=True)
class Files:
    """One party's files: `index` is its JSON file, `digests` maps the others' names to SHA-256."""

    index: Path
    digests: dict[str, str]

    def path(self, name: str) -> Path:
        """A file, after comparing its SHA-256 with the one in the index.

        Raises:
            UsageError: if the file is missing, not listed, or not the one that was exported.
        """
        if name not in self.digests:
            raise UsageError(f"{self.index} lists no {name}")
        path = self.index.with_name(name)
        _verify(path, self.digests[name])
        return path


@dataclass(frozen=True)
class Client:
    """One case of the client's; `lengths` are the prompts' (models only)."""

    program: Program
    files: Files
    cases: int
    lengths: tuple[int, ...] | None
    case: int

    def values(self) -> dict[str, np.ndarray]:
        """The float32 arguments that are not the server's, one-hot where the program wants it.

        Raises:
            UsageError: if an array is missing, has another shape or type, or is not finite.
        """
        mine = [argument for argument in self.program.arguments if argument.owner != "server"]
        if not mine:
            return {}
        path = self.files.path("inputs.npz")
        stored = _arrays(path, [argument.name for argument in mine])
        values = {}
        for argument in mine:
            where = f"{path}: {argument.name}"
            array = self._select(stored[argument.name], _stored_shape(argument), where)
            values[argument.name] = _decode(array, argument, where)
        return values

    def expected(self) -> np.ndarray | None:
        """The plaintext output without the padding behind the prompt; None if nobody knows it."""
        name, program = "expected.npz", self.program
        if name not in self.files.digests and not self.files.index.with_name(name).exists():
            return None
        path = self.files.path(name)
        where = f"{path}: {program.output_name}"
        array = _arrays(path, [program.output_name])[program.output_name]
        array = self._select(array, program.output_shape, where)
        return _finite(self.unpadded(array), where)

    def unpadded(self, output: np.ndarray) -> np.ndarray:
        """An output without the positions behind the prompt, which mean nothing."""
        return output if self.lengths is None else output[: self.lengths[self.case]]

    def tokens(self) -> list[str]:
        """The vocabulary's strings."""
        path, size = self.files.path("tokens.json"), self.program.output_shape[-1]
        tokens = _json(path)
        if not isinstance(tokens, list) or len(tokens) != size:
            raise UsageError(f"{path}: expected a list of {size} strings")
        return tokens

    def _select(self, array: np.ndarray, shape: tuple[int, ...], where: str) -> np.ndarray:
        _same_shape(array, (self.cases, *shape), where)
        return array[self.case]


def read_program(directory: Path) -> Program:
    """Reads program.json, which says what all parties must know.

    Raises:
        UsageError: if this is not an export, or one of another format.
    """
    path = directory / "program.json"
    if not path.is_file():
        raise UsageError(f"{directory} is not an export: it has no program.json")
    content = _json(path)
    if not isinstance(content, dict) or "format" not in content:
        raise UsageError(f"{path}: not the program.json of an export")
    if content["format"] != FORMAT:
        raise UsageError(
            f"{path}: format {content['format']}, and this program reads format {FORMAT}; "
            "export again"
        )
    with _well_formed(path):
        program = _program(directory, content)
    _validate(program, path)
    return program


def read_client(program: Program, case: int) -> Client:
    """Reads client.json; the client's other files are opened when they are needed.

    Args:
        program: what is to be run.
        case: which of the client's inputs.

    Raises:
        UsageError: if the client's files are not there or malformed, or there is no such case.
    """
    files, content = _files(program, "client")
    with _well_formed(files.index):
        cases, lengths = int(content["cases"]), None
        if cases < 1:
            raise ValueError(f"cases: expected at least 1, got {cases}")
        if program.kind == "model":
            lengths = tuple(int(n) for n in content["lengths"])
            window = program.output_shape[0]
            if len(lengths) != cases or not all(0 < length <= window for length in lengths):
                raise UsageError(
                    f"{files.index}: lengths must be {cases} numbers from 1 to {window}, "
                    f"got {list(lengths)}"
                )
    if not 0 <= case < cases:
        raise UsageError(f"--case {case}: {program.directory} has cases 0 to {cases - 1}")
    return Client(program, files, cases, lengths, case)


def read_weights(program: Program) -> dict[str, np.ndarray]:
    """The server's arguments, float32; opens the server's files if there are any.

    Raises:
        UsageError: as `Client.values`.
    """
    mine = [argument for argument in program.arguments if argument.owner == "server"]
    if not mine:
        return {}
    path = _files(program, "server")[0].path("weights.npz")
    stored = _arrays(path, [argument.name for argument in mine])
    return {
        argument.name: _decode(stored[argument.name], argument, f"{path}: {argument.name}")
        for argument in mine
    }


def _files(program: Program, role: str) -> tuple[Files, dict[str, Any]]:
    """A party's files, and what its JSON file says."""
    index = program.directory / role / f"{role}.json"
    if not index.is_file():
        raise UsageError(f"{program.directory} lacks the {role}'s files: no {role}/{role}.json")
    content = _json(index)
    if not isinstance(content, dict):
        raise UsageError(f"{index}: not the {role}.json of an export")
    with _well_formed(index):
        return Files(index, dict(content["files"])), content


@contextlib.contextmanager
def _well_formed(path: Path) -> Iterator[None]:
    """Turns what reading a malformed JSON file raises into UsageError."""
    try:
        yield
    except KeyError as error:
        raise UsageError(f"{path}: {error.args[0]!r} is missing") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{path}: malformed ({error})") from error


def _program(directory: Path, content: dict[str, Any]) -> Program:
    fixed_point, output = content["fixed_point"], content["output"]
    return Program(
        directory=directory,
        kind=content["kind"],
        name=str(content["name"]),
        field_bits=int(fixed_point["field_bits"]),
        fraction_bits=int(fixed_point["fraction_bits"]),
        exp_iterations=int(fixed_point["exp_iterations"]),
        arguments=tuple(
            Argument(item["name"], item["owner"], _shape(item["shape"]), item["encoding"])
            for item in content["arguments"]
        ),
        output_name=output["name"],
        output_shape=_shape(output["shape"]),
        model_sha256=str(content["model_sha256"]),
    )


def _validate(program: Program, path: Path) -> None:
    if program.kind not in ("model", "part"):
        raise UsageError(f"{path}: kind {program.kind!r}, expected 'model' or 'part'")
    for argument in program.arguments:
        if argument.owner not in OWNERS:
            raise UsageError(f"{path}: {argument.name} has unknown owner {argument.owner!r}")
        if argument.encoding not in ("array", "one_hot"):
            raise UsageError(f"{path}: {argument.name} has unknown encoding {argument.encoding!r}")
    if program.field_bits != FIELD_BITS:
        raise UsageError(f"{path}: field_bits {program.field_bits}, expected {FIELD_BITS}")
    if program.kind == "model" and len(program.output_shape) != 2:
        raise UsageError(f"{path}: a model's output must be [positions, tokens]")


def _verify(path: Path, sha256: str) -> None:
    """Raises UsageError unless the file is there and has this SHA-256."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    if digest.hexdigest() != sha256:
        raise UsageError(f"{path}: changed since it was exported (SHA-256 differs)")


def _shape(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _stored_shape(argument: Argument) -> tuple[int, ...]:
    return argument.shape[:-1] if argument.encoding == "one_hot" else argument.shape


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
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

"""A program for two parties as a directory: what `experiments/private_inference/run.py` runs.

Both parties get `program.json` and `model.mlir`, the program as StableHLO text, in which nothing
depends on weights or prompts. `client/` is the client's: its inputs, and for comparison the results
in plain float32. `server/` is the server's: its arrays, and what else is known about the network.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

import egattn
from egattn.private.ranges import FixedPoint, check, measure
from egattn.run.staging import staged_directory

FORMAT = 1

# What a fixed-point run would do badly or not at all: rows looked up by secret numbers, and
# operations that only newer compilers know.
_FORBIDDEN = ("stablehlo.gather", "stablehlo.dynamic", "chlo.", "custom_call")


@dataclasses.dataclass(frozen=True)
class Input:
    """An argument that differs from case to case."""

    name: str
    """Name of the argument."""
    owner: Literal["client", "shared"]
    """The client, or nobody: then both parties hold a share from the start."""
    cases: np.ndarray
    """Values [cases, ...]: float32, or int32 for numbers to be encoded one-hot."""
    classes: int | None = None
    """Length of the one-hot rows; None: the values are used as they are."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the program's argument."""
        return (
            self.cases.shape[1:] if self.classes is None else (*self.cases.shape[1:], self.classes)
        )

    def value(self, case: int) -> np.ndarray:
        """The program's argument in one case."""
        value = self.cases[case]
        if self.classes is None:
            return value
        return (value[..., None] == np.arange(self.classes)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Program:
    """What is to be computed, and in which arithmetic."""

    kind: Literal["model", "part"]
    """"model" if the results are next-token logits."""
    name: str
    """For people; both parties see it."""
    function: Callable
    """Of a dict of weights and then of the inputs."""
    weights: Mapping[str, np.ndarray]
    """The server's arrays."""
    inputs: Sequence[Input]
    """The other arguments, each with as many cases."""
    output: str
    """Name of the result."""

    def arguments(self, cases: Sequence[Input] | None = None) -> list[list[np.ndarray]]:
        """Values of the inputs, case by case; `cases` stand in for the program's own."""
        inputs = cases or self.inputs
        return [[x.value(i) for x in inputs] for i in range(len(inputs[0].cases))]


class Compiled(NamedTuple):
    """A program as text, and what it gives."""

    text: str
    """StableHLO."""
    expected: np.ndarray
    """Results of all cases in plain float32, [cases, ...]."""


def compile_program(program: Program) -> Compiled:
    """Compiles a program.

    Raises:
      NotImplementedError: If an operation of it would run badly or not at all.
    """
    names = sorted(program.weights)

    def positional(*args):
        return program.function(dict(zip(names, args, strict=False)), *args[len(names) :])

    # Every argument stays a parameter, used or not.
    compiled = jax.jit(positional, keep_unused=True)
    weights, cases = [program.weights[name] for name in names], program.arguments()
    text = compiled.lower(*weights, *cases[0]).as_text()
    for operation in _FORBIDDEN:
        if operation in text:
            raise NotImplementedError(f"{program.name}: {operation} cannot run")
    return Compiled(text, np.stack([np.asarray(compiled(*weights, *x)) for x in cases]))


def check_ranges(program: Program, cases: Sequence[Input] | None = None) -> list[dict[str, Any]]:
    """Returns the ranges of all numbers of a program, see `egattn.private.ranges`.

    Raises:
      ValueError: If one of them leaves the range of the fixed-point arithmetic.
    """
    arguments = [(program.weights, *values) for values in program.arguments(cases)]
    ranges = measure(program.function, arguments)
    check(ranges, FixedPoint())
    return [dataclasses.asdict(r) for r in ranges]


def write_artifact(
    directory: Path,
    program: Program,
    compiled: Compiled,
    server: Mapping[str, Any],
    client: Mapping[str, Any],
    tokens: Sequence[str] | None = None,
) -> None:
    """Writes a program, complete or not at all.

    Args:
      directory: Made; must not exist.
      program: What to write.
      compiled: The same, compiled.
      server: What else the server gets to know.
      client: What else the client gets to know.
      tokens: The vocabulary as text.

    Raises:
      FileExistsError: If the directory exists.
    """
    if directory.exists():
        raise FileExistsError(f"{directory} exists")
    inputs = {x.name: x.cases for x in program.inputs}
    with staged_directory(directory) as staging:
        (staging / "model.mlir").write_text(compiled.text, encoding="utf-8")
        _write_json(staging / "program.json", _public(program, compiled))
        _write_party(staging / "server", server, weights=program.weights)
        if tokens is not None:
            (staging / "client").mkdir()
            _write_json(staging / "client" / "tokens.json", tokens)
        client = {"cases": len(compiled.expected), **client}
        expected = {program.output: compiled.expected}
        _write_party(staging / "client", client, inputs=inputs, expected=expected)


def _public(program: Program, compiled: Compiled) -> dict[str, Any]:
    """What both parties have to know, and nothing that depends on weights or inputs."""
    weights, inputs = program.weights, program.inputs
    arguments = [(name, "server", weights[name].shape, "array") for name in sorted(weights)]
    arguments += [(x.name, x.owner, x.shape, "one_hot" if x.classes else "array") for x in inputs]
    keys = ("name", "owner", "shape", "encoding")
    return {
        "format": FORMAT,
        "kind": program.kind,
        "name": program.name,
        "egattn": egattn.__version__,
        "fixed_point": dataclasses.asdict(FixedPoint()),
        "arguments": [dict(zip(keys, row, strict=True)) for row in arguments],
        "output": {"name": program.output, "shape": compiled.expected.shape[1:]},
        "model_sha256": hashlib.sha256(compiled.text.encode()).hexdigest(),
    }


def _write_party(directory: Path, about: Mapping[str, Any], **arrays: Mapping[str, Any]) -> None:
    """One party's arrays, and NAME.json with their checksums."""
    directory.mkdir(exist_ok=True)
    for name, content in arrays.items():
        np.savez(directory / f"{name}.npz", **content)
    files = {x.name: hashlib.sha256(x.read_bytes()).hexdigest() for x in directory.iterdir()}
    _write_json(directory / f"{directory.name}.json", {**about, "files": files})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

"""A program for two parties as a directory: what `experiments/private_inference/run.py` runs.

`model.mlir` is the program as StableHLO text, `weights.npz` what the server holds, `inputs.npz`
what the client holds, `expected.npz` the results in plain float32, `meta.json` all the rest.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

import egattn
from egattn.data.staging import staged_directory
from egattn.private.ranges import FixedPoint, check, measure

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
    """For people."""
    function: Callable
    """Of a dict of weights and then of the inputs."""
    weights: Mapping[str, np.ndarray]
    """The server's arrays."""
    inputs: Sequence[Input]
    """The other arguments, each with as many cases."""
    output: str
    """Name of the result."""
    fixed_point: FixedPoint
    """The arithmetic whose ranges all numbers must keep to."""


def write_artifact(
    directory: Path,
    program: Program,
    about: Mapping[str, Any],
    files: Mapping[str, str] | None = None,
) -> np.ndarray:
    """Writes a program, complete or not at all; returns the expected results [cases, ...].

    Args:
      directory: Made; must not exist.
      program: What to write.
      about: More entries of meta.json.
      files: More files, text by name.

    Raises:
      FileExistsError: If the directory exists.
      ValueError: If a number leaves the range of the fixed-point arithmetic in one of the cases.
    """
    if directory.exists():
        raise FileExistsError(f"{directory} exists")
    p = program
    cases = [[x.value(i) for x in p.inputs] for i in range(len(p.inputs[0].cases))]
    ranges = measure(p.function, [(p.weights, *values) for values in cases])
    check(ranges, p.fixed_point)
    text, expected = _lower(p, cases)
    arrays = {
        "weights": p.weights,
        "inputs": {x.name: x.cases for x in p.inputs},
        "expected": {p.output: expected},
    }
    with staged_directory(directory) as staging:
        for file, content in {"model.mlir": text, **(files or {})}.items():
            (staging / file).write_text(content, encoding="utf-8")
        for file, content in arrays.items():
            np.savez(staging / f"{file}.npz", **content)  # pyright: ignore[reportArgumentType]
        written = [path for path in sorted(staging.iterdir()) if not path.name.startswith(".")]
        meta = {
            **_describe(p, expected.shape),
            **about,
            "ranges": [dataclasses.asdict(r) for r in ranges],
            "files": {x.name: hashlib.sha256(x.read_bytes()).hexdigest() for x in written},
        }
        (staging / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    return expected


def _lower(p: Program, cases: Sequence[Sequence[np.ndarray]]) -> tuple[str, np.ndarray]:
    """StableHLO text, and the results of all cases in plain float32."""
    names = sorted(p.weights)

    def positional(*args):
        return p.function(dict(zip(names, args, strict=False)), *args[len(names) :])

    # Every argument stays a parameter, used or not.
    compiled = jax.jit(positional, keep_unused=True)
    weights = [p.weights[name] for name in names]
    text = compiled.lower(*weights, *cases[0]).as_text()
    for operation in _FORBIDDEN:
        if operation in text:
            raise NotImplementedError(f"{p.name}: the program has {operation}, which cannot run")
    return text, np.stack([np.asarray(compiled(*weights, *values)) for values in cases])


def _describe(p: Program, results: tuple[int, ...]) -> dict[str, Any]:
    """What the one who runs the program has to know."""
    arguments = [(name, "server", p.weights[name].shape, "array") for name in sorted(p.weights)]
    arguments += [(x.name, x.owner, x.shape, "one_hot" if x.classes else "array") for x in p.inputs]
    keys = ("name", "owner", "shape", "encoding")
    return {
        "format": FORMAT,
        "kind": p.kind,
        "name": p.name,
        "egattn": egattn.__version__,
        "fixed_point": dataclasses.asdict(p.fixed_point),
        "arguments": [dict(zip(keys, row, strict=True)) for row in arguments],
        "output": {"name": p.output, "shape": results[1:]},
        "cases": results[0],
    }

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


def write_artifact(
    directory: Path,
    kind: Literal["model", "part"],
    name: str,
    program: Callable,
    weights: Mapping[str, np.ndarray],
    inputs: Sequence[Input],
    output: str,
    fixed_point: FixedPoint,
    about: Mapping[str, Any],
    files: Mapping[str, str] | None = None,
) -> np.ndarray:
    """Writes a program, complete or not at all; returns the expected results [cases, ...].

    Args:
      directory: Made; must not exist.
      kind: "model" if the results are next-token logits.
      name: For people.
      program: A function of a dict of weights and then of the inputs.
      weights: The server's arrays.
      inputs: The other arguments.
      output: Name of the result.
      fixed_point: The arithmetic to check all ranges for.
      about: More entries of meta.json.
      files: More files, text by name.

    Raises:
      FileExistsError: If the directory exists.
      ValueError: If a number leaves the range of the fixed-point arithmetic in one of the cases.
    """
    if directory.exists():
        raise FileExistsError(f"{directory} exists")
    cases = [[x.value(i) for x in inputs] for i in range(len(inputs[0].cases))]
    ranges = measure(program, [(weights, *values) for values in cases])
    check(ranges, fixed_point)
    names = sorted(weights)

    def positional(*args):
        return program(dict(zip(names, args, strict=False)), *args[len(names) :])

    # Every argument stays a parameter, used or not.
    compiled = jax.jit(positional, keep_unused=True)
    arrays = [weights[n] for n in names]
    text = compiled.lower(*arrays, *cases[0]).as_text()
    for operation in _FORBIDDEN:
        if operation in text:
            raise NotImplementedError(f"{name}: the program has {operation}, which cannot run")
    expected = np.stack([np.asarray(compiled(*arrays, *values)) for values in cases])
    owners = [(n, "server", weights[n].shape, "array") for n in names]
    owners += [(x.name, x.owner, x.shape, "one_hot" if x.classes else "array") for x in inputs]
    meta = {
        "format": FORMAT,
        "kind": kind,
        "name": name,
        "egattn": egattn.__version__,
        "fixed_point": dataclasses.asdict(fixed_point),
        "arguments": [
            dict(zip(("name", "owner", "shape", "encoding"), row, strict=True)) for row in owners
        ],
        "output": {"name": output, "shape": expected.shape[1:]},
        "cases": len(cases),
        **about,
        "ranges": [dataclasses.asdict(r) for r in ranges],
    }
    with staged_directory(directory) as staging:
        for file, content in {"model.mlir": text, **(files or {})}.items():
            (staging / file).write_text(content, encoding="utf-8")
        arrays = {
            "weights": weights,
            "inputs": {x.name: x.cases for x in inputs},
            "expected": {output: expected},
        }
        for file, content in arrays.items():
            np.savez(staging / f"{file}.npz", **content)  # pyright: ignore[reportArgumentType]
        written = [path for path in sorted(staging.iterdir()) if not path.name.startswith(".")]
        meta["files"] = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in written}
        (staging / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    return expected

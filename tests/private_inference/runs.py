"""Runs of the program that executes exports under secure computation, and exports by hand."""

import contextlib
import hashlib
import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.processes import Process, spawn

REPOSITORY = Path(__file__).parents[2]
PROGRAM = REPOSITORY / "experiments" / "private_inference"
PYTHON = os.environ.get("EGATTN_PRIVATE_PYTHON", REPOSITORY / ".venv-private" / "bin" / "python")
spu = pytest.mark.skipif(
    not Path(PYTHON).exists(), reason=f"{PYTHON} does not exist; `make private-env` makes it"
)

# Its XLA is an older one, which ends at flags that it does not know.
ENVIRONMENT = {"XLA_FLAGS": ""}

POSITIONS, TOKENS, WIDTH = 8, 12, 6
_GENERATOR = np.random.default_rng(0)
WEIGHTS = {
    "embedding": _GENERATOR.normal(size=(TOKENS, WIDTH)).astype(np.float32),
    "scores": _GENERATOR.normal(size=(WIDTH, WIDTH)).astype(np.float32) * np.float32(0.4),
    "head": _GENERATOR.normal(size=(WIDTH, TOKENS)).astype(np.float32),
}
IDS = _GENERATOR.integers(0, TOKENS, (2, POSITIONS)).astype(np.int32)
LENGTHS = [8, 5]
FIXED_POINT = {"field_bits": 64, "fraction_bits": 18, "exp_iterations": 8}
# A causal mask of -1e4 makes SPU's exponential return garbage of order 1e7.
PART_INPUTS = np.where([[[False]], [[True]]], -1e4, _GENERATOR.normal(size=(2, 4, 6)))
PART_INPUTS[1, :, :2] = 0.5


def model(tokens, embedding, scores, head):
    x = tokens @ embedding
    return jax.nn.softmax(x @ scores @ x.T) @ x @ head


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def oracle(ids: np.ndarray) -> np.ndarray:
    x = WEIGHTS["embedding"].astype(np.float64)[ids]
    return softmax(x @ WEIGHTS["scores"] @ x.T) @ x @ WEIGHTS["head"]


def expected_logits() -> np.ndarray:
    return np.stack([oracle(ids) for ids in IDS]).astype(np.float32)


def argument(name: str, owner: str, shape: tuple[int, ...], encoding: str = "array") -> dict:
    return {"name": name, "owner": owner, "shape": list(shape), "encoding": encoding}


def write_export(directory: Path, about: dict, function: Any, **arrays: dict) -> Path:
    """Writes an export.

    Args:
      directory: Made; must not exist.
      about: Of program.json and client.json.
      function: Of arrays.
      arrays: The contents of weights, inputs and expected.
    """
    for role in ("client", "server"):
        (directory / role).mkdir(parents=True)
        (directory / role / f"{role}.json").write_text("{}")
    shapes = [jax.ShapeDtypeStruct(a["shape"], jnp.float32) for a in about["arguments"]]
    text = jax.jit(function, keep_unused=True).lower(*shapes).as_text()
    (directory / "model.mlir").write_text(text)
    for name, content in arrays.items():
        role = "server" if name == "weights" else "client"
        np.savez(directory / role / f"{name}.npz", **content)
    client: dict[str, Any] = {"cases": 2}
    if about["kind"] == "model":
        client["lengths"] = LENGTHS
        tokens = json.dumps([f"<{i}>" for i in range(TOKENS)])
        (directory / "client" / "tokens.json").write_text(tokens)
    common = {"format": 1, "egattn": "0.1.0", "fixed_point": FIXED_POINT}
    (directory / "program.json").write_text("{}")
    seal(directory, program=common | about, client=client)
    return directory


def write_model(directory: Path) -> Path:
    tokens = argument("tokens", "client", (POSITIONS, TOKENS), "one_hot")
    about = {
        "kind": "model",
        "name": "tiny",
        "arguments": [tokens, *(argument(k, "server", v.shape) for k, v in WEIGHTS.items())],
        "output": {"name": "logits", "shape": [POSITIONS, TOKENS]},
    }
    expected = expected_logits()
    expected[1, LENGTHS[1] :] = np.nan  # padding is nobody's business
    inputs, logits = {"tokens": IDS}, {"logits": expected}
    return write_export(directory, about, model, weights=WEIGHTS, inputs=inputs, expected=logits)


def seal(directory: Path, **changes: dict) -> None:
    """Writes what the files' digests are now, and changes to `program`, `client` or `server`."""
    model = {"model_sha256": sha256(directory / "model.mlir")}
    _update(directory / "program.json", model | changes.get("program", {}))
    for role in ("client", "server"):
        path = directory / role / f"{role}.json"
        files = {file.name: sha256(file) for file in path.parent.iterdir() if file != path}
        _update(path, {"files": files} | changes.get(role, {}))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _update(path: Path, changes: dict) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change(directory: Path, file: str, **arrays: np.ndarray) -> None:
    """Replaces arrays of a file, such as client/inputs.npz, as if they had been exported so."""
    with np.load(directory / file) as old:
        np.savez(directory / file, **{**old, **arrays})
    seal(directory)


def start(*words: Any, python: Any = PYTHON) -> Process:
    streams: dict[str, Any] = {"stderr": subprocess.PIPE, "env": ENVIRONMENT}
    return spawn(PROGRAM / "run.py", *words, python=python, **streams)


def finish(process: Process) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


def run(*words: Any) -> str:
    """A run that must go well, without a word on standard error."""
    status, output, errors = finish(start(*words))
    assert (status, errors) == (0, ""), errors
    return output


def refused(*words: Any, status: int = 2) -> str:
    """A run that must end with one line on standard error and nothing else."""
    return one_line(start(*words), status)


def one_line(process: Process, status: int) -> str:
    ended, output, errors = finish(process)
    assert (ended, output) == (status, ""), errors
    lines = errors.splitlines()
    assert len(lines) == 1, errors
    assert lines[0].startswith("run.py: "), errors
    return lines[0].removeprefix("run.py: ")


def free_addresses(count: int) -> list[str]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


def executed(out: Path, *words: Any) -> dict[str, Any]:
    """The result of a run that must go well."""
    run(*words, "--out", out)
    return json.loads(out.read_text())

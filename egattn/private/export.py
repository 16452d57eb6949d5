"""A trained decoder as a program for two parties."""

import dataclasses
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro

from egattn.data import Manifest, evaluation_batches, load_tokenizer_of
from egattn.model import Decoder
from egattn.private.artifact import (
    Input,
    Program,
    check_ranges,
    compile_program,
    write_artifact,
)
from egattn.private.fold import fold
from egattn.private.program import Gelu, program
from egattn.train.config import TrainConfig
from egattn.train.evaluate import with_data
from egattn.train.variables import load_variables

# Largest difference between program and decoder, of the largest logit: rounding, or GELU's form.
_TOLERANCE: dict[Gelu, float] = {"tanh": 1e-3, "polynomial": 5e-2}


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Writes a trained decoder as a program for two parties, with prompts and expected results.

    Whoever runs this sees both parties' data: it prepares tests and measurements.
    """

    run: tyro.conf.Positional[Path]
    """Run directory."""
    out: tyro.conf.Positional[Path]
    """Directory to make."""
    step: int | None = None
    """Checkpoint to export; default: the newest."""
    data: Path | None = None
    """Directory written by `egattn prepare`; default: the one the run was trained on."""
    length: int | None = None
    """Positions T of the program, which prompts are filled up to; default: the context length."""
    prompts: tuple[str, ...] = ()
    """Prompts; default: the windows."""
    windows: int = 8
    """Windows of the validation split on which the range of all numbers is checked."""
    gelu: Gelu = "tanh"
    """Form of GELU, where the network has any; "polynomial" is off by at most 1.8e-3 and costs a
    quarter."""

    def __post_init__(self):
        """Checks the values."""
        if self.windows < 1:
            raise ValueError(f"windows must be >= 1, got {self.windows}")


class Exported(NamedTuple):
    """A program that was written."""

    name: str
    """For people; both parties see it."""
    cases: int
    """Prompts that go with it."""
    difference: float
    """Largest one between the program's logits and the decoder's, both in float32 without
    encryption."""
    largest: float
    """The decoder's largest logit."""


def export(config: ExportConfig) -> Exported:
    """Writes the program.

    Raises:
      FileNotFoundError: If the run or the checkpoint is missing.
      ValueError: If run, data and prompts do not fit together, weights are not finite or
        activations leave the range of the fixed-point arithmetic.
      RuntimeError: If the program does not compute what the decoder does.
    """
    trained = TrainConfig.read(config.run)
    trained, manifest = with_data(trained, config.data, other=True)
    model = dataclasses.replace(trained.model, dtype="float32", implementation="reference")
    length = config.length or model.context_length
    if not 1 <= length <= model.context_length:
        raise ValueError(f"length must lie within 1 to {model.context_length}, got {length}")
    windows = _windows(config, trained, manifest, length)
    tokens, lengths, vocabulary = _prompts(config, trained, manifest, windows)
    step, variables = load_variables(trained.run, config.step)
    artifact = Program(
        "model",
        f"{config.run.name} step {step}, {length} positions",
        program(model, config.gelu),
        fold(model, variables, length, _scale(variables["params"], model.vocab_size)),
        [Input("tokens", "client", tokens, model.vocab_size)],
        "logits",
    )
    ranges = check_ranges(artifact, [Input("tokens", "client", windows, model.vocab_size)])
    compiled = compile_program(artifact)
    output: Any = jax.jit(Decoder(model).apply)(variables, tokens)
    difference = float(np.abs(output.logits - compiled.expected).max())
    largest = float(np.abs(output.logits).max())
    if not difference <= _TOLERANCE[config.gelu] * largest:
        raise RuntimeError(f"program and decoder differ by {difference:g} (logits to {largest:g})")
    about = {
        "run": str(config.run),
        "step": step,
        "preset": trained.preset,
        "config": dataclasses.asdict(trained.model),
        "gelu": config.gelu,
        "ranges": ranges,
    }
    write_artifact(config.out, artifact, compiled, about, {"lengths": lengths}, vocabulary)
    return Exported(artifact.name, len(tokens), difference, largest)


def _windows(
    config: ExportConfig, trained: TrainConfig, manifest: Manifest, length: int
) -> np.ndarray:
    """Tokens [windows, T] of the validation split, see `evaluation_batches`."""
    batches = evaluation_batches(
        trained.data,
        manifest,
        batch_size=config.windows,
        context_length=length,
        max_windows=config.windows,
    )
    tokens, weights = next(batches)
    return tokens[weights > 0, :-1]


def _prompts(
    config: ExportConfig, trained: TrainConfig, manifest: Manifest, windows: np.ndarray
) -> tuple[np.ndarray, list[int], list[str]]:
    """Tokens [cases, T], how many of each row are the prompt, and all tokens as text."""
    tokenizer, end = load_tokenizer_of(trained.data)
    vocabulary = [
        tokenizer.decode([i], skip_special_tokens=False) for i in range(manifest.vocab_size)
    ]
    length = windows.shape[1]
    if config.prompts:
        return *_encode(tokenizer, config.prompts, length, end), vocabulary
    return windows, [length] * len(windows), vocabulary


def _encode(
    tokenizer, prompts: tuple[str, ...], length: int, padding: int
) -> tuple[np.ndarray, list[int]]:
    """Prompts as rows of tokens, filled up at the end, which no earlier position sees."""
    rows = [tokenizer.encode(text, add_special_tokens=False).ids for text in prompts]
    for text, row in zip(prompts, rows, strict=True):
        if not 1 <= len(row) <= length:
            raise ValueError(f"expected prompts of 1 to {length} tokens, got {len(row)}: {text!r}")
    filled = [row + [padding] * (length - len(row)) for row in rows]
    return np.asarray(filled, np.int32), [len(row) for row in rows]


def _scale(params: dict[str, Any], vocab_size: int) -> float:
    """Power of two that brings the residual stream's first entries to a size of 1, about."""
    tables = (
        np.asarray(params["token_embedding"]["embedding"][:vocab_size], np.float64),
        np.asarray(params["position_embedding"]["embedding"], np.float64),
    )
    size = math.sqrt(sum(np.mean(np.square(table)) for table in tables))
    return 2.0 ** round(math.log2(size)) if math.isfinite(size) and size > 0 else 1.0


def describe(config: ExportConfig, exported: Exported) -> str:
    """Returns what `export` returned as text."""
    return (
        f"{exported.name}, {exported.cases} prompts: {config.out}\n"
        f"program and decoder differ by {exported.difference:.1e} at most (logits up to "
        f"{exported.largest:.3g}); on {config.windows} windows no number leaves the range of "
        "fixed point"
    )

"""A trained decoder as a program for two parties."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from egattn.data import Manifest, evaluation_batches, load_manifest, load_tokenizer
from egattn.data.manifest import TOKENIZER_NAME
from egattn.model import Decoder
from egattn.model.linear import SPECTRAL
from egattn.private.artifact import Input, Program, write_artifact
from egattn.private.fold import fold
from egattn.private.program import Gelu, program
from egattn.private.ranges import FixedPoint
from egattn.sharding import make_mesh
from egattn.train.config import TrainConfig
from egattn.train.evaluate import check_data, load_state, read_run


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Writes a trained decoder as a program for two parties, with prompts and expected results."""

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
    """Prompts; default: windows of the validation split."""
    windows: int = 8
    """How many windows, without prompts; activations are checked on all of them."""
    gelu: Gelu = "tanh"
    """Form of GELU, where the network has any; "polynomial" costs a third, with errors of 2e-3."""
    fixed_point: FixedPoint = dataclasses.field(default_factory=FixedPoint)
    """Arithmetic of the private run."""


def export(config: ExportConfig) -> dict[str, Any]:
    """Writes the program.

    Returns:
      `name`; `cases`; `difference`, the largest one between the program's logits and the decoder's,
      both in float32 without encryption, and `largest`, the decoder's largest logit.

    Raises:
      FileNotFoundError: If the run or the checkpoint is missing.
      ValueError: If run, data and prompts do not fit together, weights are not finite or
        activations leave the range of the fixed-point arithmetic.
    """
    run = read_run(config.run)
    run = dataclasses.replace(run, data=config.data or run.data)
    manifest = load_manifest(run.data)
    check_data(run, manifest)
    model = dataclasses.replace(run.model, dtype="float32", implementation="reference")
    length = config.length or model.context_length
    if not 1 <= length <= model.context_length:
        raise ValueError(f"length must lie within 1 to {model.context_length}, got {length}")
    tokens, lengths, vocabulary = _prompts(config, run, manifest, length)
    state = load_state(run, make_mesh("replica=1", jax.devices()[:1]), config.step)
    variables = {"params": state.params, SPECTRAL: state.spectral}
    name = f"{config.run} step {int(state.step)}"
    artifact = Program(
        "model",
        name,
        program(model, config.gelu),
        fold(model, variables, length, _scale(variables["params"], tokens)),
        [Input("tokens", "client", tokens, model.vocab_size)],
        "logits",
        config.fixed_point,
    )
    about = {
        "lengths": lengths,
        "preset": run.preset,
        "gelu": config.gelu,
        "config": dataclasses.asdict(run.model),
    }
    files = {"tokens.json": json.dumps(vocabulary)}
    expected = write_artifact(config.out, artifact, about, files)
    output: Any = jax.jit(Decoder(model).apply)(variables, tokens)
    return {
        "name": name,
        "cases": len(tokens),
        "difference": float(np.abs(output.logits - expected).max()),
        "largest": float(np.abs(output.logits).max()),
    }


def _prompts(
    config: ExportConfig, run: TrainConfig, manifest: Manifest, length: int
) -> tuple[np.ndarray, list[int], list[str]]:
    """Tokens [cases, T], how many of each row are the prompt, and all tokens as text."""
    tokenizer = load_tokenizer(run.data / TOKENIZER_NAME)
    vocabulary = [
        tokenizer.decode([i], skip_special_tokens=False) for i in range(manifest.vocab_size)
    ]
    if config.prompts:
        return *_encode(tokenizer, config.prompts, length, manifest.end_token_id), vocabulary
    source = evaluation_batches(
        run.data, manifest, batch_size=config.windows, context_length=length
    )
    tokens = next(source)[0][:, :-1]
    return tokens, [length] * len(tokens), vocabulary


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


def _scale(params: dict[str, Any], tokens: np.ndarray) -> float:
    """Power of two that brings the residual stream's first entries to a size of 1, about."""
    embedding = np.asarray(params["token_embedding"]["embedding"])[tokens]
    position = np.asarray(params["position_embedding"]["embedding"])[: tokens.shape[1]]
    size = float(np.sqrt(np.mean(np.square(embedding + position, dtype=np.float64))))
    return 2.0 ** round(math.log2(size)) if math.isfinite(size) and size > 0 else 1.0


def describe(config: ExportConfig, values: dict[str, Any]) -> str:
    """Returns what `export` returned as text."""
    return (
        f"{values['name']}, {values['cases']} prompts: {config.out}\n"
        f"program and decoder differ by {values['difference']:.1e} at most (logits up to "
        f"{values['largest']:.3g}); no activation leaves the range of fixed point"
    )

"""What a Hugging Face directory is, and whether `egattn convert` can read it; headers only."""

import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from egattn.convert import gpt2
from egattn.convert.convert import MODEL_TYPE, check_tokenizer, read_own
from egattn.convert.weights import DTYPES, Weights
from egattn.data.manifest import TOKENIZER_NAME
from egattn.inspect.architecture import architecture
from egattn.model import DecoderConfig


class _Headers(Weights):
    """Tensors whose values stay on disk: one zero, seen through each tensor's shape."""

    def read(self, name: str) -> np.ndarray:
        tensor = self.tensors[name]
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{name} is {tensor.dtype}, expected one of {', '.join(DTYPES)}")
        return np.broadcast_to(np.False_, tensor.shape)


def inspect_hugging_face(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Says what a Hugging Face directory is.

    Args:
      path: Directory with config.json and safetensors.
      values: The parsed config.json.

    Returns:
      Plain values; `obstacle` says why `egattn convert` cannot read it, None if it can, as far as
      can be told without the tensors' numbers.
    """
    found: dict[str, Any] = {"kind": "hugging_face", "path": str(path)}
    found |= {"model_type": values["model_type"], "obstacle": None}
    try:
        weights = _Headers(path)
        found |= _tensors(weights)
        model, left_out = _model(path, values, weights)
        tokenizer = path / TOKENIZER_NAME
        sha256 = check_tokenizer(tokenizer, model.vocab_size) if tokenizer.is_file() else None
    except (ValueError, FileNotFoundError) as error:
        return found | {"obstacle": " ".join(str(error).split())}
    found |= {"architecture": architecture(model), "model": dataclasses.asdict(model)}
    return found | {"left_out": left_out, "tokenizer_sha256": sha256}


def _tensors(weights: Weights) -> dict[str, Any]:
    tensors = weights.tensors.values()
    files = sorted({tensor.file for tensor in tensors})
    return {
        "tensors": len(tensors),
        "elements": sum(math.prod(tensor.shape) for tensor in tensors),
        "dtypes": dict(Counter(tensor.dtype for tensor in tensors)),
        "files": [file.name for file in files],
        "bytes": sum(file.stat().st_size for file in files),
    }


def _model(path: Path, values: dict[str, Any], weights: Weights) -> tuple[DecoderConfig, list[str]]:
    """As `egattn.convert.convert` reads it; also the tensors that it leaves out."""
    config = path / "config.json"
    if values["model_type"] == MODEL_TYPE:
        model, _, _ = read_own(values, weights, config)
        return model, []
    if values["model_type"] != gpt2.MODEL_TYPE:
        raise ValueError(f"{config}: expected model_type 'gpt2', got {values['model_type']!r:.100}")
    model, scaling = gpt2.read_config(values, config)
    _, _, left_out = gpt2.read_tensors(model, scaling, weights)
    return model, left_out

"""What a Hugging Face directory is, and whether `egattn convert` can read it; headers only."""

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
from egattn.inspect.found import Convertible, HuggingFaceFound, Tensors
from egattn.model import DecoderConfig


class _Headers(Weights):
    """Tensors whose values stay on disk: one zero, seen through each tensor's shape."""

    def read(self, name: str) -> np.ndarray:
        tensor = self.tensors[name]
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{name} is {tensor.dtype}, expected one of {', '.join(DTYPES)}")
        return np.broadcast_to(np.False_, tensor.shape)


def inspect_hugging_face(path: Path, values: dict[str, Any]) -> HuggingFaceFound:
    """Says what a Hugging Face directory is.

    Args:
      path: Directory with config.json and safetensors.
      values: The parsed config.json.
    """
    tensors = convertible = obstacle = None
    try:
        weights = _Headers(path)
        tensors = _tensors(weights)
        convertible = _convertible(path, values, weights)
    except (ValueError, FileNotFoundError) as error:
        obstacle = " ".join(str(error).split())
    return HuggingFaceFound(path, values["model_type"], obstacle, tensors, convertible)


def _tensors(weights: Weights) -> Tensors:
    tensors = weights.tensors.values()
    files = sorted({tensor.file for tensor in tensors})
    return Tensors(
        tensors=len(tensors),
        elements=sum(math.prod(tensor.shape) for tensor in tensors),
        dtypes=dict(Counter(tensor.dtype for tensor in tensors)),
        files=[file.name for file in files],
        bytes=sum(file.stat().st_size for file in files),
    )


def _convertible(path: Path, values: dict[str, Any], weights: Weights) -> Convertible:
    model, left_out = _model(path, values, weights)
    tokenizer = path / TOKENIZER_NAME
    sha256 = check_tokenizer(tokenizer, model.vocab_size) if tokenizer.is_file() else None
    return Convertible(architecture(model), model, left_out, sha256)


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

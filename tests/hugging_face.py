"""GPT-2 directories written by hand, and GPT-2 in float64: nothing shared with the library."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from egattn.data.tokenizer import train_tokenizer

CONFIG: dict[str, Any] = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 300,
    "n_positions": 16,
    "n_embd": 24,
    "n_layer": 3,
    "n_head": 4,
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-05,
    "resid_pdrop": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "task_specific_params": {"text-generation": {"max_length": 50}},
}
# For any network of 300 tokens and 16 positions.
TOKENS = np.random.default_rng(7).integers(0, 300, (2, 16)).astype(np.int32)
BFLOAT16 = ml_dtypes.bfloat16


def gpt2(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors under the names that transformers writes."""
    rng = np.random.default_rng(seed)
    d, inner = config["n_embd"], config["n_inner"] or 4 * config["n_embd"]

    def random(*shape: int, mean: float = 0.0, std: float = 0.2) -> np.ndarray:
        return (mean + std * rng.standard_normal(shape)).astype(np.float32)

    tensors = {"wte.weight": random(config["vocab_size"], d)}
    tensors["wpe.weight"] = random(config["n_positions"], d)
    for i in range(config["n_layer"]):
        for name in ("ln_1", "ln_2"):
            tensors[f"h.{i}.{name}.weight"] = random(d, mean=1.0)
            tensors[f"h.{i}.{name}.bias"] = random(d)
        sizes = {"attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d)}
        for name, size in (sizes | {"mlp.c_fc": (d, inner), "mlp.c_proj": (inner, d)}).items():
            tensors[f"h.{i}.{name}.weight"] = random(*size)
            tensors[f"h.{i}.{name}.bias"] = random(size[1])
    tensors["ln_f.weight"], tensors["ln_f.bias"] = random(d, mean=1.0), random(d)
    tensors = {f"transformer.{name}": value for name, value in tensors.items()}
    if not config.get("tie_word_embeddings", True):
        tensors["lm_head.weight"] = random(config["vocab_size"], d)
    return tensors


def write(directory: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    """A directory as save_pretrained leaves it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def write_shards(directory: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    """The same, with every third tensor in a file."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    weight_map = {}
    for i in range(3):
        file = f"model-{i + 1:05d}-of-00003.safetensors"
        names = sorted(tensors)[i::3]
        save_file({name: tensors[name] for name in names}, directory / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def write_tokenizer(directory: Path, vocab_size: int) -> None:
    """A byte-level tokenizer of exactly that size."""
    text = " ".join(f"{a}{b}{c}" for a in "abcdef" for b in "uvwxyz" for c in "klmnopqrst")
    tokenizer = train_tokenizer([text] * 2, vocab_size)
    assert tokenizer.get_vocab_size() == vocab_size
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)


def read(directory: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """config.json and tensors of a directory."""
    config = json.loads((directory / "config.json").read_text())
    return config, load_file(directory / "model.safetensors")


def forward(config: dict[str, Any], tensors: dict[str, np.ndarray], tokens: np.ndarray):
    """Logits [B, T, V] and entropies [L, B, H, T] of a GPT-2 in float64."""
    w = {name.removeprefix("transformer."): x.astype(np.float64) for name, x in tensors.items()}
    heads, entropies = config["n_head"], []
    x = w["wte.weight"][tokens] + w["wpe.weight"][: tokens.shape[1]]
    for i in range(config["n_layer"]):
        layer = {k.removeprefix(f"h.{i}."): v for k, v in w.items() if k.startswith(f"h.{i}.")}
        qkv = linear(layer, "attn.c_attn", normalised(layer, "ln_1", x))
        q, k, v = (split(part, heads) for part in np.split(qkv, 3, axis=-1))
        scores = np.einsum("bqhd,bkhd->bhqk", q, k)
        if config.get("scale_attn_weights", True):
            scores /= np.sqrt(q.shape[-1])
        if config.get("scale_attn_by_inverse_layer_idx", False):
            scores /= i + 1
        scores[..., ~np.tri(tokens.shape[1], dtype=bool)] = -np.inf
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        entropies.append(-(p * np.log(p, out=np.zeros_like(p), where=p > 0)).sum(-1))
        attended = np.einsum("bhqk,bkhd->bqhd", p, v).reshape(x.shape)
        x = x + linear(layer, "attn.c_proj", attended)
        hidden = linear(layer, "mlp.c_fc", normalised(layer, "ln_2", x))
        hidden = ACTIVATIONS[config["activation_function"]](hidden)
        x = x + linear(layer, "mlp.c_proj", hidden)
    head = w.get("lm_head.weight", w["wte.weight"])
    return normalised(w, "ln_f", x) @ head.T, np.stack(entropies)


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS = {
    "gelu_new": gelu,
    "gelu_pytorch_tanh": gelu,
    "relu": lambda x: np.maximum(x, 0),
    "linear": lambda x: x,
}


def linear(weights: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]


def normalised(weights: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def split(x: np.ndarray, heads: int) -> np.ndarray:
    return x.reshape(*x.shape[:2], heads, -1)

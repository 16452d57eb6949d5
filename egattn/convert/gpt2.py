"""GPT-2 as Hugging Face's transformers has it: config.json and tensors, to ours and back.

What both have: learned positions, LayerNorm with epsilon 1e-5 before attention and feed-forward and
at the end, two matrices around GELU (tanh form), ReLU or nothing, matrices as [inputs, outputs], a
tied or a separate head. GPT-2 has a bias everywhere, and query, key and value in one matrix. Its
other factors of the scores are temperatures, one per layer. Dropout and the dtype of its products
are not ours to keep: they change no weight.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from egattn.convert.weights import Weights
from egattn.model import DecoderConfig

MODEL_TYPE = "gpt2"
_PREFIX = "transformer."
_BIASES = ("q", "k", "v", "o", "ffn")
_SIZES = {
    "vocab_size": "vocab_size",
    "n_positions": "context_length",
    "n_layer": "num_layers",
    "n_head": "num_heads",
    "n_embd": "embed_dim",
}
_ACTIVATIONS: dict[Any, Any] = {
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "relu": "relu",
    "linear": "identity",
}
# What transformers takes where config.json is silent, and all that we can express.
_ONLY = {"layer_norm_epsilon": (1e-5, 1e-5), "add_cross_attention": (False, False)}
# Other ways to be no plain GPT-2.
_FOREIGN = ("quantization_config", "auto_map", "pruned_heads")
# Causal masks, which old versions of transformers saved.
_MASK = re.compile(r"h\.\d+\.attn\.(masked_)?bias")
# No network is larger; beyond, a config alone takes memory.
_MOST_SIZE, _MOST_LAYERS = 2**24, 2**12
_TEMPERATURE = "attention.log_temperature"


class Scaling(NamedTuple):
    """GPT-2's choices of what the scores are divided by."""

    root: bool = True
    """By the root of the head's width (scale_attn_weights)."""
    layer: bool = False
    """By the number of the layer, from 1 (scale_attn_by_inverse_layer_idx)."""

    def log_temperatures(self, config: DecoderConfig) -> np.ndarray:
        """What our temperatures are then, [L, H, T]: we always divide by the root."""
        first = 1.0 if self.root else config.head_dim**-0.5
        layers = 1 + np.arange(config.num_layers) if self.layer else np.ones(config.num_layers)
        shape = (config.num_layers, config.num_heads, config.context_length)
        return np.broadcast_to(np.log(first * layers)[:, None, None], shape).astype(np.float32)


def read_config(values: Mapping[str, Any], path: Path) -> tuple[DecoderConfig, Scaling]:
    """Returns what a GPT-2's config.json describes.

    Args:
      values: The parsed file.
      path: The file, for error messages.

    Raises:
      ValueError: If a value is missing, is of the wrong type or cannot be expressed.
    """
    sizes: dict[str, Any] = {
        ours: _integer(values, theirs, path) for theirs, ours in _SIZES.items()
    }
    hidden = None if values.get("n_inner") is None else _integer(values, "n_inner", path)
    activation = values.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise ValueError(
            f"{path}: activation_function must be one of {', '.join(_ACTIVATIONS)}, got "
            f"{activation!r:.100}"
        )
    for name, (default, only) in _ONLY.items():
        if values.get(name, default) != only:
            raise ValueError(f"{path}: {name} must be {only}, got {values[name]!r:.100}")
    for name in _FOREIGN:
        if values.get(name):
            raise ValueError(f"{path}: cannot express {name}, got {values[name]!r:.100}")
    root = _boolean(values, "scale_attn_weights", True, path)
    scaling = Scaling(root, _boolean(values, "scale_attn_by_inverse_layer_idx", False, path))
    try:
        config = DecoderConfig(
            **sizes,
            hidden_dim=hidden,
            activation=_ACTIVATIONS[activation],
            temperature=None if scaling == Scaling() else 1.0,
            biases=_BIASES,
            tie_embeddings=_boolean(values, "tie_word_embeddings", True, path),
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return config, scaling


def _integer(values: Mapping[str, Any], name: str, path: Path) -> int:
    value = values.get(name)
    most = _MOST_LAYERS if name == "n_layer" else _MOST_SIZE
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{path}: {name} must be an integer from 1 to {most}, got {value!r:.100}")
    return value


def _boolean(values: Mapping[str, Any], name: str, default: bool, path: Path) -> bool:
    value = values.get(name, default)
    if type(value) is not bool:
        raise ValueError(f"{path}: {name} must be true or false, got {value!r:.100}")
    return value


def write_config(config: DecoderConfig, scaling: Scaling, end_token: int | None) -> dict[str, Any]:
    """Returns the config.json of a decoder that GPT-2 can express."""
    names = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": MODEL_TYPE,
        **{theirs: getattr(config, ours) for theirs, ours in _SIZES.items()},
        "n_inner": config.hidden_dim,
        "activation_function": names[config.activation],
        "layer_norm_epsilon": 1e-5,
        "initializer_range": config.init_std,
        "scale_attn_weights": scaling.root,
        "scale_attn_by_inverse_layer_idx": scaling.layer,
        "tie_word_embeddings": config.tie_embeddings,
        **{f"{place}_pdrop": 0.0 for place in ("attn", "embd", "resid")},
        "bos_token_id": end_token,
        "eos_token_id": end_token,
        "dtype": "float32",
    }


def obstacles(config: DecoderConfig, scaling: Scaling | None) -> list[str]:
    """Says what of a decoder GPT-2 does not have; nothing if it can express it.

    Args:
      config: The decoder's configuration.
      scaling: What `find_scaling` returned.
    """
    kinds = " and ".join(sorted(set(config.layer_kinds) - {"mlp"}))
    reparametrised = config.weight_reparam != "none" and config.reparam_matrices
    found = {
        "no LayerNorm before attention and feed-forward": config.pre_norm == "none",
        "no LayerNorm before the head": config.final_norm == "none",
        "a leaky ReLU with a learned slope": config.activation == "leaky_relu",
        f"a feed-forward of kind {kinds}": kinds,
        "a feed-forward scaled by learned alpha and beta": config.ffn_scaling,
        f"matrices under {config.weight_reparam}": reparametrised,
        "learned temperatures": scaling is None,
        "fewer key than query heads": config.kv_heads != config.num_heads,
    }
    return [reason for reason, applies in found.items() if applies]


def find_scaling(config: DecoderConfig, flat: Mapping[str, np.ndarray]) -> Scaling | None:
    """Returns the choice that gives exactly these temperatures, if one does."""
    if config.temperature is None:
        return Scaling()
    names = [f"layers.{layer}.{_TEMPERATURE}" for layer in range(config.num_layers)]
    found = np.stack([flat[name] for name in names])
    for scaling in (Scaling(root, layer) for root in (True, False) for layer in (False, True)):
        if np.array_equal(found, scaling.log_temperatures(config)):
            return scaling
    return None


class _Module(NamedTuple):
    """A module of GPT-2 and those of ours that lie in it side by side."""

    theirs: str
    ours: tuple[str, ...]
    inputs: int | None
    """Rows of its matrix; None: it is a norm."""
    outputs: int

    def tensors(self) -> Iterator[tuple[str, tuple[str, ...], tuple[int, ...]]]:
        """Name, names of ours and shape of both of its tensors."""
        weight = "scale" if self.inputs is None else "kernel"
        rows = () if self.inputs is None else (self.inputs,)
        for theirs, ours, shape in (("weight", weight, rows), ("bias", "bias", ())):
            names = tuple(f"{module}.{ours}" for module in self.ours)
            yield f"{self.theirs}.{theirs}", names, (*shape, self.outputs)


def _tensors(c: DecoderConfig) -> Iterator[tuple[str, tuple[str, ...], tuple[int, ...]]]:
    """Name as transformers writes it, names of ours, side by side on the last axis, and shape."""
    d = c.embed_dim
    yield f"{_PREFIX}wte.weight", ("token_embedding.embedding",), (c.vocab_size, d)
    yield f"{_PREFIX}wpe.weight", ("position_embedding.embedding",), (c.context_length, d)
    for i in range(c.num_layers):
        theirs, ours = f"{_PREFIX}h.{i}.", f"layers.{i}."
        for module in (
            _Module("ln_1", ("attention_norm",), None, d),
            _Module("attn.c_attn", ("attention.q", "attention.k", "attention.v"), d, 3 * d),
            _Module("attn.c_proj", ("attention.o",), d, d),
            _Module("ln_2", ("ffn_norm",), None, d),
            _Module("mlp.c_fc", ("feed_forward.up",), d, c.ffn_dim),
            _Module("mlp.c_proj", ("feed_forward.down",), c.ffn_dim, d),
        ):
            for name, names, shape in module.tensors():
                yield theirs + name, tuple(ours + x for x in names), shape
    for name, names, shape in _Module("ln_f", ("final_norm",), None, d).tensors():
        yield _PREFIX + name, names, shape
    if not c.tie_embeddings:
        yield "lm_head.weight", ("head",), (c.vocab_size, d)


def read_tensors(
    config: DecoderConfig, scaling: Scaling, weights: Weights
) -> tuple[dict[str, np.ndarray], dict[str, str], list[str]]:
    """Returns the decoder's parameters by name, see `egattn.model.layers`.

    Also the type of each tensor, named as transformers does, and what was left out.

    Raises:
      ValueError: If tensors are missing, not those of a GPT-2, or of another shape or type.
    """
    present, left_out = _canonical(weights)
    expected = _expected(config, len(present))
    head = present.pop("lm_head.weight", None) if config.tie_embeddings else None
    _compare(expected, present, weights)
    flat: dict[str, np.ndarray] = {}
    for name, (ours, _) in expected.items():
        parts = np.split(weights.read(present[name]), len(ours), axis=-1)
        flat |= dict(zip(ours, parts, strict=True))
    embedding = flat["token_embedding.embedding"]
    if head is not None and not np.array_equal(weights.read(head), embedding):
        raise ValueError(f"tie_word_embeddings is true, but {head} is not the token embedding")
    rows = config.padded_vocab_size - config.vocab_size
    for name in {"token_embedding.embedding", "head"} & flat.keys():
        flat[name] = np.pad(flat[name], ((0, rows), (0, 0)))
    if config.temperature is not None:
        for layer, values in enumerate(scaling.log_temperatures(config)):
            flat[f"layers.{layer}.{_TEMPERATURE}"] = values
    dtypes = {name: weights.tensors[present[name]].dtype for name in expected}
    return flat, dtypes, left_out


def _expected(config: DecoderConfig, present: int) -> dict[str, tuple[tuple[str, ...], Any]]:
    if config.num_layers > present:
        raise ValueError(f"n_layer is {config.num_layers}, but there are only {present} tensors")
    return {name: (ours, shape) for name, ours, shape in _tensors(config)}


def _canonical(weights: Weights) -> tuple[dict[str, str], list[str]]:
    """Names in the files by the name that transformers writes now, and those of causal masks."""
    present, masks = {}, []
    for name in weights.tensors:
        bare = name.removeprefix(_PREFIX)
        if _MASK.fullmatch(bare):
            masks.append(name)
            continue
        canonical = name if bare == "lm_head.weight" else _PREFIX + bare
        if canonical in present:
            raise ValueError(f"{canonical!r:.100} occurs twice, with and without {_PREFIX!r}")
        present[canonical] = name
    return present, masks


def _compare(
    expected: Mapping[str, tuple[Any, Any]], present: Mapping[str, str], weights: Weights
) -> None:
    missing, foreign = expected.keys() - present.keys(), present.keys() - expected.keys()
    if missing:
        raise ValueError(f"expected tensor {min(missing)}, got none ({len(missing)} are missing)")
    if foreign:
        raise ValueError(
            f"expected the tensors of a GPT-2 as config.json has it, got also "
            f"{min(foreign)!r:.100} ({len(foreign)} in all)"
        )
    for name, (_, shape) in expected.items():
        tensor = weights.tensors[present[name]]
        if tensor.shape != shape:
            raise ValueError(
                f"{tensor.file}: {present[name]} has shape {list(tensor.shape)}, expected "
                f"{list(shape)}"
            )


def write_tensors(
    config: DecoderConfig, flat: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns GPT-2's tensors, zeros for biases that the decoder lacks, and what it has no use for.

    Args:
      config: The configuration of a decoder without `obstacles`.
      flat: Its parameters by name.
    """
    tensors: dict[str, np.ndarray] = {}
    unused = {name for name in flat if not name.endswith(_TEMPERATURE)}
    for name, ours, shape in _tensors(config):
        width = shape[-1] // len(ours)
        zeros = np.zeros((*shape[:-1], width), np.float32)
        joined = np.concatenate([flat.get(part, zeros) for part in ours], axis=-1)
        # The embedding has rows of padding.
        tensors[name] = joined[: shape[0]]
        unused -= set(ours)
    return tensors, sorted(unused)

"""`egattn convert`: a Hugging Face directory to a run directory, and a run directory to one."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

import egattn
from egattn._config import parse, to_json
from egattn.convert import gpt2
from egattn.convert.weights import DTYPES, SINGLE, Weights, read_json, write
from egattn.data.manifest import TOKENIZER_NAME, sha256_file
from egattn.data.tokenizer import load_tokenizer, load_tokenizer_of, tokenizer_sha256
from egattn.model import DecoderConfig
from egattn.model.layers import shapes, stack, unstack
from egattn.model.linear import SPECTRAL
from egattn.optimizer import make_optimizer
from egattn.run import RunDirectory
from egattn.run.checkpoints import Saver
from egattn.run.staging import staged_directory
from egattn.sharding import make_mesh, state_sharding
from egattn.train.config import TrainConfig
from egattn.train.step import TrainState, abstract
from egattn.train.variables import load_variables

MODEL_TYPE = "egattn"
"""What the config.json of a decoder that GPT-2 cannot express says."""

ORIGIN = "huggingface"
"""Where a run keeps the files beside the weights it was made from, and `_DTYPES`."""

_DTYPES = "dtypes.json"
_COMPANIONS = (
    *("config.json", TOKENIZER_NAME, "tokenizer_config.json", "special_tokens_map.json"),
    *("generation_config.json", "vocab.json", "merges.txt", "added_tokens.json"),
)
_PRESETS = {"gelu": "sm_ln_g", "relu": "sm_ln_r", "identity": "sm_ln"}
_MOST_SIZE = 2**24


@dataclasses.dataclass(frozen=True)
class ConvertConfig:
    """Converts a Hugging Face GPT-2 to a run directory, or a run directory to its form."""

    source: tyro.conf.Positional[Path]
    """Directory with config.json and model.safetensors, whole or in shards; or a run directory."""
    target: tyro.conf.Positional[Path]
    """Directory to make."""
    step: int | None = None
    """Checkpoint of the run directory to convert; default: the newest."""
    data: Path | None = None
    """Where evaluation of the new run looks for data; default: data/ and the target's name."""


def convert(config: ConvertConfig) -> list[str]:
    """Converts in the direction that the source asks for.

    Float16 and bfloat16 become float32, which holds them exactly; on the way back each tensor gets
    the type that it came with, if none of them loses a bit by that, else all are float32.

    Returns:
      Lines that say what was made, what was left out, and what can or cannot be done with it.

    Raises:
      FileExistsError: If the target exists.
      FileNotFoundError: If the source lacks a file.
      ValueError: If a file is damaged or describes what cannot be expressed here.
    """
    if config.target.exists():
        raise FileExistsError(f"{config.target} exists")
    path = config.source / "config.json"
    values = read_json(path)
    kind = values.get("model_type")
    if kind is None and "model" in values:
        return _to_hugging_face(config)
    if config.step is not None:
        raise ValueError(f"step is for run directories, {config.source} is none")
    if kind not in (gpt2.MODEL_TYPE, MODEL_TYPE):
        raise ValueError(f"{path}: expected model_type 'gpt2', got {kind!r:.100}")
    weights = Weights(config.source)
    dtypes, left_out = {}, []
    if kind == MODEL_TYPE:
        model, preset, flat = read_own(values, weights, path)
    else:
        model, scaling = gpt2.read_config(values, path)
        preset = _PRESETS[model.activation]
        flat, dtypes, left_out = gpt2.read_tensors(model, scaling, weights)
    return _to_run(config, model, preset, flat, dtypes, left_out)


def read_own(
    values: dict[str, Any], weights: Weights, path: Path
) -> tuple[DecoderConfig, str, dict[str, np.ndarray]]:
    """A decoder that GPT-2 could not express, as `_to_hugging_face` wrote it."""
    sizes = values.get("model")
    for name, value in sizes.items() if isinstance(sizes, dict) else ():
        most = len(weights.tensors) if name == "num_layers" else _MOST_SIZE
        if type(value) is int and not 1 <= value <= most:
            raise ValueError(f"{path}: {name} must lie within 1 to {most}, got {value!r:.100}")
    model: DecoderConfig = parse(DecoderConfig, sizes, f"{path}: model")
    expected = shapes(model)
    got = {name: tensor.shape for name, tensor in weights.tensors.items()}
    for name in sorted(expected.keys() | got.keys()):
        if expected.get(name) != got.get(name):
            raise ValueError(
                f"{path.parent}: expected {name!r:.100} of shape {expected.get(name)}, got "
                f"{got.get(name)}"
            )
    preset = parse(str, values.get("preset"), f"{path}: preset")
    return model, preset, {name: weights.read(name) for name in expected}


def _to_run(
    config: ConvertConfig,
    model: DecoderConfig,
    preset: str,
    flat: Mapping[str, np.ndarray],
    dtypes: Mapping[str, str],
    left_out: list[str],
) -> list[str]:
    tokenizer = config.source / TOKENIZER_NAME
    sha256 = check_tokenizer(tokenizer, model.vocab_size) if tokenizer.is_file() else ""
    data = config.data or Path("data") / config.target.name
    trained = TrainConfig(
        config.target, preset=preset, model=model, data=data, steps=1, tokenizer_sha256=sha256
    )
    with staged_directory(config.target) as staging:
        (staging / "config.json").write_text(to_json(trained), encoding="utf-8")
        (staging / ORIGIN).mkdir()
        for name in _COMPANIONS:
            if (config.source / name).is_file():
                shutil.copyfile(config.source / name, staging / ORIGIN / name)
        text = json.dumps(dtypes, indent=0) + "\n"
        (staging / ORIGIN / _DTYPES).write_text(text, encoding="utf-8")
        _save(dataclasses.replace(trained, run=staging), stack(model, flat))
    padding = (model.padded_vocab_size - model.vocab_size) * model.embed_dim
    total = sum(value.size for name, value in flat.items() if not name.startswith(SPECTRAL))
    total -= padding * (1 if model.tie_embeddings else 2)
    lines = [f"{config.target}: {preset}, {model.num_layers} layers, {total:,} parameters"]
    if left_out:
        lines.append(f"left out, being no weights: {', '.join(left_out)}")
    if not sha256:
        return [*lines, f"no {TOKENIZER_NAME}: data for it must come from the same tokenizer"]
    kept = config.target / ORIGIN / TOKENIZER_NAME
    return [
        *lines,
        "to evaluate it:",
        f"  egattn prepare {data} --tokenizer {kept} --context-length {model.context_length}",
        f"  egattn evaluate {config.target}",
    ]


def check_tokenizer(path: Path, vocab_size: int) -> str:
    """Checksum that data prepared with this tokenizer will give for it."""
    tokenizer = load_tokenizer(path)
    tokens = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    if tokens != vocab_size:
        raise ValueError(
            f"{path} has {tokens} tokens, but config.json has vocab_size {vocab_size}: expected "
            "one row of the embedding per token"
        )
    return tokenizer_sha256(tokenizer)


def _save(config: TrainConfig, variables: dict[str, Any]) -> None:
    """Writes the checkpoint of step 0."""
    mesh = make_mesh("replica=1", jax.devices()[:1])
    params = variables["params"]
    optimizer = make_optimizer(config.optimizer, config.steps).init(params)
    state = TrainState(np.int32(0), params, variables[SPECTRAL], optimizer)
    state = jax.device_put(state, state_sharding(mesh, abstract(config)))
    with Saver(RunDirectory(config.run), keep=1) as saver:
        saver.save(0, state, {"next_index": 0})


def _to_hugging_face(config: ConvertConfig) -> list[str]:
    trained = TrainConfig.read(config.source)
    step, variables = load_variables(trained.run, config.step)
    # A layer's share of a vector is a NumPy scalar.
    flat = {name: np.asarray(x) for name, x in unstack(trained.model, variables).items()}
    for name, value in flat.items():
        if not np.isfinite(value).all():
            raise ValueError(f"{config.source}: {name} has numbers that are not finite")
    scaling = gpt2.find_scaling(trained.model, flat)
    reasons = gpt2.obstacles(trained.model, scaling)
    files, notes = _companions(config.source, trained)
    head = f"{config.target}: {trained.preset} of {config.source}, step {step}"
    if scaling is None or reasons:
        own = {"model_type": MODEL_TYPE, "egattn": egattn.__version__, "not_in_gpt2": reasons}
        own |= {"preset": trained.preset, "model": dataclasses.asdict(trained.model)}
        _write(config.target, files | {"config.json": _json(own)}, flat, MODEL_TYPE)
        why = f"transformers cannot load it, for GPT-2 does not have: {'; '.join(reasons)}"
        return [head, why, f"egattn convert {config.target} RUN makes a run of it", *notes]
    tensors, unused = gpt2.write_tensors(trained.model, flat)
    if unused:
        notes.append(f"left out, for the network does not read them: {', '.join(unused)}")
    text, tensors = _as_it_came(config.source / ORIGIN, trained.model, scaling, tensors)
    if text is None:
        present = TOKENIZER_NAME in files and (trained.data / TOKENIZER_NAME).is_file()
        end = load_tokenizer_of(trained.data)[1] if present else None
        text = _json(gpt2.write_config(trained.model, scaling, end))
    _write(config.target, files | {"config.json": text}, tensors, "pt")
    return [head, "transformers loads it as GPT2LMHeadModel", *notes]


def _as_it_came(
    origin: Path, model: DecoderConfig, scaling: gpt2.Scaling, tensors: dict[str, np.ndarray]
) -> tuple[bytes | None, dict[str, np.ndarray]]:
    """The config.json that a run was made from, and tensors in the types that they had then."""
    path = origin / "config.json"
    if not path.is_file():
        return None, tensors
    values, dtypes = read_json(path), read_json(origin / _DTYPES)
    described = values.get("model_type") == gpt2.MODEL_TYPE and gpt2.read_config(values, path)
    if described != (model, scaling):
        return None, tensors
    cast = {}
    # Values too large for a type become infinite, and thereby others.
    with np.errstate(over="ignore"):
        for name, value in tensors.items():
            cast[name] = value.astype(DTYPES.get(dtypes.get(name, ""), np.float32))
    if all(np.array_equal(cast[name], tensors[name]) for name in tensors):
        return path.read_bytes(), cast
    return _json(values | {"dtype": "float32"}), tensors


def _companions(directory: Path, trained: TrainConfig) -> tuple[dict[str, bytes], list[str]]:
    """Files for the tokenizer and for generation, by name, and what to say about them."""
    origin, tokenizer = directory / ORIGIN, trained.data / TOKENIZER_NAME
    if origin.is_dir():
        present = [name for name in _COMPANIONS[1:] if (origin / name).is_file()]
        return {name: (origin / name).read_bytes() for name in present}, []
    if not tokenizer.is_file() or sha256_file(tokenizer) != trained.tokenizer_sha256:
        return {}, [f"no {TOKENIZER_NAME}: the run's data are not in {trained.data}"]
    own, end = load_tokenizer_of(trained.data)
    about = dict.fromkeys(("bos_token", "eos_token", "unk_token"), own.id_to_token(end))
    about |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings: dict[str, Any] = about | {"model_max_length": trained.model.context_length}
    return {
        TOKENIZER_NAME: tokenizer.read_bytes(),
        "tokenizer_config.json": _json(settings),
    }, []


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


def _write(
    target: Path, files: Mapping[str, bytes], tensors: Mapping[str, np.ndarray], form: str
) -> None:
    with staged_directory(target) as staging:
        for name, content in files.items():
            (staging / name).write_bytes(content)
        write(staging / SINGLE, tensors, form)

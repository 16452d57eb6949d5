"""Generation: tokens/s of egattn and of transformers' `generate`, same weights, in turns.

    python -m benchmarks.decode_speed --out results
    python -m benchmarks.decode_speed --dtypes float32 bfloat16 --batches 1 8 64 --out results

Needs PyTorch and Hugging Face transformers. A GPT-2 with random weights is written by transformers
and read by `egattn convert`; both then continue the same random prompts to the same length, on the
GPU if PyTorch and JAX both see one. *transformers* is its `generate` as it comes (fused attention,
growing cache); *static* is what its documentation calls the fast way, a static cache and a
compiled forward pass, on GPUs only. Prompts are read within the time, compilation is not.
"""

import copy
import dataclasses
import importlib.metadata
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro

from egattn.convert import ConvertConfig, convert
from egattn.generate import BeamSearch, Sampling, generate, prepare
from egattn.model import Decoder, DecoderConfig
from egattn.report.table import digits, jax_about, quartiles, save_table, write_table
from egattn.train.config import TrainConfig
from egattn.train.variables import load_variables

try:
    import torch  # pyright: ignore[reportMissingImports]  # not needed by the library
    import transformers  # pyright: ignore[reportMissingImports]  # nor this
except ImportError as error:
    raise SystemExit(
        f"decode_speed needs PyTorch: pip install torch transformers ({error})"
    ) from error

Rival = Literal["transformers", "static"]


@dataclasses.dataclass(frozen=True)
class Config:
    """What is generated."""

    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32",)
    """Type of weights and products."""
    batches: tuple[int, ...] = (1, 8)
    """Prompts at once."""
    beams: tuple[int, ...] = (1, 4)
    """Paths per prompt; 1 is greedy."""
    rivals: tuple[Rival, ...] = ("transformers",)
    """Ways of transformers."""
    prompt: int = 64
    """Tokens of a prompt."""
    new: int = 128
    """New tokens."""
    rounds: int = 5
    """Timed turns of each."""
    num_layers: int = 12
    """Layers of the GPT-2."""
    num_heads: int = 12
    """Heads."""
    embed_dim: int = 768
    """Width."""
    vocab_size: int = 50257
    """Vocabulary."""
    context_length: int = 1024
    """Positions."""
    seed: int = 0
    """Seed of weights and prompts."""
    out: Path | None = None
    """Directory for decode_speed.json and decode_speed.md; default: print only."""


Call = Callable[[], np.ndarray]


def make_gpt2(config: Config, directory: Path) -> Any:
    """A GPT-2 with random weights, saved in the directory; large ones: no two logits tie."""
    torch.manual_seed(config.seed)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.context_length,
            n_embd=config.embed_dim,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            initializer_range=0.05,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    model.save_pretrained(directory)
    return model.eval()


def converted(source: Path) -> tuple[DecoderConfig, dict[str, Any]]:
    """The same decoder and variables here."""
    with tempfile.TemporaryDirectory() as scratch:
        convert(ConvertConfig(source, Path(scratch) / "run"))
        run = TrainConfig.read(Path(scratch) / "run")
        return run.model, load_variables(run.run)[1]


def egattn_call(config: Config, ours: tuple[Decoder, Any], prompts: np.ndarray, beams: int) -> Call:
    """Generation by egattn."""
    rows, method = prompts.tolist(), Sampling(0.0) if beams == 1 else BeamSearch(beams)

    def call() -> np.ndarray:
        made = generate(*ours, rows, method, max_new_tokens=config.new)
        return np.asarray(made.tokens[:, 0])

    return call


def rival_call(model: Any, config: Config, rival: Rival, prompts: np.ndarray, beams: int) -> Call:
    """Generation by transformers."""
    tokens = torch.tensor(prompts, device=model.device)
    options: dict[str, Any] = {"cache_implementation": "static"} if rival == "static" else {}
    settings = transformers.GenerationConfig(
        max_new_tokens=config.new,
        min_new_tokens=config.new,
        num_beams=beams,
        do_sample=False,
        pad_token_id=0,
        **options,
    )

    def call() -> np.ndarray:
        with torch.no_grad():
            made = model.generate(
                tokens, attention_mask=torch.ones_like(tokens), generation_config=settings
            )
        return made[:, prompts.shape[1] :].cpu().numpy()

    return call


def measure(config: Config, calls: dict[str, Call]) -> tuple[dict[str, list[float]], float]:
    """Seconds of every turn by name, and the share of tokens that all agree on."""
    made = {name: call() for name, call in calls.items()}
    same = np.mean(np.all([made["egattn"] == made[name] for name in config.rivals], axis=0))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(config.rounds):
        for name, call in calls.items():
            # Until the other one's threads no longer wait in a busy loop.
            time.sleep(0.5)
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds, float(same)


def main() -> None:
    """Measures and prints a table."""
    config = tyro.cli(Config, description=__doc__)
    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    about = jax_about() | {
        name: importlib.metadata.version(name) for name in ("torch", "transformers")
    }
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "gpt2"
        original = make_gpt2(config, source)
        model_config, variables = converted(source)
        for dtype, batch, beams in itertools.product(config.dtypes, config.batches, config.beams):
            rng = np.random.default_rng(config.seed)
            prompts = rng.integers(1, config.vocab_size, (batch, config.prompt))
            # A copy: conversion in place would round the weights for the next type, too.
            model = copy.deepcopy(original).to(device, getattr(torch, dtype))
            decoder = Decoder(dataclasses.replace(model_config, dtype=dtype))
            ours = prepare(decoder, variables)
            calls = {"egattn": egattn_call(config, ours, prompts, beams)}
            for rival in config.rivals:
                calls[rival] = rival_call(model, config, rival, prompts, beams)
            seconds, same = measure(config, calls)
            row: dict[str, Any] = {"dtype": dtype, "batch": batch, "beams": beams}
            for name, times in seconds.items():
                low, middle, high = (batch * config.new / x for x in reversed(quartiles(times)))
                row[f"{name} tokens/s"] = f"{digits(middle)} ({digits(low)} to {digits(high)})"
            for name in config.rivals:
                ratios = [b / a for a, b in zip(seconds["egattn"], seconds[name], strict=True)]
                low, middle, high = map(digits, quartiles(ratios))
                row[f"egattn / {name}"] = f"{middle} ({low} to {high})"
            rows.append(row | {"same tokens": digits(same)})
            save_table("decode_speed", config, rows, config.out, about)
    write_table("decode_speed", config, rows, config.out, about)


if __name__ == "__main__":
    main()

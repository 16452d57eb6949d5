"""Ways to continue code at one budget: greedy, top-p, beams, beam sampling, the joint nucleus.

    egattn prepare data/decoding --packing paper --context-length 256 --validation-fraction 0.01
    egattn train runs/decoding --data data/decoding --model.num-layers 6 --model.num-heads 6 \
      --model.embed-dim 384 --model.dtype bfloat16 --batch-size 128 --steps 1200
    python -m benchmarks.decode_quality runs/decoding --out results

Prompts are the beginnings of validation windows, cut where a line ends; the decoder sees no other
part of the file. Each way gets K paths of T tokens per prompt, but greedy and the single sample,
which get one. Reported per way: how often the next line is right, for the path that it chooses and
for any of its paths; the chosen path's log-probability under the model; the share of distinct words
and pairs of words in what it writes. No end token: all write T tokens.

Hardware: training about a minute on one H100, the comparison about half an hour on 2 CPU cores.
Expected with 500 prompts: next line right in 10.4 +- 2.7 % with beam search, 7.8 +- 2.4 % with the
joint nucleus, 3.7 +- 1.7 % with top-p (docs/generation.md).
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from tokenizers import Tokenizer

from egattn.data import evaluation_batches, load_manifest, load_tokenizer_of
from egattn.generate import BeamSearch, JointNucleus, Sampling, generate, prepare
from egattn.model import Decoder
from egattn.report.table import digits, write_table
from egattn.train.config import TrainConfig
from egattn.train.variables import load_variables


@dataclasses.dataclass(frozen=True)
class Config:
    """What is compared."""

    run: tyro.conf.Positional[Path]
    """Run directory."""
    data: Path | None = None
    """Prepared data; default: the run's."""
    prompts: int = 1000
    """Prompts, one per validation window at most."""
    shortest: int = 64
    """Least tokens of a prompt."""
    longest: int = 128
    """Most tokens of a prompt."""
    new: int = 24
    """New tokens T."""
    paths: int = 4
    """Paths K."""
    p: float = 0.95
    """Mass of every nucleus."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the ways that draw."""
    batch: int = 50
    """Prompts at once."""
    out: Path | None = None
    """Directory for decode_quality.json and decode_quality.md; default: print only."""


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to continue."""

    name: str
    """Name."""
    method: Sampling | BeamSearch | JointNucleus
    """Method."""
    samples: int = 1
    """Independent samples."""
    draws: bool = True
    """Whether the seed matters."""


def ways(config: Config) -> list[Way]:
    """The ways compared."""
    sampling = Sampling(top_p=config.p)
    return [
        Way("greedy", Sampling(0.0), draws=False),
        Way("top-p", sampling),
        Way(f"best of {config.paths} top-p", sampling, config.paths),
        Way("beam search", BeamSearch(config.paths), draws=False),
        Way("beam sampling", BeamSearch(config.paths, sampling=sampling)),
        Way("joint nucleus", JointNucleus(config.paths, p=config.p)),
    ]


def cut(config: Config, tokenizer: Tokenizer, window: list[int]) -> tuple[list[int], str] | None:
    """A prompt that ends with a line, as long as may be, and the line after it."""
    pieces = [tokenizer.decode([token]) for token in window]
    for end in range(config.longest, config.shortest - 1, -1):
        line, newline, _ = tokenizer.decode(window[end : end + config.new]).partition("\n")
        if "\n" in pieces[end - 1] and newline and line.strip():
            return window[:end], line.rstrip()
    return None


def problems(config: Config, data: Path, tokenizer: Tokenizer) -> list[tuple[list[int], str]]:
    """Prompts and next lines from the validation split, spread over all of it."""
    manifest = load_manifest(data)
    length = manifest.context_length
    rows = evaluation_batches(data, manifest, batch_size=1, context_length=length)
    found = [cut(config, tokenizer, row[0].tolist()) for row, _ in rows]
    usable = [x for x in found if x is not None]
    count = min(config.prompts, len(usable)) // config.batch * config.batch
    if not count:
        raise ValueError(f"expected {config.batch} usable validation windows, got {len(usable)}")
    return [usable[i] for i in np.linspace(0, len(usable) - 1, count).astype(int)]


def continued(
    config: Config, ours: tuple[Decoder, Any], way: Way, prompts: list[list[int]], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [N, K, T] of all prompts and log-probabilities [N, K], the chosen path first."""
    tokens, scores = [], []
    for start in range(0, len(prompts), config.batch):
        # One more row, as long as can be: all batches have one shape, so one program serves all.
        rows = [*prompts[start : start + config.batch], [0] * config.longest]
        made = generate(
            *ours,
            rows,
            way.method,
            max_new_tokens=config.new,
            num_samples=way.samples,
            seed=seed * len(prompts) + start,
        )
        # Of independent samples the most probable one, as the other ways do.
        order = np.argsort(-np.asarray(made.log_probability), axis=1, kind="stable")[:-1]
        tokens.append(np.take_along_axis(np.asarray(made.tokens)[:-1], order[..., None], 1))
        scores.append(np.take_along_axis(np.asarray(made.log_probability)[:-1], order, 1))
    return np.concatenate(tokens), np.concatenate(scores)


def judge(tokenizer: Tokenizer, tokens: np.ndarray, lines: list[str]) -> dict[str, np.ndarray]:
    """Per prompt: whether the chosen path's next line is right, whether any is, how many differ."""
    texts = [tokenizer.decode_batch(paths.tolist()) for paths in tokens]
    first = [[text.partition("\n")[0].rstrip() for text in paths] for paths in texts]
    words = [paths[0].split() for paths in texts]
    return {
        "exact": np.array([paths[0] == line for paths, line in zip(first, lines, strict=True)]),
        "any": np.array([line in paths for paths, line in zip(first, lines, strict=True)]),
        "lines": np.array([len(set(paths)) for paths in first]),
        "distinct-1": np.array(distinct(words, 1)),
        "distinct-2": np.array(distinct(words, 2)),
    }


def distinct(texts: list[list[str]], n: int) -> float:
    """Share of the sequences of n words that are different ones."""
    found = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    return len(set(found)) / len(found)


def interval(difference: np.ndarray) -> str:
    """Mean over prompts in percent with its 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    means = difference[rng.integers(0, len(difference), (10_000, len(difference)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{100 * difference.mean():+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def main(config: Config) -> None:
    """Compares and prints a table."""
    run = TrainConfig.read(config.run)
    data = config.data or run.data
    tokenizer, _ = load_tokenizer_of(data)
    _, variables = load_variables(run.run)
    # Float32: the same result on any machine.
    decoder = Decoder(dataclasses.replace(run.model, dtype="float32"))
    ours = prepare(decoder, variables)
    prompts, lines = map(list, zip(*problems(config, data, tokenizer), strict=True))
    found: dict[str, dict[str, np.ndarray]] = {}
    for way in ways(config):
        each = []
        for seed in config.seeds if way.draws else config.seeds[:1]:
            tokens, scores = continued(config, ours, way, prompts, seed)
            each.append(judge(tokenizer, tokens, lines) | {"log-probability": scores[:, 0]})
        found[way.name] = {key: np.mean([x[key] for x in each], axis=0) for key in each[0]}
        print(way.name, {key: float(value.mean()) for key, value in found[way.name].items()})
    joint = found["joint nucleus"]["exact"]
    rows = []
    for way in ways(config):
        mean = {key: digits(float(value.mean()), 4) for key, value in found[way.name].items()}
        paths = way.samples if isinstance(way.method, Sampling) else config.paths
        rows.append(
            {
                "way": way.name,
                "paths": paths,
                "next line right, %": f"{100 * mean['exact']:.1f}",
                "any path's, %": f"{100 * mean['any']:.1f}",
                "joint nucleus minus this": interval(joint - found[way.name]["exact"]),
                "log-probability": mean["log-probability"],
                "different lines": mean["lines"],
                "distinct-1": mean["distinct-1"],
                "distinct-2": mean["distinct-2"],
            }
        )
    print(f"{len(prompts)} prompts of {config.shortest} to {config.longest} tokens")
    write_table("decode_quality", config, rows, config.out)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

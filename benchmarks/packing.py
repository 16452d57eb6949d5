"""Whether a net learns where documents end, by the packing of its windows.

    python -m benchmarks.packing --out results

Documents are the top-level functions of the standard library, the same for every packing, with one
tokenizer. Each net is trained on windows of one packing; all are measured alike: the probability
that they give the end token at the positions of `concat`'s validation windows, whose reciprocal is
the length that it implies, and how many of the functions that they write end by themselves within
the context, beside the share of real ones that are so short.

Hardware: 2 CPU cores, about 5 minutes where nothing else runs. Expected (docs/data.md): an implied
length within 20 % of the true one with `concat` and `segments`, more than ten times as long with
`paper`.
"""

import ast
import dataclasses
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from egattn import cli
from egattn.data import Manifest, Packing, evaluation_batches, load_manifest, load_tokenizer_of
from egattn.data.manifest import TOKENIZER_NAME
from egattn.generate import Sampling, generate, prepare
from egattn.model import Decoder
from egattn.model.segments import segment_ids
from egattn.report.table import write_table
from egattn.train.config import TrainConfig
from egattn.train.variables import load_variables

_NET = "--model.num-layers 2 --model.num-heads 4 --model.embed-dim 64 --model.init-std 0.05"
_RATE = "--optimizer.learning-rate 4e-3 --optimizer.warmup 0.2"


@dataclasses.dataclass(frozen=True)
class Config:
    """What is trained and measured."""

    root: Path = Path("runs/packing")
    """Directory of corpus, data and runs; what is there is used."""
    packings: tuple[Packing, ...] = ("paper", "concat", "segments")
    """Packings compared."""
    steps: int = 400
    """Steps of 16 windows."""
    functions: int = 8000
    """Documents."""
    samples: int = 200
    """Functions that each net writes."""
    out: Path | None = None
    """Directory for packing.json and packing.md; default: print only."""


def functions() -> Iterator[str]:
    """Top-level functions of the standard library, in the order of the files' names."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("**/*.py")):
        if "site-packages" in path.parts:
            continue
        try:
            text = path.read_text(encoding="utf-8")
            nodes = ast.parse(text).body
        except (SyntaxError, ValueError):
            continue
        found = (ast.get_source_segment(text, n) for n in nodes if isinstance(n, ast.FunctionDef))
        yield from (source for source in found if source)


def prepared(config: Config, packing: str) -> Path:
    """Data of a packing; all have the first one's tokenizer."""
    corpus, out = config.root / "functions.jsonl", config.root / "data" / packing
    if not corpus.exists():
        corpus.parent.mkdir(parents=True, exist_ok=True)
        found = list(dict.fromkeys(functions()))
        chosen = np.random.default_rng(0).permutation(len(found))[: config.functions]
        corpus.write_text("".join(json.dumps({"text": found[i]}) + "\n" for i in chosen))
    words = f"--source {corpus} --packing {packing} --vocab-size 1024 --validation-fraction 0.1"
    first = config.root / "data" / config.packings[0]
    if out != first:
        words += f" --tokenizer {first / TOKENIZER_NAME}"
    cli.prepare([str(out), *words.split()])
    return out


def trained(config: Config, packing: str, data: Path) -> Path:
    """A run on it."""
    run = config.root / "runs" / packing
    words = f"--data {data} {_NET} {_RATE} --steps {config.steps} --batch-size 16"
    cli.train([str(run), *words.split()])
    return run


def end_probability(run: Path, data: Path, manifest: Manifest, apart: bool) -> float:
    """Mean probability of the end token over validation windows; `apart` as in `segments`."""
    model, (_, variables) = Decoder(TrainConfig.read(run).model), load_variables(run)

    @jax.jit
    def probabilities(tokens):
        ids = segment_ids(tokens, manifest.end_token_id) if apart else None
        output: Any = model.apply(variables, tokens, ids)
        return jax.nn.softmax(output.logits)[..., manifest.end_token_id].mean(1)

    length, found = manifest.context_length, []
    for tokens, weight in evaluation_batches(data, manifest, batch_size=32, context_length=length):
        found.append(np.asarray(probabilities(jnp.asarray(tokens[:, :-1])))[weight > 0])
    return float(np.concatenate(found).mean())


def share_ended(config: Config, run: Path, manifest: Manifest, prompt: list[int]) -> float:
    """Share of the functions written that end within the context."""
    model, (_, variables) = Decoder(TrainConfig.read(run).model), load_variables(run)
    made = generate(
        *prepare(model, variables),
        [prompt],
        Sampling(),
        max_new_tokens=manifest.context_length - len(prompt),
        num_samples=config.samples,
        eos=manifest.end_token_id,
    )
    return float((np.asarray(made.tokens) == manifest.end_token_id).any(-1).mean())


def main(config: Config) -> list[dict[str, Any]]:
    """Trains, measures and prints a table."""
    data = {packing: prepared(config, packing) for packing in config.packings}
    unit = data["concat"]
    whole, tokenizer = load_manifest(unit), load_tokenizer_of(unit)[0]
    lines = (config.root / "functions.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    lengths = np.array([len(tokenizer.encode(text).ids) + 1 for text in texts])
    prompt = tokenizer.encode("def").ids
    short = float((lengths <= whole.context_length).mean())
    rows: list[dict[str, Any]] = [
        {"net": "the corpus", "mean length": float(lengths.mean()), "end within T": short}
    ]
    for packing in config.packings:
        manifest = load_manifest(data[packing])
        split, run = manifest.splits["train"], trained(config, packing, data[packing])
        rows.append(
            {
                "net": packing,
                "tokens kept": 1 - split.dropped_tokens / split.tokens,
                "ends kept": (split.end_tokens or 0) / split.documents,
                "mean length": 1 / end_probability(run, unit, whole, packing == "segments"),
                "end within T": share_ended(config, run, manifest, prompt),
            }
        )
    write_table("packing", config, rows, config.out)
    return rows


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

"""How fast `egattn prepare` is beside the tokenizer alone, and how much memory it takes.

    python -m benchmarks.prepare_speed --out results

The corpus is one file of JSON Lines: the Python files of the running interpreter, as often as it
takes, each copy with its number in the first line, so that no two documents are the same. The
tokenizer is learned from the first of them beforehand. `tokenizers` gives the same documents to
`encode_batch_fast`, in batches of the same size, and throws the tokens away; each in a process of
its own.

Hardware: 2 CPU cores; 1 GB takes 3 minutes, the tokenizer alone 2.4. Expected
(docs/performance.md): at least 80 % of the tokenizer's speed in CPU seconds, and a memory that
hardly grows with the corpus.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from egattn import cli
from egattn.data import PrepareConfig, load_manifest
from egattn.data.manifest import TOKENIZER_NAME
from egattn.data.sources import open_source
from egattn.report.table import write_table

_PREPARE = "import sys; from egattn.cli import main; main(sys.argv[1:])"
_ENCODE = """
import json, sys
from pathlib import Path
from egattn.data import load_tokenizer
from egattn.data.shards import BATCH_BYTES
tokenizer, batch, size = load_tokenizer(Path(sys.argv[1])), [], 0
for line in open(sys.argv[2]):
    batch.append(json.loads(line)["text"])
    size += len(batch[-1])
    if size >= BATCH_BYTES:
        tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        batch, size = [], 0
tokenizer.encode_batch_fast(batch, add_special_tokens=False)
"""


@dataclasses.dataclass(frozen=True)
class Config:
    """What is prepared."""

    root: Path = Path("runs/prepare_speed")
    """Directory of corpora and data; corpora that are there are used."""
    megabytes: tuple[int, ...] = (250, 1000)
    """Sizes of the corpora."""
    vocab_size: int = 8192
    """Vocabulary."""
    out: Path | None = None
    """Directory for prepare_speed.json and prepare_speed.md; default: print only."""


def write_corpus(path: Path, size: int) -> None:
    """Copies of this interpreter's files, numbered, until they are `size` bytes."""
    written, copy = 0, 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            for document in open_source("python", PrepareConfig()):
                text = f"# copy {copy}\n{document.text.decode(errors='ignore')}"
                written += len(text.encode())
                file.write(json.dumps({"text": text}) + "\n")
                if written >= size:
                    break
            copy += 1


class Cost(NamedTuple):
    """What a program took in a process of its own."""

    seconds: float
    cpu_seconds: float
    memory: float
    """The most that it held, MiB."""


def measured(*words: str) -> Cost:
    """Runs a program in a process of its own."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", *words], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(words[1:])} ended with {process.returncode}")
    spent = used.ru_utime + used.ru_stime
    return Cost(time.perf_counter() - start, spent, used.ru_maxrss / 1024)


def main(config: Config) -> list[dict[str, Any]]:
    """Prepares, measures and prints a table."""
    config.root.mkdir(parents=True, exist_ok=True)
    first = config.root / "tokenizer"
    smallest = min(config.megabytes) * 10**6
    cli.prepare(
        f"{first} --vocab-size {config.vocab_size} --max-bytes {min(smallest, 10**8)}".split()
    )
    rows = []
    for megabytes in config.megabytes:
        corpus, out = config.root / f"{megabytes}.jsonl", config.root / f"data-{megabytes}"
        if not corpus.exists():
            write_corpus(corpus, megabytes * 10**6)
        shutil.rmtree(out, ignore_errors=True)
        tokenizer = str(first / TOKENIZER_NAME)
        options = ["--source", str(corpus), "--tokenizer", tokenizer]
        prepared = measured(_PREPARE, "prepare", str(out), *options)
        alone = measured(_ENCODE, tokenizer, str(corpus))
        splits = load_manifest(out, verify=False).splits.values()
        rows.append(
            {
                "MB": megabytes,
                "tokens": sum(split.tokens for split in splits),
                "seconds": prepared.seconds,
                "tokens/s": sum(split.tokens for split in splits) / prepared.seconds,
                "tokenizers alone, s": alone.seconds,
                "speed / alone": alone.seconds / prepared.seconds,
                "CPU s": prepared.cpu_seconds,
                "alone, CPU s": alone.cpu_seconds,
                "memory MiB": prepared.memory,
            }
        )
    write_table("prepare_speed", config, rows, config.out)
    return rows


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

"""Text to a directory of token windows: what `egattn prepare` runs."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from tokenizers import Tokenizer

from egattn._spelling import unknown
from egattn.data.corpus import Corpus, Spool, spool_corpus
from egattn.data.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    TOKEN_BYTES_NAME,
    TOKENIZER_NAME,
    Manifest,
    Packing,
    load_manifest,
    sha256_file,
)
from egattn.data.shards import write_split
from egattn.data.sources import open_source
from egattn.data.tokenizer import (
    END_OF_TEXT,
    MIN_VOCAB_SIZE,
    bytes_of_tokens,
    end_token_id,
    load_tokenizer,
    train_tokenizer,
)
from egattn.run.staging import staged_directory

# Bounds the time and memory of training. The files of a directory come in an order that mixes the
# whole of it, so that the first ones are a fair sample; a file of records is sampled at its start.
_TOKENIZER_TRAINING_BYTES = 64 * 2**20
_SUFFIXES = (
    *(".txt", ".md", ".rst", ".py", ".c", ".h", ".cc", ".cpp", ".hpp", ".java", ".js", ".ts"),
    *(".go", ".rs", ".jsonl", ".parquet"),
)


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Tokenise a corpus once, for every later training run."""

    out: tyro.conf.Positional[Path] = Path("data/python")
    """Directory to make. It appears only when complete."""
    source: str = "python"
    """`python`: the standard library and installed packages of this interpreter. A path: a text
    file, a .jsonl or .parquet file, or a directory of those. `hf:NAME`: the train split of a
    Hugging Face dataset (needs the extra `hf`)."""
    text_field: str = "text"
    """Field of a .jsonl, .parquet or Hugging Face record that holds the text (CodeParrot:
    `content`)."""
    suffixes: tuple[str, ...] = _SUFFIXES
    """Endings of the files to read when the source is a directory."""
    context_length: int = 128
    """Predictions per window; a window holds one token more."""
    packing: Packing = "concat"
    """`concat`: documents end to end, each with its end token, cut into windows. `segments`: the
    same windows; documents in one do not see each other, and positions restart with each.
    `paper`: each document cut by itself, its remainder dropped, the end token with it."""
    vocab_size: int = 8192
    """Largest vocabulary to learn. A small corpus gives a smaller one; the manifest says which."""
    tokenizer: Path | None = None
    """Existing byte-level tokenizer.json with an <|endoftext|> token, instead of learning one."""
    validation_fraction: float = 0.02
    """Share of the documents that go to the validation split, chosen by their content."""
    max_bytes: int | None = None
    """Stop after this many bytes of distinct documents."""


def prepare(config: PrepareConfig) -> Manifest:
    """Makes a data directory, or checks the one that is there.

    Args:
        config: What to read and where to write. A directory that the same config made before is
            verified against its checksums and left as it is; the source is not read again.

    Returns:
        The manifest of the directory.

    Raises:
        FileNotFoundError: The source or the tokenizer does not exist.
        OSError: The directory cannot be written.
        ValueError: The config, the corpus or the tokenizer does not fit, the directory holds
            something else, or its files are damaged. Nothing is written then.
    """
    _check(config)
    out = config.out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        manifest = _verified(out, config)
        print(f"{config.out}: up to date, checksums verified")
    else:
        source, documents = open_source(config.source, config.text_field, config.suffixes)
        tokenizer = load_tokenizer(config.tokenizer) if config.tokenizer else None
        with staged_directory(out) as staging, _progress() as progress:
            manifest = _build(staging, config, source, documents, tokenizer, progress)
    _print_summary(config.out, manifest)
    return manifest


def _check(config: PrepareConfig) -> None:
    if config.context_length < 1:
        raise ValueError(f"expected context_length of at least 1, got {config.context_length}")
    if config.vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(
            f"expected vocab_size of at least {MIN_VOCAB_SIZE} (256 bytes and {END_OF_TEXT}), "
            f"got {config.vocab_size}"
        )
    if config.packing not in get_args(Packing):
        raise ValueError(unknown("packing", config.packing, get_args(Packing)))
    if not 0 < config.validation_fraction < 1:
        raise ValueError(
            f"expected validation_fraction between 0 and 1, got {config.validation_fraction}"
        )
    if config.max_bytes is not None and config.max_bytes < 1:
        raise ValueError(f"expected max_bytes of at least 1, got {config.max_bytes}")
    if not config.suffixes or not all(suffix.startswith(".") for suffix in config.suffixes):
        raise ValueError(f"expected suffixes such as .txt, got {' '.join(config.suffixes)!r}")


def _verified(out: Path, config: PrepareConfig) -> Manifest:
    if not (out / MANIFEST_NAME).is_file():
        raise ValueError(
            f"expected {config.out} to be new, empty or prepared data, got something else; "
            f"choose another directory"
        )
    made_by = load_manifest(out, verify=False).config
    wanted = _as_json(config)
    # The directory may have been moved since: its own name decides nothing.
    names = sorted((wanted.keys() | made_by.keys()) - {"out"})
    differing = [name for name in names if wanted.get(name) != made_by.get(name)]
    if differing:
        described = ", ".join(
            f"{name} {made_by.get(name)!r} (now {wanted.get(name)!r})" for name in differing
        )
        raise ValueError(f"{config.out} was prepared with {described}; choose another directory")
    return load_manifest(out)


def _as_json(config: PrepareConfig) -> dict[str, Any]:
    values = dataclasses.asdict(config)
    values["out"] = str(config.out)
    values["suffixes"] = list(config.suffixes)
    values["tokenizer"] = None if config.tokenizer is None else str(config.tokenizer)
    return values


def _build(
    directory: Path,
    config: PrepareConfig,
    source: str,
    documents: Iterator[bytes],
    tokenizer: Tokenizer | None,
    progress: Progress,
) -> Manifest:
    corpus = spool_corpus(
        documents,
        directory,
        validation_fraction=config.validation_fraction,
        max_bytes=config.max_bytes,
        advance=_bar(progress, "reading", config.max_bytes),
    )
    for name, spool in corpus.splits.items():
        _check_not_empty(f"{name} document", spool.documents, source, config)
    if tokenizer is None:
        _bar(progress, "learning the tokenizer", None)
        tokenizer = train_tokenizer(_sample(corpus.splits["train"]), config.vocab_size)
    manifest = _write(directory, config, source, corpus, tokenizer, progress)
    for spool in corpus.splits.values():
        spool.path.unlink()
    manifest.save(directory)
    return manifest


def _write(
    directory: Path,
    config: PrepareConfig,
    source: str,
    corpus: Corpus,
    tokenizer: Tokenizer,
    progress: Progress,
) -> Manifest:
    tokenizer.save(str(directory / TOKENIZER_NAME))
    token_bytes = bytes_of_tokens(tokenizer)
    np.save(directory / TOKEN_BYTES_NAME, token_bytes)
    dtype = "uint16" if len(token_bytes) <= 2**16 else "uint32"
    splits = {}
    for name, spool in corpus.splits.items():
        splits[name] = write_split(
            spool,
            directory,
            name,
            tokenizer=tokenizer,
            token_bytes=token_bytes,
            context_length=config.context_length,
            packing=config.packing,
            dtype=dtype,
            advance=_bar(progress, f"tokenising {name}", spool.bytes),
        )
        _check_not_empty(f"{name} window", splits[name].windows, source, config)
    return Manifest(
        format_version=FORMAT_VERSION,
        source=source,
        packing=config.packing,
        context_length=config.context_length,
        vocab_size=len(token_bytes),
        dtype=dtype,
        end_token_id=end_token_id(tokenizer),
        tokenizer_sha256=sha256_file(directory / TOKENIZER_NAME),
        token_bytes_sha256=sha256_file(directory / TOKEN_BYTES_NAME),
        duplicates=corpus.duplicates,
        non_utf8=corpus.non_utf8,
        empty=corpus.empty,
        splits=splits,
        config=_as_json(config),
    )


def _check_not_empty(what: str, count: int, source: str, config: PrepareConfig) -> None:
    if not count:
        raise ValueError(
            f"expected at least one {what} in {source}, got none at context_length "
            f"{config.context_length} and validation_fraction {config.validation_fraction}; "
            f"add documents or change these"
        )


def _sample(spool: Spool) -> Iterator[str]:
    size = 0
    for text in spool:
        yield text
        size += len(text.encode())
        if size >= _TOKENIZER_TRAINING_BYTES:
            return


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _bar(progress: Progress, description: str, total: int | None) -> Callable[[int], object]:
    task = progress.add_task(description, total=total)
    return lambda amount: progress.advance(task, amount)


def _print_summary(out: Path, manifest: Manifest) -> None:
    print(f"{out}: {manifest.source}, packing {manifest.packing}")
    for name, split in manifest.splits.items():
        targets = split.windows * manifest.context_length
        ends = "" if split.end_tokens is None else f", {split.end_tokens} with their end tokens"
        print(
            f"  {name}: {split.documents} documents{ends}, {split.windows} windows of "
            f"{manifest.context_length + 1} tokens, "
            f"{split.target_bytes / targets:.2f} bytes per token, "
            f"{split.dropped_tokens} of {split.tokens} tokens dropped"
        )
    left_out = f"{manifest.duplicates} duplicates, {manifest.non_utf8} not UTF-8, "
    left_out += f"{manifest.empty} empty"
    if manifest.packing == "paper":
        left_out += f", {sum(split.too_short for split in manifest.splits.values())} too short"
    print(f"  vocabulary {manifest.vocab_size}; left out: {left_out}")

"""Text to a directory of token windows: what `egattn prepare` runs."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from tokenizers import Tokenizer

from egattn.data.config import PrepareConfig, as_json, check
from egattn.data.corpus import Corpus, Spool, split_by_position, spool_corpus
from egattn.data.existing import unfinished, verified
from egattn.data.files import Fingerprint
from egattn.data.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    TOKEN_BYTES_NAME,
    TOKENIZER_NAME,
    Manifest,
    SourceManifest,
    SplitManifest,
    sha256_file,
)
from egattn.data.shards import write_split
from egattn.data.sources import Source, open_source
from egattn.data.summary import print_summary
from egattn.data.tokenizer import (
    bytes_of_tokens,
    end_token_id,
    load_tokenizer,
    train_tokenizer,
)
from egattn.run.staging import INSIDE, staged_directory

# Bounds the time and memory of training. The files of a directory come in an order that mixes the
# whole of it, so that the first ones are a fair sample; a file of records is sampled at its start.
_TOKENIZER_TRAINING_BYTES = 64 * 2**20


def prepare(config: PrepareConfig) -> Manifest:
    """Makes a data directory, or checks the one that is there.

    Args:
        config: What to read and where to write. A directory that the same config made before is
            verified against its checksums and left as it is; of the source's files only names,
            sizes and times are compared, of the tokenizer's the checksum.

    Returns:
        The manifest of the directory.

    Raises:
        FileNotFoundError: The source or the tokenizer does not exist.
        OSError: The directory cannot be written.
        ValueError: The config, the corpus or the tokenizer does not fit, the directory holds
            something else, its files are damaged, or source or tokenizer have changed since.
            Nothing is written then.
    """
    check(config)
    out = config.out.resolve()
    if out.exists() and (not out.is_dir() or unfinished(out, INSIDE) is None):
        manifest, compared = verified(out, config)
        print(f"{config.out}: {compared}")
    else:
        sources = [open_source(source, config) for source, _ in config.weighted_sources]
        given = config.tokenizer
        tokenizer = load_tokenizer(given, config.end_token) if given else None
        with staged_directory(out, last=MANIFEST_NAME) as staging, _progress() as progress:
            if out.exists():
                # Only now: before, another process may have been at it.
                for path in unfinished(out, INSIDE) or ():
                    path.unlink()
            manifest = _build(staging, config, sources, tokenizer, progress)
    print_summary(config.out, manifest)
    return manifest


def _build(
    directory: Path,
    config: PrepareConfig,
    sources: list[Source],
    tokenizer: Tokenizer | None,
    progress: Progress,
) -> Manifest:
    shares = [share for _, share in config.weighted_sources]
    words = _words(sources, shares)
    # Before they are read: what changes meanwhile shows next time.
    fingerprints = [
        None if source.files is None else source.files.fingerprint() for source in sources
    ]
    most = config.max_bytes
    corpus = spool_corpus(
        sources,
        directory,
        validation_fraction=config.validation_fraction,
        max_bytes=[None if most is None else math.ceil(most * share) for share in shares],
        advance=_bar(progress, "reading", most),
    )
    if corpus.documents == 1:
        corpus = split_by_position(corpus, config.validation_fraction)
    for name, spool in corpus.splits.items():
        advice = _advice(*corpus.places)
        _check_not_empty(f"{name} document", spool.documents, words, config, advice)
    if tokenizer is None:
        _bar(progress, "learning the tokenizer", None)
        texts = _sample(corpus.splits["train"], shares)
        tokenizer = train_tokenizer(texts, config.vocab_size, config.end_token)
    splits = _write(directory, config, corpus, tokenizer, progress)
    for name, spool in corpus.splits.items():
        _check_not_empty(f"{name} window", splits[name].windows, words, config)
        spool.path.unlink()
    for source, windows in zip(sources, splits["train"].windows_by_source, strict=True):
        _check_not_empty("train window", windows, source.description, config)
    manifest = dataclasses.replace(
        _manifest(directory, config, corpus, tokenizer),
        source=words,
        sources=tuple(map(_source, sources, shares, fingerprints, corpus.seen, corpus.sha256)),
        splits=splits,
    )
    manifest.save(directory)
    return manifest


def _words(sources: list[Source], shares: list[Fraction]) -> str:
    if len(sources) == 1:
        return sources[0].description
    found = zip(sources, shares, strict=True)
    return ", ".join(f"{float(share):.3g} of {source.description}" for source, share in found)


def _source(
    source: Source, share: Fraction, fingerprint: Fingerprint | None, documents: int, sha256: str
) -> SourceManifest:
    if fingerprint is not None:
        fingerprint = dataclasses.replace(fingerprint, documents=documents, documents_sha256=sha256)
    return SourceManifest(
        source.description,
        str(share),
        fingerprint,
        source.files_read,
        source.skipped,
        stopped_within=source.within,
    )


def _write(
    directory: Path, config: PrepareConfig, corpus: Corpus, tokenizer: Tokenizer, progress: Progress
) -> dict[str, SplitManifest]:
    tokenizer.save(str(directory / TOKENIZER_NAME))
    token_bytes = bytes_of_tokens(tokenizer)
    np.save(directory / TOKEN_BYTES_NAME, token_bytes)
    # A document that was cut gives its splits no window in common, nor one side by side.
    gap = config.context_length + 1 if corpus.split_by == "position" else 0
    return {
        name: write_split(
            spool,
            directory,
            name,
            sources=len(corpus.seen),
            tokenizer=tokenizer,
            end=end_token_id(tokenizer, config.end_token),
            context_length=config.context_length,
            packing=config.packing,
            gap=gap if name == "validation" else 0,
            dtype=_dtype(len(token_bytes)),
            advance=_bar(progress, f"tokenising {name}", spool.bytes),
        )
        for name, spool in corpus.splits.items()
    }


def _dtype(vocab_size: int) -> str:
    return "uint16" if vocab_size <= 2**16 else "uint32"


def _manifest(
    directory: Path, config: PrepareConfig, corpus: Corpus, tokenizer: Tokenizer
) -> Manifest:
    """All of it but the sources and the splits."""
    vocab_size = len(bytes_of_tokens(tokenizer))
    return Manifest(
        format_version=FORMAT_VERSION,
        source="",
        packing=config.packing,
        context_length=config.context_length,
        vocab_size=vocab_size,
        dtype=_dtype(vocab_size),
        end_token_id=end_token_id(tokenizer, config.end_token),
        tokenizer_sha256=sha256_file(directory / TOKENIZER_NAME),
        token_bytes_sha256=sha256_file(directory / TOKEN_BYTES_NAME),
        sources=(),
        tokenizer_file_sha256=sha256_file(config.tokenizer) if config.tokenizer else None,
        split_by=corpus.split_by,
        duplicates=corpus.duplicates,
        non_utf8=corpus.non_utf8,
        non_utf8_places=corpus.non_utf8_places,
        empty=corpus.empty,
        longest=corpus.longest,
        splits={},
        config=as_json(config),
    )


def _check_not_empty(
    what: str,
    count: int,
    source: str,
    config: PrepareConfig,
    advice: str = "add documents or change these",
) -> None:
    if not count:
        raise ValueError(
            f"expected at least one {what} in {source}, got none at context_length "
            f"{config.context_length} and validation_fraction {config.validation_fraction}; "
            f"{advice}"
        )


def _advice(first: float, last: float) -> str:
    """What gives both splits a document; the first and the last one are at these places."""
    fraction = math.floor(first * 1000 + 1) / 1000
    fits = "" if fraction > last else f"take validation_fraction {fraction} to have one in each, "
    return f"{fits}add documents, or make one text of them, which is cut by position"


def _sample(spool: Spool, shares: list[Fraction]) -> Iterator[str]:
    """The first texts of each source, by its share; the last one is cut."""
    left = [math.ceil(_TOKENIZER_TRAINING_BYTES * share) for share in shares]
    for text, _, source in spool:
        if left[source] > 0:
            # No character has less than a byte.
            part = text[: left[source]].encode()[: left[source]]
            yield part.decode(errors="ignore")
            left[source] -= len(part)
        elif max(left) <= 0:
            return


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _bar(progress: Progress, description: str, total: int | None) -> Callable[[int], object]:
    task = progress.add_task(description, total=total)
    return lambda amount: progress.advance(task, amount)

"""What a directory of prepared data is."""

from pathlib import Path

from egattn.data import Manifest, evaluation_batches, load_manifest, load_tokenizer_of
from egattn.inspect.found import DataFound, Sample, SplitFound


def inspect_data(path: Path, verify: bool) -> DataFound:
    """Says what prepared data are.

    Args:
      path: Directory of `egattn prepare`.
      verify: Whether to compare the checksums of all shards, not only their sizes.

    Raises:
      ValueError: If a file is missing or damaged.
    """
    manifest = load_manifest(path, verify=verify)
    splits = {name: _split(manifest, name) for name in manifest.splits}
    left_out = {name: getattr(manifest, name) for name in ("duplicates", "non_utf8", "empty")}
    return DataFound(
        path=path,
        source=manifest.source,
        packing=manifest.packing,
        context_length=manifest.context_length,
        vocab_size=manifest.vocab_size,
        dtype=manifest.dtype,
        sha256=manifest.sha256,
        tokenizer_sha256=manifest.tokenizer_sha256,
        verified=verify,
        bytes=sum(split.bytes for split in splits.values()),
        left_out=left_out,
        longest=list(manifest.longest),
        splits=splits,
        sample=_sample(path, manifest),
    )


def _split(manifest: Manifest, name: str) -> SplitFound:
    split = manifest.splits[name]
    targets = split.windows * manifest.context_length
    return SplitFound(
        documents=split.documents,
        too_short=split.too_short,
        tokens=split.tokens,
        dropped_tokens=split.dropped_tokens,
        end_tokens=split.end_tokens,
        windows=split.windows,
        bytes_per_token=split.target_bytes / targets if targets else None,
        shards=len(split.shards),
        bytes=sum(shard.bytes for shard in split.shards),
    )


def _sample(path: Path, manifest: Manifest) -> Sample | None:
    """The first window as text."""
    name = next((name for name, split in manifest.splits.items() if split.windows), None)
    if name is None:
        return None
    length = manifest.context_length
    try:
        tokens, _ = next(
            evaluation_batches(
                path, manifest, batch_size=1, context_length=length, split=name, max_windows=1
            )
        )
    except (RuntimeError, IndexError) as error:
        # The reader's errors where a shard has the right size and the wrong content.
        raise ValueError(f"the first window of {path} cannot be read: {error}") from None
    tokenizer, _ = load_tokenizer_of(path)
    text = tokenizer.decode(tokens[0].tolist(), skip_special_tokens=False)
    return Sample(name, 0, text)

"""What a person checks at a glance once data are prepared."""

from collections.abc import Iterable
from pathlib import Path

from egattn.data.manifest import LongDocument, Manifest

# Reasons and places that are shown, and characters of a window; the manifest holds all.
_MOST, _SAMPLE = 5, 240


def print_summary(out: Path, manifest: Manifest) -> None:
    """Prints what a data directory holds, and what of the source it does not."""
    print(f"{out}: {manifest.source}, packing {manifest.packing}")
    for name, split in manifest.splits.items():
        targets = split.windows * manifest.context_length
        ends = "" if split.end_tokens is None else f" ({split.end_tokens} end tokens)"
        print(
            f"  {name}: {split.documents} documents{ends}, {split.windows} windows of "
            f"{manifest.context_length + 1} tokens, "
            f"{split.target_bytes / targets:.2f} bytes per token; "
            f"{split.dropped_tokens} of {split.tokens} tokens dropped"
        )
    if manifest.split_by == "position":
        print(
            f"  one document, cut by position: the first {manifest.context_length + 1} tokens of "
            f"validation are dropped as a gap"
        )
    for number, source in enumerate(manifest.sources):
        if len(manifest.sources) > 1:
            windows = manifest.splits["train"].windows_by_source[number]
            print(f"  {source.source}: {windows} train windows for {source.weight} of the examples")
        if source.files:
            print(f"  files: {source.files} read, {_skipped(source.skipped)}")
        if source.stopped_within is not None:
            print(f"  stopped at max_bytes within {source.stopped_within}")
    left_out = f"{manifest.duplicates} duplicates, {manifest.non_utf8} not UTF-8, "
    left_out += f"{manifest.empty} empty"
    if manifest.packing == "paper":
        left_out += f", {sum(split.too_short for split in manifest.splits.values())} too short"
    print(f"  vocabulary {manifest.vocab_size}; left out: {left_out}")
    if manifest.longest:
        print("  longest documents:", *longest(manifest.longest), sep="\n    ")
    if sample := manifest.splits["train"].sample:
        print(f"  first window of train: {shortened(sample)}")
    if manifest.non_utf8_places:
        places, count = manifest.non_utf8_places[:_MOST], manifest.non_utf8
        print(f"  not UTF-8: {', '.join(places)}{', ...' if count > len(places) else ''}")


def longest(documents: Iterable[LongDocument]) -> list[str]:
    """A line for each: size and place."""
    return [f"{document.bytes} bytes  {document.where}" for document in documents]


def shortened(sample: str) -> str:
    """The beginning of a window as one line."""
    return repr(sample[:_SAMPLE] + "..." * (len(sample) > _SAMPLE))


def _skipped(skipped: dict[str, int]) -> str:
    total = sum(skipped.values())
    if not total:
        return "0 skipped"
    most = sorted(skipped.items(), key=lambda item: -item[1])
    shown = [f"{count} {reason}" for reason, count in most[:_MOST]]
    rest = sum(count for _, count in most[_MOST:])
    shown += [f"{rest} for other reasons"] if rest else []
    return f"{total} skipped ({', '.join(shown)})"

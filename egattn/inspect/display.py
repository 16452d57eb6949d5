"""Shows what `inspect` finds: lines, and tables that fit 100 columns."""

from rich.console import Console

from egattn.data.summary import longest, shortened
from egattn.inspect.display_run import show_run
from egattn.inspect.found import Convertible, DataFound, HuggingFaceFound, Tensors
from egattn.inspect.found_run import RunFound
from egattn.inspect.layout import show_facts, table
from egattn.run.console import PlainConsole


def show(found: RunFound | DataFound | HuggingFaceFound) -> None:
    """Prints what a directory is.

    Args:
      found: What `inspect` returns.
    """
    console = PlainConsole()
    if not console.is_terminal:
        # Rich assumes 80 columns and would fold cells.
        console = PlainConsole(width=100)
    if isinstance(found, RunFound):
        show_run(console, found)
    elif isinstance(found, DataFound):
        _data(console, found)
    else:
        _hugging_face(console, found)


def _data(console: Console, data: DataFound) -> None:
    console.print(f"{data.path}: prepared data, {data.source}", soft_wrap=True)
    too_short = sum(split.too_short for split in data.splits.values())
    reasons = data.left_out | ({"too short": too_short} if too_short else {})
    left_out = ", ".join(f"{n:,} {name}" for name, n in reasons.items())
    facts = {
        "windows": f"{data.context_length} predictions each, tokens as {data.dtype}, "
        f"packing {data.packing}",
        "vocabulary": f"{data.vocab_size:,} tokens",
        "tokenizer": f"checksum {data.tokenizer_sha256}",
        "all data": f"checksum {data.sha256}",
        "files": f"{data.bytes:,} bytes; present, "
        + ("checksums compared" if data.verified else "only sizes compared"),
        "left out": left_out,
    }
    show_facts(console, facts)
    columns = ["split", "documents", "ends kept", "tokens", "dropped", "windows", "bytes/token"]
    cells = []
    for name, split in data.splits.items():
        ends = "" if split.end_tokens is None else f"{split.end_tokens:,}"
        whole = split.tokens, split.dropped_tokens, split.windows
        rate = "" if split.bytes_per_token is None else f"{split.bytes_per_token:.2f}"
        line = [name, f"{split.documents:,}", ends, *(f"{n:,}" for n in whole), rate]
        cells.append([*line, str(split.shards), f"{split.bytes:,}"])
    console.print(table([*columns, "shards", "bytes"], cells))
    if data.longest:
        console.print("longest documents:", *longest(data.longest), sep="\n  ", soft_wrap=True)
    if data.sample is not None:
        text = shortened(data.sample.text)
        console.print(f"first window of {data.sample.split}: {text}", soft_wrap=True)


def _hugging_face(console: Console, found: HuggingFaceFound) -> None:
    kind = found.model_type
    console.print(f"{found.path}: a Hugging Face model of type {kind!r:.100}", soft_wrap=True)
    if found.convertible is not None:
        show_facts(console, found.convertible.architecture)
    if found.tensors is not None:
        show_facts(console, {"tensors": _tensors(found.tensors)})
    if found.convertible is not None:
        show_facts(console, _companions(found.convertible))
        console.print("egattn convert can read it, if all of its numbers are finite")
    else:
        console.print(f"egattn convert cannot read it: {found.obstacle}", soft_wrap=True)


def _tensors(tensors: Tensors) -> str:
    types = ", ".join(f"{count} {name}" for name, count in tensors.dtypes.items())
    files = f"{len(tensors.files)} file{'s' * (len(tensors.files) != 1)}"
    return f"{types}; {tensors.elements:,} numbers, {tensors.bytes:,} bytes in {files}"


def _companions(found: Convertible) -> dict[str, str]:
    sha256 = found.tokenizer_sha256
    facts = {"tokenizer": "none" if sha256 is None else f"checksum {sha256}"}
    return facts | ({"no weights": ", ".join(found.left_out)} if found.left_out else {})

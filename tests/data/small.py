"""Small data for tests."""

import json
from pathlib import Path
from typing import Any

from egattn.data import Manifest, PrepareConfig, prepare


def config_of(folder: Path, *sources: Path | str, **changes) -> PrepareConfig:
    """Short windows of few tokens, and documents enough for validation, in `data`."""
    options: dict[str, Any] = {
        "out": folder / "data",
        "source": tuple(map(str, sources)),
        "context_length": 8,
        "vocab_size": 300,
        "validation_fraction": 0.3,
    }
    return PrepareConfig(**options | changes)


def prepared(folder: Path, texts: list[str], **changes) -> tuple[Path, Manifest]:
    """Data of documents, one a line of a file, in a directory named by the packing."""
    source = folder / "corpus.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    out = folder / changes.get("packing", "data")
    return out, prepare(config_of(folder, source, **{"out": out} | changes))

"""Data: text to checksummed windows of tokens on disk, and batches of them by global index."""

from egattn.data.config import PrepareConfig
from egattn.data.files import Fingerprint
from egattn.data.manifest import (
    LongDocument,
    Manifest,
    Packing,
    ShardManifest,
    SourceManifest,
    SplitManifest,
    load_manifest,
    token_bytes,
)
from egattn.data.prepare import prepare
from egattn.data.tokenizer import END_OF_TEXT, load_tokenizer, load_tokenizer_of
from egattn.data.windows import batches, evaluation_batches, windows_of_batch

__all__ = [
    "END_OF_TEXT",
    "Fingerprint",
    "LongDocument",
    "Manifest",
    "Packing",
    "PrepareConfig",
    "ShardManifest",
    "SourceManifest",
    "SplitManifest",
    "batches",
    "evaluation_batches",
    "load_manifest",
    "load_tokenizer",
    "load_tokenizer_of",
    "prepare",
    "token_bytes",
    "windows_of_batch",
]

"""What `inspect` finds in prepared data or a Hugging Face directory; of runs: `found_run`.

Prepared data are shown without what a decoder needs: nothing here loads it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from egattn.data import LongDocument

if TYPE_CHECKING:
    from egattn.model import DecoderConfig


class SplitFound(NamedTuple):
    """A split of prepared data."""

    documents: int
    """Documents, those too short for a window included."""
    too_short: int
    """Documents that give no window."""
    tokens: int
    """Tokens of all documents."""
    dropped_tokens: int
    """Tokens in no window."""
    end_tokens: int | None
    """Documents whose end token a window holds; None: not counted."""
    windows: int
    """Windows of one token more than the context."""
    bytes_per_token: float | None
    """UTF-8 bytes per token to predict; None without a window."""
    shards: int
    """Files."""
    bytes: int
    """Size of the files."""


class Sample(NamedTuple):
    """A window as text."""

    split: str
    """Name of its split."""
    window: int
    """Its place there."""
    text: str
    """All of its tokens, decoded."""


class DataFound(NamedTuple):
    """Prepared data."""

    kind = "data"
    path: Path
    """The directory."""
    source: str
    """Where the text came from, in words."""
    packing: str
    """How documents became windows."""
    context_length: int
    """Predictions per window."""
    vocab_size: int
    """Tokens of the vocabulary."""
    dtype: str
    """Type of the stored tokens."""
    sha256: str
    """Checksum of the data."""
    tokenizer_sha256: str
    """Checksum of the tokenizer."""
    verified: bool
    """Whether the shards' checksums were compared, not only their sizes."""
    bytes: int
    """Size of all shards."""
    left_out: dict[str, int]
    """Documents left out, by the reason."""
    longest: list[LongDocument]
    """The longest documents; empty where they were not kept."""
    splits: dict[str, SplitFound]
    """By name."""
    sample: Sample | None
    """The first window; None if there is none."""


class Tensors(NamedTuple):
    """What the headers of safetensors files say."""

    tensors: int
    """How many there are."""
    elements: int
    """Numbers in all of them."""
    dtypes: dict[str, int]
    """Tensors by their type's name in the format."""
    files: list[str]
    """Names of the files."""
    bytes: int
    """Size of the files."""


class Convertible(NamedTuple):
    """A decoder that `egattn convert` can read, if all of its numbers are finite."""

    architecture: dict[str, str]
    """See `architecture`."""
    model: "DecoderConfig"
    """The decoder's configuration."""
    left_out: list[str]
    """Tensors that are no weights."""
    tokenizer_sha256: str | None
    """Checksum that data prepared with its tokenizer will give for it; None if there is none."""


class HuggingFaceFound(NamedTuple):
    """A Hugging Face directory."""

    kind = "hugging_face"
    path: Path
    """The directory."""
    model_type: Any
    """What its config.json says; a string, where the file is in order."""
    obstacle: str | None
    """Why `egattn convert` cannot read it, as far as can be told without the tensors' numbers."""
    tensors: Tensors | None
    """None if the files cannot be read."""
    convertible: Convertible | None
    """None if there is an obstacle."""

"""What `egattn prepare` is told."""

import dataclasses
import re
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import tyro

from egattn._spelling import unknown
from egattn.data.manifest import Packing
from egattn.data.tokenizer import END_OF_TEXT, MIN_VOCAB_SIZE

_SUFFIXES = (
    *(".txt", ".md", ".rst", ".py", ".c", ".h", ".cc", ".cpp", ".hpp", ".java", ".js", ".ts"),
    *(".go", ".rs", ".jsonl", ".parquet"),
)


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Tokenise a corpus once, for every later training run."""

    out: tyro.conf.Positional[Path] = Path("data/python")
    """Directory to make. It appears only when complete."""
    source: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """`python`: the standard library and installed packages of this interpreter, the default. A
    path: a text file, a .jsonl or .parquet file, or a directory of those; text and .jsonl may be
    compressed (.gz, .xz, .bz2, .zst). `hf:NAME`: a Hugging Face dataset (needs the extra `hf`).
    Several, `--source A:0.7 --source B:0.3`: training takes so many of its examples from each."""
    hf_config: str | None = None
    """Configuration of a Hugging Face dataset that has several."""
    hf_split: str = "train"
    """Split of a Hugging Face dataset."""
    hf_revision: str | None = None
    """Branch, tag or commit of a Hugging Face dataset; default: the newest of its main branch."""
    text_field: str = "text"
    """Field of a .jsonl, .parquet or Hugging Face record that holds the text (CodeParrot:
    `content`)."""
    suffixes: tuple[str, ...] = _SUFFIXES
    """Endings, in any case, of the files to read when the source is a directory; one that a
    compression's follows counts too."""
    include: tuple[str, ...] = ()
    """Patterns such as 'src/*.py', of which the path of a file below the source must match one; `*`
    matches slashes too."""
    exclude: tuple[str, ...] = ()
    """Patterns of paths to leave out."""
    context_length: int = 128
    """Predictions per window; a window holds one token more."""
    packing: Packing = "concat"
    """`concat`: documents end to end, each with its end token, cut into windows. `segments`: the
    same windows; documents in one do not see each other, and positions restart with each.
    `paper`: each document cut by itself, its remainder dropped, the end token with it."""
    vocab_size: int = 8192
    """Largest vocabulary to learn. A small corpus gives a smaller one; the manifest says which."""
    tokenizer: Path | None = None
    """Existing byte-level tokenizer.json, instead of learning one."""
    end_token: str = END_OF_TEXT
    """Special token that ends documents, of the existing tokenizer or the one to learn."""
    validation_fraction: float = 0.02
    """Share of the documents that go to the validation split, chosen by their content. A single
    document is cut there instead, with a gap of a window."""
    max_bytes: int | None = None
    """Stop after this many bytes of distinct documents; of several sources each has its share."""

    @property
    def weighted_sources(self) -> list[tuple[str, Fraction]]:
        """Each source and its share of the examples, which sum up to 1."""
        if len(self.source) < 2:
            return [(self.source[0] if self.source else "python", Fraction(1))]
        found = [weighted(source) for source in self.source]
        total = sum(weight for _, weight in found)
        return [(source, weight / total) for source, weight in found]


def weighted(source: str) -> tuple[str, Fraction]:
    """Takes A:0.7 apart; raises ValueError where there is no weight."""
    name, _, weight = source.rpartition(":")
    if not name or not re.fullmatch(r"\d*\.?\d+", weight) or not Fraction(weight):
        raise ValueError(f"expected the weight of each of several sources, A:0.7, got {source!r}")
    return name, Fraction(weight)


def check(config: PrepareConfig) -> None:
    """Raises ValueError unless the values make sense."""
    _check_sources(config)
    if config.context_length < 1:
        raise ValueError(f"expected context_length of at least 1, got {config.context_length}")
    if config.vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(
            f"expected vocab_size of at least {MIN_VOCAB_SIZE} (256 bytes and the end token), "
            f"got {config.vocab_size}"
        )
    if not config.end_token:
        raise ValueError("expected the name of an end token, got ''")
    if config.packing not in get_args(Packing):
        raise ValueError(unknown("packing", config.packing, get_args(Packing)))
    if not 0 < config.validation_fraction < 1:
        raise ValueError(
            f"expected validation_fraction between 0 and 1, got {config.validation_fraction}"
        )
    if len({source for source, _ in config.weighted_sources}) < len(config.source):
        raise ValueError(f"expected several sources to differ, got {' '.join(config.source)}")
    if config.max_bytes is not None and config.max_bytes < 1:
        raise ValueError(f"expected max_bytes of at least 1, got {config.max_bytes}")
    if not config.suffixes or not all(suffix.startswith(".") for suffix in config.suffixes):
        raise ValueError(f"expected suffixes such as .txt, got {' '.join(config.suffixes)!r}")


def _check_sources(config: PrepareConfig) -> None:
    for name in ("source", "suffixes", "include", "exclude"):
        if isinstance(value := getattr(config, name), str):
            raise ValueError(f"{name} is a tuple: ({value!r},)")
    names = [f"hf_{name}" for name in ("config", "split", "revision")]
    given = [name for name in names if getattr(config, name) != getattr(PrepareConfig, name)]
    if given and not any(source.startswith("hf:") for source in config.source):
        raise ValueError(
            f"expected a source hf:NAME with {' and '.join(given)}, got "
            f"{' '.join(config.source) or 'python'}"
        )


def as_json(config: PrepareConfig) -> dict[str, Any]:
    """Returns the config as a manifest keeps it."""
    values = dataclasses.asdict(config)
    values["out"] = str(config.out)
    values["source"] = list(config.source or ("python",))
    for name in ("suffixes", "include", "exclude"):
        values[name] = list(values[name])
    values["tokenizer"] = None if config.tokenizer is None else str(config.tokenizer)
    return values

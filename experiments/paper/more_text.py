"""More text for the study `long`: the Python files of large packages beside those already there.

    python -m experiments.paper more-text DIRECTORY

DIRECTORY holds the unpacked wheels that `more_text.txt` lists (`pip download --no-deps -r`). Their
files and those of this interpreter are prepared together with the tokenizer of the other studies,
identical ones once; validation is that of the other studies, of which no document is in the
training split, as a document's content alone decides where it goes.
"""

import dataclasses
import os
import shutil
import tempfile
from pathlib import Path

import tyro

from egattn import cli
from egattn.data import Manifest, PrepareConfig, load_manifest
from egattn.data.sources import open_source
from experiments.paper.run import Config as RunConfig


@dataclasses.dataclass(frozen=True)
class Config:
    """What to add, and where."""

    text: tyro.conf.Positional[Path]
    """Directory of Python files."""
    root: Path = RunConfig.root
    """Directory of data and run directories; its data/128 is there already."""


def main(config: Config) -> Manifest:
    """Makes `data/more-128` below `root`.

    Raises:
      FileNotFoundError: If there is no text, or no data of the other studies.
      ValueError: If the data is there already, or cannot be prepared.
    """
    if not config.text.is_dir():
        raise FileNotFoundError(f"expected a directory of Python files, got {config.text}")
    first = config.root / "data" / "128"
    out = first.with_name("more-128")
    if out.exists():
        raise ValueError(f"{out} is there already")
    base = load_manifest(first)
    with tempfile.TemporaryDirectory(dir=config.root) as name:
        everything, staged = Path(name, "text"), Path(name, "data")
        shutil.copytree(config.text, everything / "more")
        _copy_installed(everything / "installed")
        words = f"--source {everything} --tokenizer {first}/tokenizer.json --suffixes .py"
        words += f" --packing paper --context-length {base.context_length}"
        cli.prepare([str(staged), *words.split()])
        manifest = _with_validation(staged, first, base)
        os.replace(staged, out)
    return manifest


def _copy_installed(directory: Path) -> None:
    """The documents of the other studies."""
    directory.mkdir()
    for number, document in enumerate(open_source("python", PrepareConfig())):
        (directory / f"{number:06}.py").write_bytes(document.text)


def _with_validation(staged: Path, first: Path, base: Manifest) -> Manifest:
    """Puts the validation split of other data in the place of one's own."""
    manifest = load_manifest(staged, verify=False)
    for shard in manifest.splits["validation"].shards:
        (staged / shard.file).unlink()
    for shard in base.splits["validation"].shards:
        shutil.copy(first / shard.file, staged)
    splits = {"train": manifest.splits["train"], "validation": base.splits["validation"]}
    source = f"{base.source}, and more text"
    manifest = dataclasses.replace(manifest, source=source, splits=splits)
    manifest.save(staged)
    return manifest

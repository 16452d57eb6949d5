"""A data directory that is there already: whether it is what was asked for."""

import itertools
import re
from pathlib import Path

from egattn.data.config import PrepareConfig, as_json
from egattn.data.corpus import checksum
from egattn.data.files import Fingerprint
from egattn.data.manifest import MANIFEST_NAME, Manifest, load_manifest, sha256_file
from egattn.data.sources import open_source

_OURS = re.compile(
    r"(train|validation)-\d{5}-of-\d{5}\.array_record|tokenizer\.json|token_bytes\.npy"
)


def unfinished(directory: Path, staging: str) -> list[Path] | None:
    """Files of a preparation that was killed; None if the directory holds something else.

    Args:
        directory: A directory.
        staging: Name of the directory in it in which data are made.
    """
    entries = list(directory.iterdir())
    files = [path for path in entries if path.name != staging]
    killed = len(files) < len(entries) and all(_OURS.fullmatch(path.name) for path in files)
    return files if killed or not entries else None


def verified(out: Path, config: PrepareConfig) -> tuple[Manifest, str]:
    """Checks data against their checksums, the config, and the source and tokenizer of today.

    Args:
        out: Their directory.
        config: What was asked for.

    Returns:
        Their manifest, and what has been compared, in words.

    Raises:
        ValueError: It is another directory, or they are damaged or were made otherwise.
    """
    if not (out / MANIFEST_NAME).is_file():
        raise ValueError(
            f"expected {config.out} to be new, empty or prepared data, got something else; "
            f"choose another directory"
        )
    made = load_manifest(out, verify=False)
    # An option that came later was as it is by default.
    made_by, wanted = as_json(PrepareConfig()) | made.config, as_json(config)
    # The directory may have been moved since: its own name decides nothing.
    names = sorted((wanted.keys() | made_by.keys()) - {"out"})
    differing = [name for name in names if wanted.get(name) != made_by[name]]
    if differing:
        described = ", ".join(
            f"{name} {made_by[name]!r} (now {wanted.get(name)!r})" for name in differing
        )
        raise ValueError(f"{config.out} was prepared with {described}; choose another directory")
    compared = _compare_sources(made, config) + _compare_tokenizer(made, config)
    return load_manifest(out), f"up to date, checksums verified; {', '.join(compared)}"


def _compare_sources(made: Manifest, config: PrepareConfig) -> list[str]:
    if not made.sources:
        return ["the source is not compared"]
    found = [
        _compare_source(source, before.fingerprint, config)
        for (source, _), before in zip(config.weighted_sources, made.sources, strict=True)
    ]
    if len(found) == 1:
        return found
    return [f"{one.source}: {words}" for one, words in zip(made.sources, found, strict=True)]


def _compare_source(name: str, before: Fingerprint | None, config: PrepareConfig) -> str:
    if before is None:
        return "the source is not compared"
    try:
        source = open_source(name, config)
    except FileNotFoundError:
        return "the source is not here"
    now = None if source.files is None else source.files.fingerprint()
    if now is not None and now.names_sha256 == before.names_sha256:
        if now.times_sha256 == before.times_sha256:
            return "names, sizes and times of the source unchanged"
        if checksum(itertools.islice(source, before.documents)) == before.documents_sha256:
            return "the source has other times and the same text"
    if name == "python":
        # They are there for other reasons than to be learned from, and change with any of these.
        return "installed packages have changed since; the data are as they were"
    raise ValueError(
        f"{name} has changed since {config.out} was prepared: then {_files(before)}, now "
        f"{_files(now)}; choose another directory"
    )


def _files(found: Fingerprint | None) -> str:
    if found is None:
        return "none"
    names = found.names_sha256[:8]
    return f"{found.files} files of {found.bytes} bytes (checksum of names and sizes {names})"


def _compare_tokenizer(made: Manifest, config: PrepareConfig) -> list[str]:
    if config.tokenizer is None or made.tokenizer_file_sha256 is None:
        return []
    if not config.tokenizer.is_file():
        return ["the tokenizer's file is not here"]
    now = sha256_file(config.tokenizer)
    if now != made.tokenizer_file_sha256:
        raise ValueError(
            f"{config.tokenizer} has changed since {config.out} was prepared: then sha256 "
            f"{made.tokenizer_file_sha256}, now {now}; choose another directory"
        )
    return ["the tokenizer's file unchanged"]

"""Checksums of a checkpoint's files: a save is complete once they are written."""

import concurrent.futures
import hashlib
import json
import os
from pathlib import Path

_SEAL = "checksums.json"
# Bytes hashed at a time by one thread.
_PIECE = 2**24


def seal(directory: Path) -> None:
    """Writes the sizes and checksums of all files below a directory into it."""
    present = _files(directory)
    digests = _digests(list(present.values()))
    files = {
        name: [path.stat().st_size, digest]
        for (name, path), digest in zip(present.items(), digests, strict=True)
    }
    partial = directory / f"{_SEAL}.partial"
    partial.write_text(json.dumps(files, indent=0), encoding="utf-8")
    os.replace(partial, directory / _SEAL)


def is_sealed(directory: Path) -> bool:
    """Whether the directory was sealed, intact or not."""
    return (directory / _SEAL).is_file()


def damage(directory: Path) -> str | None:
    """Says what is wrong with a sealed directory: a file that is missing, truncated or changed.

    Returns:
      None if every file is as it was sealed.
    """
    if not is_sealed(directory):
        return "its save was not completed"
    try:
        sealed = json.loads((directory / _SEAL).read_bytes())
        files = [(name, size, digest) for name, (size, digest) in sealed.items()]
    except (ValueError, TypeError, AttributeError):
        return f"{_SEAL} is damaged"
    present = _files(directory)
    for name, size, _ in files:
        if name not in present:
            return f"{name} is missing"
        actual = present[name].stat().st_size
        if actual != size:
            return f"{name} has {actual} bytes, expected {size}"
    digests = _digests([present[name] for name, _, _ in files])
    for (name, _, expected), digest in zip(files, digests, strict=True):
        if digest != expected:
            return f"{name} has another checksum than when it was saved"
    return None


def _digests(paths: list[Path]) -> list[str]:
    """SHA-256 of the SHA-256 of each piece of a file; threads compute them side by side."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        pieces = [
            [pool.submit(_digest, path, start) for start in range(0, path.stat().st_size, _PIECE)]
            for path in paths
        ]
    joined = (b"".join(piece.result() for piece in file) for file in pieces)
    return [hashlib.sha256(digests).hexdigest() for digests in joined]


def _digest(path: Path, start: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return hashlib.sha256(file.read(_PIECE)).digest()


def _files(directory: Path) -> dict[str, Path]:
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    named = {str(path.relative_to(directory)): path for path in paths}
    return {name: path for name, path in named.items() if not name.startswith(_SEAL)}

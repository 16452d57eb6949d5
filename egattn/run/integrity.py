"""Which checkpoints are intact: a save is complete once its files' checksums are written."""

import concurrent.futures
import contextlib
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

from egattn.run.lines import replaced, to_disk
from egattn.run.lock import in_use

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
    for path in present.values():
        to_disk(path)
    with replaced(directory / _SEAL) as file:
        file.write(json.dumps(files, indent=0).encode())


def is_sealed(directory: Path) -> bool:
    """Whether the directory was sealed, intact or not."""
    return (directory / _SEAL).is_file()


@contextlib.contextmanager
def being_read(directory: Path) -> Iterator[None]:
    """Keeps a sealed directory from being removed meanwhile, see `removable`.

    Raises:
      FileNotFoundError: If it is gone.
    """
    with in_use(directory / _SEAL) as here:
        if not here:
            raise FileNotFoundError(f"{directory} was removed")
        yield


@contextlib.contextmanager
def removable(directory: Path) -> Iterator[bool]:
    """Gives whether nobody reads a directory, and keeps it so; what was not sealed nobody reads."""
    if not is_sealed(directory):
        yield True
        return
    with in_use(directory / _SEAL, alone=True) as alone:
        yield alone


def sha256(directory: Path) -> str:
    """Checksum of a sealed directory: of the file that has the checksums of all others."""
    return hashlib.sha256((directory / _SEAL).read_bytes()).hexdigest()


def damage(directory: Path) -> str | None:
    """Says what is wrong with a sealed directory: a file that is missing, truncated or changed.

    Returns:
      None if every file is as it was sealed.
    """
    if not is_sealed(directory):
        return f"it has no {_SEAL}, which a save writes last"
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
    try:
        digests = _digests([present[name] for name, _, _ in files])
    except FileNotFoundError as error:
        return f"{error.filename} was removed while it was read"
    for (name, _, expected), digest in zip(files, digests, strict=True):
        if digest != expected:
            return f"{name} has another checksum than when it was saved"
    return None


def saved_steps(directory: Path) -> list[int]:
    """Numbers of the checkpoints in a directory, complete or not, ascending."""
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())


def newest_intact(directory: Path, below: float = math.inf) -> tuple[int | None, dict[int, str]]:
    """Newest intact step if there is one, and for each newer one what is wrong with it.

    Args:
      directory: Where a run's checkpoints are.
      below: Only steps below this one count.

    Raises:
      FileNotFoundError: If there were completed checkpoints, and none is intact.
    """
    skipped: dict[int, str] = {}
    steps = [step for step in reversed(saved_steps(directory)) if step < below]
    for step in steps:
        problem = damage(directory / str(step))
        if problem is None:
            return step, skipped
        skipped[step] = f"checkpoint {step} is not intact: {problem}"
    if any(is_sealed(directory / str(step)) for step in steps):
        first = next(iter(skipped.values()))
        raise FileNotFoundError(f"no checkpoint in {directory} is intact: {first}")
    return None, skipped


def check_intact(directory: Path, step: int) -> None:
    """Raises FileNotFoundError if there is no such checkpoint, or it is not intact."""
    have = saved_steps(directory)
    if step not in have:
        listed = ", ".join(map(str, have)) or "none"
        raise FileNotFoundError(f"no checkpoint {step} in {directory} (have: {listed})")
    problem = damage(directory / str(step))
    if problem is not None:
        raise FileNotFoundError(f"checkpoint {directory / str(step)}: {problem}")


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

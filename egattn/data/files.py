"""The files of a source: which are read, in which order, and why the others are not."""

import collections
import dataclasses
import errno
import fnmatch
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from egattn.data.formats import ARCHIVES, ending

# Reasons named one by one; the endings of a large tree are legion.
_MOST_ENDINGS = 10
_CACHES = ("__pycache__",)


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """What tells whether a source has changed, without reading it as long as nothing differs."""

    files: int
    """How many there are."""
    bytes: int
    """Their size."""
    names_sha256: str
    """Checksum of their names and sizes."""
    times_sha256: str
    """The same of their names and the times of their last changes."""
    documents: int = 0
    """Documents that were read from them."""
    documents_sha256: str = ""
    """Checksum of those documents."""


@dataclasses.dataclass(frozen=True)
class Files:
    """The files of a source."""

    paths: list[Path]
    """Those to read, in reading order."""
    names: list[str]
    """Their names within the source."""
    skipped: dict[str, int]
    """How many others there are, by the reason; a directory that is left out counts as one."""

    def fingerprint(self) -> Fingerprint:
        """Describes the files as they are now."""
        found = [path.stat() for path in self.paths]
        sizes = [status.st_size for status in found]
        times = [status.st_mtime_ns for status in found]
        return Fingerprint(
            len(found),
            sum(sizes),
            names_sha256=_checksum(self.names, sizes),
            times_sha256=_checksum(self.names, times),
        )


def _checksum(names: list[str], values: list[int]) -> str:
    lines = sorted(f"{name}\0{value}" for name, value in zip(names, values, strict=True))
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def one_file(path: Path) -> Files:
    """The only file of a source."""
    return Files([path], [path.name], {})


def files_below(
    roots: list[Path],
    suffixes: tuple[str, ...],
    *,
    include: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
    skip: tuple[str, ...] = (),
    follow: bool = True,
) -> Files:
    """Lists the files below `roots`, in the order of the hashes of their relative paths.

    A byte budget takes a prefix of this order. Alphabetical order would fill it with the few
    packages that start with an "a"; the hash of the path mixes them all, needs no file to be read
    first, and does not depend on where the root is.

    Args:
        roots: Directories.
        suffixes: Endings of the files to read, whatever their case; see `ending` for those of
            compressed ones.
        include: Patterns of relative paths of which a file must match one; none: all do.
        exclude: Patterns of relative paths of which a file must match none.
        skip: Names of directories to leave out.
        follow: Whether to enter linked directories, each once.

    Raises:
        OSError: A directory cannot be read.
    """
    walk = _Walk((*_CACHES, *skip), follow)
    found: dict[Path, str] = {}
    for root in roots:
        for path in walk.files(root):
            name = path.relative_to(root).as_posix()
            reason = _reason(path, suffixes) or _unwanted(name, include, exclude)
            if reason is None:
                found.setdefault(path, name)
            else:
                walk.skipped[reason] += 1
    hashes = {path: hashlib.sha256(os.fsencode(name)).digest() for path, name in found.items()}
    paths = sorted(found, key=lambda path: (hashes[path], path))
    return Files(paths, [found[path] for path in paths], _summed(walk.skipped))


class _Walk:
    """Goes through directories, each once, those that are no links first."""

    def __init__(self, skip: tuple[str, ...], follow: bool):
        self._skip, self._follow = skip, follow
        self._seen: set[tuple[int, int]] = set()
        self.skipped: collections.Counter[str] = collections.Counter()

    def files(self, root: Path) -> Iterator[Path]:
        waiting = [root]
        while waiting:
            start = waiting.pop(0)
            if self._is_new(start):
                for folder, folders, names in os.walk(start, onerror=_raise):
                    found = [Path(folder, name) for name in sorted(folders)]
                    entered = [path for path in found if self._enters(path, waiting)]
                    folders[:] = [path.name for path in entered]
                    yield from (Path(folder, name) for name in names)

    def _enters(self, path: Path, waiting: list[Path]) -> bool:
        """Whether to go into a directory now; links wait."""
        if path.name.startswith("."):
            self.skipped["hidden"] += 1
        elif path.name in self._skip:
            self.skipped[f"directories {path.name}"] += 1
        elif not path.is_symlink():
            return self._is_new(path)
        elif self._follow:
            waiting.append(path)
        else:
            self.skipped["linked directories"] += 1
        return False

    def _is_new(self, path: Path) -> bool:
        status = path.stat()
        identity = status.st_dev, status.st_ino
        if identity in self._seen:
            self.skipped["directories read already"] += 1
            return False
        self._seen.add(identity)
        return True


def _raise(error: OSError) -> None:
    raise error


def _reason(path: Path, suffixes: tuple[str, ...]) -> str | None:
    """Why a file is not read."""
    last = path.suffix.lower()
    if not {ending(path), last} & {suffix.lower() for suffix in suffixes}:
        return f"ending in {last}" if last else "without an ending"
    if ending(path) in ARCHIVES:
        return "archives"
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        return "broken links"
    return None if stat.S_ISREG(mode) else "no regular files"


def _unwanted(name: str, include: tuple[str, ...], exclude: tuple[str, ...]) -> str | None:
    if include and not any(fnmatch.fnmatchcase(name, pattern) for pattern in include):
        return "not included"
    return "excluded" if any(fnmatch.fnmatchcase(name, p) for p in exclude) else None


def _summed(skipped: collections.Counter[str]) -> dict[str, int]:
    """The most frequent endings by name, the others together."""
    endings = [name for name, _ in skipped.most_common() if name.startswith("ending in ")]
    rare = set(endings[_MOST_ENDINGS:])
    kept = {name: count for name, count in skipped.most_common() if name not in rare}
    others = sum(skipped[name] for name in rare)
    return kept | ({"of other endings": others} if others else {})

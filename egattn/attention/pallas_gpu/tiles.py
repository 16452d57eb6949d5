"""Block sizes by shape, from measurements on an H200."""

from typing import Any, NamedTuple

from egattn.attention.pallas_gpu.common import Problem, Tiles

# Head size -> ((fewest positions, tiles), ...), longest first.
_FORWARD = {
    64: ((0, Tiles(workgroups=2, block=128, take_turns=True)),),
    128: ((0, Tiles(workgroups=2, block=128, slots=2, take_turns=True)),),
}
_QUERY = {
    64: (
        (2048, Tiles(workgroups=3, block=64, stages=3, slots=2)),
        (0, Tiles(workgroups=2, block=128, slots=2)),
    ),
    128: ((0, Tiles(workgroups=2, block=64, slots=1)),),
}
_KEY = {
    64: (
        (4096, Tiles(workgroups=3, block=64, stages=3, slots=2)),
        (0, Tiles(workgroups=2, block=64, stages=3)),
    ),
    128: ((0, Tiles(workgroups=2, block=64, slots=1)),),
}
_SHORT = {64: ((0, Tiles(workgroups=2, block=64)),)}

LONGEST_BLOCK = 128
"""Positions that padded segment ids are a multiple of: the largest block above."""

_Table = dict[int, tuple[tuple[int, Tiles], ...]]


class KernelTiles(NamedTuple):
    """Tiles of each kernel that a problem takes."""

    forward: Tiles
    short: Tiles | None
    """Of `backward_short`; None where the next two do the backward pass."""
    query: Tiles
    key: Tiles


def choose(problem: Problem) -> KernelTiles:
    """The tiles for a problem's head size and length."""
    short = _chosen(_SHORT, problem) if fits_on_chip(problem) else None
    return KernelTiles(
        _chosen(_FORWARD, problem), short, _chosen(_QUERY, problem), _chosen(_KEY, problem)
    )


def without_entropy(problem: Problem) -> KernelTiles:
    """As `choose`, of kernels that leave the entropy out; they return nonsense in its place."""
    off: Any = (tiles and tiles._replace(entropy=False) for tiles in choose(problem))
    return KernelTiles(*off)


def _chosen(table: _Table, problem: Problem) -> Tiles:
    return next(tiles for length, tiles in table[problem.head_dim] if problem.length >= length)


def fits_on_chip(problem: Problem) -> bool:
    """Whether `backward_short` can do a head's whole score matrix at once."""
    square = problem.length == problem.source and problem.offset == 0
    return square and problem.length <= 128 and problem.group == 1 and problem.head_dim == 64

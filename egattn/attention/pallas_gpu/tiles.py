"""Block sizes by shape, from measurements on an H200."""

from egattn.attention.pallas_gpu.common import Problem, Tiles

# Head size -> ((fewest positions, tiles), ...), longest first.
FORWARD = {
    64: ((0, Tiles(workgroups=2, block=128, take_turns=True)),),
    128: ((0, Tiles(workgroups=2, block=128, slots=2, take_turns=True)),),
}
QUERY = {
    64: (
        (2048, Tiles(workgroups=3, block=64, stages=3, slots=2)),
        (0, Tiles(workgroups=2, block=128, slots=2)),
    ),
    128: ((0, Tiles(workgroups=2, block=64, slots=1)),),
}
KEY = {
    64: (
        (4096, Tiles(workgroups=3, block=64, stages=3, slots=2)),
        (0, Tiles(workgroups=2, block=64, stages=3)),
    ),
    128: ((0, Tiles(workgroups=2, block=64, slots=1)),),
}
SHORT = {64: ((0, Tiles(workgroups=2, block=64)),)}

LONGEST_BLOCK = 128
"""Positions that padded segment ids are a multiple of: the largest block above."""

Table = dict[int, tuple[tuple[int, Tiles], ...]]


def choose(table: Table, problem: Problem) -> Tiles:
    """The tiles for a problem's head size and length."""
    return next(tiles for length, tiles in table[problem.head_dim] if problem.length >= length)


def fits_on_chip(problem: Problem) -> bool:
    """Whether `backward_short` can do a head's whole score matrix at once."""
    square = problem.length == problem.source and problem.offset == 0
    return square and problem.length <= 128 and problem.group == 1 and problem.head_dim == 64

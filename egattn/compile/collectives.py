"""Collectives of a compiled program: which, how often and how many bytes, read from its HLO."""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from egattn.compile.hlo import Instruction, Module, parse, trip_count

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")


@dataclasses.dataclass
class Volume:
    """What collectives of one kind do in one run of a program, per device."""

    count: int = 0
    """Times one is executed; both halves of an asynchronous one are one."""
    bytes: int = 0
    """Size of what is gathered, reduced, scattered, sent or exchanged: of the operand, for an
    all-gather of its result."""
    traffic: float = 0.0
    """Bytes that a device sends when a group of g passes them around a ring: (g - 1) / g of
    `bytes`, twice that for an all-reduce, all of them for a permutation."""


@dataclasses.dataclass(frozen=True)
class Collectives:
    """All collectives of a program."""

    kinds: dict[str, Volume]
    """By kind, in the order of `KINDS`."""
    uncertain: int
    """How many of them are in loops whose trips the program does not tell, and count once."""

    @property
    def bytes(self) -> int:
        """Bytes of all kinds."""
        return sum(volume.bytes for volume in self.kinds.values())

    @property
    def traffic(self) -> float:
        """Traffic of all kinds."""
        return sum(volume.traffic for volume in self.kinds.values())


NONE = Collectives({}, 0)


def collectives(text: str, devices: int) -> Collectives:
    """Counts a program's collectives, those in a loop once per trip, in a branch as if taken.

    Args:
      text: Optimised HLO, as `jax.stages.Compiled.as_text` returns it.
      devices: Number of devices the program runs on.

    Raises:
      ValueError: If the text is no HLO module.
    """
    module = parse(text)
    kinds = {kind: Volume() for kind in KINDS}
    uncertain = 0
    for found, trips, certain in _once(_walk(module, module.entry, 1, True)):
        volume = kinds[found.kind]
        group = _group_size(found.instruction, devices)
        size = _size(module, found) * (group if found.kind == "all-gather" else 1)
        volume.count += trips
        volume.bytes += trips * size
        volume.traffic += trips * size * _share(found.kind, group)
        uncertain += not certain
    return Collectives(kinds, uncertain)


class _Found(NamedTuple):
    kind: str
    computation: str
    instruction: Instruction


_Execution = tuple[_Found, int, bool]
"""A collective, how often it runs, and whether that is certain."""


def _once(executions: Iterable[_Execution]) -> list[_Execution]:
    """Leaves one part of each collective that the TPU compiler spread over several fusions.

    It does so to overlap it with their work, in loops too: the part that runs least often begins or
    ends it.
    """
    whole, parts = [], {}
    for execution in executions:
        attributes = execution[0].instruction.attributes
        chain = re.search(r'chain_id="(\d+)"', attributes)
        if chain is None:
            whole.append(execution)
            continue
        channel = re.search(r"channel_id=\d+", attributes)
        key = chain[0], channel and channel[0]
        parts[key] = min(parts.get(key, execution), execution, key=lambda e: e[1])
    return whole + list(parts.values())


def _walk(module: Module, name: str, trips: int, certain: bool) -> Iterator[_Execution]:
    """Yields collectives of a computation and of what it calls."""
    for instruction in module.computations[name].values():
        kind = _kind(instruction, name)
        if kind:
            yield _Found(kind, name, instruction), trips, certain
        elif instruction.opcode == "while":
            count = trip_count(module, name, instruction)
            (body,) = instruction.called("body")
            times = trips * (1 if count is None else count)
            yield from _walk(module, body, times, certain and count is not None)
        else:
            for callee in instruction.callees():
                yield from _walk(module, callee, trips, certain)


def _kind(instruction: Instruction, computation: str) -> str | None:
    opcode = instruction.opcode.removesuffix("-start")
    if opcode not in KINDS:
        return None
    # How the TPU compiler writes a reduce-scatter: a fusion of an all-reduce and a slice.
    if opcode == "all-reduce" and computation.startswith("all-reduce-scatter"):
        return "reduce-scatter"
    return opcode


def _size(module: Module, found: _Found) -> int:
    """Bytes of a collective's operands on one device."""
    types = module.computations[found.computation]
    return sum(types[operand].bytes for operand in found.instruction.operands)


def _share(kind: str, group: int) -> float:
    if kind == "collective-permute":
        return 1.0
    return (2 if kind == "all-reduce" else 1) * (group - 1) / group


def _group_size(instruction: Instruction, devices: int) -> int:
    """Devices that take part in one collective together."""
    text = instruction.attributes
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]<=", text):
        return int(found[1])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return found[1].count(",") + 1
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return devices

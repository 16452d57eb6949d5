"""As much of HLO's text as counting collectives needs: computations, instructions, loops."""

import math
import re
from typing import NamedTuple

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_TYPE = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_BYTES = {"pred": 1, "token": 0}
_CALLS = ("calls", "to_apply", "branch_computations", "true_computation", "false_computation")


class Instruction(NamedTuple):
    """One line of a computation."""

    opcode: str
    type: str
    """Type of its result, with layout."""
    operands: tuple[str, ...]
    """Names of its operands; of a constant, its value."""
    attributes: str
    """What follows the operands."""

    @property
    def bytes(self) -> int:
        """Size of its result, bytes; of a tuple, of all its elements."""
        return sum(
            math.ceil(_element_bytes(kind) * math.prod(map(int, filter(None, dims.split(",")))))
            for kind, dims in _TYPE.findall(self.type)
        )

    def called(self, attribute: str) -> list[str]:
        """Names of the computations that an attribute names, one or a list in braces."""
        found = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|[^,\s]+)", self.attributes)
        return re.findall(r"[\w.\-]+", found[1]) if found else []

    def callees(self) -> list[str]:
        """Names of the computations that run as part of it, other than a loop's."""
        return [name for attribute in _CALLS for name in self.called(attribute)]


class Module(NamedTuple):
    """A program."""

    entry: str
    computations: dict[str, dict[str, Instruction]]
    """By name; each one's last instruction is its result."""


def parse(text: str) -> Module:
    """Reads a module.

    Raises:
      ValueError: If there is no entry computation.
    """
    entry, root, computations = None, "", {}
    instructions: dict[str, Instruction] = {}
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            instructions = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
        elif found := _INSTRUCTION.match(line):
            instructions[found[2]] = _instruction(found[3])
            root = found[2] if found[1] else root
        elif line == "}":
            instructions[root] = instructions.pop(root)
    if entry is None:
        raise ValueError(f"expected an HLO module with an ENTRY, got {text[:40]!r}")
    return Module(entry, computations)


def trip_count(module: Module, computation: str, loop: Instruction) -> int | None:
    """Trips of a while loop, or None if the text does not tell.

    XLA writes the count where it knows it; otherwise this reads a counter that starts at a
    constant, steps by a constant and is compared with a constant, as `lax.scan` makes it.
    """
    known = re.search(r'known_trip_count[^}]*?"?n"?:"?(\d+)', loop.attributes)
    if known:
        return int(known[1])
    (condition,), (body,) = loop.called("condition"), loop.called("body")
    inside = module.computations[condition]
    test = list(inside.values())[-1]
    if test.opcode != "compare" or "direction=LT" not in test.attributes:
        return None
    counter, limit = (_source(inside, name) for name in test.operands)
    index = _element(counter)
    outside, within = module.computations[computation], module.computations[body]
    carried = _source(outside, loop.operands[0])
    if index is None or carried.opcode != "tuple":
        return None
    first, last = _value(_source(outside, carried.operands[index])), _value(limit)
    step = _step(within, index)
    if first is None or last is None or not step or step < 0:
        return None
    return max(0, -(-(last - first) // step))


def _source(computation: dict[str, Instruction], name: str) -> Instruction:
    """The instruction that makes a value, copies of it aside."""
    instruction = computation[name]
    while instruction.opcode in ("copy", "bitcast"):
        instruction = computation[instruction.operands[0]]
    return instruction


def _value(instruction: Instruction) -> int | None:
    """Value of an integer constant."""
    if instruction.opcode != "constant" or not re.fullmatch(r"-?\d+", instruction.operands[0]):
        return None
    return int(instruction.operands[0])


def _element(instruction: Instruction) -> int | None:
    """Which element of a tuple an instruction takes."""
    found = re.search(r"\bindex=(\d+)", instruction.attributes)
    return int(found[1]) if found and instruction.opcode == "get-tuple-element" else None


def _step(body: dict[str, Instruction], index: int) -> int | None:
    """What a loop's body adds to an element of what it carries."""
    result = list(body.values())[-1]
    if result.opcode != "tuple":
        return None
    update = _source(body, result.operands[index])
    if update.opcode != "add":
        return None
    terms = [_source(body, name) for name in update.operands]
    if index not in map(_element, terms):
        return None
    return next((value for value in map(_value, terms) if value is not None), None)


def _instruction(text: str) -> Instruction:
    """Splits "TYPE opcode(operands), attributes"; a tuple's type holds parentheses and spaces."""
    text = re.sub(r"/\*.*?\*/", "", text)
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    kind, rest = text[:end], text[end:].lstrip()
    start = rest.index("(")
    stop = _closing(rest, start)
    # Some printers repeat each operand's type before its name.
    names = [item.split()[-1].lstrip("%") for item in _split(rest[start + 1 : stop])]
    return Instruction(rest[:start], kind, tuple(names), rest[stop + 1 :])


def _closing(text: str, start: int) -> int:
    """Position of the parenthesis that closes the one at `start`."""
    depth = 0
    for found in re.finditer(r"[()]", text[start:]):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return start + found.start()
    raise ValueError(f"expected balanced parentheses, got {text[:80]!r}")


def _split(text: str) -> list[str]:
    """Splits at commas outside of brackets."""
    parts, depth, last = [], 0, 0
    for found in re.finditer(r"[()\[\]{},]", text):
        if found[0] == "," and depth == 0:
            parts.append(text[last : found.start()])
            last = found.end()
        elif found[0] != ",":
            depth += 1 if found[0] in "([{" else -1
    return [part for part in (*parts, text[last:]) if part.strip()]


def _element_bytes(kind: str) -> float:
    if kind in _BYTES:
        return _BYTES[kind]
    bits = re.match(r"[a-z]+(\d+)", kind)
    return int(bits[1]) / 8 if bits else 0

"""Memory of a compiled step on one chip, of its state, and of a step that XLA refused."""

import dataclasses
import math
import re
from typing import Any

import jax

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)"
# Two forms of one complaint; each states first what is needed, state included, then what there is.
_REFUSALS = (
    re.compile(rf"\({_SIZE}\) exceeds available HBM \({_SIZE}\)"),
    re.compile(rf"Used {_SIZE} of {_SIZE} hbm"),
)


@dataclasses.dataclass(frozen=True)
class Memory:
    """What a compiled step asks for on each chip, bytes."""

    arguments: int
    """State and batch."""
    outputs: int
    """Results that take no argument's place; the state does, being donated."""
    temporaries: int
    """Activations, gradients and whatever else lives within a step."""
    code: int
    """The program."""

    @classmethod
    def of(cls, compiled: Any) -> "Memory":
        """Reads a `jax.stages.Compiled`."""
        stats = compiled.memory_analysis()
        return cls(
            arguments=stats.argument_size_in_bytes,
            outputs=stats.output_size_in_bytes - stats.alias_size_in_bytes,
            temporaries=stats.temp_size_in_bytes,
            code=stats.generated_code_size_in_bytes,
        )

    @property
    def total(self) -> int:
        """All of it at once."""
        return self.arguments + self.outputs + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class Refusal:
    """XLA gave up: a chip's memory is too small."""

    needed: int
    """Bytes that it wanted on each chip, state included."""
    available: int
    """Bytes that it reckons with."""

    @classmethod
    def of(cls, message: str) -> "Refusal | None":
        """Reads an error's message; None if it is about something else than a chip's memory."""
        if not message.startswith("RESOURCE_EXHAUSTED"):
            return None
        found = next(filter(None, (form.search(message) for form in _REFUSALS)), None)
        if found is None:
            return None
        needed, unit, available, other = found.groups()
        return cls(round(float(needed) * _UNITS[unit]), round(float(available) * _UNITS[other]))


def bytes_per_device(arrays: Any) -> int:
    """Bytes of sharded arrays, or of their shapes, on each device, layout's padding aside."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(arrays)
    )

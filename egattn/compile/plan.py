"""Compiles one training step for one mesh of TPU chips and says what it needs."""

import contextlib
import dataclasses
import math
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from egattn.compile.collectives import Volume, collectives
from egattn.compile.config import CompileConfig, Effort
from egattn.compile.topology import chip_of, describe, libtpu_version
from egattn.sharding import check_batch, make_mesh, state_sharding
from egattn.train.config import TrainConfig
from egattn.train.flops import flops_per_token, peak_flops
from egattn.train.step import TrainState, abstract, batch_sharding, make_train_step


@dataclasses.dataclass(frozen=True)
class Memory:
    """What a compiled step asks for on each chip, bytes."""

    arguments: int
    """State and batch."""
    outputs: int
    """Results that take no argument's place: the state does, being donated."""
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        """All of it at once, which is more than any moment needs."""
        return self.arguments + self.outputs + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class Plan:
    """One training step on one mesh: what XLA says of it, and what follows."""

    topology: str
    chip: str
    chips: int
    mesh: dict[str, int]
    preset: str
    parameters: int
    batch_size: int
    accumulation: int
    context_length: int
    effort: Effort
    hbm_bytes: int
    """Memory of a chip."""
    state_bytes: int
    """Parameters and optimiser's moments on a chip, from their shapes and shardings alone."""
    needed_bytes: int
    """Memory on a chip: `Memory.total`, or what XLA says where it gave up."""
    fits: bool
    memory: Memory | None
    """None where XLA gave up for lack of memory; then `collectives` is empty."""
    refusal: str | None
    """What XLA said when it gave up."""
    collectives: dict[str, Volume]
    """Per chip and step."""
    unknown_loops: int
    """Loops with collectives whose trips are unknown: counted once."""
    flops: float
    """Of the model per step, over all chips, without recomputation."""
    compute_seconds: float
    """Those FLOPs at the chips' bfloat16 peak."""
    communication_seconds: float
    """The collectives' traffic over all links of a chip, as if none waited or overlapped."""
    compile_seconds: float
    jax: str
    libtpu: str

    @property
    def flops_per_chip(self) -> float:
        """FLOPs per step on each chip."""
        return self.flops / self.chips


def plan(config: CompileConfig) -> Plan:
    """Compiles the step of `config` and returns what it needs.

    Raises:
      ValueError: If topology, mesh, batch and model do not fit together.
      NotImplementedError: If the TPU compiler is not installed.
    """
    devices = describe(config.topology)
    train = config.train_config(len(devices))
    return plan_mesh(config, train, mesh_of(config, devices))


def mesh_of(config: CompileConfig, devices: Sequence[Any]) -> Mesh:
    """The mesh that `config` asks for.

    By default fsdp is the largest divisor of the chips that divides the model's width too, so that
    every matrix is split; the rest is replica.
    """
    fsdp = math.gcd(len(devices), config.model.embed_dim)
    default = f"replica={len(devices) // fsdp},fsdp={fsdp}"
    return make_mesh(config.mesh or default, devices)


def plan_mesh(config: CompileConfig, train: TrainConfig, mesh: Mesh) -> Plan:
    """As `plan`, for a given run and mesh."""
    check_batch(mesh, train.batch_size // train.accumulation)
    chip = chip_of(config.topology)
    state = sharded_state(train, mesh)
    start = time.perf_counter()
    compiled, refusal = _compile(train, mesh, state, config.effort)
    seconds = time.perf_counter() - start
    memory = None if compiled is None else _memory(compiled)
    needed = _refused_bytes(refusal) if memory is None else memory.total
    counted = collectives("ENTRY %main () -> () {" if compiled is None else compiled.as_text(), mesh.size)
    flops = flops_per_token(train.model) * train.batch_size * train.model.context_length
    peak = peak_flops(mesh.devices.flat[0].device_kind)
    assert peak is not None
    return Plan(
        topology=config.topology,
        chip=chip.name,
        chips=mesh.size,
        mesh=dict(mesh.shape),
        preset=train.preset,
        parameters=sum(x.size for x in jax.tree.leaves(state.params)),
        batch_size=train.batch_size,
        accumulation=train.accumulation,
        context_length=train.model.context_length,
        effort=config.effort,
        hbm_bytes=chip.hbm_bytes,
        state_bytes=bytes_per_device(state),
        needed_bytes=needed,
        fits=memory is not None and needed <= chip.hbm_bytes,
        memory=memory,
        refusal=refusal,
        collectives=counted.kinds if compiled else {},
        unknown_loops=counted.unknown_loops,
        flops=flops,
        compute_seconds=flops / mesh.size / peak,
        communication_seconds=counted.traffic / chip.ici_bytes,
        compile_seconds=seconds,
        jax=jax.__version__,
        libtpu=libtpu_version(),
    )


def sharded_state(train: TrainConfig, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state."""
    shapes = abstract(train)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        state_sharding(mesh, shapes),
    )


def bytes_per_device(state: Any) -> int:
    """Bytes of a sharded state on each device, padding aside."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(state)
    )


def _compile(
    train: TrainConfig, mesh: Mesh, state: TrainState, effort: Effort
) -> tuple[Any, str | None]:
    """Returns the compiled step, or None and what XLA said when memory was too small."""
    rows = train.batch_size // train.accumulation
    shape = (train.accumulation, rows, train.model.context_length + 1)
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=batch_sharding(mesh))
    lowered = make_train_step(train, mesh).lower(state, tokens)
    try:
        with _optimization(effort):
            return lowered.compile(), None
    except jax.errors.JaxRuntimeError as error:
        message = str(error)
        if not (message.startswith("RESOURCE_EXHAUSTED") and "hbm" in message.lower()):
            raise
        return None, message.splitlines()[0]


@contextlib.contextmanager
def _optimization(effort: Effort) -> Iterator[None]:
    if effort == "full":
        yield
        return
    config: Any = jax.config
    before = config.jax_optimization_level
    config.update("jax_optimization_level", effort)
    try:
        yield
    finally:
        config.update("jax_optimization_level", before)


def _memory(compiled: Any) -> Memory:
    stats = compiled.memory_analysis()
    return Memory(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes - stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
    )


def _refused_bytes(message: str | None) -> int:
    raise NotImplementedError(message)

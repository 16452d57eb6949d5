"""Compiles one training step for one mesh of TPU chips and says what it needs."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from egattn.compile.collectives import NONE, Collectives, collectives
from egattn.compile.config import CompileConfig, Effort
from egattn.compile.memory import Memory, Refusal, bytes_per_device
from egattn.compile.topology import chip_of, describe, libtpu_version
from egattn.sharding import check_batch, make_mesh, state_sharding
from egattn.train.config import TrainConfig
from egattn.train.flops import flops_per_token, peak_flops
from egattn.train.step import TrainState, abstract, batch_sharding, make_train_step


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
    """Sequences per step over all chips and microbatches."""
    accumulation: int
    context_length: int
    effort: Effort
    hbm_bytes: int
    """Memory of a chip; where XLA gave up, as much of it as XLA reckons with."""
    state_bytes: int
    """State on a chip by its shapes and shardings alone: a lower bound of `needed_bytes`."""
    needed_bytes: int
    """Memory on a chip: `Memory.total`, or what XLA wanted where it gave up."""
    fits: bool
    memory: Memory | None
    """None where XLA gave up for lack of memory; it tells nothing of collectives then."""
    collectives: Collectives
    """Per chip and step."""
    flops: float
    """Of the model per step, over all chips, without recomputation."""
    flops_per_chip: float
    compute_seconds: float
    """Those FLOPs at the chips' bfloat16 peak."""
    communication_seconds: float
    """The collectives' traffic over all links of a chip, as if none waited or overlapped."""
    compile_seconds: float
    jax: str
    libtpu: str


def plan(config: CompileConfig) -> Plan:
    """Compiles the step that `egattn train` would run and returns what it needs.

    Raises:
      ValueError: If topology, mesh, batch and model do not fit together.
      NotImplementedError: If the TPU compiler is not installed or cannot compile this step.
    """
    devices = describe(config.topology)
    train = config.train_config(len(devices))
    return plan_mesh(
        config, train, make_mesh(config.mesh or default_mesh(config, len(devices)), devices)
    )


def default_mesh(config: CompileConfig, chips: int) -> str:
    """The chips on fsdp, as far as they divide the model's width evenly; the rest on replica.

    Half of a three-dimensional slice at most: over all of it, XLA gathers by way of all-reduce,
    which sends twice as much (seen with jax 0.12.0.1).
    """
    whole = chips // 2 if chip_of(config.topology).axes == 3 else chips
    fsdp = math.gcd(whole, config.model.embed_dim)
    return f"replica={chips // fsdp},fsdp={fsdp}"


def plan_mesh(config: CompileConfig, train: TrainConfig, mesh: Mesh) -> Plan:
    """As `plan`, for a given run on a given mesh of `config.topology`."""
    check_batch(mesh, train.batch_size // train.accumulation, train.model.context_length)
    chip, kind = chip_of(config.topology), mesh.devices.flat[0].device_kind
    state = sharded_state(train, mesh)
    start = time.perf_counter()
    compiled = compile_train_step(train, mesh, config.effort)
    seconds = time.perf_counter() - start
    if isinstance(compiled, Refusal):
        memory, moved = None, NONE
        needed, hbm = compiled.needed, min(compiled.available, chip.hbm_bytes)
    else:
        memory, moved = Memory.of(compiled), collectives(compiled.as_text(), mesh.size)
        needed, hbm = memory.total, chip.hbm_bytes
    flops = flops_per_token(train.model) * train.batch_size * train.model.context_length
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
        hbm_bytes=hbm,
        state_bytes=bytes_per_device(state),
        needed_bytes=needed,
        fits=memory is not None and needed <= hbm,
        memory=memory,
        collectives=moved,
        flops=flops,
        flops_per_chip=flops / mesh.size,
        compute_seconds=flops / mesh.size / (peak_flops(kind) or math.nan),
        communication_seconds=moved.traffic / chip.ici_bytes,
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


def compile_train_step(train: TrainConfig, mesh: Mesh, effort: Effort) -> Any:
    """Returns the compiled step, a `jax.stages.Compiled`, or a `Refusal`.

    Raises:
      NotImplementedError: If XLA cannot compile it for another reason than a chip's memory.
    """
    rows = train.batch_size // train.accumulation
    shape = (train.accumulation, rows, train.model.context_length + 1)
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=batch_sharding(mesh))
    lowered = make_train_step(train, mesh).lower(sharded_state(train, mesh), tokens)
    try:
        with _optimization(effort):
            return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        refusal = Refusal.of(str(error))
        if refusal is None:
            reason = str(error).splitlines()[0]
            raise NotImplementedError(f"XLA cannot compile this step: {reason}") from error
        return refusal


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

"""The mesh and the one table that says how parameters and batches are split over it."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from egattn._spelling import unknown
from egattn.attention import entropy_attention, ring
from egattn.attention.api import checked
from egattn.attention.select import Implementation

AXES = ("replica", "fsdp", "context", "tensor")
BATCH = ("replica", "fsdp")
"""Mesh axes that split the batch."""

# Logical axis -> mesh axis.
_LOGICAL = {"vocab": "tensor", "heads": "tensor", "ffn": "tensor", "embed": "fsdp"}

Rules = tuple[tuple[str, tuple[str | None, ...]], ...]
"""Regular expression for the path of a parameter -> logical names of its last axes ("vocab",
"heads", "ffn", "embed"; None for one that stays whole); axes in front are never split. The first
that is found decides."""

# The optimiser's moments carry their parameter's path as a suffix and follow it.
DECODER_RULES: Rules = (
    (r"token_embedding/embedding$", ("vocab", "embed")),
    (r"position_embedding/embedding$", (None, "embed")),
    (r"\bhead$", ("vocab", "embed")),
    (r"attention/[qkv]/kernel$", ("embed", "heads")),
    (r"attention/o/kernel$", ("heads", "embed")),
    (r"feed_forward/up/kernel$", ("embed", "ffn")),
    (r"feed_forward/down/kernel$", ("ffn", "embed")),
    (r"feed_forward/fused/kernel$", ("ffn", "embed")),
    # Small, however many layers are stacked.
    (r"/(bias|scale|gain|slope|left|log_temperature)$", ()),
    (r"\bthreshold$", ()),
)
"""Those of `egattn.model.Decoder`."""


def make_mesh(spec: str | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """Makes the mesh (replica, fsdp, context, tensor) over devices.

    Args:
      spec: For example "replica=2,fsdp=4"; axes left out have size 1. None puts all devices on
        `replica`.
      devices: Default: all that there are. Those of a topology description will do: a mesh of
        them is good to compile for.

    Raises:
      ValueError: If an axis is unknown or the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dict.fromkeys(AXES, 1)
    if spec is None:
        sizes["replica"] = len(devices)
    else:
        for item in spec.split(","):
            name, _, size = item.strip().partition("=")
            if name not in AXES:
                raise ValueError(unknown("mesh axis", name, AXES))
            if not size.isdigit() or int(size) < 1:
                raise ValueError(f"mesh axis {name!r} needs a positive size, got {size!r}")
            sizes[name] = int(size)
    product = math.prod(sizes.values())
    if product != len(devices):
        raise ValueError(f"mesh {spec!r} has {product} devices, expected {len(devices)}")
    shape = tuple(sizes.values())
    # A torus whose axes are no multiples of the mesh's would be refused otherwise.
    grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_shards(mesh: Mesh) -> int:
    """Number of parts that the batch is split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def check_batch(mesh: Mesh, sequences: int, length: int) -> None:
    """Raises ValueError unless the mesh divides a microbatch's sequences and their length."""
    shards, context = batch_shards(mesh), mesh.shape["context"]
    if sequences % shards:
        raise ValueError(
            f"sequences per microbatch must be divisible by replica x fsdp = {shards}, "
            f"got {sequences}"
        )
    if length % context:
        raise ValueError(f"context_length must be divisible by context = {context}, got {length}")


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds everything."""
    return NamedSharding(mesh, PartitionSpec())


def constrain_activations(mesh: Mesh, x: jax.Array) -> jax.Array:
    """Tells the partitioner how x [B, T, ...] is split: the batch as such, T over context."""
    spec = PartitionSpec(BATCH, "context", *[None] * (x.ndim - 2))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def fold_context(mesh: Mesh, x: jax.Array) -> jax.Array:
    """[B, T, ...] as [B C, T / C, ...]: each device's positions become sequences of their own.

    For work on single positions that cuts T into pieces, which would move a split T about.
    """
    context = mesh.shape["context"]
    if context == 1:
        return x
    batch, length, *rest = x.shape
    x = x.reshape(batch * context, length // context, *rest)
    spec = PartitionSpec((*BATCH, "context"), *[None] * (x.ndim - 1))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def attend_per_shard(mesh: Mesh) -> Callable:
    """Returns `entropy_attention` for a mesh: each device runs it on its examples and heads.

    XLA cannot split a kernel of its own accord: it would gather everything on every device. The
    batch is split over replica and fsdp, heads over tensor; an axis that the mesh does not divide
    stays whole on all devices, and heads do where it does not divide the key heads. A sequence
    split over context is attended to by `egattn.attention.ring`.
    """
    if mesh.size == 1 and mesh.devices.flat[0].platform == jax.default_backend():
        return entropy_attention
    context = "context" if mesh.shape["context"] > 1 else None

    def attend(
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        temperature: jax.Array | float | None = None,
        scale: float | None = None,
        causal: bool = True,
        segment_ids: jax.Array | None = None,
        implementation: Implementation | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        batch, length, heads, _ = query.shape
        if context:
            _check_ring(mesh, length, key.shape[1], implementation)
        examples = None if batch % batch_shards(mesh) else BATCH
        split = None if key.shape[2] % mesh.shape["tensor"] else "tensor"
        positions = PartitionSpec(examples, context, split)
        rows = PartitionSpec(examples, split, context)
        if temperature is not None:
            temperature = jnp.broadcast_to(temperature, (batch, heads, length))

        def local(query, key, value, temperature, segment_ids):
            if not context:
                return entropy_attention(
                    query, key, value, temperature, scale, causal, segment_ids, implementation
                )
            arrays = checked(query, key, value, temperature, scale, segment_ids)
            return ring.attend(*arrays, segment_ids, causal=causal, axis=context)

        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(positions, positions, positions, rows, PartitionSpec(examples, context)),
            out_specs=(positions, rows),
            # Kernels do not say over which axes their results vary.
            check_vma=False,
        )(query, key, value, temperature, segment_ids)

    return attend


def _check_ring(mesh: Mesh, length: int, source: int, implementation: str | None) -> None:
    context = mesh.shape["context"]
    if length % context or length != source:
        raise ValueError(
            f"a sequence over context = {context} needs a multiple of so many positions, and as "
            f"many keys as queries, got {length} and {source}"
        )
    if implementation not in (None, "chunked"):
        raise NotImplementedError(
            f"implementation {implementation!r} takes whole sequences; over context = {context} "
            "there is only the ring, None or 'chunked'"
        )


def state_sharding(mesh: Mesh, abstract_state: Any, rules: Rules = DECODER_RULES) -> Any:
    """Sharding of each leaf of a train state, or of parameters alone.

    Scalars and vectors are on every device unless a rule names them. An axis whose length the mesh
    does not divide stays whole.

    Args:
      mesh: The mesh.
      abstract_state: Tree of arrays or shapes.
      rules: How parameters are split; an empty tuple of axes puts one on every device.

    Raises:
      ValueError: If no rule names an array of two axes or more, or one names more axes than there
        are or an axis that does not exist.
    """

    def leaf(path, x):
        name = "/".join(str(getattr(p, "key", getattr(p, "name", p))) for p in path)
        axes = next((axes for rule, axes in rules if re.search(rule, name)), None)
        if axes is None and len(x.shape) > 1:
            raise ValueError(f"no sharding rule names {name!r} of shape {x.shape}")
        return NamedSharding(mesh, _partition(mesh, name, x.shape, axes or ()))

    return jax.tree_util.tree_map_with_path(leaf, abstract_state)


def _partition(
    mesh: Mesh, name: str, shape: tuple[int, ...], axes: tuple[str | None, ...]
) -> PartitionSpec:
    """How an array is split whose last axes have these logical names."""
    if len(shape) < len(axes):
        raise ValueError(f"the sharding rule of {name!r} names axes {axes}, got shape {shape}")
    spec: list[str | None] = [None] * (len(shape) - len(axes))
    for logical, length in zip(axes, shape[len(spec) :], strict=True):
        if logical not in (None, *_LOGICAL):
            raise ValueError(unknown("logical axis", logical, _LOGICAL))
        axis = _LOGICAL.get(logical or "")
        spec.append(axis if axis and length % mesh.shape[axis] == 0 else None)
    return PartitionSpec(*spec)

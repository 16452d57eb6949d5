"""Samples split over the devices of a mesh."""

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float


def check_samples(samples: int, mesh: Mesh | None) -> None:
    """Raises ValueError unless the mesh divides the samples."""
    if mesh is not None and samples % mesh.size:
        raise ValueError(f"expected samples divisible by {mesh.size} devices, got {samples}")


def split_samples(
    x: Float[Array, "samples dims"], mesh: Mesh | None
) -> Float[Array, "samples dims"]:
    """Tells the partitioner to split the samples over all axes of the mesh."""
    if mesh is None:
        return x
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.lax.with_sharding_constraint(x, sharding)

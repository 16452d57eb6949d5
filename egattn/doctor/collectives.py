"""Whether the devices add up and pass on what they should, and a gradient over all of them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from egattn.attention import entropy_attention
from egattn.doctor.row import Row, failed
from egattn.sharding import BATCH, attend_per_shard, make_mesh

Array = npt.NDArray[np.floating]

# Of the gradient over all devices against that of one, norm-wise relative.
_BOUND = 1e-5
_LENGTH, _HEADS, _HEAD_DIM = 32, 2, 16


def check_collectives() -> list[Row]:
    """A row for each collective, and one for a gradient through sharded attention."""
    count = jax.device_count()
    if count == 1:
        return [Row("collectives", None, "one device")]
    mesh = make_mesh()
    names = ("psum", "all_gather", "psum_scatter", "ppermute")
    rows = [_row(name, _check_collective, mesh, name) for name in names]
    return [*rows, _row("gradient of sharded attention", _check_gradient, mesh)]


def _row(name: str, check: Callable[..., tuple[bool, str]], *arguments: Any) -> Row:
    try:
        return Row(name, *check(*arguments))
    except Exception as error:
        return failed(name, error)


def _collective(name: str, count: int) -> tuple[Callable, Callable[[Array], Array]]:
    """A collective of [1, N, M] on each of N devices, and what they all hold then."""
    ring = [(i, (i + 1) % count) for i in range(count)]
    return {
        "psum": (
            lambda x: jax.lax.psum(x, "replica"),
            lambda x: np.broadcast_to(x.sum(0), x.shape),
        ),
        "all_gather": (
            lambda x: jax.lax.all_gather(x, "replica", axis=1, tiled=True),
            lambda x: np.tile(x.reshape(1, -1, x.shape[2]), (count, 1, 1)),
        ),
        "psum_scatter": (
            lambda x: jax.lax.psum_scatter(x, "replica", scatter_dimension=1, tiled=True),
            lambda x: x.sum(0)[:, None],
        ),
        "ppermute": (
            lambda x: jax.lax.ppermute(x, "replica", ring),
            lambda x: np.roll(x, 1, axis=0),
        ),
    }[name]


def _check_collective(mesh: Mesh, name: str) -> tuple[bool, str]:
    count = mesh.size
    compute, oracle = _collective(name, count)
    # Small integers: float32 adds them exactly, in any order.
    values = np.random.default_rng(0).integers(-99, 99, (count, count, 4096)).astype(np.float32)
    spec = PartitionSpec("replica")
    x = _put(values, NamedSharding(mesh, spec))
    run = jax.shard_map(compute, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    wrong = _wrong_devices(jax.jit(run)(x), oracle(values))
    if wrong:
        return False, f"wrong on devices {', '.join(wrong)} of {count}"
    return True, f"exact on {len(mesh.local_devices)} of {count} devices"


def _put(x: Array, sharding: NamedSharding) -> jax.Array:
    """An array over the devices of all processes, each of which has all of `x`."""
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def _wrong_devices(actual: jax.Array, expected: Array) -> list[str]:
    """Devices of this process that hold something else."""
    return [
        str(shard.device.id)
        for shard in actual.addressable_shards
        if not np.array_equal(shard.data, expected[shard.index])
    ]


def _check_gradient(mesh: Mesh) -> tuple[bool, str]:
    """The gradient of one weight matrix on a split batch, against one device's."""
    rng = np.random.default_rng(0)
    width = _HEADS * _HEAD_DIM
    x = rng.standard_normal((mesh.size, _LENGTH, width)).astype(np.float32)
    weights = (width**-0.5 * rng.standard_normal((width, 3 * width))).astype(np.float32)
    device = jax.local_devices()[0]
    alone = jax.jit(jax.grad(_loss(entropy_attention)))(*jax.device_put((weights, x), device))
    split = NamedSharding(mesh, PartitionSpec(BATCH))
    whole = NamedSharding(mesh, PartitionSpec())
    gradient = jax.jit(jax.grad(_loss(attend_per_shard(mesh))), out_shardings=whole)
    together = gradient(_put(weights, whole), _put(x, split))
    expected = np.asarray(alone, np.float64)
    differences = [
        np.linalg.norm(np.asarray(shard.data, np.float64) - expected)
        for shard in together.addressable_shards
    ]
    # Not a number is larger than any number; Python's max would lose it.
    error = float(np.max(differences) / np.linalg.norm(expected))
    return error <= _BOUND, f"relative error {error:.1e}, allowed {_BOUND:.0e}"


def _loss(attend: Callable) -> Callable:
    """Projection, attention and entropy of a batch, to a mean as in training."""

    def loss(weights, x):
        projected = jnp.matmul(x, weights, precision=jax.lax.Precision.HIGHEST)
        heads = projected.reshape(*x.shape[:2], 3, _HEADS, _HEAD_DIM)
        out, entropy = attend(*jnp.moveaxis(heads, 2, 0))
        return jnp.mean(out**2) + jnp.mean(entropy)

    return loss

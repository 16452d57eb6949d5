"""Which mesh: tries those that could fit, the one that should communicate least first."""

import dataclasses
from collections.abc import Iterator

import jax
from jax.sharding import Mesh

from egattn.compile.config import CompileConfig
from egattn.compile.memory import bytes_per_device
from egattn.compile.plan import Plan, plan_mesh, sharded_state
from egattn.compile.topology import chip_of, describe
from egattn.sharding import batch_shards, make_mesh
from egattn.train.config import TrainConfig
from egattn.train.step import abstract

_WIDEST_TENSOR = 8


@dataclasses.dataclass(frozen=True)
class Search:
    """What a search found."""

    plans: list[Plan]
    """Those compiled: fitting ones first, by communication; then the others, by memory."""
    too_large: int
    """Meshes not compiled because the state alone exceeds a chip's memory."""
    not_tried: int
    """Meshes not compiled because of the limit."""


def search(config: CompileConfig) -> Search:
    """Compiles the step for the most promising meshes of `config.topology`.

    Candidates split heads over tensor (a power of two up to 8), the model's width over fsdp and
    the batch over replica and fsdp, each evenly. Those whose state alone is too large are dropped,
    the others tried in the order of `expected_traffic`.

    Raises:
      ValueError: If topology, batch and model do not fit together, or no mesh splits them evenly.
      NotImplementedError: If the TPU compiler is not installed.
    """
    devices = describe(config.topology)
    train = config.train_config(len(devices))
    meshes = [make_mesh(spec, devices) for spec in candidates(train, len(devices))]
    if not meshes:
        raise ValueError(
            f"expected a batch that some mesh of {len(devices)} chips splits evenly, "
            f"got {train.batch_size} sequences in {train.accumulation} microbatches"
        )
    hbm = chip_of(config.topology).hbm_bytes
    able = [mesh for mesh in meshes if bytes_per_device(sharded_state(train, mesh)) < hbm]
    able.sort(key=lambda mesh: expected_traffic(train, mesh))
    plans = [plan_mesh(config, train, mesh) for mesh in able[: config.search_limit]]
    plans.sort(key=lambda p: (not p.fits, p.collectives.traffic if p.fits else p.needed_bytes))
    return Search(plans, len(meshes) - len(able), len(able) - len(plans))


def candidates(train: TrainConfig, chips: int) -> Iterator[str]:
    """Yields the meshes, as `make_mesh` takes them, that split run and chips evenly."""
    model, rows = train.model, train.batch_size // train.accumulation
    tensor = 1
    while tensor <= _WIDEST_TENSOR:
        rest, odd = divmod(chips, tensor)
        if not (odd or model.num_heads % tensor or model.kv_heads % tensor or rows % rest):
            for fsdp in range(1, rest + 1):
                if rest % fsdp == 0 and model.embed_dim % fsdp == 0:
                    yield f"replica={rest // fsdp},fsdp={fsdp},tensor={tensor}"
        tensor *= 2


def expected_traffic(train: TrainConfig, mesh: Mesh) -> float:
    """Bytes that a chip should send in a step: a guess that only orders what is compiled.

    Parameters gathered over fsdp for forward and backward and their gradients scattered, in the
    precision of the products; gradients reduced over replica in float32; and over tensor, four
    reductions of the residual stream per layer.
    """
    width = 2 if train.model.dtype == "bfloat16" else 4
    sizes = mesh.shape
    parameters = jax.tree.leaves(abstract(train).params)
    matrices = sum(x.size for x in parameters) / sizes["tensor"]
    gathered = 3 * width * matrices * _ring(sizes["fsdp"]) * train.accumulation
    reduced = 2 * 4 * matrices / sizes["fsdp"] * _ring(sizes["replica"])
    positions = train.batch_size * train.model.context_length / batch_shards(mesh)
    stream = width * positions * train.model.embed_dim * train.model.num_layers
    return gathered + reduced + 4 * 2 * stream * _ring(sizes["tensor"])


def _ring(group: int) -> float:
    return (group - 1) / group

"""The TPU kernels: the whole battery in Pallas's interpreter, and compilation for real chips."""

import dataclasses
import functools
import importlib.util
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from egattn.attention import pallas_tpu, select
from egattn.compile.plan import compile_train_step
from egattn.sharding import BATCH, attend_per_shard, batch_shards, make_mesh
from egattn.train.config import PenaltyConfig, TrainConfig
from tests.attention.battery import AttentionBattery


@pytest.fixture
def interpreted(monkeypatch):
    """`implementation="pallas_tpu"` runs here, in the interpreter."""
    attend = functools.partial(pallas_tpu.attend, interpret=True)
    monkeypatch.setitem(select._LACKS, "pallas_tpu", lambda problem: None)
    monkeypatch.setattr(select, "_load", lambda name: attend)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.slow
class TestPallasTpu(AttentionBattery):
    implementation = "pallas_tpu"


@functools.cache
def tpu_mesh(topology: str, spec: str) -> Mesh:
    """A mesh of chips that are not here: good to compile for, not to run on."""
    chips = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    return make_mesh(spec, chips)


V5E = ("v5e:4x4", "replica=2,fsdp=4,tensor=2")
V5P = ("v5p:4x4x4", "replica=4,fsdp=4,tensor=4")
V6E = ("v6e:4x4", "replica=2,fsdp=4,tensor=2")


def kernels(compiled) -> int:
    return compiled.as_text().count('custom_call_target="tpu_custom_call"')


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the TPU compiler is for Linux on x86-64 (pip install 'egattn[tpu]')",
)
@pytest.mark.slow
class TestCompilation:
    @pytest.mark.parametrize("chips", [V5E, V5P, V6E], ids=lambda chips: chips[0])
    @pytest.mark.parametrize(
        ("length", "heads", "kv_heads", "head_dim", "dtype", "causal", "segments"),
        [
            (1024, 12, 12, 64, jnp.bfloat16, True, False),
            (128, 12, 12, 64, jnp.bfloat16, True, False),
            (1000, 16, 8, 128, jnp.bfloat16, True, True),
            (300, 16, 4, 64, jnp.bfloat16, False, False),
            (8192, 8, 8, 64, jnp.bfloat16, True, False),
            (640, 16, 16, 40, jnp.float32, True, True),
        ],
    )
    def test_forward_and_backward(
        self, chips, length, heads, kv_heads, head_dim, dtype, causal, segments
    ):
        mesh = tpu_mesh(*chips)
        batch = 2 * batch_shards(mesh)

        def array(shape, dtype, *spec):
            sharding = NamedSharding(mesh, PartitionSpec(*spec))
            return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

        q = array((batch, length, heads, head_dim), dtype, BATCH, None, "tensor")
        kv = array((batch, length, kv_heads, head_dim), dtype, BATCH, None, "tensor")
        temperature = array((heads, length), jnp.float32, "tensor")
        ids = array((batch, length), jnp.int32, BATCH) if segments else None

        def loss(q, k, v, temperature, ids):
            out, entropy = attend_per_shard(mesh)(
                q, k, v, temperature, causal=causal, segment_ids=ids
            )
            return out.astype(jnp.float32).sum() + entropy.sum()

        gradient = jax.jit(jax.grad(loss, (0, 1, 2, 3)))
        compiled = gradient.lower(q, kv, kv, temperature, ids).compile()
        assert kernels(compiled) == 3
        # The kernels' layouts at most: no score matrix.
        copies = 16 * 4 * math.prod(q.shape) // mesh.size
        memory = compiled.memory_analysis()
        assert memory is not None
        assert memory.temp_size_in_bytes <= copies

    def test_where_the_default_precision_is_higher(self):
        """Mosaic has no product of bfloat16 in float32; of a shape that nothing else compiles."""
        with jax.default_matmul_precision("highest"):
            self.test_forward_and_backward(V5E, 256, 12, 12, 64, jnp.bfloat16, True, False)

    @pytest.mark.parametrize("chips", [V5E, V5P], ids=lambda chips: chips[0])
    def test_sharded_train_step(self, chips):
        mesh = tpu_mesh(*chips)
        defaults = TrainConfig.preset_defaults(
            "ereg_sm_t_scfuffn",
            Path("unused"),
            vocab_size=512,
            context_length=1024,
            num_layers=2,
            scan_layers=True,
            num_heads=12,
            embed_dim=768,
            dtype="bfloat16",
        )
        penalty = PenaltyConfig(weight=0.16)
        config = dataclasses.replace(defaults, batch_size=2 * batch_shards(mesh), penalty=penalty)
        # Other optimisations than the kernels' own would take the compiler a minute.
        compiled = compile_train_step(config, mesh, "O0")
        # Layers are scanned: forward, and two backward.
        assert kernels(compiled) == 3

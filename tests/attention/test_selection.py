"""Which implementation runs what: the rules, their sentences, and where a call will run."""

import subprocess
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, PartitionSpec

import egattn
from egattn.attention import implementations, select
from egattn.attention.select import Problem

HOPPER = Problem(
    platform="gpu",
    capability=(9, 0),
    jax_version=(0, 11, 0),
    dtype="bfloat16",
    length=100,
    source=100,
    head_dim=64,
    causal=True,
    segments=False,
)
AMPERE = HOPPER._replace(capability=(8, 0))
AMD = HOPPER._replace(capability=None)
TPU = HOPPER._replace(platform="tpu", capability=None)
CPU = HOPPER._replace(platform="cpu", capability=None)
OLD = HOPPER._replace(jax_version=(0, 10, 2))


@pytest.fixture
def loaded(monkeypatch):
    """What `select` returns is not imported: called, it gives its name."""
    monkeypatch.setattr(select, "_load", lambda name: lambda: name)


DEFAULTS = {
    "Hopper": (HOPPER, "pallas_gpu"),
    "Hopper, heads of 128": (HOPPER._replace(head_dim=128), "pallas_gpu"),
    "Hopper, segments": (HOPPER._replace(segments=True), "pallas_gpu"),
    "Hopper, other head size": (HOPPER._replace(head_dim=80), "cudnn"),
    "Hopper, float16": (HOPPER._replace(dtype="float16"), "cudnn"),
    "Hopper, float32": (HOPPER._replace(dtype="float32"), "chunked"),
    "old jax": (OLD, "cudnn"),
    "old jax, segments": (OLD._replace(segments=True), "chunked"),
    "old jax, causal with a cache": (OLD._replace(source=200), "chunked"),
    "old jax, full with a cache": (OLD._replace(source=200, causal=False), "cudnn"),
    "Ampere": (AMPERE, "cudnn"),
    "AMD": (AMD, "chunked"),
    "TPU": (TPU, "pallas_tpu"),
    "TPU, float32": (TPU._replace(dtype="float32"), "pallas_tpu"),
    "TPU, float16": (TPU._replace(dtype="float16"), "chunked"),
    "CPU": (CPU, "chunked"),
    "unheard of": (CPU._replace(platform="abacus"), "chunked"),
}

LACKS = {
    "cudnn, CPU": (CPU, "cudnn", r"compute capability 8.0 or newer, got platform 'cpu'"),
    "cudnn, Volta": (AMPERE._replace(capability=(7, 0)), "cudnn", "got compute capability 7.0"),
    "cudnn, AMD": (AMD, "cudnn", "an NVIDIA GPU .*, got platform 'gpu'"),
    "cudnn, float32": (
        HOPPER._replace(dtype="float32"),
        "cudnn",
        "bfloat16 or float16, got float32",
    ),
    "cudnn, mixed": (HOPPER._replace(dtype="bfloat16/float16"), "cudnn", "got bfloat16/float16"),
    "cudnn, 12": (HOPPER._replace(head_dim=12), "cudnn", "multiple of 8 up to 256, got 12"),
    "cudnn, 264": (HOPPER._replace(head_dim=264), "cudnn", "multiple of 8 up to 256, got 264"),
    "cudnn, wide": (AMPERE._replace(head_dim=136), "cudnn", "multiple of 8 up to 128, got 136"),
    "cudnn, cache": (HOPPER._replace(source=200), "cudnn", "as many keys.* got 200 and 100"),
    "cudnn, documents": (HOPPER._replace(segments=True), "cudnn", "one document.* segment_ids"),
    "pallas_gpu, CPU": (CPU, "pallas_gpu", "Hopper.*, got platform 'cpu'"),
    "pallas_gpu, Ampere": (AMPERE, "pallas_gpu", "Hopper.*, got compute capability 8.0"),
    "pallas_gpu, Blackwell": (HOPPER._replace(capability=(10, 0)), "pallas_gpu", "Hopper.* 10.0"),
    "pallas_gpu, jax": (OLD, "pallas_gpu", r"jax 0.11 or newer .*, got 0.10.2"),
    "pallas_gpu, float16": (HOPPER._replace(dtype="float16"), "pallas_gpu", "got float16"),
    "pallas_gpu, 80": (HOPPER._replace(head_dim=80), "pallas_gpu", "64 or 128, got 80"),
    "pallas_tpu, GPU": (HOPPER, "pallas_tpu", "a TPU, got platform 'gpu'"),
    "pallas_tpu, float16": (TPU._replace(dtype="float16"), "pallas_tpu", "got float16"),
}


@pytest.mark.usefixtures("loaded")
class TestSelect:
    @pytest.mark.parametrize(("problem", "name"), DEFAULTS.values(), ids=DEFAULTS)
    def test_the_default_is_the_fastest_that_can(self, problem, name):
        assert select.select(None, problem)() == name
        assert select.select(name, problem)() == name

    @pytest.mark.parametrize(("problem", "name", "lack"), LACKS.values(), ids=LACKS)
    def test_a_named_one_that_cannot_says_what_it_lacks_and_which_can(self, problem, name, lack):
        with pytest.raises(NotImplementedError, match=f"'{name}' needs .*{lack}") as refusal:
            select.select(name, problem)
        message = str(refusal.value)
        assert "\n" not in message
        able = message.partition("can run it: ")[2].split(", ")
        assert {"reference", "chunked"} <= set(able)
        assert [select.select(other, problem)() for other in able] == able

    def test_an_unknown_name_names_the_nearest(self):
        with pytest.raises(ValueError, match=r"'cudn'.*'cudnn'"):
            select.select("cudn", HOPPER)


def structs(dtype: Any = jnp.bfloat16, source=100, head_dim=64):
    query = jax.ShapeDtypeStruct((2, 100, 4, head_dim), dtype)
    key = jax.ShapeDtypeStruct((2, source, 2, head_dim), jnp.bfloat16)
    return query, key, key


class TestImplementations:
    @pytest.mark.parametrize(
        ("platform", "first", "able"),
        [
            (None, "chunked", {"chunked", "reference"}),
            ("cpu", "chunked", {"chunked", "reference"}),
            ("tpu", "pallas_tpu", {"pallas_tpu", "chunked", "reference"}),
            ("gpu", "pallas_gpu", {"pallas_gpu", "cudnn", "chunked", "reference"}),
        ],
    )
    def test_those_that_can_have_no_reason_and_the_fastest_is_first(
        self, platform, first, able, monkeypatch
    ):
        monkeypatch.setattr(jax, "__version_info__", (0, 12, 0))
        reasons = implementations(*structs(), platform=platform)
        assert set(reasons) == {"reference", "chunked", "cudnn", "pallas_gpu", "pallas_tpu"}
        assert {name for name, reason in reasons.items() if reason is None} == able
        assert next(iter(reasons)) == first

    def test_every_argument_counts(self):
        def cudnn(*arrays, **options):
            return implementations(*arrays, platform="gpu", **options)["cudnn"] or ""

        assert cudnn(*structs()) == ""
        assert "float16/bfloat16" in cudnn(*structs(jnp.float16))
        assert "12" in cudnn(*structs(head_dim=12))
        assert "200 and 100" in cudnn(*structs(source=200))
        assert cudnn(*structs(source=200), causal=False) == ""
        ids = jax.ShapeDtypeStruct((2, 100), jnp.int32)
        assert "segment_ids" in cudnn(*structs(), segment_ids=ids)

    def test_the_call_refuses_with_the_same_sentence(self):
        x = jnp.ones((1, 8, 2, 64), jnp.bfloat16)
        for name, reason in egattn.attention.implementations(x, x, x).items():
            if reason is None:
                egattn.entropy_attention(x, x, x, implementation=name)  # pyright: ignore - a str
                continue
            with pytest.raises(NotImplementedError) as refusal:
                egattn.entropy_attention(x, x, x, implementation=name)  # pyright: ignore - a str
            assert f"{name!r} {reason};" in str(refusal.value)

    def test_an_unknown_platform_names_the_nearest(self, monkeypatch):
        monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        bad: Any = "gpus"
        with pytest.raises(ValueError, match=r"'gpus'.*'gpu'"):
            implementations(*structs(), platform=bad)


def tpu_mesh() -> AbstractMesh:
    device = AbstractDevice(device_kind="TPU v5e", platform="tpu", num_cores=1)
    return AbstractMesh((2,), ("x",), axis_types=(AxisType.Auto,), abstract_device=device)


@pytest.mark.usefixtures("loaded")
class TestWhere:
    def chosen(self, query=None) -> str:
        query = structs()[0] if query is None else query
        problem = Problem.of(query, query, query, causal=True, segment_ids=None)
        return select.select(None, problem)()

    def test_inside_shard_map_it_is_the_mesh_s_platform(self):
        seen = []

        def local(x):
            seen.append(self.chosen(x))
            return x

        spec = PartitionSpec("x")
        mapped = jax.shard_map(local, mesh=tpu_mesh(), in_specs=spec, out_specs=spec)
        jax.eval_shape(mapped, structs()[0])
        assert seen == ["pallas_tpu"]

    def test_arrays_that_are_somewhere_run_there(self):
        with jax.sharding.use_abstract_mesh(tpu_mesh()):
            assert self.chosen() == "pallas_tpu"
            assert self.chosen(jax.device_put(jnp.ones((1, 8, 2, 64)))) == "chunked"

    @pytest.mark.parametrize("default", ["cpu", "device"])
    def test_the_default_device_counts(self, default, monkeypatch):
        gpu = types.SimpleNamespace(platform="gpu", compute_capability="9.0")
        cpu = jax.local_devices(backend="cpu")
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        monkeypatch.setattr(jax, "local_devices", lambda backend=None: cpu if backend else [gpu])
        monkeypatch.setattr(jax, "__version_info__", (0, 12, 0))
        assert self.chosen() == "pallas_gpu"
        with jax.default_device("cpu" if default == "cpu" else cpu[1]):
            assert self.chosen() == "chunked"

    @pytest.mark.parametrize(
        ("capability", "expected"),
        [("9.0", (9, 0)), ("12.1", (12, 1)), ("gfx942", None), (None, None)],
    )
    def test_the_capability_is_the_gpu_s(self, capability, expected, monkeypatch):
        gpu = types.SimpleNamespace(platform="gpu")
        if capability is not None:
            gpu.compute_capability = capability
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        monkeypatch.setattr(jax, "local_devices", lambda backend=None: [gpu])
        problem = Problem.of(*structs(), causal=True, segment_ids=None)
        assert (problem.platform, problem.capability) == ("gpu", expected)


def test_no_kernel_language_is_imported_before_it_is_needed():
    code = """
import sys, egattn, jax.numpy as jnp
x = jnp.ones((1, 8, 2, 4))
egattn.entropy_attention(x, x, x)
egattn.attention.implementations(x, x, x)
print([name for name in sys.modules if "pallas" in name])
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"

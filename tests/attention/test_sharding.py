"""Attention over a mesh: each device's share, the same numbers, and no needless traffic."""

import dataclasses
import importlib
import inspect
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import egattn
import egattn.sharding
from egattn.data import Manifest
from egattn.sharding import AXES, BATCH, attend_per_shard
from egattn.train.config import TrainConfig
from egattn.train.step import abstract, init_state, make_eval_step, make_train_step
from tests.attention.battery import assert_close
from tests.oracle import Options

pytestmark = pytest.mark.slow

MESHES = [(8, 1, 1), (2, 2, 2), (1, 1, 8)]
NAMES = ("query", "key", "value", "temperature")


def mesh_of(sizes, context: int = 1) -> Mesh:
    """Mesh of replica, fsdp and tensor, and of context."""
    replica, fsdp, tensor = sizes
    sizes = (replica, fsdp, context, tensor)
    devices = int(np.prod(sizes))
    axes = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(sizes, AXES, axis_types=axes, devices=jax.devices()[:devices])


def problem(kv_heads: int, *, batch=8, layout="square", temperature="per_row", length=40):
    """Arrays of 8 query heads, and the options that go with them."""
    options = Options(
        length, batch, kv_heads, 8 // kv_heads, 8, layout=layout, temperature=temperature
    )
    p = options.problem()
    arrays = {name: jnp.asarray(getattr(p, name), jnp.float32) for name in NAMES[:3]}
    if p.temperature is not None:
        arrays["temperature"] = jnp.asarray(p.temperature)
    weights = tuple(jnp.asarray(x, jnp.float32) for x in (p.out_cotangent, p.entropy_cotangent))
    rest: dict[str, Any] = {"causal": p.causal, "scale": 0.3}
    if p.segment_ids is not None:
        rest["segment_ids"] = jnp.asarray(p.segment_ids)
    return arrays, weights, rest


def gradients_of(attend, weights, rest):
    """Function of the arrays by name: output, entropy and every gradient, by name."""

    def loss(arrays):
        out, entropy = attend(**arrays, **rest)
        # Not vdot: its reshape would gather what lies on several devices.
        return (out * weights[0]).sum() + (entropy * weights[1]).sum(), (out, entropy)

    def run(arrays):
        gradients, (out, entropy) = jax.grad(loss, has_aux=True)(arrays)
        return {"out": out, "entropy": entropy, **gradients}

    return jax.jit(run)


def check_same(mesh: Mesh, kv_heads: int, *, causal: bool = True, **options) -> None:
    arrays, weights, rest = problem(kv_heads, **options)
    rest["causal"] &= causal
    expected = gradients_of(egattn.entropy_attention, weights, rest)(arrays)
    actual = gradients_of(attend_per_shard(mesh), weights, rest)(arrays)
    assert set(actual) == set(expected)
    for name, x in actual.items():
        assert_close(name, np.asarray(x), np.asarray(expected[name]), 2e-6)


class TestNumbers:
    @pytest.mark.parametrize("sizes", MESHES)
    @pytest.mark.parametrize("kv_heads", [8, 2, 1])
    @pytest.mark.parametrize("layout", ["square", "segments"])
    def test_are_those_of_one_device(self, sizes, kv_heads, layout):
        check_same(mesh_of(sizes), kv_heads, layout=layout)

    @pytest.mark.parametrize("temperature", ["none", "per_head", "per_example"])
    def test_are_with_any_temperature(self, temperature):
        check_same(mesh_of((2, 2, 2)), 4, temperature=temperature)

    def test_are_with_more_keys_than_queries(self):
        check_same(mesh_of((2, 2, 2)), 4, layout="more_keys")

    def test_are_where_the_mesh_divides_neither_batch_nor_heads(self):
        check_same(mesh_of((2, 1, 3)), 4, batch=3, layout="segments")

    def test_are_with_a_number_for_temperature(self):
        arrays, _, rest = problem(4)
        del arrays["temperature"]
        expected = egattn.entropy_attention(**arrays, **rest, temperature=0.7)
        actual = jax.jit(
            lambda x: attend_per_shard(mesh_of((2, 2, 2)))(**x, temperature=0.7, **rest)
        )
        for x, y in zip(actual(arrays), expected, strict=True):
            assert_close("", np.asarray(x), np.asarray(y), 2e-6)


class TestRing:
    """A sequence split over devices."""

    @pytest.mark.parametrize(("sizes", "context"), [((1, 1, 1), 2), ((2, 1, 1), 4), ((1, 2, 2), 2)])
    @pytest.mark.parametrize("kv_heads", [8, 2])
    @pytest.mark.parametrize("causal", [True, False])
    @pytest.mark.parametrize("layout", ["square", "segments"])
    def test_numbers_are_those_of_one_device(self, sizes, context, kv_heads, causal, layout):
        check_same(mesh_of(sizes, context), kv_heads, causal=causal, layout=layout)

    def test_several_blocks_on_each_device(self):
        check_same(mesh_of((1, 1, 1), 2), 2, batch=1, length=1200, layout="segments")

    def test_bfloat16_is_as_exact_as_on_one_device(self):
        arrays, weights, rest = problem(2, length=256)
        arrays |= {name: arrays[name].astype(jnp.bfloat16) for name in NAMES[:3]}
        expected = gradients_of(egattn.entropy_attention, weights, rest)(
            {name: x.astype(jnp.float32) for name, x in arrays.items()}
        )
        actual = gradients_of(attend_per_shard(mesh_of((1, 1, 1), 8)), weights, rest)(arrays)
        for name, x in actual.items():
            bound = 1e-3 if name == "entropy" else 6e-3
            assert_close(name, np.asarray(x, np.float64), np.asarray(expected[name]), bound)

    @pytest.mark.parametrize(
        ("length", "implementation", "error"),
        [(30, None, ValueError), (40, "cudnn", NotImplementedError)],
    )
    def test_what_it_cannot_do_is_an_error(self, length, implementation, error):
        arrays, _, rest = problem(2, length=length)
        with pytest.raises(error, match="over context = 4"):
            attend_per_shard(mesh_of((1, 1, 1), 4))(**arrays, **rest, implementation=implementation)

    def test_nothing_is_gathered(self):
        mesh = mesh_of((2, 1, 1), 4)
        arrays, weights, rest = problem(8)
        positions = NamedSharding(mesh, PartitionSpec(BATCH, "context"))
        rows = NamedSharding(mesh, PartitionSpec(BATCH, None, "context"))
        where = {**dict.fromkeys(NAMES[:3], positions), "temperature": rows}
        weights = [jax.device_put(x, s) for x, s in zip(weights, (positions, rows), strict=True)]
        arrays = {
            name: jnp.broadcast_to(x, (8, 8, 40)) if x.ndim < 4 else x for name, x in arrays.items()
        }
        run = jax.jit(gradients_of(attend_per_shard(mesh), weights, rest), in_shardings=(where,))
        program = str(run.lower(arrays).compile().as_text())
        assert "collective-permute" in program
        assert "all-gather" not in program
        assert "all-to-all" not in program


# Mesh, batch, key heads -> batch and key heads on one device, of 8 query heads.
SHARES = {
    "batch alone": ((8, 1, 1), 8, 4, (1, 4)),
    "both batch axes": ((2, 4, 1), 8, 4, (1, 4)),
    "all axes": ((2, 2, 2), 8, 4, (2, 2)),
    "heads alone": ((1, 1, 8), 3, 8, (3, 1)),
    "too few key heads": ((2, 1, 4), 8, 2, (4, 2)),
    "an odd batch": ((2, 2, 2), 6, 4, (6, 2)),
}


@pytest.fixture
def shares(monkeypatch) -> list[dict[str, tuple[int, ...]]]:
    """Shapes of the arguments of each attention that runs per shard, on one device."""
    seen = []

    def recorded(*arguments, **named):
        call = inspect.signature(egattn.entropy_attention).bind(*arguments, **named).arguments
        names = (*NAMES, "segment_ids")
        seen.append({name: call[name].shape for name in names if call.get(name) is not None})
        return egattn.entropy_attention(*arguments, **named)

    monkeypatch.setattr(egattn.sharding, "entropy_attention", recorded)
    return seen


class TestShares:
    @pytest.mark.parametrize(("sizes", "batch", "kv_heads", "share"), SHARES.values(), ids=SHARES)
    def test_batch_is_split_over_replica_and_fsdp_and_heads_over_tensor(
        self, sizes, batch, kv_heads, share, shares
    ):
        arrays, _, rest = problem(kv_heads, batch=batch, layout="segments", length=5)
        jax.eval_shape(lambda x: attend_per_shard(mesh_of(sizes))(**x, **rest), arrays)
        b, k = share
        h = 8 * k // kv_heads
        queries, keys = (b, 5, h, 8), (b, 5, k, 8)
        rest = {"temperature": (b, h, 5), "segment_ids": (b, 5)}
        assert shares == [{"query": queries, "key": keys, "value": keys, **rest}]

    def test_one_device_needs_none(self):
        assert attend_per_shard(mesh_of((1, 1, 1))) is egattn.entropy_attention


class TestTraffic:
    def compiled(self, sizes, kv_heads, gathered=False) -> str:
        """The program of forward and backward on arrays that lie where a step has them."""
        mesh = mesh_of(sizes)
        arrays, weights, rest = problem(kv_heads)
        heads = None if kv_heads % sizes[2] else "tensor"
        positions = NamedSharding(mesh, PartitionSpec(BATCH, None, heads))
        rows = NamedSharding(mesh, PartitionSpec(BATCH, heads))
        whole = NamedSharding(mesh, PartitionSpec())
        where = {**dict.fromkeys(NAMES[:3], positions), "temperature": whole}
        out = {**where, "out": positions, "entropy": rows}
        out["temperature"] = NamedSharding(mesh, PartitionSpec(heads))
        if gathered:
            out["out"] = whole

        def run(arrays, out_weights, entropy_weights):
            weights = (out_weights, entropy_weights)
            return gradients_of(attend_per_shard(mesh), weights, rest)(arrays)

        program = jax.jit(run, in_shardings=(where, positions, rows), out_shardings=out)
        return str(program.lower(arrays, *weights).compile().as_text())

    @pytest.mark.parametrize("kv_heads", [8, 4, 1])
    @pytest.mark.parametrize("sizes", MESHES)
    def test_nothing_is_gathered(self, sizes, kv_heads):
        program = self.compiled(sizes, kv_heads)
        for collective in ("all-gather", "all-to-all", "collective-permute"):
            assert collective not in program

    def test_the_search_would_find_a_gathering(self):
        assert "all-gather" in self.compiled((2, 2, 2), 4, gathered=True)


class TestPrograms:
    """Training and evaluation on a mesh run their attention per shard."""

    SIZES = (2, 2, 2)

    def config(self) -> TrainConfig:
        size = {"vocab_size": 99, "context_length": 8, "num_heads": 4, "embed_dim": 16}
        config = TrainConfig.preset_defaults("sm_t_scfuffn", Path("unused"), num_layers=1, **size)
        return dataclasses.replace(config, batch_size=8)

    @pytest.mark.parametrize("make", [make_train_step, make_eval_step])
    def test_each_device_attends_to_its_examples_and_heads(self, make, shares):
        config, mesh = self.config(), mesh_of(self.SIZES)
        batch = [jax.ShapeDtypeStruct((1, 8, 9), jnp.int32)]
        if make is make_eval_step:
            batch.append(jax.ShapeDtypeStruct((1, 8), jnp.float32))
        jax.eval_shape(make(config, mesh), abstract(config), *batch)
        assert shares
        for share in shares:
            assert share["query"] == share["value"] == (2, 8, 2, 4)
            assert share["temperature"] == (2, 2, 8)

    @pytest.mark.parametrize(("kept", "on_each"), [(8, (2, 8, 2, 4)), (6, (6, 8, 2, 4))])
    def test_so_do_the_quantiles_of_rows_with_the_same_numbers(
        self, kept, on_each, shares, monkeypatch, rng
    ):
        config, weights = self.config(), np.arange(8) < kept
        batch = rng.integers(0, 99, (8, 9)), weights
        # The package's attribute of this name is the function.
        evaluate = importlib.import_module("egattn.train.evaluate")
        monkeypatch.setattr(evaluate, "evaluation_batches", lambda *_, **__: iter([batch]))
        quantiles, manifest = [], Mock(Manifest, document_end=None)
        for sizes in ((1, 1, 1), self.SIZES):
            mesh = mesh_of(sizes)
            state = init_state(config, mesh)
            quantiles.append(evaluate._row_quantiles(config, manifest, state, mesh))
        np.testing.assert_allclose(*quantiles, atol=2e-6)
        assert {share["query"] for share in shares} == {(kept, 8, 4, 4), on_each}

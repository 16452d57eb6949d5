"""The doctor's look at attention: a right implementation passes, one broken on purpose does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egattn.attention import implementations, reference
from egattn.doctor import attention
from egattn.doctor.attention import SHAPES, Shape, check_implementation, make_problem
from egattn.doctor.oracle import solve

TINY = {
    "grouped": Shape(1, 12, 4, 2, source=20),
    "segments": Shape(2, 24, 2, 2, segments=True),
}
right = reference.attend


def posed(dtype, *names):
    problems = {name: make_problem(TINY[name]).rounded(dtype) for name in names or TINY}
    return problems, {name: solve(problem) for name, problem in problems.items()}


class TestRight:
    @pytest.mark.parametrize("dtype", attention.DTYPES)
    @pytest.mark.parametrize("name", ["reference", "chunked"])
    def test_it_passes(self, name, dtype):
        row = check_implementation(name, dtype, *posed(dtype, "grouped"))
        assert row.ok
        assert row.found == ""
        quantities = ["output", "entropy", "dquery", "dkey", "dvalue", "dtemperature"]
        assert list(row.numbers) == [*quantities, "compile s", "run ms"]
        assert all(0 <= row.numbers[key] < 1 for key in quantities)
        assert row.numbers["compile s"] > 0

    def test_what_cannot_run_is_listed_with_what_it_lacks(self, monkeypatch):
        monkeypatch.setattr(attention, "SHAPES", {"grouped": TINY["grouped"]})
        monkeypatch.setattr(attention, "DTYPES", ("float32",))
        rows = {row.name: row for row in attention.check_attention()}
        assert [name for name, row in rows.items() if row.ok] == [
            "reference float32",
            "chunked float32",
        ]
        for name, lack in (("cudnn", "NVIDIA"), ("pallas_gpu", "Hopper"), ("pallas_tpu", "TPU")):
            assert rows[name].ok is None
            assert lack in rows[name].found


class TestShapes:
    def test_there_is_one_of_each_kind(self):
        shapes = SHAPES.values()
        assert {shape.causal for shape in shapes} == {True, False}
        assert any(shape.segments for shape in shapes)
        assert any(shape.heads > shape.kv_heads for shape in shapes)
        assert any(shape.source not in (None, shape.length) for shape in shapes)
        assert max(shape.length for shape in shapes) > 512
        assert max(shape.source or 0 for shape in shapes) >= 2048

    @pytest.mark.parametrize(
        ("platform", "name", "left_out"),
        [
            ("tpu", "pallas_tpu", set()),
            ("gpu", "cudnn", {"segments"}),
            ("gpu", "pallas_gpu", set()),
        ],
    )
    def test_each_implementation_takes_them(self, platform, name, left_out):
        if name == "pallas_gpu" and jax.__version_info__ < (0, 11):
            pytest.skip("pallas_gpu needs jax 0.11")
        refused = set()
        for shape, problem in ((key, make_problem(shape)) for key, shape in SHAPES.items()):
            query, key = (
                jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for x in (problem.query, problem.key)
            )
            options = {"causal": problem.causal, "segment_ids": problem.segment_ids}
            lacks = implementations(query, key, key, **options, platform=platform)
            refused |= {shape} if lacks[name] else set()
        assert refused == left_out


def results(change):
    """Changes output and entropy."""
    return lambda *x, **options: change(*right(*x, **options))


def inputs(change):
    """Changes query, key, value, row_scale and segment_ids."""
    return lambda *x, **options: right(*change(*x), **options)


def stopped(x, share):
    """The same number with another gradient."""
    return x + (share - 1) * (x - jax.lax.stop_gradient(x))


BROKEN = {
    "output off by 1e-5": (results(lambda o, e: (o * (1 + 1e-5), e)), "grouped", "output"),
    "entropy off by 1e-4": (results(lambda o, e: (o, e + 1e-4)), "grouped", "entropy"),
    "entropy in bits": (results(lambda o, e: (o, e / np.log(2))), "grouped", "entropy"),
    "one entropy not a number": (
        results(lambda o, e: (o, e.at[0, 1, 3].set(jnp.nan))),
        "grouped",
        "entropy",
    ),
    "entropy without gradient": (
        results(lambda o, e: (o, jax.lax.stop_gradient(e))),
        "grouped",
        "dquery",
    ),
    "temperature without gradient": (
        inputs(lambda q, k, v, r, s: (q, k, v, stopped(r, 0), s)),
        "grouped",
        "dtemperature",
    ),
    "keys' gradient 1e-4 too large": (
        inputs(lambda q, k, v, r, s: (q, stopped(k, 1 + 1e-4), v, r, s)),
        "grouped",
        "dkey",
    ),
    "values' gradient doubled": (
        inputs(lambda q, k, v, r, s: (q, k, stopped(v, 2), r, s)),
        "grouped",
        "dvalue",
    ),
    "last keys forgotten": (
        inputs(lambda q, k, v, r, s: (q, k[:, :12], v[:, :12], r, s)),
        "grouped",
        "output",
    ),
    "documents not kept apart": (
        inputs(lambda q, k, v, r, s: (q, k, v, r, jnp.minimum(s, 0))),
        "segments",
        "output",
    ),
}


class TestBroken:
    @pytest.mark.parametrize(("broken", "shape", "quantity"), BROKEN.values(), ids=BROKEN)
    def test_it_is_found(self, broken, shape, quantity, monkeypatch):
        monkeypatch.setattr(reference, "attend", broken)
        row = check_implementation("reference", "float32", *posed("float32", shape))
        assert row.ok is False
        assert f"{quantity} at {shape}" in row.found
        assert not row.numbers[quantity] <= 1

    def test_gradients_1_percent_off_in_bfloat16_are_found(self, monkeypatch):
        broken = inputs(lambda q, k, v, r, s: (stopped(q, 1.01), k, v, r, s))
        monkeypatch.setattr(reference, "attend", broken)
        row = check_implementation("reference", "bfloat16", *posed("bfloat16", "grouped"))
        assert row.ok is False
        assert row.found == "wrong: dquery at grouped"

    def test_the_worst_shape_is_named(self, monkeypatch):
        broken = inputs(lambda q, k, v, r, s: (q, k, v, r, None))
        monkeypatch.setattr(reference, "attend", broken)
        row = check_implementation("reference", "float32", *posed("float32"))
        assert "output at segments" in row.found
        assert "grouped" not in row.found

    @pytest.mark.parametrize("shape", TINY)
    def test_not_a_number_in_one_shape_is_found(self, shape, monkeypatch):
        batch = TINY[shape].batch

        def broken(*x, **options):
            out, entropy = right(*x, **options)
            return out, entropy * (jnp.nan if len(out) == batch else 1)

        monkeypatch.setattr(reference, "attend", broken)
        row = check_implementation("reference", "float32", *posed("float32"))
        assert row.ok is False
        assert f"entropy at {shape}" in row.found

    def test_one_that_does_not_compile_is_a_row(self, monkeypatch):
        def refuses(*_, **__):
            raise RuntimeError("Mosaic failed to compile\nwith a long story")

        monkeypatch.setattr(reference, "attend", refuses)
        row = check_implementation("reference", "float32", *posed("float32", "grouped"))
        assert row.ok is False
        assert row.found == "grouped: RuntimeError: Mosaic failed to compile"

"""The benchmarks run, say what they measured, and their float64 side is right."""

import importlib.util
import json

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import attention, attention_problem, packing, scaling, step_time
from egattn.attention.specs import MAIN_SPECS, SPECS
from egattn.report import table

pytestmark = pytest.mark.slow


def read(out, name):
    return json.loads((out / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(attention, "_LOOP_SECONDS", 1e-3)


@pytest.mark.usefixtures("quick")
def test_attention_lists_every_implementation_and_why_one_cannot_run(tmp_path):
    config = attention.Config(
        shapes=("small_gqa", "small_segments"),
        implementations=("chunked", "cudnn"),
        rounds=2,
        out=tmp_path,
    )
    rows = attention.main(config)
    assert [(row["shape"], row["implementation"]) for row in rows] == [
        ("small_gqa", "stock"),
        ("small_gqa", "chunked"),
        ("small_gqa", "cudnn"),
        ("small_segments", "chunked"),
        ("small_segments", "stock"),
        ("small_segments", "cudnn"),
    ]
    for row in (rows[1], rows[3]):
        assert row["forward ms"] > 0
        assert row["both ms"] > 0
        assert row["temporary MiB"] > 0
        assert 0 < row["error entropy"] < 1e-3
        assert all(0 < row[f"error {name}"] < 6e-3 for name in ("output", "dq", "dk", "dv"))
    assert rows[1]["both / stock"] > 0
    assert all("segment" in row["not run"] for row in rows[4:5])
    assert "cudnn" in rows[2]["not run"]

    written = read(tmp_path, "attention")
    assert written["rows"] == rows
    assert written["config"]["seed"] == 0
    assert {"device", "jax", "machine", "commit"} <= set(written)
    assert "| small_gqa | chunked |" in (tmp_path / "attention.md").read_text(encoding="utf-8")


def test_step_time_compares_with_and_without_entropy(tmp_path):
    config = step_time.Config(
        context_length=(16,),
        tokens=128,
        num_layers=1,
        num_heads=2,
        embed_dim=16,
        vocab_size=128,
        implementation=("reference",),
        rounds=2,
        steps=1,
        out=tmp_path,
    )
    rows = step_time.main(config)
    assert [row["step"] for row in rows] == [
        "stock",
        "entropy, reference",
        "penalty_off, reference",
    ]
    for row in rows:
        assert row["tokens/s"] > 0
        assert row["peak GiB"] > 0
        # Random tokens: nothing beats a uniform guess.
        assert row["loss"] == pytest.approx(np.log(128), rel=0.02)
    assert {"time / stock", "time / penalty_off"} <= set(rows[1])
    assert "time / stock" in rows[2]
    assert read(tmp_path, "step_time")["rows"] == rows


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the TPU compiler is for Linux on x86-64 (pip install 'egattn[tpu]')",
)
def test_scaling_says_what_each_slice_needs_and_draws_it(tmp_path):
    config = scaling.Config(
        model=("gpt2_small",),
        topology=("v5e:4x4", "v5p:4x4x4"),
        fsdp=8,
        effort="O0",
        layers=1,
        out=tmp_path,
    )
    rows = scaling.main(config)
    assert [(row["chips"], row["mesh"]) for row in rows] == [
        (16, "replica=2,fsdp=8"),
        (64, "replica=8,fsdp=8"),
    ]
    for row in rows:
        assert row["effort"] == "O0"
        assert row["verdict"] == "compiles and fits"
        assert 0 < row["state GiB"] < row["needed GiB"] < row["HBM GiB"]
        # At least each gradient, reduced over replica.
        assert row["sent MiB"] > 7e6 / 8 * 2 / 2**20
        times = row["compute ms"], row["communication ms"]
        assert row["share"] == pytest.approx(times[0] / sum(times), rel=0.02)
    # The same batch per chip, at peaks of 197 and 459 TFLOP/s.
    compute = [row["compute ms"] for row in rows]
    assert compute[0] / compute[1] == pytest.approx(459 / 197, rel=0.01)
    assert read(tmp_path, "scaling")["rows"] == rows
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_a_wrong_or_missing_element_shows_in_the_errors():
    spec = SPECS["small"]
    x = attention_problem.make_inputs(spec, seed=3)
    right = attention.both("reference", spec, x)
    errors = attention_problem.measure_errors(spec, 3, right)
    assert max(errors.values()) < 6e-3
    for i, name in enumerate(errors):
        wrong = list(right)
        wrong[i] = jnp.roll(right[i], 1, axis=2 if name == "entropy" else 1)
        assert attention_problem.measure_errors(spec, 3, tuple(wrong))[name] > 0.1
        wrong[i] = right[i].at[0, 1, 1].set(jnp.nan)
        assert np.isnan(attention_problem.measure_errors(spec, 3, tuple(wrong))[name])


def test_floors_of_the_main_shapes_in_milliseconds():
    found = {name: 1e3 * attention.floors(spec)["both"] for name, spec in MAIN_SPECS.items()}
    expected = {"128x128": 0.07, "32x512": 0.07, "8x2048": 0.23, "2x8192": 0.91}
    assert found == pytest.approx(expected, rel=0.03)


def test_quartiles_and_digits():
    assert table.quartiles([4, 1, 3, 2, 5]) == (1.5, 3, 4.5)
    assert table.digits(123456.0) == 123000
    assert table.digits(0.00123456, 2) == 0.0012


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (attention.Config, {"shapes": ("9x9",)}),
        (attention.Config, {"rounds": 1}),
        (step_time.Config, {"context_length": (100,)}),
        (step_time.Config, {"rounds": 1}),
        (scaling.Config, {"topology": ("v5p:4x4",)}),
        (scaling.Config, {"fsdp": 0}),
    ],
)
def test_impossible_options_end_in_one_line(config, changes):
    with pytest.raises(SystemExit, match=r"^expected .*got [^\n]*$"):
        config(**changes)


def test_packing_measures_where_documents_end(tmp_path, monkeypatch):
    found = [f"def f_{i}(x):\n    return x + {i}\n" * (1 + i % 5) for i in range(400)]
    monkeypatch.setattr(packing, "functions", lambda: found)
    packings = ("concat", "segments")
    config = packing.Config(tmp_path, packings, steps=1, samples=2, out=tmp_path)
    rows = packing.main(config)
    assert [row["net"] for row in rows] == ["the corpus", *packings]
    assert 0.9 < rows[1]["ends kept"] == rows[2]["ends kept"]
    assert all(row["mean length"] > 1 and 0 <= row["end within T"] <= 1 for row in rows)
    assert read(tmp_path, "packing")["rows"] == rows

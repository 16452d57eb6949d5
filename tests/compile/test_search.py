"""`egattn compile --search`: meshes that fit, and the model that ranks them."""

import dataclasses
import importlib
import importlib.util
import math
import re

from egattn import cli
from egattn.compile import Plan
from egattn.compile.collectives import Collectives, Volume
from egattn.compile.search import candidates
from tests.compile.compiling import TINY, compile_config, needs_libtpu, planning

searching = importlib.import_module("egattn.compile.search")


def textbook(mesh: dict[str, int], matrices: int, activations: int) -> float:
    """Bytes that a chip sends: gathers, scatter, reductions over replica and over tensor."""
    r, f, t = (mesh[axis] for axis in ("replica", "fsdp", "tensor"))
    gathers_and_scatter = 3 * 2 * matrices / t * (f - 1) / f
    reductions = 2 * 4 * matrices / t / f * (r - 1) / r
    streams = 4 * 2 * 2 * activations / (r * f) * (t - 1) / t
    return gathers_and_scatter + reductions + streams


class TestSearch:
    def test_candidates_are_all_even_meshes(self):
        config = compile_config(f"{TINY} --batch-size 16")
        train = config.train_config(16)
        expected = {
            (replica, fsdp, tensor)
            for replica in range(1, 17)
            for fsdp in range(1, 17)
            # Four heads.
            for tensor in (1, 2, 4)
            if replica * fsdp * tensor == 16
        }
        found = [tuple(map(int, re.findall(r"\d+", spec))) for spec in candidates(train, 16)]
        assert set(found) == expected
        assert len(found) == len(expected)

    def test_candidates_split_batch_and_width(self):
        config = compile_config(f"{TINY} --model.num-heads 3 --model.embed-dim 96 --batch-size 48")
        found = list(candidates(config.train_config(48), 48))
        assert {spec.split(",")[2] for spec in found} == {"tensor=1"}
        # Divisors of 48 all divide 96.
        assert len(found) == 10

    @needs_libtpu
    def test_compiles_the_promising_and_lists_the_fitting_first(self, monkeypatch, capsys):
        compiled = []

        def fake(config, train, mesh):
            compiled.append(dict(mesh.shape))
            fits = mesh.shape["replica"] == 1
            needed = config_hbm if fits else 2 * config_hbm
            volume = Volume(1, 1, 1e6 / len(compiled))
            return dataclasses.replace(
                base,
                mesh=dict(mesh.shape),
                fits=fits,
                needed_bytes=needed,
                collectives=Collectives({"all-gather": volume}, 0),
            )

        config_hbm = 16 * 2**30
        base = TestSearch.example()
        monkeypatch.setattr(searching, "plan_mesh", fake)
        # 1.7 G parameters with their moments, whole on each chip: 19 GiB.
        options = (
            "--topology v5e:4x4 --model.num-layers 32 --model.num-heads 32 --model.embed-dim 2048 "
            "--search --search-limit 4 --batch-size 16"
        )
        cli.main(["compile", *options.split()])
        out = capsys.readouterr().out
        assert len(compiled) == 4
        # What must be sent grows from mesh to mesh, by the textbook's count.
        sent = [textbook(mesh, 32 * 12 * 2048**2, 32 * 2048 * 1024 * 16) for mesh in compiled]
        assert sent == sorted(sent)
        assert "4 meshes compiled" in out
        for mesh in compiled:
            name = ",".join(f"{axis}={size}" for axis, size in mesh.items() if size > 1)
            assert f"{name} " in out
        lines = out.splitlines()
        fitting = [line for line in lines if line.startswith("fsdp")]
        assert lines[1 : 1 + len(fitting)] == fitting
        assert re.search(r"not compiled: [1-9]\d* whose state alone is too large", out)

    @staticmethod
    def example() -> Plan:
        return Plan(
            topology="v5e:4x4",
            chip="TPU v5e",
            chips=16,
            mesh={"fsdp": 16},
            preset="sm_ln_g",
            parameters=1,
            batch_size=16,
            accumulation=1,
            context_length=1024,
            effort="O0",
            hbm_bytes=16 * 2**30,
            state_bytes=1,
            needed_bytes=2,
            fits=True,
            memory=None,
            collectives=Collectives({}, 0),
            flops=1.0,
            flops_per_chip=1.0,
            compute_seconds=1.0,
            communication_seconds=1.0,
            compile_seconds=1.0,
            jax="0",
            libtpu="0",
        )

    def test_the_default_mesh_splits_the_width_evenly(self):
        for slice_, width, mesh in (
            ("v5e:4x4", 768, "replica=1,fsdp=16"),
            ("v5e:4x4", 100, "replica=4,fsdp=4"),
            # Never all of a three-dimensional slice.
            ("v5p:4x4x4", 4096, "replica=2,fsdp=32"),
            ("v5p:8x8x8", 768, "replica=2,fsdp=256"),
            ("v5p:16x20x28", 4096, "replica=70,fsdp=128"),
        ):
            model = f"--model.num-heads 4 --model.embed-dim {width}"
            config = compile_config(f"--topology {slice_} {model}")
            chips = math.prod(map(int, re.findall(r"\d+", slice_.split(":")[1])))
            assert planning.default_mesh(config, chips) == mesh
            assert math.prod(map(int, re.findall(r"\d+", mesh))) == chips


def test_defaults_are_those_of_training_on_a_corpus_like_gpt_2_s():
    config = compile_config("--preset ereg_sm_t_scfuffn")
    assert config.penalty.weight == 0.16
    assert (config.model.vocab_size, config.model.context_length) == (50_304, 1024)
    assert (config.model.dtype, config.model.feed_forward) == ("bfloat16", "fused")
    assert config.train_config(64).batch_size == 8 * 64
    assert dataclasses.replace(config, accumulation=2).train_config(64).batch_size == 16 * 64

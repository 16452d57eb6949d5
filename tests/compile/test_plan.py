"""`egattn compile`: memory that adds up, and errors in one line."""

import dataclasses
import json
import re

import jax
import pytest
from jax.experimental import topologies

from egattn import cli
from egattn.compile import plan, topology
from egattn.compile.memory import Refusal
from tests.compile.compiling import (
    SLICE,
    TINY,
    compile_config,
    compiled,
    fails,
    needs_libtpu,
    planning,
)


@needs_libtpu
class TestPlan:
    """A tiny model on a pod slice of 16 chips."""

    @pytest.fixture
    def once(self, monkeypatch):
        """Plans take the program that is compiled already."""
        program = compiled()
        monkeypatch.setattr(planning, "compile_train_step", lambda *_: program)

    @pytest.fixture
    def result(self, once):
        return plan(compile_config(SLICE))

    def test_attention_is_the_kernel(self):
        # Layers are scanned: forward, and two backward.
        assert compiled().as_text().count('custom_call_target="tpu_custom_call"') == 3

    def test_memory_is_that_of_the_state_and_more(self, result):
        layers, width, vocab, length, fsdp, tensor = 3, 256, 512, 256, 4, 2
        matrices = layers * 12 * width**2
        vectors = layers * (4 * width + 2 * width) + 2 * width
        assert result.parameters == matrices + vectors + (vocab + length) * width
        # Positions are not split over tensor, vectors over nothing.
        split = matrices / (fsdp * tensor) + vocab * width / (fsdp * tensor)
        mine = split + length * width / fsdp + vectors
        # Parameters and two moments in float32, and a few counters.
        assert result.state_bytes == pytest.approx(3 * 4 * mine, abs=64)
        batch = 4 * (32 // 8) * (length + 1)
        layout = result.memory.arguments - result.state_bytes - batch
        assert 0 <= layout < 0.1 * result.state_bytes
        assert result.needed_bytes == sum(dataclasses.asdict(result.memory).values())
        # The state is donated: what comes out besides it is a handful of metrics.
        assert 0 < result.memory.outputs < 2**14
        # At least what the backward pass keeps of one block: the residual, bfloat16.
        assert result.memory.temporaries > 2 * 4 * length * width * layers
        assert result.fits

    def test_collectives_move_at_least_parameters_and_gradients(self, result):
        kinds = result.collectives.kinds
        assert result.collectives.uncertain == 0
        # Over fsdp, each matrix of each layer is gathered for the forward and for the backward
        # pass and its gradient scattered, all in bfloat16 and split over tensor.
        matrices = 2 * 3 * 12 * 256**2 / 2
        assert 2 * matrices <= kinds["all-gather"].bytes < 4 * matrices
        assert matrices <= kinds["reduce-scatter"].bytes < 2 * matrices
        # Over tensor, the residual stream [4, 256, 256] is reduced twice per layer and pass.
        stream = 2 * 4 * 256**2
        assert 2 * 2 * 3 * stream <= kinds["all-reduce"].bytes + kinds["reduce-scatter"].bytes
        assert result.communication_seconds == result.collectives.traffic / 200e9

    def test_flops_are_the_model_s(self, result):
        per_token = 6 * (3 * 12 * 256**2 + 512 * 256) + 12 * 256 * 256 * 3
        assert result.flops == per_token * 32 * 256
        assert result.flops_per_chip * 16 == result.flops
        assert result.compute_seconds == pytest.approx(result.flops_per_chip / 197e12)

    @pytest.mark.usefixtures("once")
    def test_prints_json(self, result, capsys):
        cli.main(["compile", *SLICE.split(), "--json"])
        printed = json.loads(capsys.readouterr().out)
        expected = json.loads(json.dumps(dataclasses.asdict(result)))
        del printed["compile_seconds"], expected["compile_seconds"]
        assert printed == expected
        assert printed["mesh"]["fsdp"] == 4
        assert (printed["chips"], printed["chip"], printed["fits"]) == (16, "TPU v5e", True)
        assert printed["jax"] == jax.__version__
        assert re.fullmatch(r"[\d.]+", printed["libtpu"])

    @pytest.mark.usefixtures("once")
    def test_prints_tables_and_writes_nothing(self, result, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        cli.main(["compile", *SLICE.split()])
        out = capsys.readouterr().out
        assert "v5e:4x4 = 16 x TPU v5e, mesh replica=2,fsdp=4,tensor=2" in out
        assert f"{result.parameters:,} parameters" in out
        assert re.search(rf"all-gather +{result.collectives.kinds['all-gather'].count:,} ", out)
        needed = f"{result.needed_bytes / 2**30:.2f}"
        assert f"compiles and fits: {needed} GiB of 16.00 GiB" in out
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.usefixtures("once")
    def test_one_that_compiles_but_does_not_fit(self, result, monkeypatch, capsys):
        small = topology.CHIPS["v5e"]._replace(hbm_gib=result.needed_bytes / 2**30 - 0.01)
        monkeypatch.setitem(topology.CHIPS, "v5e", small)
        with pytest.raises(SystemExit) as stop:
            cli.main(["compile", *SLICE.split()])
        assert stop.value.code == 1
        assert re.search(
            r"compiles and does not fit: needs .* 0\.01 GiB too much", capsys.readouterr().out
        )

    def test_one_that_xla_refuses(self, capsys):
        with pytest.raises(SystemExit) as stop:
            cli.main(["compile", "--topology", "v5e:4x4", "--effort", "O0", "--batch-size", "2048"])
        assert stop.value.code == 1
        out, err = capsys.readouterr()
        found = re.search(r"does not fit: needs ([\d.]+) GiB of 15.75 GiB", out)
        # 128 sequences of GPT-2 small without recomputation.
        assert found
        assert 50 < float(found[1]) < 100
        assert "compile" not in out
        assert err == ""


class TestRefusal:
    @pytest.mark.parametrize(
        ("message", "expected"),
        [
            (
                "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total "
                "memory required for HLO temporaries (28.5G) exceeds available HBM (15.75G).",
                Refusal(int(28.5 * 2**30), int(15.75 * 2**30)),
            ),
            (
                "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 1.5T of 95.5G "
                "hbm. Exceeded hbm capacity by 1.4T.",
                Refusal(int(1.5 * 2**40), int(95.5 * 2**30)),
            ),
            (
                "RESOURCE_EXHAUSTED: It would exceed memory (size=134217728), space=vmem",
                None,
            ),
            ("INVALID_ARGUMENT: Used 2G of 1G hbm", None),
        ],
    )
    def test_reads_what_is_needed_and_what_there_is(self, message, expected):
        assert Refusal.of(message) == expected

    @needs_libtpu
    def test_another_error_of_the_compiler_is_one_line(self, monkeypatch, capsys):
        class Lowered:
            def lower(self, *_):
                return self

            def compile(self):
                raise jax.errors.JaxRuntimeError("INTERNAL: Mosaic failed\nat length")

        monkeypatch.setattr(planning, "make_train_step", lambda *_: Lowered())
        message = fails(f"{TINY} --batch-size 16", capsys)
        assert message == "egattn compile: XLA cannot compile this step: INTERNAL: Mosaic failed\n"


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ("--topology v9:2x2", r"v5e:XxY or v5p:XxYxZ .*got 'v9:2x2'"),
            ("--topology v5p:4x4", r"v5p:XxYxZ .*got 'v5p:4x4'"),
            ("--topology v5e:0x4", r"expected a topology .*got 'v5e:0x4'"),
            ("--topology v5p-128", r"expected a topology .*got 'v5p-128'"),
            ("--topology v5e:16x32", r"at most the 256 chips of a v5e pod, got 512"),
            ("--search --mesh fsdp=16", r"expected no mesh, got 'fsdp=16'"),
            ("--search-limit 0", r"search_limit must be positive, got 0"),
            ("--accumulation 0", r"accumulation must be positive, got 0"),
            ("--preset sm_lng", r"did you mean 'sm_ln_g'"),
            ("--topolgy v5e:4x4", r"did you mean '--topology'"),
            ("--effort O7", r"O7"),
        ],
    )
    def test_needs_no_compiler_to_complain(self, options, message, capsys):
        assert re.search(message, fails(options, capsys))

    @needs_libtpu
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ("--topology v5e:3x5", r"whole hosts.*got 'v5e:3x5': .*not divisible"),
            ("--mesh replica=3,fsdp=5", r"has 15 devices, expected 16"),
            ("--mesh data=16", r"unknown mesh axis 'data'"),
            ("--batch-size 0", r"batch_size must lie within 1 to \d+, got 0"),
            ("--batch-size 24", r"divisible by replica x fsdp = 16, got 24"),
            ("--batch-size 32 --accumulation 4", r"divisible by replica x fsdp = 16, got 8"),
            ("--search --batch-size 3", r"some mesh of 16 chips splits evenly, got 3 sequences"),
        ],
    )
    def test_what_does_not_fit_together(self, options, message, capsys):
        assert re.search(message, fails(f"{TINY} {options}", capsys))

    def test_no_compiler(self, monkeypatch, capsys):
        monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
        assert "needs libtpu, got none: install egattn[tpu]" in fails(TINY, capsys)

    def test_a_compiler_that_another_process_holds(self, monkeypatch, capsys):
        def locked(**_):
            raise RuntimeError("ABORTED: The TPU is in use; libtpu multi-process lockfile\nmore")

        monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: name)
        monkeypatch.setattr(topologies, "get_topology_desc", locked)
        assert "another process holds libtpu; set ALLOW_MULTIPLE_LIBTPU_LOAD=1" in fails(
            TINY, capsys
        )

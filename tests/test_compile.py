"""`egattn compile`: collectives counted right, memory that adds up, and errors in one line."""

import dataclasses
import functools
import importlib
import importlib.util
import json
import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import PartitionSpec

from egattn import cli
from egattn.compile import CompileConfig, Plan, collectives, plan, topology
from egattn.compile.collectives import KINDS, Collectives, Volume
from egattn.compile.memory import Refusal
from egattn.compile.search import candidates
from egattn.sharding import make_mesh

# Functions of these names hide the modules.
planning = importlib.import_module("egattn.compile.plan")
searching = importlib.import_module("egattn.compile.search")

MODEL = "--model.num-layers 3 --model.num-heads 4 --model.embed-dim 256 --model.vocab-size 512"
TINY = f"--topology v5e:4x4 {MODEL} --model.context-length 256 --effort O0"

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the TPU compiler is for Linux on x86-64 (pip install 'egattn[tpu]')",
)


def module(*computations: str) -> str:
    return "HloModule example\n\n" + "\n\n".join(computations) + "\n"


def entry(*lines: str) -> str:
    body = "\n".join(f"  {line}" for line in lines)
    return f"ENTRY %main (p: f32[8,128]) -> f32[8,128] {{\n{body}\n}}"


P = "%p = f32[8,128]{1,0:T(8,128)} parameter(0)"
# 8 x 128 float32.
BYTES = 4096


class TestKinds:
    """One instruction each: its count, bytes and bytes sent around a ring of four."""

    @pytest.mark.parametrize(
        ("kind", "line", "size", "sent"),
        [
            (
                "all-gather",
                "%x = f32[32,128]{1,0} all-gather(%p), channel_id=1, "
                "replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, use_global_device_ids=true",
                4 * BYTES,
                3 * BYTES,
            ),
            (
                "all-reduce",
                "%x = f32[8,128]{1,0:T(8,128)S(1)} all-reduce(%p), channel_id=1, "
                "replica_groups=[2,4]<=[8], to_apply=%add",
                BYTES,
                2 * 3 / 4 * BYTES,
            ),
            (
                "reduce-scatter",
                "%x = f32[2,128]{1,0} reduce-scatter(%p), channel_id=1, "
                "replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}, to_apply=%add",
                BYTES,
                3 / 4 * BYTES,
            ),
            (
                "collective-permute",
                "%x = f32[8,128]{1,0} collective-permute(%p), channel_id=1, "
                "source_target_pairs={{0,1},{1,0}}",
                BYTES,
                BYTES,
            ),
            (
                "all-to-all",
                "%x = f32[8,128]{1,0} all-to-all(%p), channel_id=1, "
                "replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}",
                BYTES,
                3 / 4 * BYTES,
            ),
        ],
    )
    def test_each_kind(self, kind, line, size, sent):
        found = collectives(module(entry(P, "ROOT " + line)), 8)
        nothing = {name: Volume() for name in KINDS}
        assert found.kinds == nothing | {kind: Volume(1, size, sent)}
        assert (found.bytes, found.traffic, found.uncertain) == (size, sent, 0)

    @pytest.mark.parametrize(
        ("groups", "size"),
        [
            ("{{0,1},{2,3},{4,5},{6,7}}", 2),
            ("[1,8]<=[8]", 8),
            ("[4,2]<=[2,4]T(1,0)", 2),
            ("mesh['replica'=2,'fsdp'=4,'tensor'=1] {'replica','fsdp'}", 8),
            ("mesh['axis_0'=1,'axis_1'=2,'axis_2'=4], device_ids=([4,2]T(1,0)) {'axis_1'}", 2),
            ("mesh['a'=8] {'a':(2)4}", 4),
            ("{}", 8),
        ],
    )
    def test_group_sizes_in_every_notation(self, groups, size):
        line = f"ROOT %x = f32[8,128]{{1,0}} all-reduce(%p), replica_groups={groups}, to_apply=%add"
        found = collectives(module(entry(P, line)), 8)
        assert found.traffic == pytest.approx(2 * BYTES * (size - 1) / size)

    def test_halves_of_asynchronous_ones_count_once(self):
        text = module(
            entry(
                P,
                "%s = (f32[8,128]{1,0}, f32[16,128]{1,0}) all-gather-start(%p), "
                "replica_groups=[4,2]<=[8], dimensions={0}",
                "%d = f32[16,128]{1,0} all-gather-done(%s)",
                "%t = (f32[8,128]{1,0}, f32[8,128]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) "
                "collective-permute-start(%p), source_target_pairs={{0,1}}",
                "ROOT %e = f32[8,128]{1,0} collective-permute-done(%t)",
            )
        )
        kinds = collectives(text, 8).kinds
        assert kinds["all-gather"] == Volume(1, 2 * BYTES, BYTES)
        assert kinds["collective-permute"] == Volume(1, BYTES, BYTES)

    def test_one_wrapped_in_async_start_counts_once(self):
        text = module(
            "%wrapped (q: f32[8,128]) -> f32[2,128] {\n"
            "  %q = f32[8,128]{1,0} parameter(0)\n"
            "  ROOT %r = f32[2,128]{1,0} reduce-scatter(%q), replica_groups=[2,4]<=[8], "
            "dimensions={0}, to_apply=%add\n}",
            entry(
                P,
                "%s = ((f32[8,128]{1,0}), f32[2,128]{1,0}, u32[]) async-start(%p), calls=%wrapped",
                "ROOT %d = f32[2,128]{1,0} async-done(%s)",
            ),
        )
        assert collectives(text, 8).kinds["reduce-scatter"] == Volume(1, BYTES, 0.75 * BYTES)

    def test_several_operands_in_one(self):
        text = module(
            entry(
                P,
                "%q = bf16[10]{0} parameter(1)",
                "ROOT %x = (f32[8,128]{1,0}, /*index=1*/bf16[10]{0}) all-reduce(%p, "
                "/*index=1*/%q), replica_groups=[2,4]<=[8], to_apply=%add",
            )
        )
        assert collectives(text, 8).kinds["all-reduce"].bytes == BYTES + 20

    def test_all_reduce_fused_with_a_slice_is_a_reduce_scatter(self):
        text = module(
            "%all-reduce-scatter.1 (q: f32[8,128]) -> f32[2,128] {\n"
            "  %q = f32[8,128]{1,0} parameter(0)\n"
            "  %r = f32[8,128]{1,0} all-reduce(%q), replica_groups=[2,4]<=[8], to_apply=%add\n"
            "  %c = u32[] constant(0)\n"
            "  ROOT %d = f32[2,128]{1,0} dynamic-slice(%r, %c, %c), dynamic_slice_sizes={2,128}\n}",
            entry(P, "ROOT %f = f32[2,128]{1,0} fusion(%p), calls=%all-reduce-scatter.1"),
        )
        kinds = collectives(text, 8).kinds
        assert kinds["reduce-scatter"] == Volume(1, BYTES, 0.75 * BYTES)
        assert kinds["all-reduce"].count == 0

    def test_one_spread_over_several_fusions_counts_once(self):
        def part(i, chain):
            return (
                f"%part.{i} (q{i}: f32[8,128]) -> f32[16,128] {{\n"
                f"  %q{i} = f32[8,128]{{1,0}} parameter(0)\n"
                f"  ROOT %g{i} = f32[16,128]{{1,0}} all-gather(%q{i}), channel_id={chain}, "
                "replica_groups=[4,2]<=[8], dimensions={0}, "
                f'frontend_attributes={{chain_id="{chain}"}}\n}}'
            )

        fusions = [f"%f{i} = f32[16,128]{{1,0}} fusion(%p), calls=%part.{i}" for i in range(4)]
        fusions[-1] = f"ROOT {fusions[-1]}"
        parts = [part(i, chain) for i, chain in enumerate((5, 5, 5, 6))]
        text = module(*parts, entry(P, *fusions))
        assert collectives(text, 8).kinds["all-gather"].count == 2

    def test_one_that_a_loop_overlaps_with_counts_once(self):
        gather = (
            "%g = f32[64,128]{1,0} all-gather(%x), channel_id=3, replica_groups=[1,8]<=[8], "
            'dimensions={0}, frontend_attributes={chain_id="0"}'
        )
        # Twelve steps in the loop, and one before it.
        text = loop().replace("  %y = f32", f"  {gather}\n  %y = f32")
        text = text.replace("  %copied", f"  {gather.replace('%x', '%p')}\n  %copied")
        kinds = collectives(text, 8).kinds
        assert kinds["all-gather"] == Volume(1, 8 * BYTES, 7 * BYTES)
        assert kinds["all-reduce"].count == 12

    def test_a_text_that_is_no_module(self):
        with pytest.raises(
            ValueError, match=r"expected an HLO module with an ENTRY, got 'nonsense"
        ):
            collectives("nonsense", 8)


def loop(known: str = "", start: str = "constant(0)", step: str = "constant(1)") -> str:
    """A loop up to 12 around an all-reduce; its last two lines are the entry's."""
    carried = "(s32[], f32[8,128])"
    return module(
        f"%body (c: {carried}) -> {carried} {{\n"
        f"  %c = (s32[]{{:T(128)}}, f32[8,128]{{1,0}}) parameter(0)\n"
        "  %i = s32[] get-tuple-element(%c), index=0\n"
        "  %x = f32[8,128]{1,0} get-tuple-element(%c), index=1\n"
        f"  %one = s32[] {step}\n"
        "  %next = s32[]{:T(128)} add(%i, %one)\n"
        "  %y = f32[8,128]{1,0} all-reduce(%x), replica_groups=[1,8]<=[8], to_apply=%add\n"
        f"  ROOT %t = {carried} tuple(%next, %y)\n}}",
        f"%condition (d: {carried}) -> pred[] {{\n"
        f"  %d = {carried} parameter(0)\n"
        "  %limit = s32[]{:T(128)} constant(12)\n"
        "  %j = s32[] get-tuple-element(%d), index=0\n"
        "  ROOT %lt = pred[] compare(%j, %limit), direction=LT\n}",
        entry(
            P,
            f"%zero = s32[] {start}",
            "%copied = s32[] copy(%zero)",
            f"%init = {carried} tuple(%copied, %p)",
            f"%w = {carried} while(%init), condition=%condition, body=%body{known}",
            "ROOT %out = f32[8,128]{1,0} get-tuple-element(%w), index=1",
        ),
    )


class TestLoops:
    @pytest.mark.parametrize(
        ("text", "trips", "unknown"),
        [
            (loop(', backend_config={"known_trip_count":{"n":"7"},"other":{}}'), 7, 0),
            (loop(), 12, 0),
            (loop(start="constant(2)"), 10, 0),
            (loop(step="constant(5)"), 3, 0),
            (loop(start="constant(20)"), 0, 0),
            (loop(start="parameter(1)"), 1, 1),
            (loop(step="parameter(1)"), 1, 1),
            (loop().replace(" tuple(%copied, %p)", " parameter(1)"), 1, 1),
            (loop().replace("direction=LT", "direction=NE"), 1, 1),
        ],
        ids=[
            "known",
            "counter",
            "later start",
            "wider step",
            "never",
            "any start",
            "any step",
            "carried from elsewhere",
            "another test",
        ],
    )
    def test_trips_multiply(self, text, trips, unknown):
        found = collectives(text, 8)
        # Exact in binary.
        sent = trips * BYTES * 2 * 7 / 8
        assert found.kinds["all-reduce"] == Volume(trips, trips * BYTES, sent)
        assert found.uncertain == unknown

    def test_a_compiled_scan_on_eight_devices(self):
        mesh = make_mesh("replica=2,fsdp=4")

        def local(x):
            def five(x, _):
                return jax.lax.psum(x, "fsdp") * 0.25, None

            x, _ = jax.lax.scan(five, x, length=5)
            return jax.lax.all_gather(x, "replica", tiled=True)

        specs = PartitionSpec(("replica", "fsdp"))
        f = jax.shard_map(
            local, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("fsdp"), check_vma=False
        )
        x = jax.ShapeDtypeStruct((64, 32), jnp.float32)
        text = jax.jit(f).lower(x).compile().as_text()
        assert text
        found = collectives(text, 8)
        # Each device has [8, 32] float32; two of them gather it.
        assert found.kinds["all-reduce"] == Volume(5, 5 * 1024, 5 * 1024 * 2 * 3 / 4)
        assert found.kinds["all-gather"] == Volume(1, 2048, 1024)
        assert found.bytes == 5 * 1024 + 2048
        assert found.uncertain == 0


def compile_config(options: str) -> CompileConfig:
    return cli._compile_config(options.split())


SLICE = f"{TINY} --mesh replica=2,fsdp=4,tensor=2 --batch-size 32"


@functools.cache
def compiled():
    """The one program that the tests of plans share."""
    config = compile_config(SLICE)
    chips = topology.describe(config.topology)
    mesh = make_mesh(config.mesh, chips)
    return planning.compile_train_step(config.train_config(len(chips)), mesh, config.effort)


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


def fails(options: str, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(["compile", *options.split()])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


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
            ("--batch-size 0", r"batch_size must be positive, got 0"),
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

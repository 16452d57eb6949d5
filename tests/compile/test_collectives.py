"""Collectives of a compiled program, counted right."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from egattn.compile import collectives
from egattn.compile.collectives import KINDS, Volume
from egattn.sharding import make_mesh


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

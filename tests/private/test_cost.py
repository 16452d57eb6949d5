"""What private inference costs, against the paper's tables and the compiled network itself."""

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import pytest

from egattn.model import Decoder, DecoderConfig
from egattn.private import PAPER, billions, communication, cost
from egattn.private.communication import calibration
from egattn.private.program import Gelu
from tests.training import egattn

SMALL: dict[str, Any] = {
    "vocab_size": 200,
    "context_length": 16,
    "num_layers": 3,
    "num_heads": 4,
    "embed_dim": 32,
}

# As printed: table, net, nonlinear operations, FLOPs of FFN and attention in billions.
PRINTED = """
3 | SM+LN+G | SM 144×R^{128×128}, LN 24×R^{128×768}, G 12×R^{128×3072} | 14.5B 7.7B
3 | SM+LN+R | SM 144×R^{128×128}, LN 24×R^{128×768}, R 12×R^{128×3072} | 14.5B 7.7B
3 | SM+ScFFN | SM 144×R^{128×128} | 14.5B 7.7B
3 | SM+ScFuFFN | SM 144×R^{128×128} | 1.8B 7.7B
3 | EReg(SM(t)+ScFuFFN) | SM 144×R^{128×128} | 1.8B 7.7B
3 | SM+ScFuFFN_6 | SM 144×R^{128×128} | 0.9B 7.7B
4 | SM+LN+G | SM 144×R^{512×512}, LN 24×R^{512×768}, G 12×R^{512×3072} | 58.0B 36.2B
4 | SM+LN+R | SM 144×R^{512×512}, LN 24×R^{512×768}, R 12×R^{512×3072} | 58.0B 36.2B
4 | SM+ScFuFFN | SM 144×R^{512×512} | 7.3B 36.2B
7 | SM+LN+G | SM 144×R^{256×256}, LN 24×R^{256×768}, G 12×R^{256×3072} | 29.0B 16.3B
7 | SM+LN+R | SM 144×R^{256×256}, LN 24×R^{256×768}, R 12×R^{256×3072} | 29.0B 16.3B
7 | SM+ScFuFFN | SM 144×R^{256×256} | 3.6B 16.3B
7 | SM+ScFuFFN_6 | SM 144×R^{256×256} | 1.8B 16.3B
8 | SM+LN+G | SM 216×R^{128×128}, LN 36×R^{128×768}, G 18×R^{128×3072} | 21.7B 11.6B
8 | SM+LN+R | SM 216×R^{128×128}, LN 36×R^{128×768}, R 18×R^{128×3072} | 21.7B 11.6B
8 | SM+ScFuFFN | SM 216×R^{128×128} | 2.7B 11.6B
8 | SM+ScFuFFN_4 | SM 216×R^{128×128} | 2.1B 11.6B
"""  # noqa: RUF001 - product signs


def test_the_paper_s_columns_to_the_printed_digits(capsys):
    egattn("cost --paper")
    lines = capsys.readouterr().out.splitlines()[1:]
    rows = [row.split(" | ") for row in PRINTED.strip().splitlines()]
    assert len(lines) == len(rows) == len(PAPER)
    for line, (table, net, operations, flops) in zip(lines, rows, strict=True):
        ffn, attention = flops.split()
        # Ours, then the paper's.
        numbers = f"{ffn} {ffn} {attention} {attention} "
        assert " ".join(line.split()).startswith(f"{table} {net} {operations} {numbers}")


def test_the_paper_s_rounding():
    assert billions(7_247_757_312) == "7.3"
    assert billions(7_244_999_999) == "7.2"


def matrix_flops(config: DecoderConfig) -> int:
    """FLOPs of every matrix product in the network's program for one sequence."""

    def count(jaxpr) -> int:
        total = 0
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general":
                (contracted, _), (batch, _) = eqn.params["dimension_numbers"]
                left, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
                # A product of two rows is no matrix product: the sum in the rows' entropy.
                rows_alone = len(out) == len(batch)
                terms = 0 if rows_alone else math.prod(left[axis] for axis in contracted)
                total += 2 * math.prod(out) * terms
            trips = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
            total += trips * sum(map(count, jax.extend.core.jaxprs_in_params(eqn.params)))
        return total

    model = Decoder(config)
    tokens = jnp.zeros((1, config.context_length), jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
    return count(jax.make_jaxpr(model.apply)(variables, tokens).jaxpr)


@pytest.mark.parametrize(
    ("preset", "fields"),
    [
        ("sm_ln_g", {}),
        ("sm_scfuffn", {"feed_forward": ("fused", "none", "fused")}),
        ("sm_r", {"num_kv_heads": 2, "hidden_dim": 48, "tie_embeddings": False}),
    ],
)
def test_flops_and_parameters_are_the_network_s(preset, fields):
    config = DecoderConfig.preset(
        preset, **{**SMALL, **fields, "implementation": "reference", "dtype": "float32"}
    )
    result = cost(config)
    flops, length, width = result.flops, config.context_length, config.embed_dim
    # The paper counts 3 T^2 d for what are two whole products of 2 T^2 d here.
    attention = flops.attention + config.num_layers * length**2 * width
    assert matrix_flops(config) == flops.feed_forward + attention + flops.head
    tokens = jnp.zeros((1, 16), jnp.int32)
    variables = jax.eval_shape(Decoder(config).init, jax.random.key(0), tokens)
    padding = 56 * width * (1 if config.tie_embeddings else 2)
    actual = sum(x.size for x in jax.tree.leaves(variables["params"])) - padding
    assert sum(result.parameters.values()) == actual


def test_nonlinear_operations_of_mixed_networks():
    config = DecoderConfig(
        **SMALL, feed_forward=("mlp", "none", "mlp"), activation="leaky_relu", hidden_dim=40
    )
    found = {(n.kind, n.count, n.shape) for n in cost(config).nonlinearities}
    assert found == {
        ("softmax", 12, (16, 16)),
        ("layer_norm", 5, (16, 32)),
        ("leaky_relu", 2, (16, 40)),
    }
    assert [(n.kind, n.count, n.shape) for n in cost(config).final] == [("layer_norm", 1, (16, 32))]


def test_estimates_are_what_was_measured():
    """Every measurement, found again among the estimates of a network that has the operation."""
    measured = {}
    for row in calibration()["rows"]:
        measured.setdefault(row["operation"], []).append((tuple(row["sizes"]), row["bytes"]))
    found = {}
    networks: list[tuple[str, Gelu]] = [
        ("sm_ln_g", "tanh"),
        ("sm_ln_g", "polynomial"),
        ("sm_ln_r", "tanh"),
        ("ereg_sm_t_scfuffn", "tanh"),
    ]
    for preset, gelu in networks:
        estimate = communication(DecoderConfig.preset(preset), gelu)
        for t in (*estimate.blocks, estimate.embedding, estimate.head):
            found[t.part, t.sizes] = t.bytes
    parts = {sizes: bytes for (_, sizes), bytes in found.items()}
    rows = [row for name, rows in measured.items() if name != "setup" for row in rows]
    # All but the smaller vocabulary.
    rows = [(sizes, bytes) for sizes, bytes in rows if 4096 not in sizes]
    assert len(rows) == 14
    for sizes, bytes in rows:
        if sizes not in ((128 * 768,), (128 * 3072,)):
            assert parts[sizes] == pytest.approx(bytes, rel=0.01), sizes
    for name, operation in (("gelu_tanh",) * 2, ("gelu_polynomial",) * 2, ("relu",) * 2):
        assert found[name, (128 * 3072,)] == pytest.approx(measured[operation][0][1])
    for name in ("layer_norm", "temperature"):
        assert found[name, (128 * 768,)] == pytest.approx(measured[name][0][1])


RESULTS = Path(__file__).parents[2] / "experiments" / "private_inference" / "results"


def measured_bytes(name: str, run: int) -> int:
    result = json.loads((RESULTS / f"{name}.json").read_text())["runs"][run]
    return result["sent_bytes"] + result["received_bytes"]


@pytest.mark.parametrize("preset", ["sm_ln_g", "sm_ln_r", "sm_scfuffn", "ereg_sm_t_scfuffn"])
def test_estimates_add_up_to_whole_layers(preset):
    """The layers' own runs are not among the measurements that estimates are made from."""
    estimate = communication(DecoderConfig.preset(preset, num_layers=1, final_norm="none"))
    blocks = sum(t.count * t.bytes for t in estimate.blocks)
    whole = measured_bytes(f"{preset}-layer", 0)
    assert blocks + estimate.setup == pytest.approx(whole, rel=0.005)


@pytest.mark.parametrize("preset", ["sm_ln_g", "ereg_sm_t_scfuffn"])
def test_estimates_of_small_networks_are_too_low_by_a_sixth_at_most(preset):
    size = {"vocab_size": 2048, "context_length": 64, "num_layers": 4, "num_heads": 4}
    estimate = communication(DecoderConfig.preset(preset, **size, embed_dim=128))
    whole = measured_bytes(f"demo/{preset}", 1)
    assert 5 / 6 * whole < estimate.bytes + 0.005 * whole < whole


def test_the_table_of_measurements_is_that_of_the_results():
    path = RESULTS.parent / "measure.py"
    spec = importlib.util.spec_from_file_location("measure", path)
    assert spec is not None
    assert spec.loader is not None
    measure = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(measure)
    assert measure.table(measure.load(RESULTS)) == calibration()


@pytest.mark.parametrize("row", PAPER, ids=lambda row: f"{row.table} {row.net}")
def test_estimates_count_the_operations_that_the_tables_list(row):
    estimate = communication(row.config)
    parts = {t.part: t for t in estimate.blocks}
    for operation in cost(row.config).nonlinearities:
        name = {"gelu": "gelu_tanh"}.get(operation.kind, operation.kind)
        entries = math.prod(operation.shape)
        heads = 12 if name == "softmax" else 1
        # The final norm is in the estimate, not in the tables.
        extra = name == "layer_norm"
        assert parts[name].count * heads == operation.count + extra * heads
        assert parts[name].sizes == (entries * heads,)
    assert estimate.bytes == pytest.approx(
        sum(t.count * t.bytes for t in (*estimate.blocks, estimate.embedding, estimate.head))
    )


def test_what_is_folded_costs_nothing_and_what_is_removed_neither():
    def parts(preset: str, **fields: Any) -> dict[str, int]:
        estimate = communication(DecoderConfig.preset(preset, **fields))
        return {t.part: t.count for t in estimate.blocks}

    fused = parts("sm_scfuffn")
    assert parts("sm_scffn") == parts("sm_wnorm") == parts("sm_snorm") == parts("sm") == fused
    assert parts("sm_t_scfuffn") == {**fused, "temperature": 12}
    assert parts("ereg_sm_t_scfuffn") == parts("sm_t_scfuffn")
    leaky = parts("sm_r", activation="leaky_relu")
    assert leaky == {**parts("sm_r"), "linear": 12}
    kinds = ("fused",) * 5 + ("none",) * 7
    assert parts("sm_scfuffn", feed_forward=kinds) == {**fused, "linear": 5}


def test_json_and_tables(capsys):
    egattn("cost --preset sm_g --json --model.context-length 64")
    counted = json.loads(capsys.readouterr().out)
    assert counted["nonlinearities"][1] == {"kind": "gelu", "count": 12, "shape": [64, 3072]}
    assert counted["flops"]["head"] == 2 * 64 * 768 * 50257
    estimate = counted["estimated_communication"]
    assert [t["part"] for t in estimate["blocks"]][-3:] == ["up", "gelu_tanh", "down"]
    assert counted["estimated_from"]["protocol"] == "CHEETAH"
    egattn("cost --preset sm_ln_r")
    text = capsys.readouterr().out
    assert "after the blocks: LN 1" in text
    assert "communication, estimated" in text
    assert "estimated from operations measured under CHEETAH" in text
    assert "38,597,376" in text
    egattn("cost --paper --json")
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["gigabytes"] == 25.32
    assert rows[0]["counted"]["flops"]["feed_forward"] == 14_495_514_624


def test_bad_input(capsys):
    for command, message in (
        ("cost --preset sm_ln_q", "did you mean 'sm_ln_"),
        ("cost --model.num-heads 7", "num_heads must divide embed_dim"),
        ("cost --papers", "--paper"),
        ("cost --paper --gelu polynomial", "GELU in its tanh form"),
    ):
        with pytest.raises(SystemExit, match="2"):
            egattn(command)
        assert message in capsys.readouterr().err

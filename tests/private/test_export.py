"""Programs for two parties as files: ranges, contents, refusals."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egattn.data import load_tokenizer
from egattn.model import Decoder
from egattn.private import export as export_module
from egattn.private.ranges import FixedPoint, Range, check, measure
from egattn.sharding import make_mesh
from egattn.train.config import TrainConfig
from egattn.train.evaluate import load_state
from tests.training import EREG, TRAIN, egattn


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("private") / "export"
    egattn("private export {0} {1} --windows 3 --length 24", finished, out)
    return out


@pytest.fixture(scope="module")
def prompted(finished, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("private") / "export"
    # Not through `egattn`, which splits at blanks.
    from egattn.cli import main

    main(["private", "export", str(finished), str(out), "--prompts", "def f(x):", "import "])
    return out


def decoder_logits(run: Path, tokens: np.ndarray) -> np.ndarray:
    config = TrainConfig.read(run)
    state = load_state(config, make_mesh("replica=1", jax.devices()[:1]))
    output: Any = jax.jit(Decoder(config.model).apply)({"params": state.params}, tokens)
    return np.asarray(output.logits)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_an_export_holds_the_decoder_s_results(finished, exported):
    public = read(exported / "program.json")
    weights = np.load(exported / "server" / "weights.npz")
    inputs, expected = (
        np.load(exported / "client" / f"{name}.npz") for name in ("inputs", "expected")
    )
    assert expected["logits"].shape == (3, 24, 512)
    assert inputs["tokens"].shape == (3, 24)
    assert inputs["tokens"].dtype == np.int32
    logits = decoder_logits(finished, inputs["tokens"])
    np.testing.assert_allclose(expected["logits"], logits, atol=2e-5 * np.abs(logits).max())
    names = [a["name"] for a in public["arguments"]]
    assert names == [*sorted(weights), "tokens"]
    assert {a["owner"] for a in public["arguments"][:-1]} == {"server"}
    assert public["arguments"][-1] == {
        "name": "tokens",
        "owner": "client",
        "shape": [24, 512],
        "encoding": "one_hot",
    }
    for argument in public["arguments"][:-1]:
        assert list(weights[argument["name"]].shape) == argument["shape"]
        assert weights[argument["name"]].dtype == np.float32
    client, server = (read(exported / x / f"{x}.json") for x in ("client", "server"))
    assert (client["cases"], client["lengths"]) == (3, [24, 24, 24])
    assert set(client["files"]) == {"inputs.npz", "expected.npz", "tokens.json"}
    assert set(server["files"]) == {"weights.npz"}
    for party, files in (("client", client["files"]), ("server", server["files"])):
        for name, checksum in files.items():
            assert digest(exported / party / name) == checksum
    assert public["model_sha256"] == digest(exported / "model.mlir")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_both_parties_see_depends_on_neither_s_data(finished, data, prompted, tmp_path):
    """Other weights, from another seed, and other prompts: not one byte of it changes."""
    run, out = tmp_path / finished.name, tmp_path / "out"
    egattn(f"train {{0}} --data {{1}} {EREG} --seed 1", run, data)
    egattn("private export {0} {1} --windows 2", run, out)
    for name in ("program.json", "model.mlir"):
        assert (out / name).read_bytes() == (prompted / name).read_bytes()
    for name in ("server/weights.npz", "client/inputs.npz"):
        assert (out / name).read_bytes() != (prompted / name).read_bytes()
    assert {path.name for path in out.iterdir()} == {
        "program.json",
        "model.mlir",
        "client",
        "server",
    }


def test_what_the_server_gets_does_not_depend_on_prompts(finished, prompted, tmp_path):
    out = tmp_path / "out"
    egattn("private export {0} {1}", finished, out)
    for name in ("server.json", "weights.npz"):
        assert (out / "server" / name).read_bytes() == (prompted / "server" / name).read_bytes()


def test_the_program_has_neither_look_ups_nor_weights(exported):
    text = (exported / "model.mlir").read_text()
    assert "gather" not in text
    assert "chlo" not in text
    assert "loc(" not in text
    # Constants are numbers of the architecture.
    assert len(text) < 40_000
    parameters = text.split("->")[0].count("%arg")
    assert parameters == len(read(exported / "program.json")["arguments"])


def test_prompts_are_filled_up_and_their_last_position_counts(finished, prompted):
    client = read(prompted / "client" / "client.json")
    tokens = np.load(prompted / "client" / "inputs.npz")["tokens"]
    tokenizer = load_tokenizer(TrainConfig.read(finished).data / "tokenizer.json")
    vocabulary = read(prompted / "client" / "tokens.json")
    for row, length, text in zip(tokens, client["lengths"], ("def f(x):", "import "), strict=True):
        assert tokenizer.decode(row[:length].tolist()) == text
        assert "".join(vocabulary[i] for i in row[:length]) == text
        alone = decoder_logits(finished, row[None, :length])[0, -1]
        expected = np.load(prompted / "client" / "expected.npz")["logits"]
        case = client["lengths"].index(length)
        np.testing.assert_allclose(expected[case, length - 1], alone, atol=1e-4)


def test_ranges_are_those_of_the_numbers_on_the_way():
    def program(x):
        with jax.named_scope("first"):
            y = x * 100.0
        z = jnp.where(y > 0, jnp.exp(y - y.max()), 0.0)
        return z / jax.nn.relu(z.sum())

    x = np.array([-3.0, 1.0, 2.0], np.float32)
    found = {(r.part, r.operation): (r.smallest, r.largest) for r in measure(program, [[x], [-x]])}
    assert found["first", "product"] == (100.0, 300.0)
    # Of [-300, 100, 200] and of [300, -100, -200]: distances to the largest.
    assert found["", "exp"] == (0.0, 500.0)
    assert found["", "denominator"] == pytest.approx((1.0, 1.0))
    assert found["arguments", "sum"] == (1.0, 3.0)


def test_what_a_function_gives_counts_as_what_it_takes():
    with pytest.raises(ValueError, match=r"sum: magnitudes 80 to 5.54e\+34"):
        check(measure(lambda x: jnp.exp(-x), [[np.array([-80.0], np.float32)]]), FixedPoint())


def test_loops_are_not_looked_into_and_so_refused():
    def program(x):
        return jax.lax.fori_loop(0, 3, lambda i, y: y * 1e4, x)

    with pytest.raises(NotImplementedError, match="scan is not looked into"):
        measure(program, [[np.ones(3, np.float32)]])


def test_a_program_that_is_not_the_decoder_is_not_exported(finished, tmp_path, monkeypatch):
    def fold(*arguments):
        weights = egattn_fold(*arguments)
        return {**weights, "position": weights["position"] * 1.01}

    egattn_fold = export_module.fold
    monkeypatch.setattr(export_module, "fold", fold)
    with pytest.raises(RuntimeError, match="program and decoder differ"):
        egattn("private export {0} {1} --windows 1", finished, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("operation", "size", "allowed"),
    [
        ("exp", 481.0, 479.0),
        ("product", 7e7, 6e7),
        ("sum", 2e13, 1e13),
        ("rsqrt", 2e5, 5e4),
        ("rsqrt", 9e-4, 2e-3),
        ("denominator", 0.5, 1.0),
        ("denominator", 5000.0, 4000.0),
    ],
)
def test_what_leaves_the_range_is_named_with_its_numbers(operation, size, allowed):
    check([Range("layers.3/softmax", operation, allowed, allowed)], FixedPoint())
    with pytest.raises(ValueError, match=f"64 bits with 18.*layers.3/softmax {operation}"):
        check([Range("layers.3/softmax", operation, size, size)], FixedPoint())
    with pytest.raises(ValueError, match=f"layers.3/softmax {operation}"):
        check([Range("layers.3/softmax", operation, np.nan, np.nan)], FixedPoint())


def test_fewer_iterations_of_exp_allow_less():
    ranges = [Range("softmax", "exp", 0.0, 200.0)]
    check(ranges, FixedPoint(exp_iterations=7))
    with pytest.raises(ValueError, match="magnitudes 0 to 200, allowed 0 to 120"):
        check(ranges, FixedPoint(exp_iterations=6))


def test_a_network_whose_activations_overflow_is_not_exported(data, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out"
    # Cubes of activations in the thousands; of such a network the gradient may overflow too.
    command = f"train {{0}} --data {{1}} {TRAIN} --steps 1 --skip-nonfinite 1 --preset sm_g"
    egattn(command.replace("0.05", "4.0") + " --optimizer.learning-rate 1e-9", run, data)
    with pytest.raises(SystemExit, match="2"):
        egattn("private export {0} {1} --windows 1", run, out)
    message = capsys.readouterr().err
    assert "activations leave the range" in message
    assert "/activation product: magnitudes" in message
    assert not list(tmp_path.glob("*out*"))


def test_bad_input(finished, exported, tmp_path, capsys):
    out = tmp_path / "out"
    for command, message in (
        ("private", "expected export or parts"),
        ("private exprt", "did you mean 'export'"),
        ("private export {0} {2}", "exists"),
        ("private export {1} {1}", "is not a run directory"),
        ("private export {0} {1} --length 33", "length must lie within 1 to 32, got 33"),
        ("private export {0} {1} --prompts " + "x_" * 200, "prompts of 1 to 32 tokens"),
        ("private export {0} {1} --step 7777", "no checkpoint 7777"),
        ("private export {0} {1} --gelu erf", "gelu"),
        ("private export {0} {1} --windows 0", "windows must be >= 1, got 0"),
        ("private parts {1} --only softmx", "expected parts in"),
    ):
        with pytest.raises(SystemExit, match="2"):
            egattn(command, finished, out, exported)
        assert message in capsys.readouterr().err
        assert not out.exists()


def test_parts_add_up_to_the_layer(tmp_path, capsys):
    """A layer's program, from its parts' programs by hand."""
    out = tmp_path / "parts"
    model = "--model.vocab-size 90 --model.context-length 8 --model.num-heads 2"
    egattn(f"private parts {{0}} --preset sm_ln_r {model} --model.embed-dim 16", out)
    names = {path.name for path in out.iterdir()}
    norms = {"layer_norm", "up", "activation", "down"}
    shared = {"embedding", "qkv", "scores", "softmax", "values", "out", "head", "layer"}
    assert names == shared | norms

    def load(name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
        files = (
            np.load(out / name / f"{file}.npz")
            for file in ("server/weights", "client/inputs", "client/expected")
        )
        weights, inputs, expected = files
        return dict(weights), dict(inputs), expected["result"][0]

    def norm(x: np.ndarray) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + w["attention_norm.epsilon"])

    w, inputs, result = load("layer")
    x = inputs["x"][0].astype(np.float64)
    query, key, value = np.split(norm(x) @ w["qkv.kernel"] + w["qkv.bias"], 3, -1)
    attended = []
    for head in (slice(0, 8), slice(8, 16)):
        s = np.where(np.tril(np.ones((8, 8), bool)), query[:, head] @ key[:, head].T, -np.inf)
        p = np.exp(s - s.max(-1, keepdims=True))
        attended.append(p / p.sum(-1, keepdims=True) @ value[:, head])
    x = x + np.concatenate(attended, -1) @ w["out.kernel"]
    h = np.maximum(norm(x) @ w["up.kernel"] + w["up.bias"], 0)
    np.testing.assert_allclose(x + h @ w["down.kernel"], result, atol=1e-4)
    # And each part alone is what it is in there.
    for name, matrix in (("out", "out"), ("up", "up"), ("down", "down"), ("qkv", "qkv")):
        weights, inputs, result = load(name)
        product = inputs["x"][0].astype(np.float64) @ weights[f"{matrix}.kernel"]
        np.testing.assert_allclose(product + weights.get(f"{matrix}.bias", 0), result, atol=1e-3)
    _, inputs, result = load("activation")
    np.testing.assert_array_equal(result, np.maximum(inputs["h"][0], 0))

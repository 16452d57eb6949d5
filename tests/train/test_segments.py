"""Packed documents that do not see each other: in a step, in an evaluation, in whole runs."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egattn
from egattn.data import load_manifest
from egattn.model.segments import restarted_positions, segment_ids
from egattn.sharding import make_mesh
from egattn.train.config import PenaltyConfig
from egattn.train.step import batch_gradient, device_batch, init_state, make_eval_step
from tests.inspect.inspecting import run_of
from tests.train.test_step import config, one_device
from tests.training import EREG, TRAIN, numbers, records, refused
from tests.training import egattn as command

END = 0


def windows(count: int = 8, length: int = 17) -> np.ndarray:
    """Tokens of which about every sixth ends a document."""
    rng = np.random.default_rng(3)
    tokens = rng.integers(1, 300, (count, length))
    return np.where(rng.random(tokens.shape) < 0.17, END, tokens).astype(np.int32)


def test_end_tokens_belong_to_the_document_they_end():
    tokens = jnp.array([[7, END, 8, 9, END, END, 5], [END, 1, 2, 3, 4, 5, 6]])
    ids = segment_ids(tokens, END)
    np.testing.assert_array_equal(ids, [[0, 0, 1, 1, 1, 2, 3], [0, 1, 1, 1, 1, 1, 1]])
    expected = [[0, 1, 0, 1, 2, 0, 0], [0, 0, 1, 2, 3, 4, 5]]
    np.testing.assert_array_equal(restarted_positions(ids), expected)


def alone(c, variables, tokens: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Cross entropies summed, entropies [L, H, T] and keys seen of a window, by documents."""
    starts = [0, *(i + 1 for i in np.flatnonzero(tokens[:-1] == END) if i + 1 < len(tokens) - 1)]
    run = jax.jit(egattn.Decoder(c.model).apply)
    loss, entropies, keys = 0.0, [], []
    for start, stop in zip(starts, [*starts[1:], len(tokens) - 1], strict=True):
        # What follows changes nothing in a causal network, and one length compiles once.
        padded = np.pad(tokens[start:stop], (0, len(tokens) - 1 - (stop - start)))
        output = run(variables, jnp.asarray(padded[None]))
        logits = np.asarray(output.logits[0, : stop - start], np.float64)
        targets = tokens[start + 1 : stop + 1]
        chosen = logits[np.arange(len(targets)), targets]
        loss += (np.logaddexp.reduce(logits, 1) - chosen).sum()
        entropies.append(np.asarray(output.entropy[:, 0, :, : stop - start]))
        keys.append(np.arange(1, stop - start + 1))
    return loss, np.concatenate(entropies, -1), np.concatenate(keys)


def test_a_step_is_that_of_each_document_alone():
    penalty = PenaltyConfig(weight=0.1, ceiling="row", reduction="mean")
    c = config(penalty=penalty, init_std=0.1)
    mesh, tokens = one_device(), windows()
    state = init_state(c, mesh)
    run = jax.jit(lambda state, rows: batch_gradient(c, mesh, state, rows, document_end=END))
    _, _, metrics = run(state, device_batch(c, mesh, tokens))
    found = [alone(c, {"params": state.params}, row) for row in tokens]
    loss = sum(loss for loss, *_ in found) / tokens[:, 1:].size
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    entropy = np.stack([entropy for _, entropy, _ in found], 1)
    np.testing.assert_allclose(metrics["head_entropy"], entropy.mean((1, 3)), rtol=1e-4)
    ceiling = np.log(np.stack([keys for *_, keys in found]).astype(np.float64))
    threshold = np.asarray(state.params["threshold"])[:, None, :, None]
    delta = np.abs(entropy - threshold * ceiling[:, None])
    cost = np.where(delta <= 0.2 * ceiling[:, None], 0, delta**2).mean()
    np.testing.assert_allclose(metrics["penalty"], cost, rtol=1e-4)


@pytest.mark.parametrize("axes", ["replica=8", "replica=2,context=2,tensor=2"])
def test_a_mesh_and_microbatches_change_nothing(axes):
    tokens, found = windows(), []
    for mesh, accumulation in ((one_device(), 1), (make_mesh(axes), 1), (one_device(), 4)):
        c = config(accumulation=accumulation)
        state = init_state(c, mesh)
        run = jax.jit(lambda s, rows, c=c, mesh=mesh: batch_gradient(c, mesh, s, rows, None, END))
        found.append(jax.device_get(run(state, device_batch(c, mesh, tokens))))
    for other in found[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found[0], other)


def test_an_evaluation_is_that_of_each_document_alone():
    c, mesh, tokens = config(init_std=0.1), one_device(), windows()
    state = init_state(c, mesh)
    sums = make_eval_step(c, mesh, END)(state, tokens[None], np.ones((1, 8), np.float32))
    loss = sum(alone(c, {"params": state.params}, row)[0] for row in tokens)
    np.testing.assert_allclose(sums["nll"], loss, rtol=1e-5)


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> dict[str, Path]:
    """Data of short documents in both packings."""
    root = tmp_path_factory.mktemp("packed")
    for i in range(200):
        (root / "text").mkdir(exist_ok=True)
        (root / "text" / f"{i}.txt").write_text(f"def f_{i}(x): return x + {i}\n" * (1 + i % 4))
    options = f"--source {root}/text --vocab-size 300 --context-length 32 --validation-fraction 0.2"
    for packing in ("concat", "segments"):
        command(f"prepare {{0}} {options} --packing {packing}", root / packing)
    return {packing: root / packing for packing in ("concat", "segments")}


def test_runs_replay_and_evaluate_as_they_trained(both, tmp_path, capsys):
    for packing in both:
        command(f"train {{0}} --data {{1}} {EREG}", tmp_path / packing, both[packing])
    assert numbers(tmp_path / "concat") != numbers(tmp_path / "segments")
    capsys.readouterr()
    run = tmp_path / "segments"
    command("replay {0} --step 7", run)
    assert "as recorded, to the bit" in capsys.readouterr().out
    values = run_of(capsys, "{0}", run)
    assert values["data"]["state"] == "same"
    manifest = load_manifest(both["segments"])
    assert manifest.document_end == manifest.end_token_id
    assert load_manifest(both["concat"]).document_end is None
    assert "data" in refused(capsys, f"train {{0}} --data {{1}} {EREG}", run, both["concat"])
    command("evaluate {0} --json", run)
    (last,) = (r for r in records(run, "validation") if r["step"] == 8)
    loss = json.loads(capsys.readouterr().out)["loss"]
    assert loss == pytest.approx(last["loss"], rel=1e-6)


def test_windows_longer_than_the_context_are_said(both, tmp_path, capsys):
    said = "of the 32 predictions of each window in .* the first 16 are used, 50% of the data"
    short = f"{TRAIN} --steps 1 --model.context-length 16"
    command(f"train {{0}} --data {{1}} {short}", tmp_path / "run", both["concat"])
    assert re.search(said, capsys.readouterr().out)
    command("evaluate {0}", tmp_path / "run")
    assert re.search(said, capsys.readouterr().err)

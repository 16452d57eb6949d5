"""Packed documents that do not see each other: in a step, in an evaluation, in whole runs."""

import functools
import importlib
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
from egattn.train.step import (
    batch_gradient,
    device_batch,
    init_state,
    make_eval_step,
    make_train_step,
)
from tests.inspect.inspecting import run_of
from tests.train.test_step import config, one_device
from tests.training import TRAIN, records, refused
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


@functools.cache
def network(model: egattn.DecoderConfig):
    return jax.jit(egattn.Decoder(model).apply)


def alone(c, variables, tokens: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Cross entropies summed, entropies [L, H, T] and keys seen of a window, by documents."""
    starts = [0, *(i + 1 for i in np.flatnonzero(tokens[:-1] == END) if i + 1 < len(tokens) - 1)]
    loss, entropies, keys = 0.0, [], []
    for start, stop in zip(starts, [*starts[1:], len(tokens) - 1], strict=True):
        # What follows changes nothing in a causal network, and one length compiles once.
        padded = np.pad(tokens[start:stop], (0, len(tokens) - 1 - (stop - start)))
        output = network(c.model)(variables, jnp.asarray(padded[None]))
        logits = np.asarray(output.logits[0, : stop - start], np.float64)
        targets = tokens[start + 1 : stop + 1]
        chosen = logits[np.arange(len(targets)), targets]
        loss += (np.logaddexp.reduce(logits, 1) - chosen).sum()
        entropies.append(np.asarray(output.entropy[:, 0, :, : stop - start]))
        keys.append(np.arange(1, stop - start + 1))
    return loss, np.concatenate(entropies, -1), np.concatenate(keys)


def test_a_step_is_that_of_each_document_alone():
    penalty = PenaltyConfig(weight=0.1, ceiling="row", reduction="mean")
    c = config(penalty=penalty, init_std=0.1, accumulation=2)
    mesh, tokens = make_mesh("replica=2,context=2,tensor=2"), windows()
    state = init_state(c, mesh)
    run = jax.jit(lambda state, rows: batch_gradient(c, mesh, state, rows, document_end=END))
    _, _, metrics = run(state, device_batch(c, mesh, tokens))
    params = jax.device_get(state.params)
    found = [alone(c, {"params": params}, row) for row in tokens]
    loss = sum(loss for loss, *_ in found) / tokens[:, 1:].size
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    entropy = np.stack([entropy for _, entropy, _ in found], 1)
    np.testing.assert_allclose(metrics["head_entropy"], entropy.mean((1, 3)), rtol=1e-4)
    ceiling = np.log(np.stack([keys for *_, keys in found]).astype(np.float64))
    threshold = np.asarray(params["threshold"])[:, None, :, None]
    delta = np.abs(entropy - threshold * ceiling[:, None])
    cost = np.where(delta <= 0.2 * ceiling[:, None], 0, delta**2).mean()
    np.testing.assert_allclose(metrics["penalty"], cost, rtol=1e-4)


def test_a_penalty_of_head_means_is_that_of_the_whole_batch():
    penalty = PenaltyConfig(weight=0.1, ceiling="row", reduction="head")
    found, tokens = [], windows()
    for accumulation in (1, 4):
        c, mesh = config(penalty=penalty, accumulation=accumulation), one_device()
        run = jax.jit(functools.partial(batch_gradient, c, mesh, document_end=END))
        found.append(run(init_state(c, mesh), device_batch(c, mesh, tokens))[2]["penalty"])
    np.testing.assert_allclose(*found, rtol=1e-5)


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


def test_runs_replay_and_evaluate_as_they_trained(both, tmp_path, capsys, monkeypatch):
    ends = []

    def noted(make):
        def step(*args, document_end):
            ends.append(document_end)
            return make(*args, document_end=document_end)

        return step

    monkeypatch.setattr("egattn.train.task.make_train_step", noted(make_train_step))
    # The package has a function of that name.
    evaluation = importlib.import_module("egattn.train.evaluate")
    monkeypatch.setattr(evaluation, "make_eval_step", noted(make_eval_step))
    run, manifest = tmp_path / "segments", load_manifest(both["segments"])
    # Windows are longer than the context, which is said.
    words = f"train {{0}} --data {{1}} {TRAIN} --steps 4 --model.context-length 16"
    said = "of the 32 predictions of each window in .* the first 16 are used, 50% of the data"
    command(words, run, both["segments"])
    assert re.search(said, capsys.readouterr().out)
    assert ends == [manifest.end_token_id] * 2
    assert load_manifest(both["concat"]).document_end is None
    command("replay {0} --step 3", run)
    assert "as recorded, to the bit" in capsys.readouterr().out
    assert run_of(capsys, "{0}", run)["data"]["state"] == "same"
    assert "data" in refused(capsys, words, run, both["concat"])
    command("evaluate {0} --json", run)
    (last,) = records(run, "validation")
    shown = capsys.readouterr()
    assert json.loads(shown.out)["loss"] == pytest.approx(last["loss"], rel=1e-6)
    assert re.search(said, shown.err)

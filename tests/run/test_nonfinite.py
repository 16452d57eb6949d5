"""Steps that are not finite: stopped at or left out, written down, repeated by `egattn replay`."""

import contextlib
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egattn.data import batches, load_manifest
from egattn.run import RunDirectory
from egattn.sharding import make_mesh
from egattn.train import step as step_module
from egattn.train.config import TrainConfig
from egattn.train.evaluate import load_state
from tests.training import EREG, egattn, numbers, records

TRAIN = f"train {{0}} --data {{1}} {EREG} --checkpoint-every 1 --keep-checkpoints 9"
SPOILED = (3, 5)


@pytest.fixture(scope="module")
def wrong(data) -> Callable:
    """A cross entropy that is NaN on the batches of two steps, and nowhere else."""
    steps = batches(data, load_manifest(data), "train", batch_size=8, context_length=32, seed=0)
    rows = [next(steps) for _ in range(max(SPOILED))]
    bad = jnp.asarray([rows[step - 1][:, 1:] for step in SPOILED])
    honest = step_module.cross_entropy

    def cross_entropy(hidden, head, targets, *args):
        hit = (bad == targets).all((1, 2)).any() if targets.shape == bad.shape[1:] else False
        return honest(hidden, head, targets, *args) * jnp.where(hit, jnp.nan, 1.0)

    return cross_entropy


@pytest.fixture
def spoiled(wrong, monkeypatch):
    monkeypatch.setattr(step_module, "cross_entropy", wrong)


@pytest.fixture(scope="module")
def left_out(wrong, data, tmp_path_factory) -> tuple[Path, str]:
    """A run that leaves both steps out, and what it says."""
    run, output = tmp_path_factory.mktemp("left_out") / "run", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setattr(step_module, "cross_entropy", wrong)
        egattn(f"{TRAIN} --skip-nonfinite 2", run, data)
    return run, output.getvalue()


def notes(run) -> list[dict]:
    return [json.loads(line) for line in (run / "nonfinite.jsonl").read_text().splitlines()]


def state(run, step: int):
    return jax.device_get(load_state(TrainConfig.read(run), make_mesh(), step))


def fails(command: str, *paths) -> int:
    with pytest.raises(SystemExit) as stop:
        egattn(command, *paths)
    assert isinstance(stop.value.code, int)
    return stop.value.code


class TestSkip:
    def test_a_step_left_out_changes_nothing_but_the_step(self, left_out):
        run, output = left_out
        assert re.search(r"step 3 left out \(1 of 2\): loss is nan, gradient norm nan, ", output)
        assert "step 5 left out (2 of 2)" in output
        before, after, next_one = (state(run, step) for step in (2, 3, 4))
        assert (before.step, after.step) == (2, 3)
        jax.tree.map(np.testing.assert_array_equal, before.replace(step=0), after.replace(step=0))
        assert not np.array_equal(after.params["threshold"], next_one.params["threshold"])
        assert [r["step"] for r in records(run, "train") if r["loss"] is None] == list(SPOILED)
        # The rate is that of the optimiser's own count.
        rates = [r["learning_rate"] for r in records(run, "train")]
        assert rates[3] == rates[2]

    def test_the_budget_ends_across_restarts(self, spoiled, data, tmp_path, capsys):
        run = tmp_path / "run"
        assert fails(TRAIN, run, data) == 1
        error = capsys.readouterr().err
        assert "stopped at step 3: loss is nan, gradient norm nan, attention entropy" in error
        assert f"`egattn replay {run} --step 3` repeats it; last good checkpoint" in error
        assert error.count("\n") == 1
        assert fails(f"{TRAIN} --skip-nonfinite 1", run, data) == 1
        assert "stopped at step 5" in capsys.readouterr().err
        # Step 3 was left out by another process: it counts.
        assert fails(f"{TRAIN} --skip-nonfinite 1", run, data) == 1
        assert [(n["step"], n["action"]) for n in notes(run)] == [(3, "skipped"), (5, "stopped")]
        egattn(f"{TRAIN} --skip-nonfinite 2", run, data)
        assert [(n["step"], n["action"]) for n in notes(run)] == [(3, "skipped"), (5, "skipped")]
        assert records(run, "train")[-1]["step"] == 8

    def test_a_budget_alone_changes_no_number(self, finished, data, tmp_path):
        run = tmp_path / "run"
        egattn(f"train {{0}} --data {{1}} {EREG} --skip-nonfinite 3", run, data)
        for mine, other in zip(numbers(run), numbers(finished), strict=True):
            assert mine == pytest.approx(other, rel=1e-6)
        assert not (run / "nonfinite.jsonl").exists()

    def test_the_windows_written_down_are_those_of_the_batch(self, left_out, data):
        from array_record.python.array_record_module import ArrayRecordReader

        run, stored = left_out[0], []
        for shard in sorted(data.glob("train-*.array_record")):
            reader = ArrayRecordReader(str(shard))
            stored += [np.frombuffer(row, np.uint16) for row in reader.read_all()]
            reader.close()
        steps = batches(data, load_manifest(data), "train", batch_size=8, context_length=32, seed=0)
        rows = [next(steps) for _ in range(5)]
        for note in notes(run):
            written = np.stack([stored[window] for window in note["windows"]])
            np.testing.assert_array_equal(written, rows[note["step"] - 1])
            assert note["first_example"] == 8 * (note["step"] - 1)


class TestReplay:
    def replayed(self, capsys, command: str, *paths) -> dict:
        capsys.readouterr()
        egattn(f"replay {command} --json", *paths)
        return json.loads(capsys.readouterr().out)

    @pytest.mark.parametrize(("step", "checkpoint"), [(3, 0), (5, 4), (8, 6)])
    def test_a_step_comes_out_as_recorded(self, finished, capsys, step, checkpoint):
        before = sorted(finished.rglob("*"))
        values = self.replayed(capsys, f"{{0}} --step {step}", finished)
        recorded = records(finished, "train")[step - 1]
        assert values["checkpoint"] == checkpoint
        for name in ("loss", "penalty", "gradient_norm", "head_entropy", "nonfinite"):
            assert values[name] == recorded[name]
        assert values["difference"] == 0
        assert sorted(finished.rglob("*")) == before

    def test_checkpoints_that_a_run_deletes_meanwhile(
        self, finished, tmp_path, capsys, monkeypatch
    ):
        """It goes on to where none is left below the step, as if it had asked a moment later."""
        run, read = tmp_path / "run", RunDirectory.read_checkpoint
        shutil.copytree(finished, run)

        def late(directory, *args, **kwargs):
            for step in directory.saved_steps()[:-1]:
                shutil.rmtree(directory.checkpoint(step))
            return read(directory, *args, **kwargs)

        monkeypatch.setattr(RunDirectory, "read_checkpoint", late)
        values = self.replayed(capsys, "{0} --step 8", run)
        assert (values["checkpoint"], values["difference"]) == (0, 0)

    def test_a_stop_is_repeated(self, spoiled, data, tmp_path, capsys):
        run = tmp_path / "run"
        fails(TRAIN, run, data)
        values = self.replayed(capsys, "{0} --step 3", run)
        assert (values["checkpoint"], values["loss"], values["difference"]) == (2, None, 0)
        assert values["windows"] == notes(run)[0]["windows"]

    def test_text_says_whether_it_is_as_recorded(self, finished, tmp_path, capsys):
        egattn("replay {0} --step 8", finished)
        assert "step 8, repeated from checkpoint 6" in (text := capsys.readouterr().out)
        assert "as recorded, to the bit" in text
        assert "entropies are finite" in text
        run = tmp_path / "other"
        shutil.copytree(finished, run)
        lines = (run / "metrics.jsonl").read_text().splitlines()
        changed = [json.loads(line) for line in lines]
        for record in changed:
            record["loss"] = record.get("loss", 0) * 1.5
        (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, changed)))
        egattn("replay {0} --step 8", run)
        assert "relative difference to the record: 3.3e-01" in capsys.readouterr().out

    def test_another_mesh_agrees_to_rounding(self, finished, capsys):
        values = self.replayed(capsys, "{0} --step 8 --mesh replica=2,fsdp=2,tensor=2", finished)
        assert values["difference"] < 1e-5  # 0 where the sums happen to round alike

    def test_a_mesh_that_the_devices_do_not_fill(self, finished, capsys):
        assert fails("replay {0} --step 8 --mesh replica=3", finished) == 2
        assert "replica=3" in capsys.readouterr().err

    @pytest.mark.parametrize("step", [0, 9])
    def test_steps_that_the_run_has_not(self, finished, capsys, step):
        assert fails(f"replay {{0}} --step {step}", finished) == 2
        assert f"step must lie within 1 to 8, got {step}" in capsys.readouterr().err

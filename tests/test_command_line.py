"""The commands end to end, on a slice of real Python source."""

import contextlib
import dataclasses
import gzip
import json
import re
import shutil
import signal
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from egattn.cli import main
from egattn.train import TrainConfig
from egattn.train.task import language_model
from tests.training import EREG, TRAIN, egattn, numbers, records, start


class TestTrain:
    def test_writes_what_it_promises(self, finished):
        assert sorted(p.name for p in finished.iterdir()) == [
            ".lock",
            "checkpoints",
            "config.json",
            "learned.npz",
            "metrics.jsonl",
            "tensorboard",
        ]
        steps = [r["step"] for r in records(finished, "train")]
        assert steps == list(range(1, 9))
        last = records(finished, "validation")[-1]
        assert last["step"] == 8
        assert last["perplexity"] == pytest.approx(np.exp(last["loss"]))
        assert np.shape(last["head_entropy"]) == (2, 2)
        assert np.shape(last["learned"]["threshold"]) == (2, 2)
        with np.load(finished / "learned.npz") as learned:
            assert learned["temperature"].shape == (2, 2, 32)

    def test_tensorboard_holds_scalars_and_heat_maps(self, finished):
        (path,) = (finished / "tensorboard").iterdir()
        tags = {value.tag for event in events(path) for value in event.summary.value}
        expected = {
            "train/loss",
            "train/tokens_per_second",
            "train/gradient_norm",
            "validation/bits_per_byte",
            "entropy_layer/01",
            "entropy_head/01/01",
            "entropy_map",
            "entropy_range_share/3",
            "threshold_head/00/01",
            "temperature_map",
            "alpha/01",
            "beta/00",
            "nonfinite_layer/00",
        }
        assert expected <= tags

    def test_a_constant_rate_is_logged(self, data, tmp_path):
        config = TrainConfig.for_data(tmp_path / "run", data, "sm", None)
        optimizer = dataclasses.replace(config.optimizer, schedule="constant", warmup=0)
        task = language_model(dataclasses.replace(config, steps=2, optimizer=optimizer))
        rates = [task.measure(step, 1.0)["learning_rate"] for step in (1, 2)]
        assert rates == [pytest.approx(1e-3)] * 2

    def test_same_seed_gives_the_same_losses(self, finished, data, tmp_path):
        egattn(f"train {{0}} --data {{1}} {EREG}", tmp_path / "again", data)
        assert numbers(tmp_path / "again") == numbers(finished)

    def test_killed_and_resumed_gives_the_same_losses_to_the_bit(self, finished, data, tmp_path):
        run = tmp_path / "killed"
        saved = run / "checkpoints" / "4" / "checksums.json"
        deadline = time.monotonic() + 300
        with start(f"train {{0}} --data {{1}} {EREG}", run, data) as process:
            while not saved.exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
        assert saved.exists()
        egattn(f"train {{0}} --data {{1}} {EREG}", run, data)
        assert len(records(run, "start")) == 2
        assert numbers(run) == numbers(finished)
        drop = {"kind"}
        a, b = (
            [{k: v for k, v in r.items() if k not in drop} for r in records(x, "validation")]
            for x in (run, finished)
        )
        assert a == b

    def test_finished_run_is_left_as_it_is(self, finished, data):
        before = numbers(finished), records(finished, "validation")
        egattn(f"train {{0}} --data {{1}} {EREG}", finished, data)
        assert (numbers(finished), records(finished, "validation")) == before

    def test_resumes_on_another_mesh(self, finished, data, tmp_path):
        run = tmp_path / "mesh"
        egattn(f"train {{0}} --data {{1}} {EREG} --mesh replica=2,fsdp=2,tensor=2", run, data)
        a, b = np.array(numbers(run)), np.array(numbers(finished))
        assert np.abs(a[:4, 1] - b[:4, 1]).max() < 5e-6

    def test_divergence_names_step_layers_heads_and_checkpoint(self, data, tmp_path, capsys):
        run = tmp_path / "diverges"
        wild = "--optimizer.learning-rate 1e30 --optimizer.warmup 0 --optimizer.clip 1e9"
        every = TRAIN.replace("--checkpoint-every 2", "--checkpoint-every 1")
        with pytest.raises(SystemExit) as stop:
            egattn(f"train {{0}} --data {{1}} --preset sm {every} --steps 40 {wild}", run, data)
        assert stop.value.code == 1
        message = capsys.readouterr().err.strip()
        assert "\n" not in message
        assert "training stopped at step" in message
        assert re.search(r"not finite in layer \d heads 0, 1 \(\d+ rows\)", message)
        assert (Path(message.split("last good checkpoint: ")[1]) / "state").is_dir()
        assert records(run, "train")[-1]["loss"] is None
        # Nothing that is not finite was saved.
        for checkpoint in (run / "checkpoints").iterdir():
            assert int(checkpoint.name) < records(run, "train")[-1]["step"]


@pytest.mark.slow
class TestProfile:
    def trace_events(self, run: Path) -> list[dict]:
        (trace,) = (run / "profile").rglob("*.trace.json.gz")
        return json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]

    def traced_steps(self, run: Path) -> list[int]:
        """Steps whose whole work on the host the trace holds."""
        named = [e["args"]["step_num"] for e in self.trace_events(run) if e.get("name") == "train"]
        return sorted(map(int, named))

    def test_chosen_steps_change_no_number(self, finished, data, tmp_path, capsys):
        run = tmp_path / "profiled"
        egattn(f"train {{0}} --data {{1}} {EREG} --profile 3 5", run, data)
        assert f"profile: {run / 'profile'}" in capsys.readouterr().out
        assert self.traced_steps(run) == [3, 4, 5]
        assert numbers(run) == numbers(finished)

    def test_resumed_within_the_steps(self, finished, data, tmp_path, capsys):
        run = tmp_path / "resumed"
        shutil.copytree(finished, run)
        for step in (6, 8):
            shutil.rmtree(run / "checkpoints" / str(step))
        egattn(f"train {{0}} --data {{1}} {EREG} --profile 3 5", run, data)
        assert self.traced_steps(run) == [5]
        egattn(f"train {{0}} --data {{1}} {EREG} --profile 3 5", run, data)
        assert "nothing to profile: the run resumes after step 8" in capsys.readouterr().out

    def test_training_that_fails_leaves_a_trace(self, data, tmp_path):
        run = tmp_path / "fails"
        wild = "--optimizer.learning-rate 1e30 --optimizer.warmup 0 --optimizer.clip 1e9"
        with pytest.raises(SystemExit):
            egattn(
                f"train {{0}} --data {{1}} --preset sm {TRAIN} --steps 40 {wild} --profile 1 40",
                run,
                data,
            )
        steps = self.traced_steps(run)
        assert steps == list(range(1, len(steps) + 1))


class TestEvaluate:
    def test_repeats_the_last_evaluation(self, finished, capsys):
        egattn("evaluate {0} --json", finished)
        values = json.loads(capsys.readouterr().out)
        last = records(finished, "validation")[-1]
        for name in ("loss", "perplexity", "bits_per_byte", "windows"):
            assert values[name] == pytest.approx(last[name], rel=1e-6)
        assert values["step"] == 8
        assert sum(values["range_shares"]) == pytest.approx(1)
        assert np.shape(values["row_quantiles"]) == (3, 2, 2)

    def test_text_of_an_older_checkpoint(self, finished, capsys):
        egattn("evaluate {0} --step 4 --windows 16", finished)
        text = capsys.readouterr().out
        assert "step 4, 16 validation windows" in text
        assert "perplexity" in text

    def test_loss_equals_an_independent_count(self, finished, data):
        """Every validation window once: mean nats and bits per byte from the logits themselves."""
        import jax
        import jax.numpy as jnp

        from egattn import Decoder
        from egattn.data import evaluation_batches, load_manifest, token_bytes
        from egattn.sharding import make_mesh
        from egattn.train.evaluate import load_state

        config = TrainConfig.read(finished)
        state = load_state(config, make_mesh(devices=jax.devices()[:1]), 8)
        manifest = load_manifest(data)
        count = manifest.splits["validation"].windows
        ((tokens, _),) = evaluation_batches(data, manifest, batch_size=count, context_length=32)
        apply = jax.jit(Decoder(config.model).apply)
        output: Any = apply({"params": state.params}, jnp.asarray(tokens[:, :-1]))
        log_p = jax.nn.log_softmax(output.logits)
        chosen = np.take_along_axis(np.asarray(log_p, np.float64), tokens[:, 1:, None], -1)
        last = records(finished, "validation")[-1]
        assert last["loss"] == pytest.approx(-chosen.mean(), rel=1e-5)
        total_bytes = token_bytes(data)[tokens[:, 1:]].sum()
        bits = -chosen.sum() / np.log(2) / total_bytes
        assert last["bits_per_byte"] == pytest.approx(bits, rel=1e-5)


BAD = [
    (
        "train {new} --data {data} --profile 3 2",
        "profile needs its first and last step within 1 to 1000, got 3 and 2",
    ),
    ("train {new} --data {data} --steps 9 --profile 8 10", "within 1 to 9, got 8 and 10"),
    ("train --data {data}", "Missing from egattn train: PATH"),
    ("trian", "unknown command 'trian'; did you mean 'train'"),
    (
        "train {new} --data {data} --presset sm",
        "unknown argument '--presset'; did you mean '--preset'",
    ),
    ("train {new} --data {data} --model.num-head 2", "did you mean '--model.num-heads'"),
    ("train {new} --data {data} --preset sm_scfufn", "did you mean 'sm_scfuffn'"),
    (
        "train {new} --data {data} --model.num-heads 5",
        "num_heads must divide embed_dim, got 5 and 768",
    ),
    (
        "train {new} --data {data} --model.num-heads x",
        "--model.num-heads: invalid literal for int()",
    ),
    ("train {new} --data {data} --model.context-length 64", "longer than the windows"),
    ("train {new} --data {data} --model.vocab-size 999", "vocab_size must be that of the data's"),
    (
        "train {new} --data {data} --model.temperature 0",
        "temperature must be > 0 and finite, got 0.0",
    ),
    ("train {new} --data {data} --mesh fsdp=3", "mesh 'fsdp=3' has 3 devices, expected 8"),
    ("train {new} --data {data} --batch-size 12", "divisible by replica x fsdp = 8, got 12"),
    ("train {new} --data {data} --batch-size 9 --accumulation 2", "divisible by accumulation"),
    ("train {new} --data {data} --penalty.weight 1", "a penalty needs the model's threshold"),
    ("train {new} --data {data} --optimizer.learning-rate -1", "learning_rate must be > 0"),
    ("train {new} --data {data} --steps 0", "steps must lie within 1 to 2147483647, got 0"),
    ("train {new} --data {new}/nothing", "run `egattn prepare"),
    ("train {data} --data {data}", "exists and is not a run directory"),
    ("train {file}/run --data {data}", "Not a directory"),
    (
        "train {finished} --data {data} --preset sm",
        "holds another run: steps: 8 != 1000; preset: ereg_sm_t_scfuffn",
    ),
    ("train {finished} --data {damaged}", "run `egattn prepare"),
    ("prepare {new} --source {new}/nothing", "existing path as source"),
    ("evaluate {new}", "is not a run directory"),
    ("evaluate {finished} --step 3", "no checkpoint 3 in"),
    ("evaluate {finished} --step 0", "no checkpoint 0 in"),
    ("report {new}", ""),
]


@pytest.mark.parametrize(("command", "message"), BAD, ids=[command for command, _ in BAD])
def test_bad_input_is_one_line_and_status_two(
    command, message, data, finished, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("not a directory")
    paths = {"new": "new", "file": "file", "data": data, "finished": finished, "damaged": "damaged"}
    with pytest.raises(SystemExit) as stop:
        main(command.format(**paths).split())
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    assert error.startswith("egattn ")
    assert message in error
    # Nothing was written.
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_damaged_shard_stops_training(data, tmp_path, capsys):
    damaged = tmp_path / "damaged"
    shutil.copytree(data, damaged)
    shard = next(damaged.glob("train-*.array_record"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        egattn(f"train {{0}} --data {{1}} {EREG}", tmp_path / "run", damaged)
    assert stop.value.code == 2
    assert shard.name in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_resume_on_other_data_is_refused(finished, tmp_path, capsys):
    other = tmp_path / "other"
    prepare = "prepare {0} --max-bytes 200000 --vocab-size 512 --context-length 32"
    egattn(prepare + " --validation-fraction 0.2", other)
    with pytest.raises(SystemExit):
        egattn(f"train {{0}} --data {{1}} {EREG}", finished, other)
    assert "data_sha256" in capsys.readouterr().err


def test_strange_config_is_named(finished, tmp_path, capsys):
    values = json.loads((finished / "config.json").read_text())
    values["model"]["num_headz"] = values["model"].pop("num_heads")
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(SystemExit) as stop:
        egattn("evaluate {0}", tmp_path)
    assert stop.value.code == 2
    expected = "config.json: model: unknown key 'num_headz'; did you mean 'num_heads'"
    assert expected in capsys.readouterr().err


def test_report_of_a_real_run(finished, tmp_path, capsys):
    egattn("report {0} --out {1}", finished, tmp_path / "report")
    text = capsys.readouterr().out
    assert f"report: {tmp_path / 'report' / 'index.html'}" in text
    loss = records(finished, "validation")[-1]["loss"]
    assert f"{loss:.4f}" in text


@pytest.mark.parametrize("command", ["", "--help", "train --help", "prepare --help"])
def test_help(command, capsys):
    with contextlib.suppress(SystemExit):
        main(command.split())
    assert "usage: egattn" in capsys.readouterr().out


def events(path: Path):
    """Events of a TensorBoard file: length, checksum, message, checksum."""
    content, position = path.read_bytes(), 0
    while position < len(content):
        (length,) = struct.unpack_from("<Q", content, position)
        # Ignored: protobuf makes its classes at run time.
        yield event_pb2.Event.FromString(  # pyright: ignore[reportAttributeAccessIssue] - generated
            content[position + 12 : position + 12 + length]
        )
        position += 16 + length

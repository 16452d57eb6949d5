"""`egattn convert` and `egattn train --init-from`, end to end on real Python source."""

import json
import math
import shutil
from pathlib import Path

import pytest

from egattn.cli import main
from tests.hugging_face import CONFIG, gpt2, read, write
from tests.training import egattn, numbers, records

TRAIN = "--batch-size 8 --log-every 1 --evaluate-every 4 --checkpoint-every 2 --steps 6"
PRESET = "--preset ereg_sm_t_scfuffn --optimizer.learning-rate 1e-4"


@pytest.fixture(scope="module")
def source(data, tmp_path_factory) -> Path:
    config = CONFIG | {"vocab_size": 512, "n_positions": 64}
    source = write(tmp_path_factory.mktemp("hf") / "gpt2", config, gpt2(config))
    shutil.copy(data / "tokenizer.json", source)
    return source


@pytest.fixture(scope="module")
def converted(source) -> Path:
    egattn("convert {0} {1}", source, source.parent / "converted")
    return source.parent / "converted"


@pytest.fixture(scope="module")
def run(converted, data) -> Path:
    run = converted.parent / "run"
    egattn(f"train {{0}} --data {{1}} --init-from {{2}} {PRESET} {TRAIN}", run, data, converted)
    return run


def test_what_it_starts_from_is_on_record(run, converted):
    config = json.loads((run / "config.json").read_text())
    assert config["init_from"] == str(converted)
    assert len(config["init_sha256"]) == 64
    assert config["model"]["num_layers"] == 3
    assert config["model"]["biases"] == ["q", "k", "v", "o", "ffn"]
    assert config["model"]["context_length"] == 32
    (start,) = records(run, "start")
    remarks = start["initialised"]["taken"]
    assert remarks["position_embedding.embedding"] == "the first 32 of 64 positions"
    assert "layers.2.feed_forward.up.kernel" in start["initialised"]["dropped"]
    assert "layers.2.feed_forward.fused.kernel" in start["initialised"]["new"]
    assert "feed_forward: mlp -> fused" in start["initialised"]["changed"]


def test_the_same_command_goes_on(run, converted, data, capsys):
    """From a checkpoint, and from the start if none was saved yet."""
    before = numbers(run)
    for keep in ("4", None):
        again = run.with_name(f"again_{keep}")
        shutil.copytree(run, again)
        for checkpoint in (again / "checkpoints").iterdir():
            if checkpoint.name != keep:
                shutil.rmtree(checkpoint)
        if keep is None:
            (again / "metrics.jsonl").unlink()
        capsys.readouterr()
        command = f"train {{0}} --data {{1}} --init-from {{2}} {PRESET} {TRAIN}"
        egattn(command, again, data, converted)
        out = capsys.readouterr().out
        said = ("parameters taken", "feed_forward: mlp -> fused", "layers 0-2: attention.q.kernel")
        assert [words in out for words in said] == [keep is None] * len(said)
        assert numbers(again) == before


def test_replays_the_first_step(run, capsys):
    again = run.with_name("replayed")
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / "2", ignore_errors=True)
    capsys.readouterr()
    egattn("replay {0} --step 1 --json", again)
    values = json.loads(capsys.readouterr().out)
    assert (values["checkpoint"], values["difference"]) == (0, 0)


def test_a_converted_run_is_replayed_with_its_own_weights(data, capsys, tmp_path):
    config = CONFIG | {"vocab_size": 512, "n_positions": 32}
    egattn("convert {0} {1}", write(tmp_path / "gpt2", config, gpt2(config)), tmp_path / "run")
    capsys.readouterr()
    egattn("replay {0} --step 1 --json --data {1}", tmp_path / "run", data)
    values = json.loads(capsys.readouterr().out)
    assert values["checkpoint"] == 0
    # A fresh network's loss is log V to .05; this one's weights are large.
    assert values["loss"] > math.log(512) + 0.2


def refused(capsys, *args) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in args])
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


def test_another_origin_is_another_run(run, source, data, capsys, tmp_path):
    egattn("convert {0} {1}", source, tmp_path / "other")
    options = [*PRESET.split(), *TRAIN.split()]
    line = refused(
        capsys, "train", run, "--data", data, "--init-from", tmp_path / "other", *options
    )
    assert "holds another run: init_sha256" in line


def test_what_does_not_fit_makes_nothing(converted, data, capsys, tmp_path):
    args = ["train", tmp_path / "run", "--data", data, "--init-from", converted]
    assert "num_layers must be that of" in refused(capsys, *args, "--model.num-layers", 2)
    assert "hold" not in refused(capsys, *args[:-1], tmp_path / "nothing")
    assert not (tmp_path / "run").exists()


def test_a_converted_run_is_not_trained_itself(converted, data, capsys):
    line = refused(capsys, "train", converted, "--data", data)
    assert "holds another run" in line


def test_converts_back(converted, source, capsys, tmp_path):
    capsys.readouterr()
    egattn("convert {0} {1}", converted, tmp_path / "back")
    assert "GPT2LMHeadModel" in capsys.readouterr().out
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes()
    assert read(source)[0]["model_type"] == "gpt2"
    assert "exists" in refused(capsys, "convert", converted, tmp_path / "back")

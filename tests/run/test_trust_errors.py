"""What a user can cause is one line and status 2, and leaves nothing behind."""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest

from egattn.cli import main
from egattn.data import load_manifest
from egattn.model import DecoderConfig
from egattn.optimizer import OptimizerConfig
from egattn.run import RunConfig, RunDirectory
from egattn.run.lines import read_lines
from egattn.run.processes import DistributedConfig
from egattn.train import EvaluateConfig, PenaltyConfig, TrainConfig
from tests.training import EREG, egattn, numbers, refused, start

RUN = {"run": Path("run")}
KINDS: dict[type, Any] = {
    OptimizerConfig: {},
    PenaltyConfig: {},
    DecoderConfig: {},
    DistributedConfig: {"coordinator": "host:1", "num_processes": 2, "process_id": 0},
    RunConfig: RUN,
    TrainConfig: RUN,
    EvaluateConfig: RUN,
}
# Fields for which these mean something, and what.
MEANT = {
    ("clip", math.inf): "none",
    ("clip", 1e39): "as good as none",
    ("initial_slope", -5.0): "a slope",
    ("step", -5): "a checkpoint that is not there",
    ("step", 10**20): "a checkpoint that is not there",
    ("windows", 10**20): "all",
}


def strange_numbers() -> list:
    cases = []
    for kind in KINDS:
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            types = typing.get_args(hints[field.name]) or (hints[field.name],)
            floats = (math.nan, math.inf, -math.inf, 1e39, -5.0) if float in types else ()
            values = floats or ((-5, 10**20) if int in types else ())
            for value in values:
                if (field.name, value) not in MEANT:
                    cases.append((kind, field.name, value))
    return cases


@pytest.mark.parametrize(
    ("kind", "name", "value"), strange_numbers(), ids=lambda x: getattr(x, "__name__", str(x))
)
def test_numbers_that_make_no_sense(kind, name, value):
    with pytest.raises(ValueError, match=rf"{name}.*, got .*"):
        kind(**{**KINDS[kind], name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("b1", 1.5), ("b1", 1 - 1e-9), ("b2", 1.0), ("eps", 0.0), ("eps", 1e-50), ("clip", 0.0)],
)
def test_numbers_of_the_optimiser(name, value):
    with pytest.raises(ValueError, match=rf"{name} must .*, got {value}"):
        OptimizerConfig(**{name: value})


# Every path of every command.
PATHS = [
    "prepare {address}",
    "prepare new --source {address}",
    "prepare new --tokenizer {address}",
    "train {address} --data {data}",
    "train new --data {address}",
    "train new --data {data} --init-from {address}",
    "evaluate {address}",
    "evaluate {run} --data {address}",
    "replay {address} --step 1",
    "replay {run} --step 1 --data {address}",
    "report {address}",
    "report {run} --out {address}",
    "generate {address} hello",
    "generate {run} hello --data {address}",
    "convert {address} new",
    "convert {run} {address}",
    "convert {run} new --data {address}",
    "inspect {address}",
    "private export {address} new",
    "private export {run} {address}",
    "private export {run} new --data {address}",
    "private parts {address}",
]


@pytest.mark.parametrize("address", ["gs://bucket/x", "s3://bucket/x", "file:///data/x"])
@pytest.mark.parametrize("command", PATHS)
def test_addresses_are_no_paths(command, address, data, finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = command.format(address=address, data=data, run=finished).split()
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"expected a path on this machine, got {address.replace(':///', '://')}" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("read", [RunDirectory, load_manifest, TrainConfig.read])
def test_nor_are_they_for_programs(read):
    with pytest.raises(ValueError, match="expected a path on this machine, got gs://bucket/x"):
        read(Path("gs://bucket/x"))


READERS = ["evaluate {0}", "generate {0} hello", "replay {0} --step 1", "convert {0} {1}"]


@pytest.mark.parametrize("command", [*READERS, "private export {0} {1}", f"train {{0}} {EREG}"])
@pytest.mark.parametrize("text", ["", "\0" * 9, "[" * 100_000, "{}", '{"model": 1}'])
def test_a_config_that_is_none(finished, data, tmp_path, capsys, command, text):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "config.json").write_text(text)
    data_option = f" --data {data}" if "train" in command else ""
    error = refused(capsys, command + data_option, run, tmp_path / "out")
    assert f"{run}/config.json" in error or f"expected config.json in {run}" in error


def test_a_config_of_another_version(finished, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    config = json.loads((finished / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(config | {"flavour": "sweet"}))
    error = refused(capsys, "evaluate {0}", tmp_path / "run")
    assert "config.json: unknown key 'flavour'" in error
    del config["seed"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert "config.json: missing key 'seed'" in refused(capsys, "evaluate {0}", tmp_path / "run")


@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json", "token_bytes.npy"])
@pytest.mark.parametrize("text", ["", "[" * 100_000, None])
def test_data_that_are_none(finished, data, tmp_path, capsys, name, text):
    damaged = tmp_path / "data"
    shutil.copytree(data, damaged)
    (damaged / name).unlink()
    if text is not None:
        (damaged / name).write_text(text)
    error = refused(capsys, "evaluate {0} --data {1}", finished, damaged)
    assert f"{name} in {damaged}" in error or str(damaged / name) in error


def test_a_directory_in_the_place_of_the_records(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    assert f"Is a directory: '{run}/metrics.jsonl'" in refused(capsys, "replay {0} --step 8", run)


def test_more_steps_than_the_run_has(finished, data, capsys):
    command = f"train {{0}} --data {{1}} {EREG.replace('--steps 8', '--steps 16')}"
    error = refused(capsys, command, finished, data)
    assert "holds another run: steps: 8 != 16" in error
    assert f"use another directory and --init-from {finished}" in error


@pytest.mark.slow
def test_parts_of_a_step_change_no_number_and_may_change(finished, data, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "checkpoints" / "8")
    # Four devices share a part of four sequences.
    options = f"{EREG} --accumulation 2 --mesh replica=4,tensor=2"
    egattn(f"train {{0}} --data {{1}} {options}", run, data)
    assert "resumed at step 6" in capsys.readouterr().out
    for mine, other in zip(numbers(run), numbers(finished), strict=True):
        assert mine == pytest.approx(other, rel=1e-5)


def test_devices_that_are_not_here(finished):
    environment = {**os.environ, "JAX_PLATFORMS": "tpv"}
    command = [sys.executable, "-c", "from egattn.cli import main; main()", "evaluate", finished]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("egattn evaluate: Unable to initialize backend 'tpv'")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_everything_while_a_run_trains_that_keeps_one_checkpoint(data, tmp_path):
    run = tmp_path / "run"
    options = EREG.replace("--steps 8", "--steps 100000").replace("--evaluate-every 4", "")
    command = f"train {{0}} --data {{1}} {options} --keep-checkpoints 1 --checkpoint-every 5"
    with start(command, run, data) as process:
        try:
            while not (run / "checkpoints" / "5" / "checksums.json").exists():
                assert process.poll() is None
            for attempt in range(4):
                egattn("evaluate {0} --windows 8", run)
                egattn("generate {0} hello --max-new-tokens 1", run)
                egattn("inspect {0}", run)
                egattn("convert {0} {1}", run, tmp_path / f"converted{attempt}")
                last = max(r.get("step", 0) for r in read_lines(run / "metrics.jsonl"))
                egattn(f"replay {{0}} --step {last}", run)
            egattn("report {0} --out {1}", run, tmp_path / "report")
        finally:
            process.kill()
            process.communicate()

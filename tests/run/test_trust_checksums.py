"""Recorded checksums are compared wherever a run meets data, a tokenizer or another process."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax
import pytest

from egattn.run import processes
from egattn.train import TrainConfig
from tests.run.test_distributed import finish, free_port
from tests.training import EREG, egattn, refused, start

SIZES = "--max-bytes 300000 --vocab-size 512 --context-length 32"


@pytest.fixture(scope="module")
def others(data, tmp_path_factory) -> dict[str, Path]:
    """Prepared with the same tokenizer but another share, and with another tokenizer."""
    here = tmp_path_factory.mktemp("others")
    same = "prepare {0} --tokenizer {1} --validation-fraction 0.4 " + SIZES
    egattn(same, here / "share", data / "tokenizer.json")
    egattn(f"prepare {{0}} {SIZES.replace('300000', '200000')}", here / "tokenizer")
    return {path.name: path for path in here.iterdir()}


@pytest.fixture
def moved(finished, tmp_path):
    """Copies the run, its data said to be elsewhere."""

    def copy(data: Path | str) -> Path:
        run = tmp_path / "run"
        shutil.copytree(finished, run)
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps(config | {"data": str(data)}))
        return run

    return copy


MEETING = ["evaluate {0}", "replay {0} --step 8", "private export {0} {1}"]


class TestOtherData:
    @pytest.mark.parametrize("command", MEETING)
    def test_in_the_place_of_the_run_s(self, moved, others, tmp_path, capsys, command):
        run = moved(others["share"])
        error = refused(capsys, command, run, tmp_path / "out")
        assert f"{others['share']} holds other data than {run} was trained on: the sha256" in error
        assert TrainConfig.read(run).data_sha256 in error
        assert not (tmp_path / "out").exists()

    def test_named_by_an_option(self, finished, others, tmp_path, capsys):
        """Evaluation takes them and says so; a step cannot be repeated on them."""
        egattn("evaluate {0} --windows 8 --data {1}", finished, others["share"])
        captured = capsys.readouterr()
        assert "what it was trained on may be among its validation documents" in captured.err
        assert "8 validation windows" in captured.out
        error = refused(capsys, "replay {0} --step 8 --data {1}", finished, others["share"])
        assert "holds other data than" in error

    def test_the_same_data_elsewhere(self, moved, data, tmp_path, capsys):
        run = moved("gone")
        shutil.copytree(data, tmp_path / "copy")
        egattn("evaluate {0} --windows 8 --data {1}", run, tmp_path / "copy")
        assert capsys.readouterr().err == ""

    def test_to_train_on(self, finished, others, capsys):
        error = refused(capsys, f"train {{0}} --data {{1}} {EREG}", finished, others["share"])
        assert "holds another run: data_sha256: " in error

    @pytest.mark.parametrize("command", [*MEETING, "generate {0} hello"])
    def test_none_where_they_were(self, moved, tmp_path, monkeypatch, capsys, command):
        run = moved("data/python")
        monkeypatch.chdir(tmp_path)
        error = refused(capsys, command, run, tmp_path / "out")
        assert "data/python" in error
        assert f"({tmp_path})" in error
        assert "--data says where" in error


class TestOtherTokenizer:
    @pytest.mark.parametrize(
        "command",
        [
            "generate {0} hello --data {1}",
            "evaluate {0} --data {1}",
            "replay {0} --step 8 --data {1}",
            "private export {0} {2} --data {1}",
        ],
    )
    def test_than_the_run_s(self, finished, others, tmp_path, capsys, command):
        error = refused(capsys, command, finished, others["tokenizer"], tmp_path / "out")
        assert re.search(r"was trained with another tokenizer than \S+ ?", error)

    def test_than_the_origin_s(self, finished, others, tmp_path, capsys):
        options = f"{EREG} --init-from {finished}"
        command = f"train {{0}} --data {{1}} {options}"
        error = refused(capsys, command, tmp_path / "new", others["tokenizer"])
        assert "tokenizer" in error
        assert not (tmp_path / "new").exists()

    def test_that_was_changed(self, finished, data, moved, tmp_path, capsys):
        damaged = tmp_path / "damaged"
        shutil.copytree(data, damaged)
        tokenizer = json.loads((damaged / "tokenizer.json").read_text())
        first, second, *_ = tokenizer["model"]["merges"]
        tokenizer["model"]["merges"][:2] = [second, first]
        (damaged / "tokenizer.json").write_text(json.dumps(tokenizer))
        assert "another tokenizer" in refused(capsys, "generate {0} hello", moved(damaged))

    def test_of_a_run_that_has_none_on_record(self, moved, data, others, capsys):
        """As one converted without a tokenizer: what it cannot read is refused all the same."""
        run = moved(data)
        config = json.loads((run / "config.json").read_text())
        config["tokenizer_sha256"] = config["data_sha256"] = ""
        (run / "config.json").write_text(json.dumps(config))
        egattn("generate {0} hello --max-new-tokens 1", run)
        large = others["tokenizer"].parent / "large"
        egattn("prepare {0} --max-bytes 200000 --vocab-size 600 --context-length 32", large)
        error = refused(capsys, "generate {0} hello --data {1}", run, large)
        assert "expected a tokenizer of at most 512 tokens" in error


class TestOtherProcess:
    @dataclasses.dataclass(frozen=True)
    class Config:
        rate: float = 1.0
        seed: int = 0
        here: str = dataclasses.field(default="", metadata=processes.LOCAL)

    def job(self, monkeypatch, other: "TestOtherProcess.Config | dict[str, str]") -> None:
        """Two processes, of which the other one tells what it is made of."""
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        gather = processes._gather

        def both(mine):
            theirs = other
            if not isinstance(other, dict):
                theirs = {**mine, "rate": str(other.rate), "seed": str(other.seed)}
            return [mine, theirs]

        assert gather is not None
        monkeypatch.setattr(processes, "_gather", both)

    def agree(self) -> "TestOtherProcess.Config":
        return processes.agreed(lambda: self.Config(here="a"), lambda made: made)

    def test_each_difference_is_named(self, monkeypatch):
        self.job(monkeypatch, self.Config(2.0, 1, "b"))
        match = r"the processes differ: rate: 1.0 \(process 0\), 2.0 \(process 1\); seed: 0 .* 1 "
        with pytest.raises(ValueError, match=match):
            self.agree()

    def test_what_is_local_may_differ(self, monkeypatch):
        self.job(monkeypatch, self.Config(here="b"))
        assert self.agree().here == "a"

    def test_the_failure_of_one_ends_all(self, monkeypatch):
        self.job(monkeypatch, {"error": "no data here"})
        with pytest.raises(ValueError, match="another process failed: process 1: no data here"):
            self.agree()

    @pytest.mark.slow
    def test_a_job_of_two_that_differ_in_everything(self, data, others, tmp_path):
        job = f"--distributed.coordinator localhost:{free_port()} --distributed.num-processes 2"
        differences = {
            "steps": 9,
            "log_every": 2,
            "evaluate_every": 2,
            "seed": 1,
            "optimizer.learning_rate": 0.002,
            "mesh": "fsdp=8",
        }
        options = [f"--{n.replace('_', '-')} {x}" for n, x in differences.items()]
        commands = [
            f"train {{0}} --data {{1}} {EREG} {job} --distributed.process-id 0",
            f"train {{0}} --data {{2}} {EREG.replace('ereg_sm_t_scfuffn', 'sm_g')} {job} "
            f"--distributed.process-id 1 {' '.join(options)}",
        ]
        paths = tmp_path / "run", data, others["share"]
        statuses, outputs = finish([start(c, *paths, devices=4) for c in commands])
        assert statuses == [2, 2], outputs
        for output in outputs:
            line = output.splitlines()[-1]
            assert line.startswith("egattn train: the processes differ: ")
            for name in (*differences, "data_sha256", "preset", "model.activation"):
                assert f"{name}: " in line
        assert not (tmp_path / "run").exists()

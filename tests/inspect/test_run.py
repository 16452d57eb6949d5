"""`egattn inspect` against what NumPy, the files and the other commands say."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from egattn.inspect import InspectConfig, inspect
from egattn.run.integrity import seal
from egattn.train.config import TrainConfig
from egattn.train.evaluate import load_state
from egattn.train.variables import read_variables
from tests.converted_runs import make_run, one_device, to_run
from tests.hugging_face import CONFIG, gpt2, write
from tests.inspect.inspecting import assert_fails, flip, run_of, text_of
from tests.training import records


def arrays(run: Path, step: int) -> dict[str, np.ndarray]:
    """All that a checkpoint holds, as every other command restores it, by path."""
    state = load_state(TrainConfig.read(run), one_device(), step)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    simple = jax.tree_util.keystr
    return {simple(path, simple=True, separator="/"): np.asarray(x) for path, x in leaves}


def rows(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in values["parameters"]["table"]}


def garble(run: Path, step: int, values: dict[str, np.ndarray]) -> int:
    """Overwrites the values of arrays where a checkpoint's files hold them; counts the places."""
    found = 0
    files = [p for p in (run / "checkpoints" / str(step) / "state").rglob("d/*") if p.is_file()]
    for file in files:
        content = file.read_bytes()
        for value in values.values():
            # Small ones lie in the index, which has checksums of its own.
            rows = range(0, value.shape[-2], 8) if value.ndim > 1 else ()
            for piece in (value, *(value[..., i : i + 8, :] for i in rows)):
                raw = piece.tobytes()
                if piece.size >= 64 and np.ptp(piece) > 0 and raw in content:
                    content, found = content.replace(raw, b"\xff" * len(raw)), found + 1
        file.write_bytes(content)
    return found


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


class TestRun:
    @pytest.mark.parametrize("piece", [2**20, 1000])
    def test_parameters_against_float64(self, finished, capsys, monkeypatch, piece):
        monkeypatch.setattr("egattn.inspect.parameters._PIECE", piece)
        values = run_of(capsys, "{0}", finished)
        saved = arrays(finished, 8)
        expected = {k.removeprefix("params/"): v for k, v in saved.items() if "params/" in k[:7]}
        assert rows(values).keys() == expected.keys()
        for name, row in rows(values).items():
            array = expected[name].astype(np.float64)
            assert row["shape"] == list(array.shape)
            assert row["dtype"] == "float32"
            assert row["elements"] == array.size
            assert row["norm"] == pytest.approx(np.linalg.norm(array.ravel()), rel=1e-12)
            assert row["rms"] == pytest.approx(np.sqrt((array**2).mean()), rel=1e-12)
            assert row["nonfinite"] == 0
        assert values["parameters"]["count"] == records(finished, "start")[-1]["parameters"]
        assert values["parameters"]["padding"] == 0

    def test_learned_is_what_training_logged(self, finished, capsys):
        learned = run_of(capsys, "{0}", finished)["learned"]
        with np.load(finished / "learned.npz") as logged:
            assert (
                learned.keys()
                == set(logged.files)
                == {
                    "threshold",
                    "temperature",
                    "alpha",
                    "beta",
                }
            )
            for name in logged.files:
                for layer, entry in enumerate(learned[name]):
                    numbers = logged[name][layer].astype(np.float64)
                    assert entry == {
                        "layer": layer,
                        "min": pytest.approx(numbers.min()),
                        "median": pytest.approx(np.median(numbers)),
                        "max": pytest.approx(numbers.max()),
                    }

    def test_facts(self, finished, data, capsys):
        values = run_of(capsys, "{0}", finished)
        assert values["preset"] == "ereg_sm_t_scfuffn"
        assert (values["step"], values["steps"], values["tokens_seen"]) == (8, 8, 8 * 8 * 32)
        assert values["checkpoints"] == {
            "steps": [4, 6, 8],
            "newest": 8,
            "checked": True,
            "problems": [],
        }
        assert values["penalty"]["weight"] == 0.16
        config = json.loads((finished / "config.json").read_text())
        assert values["model"] == config["model"]
        assert values["data"] == {
            "path": str(data),
            "sha256": config["data_sha256"],
            "state": "same",
            "verified": False,
        }
        assert values["initialised_from"] == {"kind": "seed", "seed": 0}

    def test_evaluation_is_the_last_one_logged(self, finished, capsys):
        found = run_of(capsys, "{0}", finished)["evaluation"]
        last = records(finished, "validation")[-1]
        for name in ("step", "loss", "perplexity", "bits_per_byte", "windows", "head_entropy"):
            assert found[name] == last[name]
        heads = np.array(last["head_entropy"])
        quarters = np.minimum(4 * heads / heads.max(), 3).astype(int)
        assert found["range_counts"] == [(quarters == i).sum() for i in range(4)]
        assert found["max_entropy"] == pytest.approx(math.log(32))
        assert found["uniform_entropy"] == pytest.approx(np.log(np.arange(1, 33)).mean())

    def test_text_says_it_within_100_columns(self, finished, capsys):
        text = text_of(capsys, "{0}", finished)
        assert max(map(len, re.sub(r"(?m)^.*/.*/.*: .*$", "", text).splitlines())) <= 100
        for expected in (
            "a run of ereg_sm_t_scfuffn",
            "layers 0-1 fused, learned alpha and beta",
            "no norm in blocks, no norm before the head",
            "there, the same by manifest and sizes",
            "4, 6, 8; newest intact: 8",
            "step 8 of 8, 2,048 tokens seen, 27,912 parameters",
            "all numbers are finite",
            "ceiling log T = 3.466",
        ):
            assert expected in text
        assert re.search(r"blocks_0/attention/log_temperature +0-1 +2x2x32 +float32 +128 ", text)
        assert re.search(r"layer +temperature +alpha +beta +threshold", text)

    def test_an_earlier_step(self, finished, capsys):
        values = run_of(capsys, "{0} --step 4", finished)
        assert (values["step"], values["tokens_seen"]) == (4, 4 * 8 * 32)
        expected = np.linalg.norm(arrays(finished, 4)["params/token_embedding/embedding"])
        assert rows(values)["token_embedding/embedding"]["norm"] == pytest.approx(expected)

    def test_only_the_parameters_are_read(self, finished, monkeypatch):
        names = []
        deserialize = ocp.type_handlers.NumpyHandler.deserialize

        async def spy(self, infos, args=None):
            names.extend(info.name for info in infos)
            return await deserialize(self, infos, args)

        monkeypatch.setattr(ocp.type_handlers.NumpyHandler, "deserialize", spy)
        monkeypatch.setattr(
            ocp.type_handlers.ArrayHandler, "deserialize", lambda *_: pytest.fail("on a device")
        )
        values = inspect(InspectConfig(finished))
        assert sorted(names) == sorted("params." + x.replace("/", ".") for x in rows(values))

    def test_run_without_metrics_and_learned(self, tmp_path, capsys):
        make_run(tmp_path / "run", "sm_snorm")
        values = run_of(capsys, "{0}", tmp_path / "run")
        assert values["evaluation"] is None
        assert values["learned"] == {}
        assert values["data"]["state"] == "missing"
        assert "no evaluation logged" in text_of(capsys, "{0}", tmp_path / "run")
        # The power iteration's vectors are listed and are no parameters.
        left = rows(values)["spectral/blocks_0/feed_forward/down/left"]
        assert (left["shape"], left["layers"]) == ([2, 64], "0-1")
        saved = arrays(tmp_path / "run", 1)
        sizes = [x.size for name, x in saved.items() if name.startswith("params/")]
        assert values["parameters"] == {
            "count": sum(sizes),
            "padding": 84 * 16,
            "table": values["parameters"]["table"],
        }

    @pytest.mark.parametrize(
        ("scope", "kinds", "layers"),
        [
            ("model", ("mlp", "mlp"), [None]),
            ("layer", ("none", "mlp"), [1]),
            ("feature", ("mlp", "none"), [0]),
        ],
    )
    def test_slopes_stand_with_their_layers(self, tmp_path, capsys, scope, kinds, layers):
        fields: dict[str, Any] = {"slope_scope": scope, "feed_forward": kinds, "ffn_scaling": True}
        make_run(tmp_path / "run", "sm_r", activation="leaky_relu", **fields)
        learned = run_of(capsys, "{0}", tmp_path / "run")["learned"]
        assert [entry["layer"] for entry in learned["slope"]] == layers
        scaled = [layer for layer, kind in enumerate(kinds) if kind != "none"]
        assert [entry["layer"] for entry in learned["alpha"]] == scaled
        (slope,) = (
            x for k, x in arrays(tmp_path / "run", 1).items() if re.match("params.*slope", k)
        )
        assert learned["slope"][0]["max"] == pytest.approx(slope.max())

    def test_numbers_that_are_not_finite(self, tmp_path, capsys, monkeypatch):

        make_run(tmp_path / "run", "sm_t_scfuffn")
        read = read_variables

        def damaged(checkpoint: Path):
            variables = read(checkpoint)
            variables["params"]["token_embedding"]["embedding"][3, :2] = np.nan, np.inf
            variables["params"]["blocks_0"]["alpha"][1] = np.inf
            return variables

        monkeypatch.setattr("egattn.inspect.run.read_variables", damaged)
        values = run_of(capsys, "{0}", tmp_path / "run")
        row = rows(values)["token_embedding/embedding"]
        assert (row["nonfinite"], row["norm"], row["rms"]) == (2, None, None)
        spread = {"min": None, "median": None, "max": None}
        assert values["learned"]["alpha"][1] == {"layer": 1, **spread}
        text = text_of(capsys, "{0}", tmp_path / "run")
        assert re.search(r"token_embedding/embedding .* not finite +not finite +2\n", text)
        assert "all numbers are finite" not in text

    def test_entropies_that_are_not_finite(self, copy, capsys):
        changed = []
        for line in (copy / "metrics.jsonl").read_text().splitlines():
            record = json.loads(line)
            if (record["kind"], record.get("step")) == ("validation", 8):
                record |= {"head_entropy": [[None, 0.1], [2.0, 1.9]], "loss": None}
            changed.append(json.dumps(record) + "\n")
        (copy / "metrics.jsonl").write_text("".join(changed))
        found = run_of(capsys, "{0}", copy)["evaluation"]
        assert found["head_entropy"] == [[None, 0.1], [2.0, 1.9]]
        assert (found["range_counts"], found["loss"]) == ([1, 0, 0, 2], None)
        text = text_of(capsys, "{0}", copy)
        assert "loss not finite nats/token" in text
        assert "1 0 0 2 of 4; 1 near collapse, 2 near overload" in text
        assert re.search(r"\n0 +0.100 +2.9 +0.100 +0.100 +1\n", text)

    def test_started_from(self, finished, data, tmp_path, capsys):
        source = write(tmp_path / "gpt2", CONFIG, gpt2(CONFIG))
        run = to_run(source)
        values = run_of(capsys, "{0} --step 0", run)
        assert values["initialised_from"] == {
            "kind": "hugging_face",
            "path": str(run / "huggingface"),
        }
        assert (values["step"], values["tokens_seen"]) == (0, 0)
        # Once more as the run of weights from elsewhere.
        config = json.loads((run / "config.json").read_text())
        config |= {"init_from": str(finished), "init_sha256": "ab" * 32, "data": str(data)}
        (run / "config.json").write_text(json.dumps(config))
        values = run_of(capsys, "{0}", run)
        expected = {"kind": "run", "path": str(finished), "sha256": "ab" * 32}
        assert values["initialised_from"] == expected
        assert values["data"]["state"] == "present"
        assert f"weights of {finished}, checkpoint's checksum abababababab" in text_of(
            capsys, "{0}", run
        )


class TestDataOfARun:
    def point_to(self, run: Path, data: Path, **fields: str) -> None:
        config = json.loads((run / "config.json").read_text()) | {"data": str(data)} | fields
        (run / "config.json").write_text(json.dumps(config))

    def test_moved(self, copy, tmp_path, capsys):
        self.point_to(copy, tmp_path / "gone")
        assert run_of(capsys, "{0} --shapes", copy)["data"]["state"] == "missing"
        assert f"{tmp_path / 'gone'}, checksum" in text_of(capsys, "{0} --shapes", copy)

    def test_other(self, copy, data, capsys):
        self.point_to(copy, data, data_sha256="0" * 64)
        assert run_of(capsys, "{0} --shapes", copy)["data"]["state"] == "other"

    def test_damaged_is_found_with_verify(self, copy, data, tmp_path, capsys):
        shutil.copytree(data, tmp_path / "damaged")
        shard = next((tmp_path / "damaged").glob("train-*"))
        flip(shard)
        self.point_to(copy, tmp_path / "damaged")
        assert run_of(capsys, "{0} --shapes", copy)["data"]["state"] == "same"
        found = run_of(capsys, "{0} --shapes --verify", copy)["data"]
        assert found["state"] == "damaged"
        assert shard.name in found["problem"]
        shard.write_bytes(b"")
        assert run_of(capsys, "{0} --shapes", copy)["data"]["state"] == "damaged"


class TestDamage:
    def test_damaged_newest_checkpoint(self, copy, capsys):
        flip(max((copy / "checkpoints" / "8").rglob("d/*"), key=lambda p: p.stat().st_size))
        values = run_of(capsys, "{0}", copy)
        assert (values["step"], values["checkpoints"]["newest"]) == (6, 6)
        assert values["checkpoints"]["steps"] == [4, 6, 8]
        (problem,) = values["checkpoints"]["problems"]
        assert re.match(r"checkpoint 8 is not intact: .* has another checksum", problem)
        assert problem in text_of(capsys, "{0}", copy)
        assert_fails(capsys, f"inspect {copy} --step 8", "has another checksum")

    def test_incomplete_newest_checkpoint(self, copy, capsys):
        (copy / "checkpoints" / "8" / "checksums.json").unlink()
        for words in ("{0}", "{0} --shapes"):
            assert run_of(capsys, words, copy)["step"] == 6

    def test_no_intact_checkpoint(self, copy, capsys):
        for step in (4, 6, 8):
            (copy / "checkpoints" / str(step) / "state" / "_METADATA").unlink()
        values = run_of(capsys, "{0}", copy)
        assert (values["step"], values["tokens_seen"]) == (None, None)
        assert "parameters" not in values
        assert values["evaluation"]["step"] == 8
        (problem,) = values["checkpoints"]["problems"]
        assert "is intact: checkpoint 8 is not intact: state/_METADATA is missing" in problem
        assert problem in text_of(capsys, "{0}", copy)

    @pytest.mark.parametrize("words", ["{0}", "{0} --shapes"])
    def test_no_checkpoint_at_all(self, copy, capsys, words):
        shutil.rmtree(copy / "checkpoints")
        assert run_of(capsys, words, copy)["checkpoints"]["steps"] == []
        assert re.search(r"checkpoints +none\n", text_of(capsys, words, copy))


class TestShapes:
    def test_reads_no_array(self, copy, capsys):
        expected = rows(run_of(capsys, "{0}", copy))
        # Which arrays lie in plain sight in files, not in the index, depends on how writers raced.
        assert garble(copy, 8, {k: v for k, v in arrays(copy, 8).items() if "params/" in k})
        values = run_of(capsys, "{0} --shapes", copy)
        assert (values["step"], values["checkpoints"]["newest"]) == (8, 8)
        assert not values["checkpoints"]["checked"]
        assert "learned" not in values
        names = ("name", "layers", "shape", "dtype", "elements")
        described = {k: {x: row[x] for x in names} for k, row in expected.items()}
        assert rows(values) == described
        text = text_of(capsys, "{0} --shapes", copy)
        assert "newest complete, checksums not compared: 8" in text
        assert "norm " not in text.split("elements")[1]
        # The values were indeed destroyed: with checksums that fit them, they are read.
        assert run_of(capsys, "{0}", copy)["step"] == 6
        (copy / "checkpoints" / "8" / "checksums.json").unlink()
        seal(copy / "checkpoints" / "8")
        assert any(row["nonfinite"] for row in rows(run_of(capsys, "{0}", copy)).values())

    def test_restores_nothing(self, finished, monkeypatch):
        monkeypatch.setattr(
            ocp.PyTreeCheckpointHandler, "restore", lambda *_, **__: pytest.fail("restored")
        )
        assert inspect(InspectConfig(finished, step=6, shapes=True))["step"] == 6


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        (None, "", "expected a directory, got "),
        ({}, "", "which has neither file"),
        ({"config.json": "{"}, "", "is not well-formed"),
        ({"config.json": "{}"}, "", "expected the model of a run or the model_type"),
        ({"config.json": '{"model": {}, "runs": 1}'}, "", "unknown key 'runs'; did you mean 'run'"),
        ({"config.json": '{"model_type": "gpt2"}'}, "--step 1", "step is not for"),
        ({"config.json": '{"model_type": "gpt2"}'}, "--verify", "verify is not for"),
        ({"manifest.json": "{}"}, "--shapes", "shapes is not for"),
        ({}, "--shape", "did you mean '--shapes'"),
    ],
)
def test_bad_input(tmp_path, capsys, files, options, message):
    if files is not None:
        (tmp_path / "dir").mkdir()
        for name, content in files.items():
            (tmp_path / "dir" / name).write_text(content)
    assert_fails(capsys, f"inspect {tmp_path / 'dir'} {options}", message)


def test_missing_step(finished, capsys):
    for option in ("", " --shapes"):
        assert_fails(capsys, f"inspect {finished} --step 5{option}", "no checkpoint 5 in")


def test_leaves_accelerators_alone(finished):
    """In a process that would otherwise look for one."""
    made = subprocess.run(
        [sys.executable, "-c", "from egattn.cli import main; main()", "inspect", str(finished)],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cuda"},
        check=False,
    )
    assert made.returncode == 0, made.stderr
    assert "newest intact: 8" in made.stdout
    assert made.stderr == ""

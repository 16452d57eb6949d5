"""The studies at toy size, and what the runner promises: nothing twice, nothing lost."""

import dataclasses
import json
import math
import pkgutil
import signal
from pathlib import Path

import pytest

from egattn import cli
from egattn.train import TrainConfig
from experiments.paper import run as runner
from experiments.paper import studies
from experiments.paper.result import append, read, results
from experiments.paper.run import Config, main
from experiments.paper.studies import STUDIES, every_training, load
from experiments.paper.study import Rates, Training
from experiments.paper.tables import PAGE, divergences, filled, table
from tests.processes import Process, spawn
from tests.synthetic_runs import entropies, make_run

ALL = every_training()
# What a line of results has at least.
LINE = {"run": "ä", "words": ["x"], "diverged": None, "runners_per_device": 1}


@pytest.fixture
def two_trainings(monkeypatch):
    """A study of two trainings."""
    trainings = (Training("sm_r", "sm_r"), Training("sm", "sm"))
    monkeypatch.setattr(runner, "load", lambda name: trainings)
    return trainings


def lines(root: Path) -> list[dict]:
    return list(map(json.loads, (root / "smoke" / "results.jsonl").read_text().splitlines()))


def start(study: str, root: Path, *options: str) -> Process:
    """A runner in a process of its own, with one device."""
    words = ["-m", "experiments.paper", "run", study, "--smoke", "--root", root, *options]
    return spawn(*words, cwd=Path(__file__).parents[2], env={"JAX_NUM_CPU_DEVICES": "1"})


@pytest.mark.slow
def test_every_study_runs_at_toy_size(tmp_path):
    with start("all", tmp_path) as process:
        output, _ = process.communicate(timeout=1200)
    assert process.returncode == 0, output
    distinct = len({tuple(training.smoke_words()) for training in ALL})
    assert f"{distinct} of {distinct} trainings are done" in output
    done = {tuple(line["words"]): line for line in lines(tmp_path)}
    assert len(done) == len(lines(tmp_path))
    for training in ALL:
        line = done[tuple(training.smoke_words())]
        assert line["diverged"] is None
        assert math.isclose(math.log(line["perplexity"]), line["loss"])
        assert line["curve"]["step"] == [1, 2, 3, 4]
        assert line["config"]["seed"] == 0
        assert line["runners_per_device"] == 1
        assert sum(line["ranges"]) == len(line["head_entropy"]) * 2
        assert not (tmp_path / "smoke" / "runs" / line["run"] / "checkpoints").exists()


def test_full_size_is_what_the_study_says(data):
    for training in ALL:
        config = cli._train_config(["run", "--data", str(data), *training.words()])
        model = config.model
        rates = training.rates or Rates("1e-3", "0.3")
        optimizer = config.optimizer
        assert (optimizer.learning_rate, optimizer.warmup, optimizer.b2) == tuple(map(float, rates))
        assert training.tokens <= config.steps * config.batch_size * model.context_length
        assert config.steps * config.batch_size * model.context_length < training.tokens + 512 * 128
        assert (model.num_layers, model.context_length, model.embed_dim, model.num_heads) == (
            *(training.num_layers, training.context_length),
            *(768, 12),
        )
        assert (config.batch_size, config.accumulation) == (65536 // training.context_length, 4)
        assert model.layer_kinds.count("none") == training.without_ffn
        assert (config.penalty.weight > 0) == (
            training.preset.startswith("ereg") or "penalty.weight" in training.options
        )


def test_all_studies_are_listed():
    assert {module.name for module in pkgutil.iter_modules(studies.__path__)} == set(STUDIES)


def test_a_name_stands_for_one_training():
    assert len({training.name for training in ALL}) == len(ALL)
    assert len({tuple(training.words()) for training in ALL if training.rates is None}) == len(
        [training for training in ALL if training.rates is None]
    )


def test_what_is_done_is_not_trained_again(tmp_path, two_trainings, monkeypatch, capsys):
    assert main(Config("two", match="sm-", smoke=True, root=tmp_path)) == 0
    assert [line["run"] for line in lines(tmp_path)] == [two_trainings[1].name]
    assert "1 of 1 trainings are done" in capsys.readouterr().out
    assert main(Config("two", smoke=True, root=tmp_path)) == 0
    first = lines(tmp_path)
    assert [line["run"] for line in first] == [
        training.name for training in reversed(two_trainings)
    ]
    monkeypatch.setattr(cli, "train", None)
    assert main(Config("two", smoke=True, root=tmp_path)) == 0
    assert lines(tmp_path) == first
    assert "2 of 2 trainings are done" in capsys.readouterr().out


def test_divergence_is_a_result(tmp_path, monkeypatch):
    huge = "--optimizer.learning-rate 1e30 --optimizer.warmup 0"
    trainings = (Training("sm_g", "sm_g", huge), Training("sm_r", "sm_r"))
    monkeypatch.setattr(runner, "load", lambda name: trainings)
    assert main(Config("two", smoke=True, root=tmp_path)) == 0
    bad, good = lines(tmp_path)
    assert bad["diverged"]["step"] == 2
    assert bad["tokens"] == 2 * 16 * 16
    assert len(bad["diverged"]["head_entropy_before"]) == 2
    assert "perplexity" not in bad
    assert good["diverged"] is None


def test_a_failure_does_not_keep_the_others_waiting(tmp_path, monkeypatch, capsys):
    trainings = (Training("broken", "sm_g", "--model.num-headz 2"), Training("sm_r", "sm_r"))
    monkeypatch.setattr(runner, "load", lambda name: trainings)
    assert main(Config("two", smoke=True, root=tmp_path)) == 1
    assert [line["run"] for line in lines(tmp_path)] == ["sm_r-20M-s0"]
    assert "failed: broken-20M-s0" in capsys.readouterr().err


def test_results_of_other_data_are_not_mixed(tmp_path, two_trainings):
    (tmp_path / "smoke").mkdir()
    (tmp_path / "smoke" / "results-data-128.json").write_text('{"sha256": "another"}')
    with pytest.raises(ValueError, match="results are of data another, got"):
        main(Config("two", smoke=True, root=tmp_path))
    assert not (tmp_path / "smoke" / "runs").exists()


def test_a_match_that_finds_nothing(tmp_path):
    with pytest.raises(ValueError, match="no training of nonlinearity has '-7M' in its name"):
        main(Config("nonlinearity", match="-7M", smoke=True, root=tmp_path))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"minutes": math.nan}, "minutes of at least 0, got nan"),
        ({"minutes": -1.0}, "minutes of at least 0, got -1"),
        ({"runners_per_device": 0}, "at least 1 runner per device, got 0"),
    ],
)
def test_numbers_that_make_no_sense(tmp_path, option, message):
    with pytest.raises(ValueError, match=message):
        main(Config("depth", smoke=True, root=tmp_path, **option))


def test_an_unknown_study(tmp_path):
    with pytest.raises(ValueError, match="no study 'depht'; there are rates, nonlinearity"):
        main(Config("depht", root=tmp_path))


def test_a_file_that_holds_no_results(tmp_path):
    path = tmp_path / "results.jsonl"
    for bad in ('{"run": "b", "words": []}', '{"step": 3}', "[]", "3"):
        path.write_text(json.dumps(LINE) + f"\n{bad}\n")
        with pytest.raises(ValueError, match=r"results.jsonl line 2: expected the result of"):
            results(path)


def test_a_torn_line_is_no_result(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(LINE, ensure_ascii=False) + '\n{"run": "b", "wo')
    assert list(results(path)) == [("x",)]
    append(path, LINE | {"run": "c", "words": ["y"]})
    assert list(results(path)) == [("x",), ("y",)]


def finished(path: Path, heads, loss: float) -> Path:
    """A run of 30 steps that was evaluated at its end, with all of a training's config."""
    run = make_run(path, heads, evaluated={30: loss})
    about = json.loads((run / "config.json").read_text())
    config = dataclasses.asdict(TrainConfig(run, steps=30)) | {"data": "data"}
    config["model"] |= about["model"]
    (run / "config.json").write_text(json.dumps(config, default=str))
    return run


def test_a_validation_that_is_not_finite_is_a_divergence(tmp_path):
    heads = entropies(3, 2)
    heads[1, 0] = math.nan
    line = read(finished(tmp_path / "run", heads, math.nan))
    assert line is not None
    assert (line["diverged"]["step"], line["diverged"]["layers"]) == (30, [1])
    assert "perplexity" not in line


def test_the_speed_is_tokens_over_time(tmp_path):
    run = finished(tmp_path / "run", entropies(3, 2), 1.0)
    line = read(run)
    assert line is not None
    # After the first log line, ten steps at 900 and ten at 700 tokens per second.
    assert line["tokens_per_second"] == round(20 / (10 / 900 + 10 / 700))
    # A run that was resumed has compiled on the way.
    log = run / "metrics.jsonl"
    log.write_text(log.read_text().splitlines()[0] + "\n" + log.read_text())
    line = read(run)
    assert line is not None
    assert line["tokens_per_second"] is None


@pytest.mark.slow
def test_stopped_and_shared_out(tmp_path):
    """One runner is stopped while it trains; then two finish what is left."""
    with start("depth", tmp_path) as first:
        assert first.stdout is not None
        seen = []
        for text in first.stdout:
            seen.append(text)
            if text.startswith("step 1 "):
                first.send_signal(signal.SIGTERM)
        assert (first.wait(60), "stopped" in "".join(seen)) == (0, True), seen
    assert not (tmp_path / "smoke" / "results.jsonl").exists()
    with start("depth", tmp_path) as second, start("depth", tmp_path) as third:
        for process in (second, third):
            output, _ = process.communicate(timeout=300)
            assert process.returncode == 0, output
    assert sorted(line["run"] for line in lines(tmp_path)) == sorted(
        training.name for training in load("depth")
    )


@pytest.mark.parametrize("minutes", [0.0, 1e-3])
def test_the_time_is_up(tmp_path, two_trainings, minutes, capsys):
    assert main(Config("two", smoke=True, root=tmp_path, minutes=minutes)) == 0
    assert (
        "stopped; the same command continues\n0 of 2 trainings are done" in capsys.readouterr().out
    )


def result(net: str, seed: int, perplexity: float | None, **fields) -> dict:
    words = Training(net, net, seed=seed).words()
    line: dict = {"words": words, "tokens_per_second": 500_000, "mfu": 0.45}
    line |= {"diverged": None, "ranges": [1, 0, 0, 3], "runners_per_device": 1}
    # Uniform attention over 128 positions has 3.878 nats, three quarters of which are 2.909.
    line |= {"head_entropy": [[0.1, 2.90], [2.92, 3.8]], "config": {"model.context_length": 128}}
    line |= {} if perplexity is None else {"perplexity": perplexity}
    return {tuple(words): line | fields}


def test_the_table():
    trainings = [
        Training(net, net, seed=s, paper=p) for net, p in (("a", 2.0), ("b", 3.0)) for s in (0, 1)
    ]
    trainings += [
        Training("c", "c", seed=0),
        Training("d", "d", seed=0),
        Training("d", "d", seed=1),
    ]
    # b is 10 % and 20 % above a: 15 % on average, with a standard deviation of 10 / sqrt 2.
    found = result("a", 0, 10.0) | result("a", 1, 20.0) | result("b", 0, 11.0)
    found |= result(
        "b", 1, 24.0, tokens_per_second=600_000, ranges=[2, 0, 0, 2], head_entropy=[[0, 0], [0, 3]]
    )
    # Shared a device, so its speed does not count.
    slow = {"tokens_per_second": 200_000, "mfu": 0.1, "runners_per_device": 2}
    stop = {"step": 17, "layers": [0, 3], "head_entropy_before": None}
    found |= result("c", 0, None, diverged=stop, tokens_per_second=None, mfu=None, ranges=None)
    # One seed of d diverged; the other is 30 % above a.
    found |= result("d", 0, None, diverged=stop, ranges=None) | result("d", 1, 26.0, **slow)
    # Of an older recipe.
    found |= {("--old",): {"net": "a"}}
    header, _, a, b, c, d = table(trainings, found).splitlines()
    assert header == (
        "| net | seeds | perplexity | Δ % | heads per range, % | high, % | diverged | tokens/s | "
        "MFU | paper | paper Δ % |"
    )
    assert a.startswith(
        "| `a` | 2 | 15.00 ± 7.07 | +0.0 ± 0.0 | 25 0 0 75 | 50 |  | 500 k | 0.45 | 2 |"
    )
    assert b == (
        "| `b` | 2 | 17.50 ± 9.19 | +15.0 ± 7.1 | 38 0 0 62 | 38 |  | 550 k | 0.45 | 3 | +50.0 |"
    )
    assert d == "| `d` | 2 | 26.00 | +30.0 | 25 0 0 75 | 50 | 1 of 2 | 500 k | 0.45 |  |  |"
    assert c == "| `c` | 1 | diverged at step 17, layers 0, 3 |  |  |  |  |  |  |  |  |"


def test_columns_without_values_are_left_out():
    stop = {"step": 17, "layers": [], "head_entropy_before": None}
    found = result("a", 0, None, diverged=stop, tokens_per_second=None, mfu=None, ranges=None)
    header, _, row = table([Training("a", "a")], found).splitlines()
    assert header == "| net | seeds | perplexity |"
    assert row == "| `a` | 1 | diverged at step 17 |"


def test_what_diverged():
    trainings = [Training(net, net, seed=seed) for net in ("a", "b") for seed in (0, 1)]
    # The same training by another name.
    trainings.append(Training("b-rates", "b", seed=1, rates=Rates("1e-3", "0.3")))
    stop = {"step": 17, "layers": [], "head_entropy_before": [[3.0, 2.0], [0.5, 0.0]]}
    found = result("a", 0, 9.0) | result("a", 1, 9.5) | result("b", 0, 9.0)
    assert divergences(trainings, found) == "None.\n"
    assert divergences(trainings, found | result("b", 1, None, diverged=stop)).splitlines() == [
        "| net | seeds | steps | diverged at step | layers, nats |",
        "|---|---|---|---|---|",
        "| `b` | 2 | 306 | 17 | 2.50 0.25 |",
    ]


def test_rates_have_no_part_in_toy_size():
    fast = Training("a", "sm", rates=Rates("1", "0"))
    assert fast.smoke_words() == Training("b", "sm").smoke_words()
    assert fast.words() != Training("b", "sm").words()


def test_the_page_holds_the_results():
    page = PAGE.read_text(encoding="utf-8")
    assert filled(page, results(Config.results)) == page

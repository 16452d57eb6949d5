"""The two commands: what they print, and the status that they end with."""

import math

import pytest

from experiments.paper import run as runner
from experiments.paper.__main__ import main
from experiments.paper.result import append
from experiments.paper.run import smoke
from experiments.paper.studies import load
from experiments.paper.study import Training


def test_a_study_at_toy_size_as_a_table(tmp_path, capsys):
    first, second, *_ = load("depth")
    # Uniform attention over 16 positions has 1.917 nats, three quarters of which are 1.438.
    heads = [[1.43, 1.44], [1.9, 1.9]]
    for training, perplexity in ((first, 200.0), (second, 220.0)):
        line = {"run": training.name, "words": training.smoke_words(), "perplexity": perplexity}
        line |= {"config": {"model.context_length": 16}, "head_entropy": heads, "mfu": None}
        line |= {"ranges": [1, 0, 0, 3], "diverged": None, "tokens_per_second": 3000}
        append(smoke(tmp_path), line | {"runners_per_device": 1})
    assert main(["tables", "depth", "--smoke", "--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "depth",
        "",
        "| net | seeds | perplexity | Δ % | heads per range, % | high, % | tokens/s | paper | "
        "paper Δ % |",
        "|---|---|---|---|---|---|---|---|---|",
        "| `sm_ln_g` | 1 | 200.00 | +0.0 | 25 0 0 75 | 75 | 3 k | 2.56 | +0.0 |",
        "| `sm_ln_r` | 1 | 220.00 | +10.0 | 25 0 0 75 | 75 | 3 k | 2.63 | +2.7 |",
        "",
        "divergences",
        "",
        "None.",
        "",
    ]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("run depht", "no study 'depht'; there are rates, "),
        ("run depth --minutes -1", "expected minutes of at least 0, got -1"),
        ("tables depht", "no study 'depht'; there are rates, "),
        ("tables depth --write", "--write is for the tables of all studies at full size"),
        ("tables --smoke --write", "--write is for the tables of all studies at full size"),
        ("tables --results .", "Is a directory: '.'"),
    ],
)
def test_bad_input_is_one_line_and_status_two(command, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(command.split())
    assert stop.value.code == 2
    out, errors = capsys.readouterr()
    assert out == ""
    assert errors.startswith("experiments.paper: ")
    assert message in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize("failed", [0, 1, 256])
def test_the_status_says_whether_a_training_failed(failed, monkeypatch):
    monkeypatch.setattr(runner, "main", lambda config: failed)
    assert main(["run", "depth"]) == min(failed, 1)


def test_toy_size_is_told_from_full_size(tmp_path, capsys):
    training = Training("sm_ln_g", "sm_ln_g", num_layers=18)
    assert training.words() != training.smoke_words()
    line = {"run": training.name, "words": training.words(), "diverged": None}
    append(smoke(tmp_path), line | {"runners_per_device": 1, "perplexity": math.e})
    assert main(["tables", "depth", "--smoke", "--root", str(tmp_path)]) == 0
    assert "sm_ln_g" not in capsys.readouterr().out

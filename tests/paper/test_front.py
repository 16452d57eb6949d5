"""The front of perplexity against traffic, evaluations on the way, and the figures of both."""

import json
import math

import numpy as np
import pytest

from egattn.model import DecoderConfig
from egattn.private.communication import communication
from experiments.paper import figures
from experiments.paper.evaluations import Config, evaluations, evaluations_table, main
from experiments.paper.front import Point, front, front_table, points
from experiments.paper.result import results
from experiments.paper.run import Config as RunConfig
from experiments.paper.studies.verdicts import training
from experiments.paper.study import LOWER, MILLION, Rates, Training
from tests.synthetic_runs import CONTEXT, make_run

LINES = results(RunConfig.results)


def point(gigabytes: float, perplexity: float) -> Point:
    return Point("net", gigabytes, perplexity, 0.0, 1, "0.001")


def test_the_front_is_what_nothing_beats():
    values = np.random.default_rng(0).uniform(1, 2, (60, 2))
    found = sorted((point(*pair) for pair in values), key=lambda p: (p.gigabytes, p.perplexity))
    beaten = {
        p
        for p in found
        for q in found
        if q.gigabytes <= p.gigabytes and q.perplexity <= p.perplexity and q != p
    }
    assert front(found) == [p for p in found if p not in beaten]


def lines_of(*runs: tuple[Training, float | None]) -> dict:
    """Results with the configs of a real one, whose net is SM+LN+G."""
    (config,) = (line["config"] for line in LINES.values() if line["run"] == "sm_ln_g-100M-s0")
    return {
        tuple(run.words()): {"config": config} | ({"perplexity": x} if x is not None else {})
        for run, x in runs
    }


def test_points():
    runs = [training("sm_ln_g", seed=seed, tokens=100 * MILLION) for seed in (0, 1)]
    lower = training("sm_scfuffn", seed=0, tokens=100 * MILLION, rates=LOWER)
    same = training("sm_scfuffn", seed=0, tokens=100 * MILLION)
    # Of a grid, which would be a choice among many; and one seed that diverged.
    grid = Training("sm_ln_g-x", "sm_ln_g", tokens=100 * MILLION, rates=Rates("1e-3", "0.05"))
    stopped = [training("sm_t_scfuffn", seed=seed, tokens=100 * MILLION) for seed in (0, 1)]
    found = points(
        lines_of(
            (runs[0], 7.0),
            (runs[1], 9.0),
            (lower, 10.0),
            (same, 11.0),
            (grid, 1.0),
            (stopped[0], 6.0),
            (stopped[1], None),
        ),
        100 * MILLION,
    )
    assert [(p.net, p.perplexity, p.seeds) for p in found] == [
        ("sm_ln_g", 8.0, 2),
        ("sm_scfuffn", 10.0, 1),
    ]
    config = DecoderConfig.preset("sm_ln_g", vocab_size=16384, context_length=128)
    assert math.isclose(found[0].gigabytes, communication(config).bytes / 1e9)
    assert math.isclose(found[0].spread, math.sqrt(2))
    assert points({}, 100 * MILLION) == []
    assert front_table({}) == "No run yet.\n"


def cut_off(path, heads: np.ndarray, loss: float) -> None:
    """A run of 200 steps that logged two of every five and ended at 160; evaluated at 50."""
    run = make_run(path, heads, evaluated={10: loss})
    start, train, validation, *_ = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    records = [start]
    for step in range(5, 161, 5):
        # Every step tells its number, so that means tell which steps they are of.
        records += [train | {"step": x, "loss": loss + x} for x in (step - 2, step)]
        records += [validation | {"step": step}] if step == 50 else []
    (run / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in records))


def test_evaluations(tmp_path, monkeypatch):
    tokens = 200 * 65536
    one, other = (Training(net, net, tokens=tokens, seed=1) for net in ("sm_r", "sm_g"))
    early = Training("sm", "sm", tokens=tokens, seed=1)
    monkeypatch.setattr("experiments.paper.evaluations.every_training", lambda: [one, other, early])
    # Shares of uniform attention's entropy: query i attends to i keys.
    uniform = np.log(np.arange(1, CONTEXT + 1)).mean()
    heads = uniform * np.array([[0.2, 0.74], [0.76, 0.9]])
    cut_off(tmp_path / one.name, heads, math.log(11.0))
    cut_off(tmp_path / other.name, heads / 2, math.log(10.0))
    make_run(tmp_path / early.name, heads, evaluated={})
    config = Config(
        (tmp_path / one.name, tmp_path / other.name, tmp_path / early.name),
        tmp_path / "found.jsonl",
    )
    main(config)
    main(config)
    assert len((tmp_path / "found.jsonl").read_text().splitlines()) == 2
    found = evaluations(tmp_path / "found.jsonl")
    assert found[one.name]["validation"] == {
        "50": {
            "loss": round(math.log(11.0), 5),
            "high": 50.0,
            "layer_entropy": [round(0.47 * uniform, 2), round(0.83 * uniform, 2)],
        }
    }
    assert np.allclose(
        found[one.name]["training"], math.log(11.0) + np.arange(4, 161, 5), atol=1e-4
    )
    _, _, row = evaluations_table([(one, other), (one, early)], found).splitlines()
    assert row == (
        "| `sm_r` | `sm_g` | 13.1072 M | 1 | +10.0 |  |  | 50 and 0 | +10.0 | 70 to 80 % |"
    )
    with pytest.raises(ValueError, match="expected the directory of a study's run"):
        main(Config((make_run(tmp_path / "other", heads),), tmp_path / "found.jsonl"))


def test_figures(tmp_path):
    figures.main(figures.Config(out=tmp_path))
    for name in ("front", "verdicts_perplexity", "verdicts_entropy"):
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_the_file_agrees_with_the_results():
    known = evaluations()["ereg_sm_t_scfuffn-excess-100M-s1"]["validation"]["1526"]
    line = LINES[tuple(training("ereg_sm_t_scfuffn-excess", seed=1, tokens=100 * MILLION).words())]
    assert math.isclose(known["loss"], line["loss"], abs_tol=1e-5)

"""Commands end to end: what they print, what they refuse, and what no text may claim."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from experiments.zeta import balls, figures, precision, rare, report
from experiments.zeta.__main__ import main
from experiments.zeta.box import Box
from experiments.zeta.functions import ZETA
from experiments.zeta.statement import LIMITS
from experiments.zeta.zeros import FLOAT, solve

ROOT = Path(__file__).parents[2]
KEYS = {"zeros", "count", "proved", "on_line", "evaluations", "ablation_evaluations"}
KEYS |= {"scan_evaluations", "seconds"}


def run(command: str, capsys) -> tuple[str, str]:
    assert main(command.split()) == 0
    printed = capsys.readouterr()
    return printed.out, printed.err


class TestZeros:
    COMMAND = "zeros --box 0.05 0.95 13.5 15"

    def test_json_is_one_object(self, capsys):
        out, err = run(f"{self.COMMAND} --json", capsys)
        assert out.count("\n") == 1
        values = json.loads(out)
        assert values.keys() >= KEYS
        assert values["count"] == 1
        np.testing.assert_allclose(values["zeros"], [[0.5, 14.134725141734694]], atol=1e-10)
        assert values["proved"] == values["on_line"] == [True]
        assert err.splitlines() == values["limits"] == list(LIMITS)

    def test_text(self, capsys):
        out, _ = run(self.COMMAND, capsys)
        assert out.splitlines()[:2] == list(LIMITS)
        assert "1 zeros found of 1, the count proved in this box" in out
        assert "random starts, same polish" in out

    def test_without_flint_nothing_is_called_proved(self, monkeypatch):
        monkeypatch.setattr(balls, "AVAILABLE", False)
        result = solve(ZETA, Box(0.05, 0.95, 13.5, 15.0))
        assert result.certificate == FLOAT == "float certificate"
        assert result.proved == [False]
        assert result.on_line == [True]
        assert result.largest_error is None
        with pytest.raises(NotImplementedError, match="need python-flint"):
            solve(ZETA, Box(0.05, 0.95, 7004.5, 7005.5))


def test_rare(capsys):
    out, _ = run("rare --box 0 1 10 30 --eps 0.01 --json", capsys)
    values = json.loads(out)
    assert values["exact"] == pytest.approx(4.5473476736e-05, rel=1e-7)
    assert abs(values["estimate"] - values["exact"]) <= 4 * values["standard_error"]
    assert len(values["hits_per_zero"]) == 3
    assert values["naive_cost"] > 1e8


def test_frequency(capsys):
    out, _ = run("frequency --samples 1000 10000 --runs 2 --json", capsys)
    values = json.loads(out)
    assert values["samples"] == [1000, 10000]
    assert len(values["interval"]) == 2
    out, _ = run("frequency --samples 1000 --runs 2 --json", capsys)
    # Of one number there is no slope, and NaN would be no JSON.
    assert json.loads(out)["slope"] is None


@pytest.fixture
def small(monkeypatch):
    """Fewer samples: what the numbers are is for the other tests to say."""
    monkeypatch.setattr(rare, "SAMPLES", 1000)
    monkeypatch.setattr(report, "_SAMPLES", (1000, 10_000))
    monkeypatch.setattr(report, "_RUNS", 4)
    monkeypatch.setattr(precision, "BITS", (10, 14, 20))
    monkeypatch.setattr(figures, "_CONTRACTED", figures._SEARCHED)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_demo(tmp_path, capsys):
    out, _ = run(f"demo --out {tmp_path / 'zeta'}", capsys)
    assert out.splitlines()[:2] == list(LIMITS)
    assert "report:" in out
    written = {path.name for path in (tmp_path / "zeta").iterdir()}
    pictures = {"landscape", "contraction", "control", "rare", "law", "bits"}
    expected = {f"{name}.{kind}" for name in pictures for kind in ("png", "csv")}
    assert written == expected | {"index.html", "search.gif", "search.csv"}
    page = (tmp_path / "zeta" / "index.html").read_text()
    assert page.count('src="data:image/png') == 6
    assert page.count('src="data:image/gif') == 1
    # Nothing is fetched.
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    for line in LIMITS:
        assert line in page


BAD = {
    "zeros --box 0.5 1.5 -1 1": "without the pole",
    "zeros --box 0.9 0.1 10 20": "from low to high",
    "zeros --box 0.1 0.9 20 20": "not empty",
    "zeros --box 0 0.9 10 20": "sigma within (0, 1)",
    "zeros --box 0.1 0.9 10 2e6": "is to be trusted within",
    "zeros --box 0.1 0.9 990 1010 --evaluator eta": "the eta series is to be trusted within",
    "zeros --box 0.1 0.97 10 20 --evaluator eta": "the eta series is to be trusted within",
    "zeros --box 0.1 0.5 14 14.3": "lies on the boundary",
    "zeros --box nan 0.9 10 20": "expected finite numbers",
    "zeros --box 0.1 0.9 10 inf": "expected finite numbers",
    "zeros --box 0.1 1 10 20": "sigma within (0, 1)",
    "zeros --box 0.1 0.9 14.1347251417346937 14.5": "lies on the boundary",
    "zeros --seed 99999999999999999999": "expected a seed from 0",
    "precision --seed -1": "expected a seed from 0",
    # Before its zeros are searched, which takes minutes.
    "control --box 0.1 0.9 10 2000": "got [0.1, 0.9] x [10, 2000]",
    "rare --eps nan": "expected eps > 0, got nan",
    "rare --eps 1e-12": "not lost in rounding",
    "rare --eps 5": "lies in the strip",
    "rare --components 0": "expected 1 to 100 components",
    "rare --components 100000": "expected 1 to 100 components",
    "rare --box 0.5 1 10 30": "a zero lies on the boundary",
    "rare --eps 0": "expected eps > 0, got 0",
    "rare --eps -1": "expected eps > 0, got -1",
    "rare --box 0 1 30 10": "from low to high",
    "frequency --eps 0": "expected eps > 0",
    "frequency --eps inf": "expected eps > 0",
    "frequency --samples 10 10": "expected rising numbers of samples",
    "frequency --samples 10000000000000": "expected rising numbers of samples",
    "zeros --bxo 0.1 0.9 10 20": "--box",
    "zeros --box 0.1 0.9 ten 20": "ten",
    "zeros --box 0.1 0.9 10": "--box",
    "zeros --evaluator siegel": "euler-maclaurin",
    "control 80 90": "unknown argument '80'",
    "zero": "command must be one of demo, zeros, control",
}


@pytest.mark.parametrize("command", BAD)
def test_bad_input_is_one_line_and_status_two(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main(command.split())
    assert stop.value.code == 2
    name = command.split()[0]
    before, message = capsys.readouterr().err.split(f"experiments.zeta {name}: ")
    # What every command prints stays above it, where the words are understood.
    assert set(before.splitlines()) <= set(LIMITS)
    assert BAD[command] in message
    assert message.endswith("\n")
    assert message.count("\n") == 1


def test_help_lists_the_commands(capsys):
    out, _ = run("--help", capsys)
    assert out.count("\n") == 9
    assert "Zeros of zeta in a box" in out


def test_a_directory_with_other_things_is_not_replaced(tmp_path, capsys):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(SystemExit) as stop:
        main(["report", "--out", str(tmp_path)])
    assert stop.value.code == 2
    assert "is neither empty nor only a report" in capsys.readouterr().err


# What would make evidence of a finite computation; a sentence may say so of nothing but with "no".
CLAIM = re.compile(
    r"(evidence|support|suggest|confirm|corroborat|indicat|verif|validat|prov\w* )"
    r"[^.]{0,60}(riemann hypothesis|\brh\b)",
    re.IGNORECASE | re.DOTALL,
)
DENIAL = re.compile(r"\b(no|not|nothing|never|neither|nor|cannot|without)\b", re.IGNORECASE)
TEXTS = [
    *sorted((ROOT / "experiments" / "zeta").rglob("*.py")),
    *sorted((ROOT / "egattn" / "cem").rglob("*.py")),
    ROOT / "experiments" / "zeta" / "README.md",
    ROOT / "benchmarks" / "zeta.py",
    ROOT / "docs" / "zeta.md",
    ROOT / "docs" / "own_rare_event.md",
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
]


def claims(text: str) -> list[str]:
    """Sentences that make something evidence for the hypothesis."""
    sentences = re.split(r"(?<=[.;|])\s", " ".join(text.split()))
    return [s for s in sentences if CLAIM.search(s) and not DENIAL.search(s)]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_text_suggests_evidence(path):
    assert claims(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        "All zeros lie on the line, which supports the Riemann Hypothesis.",
        "Thirty zeros: strong evidence for RH.",
        "This confirms that the Riemann hypothesis holds in practice.",
    ],
)
def test_a_claim_would_be_noticed(text):
    assert claims(f"Before. {text} After.") == [text]


def test_a_denial_is_none():
    assert claims(" ".join(LIMITS)) == []

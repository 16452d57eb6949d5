"""The report: what its page, figures and data say about run directories made here by hand."""

import base64
import csv
import json
import math
import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from egattn.cli import main
from egattn.report import ReportConfig, comparison, summary_lines, write_report
from tests.pages import Page
from tests.synthetic_runs import CONTEXT, entropies, make_run


def report(out: Path, *runs: Path) -> Page:
    path = write_report(ReportConfig(runs=runs, out=out))
    assert path == out / "index.html"
    return Page(path)


def data(out: Path, name: str) -> list[dict[str, str]]:
    with (out / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def figures(out: Path) -> set[str]:
    return {path.stem for path in out.glob("*.png")}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "made" / "report"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_run(tmp_path / "base", entropies(2, 2))


class TestComparison:
    def test_table_states_numbers_computed_by_hand(self, tmp_path, out):
        heads = np.array([[0.1, 1.0], [1.9, 2.1], [3.1, 4.0]])  # of M = 4: quarters 0 1 1 2 3 3
        base = make_run(tmp_path / "base", heads)
        other = make_run(tmp_path / "other", heads, evaluated={30: 3.5}, preset="sm_g")
        header, first, second = report(out, base, other).tables[0]
        assert len(header) == len(first) == 10
        # exp(3.25) = 25.790340, exp(3.5) = 33.115452; exp(0.25) = 1.284025; 30 * 2048 = 61440.
        assert first[:6] == ["base", "sm_ln_g", "1,234,567", "61,440", "3.2500", "25.790"]
        assert first[6:] == ["reference", "1.0833", "17 / 33 / 17 / 33", "700"]
        assert second[:2] == ["other", "sm_g"]
        assert second[4:8] == ["3.5000", "33.115", "+28.4", "1.1667"]

    @pytest.mark.parametrize("seed", range(3))
    def test_range_shares_are_counts_of_heads(self, tmp_path, seed):
        heads = entropies(5, 7, seed).astype(np.float32)
        (row,) = comparison([make_run(tmp_path / "run", heads)])
        edges = np.float64(heads.max()) / 4 * np.arange(1, 4)
        counts = np.bincount((heads[..., None] >= edges).sum(-1).ravel(), minlength=4)
        assert row.shares == pytest.approx(counts / 35)

    def test_collapsed_heads_are_all_in_the_lowest_range(self, tmp_path):
        (row,) = comparison([make_run(tmp_path / "run", np.zeros((2, 3)))])
        assert row.shares == (1, 0, 0, 0)

    def test_lines_for_the_terminal(self, tmp_path, base):
        never = make_run(tmp_path / "never", entropies(2, 2), evaluated={})
        broken = make_run(tmp_path / "broken", entropies(2, 2), evaluated={30: math.nan})
        other = make_run(tmp_path / "other", entropies(2, 2), evaluated={30: 3.5})
        lines = summary_lines([base, other, never, broken])
        assert len({len(line) for line in lines}) == 1
        assert [re.split(r" {2,}", line) for line in lines] == [
            ["run", "validation loss", "perplexity", "bits per byte", "delta %"],
            ["base", "3.2500", "25.790", "1.0833", "reference"],
            ["other", "3.5000", "33.115", "1.1667", "+28.4"],
            ["never", "not evaluated", "\u2013", "\u2013", "\u2013"],
            ["broken", "not finite", "not finite", "not finite", "\u2013"],
        ]

    def test_lines_say_what_ends_early(self, base, tmp_path):
        text = (base / "config.json").read_text().replace('"steps": 30', '"steps": 4000')
        (base / "config.json").write_text(text)
        stale = make_run(tmp_path / "stale", entropies(2, 2), evaluated={20: 3.0})
        assert summary_lines([base, stale])[3:] == [
            "base stands at step 30 of 4,000.",
            "stale was last evaluated at step 20, its last one is 30.",
        ]

    def test_only_settings_that_differ_are_listed(self, tmp_path, base, out):
        other = make_run(tmp_path / "other", entropies(4, 8), weight=0.16)
        _, settings, _ = report(out, base, other).tables
        assert settings[:2] == [["setting", "base", "other"], ["penalty.weight", "0.0", "0.16"]]
        assert settings[2:] == [["model.num_layers", "2", "4"], ["model.num_heads", "2", "8"]]

    def test_runs_of_one_name_get_labels_that_differ(self, tmp_path):
        paths = [make_run(tmp_path / d / "run", entropies(2, 2)) for d in ("a", "b")]
        rows = comparison([*paths, paths[0], tmp_path / "b" / ".." / "a/run"])
        assert [row.name for row in rows] == ["a/run", "b/run", "a/run (2)", "a/run (3)"]

    def test_stale_evaluation_is_said(self, tmp_path, base, out):
        stale = make_run(tmp_path / "stale", entropies(2, 2), evaluated={20: 3.0})
        assert (
            "stale was last evaluated at step 20, its last one is 30."
            in report(out, base, stale).text
        )


class TestPage:
    def test_needs_nothing_but_itself(self, base, out):
        page = report(out, base)
        assert not {"script", "link", "iframe", "object", "a"} & page.tags
        assert not re.search(r"url\(|@import|https?:", page.text)
        sources = [image["src"] for image in page.images]
        assert len(sources) == len(figures(out))
        embedded = {base64.b64decode(s.removeprefix("data:image/png;base64,")) for s in sources}
        assert embedded == {path.read_bytes() for path in out.glob("*.png")}

    def test_text_of_run_files_is_escaped(self, tmp_path, base, out):
        # Katakana is not in the figures' font, which must not warn.
        nasty = r'<script>alert("$\frac{1$ラン")<'
        run = make_run(tmp_path / nasty, entropies(2, 2), preset=nasty, seed=nasty)
        metrics = run / "metrics.jsonl"
        metrics.write_text(metrics.read_text().replace("8 x imaginary", "<b>&amp;"))
        page = report(out, base, run)
        assert page.tables[0][2][:2] == [nasty, nasty]
        assert "<b>&amp;" in page.text
        assert not {"script", "b"} & page.tags

    def test_says_where_it_comes_from(self, base, out):
        page = report(out, base)
        assert f"egattn report {base} --out {out}" in page.text
        expected = {"": "base", "directory": str(base), "started": "2031-02-03T04:05:06+00:00"}
        expected |= {"resumed": "no", "devices": "8 x imaginary", "mesh": "replica 8", "seed": "7"}
        expected |= {"steps": "30 of 30", "evaluated": "at step 30, 64 windows"}
        assert dict(page.tables[-1]) == expected | {"versions": "jax 0.10.2"}

    def test_same_runs_give_the_same_bytes(self, base, out):
        report(out, base)
        before = (out / "index.html").read_bytes()
        report(out, base)
        assert (out / "index.html").read_bytes() == before


class TestFigures:
    @pytest.mark.parametrize("shape", [(1, 1), (2, 2), (12, 12), (24, 16)])
    def test_images_decode_at_the_size_the_page_gives_them(self, tmp_path, out, shape):
        page = report(out, make_run(tmp_path / "run", entropies(*shape)))
        assert figures(out) == {"loss", "head_entropy", "entropy_ranges", "layer_entropy"}
        order = re.findall(r"Files: (\w+)\.png", page.text)
        for name, attributes in zip(order, page.images, strict=True):
            height, width, _ = matplotlib.image.imread(out / f"{name}.png").shape
            # Two image pixels per CSS pixel.
            assert width == pytest.approx(2 * int(attributes["width"]), abs=2)
            assert height == pytest.approx(2 * int(attributes["height"]), abs=2)

    def test_loss_data(self, tmp_path, base, out):
        other = make_run(tmp_path / "other", entropies(4, 8), losses=[6.0, math.nan, 5.0])
        report(out, base, other)
        rows = [tuple(row.values()) for row in data(out, "loss")]
        assert rows[2:4] == [("base", "train", "30", "3.5"), ("base", "validation", "20", "3.75")]
        assert [row[3] for row in rows[5:8]] == ["6.0", "nan", "5.0"]

    def test_entropy_data_of_runs_of_different_shapes(self, tmp_path, out):
        maps = {"small": entropies(2, 2), "large": entropies(4, 8, 1)}
        page = report(out, *(make_run(tmp_path / name, heads) for name, heads in maps.items()))
        uniform = sum(math.log(i) for i in range(1, CONTEXT + 1)) / CONTEXT
        assert f"heads at {uniform:.2f} nats" in page.text
        for name, heads in maps.items():
            drawn = [r for r in data(out, "head_entropy") if r["run"] == name]
            assert [float(r["entropy_nats"]) for r in drawn] == heads.ravel().tolist()
            layers = [r for r in data(out, "layer_entropy") if r["run"] == name]
            assert [r["step"] for r in layers[:: len(heads)]] == ["10", "20", "30"]
            means = [float(r["mean_entropy_nats"]) for r in layers[: len(heads)]]
            assert means == pytest.approx([sum(row) / len(row) for row in heads.tolist()])

    def test_heat_maps_share_one_scale_from_0_to_log_context(self, tmp_path, out):
        # Viridis at 0, a half and 1, beside the number in the only cell.
        colours = {0.0: [0.27, 0.0, 0.33], 0.5: [0.13, 0.57, 0.55], 1.0: [0.99, 0.91, 0.14]}
        for fraction, colour in colours.items():
            heads = np.full((1, 1), fraction * math.log(CONTEXT))
            report(out, make_run(tmp_path / f"run{fraction}", heads))
            image = matplotlib.image.imread(out / "head_entropy.png")
            height, width, _ = image.shape
            assert image[height // 4, width // 3, :3] == pytest.approx(colour, abs=0.01)

    def test_learned_parameters(self, tmp_path, base, out):
        rng = np.random.default_rng(3)
        threshold, temperature = rng.uniform(0.2, 0.6, (2, 2)), rng.uniform(0.1, 3, (2, 2, CONTEXT))
        geometric = np.exp(np.log(temperature).mean(-1))
        learned = {"threshold": threshold.tolist(), "temperature": geometric.tolist()}
        learned |= {"alpha": [1.5, 1.25], "beta": [0.5], "slope": [[0.1, 0.3], [0.2, 0.2]]}
        run = make_run(tmp_path / "ereg", entropies(2, 2), learned=learned, temperature=temperature)
        report(out, base, run)
        rows = data(out, "thresholds")
        assert [float(r["threshold"]) for r in rows] == threshold.ravel().tolist()
        a, b = threshold[1].tolist()
        assert float(rows[-1]["layer_mean"]) == pytest.approx((a + b) / 2)
        assert float(rows[-1]["layer_variance"]) == pytest.approx((a - b) ** 2 / 4)
        drawn = [float(r["temperature"]) for r in data(out, "temperature")]
        assert drawn == geometric.ravel().tolist()
        positions = [float(r["temperature"]) for r in data(out, "temperature_positions")]
        assert positions == pytest.approx(((temperature[:, 0] + temperature[:, 1]) / 2).ravel())
        scalars = data(out, "scalars")
        assert [r["parameter"] for r in scalars] == ["alpha"] * 2 + ["beta"] + ["slope"] * 2
        values = [float(r["value"]) for r in scalars]
        assert values == pytest.approx([1.5, 1.25, 0.5, 0.2, 0.2])
        deviations = [float(r["standard_deviation"]) for r in scalars]
        assert deviations == pytest.approx([0, 0, 0, 0.1, 0])

    def test_one_slope_for_the_model_is_every_layers(self, tmp_path, out):
        report(out, make_run(tmp_path / "run", entropies(3, 2), learned={"slope": 0.25}))
        assert [r["value"] for r in data(out, "scalars")] == ["0.25"] * 3

    def test_what_is_not_finite_is_shown_as_such(self, tmp_path, base, out):
        heads = np.array([[1.0, 2.0], [math.nan, math.nan]])
        run = make_run(
            tmp_path / "broken", heads, losses=[5.0, math.nan, math.nan], evaluated={30: math.nan}
        )
        row = report(out, base, run).tables[0][2]
        assert row[4:9] == ["not finite", "not finite", "\u2013", "not finite", "0 / 0 / 25 / 25"]
        ranges = [(r["range"], r["heads"]) for r in data(out, "entropy_ranges")]
        assert ranges[-3:] == [("[M/2, 3M/4)", "1"), ("[3M/4, M]", "1"), ("not finite", "2")]
        rows = [list(row.values()) for row in data(out, "nonfinite")]
        assert rows[:2] == [["broken", "10", "0", "0.0"], ["broken", "10", "1", "2.0"]]

    def test_run_without_validation_is_not_evaluated(self, tmp_path, out):
        page = report(out, make_run(tmp_path / "run", entropies(2, 2), evaluated={}))
        assert page.tables[0][1][4] == "not evaluated"
        assert dict(page.tables[-1][1:])["evaluated"] == "not evaluated"
        assert figures(out) == {"loss", "layer_entropy"}


class TestBadInput:
    def test_torn_last_line_is_dropped(self, base, out):
        with (base / "metrics.jsonl").open("ab") as file:
            file.write(b'{"kind": "train", "step": 40, "lo\xff')
        assert report(out, base).tables[0][1][3] == "61,440"

    @pytest.mark.parametrize(
        ("line", "complaint"),
        [
            ('{"kind": "train", "st', "is not JSON"),
            ("[]", "expected an object with a whole step, got []"),
            ("{}", "expected an object of kind start, train, validation, save, got None"),
            ('{"kind": "train", "step": 5}', "missing 'loss'"),
            ('{"kind": "train", "step": 5, "loss": "low"}', "expected numbers as loss, got 'low'"),
            ('{"kind": "train", "step": 5, "loss": [1]}', "expected loss with 0 dimensions, got 1"),
        ],
    )
    def test_malformed_line_is_named(self, base, out, line, complaint):
        path = base / "metrics.jsonl"
        first, *rest = path.read_text().splitlines(keepends=True)
        path.write_text("".join([first, line + "\n", *rest]))
        with pytest.raises(ValueError, match=re.escape(f"{path} line 2")) as error:
            report(out, base)
        assert complaint in str(error.value)
        assert not out.parent.exists()

    def test_evaluation_on_an_unknown_number_of_windows(self, base, out):
        path = base / "metrics.jsonl"
        path.write_text(path.read_text().replace('"windows": 64', '"windows": null'))
        with pytest.raises(ValueError, match=r"line 4: expected a whole windows, got None"):
            report(out, base)

    def test_shape_that_changes_within_a_run(self, base, out):
        path = base / "metrics.jsonl"
        record = json.loads(path.read_text().splitlines()[1]) | {"head_entropy": [[1.0]]}
        path.write_text(path.read_text() + json.dumps(record))
        with pytest.raises(ValueError, match=r"line 7: expected head_entropy of shape \(2, 2\)"):
            report(out, base)

    def test_directories_that_are_not_runs(self, tmp_path, base, out):
        with pytest.raises(ValueError, match="at least one run directory"):
            report(out)
        with pytest.raises(FileNotFoundError, match="nowhere, which is no directory"):
            report(out, base, tmp_path / "nowhere")
        with pytest.raises(FileNotFoundError, match=r"not a run directory: it has no config\.json"):
            report(out, tmp_path)
        (base / "metrics.jsonl").write_text("")
        with pytest.raises(ValueError, match=r"metrics\.jsonl: expected records of a run"):
            report(out, base)
        (base / "metrics.jsonl").unlink()
        with pytest.raises(FileNotFoundError, match=r"it has no metrics\.jsonl"):
            report(out, base)
        assert not out.parent.exists()

    @pytest.mark.parametrize(
        ("name", "content", "complaint"),
        [
            ("config.json", b"{", "expected JSON"),
            ("config.json", b"{}", "expected a positive model.context_length, got None"),
            ("learned.npz", b"PK\x03\x04 cut", "expected arrays written by training"),
        ],
    )
    def test_damaged_files_are_named(self, base, out, name, content, complaint):
        (base / name).write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(f"{base / name}: {complaint}")) as error:
            report(out, base)
        assert "\n" not in str(error.value)


class TestOut:
    def test_replaces_a_report_and_nothing_else(self, tmp_path, base, out):
        report(out, make_run(tmp_path / "other", entropies(2, 2), learned={"alpha": [1.0]}))
        assert "scalars" in figures(out)
        report(out, base)
        assert "scalars" not in figures(out)
        (out / "notes.txt").write_text("mine")
        with pytest.raises(ValueError, match=r"nor only a report: it holds notes\.txt"):
            report(out, base)
        page = make_run(tmp_path / "theirs", entropies(1, 1)) / "index.html"
        page.write_text("<html>mine</html>")
        with pytest.raises(ValueError, match="neither empty nor only a report"):
            report(page.parent, base)
        with pytest.raises(ValueError, match="expected a directory to write the report to"):
            report(page, base)
        with pytest.raises(OSError, match=r"File exists|Not a directory"):
            report(page / "below", base)
        assert page.read_text() == "<html>mine</html>"
        assert (out / "notes.txt").read_text() == "mine"

    def test_failure_leaves_the_old_report_and_nothing_besides(self, base, out, monkeypatch):
        out.mkdir(parents=True)
        report(out, base)
        before = (out / "index.html").read_bytes()
        names = {path.name for path in out.iterdir()}
        assert names == {"index.html"} | {f"{n}.{s}" for n in figures(out) for s in ("png", "csv")}

        def full(*_, **__):
            raise OSError("No space left on device")

        monkeypatch.setattr("egattn.report.render", full)
        with pytest.raises(OSError, match="No space left"):
            report(out, base)
        assert (out / "index.html").read_bytes() == before
        assert [path.name for path in out.parent.iterdir()] == ["report"]

    def test_command_reports_bad_input_in_one_line(self, tmp_path, capsys):
        with pytest.raises(SystemExit) as stop:
            main(["report", str(tmp_path / "nowhere")])
        assert stop.value.code == 2
        assert len(capsys.readouterr().err.splitlines()) == 1

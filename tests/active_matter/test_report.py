"""The report: its page, pictures and data, of an exact velocity and of runs that learn nothing."""

import csv
import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageSequence

from egattn.flow import velocity
from experiments.active_matter.__main__ import main
from experiments.active_matter.config import PRESETS
from experiments.active_matter.fokker_planck import solve
from experiments.active_matter.report import ReportConfig, movie, subject, write_report
from experiments.active_matter.report.fields import exact, measured
from experiments.active_matter.report.subject import Subject
from experiments.active_matter.simulation import stationary
from experiments.active_matter.systems import make_system
from tests.active_matter.running import refused
from tests.pages import Page

TRAIN = (
    "--steps 4 --batch-size 8 --trajectories 16 --refresh 0.05 --width 8 --layers 1 "
    "--evaluate-samples 8 --log-every 1 --evaluate-every 2 --checkpoint-every 4"
)
PICTURES = {"portrait", "conditional", "weighted", "errors", "checks"}
MANY = {"particles", "profiles", "paths", "conditional", "weighted", "errors", "checks"}
FRAMES = 3


@pytest.fixture(scope="module", autouse=True)
def short():
    """Movies of three frames, and a coarse grid."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(movie, "FRAMES", FRAMES)
        patch.setattr(subject, "ring_solution", lambda ring: solve((200, 60), ring))
        yield


def train(tmp_path_factory, system: str, more: str = ""):
    run = tmp_path_factory.mktemp("runs") / system
    main(f"train {system} {run} {TRAIN} {more}".split())
    return run


def report(runs, out, samples: int) -> Page:
    main(["report", *map(str, runs), "--out", str(out), "--samples", str(samples)])
    return Page(out / "index.html")


def of_trap() -> Subject:
    """The exact trap as if it had been learned."""
    config = dataclasses.replace(PRESETS["trap"], run=Path("runs/<trap>"))
    system = make_system(config.of_system())
    assert system.exact is not None
    v = velocity(system.process, system.exact.score)
    z = np.asarray(stationary(system, jax.random.key(0), 512))
    fields = measured(system, v, jnp.asarray(z))
    names = ("epr", "epr_lower_bound", "epr_identity", "div_v")
    values = {name: 0.1 + 0.01 * i for i, name in enumerate(names)}
    values |= {f"{name}_standard_error": 0.002 for name in names}
    values |= {"epr_x": 0.08, "epr_g": 0.02, "residual_std": 0.01, "div_v_std": 0.1}
    values |= {"score_matching": -0.7, "stein": 0.99, "exact_epr": 0.2667}
    records = [{"kind": "train", "step": 1, "loss": -0.5}]
    records += [{"kind": "validation", "step": 1, **values}]
    known = exact(system, None, jnp.asarray(z))
    details = {"values": values, "system": system, "velocity": v, "snapshots": z}
    fixed = {"label": "<trap>", "path": config.run, "config": config, "step": 1}
    return Subject(**fixed, **details, records=records, ours=fields, exact=known, solution=None)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("made") / "report"


@pytest.fixture(scope="module")
def page(out):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.active_matter.report.read_subjects", lambda *_: [of_trap()])
        write_report(ReportConfig(runs=(Path("runs/<trap>"),), out=out))
    return Page(out / "index.html")


def test_page_has_every_figure_and_needs_nothing_else(page, out):
    assert {path.stem for path in out.glob("*.png")} == PICTURES | {"curves"}
    assert {path.stem for path in out.glob("*.csv")} == PICTURES | {"curves", "movie"}
    assert len(page.images) == len(PICTURES) + 2
    assert all(image["alt"] and image["src"].startswith("data:image/") for image in page.images)
    assert not any(word in page.text for word in ("http:", "https:", "url("))


def test_table_says_what_the_evaluation_says(page):
    row = dict(zip(*page.tables[0], strict=True))
    assert row["run"] == "<trap>"
    assert row["entropy production"] == "0.1000 ± 0.0020"
    assert row["at least"] == "0.1100 ± 0.0020"
    assert row["identity"] == "0.1200 ± 0.0020"
    assert row["div v"] == "+0.1300 ± 0.0020"
    assert row["exact"] == "0.2667"
    assert row["std of residual / of div v"] == "10.0%"


def test_exact_columns_are_the_closed_form(page):
    # A = .05, gamma = eps = .1, v0 = .2.
    checks = {name: cells for name, *cells in page.tables[1][1:]}
    assert checks["div_g v_g"][2:] == ["+0.0320", "0.0000"]
    assert checks["div_x v_x"][2:] == ["-0.0320", "0.0000"]
    assert checks["div v + v.s"][3] == "0.0000"
    assert float(checks["v.D⁻¹v"][2]) == pytest.approx(0.2667, abs=0.04)


def test_movie_has_its_frames(page, out):
    with Image.open(out / "movie.gif") as image:
        assert len(list(ImageSequence.Iterator(image))) == FRAMES
        assert min(image.size) > 300


def test_density_in_the_data_is_normalised(page, out):
    with (out / "weighted.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    x, g, density = (np.array([float(row[name]) for row in rows]) for name in ("x", "g", "density"))
    cell = np.diff(np.unique(x)).min() * np.diff(np.unique(g)).min()
    assert 0.97 < density.sum() * cell <= 1 + 1e-9


def test_orbits_of_the_data_begin_at_rest_on_the_axis(page, out):
    with (out / "portrait.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["flow"] == "exact"]
    # C_xx g^2 - 2 C_xg x g + x^2 is constant along an exact orbit.
    x, g = (np.array([float(row[name]) for row in rows]) for name in ("x", "g"))
    level = 22 / 3 * g**2 - 8 / 3 * x * g + x**2
    for orbit in {row["orbit"] for row in rows}:
        of_orbit = level[[row["orbit"] == orbit for row in rows]]
        np.testing.assert_allclose(of_orbit, of_orbit[0], rtol=1e-3)


@pytest.mark.slow
def test_the_same_run_twice_agrees_with_evaluate(tmp_path_factory, tmp_path, capsys):
    run = train(tmp_path_factory, "trap")
    page = report([run, run], tmp_path / "report", 64)
    pictures = {path.name for path in (tmp_path / "report").glob("*.png")}
    assert len(pictures) == 1 + 2 * len(PICTURES)
    header, row, _ = page.tables[0]
    capsys.readouterr()
    main(["evaluate", str(run), "--json", "--samples", "64"])
    values = json.loads(capsys.readouterr().out)
    row = dict(zip(header, row, strict=True))
    for cell, name in (("entropy production", "epr"), ("at least", "epr_lower_bound")):
        assert row[cell] == f"{values[name]:.4f} ± {values[f'{name}_standard_error']:.4f}"
    checks = {name: cells for name, *cells in page.tables[1][1:]}
    assert float(checks["v.D⁻¹v"][0]) == pytest.approx(values["epr"], abs=6e-5)
    assert float(checks["div v + v.s"][1]) == pytest.approx(values["residual_std"], abs=6e-5)


@pytest.mark.slow
def test_crystal_has_pictures_of_its_particles(tmp_path_factory, tmp_path):
    run = train(tmp_path_factory, "crystal", "--particles 3 --heads 2 --linear-samples 16")
    report([run], tmp_path / "report", 16)
    names = {path.stem for path in (tmp_path / "report").glob("*.png")}
    assert names == {"curves"} | MANY


@pytest.mark.slow
def test_ring_beside_the_exact_and_the_published_flow(tmp_path_factory, tmp_path):
    page = report([train(tmp_path_factory, "ring")], tmp_path / "report", 64)
    names = {path.stem for path in (tmp_path / "report").glob("*.png")}
    assert names == {"curves"} | PICTURES
    flow = {name: cells for name, *cells in page.tables[2][1:]}
    assert flow["centre of the flow (x, g)"][2] == "(3.700, -0.100)"
    assert flow["orbit through (8, 1.5): period"][1] == "120.9"


@pytest.mark.slow
def test_ring_of_another_speed_beside_its_own_exact_flow(tmp_path_factory, tmp_path):
    run = train(tmp_path_factory, "ring", "--speed 0.4")
    page = report([run], tmp_path / "report", 64)
    assert {path.stem for path in (tmp_path / "report").glob("*.png")} == {"curves"} | PICTURES
    assert "published" not in page.text
    assert "0.8456" in page.tables[0][1]


def test_bad_input_is_refused_in_one_line(tmp_path, capsys):
    run = tmp_path / "nowhere"
    assert "no config.json" in refused(capsys, f"report {run} --out {tmp_path / 'report'}")
    assert "at least 16" in refused(capsys, f"report {run} --samples 3")
    (tmp_path / "notes.txt").write_text("mine")
    assert "neither empty nor only a report" in refused(capsys, f"report {run} --out {tmp_path}")
    assert "at least one run" in refused(capsys, f"report --out {tmp_path / 'report'}")

"""`egattn doctor`: status, tables, JSON, and what never answers."""

import json
import os
import threading

import pytest

from egattn.cli import main
from egattn.doctor import DoctorConfig, attention, collectives, directory, examine, forms, machine
from egattn.doctor.attention import Shape
from egattn.doctor.row import Row

PARTS = ["packages", "directory", "devices", "jax", "attention", "collectives"]


@pytest.fixture
def quick(monkeypatch):
    """One tiny problem; the collectives have their own tests, 0.10.2's fault its own."""
    monkeypatch.setattr(attention, "SHAPES", {"tiny": Shape(1, 12, 4, 2, source=20)})
    monkeypatch.setattr(attention, "DTYPES", ("float32",))
    monkeypatch.setattr(collectives, "check_collectives", lambda: [Row("psum", True, "exact")])
    right = {name: form for name, form in forms.forms().items() if "39103" not in name}
    monkeypatch.setattr(forms, "forms", lambda: right)


def doctor(*args) -> int:
    try:
        main(["doctor", *map(str, args)])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.mark.usefixtures("quick")
class TestStatus:
    def test_a_fit_machine(self, tmp_path, capsys):
        assert doctor(tmp_path) == 0
        out = capsys.readouterr().out
        assert [line for line in out.splitlines() if line in PARTS] == PARTS
        assert "chunked float32" in out
        assert "nothing is wrong" in out
        assert "WRONG" not in out
        assert max(map(len, out.splitlines())) <= 100

    def test_one_object(self, tmp_path, capsys):
        assert doctor(tmp_path, "--json") == 0
        values = json.loads(capsys.readouterr().out)
        assert values["ok"] is True
        assert list(values["parts"]) == PARTS
        (row,) = (x for x in values["parts"]["attention"] if x["name"] == "chunked float32")
        assert row["ok"] is True
        assert 0 < row["numbers"]["entropy"] < 1

    @pytest.mark.parametrize("options", [[], ["--json"]])
    def test_an_unfit_machine(self, options, tmp_path, capsys, monkeypatch):
        numbers = {"entropy": float("nan"), "run ms": 3.0}
        rows = [Row("chunked float32", False, "wrong: entropy at [tiny]", numbers)]
        monkeypatch.setattr(attention, "check_attention", lambda: rows)
        assert doctor(tmp_path, *options) == 1
        out = capsys.readouterr().out
        assert "wrong: entropy at [tiny]" in out
        if options:
            values = json.loads(out)
            assert values["ok"] is False
            assert values["parts"]["attention"][0]["numbers"]["entropy"] is None
        else:
            assert out.splitlines()[-1].startswith("1 wrong: chunked float32 (")

    @pytest.mark.parametrize("options", [["no/such"], [__file__], [".", "--jsn"]])
    def test_bad_input_is_one_line(self, options, capsys):
        assert doctor(*options) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("egattn doctor: ")
        assert captured.err.count("\n") == 1


class TestNoAnswer:
    @pytest.fixture
    def never(self, monkeypatch):
        """Devices that never answer, until the test ends; what comes before takes no time."""
        end = threading.Event()
        monkeypatch.setattr(machine, "check_packages", list)
        monkeypatch.setattr(directory, "check_directory", lambda path: [])
        monkeypatch.setattr(machine, "check_devices", lambda: [Row("devices", end.wait(), "")])
        yield
        end.set()

    @pytest.mark.usefixtures("never")
    def test_it_is_wrong_and_the_last_part(self, tmp_path):
        parts = list(examine(DoctorConfig(tmp_path), limit=0.2))
        assert [part.name for part in parts] == ["packages", "directory", "devices"]
        assert parts[-1].stuck
        (row,) = parts[-1].rows
        assert (row.ok, row.found) == (False, "no answer in 0.2 s")

    @pytest.mark.usefixtures("never")
    def test_the_process_ends_all_the_same(self, tmp_path, monkeypatch, capsys):
        def leave(status):
            raise SystemExit(status + 40)

        monkeypatch.setattr("egattn.doctor.LIMIT", 0.2)
        monkeypatch.setattr(os, "_exit", leave)
        assert doctor(tmp_path) == 41
        assert "no answer" in capsys.readouterr().out

    def test_a_fault_of_the_doctor_s_own_is_no_finding(self, tmp_path, monkeypatch):
        def broken():
            raise ZeroDivisionError

        monkeypatch.setattr(machine, "check_packages", broken)
        with pytest.raises(ZeroDivisionError):
            next(examine(DoctorConfig(tmp_path)))

"""Packages are those that egattn asks for; an accelerator that jax does not use is named."""

import importlib.metadata

import pytest

from egattn.doctor import machine
from egattn.doctor.machine import check_devices, check_packages

NEEDS = ["jax>=0.10.1,!=0.10.2,!=0.11.1", "rich>=14", 'datasets>=3; extra == "hf"']


@pytest.fixture
def installed(monkeypatch):
    """Versions of installed packages; others are not installed."""
    versions = {"egattn": "0.1.0", "jax": "0.10.1", "rich": "15.0"}

    def version(name):
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: NEEDS)
    return versions


def states():
    return {row.name: row.ok for row in check_packages()}


class TestPackages:
    def test_this_environment_s_are_listed(self):
        rows = {row.name: row for row in check_packages()}
        assert rows["jax"].found.startswith(importlib.metadata.version("jax"))
        assert {"Python", "egattn", "flax", "jaxlib", "numpy"} <= set(rows)
        assert "datasets" not in rows

    def test_those_of_an_extra_are_not_asked_for(self, installed):
        assert states() == dict.fromkeys(("Python", "egattn", "jax", "rich"), True)

    @pytest.mark.parametrize("version", ["0.10.2", "0.11.1", "0.10.0"])
    def test_an_excluded_jax_is_wrong(self, installed, version):
        installed["jax"] = version
        row = next(row for row in check_packages() if row.name == "jax")
        assert row.ok is False
        assert row.found.startswith(f"{version}, egattn needs ")
        assert "!=0.10.2" in row.found

    @pytest.mark.parametrize("version", ["0.11.0", "0.11.2", "0.12.0.1", "0.13.0.dev1"])
    def test_another_is_not(self, installed, version):
        installed["jax"] = version
        assert states()["jax"]

    def test_a_missing_one_is_wrong(self, installed):
        del installed["rich"]
        assert states()["rich"] is False

    def test_without_metadata_nothing_is_claimed(self, monkeypatch):
        def requires(name):
            raise importlib.metadata.PackageNotFoundError(name)

        monkeypatch.setattr(importlib.metadata, "requires", requires)
        assert states() == {"Python": True, "egattn": None}


class TestDevices:
    def test_they_are_counted(self):
        rows = {row.name: row.found for row in check_devices()}
        assert rows["devices"] == "8 x cpu (cpu)"
        assert "cores" in rows["host"]

    @pytest.mark.parametrize(
        ("platforms", "ok"), [("", False), ("cuda", False), ("cpu", None), ("tpu,cpu", None)]
    )
    def test_a_gpu_that_jax_does_not_see_is_named(self, platforms, ok, monkeypatch, tmp_path):
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
        accelerator = (tmp_path, ("cuda", "gpu"), "egattn[cuda13]")
        monkeypatch.setattr(machine, "_ACCELERATORS", {"NVIDIA GPU": accelerator})
        row = check_devices()[-1]
        assert (row.name, row.ok) == ("NVIDIA GPU", ok)
        assert "here" in row.found

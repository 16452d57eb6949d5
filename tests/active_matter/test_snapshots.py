"""Files of snapshots: what is written is read back, and nothing else is taken for it."""

from typing import Any

import gsd.hoomd
import numpy as np
import pytest

from experiments.active_matter.__main__ import main
from experiments.active_matter.snapshots import read_snapshots
from experiments.active_matter.systems import DEFAULTS, SystemConfig, make_system
from tests.active_matter.running import refused

SMALL = "--particles 4 --trajectories 3 --times 2 --spacing 0.02"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("gsd") / "crystal.gsd"
    main(f"simulate crystal {path} {SMALL} --seed 3".split())
    return path


@pytest.fixture
def crystal():
    return make_system(SystemConfig("crystal", particles=4))


def test_other_programs_find_what_they_expect(written):
    with gsd.hoomd.open(str(written)) as frames:
        assert len(frames) == 6
        frame: Any = frames[3]
        assert frame.particles.types == ["crystal"]
        assert frame.configuration.dimensions == 2
        assert frame.particles.position.shape == (4, 3)
        assert (np.abs(frame.particles.position) < frame.configuration.box[0] / 2).all()
        assert (frame.particles.position[:, 2] == 0).all()
        logged = {name: value[0] for name, value in frame.log.items()}
    expected = {"speed": 0.2, "noise": 0.1, "packing": 0.1, "seed": 3, "dt": 0.01, "time": 0.02}
    expected["trajectories"] = 3
    assert logged == {f"system/{name}": pytest.approx(x) for name, x in expected.items()}


def test_read_back(written, crystal):
    z, trajectories = read_snapshots(written, crystal)
    assert z.shape == (6, 2, 4, 2)
    assert trajectories == 3
    with gsd.hoomd.open(str(written)) as frames:
        np.testing.assert_array_equal(z[:, 0], [f.particles.position[:, :2] for f in frames])
        np.testing.assert_array_equal(z[:, 1], [f.particles.velocity[:, :2] for f in frames])
    # 0.02 later: the same trajectories in the same order, moved a little.
    near = np.abs(z[3:] - z[:3]).max()
    assert 0 < near < 1 < np.abs(z[0] - z[1]).max()


def test_same_seed_same_snapshots(written, crystal, tmp_path):
    again, other = tmp_path / "again.gsd", tmp_path / "other.gsd"
    main(f"simulate crystal {again} {SMALL} --seed 3".split())
    main(f"simulate crystal {other} {SMALL} --seed 4".split())
    first = read_snapshots(written, crystal)[0]
    np.testing.assert_array_equal(read_snapshots(again, crystal)[0], first)
    assert np.abs(read_snapshots(other, crystal)[0] - first).min() > 0


def test_ring_is_centred_in_the_file_only(tmp_path):
    path, system = tmp_path / "ring.gsd", make_system(DEFAULTS["ring"])
    main(f"simulate ring {path} --trajectories 8 --times 1".split())
    z, _ = read_snapshots(path, system)
    assert z.shape == (8, 2, 1, 1)
    with gsd.hoomd.open(str(path)) as frames:
        written = np.array([frame.particles.position[0, 0] for frame in frames])
    np.testing.assert_allclose(z[:, 0, 0, 0], written + 8, atol=1e-5)
    assert np.abs(written).max() < 7.5


def rewritten(written, path, change):
    with gsd.hoomd.open(str(written)) as frames, gsd.hoomd.open(str(path), "w") as out:
        for frame in frames:
            change(frame)
            out.append(frame)
    return path


def lost(frame):
    frame.particles.position[2, 0] = np.nan


def faster(frame):
    frame.log["system/speed"] = np.array([0.3])


def unlogged(frame):
    frame.log = {}


DAMAGED = [
    (lost, "frame 0 has positions or velocities that are not finite"),
    (faster, r"frame 0 has speed 0.3, expected 0.2"),
    (unlogged, r"frame 0 has speed None, expected 0.2"),
]


@pytest.mark.parametrize(("change", "message"), DAMAGED)
def test_damaged_file(change, message, written, crystal, tmp_path):
    path = rewritten(written, tmp_path / "damaged.gsd", change)
    with pytest.raises(ValueError, match=message):
        read_snapshots(path, crystal)


def test_particles_in_one_place(tmp_path):
    path = tmp_path / "cluster.gsd"
    main(f"simulate cluster {path} --particles 4 --trajectories 2 --times 1".split())

    def coincide(frame):
        frame.particles.position[1] = frame.particles.position[2]

    system = make_system(SystemConfig("cluster", particles=4))
    assert len(read_snapshots(path, system)[0]) == 2
    with pytest.raises(ValueError, match="frame 0 has particles in one place"):
        read_snapshots(rewritten(path, tmp_path / "damaged.gsd", coincide), system)


def test_another_systems_file(written):
    with pytest.raises(ValueError, match="has 4 particles of crystal, expected 4 of cluster"):
        read_snapshots(written, make_system(SystemConfig("cluster", particles=4)))
    with pytest.raises(ValueError, match="has 4 particles of crystal, expected 5 of crystal"):
        read_snapshots(written, make_system(SystemConfig("crystal", particles=5)))


def test_not_a_file_of_this_kind(tmp_path, crystal):
    (tmp_path / "text.gsd").write_text("not snapshots")
    with pytest.raises(ValueError, match="is not a gsd file that can be read"):
        read_snapshots(tmp_path / "text.gsd", crystal)
    with pytest.raises(FileNotFoundError, match="is not a file"):
        read_snapshots(tmp_path / "none.gsd", crystal)


def test_nothing_is_overwritten(written, capsys):
    before = written.read_bytes()
    assert "exists; remove it" in refused(capsys, f"simulate crystal {written} {SMALL}")
    assert written.read_bytes() == before

"""Saving in the background: what is saved, what a failure does, what is kept."""

import errno
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from egattn.run import RunDirectory, arrays, checkpoints, integrity
from egattn.run.checkpoints import Saver, laid_out, restore
from egattn.run.integrity import damage, is_sealed, seal


@pytest.fixture
def directory(tmp_path) -> RunDirectory:
    (tmp_path / "run").mkdir()
    return RunDirectory(tmp_path / "run")


@pytest.fixture
def state(rng):
    """Arrays over eight devices, split in different ways."""
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    specs = {"w": PartitionSpec("a", "b"), "b": PartitionSpec("b"), "n": PartitionSpec()}
    values = {"w": rng.normal(size=(4, 8)), "b": rng.normal(size=8), "n": np.int32(3)}
    layout = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    return jax.device_put(jax.tree.map(np.float32, values) | {"n": values["n"]}, layout)


@pytest.mark.parametrize("bytes_limit", [None, 10**9, 10**3])
def test_a_save_is_of_the_state_as_it_was(directory, state, monkeypatch, bytes_limit):
    """With and without room for a copy on the devices."""
    memory = bytes_limit and {"bytes_limit": bytes_limit, "peak_bytes_in_use": 980}
    device = SimpleNamespace(memory_stats=lambda: memory)
    expected = jax.device_get(state)
    target = laid_out(state, jax.tree.map(lambda x: x.sharding, state))
    with Saver(directory, keep=1) as saver:
        with monkeypatch.context() as patched:
            patched.setattr(arrays.jax, "local_devices", lambda: [device])
            copy = saver.copy(state)
        # As the next step does, whose state is donated.
        for x in jax.tree.leaves(state):
            x.delete()
        saver.save(7, copy, {"next_index": 56})
        assert saver.newest() == 7
    kinds = {x.sharding.memory_kind for x in jax.tree.leaves(copy)}
    assert (kinds == {"pinned_host"}) == (bytes_limit == 10**3)
    step, restored = directory.read_checkpoint(lambda path: restore(path, target))
    assert step == 7
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), expected)
    assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(
        lambda x: x.sharding, target
    )


def test_a_failed_save_is_raised_by_the_next_call(directory, state, monkeypatch):
    def fails(_):
        raise OSError("the disk is gone")

    monkeypatch.setattr(checkpoints, "seal", fails)
    with Saver(directory, keep=1) as saver:
        saver.save(1, saver.copy(state), {})
        with pytest.raises(OSError, match="the disk is gone"):
            saver.save(2, saver.copy(state), {})
    with pytest.raises(OSError, match="the disk is gone"), Saver(directory, keep=1) as saver:
        saver.save(3, saver.copy(state), {})


def test_the_old_one_goes_when_the_new_one_is_complete(directory, state, monkeypatch):
    intact, told = [], []

    def sealing(path):
        intact.append({p.name for p in path.parent.iterdir() if is_sealed(p)})
        seal(path)

    monkeypatch.setattr(checkpoints, "seal", sealing)
    with Saver(directory, keep=1, saved=told.append) as saver:
        for step in (1, 2, 3):
            saver.save(step, saver.copy(state), {})
    assert intact == [set(), {"1"}, {"2"}]
    assert told == [1, 2, 3]
    assert directory.saved_steps() == [3]


def test_what_is_read_is_deleted_later(directory, state):
    """As by a run that goes on and keeps one checkpoint."""

    def read(path):
        with Saver(directory, keep=1) as saver:
            saver.save(2, saver.copy(state), {})
        return damage(path)

    with Saver(directory, keep=1) as saver:
        saver.save(1, saver.copy(state), {})
    assert directory.read_checkpoint(read) == (1, None)
    assert directory.saved_steps() == [1, 2]
    with Saver(directory, keep=1) as saver:
        saver.save(3, saver.copy(state), {})
    assert directory.saved_steps() == [3]


def test_what_is_deleted_before_it_is_read_gives_way_to_the_next(directory, state, monkeypatch):
    """Found intact, it is gone when it is to be locked."""
    whole = integrity.newest_intact
    found = []

    def late(*args):
        found.append(whole(*args)[0])
        if len(found) == 1:
            with Saver(directory, keep=1) as saver:
                saver.save(2, saver.copy(state), {})
        return found[-1], {}

    with Saver(directory, keep=1) as saver:
        saver.save(1, saver.copy(state), {})
    monkeypatch.setattr("egattn.run.directory.newest_intact", late)
    assert directory.read_checkpoint(damage) == (2, None)
    assert found == [1, 2]


def test_without_locks_what_is_deleted_while_it_is_read_gives_way_to_the_next(
    directory, state, monkeypatch
):
    def none(file, how):
        raise OSError(errno.ENOLCK, "no locks")

    seen = []

    def read(path):
        seen.append(int(path.name))
        if len(seen) == 1:
            with Saver(directory, keep=1) as saver:
                saver.save(2, saver.copy(state), {})
        return (path / "checksums.json").read_bytes()

    monkeypatch.setattr("fcntl.flock", none)
    monkeypatch.setattr("fcntl.lockf", none)
    with Saver(directory, keep=1) as saver:
        saver.save(1, saver.copy(state), {})
    assert directory.read_checkpoint(read)[0] == 2
    assert seen == [1, 2]


def test_other_errors_of_reading_are_not_tried_again(directory, state):
    def read(path):
        raise ValueError("another network")

    with Saver(directory, keep=1) as saver:
        saver.save(1, saver.copy(state), {})
    with pytest.raises(ValueError, match="another network"):
        directory.read_checkpoint(read)

"""Saving in the background: what is saved, what a failure does, what is kept."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from egattn.train.checkpoints import Checkpoints

from egattn.model import DecoderConfig
from egattn.run.integrity import is_sealed, seal
from egattn.sharding import make_mesh
from egattn.train import TrainConfig, checkpoints
from egattn.train.step import init_state


@pytest.fixture
def config(tmp_path):
    model = DecoderConfig.preset(
        "ereg_sm_t_scfuffn", vocab_size=32, context_length=8, num_layers=1, num_heads=2, embed_dim=8
    )
    (tmp_path / "run").mkdir()
    return TrainConfig(tmp_path / "run", model=model, keep_checkpoints=1)


@pytest.fixture
def mesh():
    return make_mesh("replica=2,fsdp=4")


@pytest.mark.parametrize("bytes_limit", [None, 10**9, 10**3])
def test_a_save_is_of_the_state_as_it_was(config, mesh, monkeypatch, bytes_limit):
    """With and without room for a copy on the devices."""
    memory = bytes_limit and {"bytes_limit": bytes_limit, "peak_bytes_in_use": 100}
    device = SimpleNamespace(memory_stats=lambda: memory)
    state = init_state(config, mesh)
    expected = jax.device_get(state)
    kinds: set[str | None] = set()
    write = Checkpoints._write

    def late(self, step, copy):
        kinds.update(x.sharding.memory_kind for x in jax.tree.leaves(copy))
        # As the next step does, whose state is donated.
        for x in jax.tree.leaves(state):
            x.delete()
        write(self, step, copy)

    monkeypatch.setattr(Checkpoints, "_write", late)
    with Checkpoints(config, mesh) as saving:
        with monkeypatch.context() as patched:
            patched.setattr(checkpoints.jax, "local_devices", lambda: [device])
            saving.save(7, saving.copy(state))
        assert saving.newest() == (7, {})
        restored = saving.restore(7)
    assert (kinds == {"pinned_host"}) == (bytes_limit == 10**3)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), expected)
    restored_to = {x.sharding.memory_kind for x in jax.tree.leaves(restored)}
    assert restored_to == {jax.devices()[0].default_memory().kind}


def test_a_failed_save_is_raised_by_the_next_call(config, mesh, monkeypatch):
    def fails(_):
        raise OSError("the disk is gone")

    monkeypatch.setattr(checkpoints, "seal", fails)
    state = init_state(config, mesh)
    with Checkpoints(config, mesh) as saving:
        saving.save(1, saving.copy(state))
        with pytest.raises(OSError, match="the disk is gone"):
            saving.save(2, saving.copy(state))
    with pytest.raises(OSError, match="the disk is gone"), Checkpoints(config, mesh) as saving:
        saving.save(3, saving.copy(state))


def test_the_old_one_goes_when_the_new_one_is_complete(config, mesh, monkeypatch):
    intact = []

    def sealing(path):
        intact.append({p.name for p in path.parent.iterdir() if is_sealed(p)})
        seal(path)

    monkeypatch.setattr(checkpoints, "seal", sealing)
    state = init_state(config, mesh)
    with Checkpoints(config, mesh) as saving:
        for step in (1, 2, 3):
            saving.save(step, saving.copy(state))
    assert intact == [set(), {"1"}, {"2"}]
    assert [p.name for p in saving.directory.iterdir()] == ["3"]

"""The doctor's collectives: exact on eight devices, and every lie is found."""

import jax
import jax.numpy as jnp
import pytest

from egattn.doctor import collectives
from egattn.doctor.collectives import check_collectives

NAMES = ("psum", "all_gather", "psum_scatter", "ppermute")
GRADIENT = "gradient of sharded attention"


def test_eight_right_devices_pass():
    rows = {row.name: row for row in check_collectives()}
    assert list(rows) == [*NAMES, GRADIENT]
    assert all(row.ok for row in rows.values())
    assert rows["psum"].found == "exact on 8 of 8 devices"


def test_one_device_has_nothing_to_compare(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    (row,) = check_collectives()
    assert (row.ok, row.found) == (None, "one device")


@pytest.fixture
def alone(monkeypatch):
    """Without the gradient, which takes longest."""
    monkeypatch.setattr(collectives, "_check_gradient", lambda mesh: (True, ""))


@pytest.mark.usefixtures("alone")
def test_a_collective_that_lies_on_one_device_is_found(monkeypatch):
    for name in NAMES:
        right = getattr(jax.lax, name)

        def lies(x, mesh_axis, *rest, right=right, **options):
            wrong = (jax.lax.axis_index(mesh_axis) == 3).astype(x.dtype)
            return right(x, mesh_axis, *rest, **options).at[..., -1].add(wrong)

        monkeypatch.setattr(jax.lax, name, lies)
    for row in check_collectives()[:4]:
        assert (row.ok, row.found) == (False, "wrong on devices 3 of 8")


@pytest.mark.usefixtures("alone")
def test_one_that_raises_is_a_row(monkeypatch):
    def raises(*_, **__):
        raise RuntimeError("NCCL operation failed: unhandled system error")

    monkeypatch.setattr(jax.lax, "psum", raises)
    row = check_collectives()[0]
    assert (row.name, row.ok) == ("psum", False)
    assert row.found == "RuntimeError: NCCL operation failed: unhandled system error"


def test_a_gradient_that_lacks_a_device_is_found(monkeypatch):
    right = collectives.attend_per_shard

    def lacking(mesh):
        def attend(query, key, value):
            # The example of the last device is a constant to the gradient.
            out, entropy = right(mesh)(query, key, value)
            stop = jnp.arange(len(out)) == len(out) - 1
            return tuple(
                jnp.where(stop[:, None, None, None][..., 0 : x.ndim], jax.lax.stop_gradient(x), x)
                for x in (out, entropy[..., None])
            )

        return attend

    monkeypatch.setattr(collectives, "attend_per_shard", lacking)
    monkeypatch.setattr(collectives, "_check_collective", lambda mesh, name: (True, ""))
    row = check_collectives()[-1]
    assert row.name == GRADIENT
    assert row.ok is False
    assert "relative error" in row.found

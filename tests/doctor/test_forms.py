"""The doctor's forms: right where jax is right, and wrong where it is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egattn.doctor import forms
from egattn.doctor.forms import check_form, check_forms

FORMS = forms.forms()
REDUCTION, BIAS, SINGLE, SUMS = FORMS


def test_a_right_jax_passes_and_0_10_2_does_not():
    rows = {row.name: row for row in check_forms()}
    assert list(rows) == list(FORMS)
    assert rows.pop(REDUCTION).ok == (jax.__version__ != "0.10.2")
    assert all(row.ok for row in rows.values())


def in_bfloat16(x):
    total = jnp.zeros(x.shape[0], jnp.bfloat16)
    return jax.lax.fori_loop(0, x.shape[1], lambda i, t: t + x[:, i].astype(t.dtype), total)


# What the releases named in jax's issues compute.
WRONG = {
    REDUCTION: lambda x: jnp.sum(x**2, axis=1).at[-1].multiply(1 - 0.0078),
    BIAS: lambda a, b, c: jnp.matmul(a, b, precision="highest") / 64 + c,
    SINGLE: lambda x: jnp.sqrt(513 + 0 * x),
    SUMS: in_bfloat16,
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_one_is_found(name):
    row = check_form(name, FORMS[name]._replace(compute=WRONG[name]))
    assert row.ok is False
    assert "allowed" in row.found


@pytest.mark.parametrize("name", WRONG)
def test_not_a_number_is_found(name):
    form = FORMS[name]
    wrong = form._replace(compute=lambda *x: np.nan * form.oracle(*x))
    assert check_form(name, wrong).ok is False


def test_one_that_raises_is_a_row(monkeypatch):
    def raises(*_):
        raise RuntimeError("INTERNAL: no kernel image\nfor this device")

    broken = {"form": FORMS[SINGLE]._replace(compute=raises), "right": FORMS[SINGLE]}
    monkeypatch.setattr(forms, "forms", lambda: broken)
    first, second = check_forms()
    assert (first.ok, first.found) == (False, "RuntimeError: INTERNAL: no kernel image")
    assert second.ok

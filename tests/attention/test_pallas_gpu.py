"""The Hopper kernels: on such a GPU the whole battery, anywhere else an interpreter."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egattn.attention.select import Problem as Selection
from egattn.attention.select import _pallas_gpu_lacks
from tests import oracle
from tests.attention.battery import AttentionBattery
from tests.attention.interpreted_kernels import CASES
from tests.oracle import Problem, Solution

ROOT = Path(__file__).parents[2]


def lacks() -> str | None:
    """Why the kernels cannot run in this process."""
    x = jax.ShapeDtypeStruct((1, 64, 1, 64), jnp.bfloat16)
    return _pallas_gpu_lacks(Selection.of(x, x, x, causal=True, segment_ids=None))


@pytest.mark.skipif(lacks() is not None, reason=str(lacks()))
class TestPallasGpu(AttentionBattery):
    """The kernels take bfloat16 and heads of 64 or 128: inputs are rounded, heads zero-padded."""

    implementation = "pallas_gpu"
    output_tolerance = AttentionBattery.bf16_output_tolerance
    entropy_tolerance = AttentionBattery.bf16_entropy_tolerance
    gradient_tolerance = AttentionBattery.bf16_gradient_tolerance

    def attend(self, query, key, value, temperature=None, **options):
        head_dim = query.shape[-1]
        pad = [(0, 0), (0, 0), (0, 0), (0, -head_dim % 64)]
        inputs = (jnp.pad(x.astype(jnp.bfloat16), pad) for x in (query, key, value))
        if options.get("scale") is None:
            options["scale"] = head_dim**-0.5
        query16, key16, value16 = inputs
        out, entropy = super().attend(query16, key16, value16, temperature, **options)
        return out[..., :head_dim].astype(query.dtype), entropy

    def expected(self, problem: Problem) -> Solution:
        return super().expected(problem.rounded())

    def solve(self, problem: Problem, dtype=jnp.float32) -> Solution:
        return super().solve(problem.rounded(), dtype)

    @pytest.mark.parametrize("head_dim", [64, 128])
    @pytest.mark.parametrize("causal", [True, False])
    def test_a_row_of_many_blocks(self, causal, head_dim):
        options = oracle.Options(2048, batch=1, kv_heads=1, group=1, causal=causal)
        self.assert_solves(dataclasses.replace(options, head_dim=head_dim).problem())

    def test_every_row_is_written_and_nothing_else(self):
        """Fresh buffers hold what was freed into them: NaN, of many shapes."""
        poison = [jnp.full((1 << i,), jnp.nan, jnp.bfloat16) for i in range(10, 27)]
        jax.block_until_ready(poison)
        del poison
        self.assert_solves(oracle.Options(449, batch=3, temperature="per_row").problem())


@pytest.fixture(scope="module")
def errors() -> dict[str, dict[str, float]]:
    """Errors of the cases by name, from a process of its own: the interpreter's threads wait for
    each other, and need more of them than a small machine's default pool has."""
    environment = {**os.environ, "NPROC": "16", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.attention.interpreted_kernels"],
        capture_output=True,
        text=True,
        timeout=900,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="the kernels need jax 0.11")
class TestInterpreted:
    """Numerics of the same kernels without a GPU."""

    @pytest.mark.parametrize("name", CASES)
    def test_matches_the_oracle(self, errors, name):
        assert errors[name]["out"] <= AttentionBattery.bf16_output_tolerance
        assert errors[name]["entropy"] <= AttentionBattery.bf16_entropy_tolerance
        for gradient in ("query", "key", "value", "temperature"):
            assert errors[name][gradient] <= AttentionBattery.bf16_gradient_tolerance, gradient

    def test_rows_that_see_nothing_are_zero(self, errors):
        assert errors["segments"]["blind"] == 0
        assert np.isfinite(list(errors["segments"].values())).all()

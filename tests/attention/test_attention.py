"""`entropy_attention`: its implementations, its memory, its argument checks, and their oracle."""

import dataclasses
import os
import re
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import egattn
from egattn.attention.sums import row_sum
from tests import oracle
from tests.attention.battery import AttentionBattery, assert_close, assert_gradients
from tests.jaxprs import intermediates
from tests.oracle import Options, Problem, normal


class TestReference(AttentionBattery):
    implementation = "reference"


class TestChunked(AttentionBattery):
    implementation = "chunked"


class TestRowSum:
    @pytest.mark.parametrize("n", [1, 127, 128, 129, 1000, 20000])
    def test_matches_float64(self, n, rng):
        x = rng.standard_exponential((2, 3, n)).astype(np.float32)
        actual = jax.jit(row_sum)(x)
        np.testing.assert_allclose(actual, x.astype(np.float64).sum(-1), rtol=5e-7)

    def test_the_compiler_keeps_both_levels(self):
        run = jax.jit(lambda x: row_sum(jnp.exp(x)))
        program = run.lower(jnp.ones((4, 1024))).compile().as_text() or ""
        assert re.findall(r"= f32\[([\d,]+)\]\S* reduce\(", program) == ["4,8", "4"]


def dense_loss(inputs: dict[str, jax.Array], problem: Problem) -> jax.Array:
    """The definition as a formula on whole arrays, for autodiff; every row must see a key."""
    group = problem.query.shape[2] // problem.key.shape[2]
    k, v = (jnp.repeat(inputs[name], group, axis=2) for name in ("key", "value"))
    s = jnp.einsum("bihd,bjhd->bhij", inputs["query"], k)
    s = s * (problem.scale or k.shape[-1] ** -0.5)
    s = s / jnp.broadcast_to(inputs["temperature"], s.shape[:3])[..., None]
    if problem.causal:
        s = jnp.where(jnp.tri(*s.shape[2:], k=s.shape[3] - s.shape[2], dtype=bool), s, -1e30)
    a = jax.nn.softmax(s)
    entropy = -jnp.sum(jnp.where(a > 0, a * jnp.log(jnp.where(a > 0, a, 1)), 0), -1)
    out = jnp.einsum("bhij,bjhd->bihd", a, v)
    return jnp.vdot(out, problem.out_cotangent) + jnp.vdot(entropy, problem.entropy_cotangent)


class TestOracle:
    @pytest.mark.parametrize("causal", [True, False])
    @pytest.mark.parametrize("layout", ["square", "more_keys"])
    @pytest.mark.parametrize("temperature", ["per_head", "per_row", "per_example"])
    def test_gradients_are_those_of_float64_autodiff(self, causal, layout, temperature):
        options = Options(9, layout=layout, causal=causal, temperature=temperature, head_dim=4)
        problem = options.problem()
        expected = oracle.solve(problem).gradients
        with jax.enable_x64(True):
            inputs = {name: jnp.asarray(getattr(problem, name), jnp.float64) for name in expected}
            loss, gradients = jax.value_and_grad(dense_loss)(inputs, problem)
            np.testing.assert_allclose(loss, oracle.loss(problem), rtol=1e-12)
            for name, gradient in gradients.items():
                np.testing.assert_allclose(gradient, expected[name], rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("layout", ["square", "segments", "more_keys", "fewer_keys"])
    def test_gradients_are_those_of_finite_differences(self, layout, rng):
        problem = Options(9, layout=layout, temperature="per_row", head_dim=4).problem()
        for name, gradient in oracle.solve(problem).gradients.items():
            direction = normal(rng, gradient.shape)
            moved = getattr(problem, name) + 1e-5 * direction
            back = getattr(problem, name) - 1e-5 * direction
            up = oracle.loss(dataclasses.replace(problem, **{name: moved}))
            down = oracle.loss(dataclasses.replace(problem, **{name: back}))
            slope = np.vdot(gradient, direction)
            np.testing.assert_allclose((up - down) / 2e-5, slope, rtol=1e-7, atol=1e-8)


class TestMemory:
    LENGTH = 2048

    def largest(self, implementation: Any, program) -> int:
        """Size of the largest intermediate of one head with head size 8."""
        x = jnp.zeros((1, self.LENGTH, 1, 8))
        temperature = jnp.ones((1, self.LENGTH))

        def loss(q, k, v, t):
            out, entropy = egattn.entropy_attention(q, k, v, t, implementation=implementation)
            return out.sum() + entropy.sum()

        jaxpr = jax.make_jaxpr(program(loss))(x, x, x, temperature).jaxpr
        return max(aval.size for aval in intermediates(jaxpr))

    PROGRAMS = (
        lambda loss: loss,
        lambda loss: jax.grad(loss, argnums=(0, 1, 2, 3)),
    )

    @pytest.mark.parametrize("program", PROGRAMS, ids=["forward", "backward"])
    def test_chunked_holds_no_array_of_all_scores(self, program):
        assert self.largest("chunked", program) <= self.LENGTH**2 // 4

    @pytest.mark.parametrize("program", PROGRAMS, ids=["forward", "backward"])
    def test_the_default_holds_none_either(self, program):
        assert self.largest(None, program) <= self.LENGTH**2 // 4

    @pytest.mark.parametrize("program", PROGRAMS, ids=["forward", "backward"])
    def test_the_reference_does_so_the_search_would_find_one(self, program):
        assert self.largest("reference", program) >= self.LENGTH**2


LONG_RUN = """
import resource, sys
import jax, numpy as np
import egattn

def loss(q, k, v, w, u):
    out, entropy = egattn.entropy_attention(q, k, v, implementation="chunked")
    return (out * w).sum() + (entropy * u).sum(), (out, entropy)

step = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
path = sys.argv[1]
arrays = [np.load(f"{path}/{name}.npy") for name in "qkvwu"]
short = [x[..., :1024] if x.ndim == 3 else x[:, :1024] for x in arrays]
jax.block_until_ready(step(*short))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
(dq, dk, dv), (out, entropy) = jax.block_until_ready(step(*arrays))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
np.savez(f"{path}/result", dq=dq, dk=dk, dv=dv, out=out, entropy=entropy, growth=after - before)
"""


def test_chunked_runs_16384_positions_within_a_gibibyte(rng, tmp_path):
    length = 16384
    q, k, v, w = (normal(rng, (1, length, 1, 64)).astype(np.float32) for _ in range(4))
    u = normal(rng, (1, 1, length)).astype(np.float32)
    for name, x in zip("qkvwu", (q, k, v, w, u), strict=True):
        np.save(tmp_path / name, x)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", LONG_RUN, str(tmp_path)]
    subprocess.run(command, env=environment, check=True, timeout=300)

    result = np.load(tmp_path / "result.npz")
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    assert result["growth"] * unit < 2**30
    rows = (0, 1, 511, 512, 8191, 16383)
    for i in rows:
        # Aligned at the end, one query and the keys up to it are the causal row.
        row, seen = slice(i, i + 1), slice(i + 1)
        alone = oracle.solve(Problem(q[:, row], k[:, seen], v[:, seen], w[:, row], u[..., row]))
        assert_close("output", result["out"][:, row], alone.out, 1e-6)
        assert abs(result["entropy"][0, 0, i] - alone.entropy[0, 0, 0]) <= 2e-6
        assert_gradients({"query": result["dq"][:, row]}, alone, 1e-5)
    # The last 64 keys are seen by the last 64 queries alone.
    last = slice(length - 64, None)
    tail = oracle.solve(Problem(q[:, last], k, v, w[:, last], u[..., last])).gradients
    assert_close("key", result["dk"][:, last], tail["key"][:, last], 1e-5)
    assert_close("value", result["dv"][:, last], tail["value"][:, last], 1e-5)


@pytest.fixture
def unchecked(monkeypatch):
    """Without the tests' type checks, as users call the library."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def attend(implementation: Any = None, **changes):
    """Attention of B=2, T=S=3, H=4, K=2, D=8 with some arguments changed."""
    arguments: dict[str, Any] = {
        "query": jnp.ones((2, 3, 4, 8)),
        "key": jnp.ones((2, 3, 2, 8)),
        "value": jnp.ones((2, 3, 2, 8)),
    }
    return egattn.entropy_attention(**arguments | changes, implementation=implementation)


BAD_ARGUMENTS = {
    "query without heads": ({"query": jnp.ones((2, 3, 8))}, r"query.*\(2, 3, 8\)"),
    "no positions": ({"query": jnp.ones((2, 0, 4, 8))}, r"query.*non-empty.*\(2, 0, 4, 8\)"),
    "integer query": ({"query": jnp.ones((2, 3, 4, 8), int)}, "query.*int32"),
    "other batch": ({"query": jnp.ones((1, 3, 4, 8))}, r"batch.*\(1, 3, 4, 8\).*\(2, 3, 2, 8\)"),
    "other head_dim": ({"query": jnp.ones((2, 3, 4, 6))}, r"head_dim.*\(2, 3, 4, 6\)"),
    "value of another length": ({"value": jnp.ones((2, 4, 2, 8))}, r"value.*\(2, 4, 2, 8\)"),
    "value with other heads": ({"value": jnp.ones((2, 3, 1, 8))}, r"value.*\(2, 3, 1, 8\)"),
    "heads not divided": ({"query": jnp.ones((2, 3, 5, 8))}, "heads.*2.*5"),
    "fewer heads than keys have": ({"query": jnp.ones((2, 3, 1, 8))}, "heads.*2.*1"),
    "temperature [T, H]": ({"temperature": jnp.ones((3, 4))}, r"\(2, 4, 3\).*\(3, 4\)"),
    "temperature of rank 4": ({"temperature": jnp.ones((1, 2, 4, 3))}, "temperature"),
    "temperature zero": ({"temperature": jnp.zeros((4, 3))}, "temperature.*> 0.*0.0"),
    "temperature partly negative": (
        {"temperature": jnp.ones((4, 3)).at[1, 2].set(-2)},
        "temperature.*> 0.*-2",
    ),
    "temperature NaN": ({"temperature": jnp.full((4, 3), jnp.nan)}, "temperature.*> 0.*nan"),
    "temperature number": ({"temperature": -1.0}, "temperature.*> 0.*-1"),
    "segments of another batch": (
        {"segment_ids": jnp.zeros((1, 3), jnp.int32)},
        r"segment_ids.*\(2, 3\).*\(1, 3\)",
    ),
    "segments with more keys": (
        {
            "segment_ids": jnp.zeros((2, 3), jnp.int32),
            "key": jnp.ones((2, 5, 2, 8)),
            "value": jnp.ones((2, 5, 2, 8)),
        },
        "segment_ids.*5",
    ),
}


@pytest.mark.usefixtures("unchecked")
class TestArguments:
    @pytest.mark.parametrize(("changes", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
    def test_bad_ones_are_refused_in_one_line(self, changes, message):
        with pytest.raises(ValueError, match=message) as refusal:
            attend(**changes)
        assert "\n" not in str(refusal.value)

    @pytest.mark.parametrize("value", [0.0, -1.0, np.zeros((4, 1), np.float32), jnp.zeros((4, 1))])
    def test_a_known_bad_temperature_is_refused_under_jit_too(self, value):
        with pytest.raises(ValueError, match=r"must be > 0, got a minimum of -?\d"):
            jax.jit(lambda query: attend(query=query, temperature=value))(jnp.ones((2, 3, 4, 8)))

    @pytest.mark.parametrize("value", [2.0, np.full((4, 1), 2.0), jnp.full((4, 1), 2, jnp.float32)])
    def test_a_known_good_temperature_works_under_jit(self, value):
        run = jax.jit(lambda query: attend(query=query, temperature=value))
        np.testing.assert_allclose(run(jnp.ones((2, 3, 4, 8)))[1], attend(temperature=value)[1])

    def test_an_unknown_implementation_names_the_nearest(self):
        with pytest.raises(ValueError, match=r"'chunkd'.*'chunked'"):
            attend("chunkd")

    @pytest.mark.parametrize("name", ["cudnn", "pallas_gpu", "pallas_tpu"])
    def test_an_unavailable_implementation_names_one_that_can(self, name):
        with pytest.raises(NotImplementedError, match=f"{name}.*chunked"):
            attend(name)

    def test_numpy_inputs_and_the_default_implementation_work(self):
        problem = Options(5, temperature="per_row").problem()
        arrays = (problem.query, problem.key, problem.value, problem.temperature)
        # Ignored: how many arrays there are is not in their type.
        out, entropy = egattn.entropy_attention(*(np.float32(x) for x in arrays))  # pyright: ignore - NumPy
        expected = oracle.solve(problem)
        assert_close("output", np.asarray(out), expected.out, 1e-6)
        np.testing.assert_allclose(entropy, expected.entropy, atol=2e-6)

"""The entropy that `cudnn` takes from a kernel without entropy; a dense stand-in is that kernel."""

import dataclasses
import re
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as fused

import egattn
from egattn.attention import cudnn, select
from tests import oracle
from tests.attention.battery import (
    INPUTS,
    AttentionBattery,
    assert_close,
    assert_entropy,
    assert_gradients,
    tree_close,
)
from tests.oracle import Options, Problem, to_bfloat16

pytestmark = pytest.mark.slow


def dense(q, k, v, *, scale: float, causal: bool):
    """What the stock kernel computes: output in q's dtype, and float32 logsumexp [B, H, T]."""
    group = q.shape[2] // k.shape[2]
    wide = (x.astype(jnp.float32) for x in (q, *(jnp.repeat(x, group, axis=2) for x in (k, v))))
    return dense_float32(*wide, scale=scale, causal=causal, dtype=q.dtype)


def dense_float32(q, k, v, *, scale, causal, dtype):
    highest = jax.lax.Precision.HIGHEST
    s = scale * jnp.einsum("bihd,bjhd->bhij", q, k, precision=highest)
    if causal:
        # Aligned at the start, as cuDNN has it.
        s = jnp.where(jnp.tri(*s.shape[2:], dtype=bool), s, -jnp.inf)
    p = jax.nn.softmax(s)
    out = jnp.einsum("bhij,bjhd->bihd", p, v, precision=highest)
    # A gradient of logsumexp would be none of the kernel's.
    return out.astype(dtype), jax.lax.stop_gradient(jax.nn.logsumexp(s, axis=-1))


@pytest.fixture(autouse=True)
def on_a_gpu(monkeypatch):
    """What `cudnn` needs of device, dtype and head size is there; what it needs else is not."""
    real = select._LACKS["cudnn"]

    def lacks(problem):
        able = {"platform": "gpu", "capability": (9, 0), "dtype": "bfloat16", "head_dim": 64}
        return real(problem._replace(**able))

    monkeypatch.setitem(select._LACKS, "cudnn", lacks)


class TestCudnn(AttentionBattery):
    """Without segments, and with as many keys as queries under a causal mask."""

    implementation = "cudnn"
    # E is a difference of two numbers as large as the scores, and in bfloat16 one is rounded.
    entropy_tolerance = 4e-6
    sharp_entropy_tolerance = 3e-4
    bf16_entropy_tolerance = 5e-3

    # About segments alone.
    test_padding_alone_is_zero_everywhere: Any = None
    test_rows_with_one_key_have_no_entropy: Any = None
    test_packed_documents_equal_documents_alone: Any = None
    test_rows_that_see_nothing_are_zero_and_so_are_their_gradients: Any = None

    @pytest.fixture(autouse=True)
    def kernel(self, monkeypatch):
        monkeypatch.setattr(cudnn, "_padded", lambda *_: False)
        monkeypatch.setattr(cudnn, "_stock", dense)

    def assert_solves(self, problem: Problem) -> None:
        square = problem.query.shape[1] == problem.key.shape[1]
        if problem.segment_ids is None and (square or not problem.causal):
            return super().assert_solves(problem)
        with pytest.raises(NotImplementedError, match=r"'cudnn' needs .*: reference, chunked"):
            self.solve(problem)

    def test_float16_inputs_lose_less(self):
        problem = Options(length=257, head_dim=64).problem().rounded()
        actual, expected = self.solve(problem, jnp.float16), oracle.solve(problem)
        assert_close("output", actual.out, expected.out, self.bf16_output_tolerance / 8)
        assert_entropy(actual.entropy, expected.entropy, self.bf16_entropy_tolerance / 8)
        assert_gradients(actual.gradients, expected, self.bf16_gradient_tolerance / 8)

    @pytest.mark.parametrize("layout", ["square", "more_keys", "fewer_keys"])
    def test_bfloat16_inputs_lose_only_their_own_rounding(self, layout):
        options = Options(length=257, head_dim=64, layout=layout, causal=layout == "square")
        problem = options.problem().rounded()
        actual, expected = self.solve(problem, jnp.bfloat16), oracle.solve(problem)
        assert_close("output", actual.out, expected.out, self.bf16_output_tolerance)
        assert_entropy(actual.entropy, expected.entropy, self.bf16_entropy_tolerance)
        assert_gradients(actual.gradients, expected, self.bf16_gradient_tolerance)

    def test_a_temperature_rounds_the_query_and_nothing_else(self):
        options = Options(length=257, head_dim=64, temperature="per_row")
        problem = options.problem().rounded()
        temperature = np.moveaxis(problem.temperatures(), 1, 2)[..., None]
        query = to_bfloat16((problem.query / temperature).astype(np.float32))
        expected = oracle.solve(dataclasses.replace(problem, query=query, temperature=None))
        actual = self.solve(problem, jnp.bfloat16)
        assert_close("output", actual.out, expected.out, self.bf16_output_tolerance)
        assert_entropy(actual.entropy, expected.entropy, self.bf16_entropy_tolerance)
        gradients = expected.gradients
        slope = -(gradients["query"] * query).sum(-1).swapaxes(1, 2) / problem.temperatures()
        gradients = {**gradients, "temperature": slope.sum(0)}
        gradients["query"] = gradients["query"] / temperature
        for name, gradient in actual.gradients.items():
            assert_close(name, gradient, gradients[name], self.bf16_gradient_tolerance)

    def test_a_large_score_common_to_a_row_costs_a_bfloat16_entropy_no_digit(self):
        problem = Options(length=257, head_dim=64).problem()
        problem = dataclasses.replace(problem, key=problem.key + 4).rounded()
        entropy = self.solve(problem, jnp.bfloat16).entropy
        assert_entropy(entropy, oracle.solve(problem).entropy, self.bf16_entropy_tolerance)

    @pytest.mark.parametrize("layout", ["square"])
    def test_no_step_makes_a_nan(self, layout):
        super().test_no_step_makes_a_nan(layout)

    def test_the_first_causal_row_has_no_entropy(self):
        first = self.solve(Options(length=257).problem()).entropy[:, :, 0]
        assert (first >= 0).all()
        assert (first <= self.entropy_tolerance).all()

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("name", INPUTS[:3])
    def test_non_finite_inputs_stay_visible(self, name, bad):
        problem = Options(1100, batch=1, kv_heads=1, group=1).problem()
        inputs, _ = self.arrays(problem)
        inputs[name] = inputs[name].at[0, 600].set(bad)
        out, entropy = jax.jit(self.attend)(**inputs)
        rows = slice(600, 601) if name == "query" else slice(600, None)
        assert not jnp.isfinite(out[0, rows]).all(axis=(1, 2)).any()
        if name != "value":
            assert not jnp.isfinite(entropy[0, 0, rows]).any()

    def test_vmap_equals_a_loop(self):
        problem = Options(length=40, temperature="per_row").problem()
        inputs, _ = self.arrays(problem)
        stacks = {name: jnp.stack([x, 2 * x]) for name, x in inputs.items()}

        def gradients(inputs):
            def loss(inputs):
                out, entropy = self.attend(**inputs)
                return (out**2).sum() + (entropy**2).sum()

            return jax.value_and_grad(loss)(inputs)

        together = jax.jit(jax.vmap(gradients))(stacks)
        for i in range(2):
            alone = jax.jit(gradients)({name: x[i] for name, x in stacks.items()})
            tree_close(jax.tree.map(lambda x, i=i: x[i], together), alone, self.gradient_tolerance)

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    @pytest.mark.parametrize("layout", ["square", "more_keys"])
    def test_one_padded_call_gives_what_two_give(self, layout, dtype, monkeypatch):
        options = Options(90, layout=layout, causal=layout == "square", temperature="per_row")
        problem = options.problem()
        two = self.solve(problem, dtype)
        monkeypatch.setattr(cudnn, "_padded", lambda *_: True)
        one = self.solve(problem, dtype)
        rounding = 2e-6 if dtype == jnp.float32 else 4e-3
        assert_close("output", one.out, two.out, rounding)
        assert_close("entropy", one.entropy, two.entropy, rounding)
        for name, gradient in one.gradients.items():
            assert_close(name, gradient, two.gradients[name], rounding)


class TestKernel:
    """The program for a GPU, compiled nowhere: which kernels it calls, and on what."""

    @pytest.fixture(autouse=True)
    def gpu(self, monkeypatch):
        version = types.SimpleNamespace(cudnn_get_version=lambda: 91900)
        monkeypatch.setattr(fused, "cuda_versions", version)

    def program(self, length: int, head_dim: int, causal: bool = True) -> str:
        queries = jax.ShapeDtypeStruct((2, length, 4, head_dim), jnp.bfloat16)
        keys = jax.ShapeDtypeStruct((2, length, 2, head_dim), jnp.bfloat16)

        def loss(*arrays):
            out, entropy = egattn.entropy_attention(*arrays, causal=causal, implementation="cudnn")
            return out.astype(jnp.float32).sum() + entropy.sum()

        traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(queries, keys, keys)
        return traced.lower(lowering_platforms=("cuda",)).as_text()

    @pytest.mark.parametrize(
        ("length", "head_dim", "calls"), [(128, 64, 2), (512, 64, 1), (512, 128, 2)]
    )
    def test_each_call_runs_forward_once_and_backward_once(self, length, head_dim, calls):
        program = self.program(length, head_dim)
        assert len(re.findall(r"__cudnn\$fmhaSoftmax\(", program)) == calls
        assert len(re.findall(r"__cudnn\$fmhaSoftmaxBackward\(", program)) == calls

    @pytest.mark.parametrize(("causal", "mask"), [(True, "CAUSAL"), (False, "NO_MASK")])
    def test_the_mask_and_the_float32_logsumexp_are_the_kernel_s(self, causal, mask):
        kernel = next(
            line
            for line in self.program(128, 64, causal).splitlines()
            if "@__cudnn$fmhaSoftmax(" in line
        )
        masks = re.findall(r"mask_type[^A-Z]*([A-Z_]+)", kernel)
        assert masks == [mask]
        assert "tensor<2x4x128xf32>" in kernel

    def test_no_array_of_scores_is_held(self):
        assert "x2048x2048x" not in self.program(2048, 64)

"""What every implementation of `entropy_attention` must do: one class, subclassed once for each."""

import dataclasses
import functools
import itertools
from typing import Any, ClassVar

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

import egattn
from egattn.doctor.attention import BOUNDS
from tests import oracle
from tests.oracle import Options, Problem, Solution

# Block edges of any implementation lie near powers of two.
LENGTHS = (257, 1, 2, 127, 128, 129, 255, 300, 37, 90, 201)
LAYOUTS = ("square", "segments", "more_keys", "fewer_keys")
TEMPERATURES = ("none", "per_head", "per_row", "per_example")
INPUTS = ("query", "key", "value", "temperature")


OPTIONS = st.builds(
    Options,
    length=st.sampled_from(LENGTHS) | st.integers(1, 300),
    batch=st.integers(1, 3),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    head_dim=st.sampled_from((16, 1, 8, 64)),
    layout=st.sampled_from(LAYOUTS),
    causal=st.booleans(),
    temperature=st.sampled_from(TEMPERATURES),
    scale_factor=st.sampled_from((None, 0.6, 1.2)),
    seed=st.integers(0, 1000),
)


def crossed_options() -> list[Options]:
    """Every layout with every mask and every temperature; shapes vary along the way."""
    crossed = itertools.product(LAYOUTS, (True, False), TEMPERATURES)
    return [
        Options(
            layout=layout,
            causal=causal,
            temperature=temperature,
            length=LENGTHS[i % len(LENGTHS)],
            batch=1 + i % 3,
            kv_heads=1 + i // 3 % 2,
            group=1 + i // 2 % 3,
            head_dim=(16, 64, 8, 1, 64)[i % 5],
            scale_factor=(None, 0.6)[i // 4 % 2],
            seed=i,
        )
        for i, (layout, causal, temperature) in enumerate(crossed)
    ]


class AttentionBattery:
    """Tests of one implementation; a kernel with coarser products relaxes the tolerances.

    Attributes:
      implementation: Name to pass to `entropy_attention`.
      output_tolerance: Norm-wise relative error of the output, float32.
      entropy_tolerance: Largest error of an entropy of unit-normal inputs, nats, float32.
      sharp_entropy_tolerance: The same with queries 4 times larger and temperatures down to 0.2.
      gradient_tolerance: Norm-wise relative error of each gradient, float32.
      bf16_output_tolerance: As `output_tolerance`, bfloat16 inputs.
      bf16_entropy_tolerance: As `entropy_tolerance`, bfloat16 inputs.
      bf16_gradient_tolerance: As `gradient_tolerance`, bfloat16 inputs.
    """

    implementation: ClassVar[Any]
    output_tolerance, entropy_tolerance, gradient_tolerance = BOUNDS["float32"]
    sharp_entropy_tolerance: ClassVar[float] = 3e-5
    bf16_output_tolerance, bf16_entropy_tolerance, bf16_gradient_tolerance = BOUNDS["bfloat16"]

    def attend(self, query, key, value, temperature=None, **options):
        return egattn.entropy_attention(
            query, key, value, temperature, implementation=self.implementation, **options
        )

    def solve(self, problem: Problem, dtype=jnp.float32) -> Solution:
        """What `oracle.solve` computes, by the implementation under test."""
        inputs, weights = self.arrays(problem, dtype)
        run = jax.jit(jax.value_and_grad(self.loss(problem), argnums=0, has_aux=True))
        (_, (out, entropy)), gradients = run(inputs, *weights)
        assert out.dtype == dtype
        assert entropy.dtype == jnp.float32
        wide: dict[str, oracle.Array] = {
            name: np.asarray(x, np.float64) for name, x in gradients.items()
        }
        return Solution(np.asarray(out, np.float64), np.asarray(entropy, np.float64), wide, {})

    def expected(self, problem: Problem) -> Solution:
        """The right answer for the inputs that `solve` hands to the implementation."""
        return oracle.solve(problem)

    def loss(self, problem: Problem):
        options = {"scale": problem.scale, "causal": problem.causal}
        if problem.segment_ids is not None:
            options["segment_ids"] = jnp.asarray(problem.segment_ids)

        def loss(inputs, out_cotangent, entropy_cotangent):
            out, entropy = self.attend(**inputs, **options)
            mixed = jnp.vdot(out.astype(jnp.float32), out_cotangent.astype(jnp.float32))
            return mixed + jnp.vdot(entropy, entropy_cotangent), (out, entropy)

        return loss

    @staticmethod
    def arrays(problem: Problem, dtype=jnp.float32):
        """Differentiable inputs by name, and the cotangents."""
        inputs = {name: jnp.asarray(getattr(problem, name), dtype) for name in INPUTS[:3]}
        if problem.temperature is not None:
            inputs["temperature"] = jnp.asarray(problem.temperature, jnp.float32)
        weights = (problem.out_cotangent, problem.entropy_cotangent)
        return inputs, tuple(jnp.asarray(x, jnp.float32) for x in weights)

    def assert_solves(self, problem: Problem) -> None:
        actual, expected = self.solve(problem), self.expected(problem)
        assert_close("output", actual.out, expected.out, self.output_tolerance)
        assert_entropy(actual.entropy, expected.entropy, self.entropy_tolerance)
        assert_gradients(actual.gradients, expected, self.gradient_tolerance)

    @pytest.mark.parametrize("options", crossed_options(), ids=Options.name)
    def test_all_options_match_the_oracle(self, options):
        self.assert_solves(options.problem())

    @given(OPTIONS)
    @settings(max_examples=12)
    def test_random_problems_match_the_oracle(self, options):
        self.assert_solves(options.problem())

    @pytest.mark.parametrize("causal", [True, False])
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_rows_of_many_blocks_match_the_oracle(self, layout, causal):
        options = Options(1100, batch=1, kv_heads=1, layout=layout, causal=causal)
        self.assert_solves(dataclasses.replace(options, temperature="per_row").problem())

    @pytest.mark.parametrize("silent", ["out_cotangent", "entropy_cotangent"])
    def test_either_output_alone_has_the_right_gradients(self, silent):
        problem = Options(length=140, temperature="per_row").problem()
        weights = np.zeros_like(getattr(problem, silent))
        self.assert_solves(dataclasses.replace(problem, **{silent: weights}))

    @pytest.mark.parametrize("causal", [True, False])
    @pytest.mark.parametrize("length", [300, 1100])
    def test_entropy_of_sharp_and_flat_rows_is_accurate(self, length, causal):
        problem = Options(length, batch=1, kv_heads=1, head_dim=64, causal=causal).problem()
        temperature = np.geomspace(0.2, 2, 2 * length, dtype=np.float32).reshape(2, length)
        problem = dataclasses.replace(problem, query=4 * problem.query, temperature=temperature)
        actual, expected = self.solve(problem), self.expected(problem)
        assert_entropy(actual.entropy, expected.entropy, self.sharp_entropy_tolerance)
        for gradient in actual.gradients.values():
            assert np.isfinite(gradient).all()

    def test_a_large_score_common_to_a_row_costs_its_entropy_no_digit(self):
        # Small integers, so that float32 holds every score exactly, shifted or not.
        problem = Options(length=300, batch=1, kv_heads=1).problem()
        query, key = np.rint(2 * problem.query), np.rint(2 * problem.key)
        query[..., 0], key[..., 0] = 1, 2**14
        problem = dataclasses.replace(problem, query=query, key=key, scale=2**-4)
        actual, expected = self.solve(problem), self.expected(problem)
        assert_entropy(actual.entropy, expected.entropy, self.sharp_entropy_tolerance)

    def test_zero_scores_give_the_logarithm_of_the_number_of_keys(self):
        problem = dataclasses.replace(Options(length=300).problem(), scale=0.0)
        ceiling = np.log(np.arange(1, 301))
        entropy = self.solve(problem).entropy
        assert_entropy(entropy, np.broadcast_to(ceiling, entropy.shape), self.entropy_tolerance)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_bfloat16_inputs_lose_only_their_own_rounding(self, layout):
        options = Options(length=257, head_dim=64, layout=layout, temperature="per_row")
        problem = options.problem().rounded()
        actual, expected = self.solve(problem, jnp.bfloat16), oracle.solve(problem)
        assert_close("output", actual.out, expected.out, self.bf16_output_tolerance)
        assert_entropy(actual.entropy, expected.entropy, self.bf16_entropy_tolerance)
        assert_gradients(actual.gradients, expected, self.bf16_gradient_tolerance)

    @pytest.mark.parametrize("layout", ["fewer_keys", "segments"])
    def test_rows_that_see_nothing_are_zero_and_so_are_their_gradients(self, layout):
        problem = Options(length=130, layout=layout, temperature="per_example").problem()
        every = np.arange(130)
        sighted = np.stack([problem.seen(b, every).any(1) for b in range(2)])
        blind = np.broadcast_to(~sighted[:, None], problem.entropy_cotangent.shape)
        assert blind.any()
        with jax.debug_nans(True):
            actual = self.solve(problem)
        assert (actual.entropy[blind] == 0).all()
        assert (np.moveaxis(actual.out, 1, 2)[blind] == 0).all()
        assert (np.moveaxis(actual.gradients["query"], 1, 2)[blind] == 0).all()
        assert (actual.gradients["temperature"][blind] == 0).all()

    def test_padding_alone_is_zero_everywhere(self):
        problem = Options(length=130, layout="segments", temperature="per_row").problem()
        assert problem.segment_ids is not None
        padding = np.full_like(problem.segment_ids, -3)
        actual = self.solve(dataclasses.replace(problem, segment_ids=padding))
        for x in (actual.out, actual.entropy, *actual.gradients.values()):
            assert (x == 0).all()

    @pytest.mark.parametrize("layout", ["square", "fewer_keys", "segments"])
    def test_no_step_makes_a_nan(self, layout):
        problem = Options(length=40, layout=layout, temperature="per_row").problem()
        inputs, weights = self.arrays(problem)
        # Outside jit each operation is checked, not only the results.
        with jax.debug_nans(True):
            gradients, _ = jax.grad(self.loss(problem), has_aux=True)(inputs, *weights)
        assert all(jnp.isfinite(x).all() for x in gradients.values())

    @pytest.mark.parametrize("length", [20, 600])
    def test_rows_with_one_key_have_no_entropy(self, length):
        problem = Options(length=length, layout="segments", temperature="per_row").problem()
        own = np.broadcast_to(np.arange(length, dtype=np.int32), (2, length))
        problem = dataclasses.replace(problem, query=30 * problem.query, segment_ids=own)
        actual = self.solve(problem)
        assert (actual.entropy == 0).all()
        values = np.repeat(problem.value, 2, axis=2)
        assert_close("output", actual.out, values, self.output_tolerance)
        for gradient in actual.gradients.values():
            assert np.isfinite(gradient).all()

    def test_the_first_causal_row_has_no_entropy(self):
        assert (self.solve(Options(length=257).problem()).entropy[:, :, 0] == 0).all()

    def test_packed_documents_equal_documents_alone(self):
        packed = Options(length=260, batch=1, temperature="per_row").problem()
        edges = [0, 3, 131, 259, 260]
        ids = np.repeat(np.arange(4, dtype=np.int32), np.diff(edges))[None]
        packed = dataclasses.replace(packed, segment_ids=ids)
        together = self.solve(packed)
        for start, stop in itertools.pairwise(edges):
            part = slice(start, stop)
            alone = self.expected(cut(packed, part))
            assert_close("output", together.out[:, part], alone.out, self.output_tolerance)
            assert_entropy(together.entropy[..., part], alone.entropy, self.entropy_tolerance)
            gradients = {name: together.gradients[name][:, part] for name in INPUTS[:3]}
            assert_gradients(gradients, alone, self.gradient_tolerance)

    def test_a_row_depends_on_no_later_key(self):
        problem = Options(length=600, batch=1, head_dim=8).problem()
        inputs, weights = self.arrays(problem)

        @jax.jit
        def key_and_value_gradients(i):
            def row(key, value):
                out, entropy = self.attend(inputs["query"], key, value)
                return jnp.vdot(out[:, i], weights[0][:, i]) + entropy[:, :, i].sum()

            return jax.grad(row, argnums=(0, 1))(inputs["key"], inputs["value"])

        for i in (0, 1, 2, 63, 64, 127, 128, 129, 255, 256, 511, 512, 599):
            for gradient in key_and_value_gradients(i):
                later, seen = gradient[:, i + 1 :], gradient[:, 1 : i + 1]
                assert (later == 0).all()
                assert (jnp.abs(seen).max((0, 2, 3)) > 0).all()

    def test_permuting_examples_and_heads_permutes_the_results(self):
        problem = Options(length=130, batch=3, temperature="per_example").problem()
        examples, kv_heads = np.array([2, 0, 1]), np.array([1, 0])
        heads = np.array([3, 2, 0, 1])
        moved = {
            "query": problem.query[examples][:, :, heads],
            "key": problem.key[examples][:, :, kv_heads],
            "value": problem.value[examples][:, :, kv_heads],
            "temperature": problem.temperatures()[examples][:, heads],
        }
        expected, actual = self.solve(problem), self.solve(dataclasses.replace(problem, **moved))
        out = expected.out[examples][:, :, heads]
        assert_close("output", actual.out, out, self.output_tolerance)
        entropy = expected.entropy[examples][:, heads]
        assert_entropy(actual.entropy, entropy, self.entropy_tolerance)

    @pytest.mark.parametrize(
        ("name", "bad"),
        # An infinite temperature is not among them: it rightly gives a uniform row.
        [*itertools.product(INPUTS[:3], [np.nan, np.inf, -np.inf]), ("temperature", np.nan)],
    )
    def test_non_finite_inputs_stay_visible(self, name, bad):
        # In the middle of a row of several blocks, so that later ones could wash it out.
        problem = Options(1100, batch=1, kv_heads=1, group=1, temperature="per_row").problem()
        inputs, _ = self.arrays(problem)
        inputs[name] = inputs[name].at[(0, 600)].set(bad)
        out, entropy = jax.jit(self.attend)(**inputs)
        rows = slice(600, None) if name in ("key", "value") else slice(600, 601)
        assert not jnp.isfinite(out[0, rows]).all(axis=(1, 2)).any()
        if name != "value":
            assert not jnp.isfinite(entropy[0, 0, rows]).any()
            assert jnp.isfinite(out[0, :600]).all()
            assert jnp.isfinite(entropy[0, 0, :600]).all()

    def test_vmap_equals_a_loop(self, rng):
        problem = Options(length=40, layout="segments", temperature="per_row").problem()
        inputs, _ = self.arrays(problem)
        stacks = {
            name: jnp.stack([x * factor for factor in (1.0, 0.5, 2.0)])
            for name, x in inputs.items()
        }
        ids = jnp.asarray(rng.integers(-1, 3, (3, 2, 40)), jnp.int32)

        def gradients(inputs, ids):
            def loss(inputs):
                out, entropy = self.attend(**inputs, segment_ids=ids)
                return (out**2).sum() + (entropy**2).sum()

            return jax.value_and_grad(loss)(inputs)

        together = jax.jit(jax.vmap(gradients))(stacks, ids)
        for i in range(3):
            alone = jax.jit(gradients)({name: x[i] for name, x in stacks.items()}, ids[i])
            tree_close(jax.tree.map(lambda x, i=i: x[i], together), alone, self.gradient_tolerance)

    @pytest.mark.parametrize("remat", [False, True])
    def test_scan_over_layers_equals_a_loop(self, remat, rng):
        x = jnp.asarray(rng.standard_normal((2, 40, 2, 16)), jnp.float32)
        layers = jnp.asarray(1 + 0.1 * rng.standard_normal((3, 2, 40)), jnp.float32)

        def layer(x, temperature):
            out, entropy = self.attend(x, x, x, temperature, scale=0.1)
            return x + out, entropy

        def loop(layers):
            carry, entropies = x, []
            for temperature in layers:
                carry, entropy = layer(carry, temperature)
                entropies.append(entropy)
            return (carry**2).sum() + (jnp.stack(entropies) ** 2).sum()

        def scan(layers):
            body = jax.checkpoint(layer) if remat else layer
            carry, entropies = jax.lax.scan(body, x, layers)
            return (carry**2).sum() + (entropies**2).sum()

        expected = jax.jit(jax.value_and_grad(loop))(layers)
        tree_close(jax.jit(jax.value_and_grad(scan))(layers), expected, self.gradient_tolerance)


def cut(problem: Problem, part: slice) -> Problem:
    """The positions `part` as a problem of their own, without segments."""
    along = {name: (slice(None), part) for name in (*INPUTS[:3], "out_cotangent")}
    along |= dict.fromkeys(("entropy_cotangent", "temperature"), (..., part))
    changes = {name: getattr(problem, name)[index] for name, index in along.items()}
    return dataclasses.replace(problem, segment_ids=None, **changes)


def assert_close(name: str, actual, expected, tolerance: float, terms: Any = 0.0) -> None:
    """Norm-wise relative error; where terms cancel to less than a tenth, relative to that tenth."""
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all(), f"{name} is not finite"
    error = oracle.relative_error(actual, expected, terms)
    assert error <= tolerance, f"{name}: error {error:.2e}, allowed {tolerance:.0e}"


def assert_gradients(actual, expected: Solution, tolerance: float) -> None:
    """`assert_close` for the gradients by input name."""
    for name, gradient in actual.items():
        assert_close(name, gradient, expected.gradients[name], tolerance, expected.terms[name])


def assert_entropy(actual, expected, tolerance: float) -> None:
    """Largest absolute error, nats."""
    assert actual.shape == expected.shape
    error = float(np.abs(actual - expected).max())
    assert error <= tolerance, f"entropy: error {error:.2e}, allowed {tolerance:.0e}"


def tree_close(actual, expected, tolerance: float) -> None:
    """`assert_close` on every leaf."""
    check = functools.partial(assert_close, "leaf", tolerance=tolerance)
    jax.tree.map(lambda x, y: check(np.asarray(x), np.asarray(y)), actual, expected)

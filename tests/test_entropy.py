"""The penalty, its ceilings and the statistics, against float64 loops over the formulas."""

import re
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import egattn
from egattn.entropy import head_mean, range_counts, range_shares, uniform_entropy

LAYERS, BATCH, HEADS, LENGTH = 3, 8, 4, 32
TOLERANCE = 0.2


def square_outside(delta: float, margin: float, kind: str) -> float:
    """Penalty of one deviation."""
    if abs(delta) <= margin:
        return 0.0
    return delta**2 if kind == "hard" else (abs(delta) - margin) ** 2


def per_position(entropy, threshold, ceiling, kind="hard", tolerance=TOLERANCE):
    """Penalty of every row [L, B, H, T]; the ceiling is one number or one for each row."""
    result = np.zeros(entropy.shape)
    ceilings = [float(m) for m in np.broadcast_to(ceiling, entropy.shape[-1:])]
    for layer, b, h, i in np.ndindex(entropy.shape):
        delta = float(entropy[layer, b, h, i]) - float(threshold[layer, h]) * ceilings[i]
        result[layer, b, h, i] = square_outside(delta, tolerance * ceilings[i], kind)
    return result


def published(entropy, threshold, ceiling, kind="hard"):
    """The published code: a sum over batch and positions, a mean over heads, one over layers."""
    layers, _, heads, _ = entropy.shape
    penalty = per_position(entropy, threshold, ceiling, kind)
    losses = [[penalty[layer, :, h].sum() for h in range(heads)] for layer in range(layers)]
    return sum(sum(loss) / heads for loss in losses) / layers


def algorithm_1(entropy, threshold, ceiling, kind="hard"):
    """Algorithm 1 of the paper: one deviation for each head, that of its mean entropy."""
    layers, batch, heads, length = entropy.shape
    ceiling = float(np.mean(np.broadcast_to(ceiling, (length,))))
    total = 0.0
    for layer in range(layers):
        layer_total = 0.0
        for h in range(heads):
            head_entropy = entropy[layer, :, h].sum() / (batch * length)
            delta = head_entropy - threshold[layer, h] * ceiling
            layer_total += square_outside(delta, TOLERANCE * ceiling, kind)
        total += layer_total / heads
    return total / layers


FORMULAS = {
    "none": per_position,
    "mean": lambda *arguments: per_position(*arguments).mean(),
    "sum": published,
    "head": algorithm_1,
}


def causal_ceilings(length: int):
    return np.array([np.log(i + 1) for i in range(length)])


def entropies(rng, batch=BATCH, length=LENGTH):
    """Rows of every entropy between none and the most, and thresholds that leave some outside."""
    shape = (LAYERS, batch, HEADS, length)
    entropy = rng.uniform(0, np.log(length), shape).astype(np.float32)
    # Layers differ, so that means of heads fall on both sides of the margin.
    entropy *= np.linspace(0.2, 1, LAYERS, dtype=np.float32)[:, None, None, None]
    return entropy, rng.uniform(0.2, 0.8, (LAYERS, HEADS)).astype(np.float32)


def penalty(entropy, threshold, ceiling, **options: Any):
    ceiling = jnp.asarray(ceiling, jnp.float32)
    return egattn.entropy_penalty(jnp.asarray(entropy), jnp.asarray(threshold), ceiling, **options)


@pytest.fixture
def unchecked(monkeypatch):
    """Without the tests' type checks, as users call the library."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


class TestCeiling:
    def test_is_the_logarithm_of_the_length(self):
        ceiling = egattn.max_entropy(128)
        assert ceiling.shape == ()
        assert ceiling.dtype == jnp.float32
        np.testing.assert_allclose(ceiling, np.log(128), rtol=1e-7)
        assert egattn.max_entropy(128, causal=False) == ceiling

    def test_of_a_causal_row_counts_the_keys_it_sees(self):
        ceilings = egattn.max_entropy(300, per_row=True)
        assert ceilings[0] == 0
        np.testing.assert_allclose(ceilings, causal_ceilings(300), rtol=2e-7)

    def test_of_a_full_row_is_that_of_all(self):
        ceilings = egattn.max_entropy(300, causal=False, per_row=True)
        np.testing.assert_allclose(ceilings, np.full(300, np.log(300)), rtol=2e-7)

    @pytest.mark.parametrize("causal", [True, False])
    def test_is_reached_by_uniform_attention(self, causal):
        x = jnp.zeros((1, 50, 1, 4))
        _, entropy = egattn.entropy_attention(x, x, x, causal=causal)
        ceilings = egattn.max_entropy(50, causal=causal, per_row=True)
        np.testing.assert_allclose(entropy[0, 0], ceilings, atol=2e-6)

    @pytest.mark.parametrize("length", [1, 2, 33, 1024])
    def test_of_uniform_rows_is_the_mean_of_their_ceilings(self, length):
        expected = np.log(np.arange(1, length + 1)).mean()
        assert uniform_entropy(length) == pytest.approx(expected, rel=1e-12)


class TestPenalty:
    @pytest.mark.parametrize("reduction", FORMULAS)
    @pytest.mark.parametrize("kind", ["hard", "excess"])
    @pytest.mark.parametrize("per_row", [False, True])
    def test_equals_its_formula(self, reduction, kind, per_row, rng):
        entropy, threshold = entropies(rng)
        ceiling = causal_ceilings(LENGTH) if per_row else np.log(LENGTH)
        actual = penalty(entropy, threshold, ceiling, kind=kind, reduction=reduction)
        expected = FORMULAS[reduction](entropy.astype(np.float64), threshold, ceiling, kind)
        assert actual.dtype == jnp.float32
        assert np.max(expected) > 0
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)

    def test_means_by_default_the_hard_mean_with_a_fifth_of_tolerance(self, rng):
        entropy, threshold = entropies(rng)
        expected = per_position(entropy, threshold, np.log(LENGTH), "hard", 0.2).mean()
        np.testing.assert_allclose(penalty(entropy, threshold, np.log(LENGTH)), expected, rtol=1e-6)

    @given(
        st.floats(0, 0.5),
        st.sampled_from(["hard", "excess"]),
        st.sampled_from([(2, 20), (1, 1), (3, 2)]),
        st.integers(0, 1000),
    )
    @settings(max_examples=25)
    def test_follows_the_tolerance(self, tolerance, kind, sizes, seed):
        batch, length = sizes
        entropy, threshold = entropies(np.random.default_rng(seed), batch, length)
        ceiling = np.log(length)
        expected = per_position(entropy.astype(np.float64), threshold, ceiling, kind, tolerance)
        actual = penalty(
            entropy, threshold, ceiling, tolerance=tolerance, kind=kind, reduction="none"
        )
        # Only a hard penalty jumps, and only where float32 cannot tell which side it is on.
        distance = np.abs(entropy - threshold[:, None, :, None].astype(np.float64) * ceiling)
        certain = np.abs(distance - tolerance * ceiling) > 1e-6
        np.testing.assert_allclose(actual[certain], expected[certain], rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("reduction", FORMULAS)
    def test_of_one_layer_needs_no_layer_axis(self, reduction, rng):
        entropy, threshold = entropies(rng)
        ceiling = np.log(LENGTH)
        one = penalty(entropy[0], threshold[0], ceiling, reduction=reduction)
        stacked = penalty(entropy[:1], threshold[:1], ceiling, reduction=reduction)
        np.testing.assert_array_equal(one, stacked.reshape(one.shape))
        assert one.shape == (entropy[0].shape if reduction == "none" else ())

    def test_sums_to_the_mean_times_batch_and_length(self, rng):
        entropy, threshold = entropies(rng)
        total = penalty(entropy, threshold, np.log(LENGTH), reduction="sum")
        mean = penalty(entropy, threshold, np.log(LENGTH), reduction="mean")
        np.testing.assert_allclose(total, mean * BATCH * LENGTH, rtol=1e-6)

    def test_of_head_means_differs_from_the_mean_over_positions(self, rng):
        # Rows on both sides of the target cancel in the head's mean.
        entropy = np.tile(np.array([0.5, 3.5], np.float32), (1, 2, 1, 8))
        threshold = np.full((1, 1), 0.5, np.float32)
        assert penalty(entropy, threshold, 4.0, reduction="head") == 0
        assert penalty(entropy, threshold, 4.0, reduction="mean") == 1.5**2

    # Exact in float32: the target is 2 and the margin 1.
    EDGES = (
        (1.0, 0.0, 0.0),
        (3.0, 0.0, 0.0),
        (2.0, 0.0, 0.0),
        (3 + 2**-22, 1.0, 0.0),
        (1 - 2**-23, 1.0, 0.0),
        (3.5, 2.25, 0.25),
        (0.0, 4.0, 1.0),
    )

    @pytest.mark.parametrize(("entropy", "hard", "excess"), EDGES)
    def test_begins_just_outside_the_margin(self, entropy, hard, excess):
        row, threshold = np.full((1, 1, 1, 1), entropy, np.float32), np.full((1, 1), 0.5)
        for kind, expected in (("hard", hard), ("excess", excess)):
            actual = penalty(row, threshold.astype(np.float32), 4.0, tolerance=0.25, kind=kind)
            np.testing.assert_allclose(actual, expected, atol=1e-6)

    @pytest.mark.parametrize("reduction", FORMULAS)
    @pytest.mark.parametrize("kind", ["hard", "excess"])
    @pytest.mark.parametrize("per_row", [False, True])
    def test_gradients_are_those_of_finite_differences(self, reduction, kind, per_row, rng):
        entropy, threshold = entropies(rng, batch=2, length=6)
        ceiling = causal_ceilings(6) if per_row else np.log(6)
        weights = rng.standard_normal(entropy.shape if reduction == "none" else ())

        def formula(entropy, threshold):
            return np.sum(weights * FORMULAS[reduction](entropy, threshold, ceiling, kind))

        def loss(entropy, threshold):
            result = penalty(entropy, threshold, ceiling, kind=kind, reduction=reduction)
            return (jnp.asarray(weights, jnp.float32) * result).sum()

        gradients = jax.grad(loss, argnums=(0, 1))(jnp.asarray(entropy), jnp.asarray(threshold))
        inputs = [entropy.astype(np.float64), threshold.astype(np.float64)]
        for which, gradient in enumerate(gradients):
            expected = finite_differences(formula, inputs, which)
            assert np.abs(expected).max() > 0
            np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("reduction", FORMULAS)
    @pytest.mark.parametrize("kind", ["hard", "excess"])
    def test_gradients_are_finite_at_collapse_overload_and_the_margin(self, reduction, kind):
        entropy = jnp.asarray([0.0, 1.0, 2.0, 3.0, 4.0])[:, None, None, None]
        threshold = jnp.full((5, 1), 0.5)

        def loss(entropy, threshold):
            options = {"tolerance": 0.25, "kind": kind, "reduction": reduction}
            return penalty(entropy, threshold, 4.0, **options).sum()

        with jax.debug_nans(True):
            gradients = jax.grad(loss, argnums=(0, 1))(entropy, threshold)
        slope = gradients[0].ravel()
        assert (slope[1:4] == 0).all()
        assert slope[0] < 0 < slope[4]

    @pytest.mark.parametrize("reduction", FORMULAS)
    @pytest.mark.parametrize("kind", ["hard", "excess"])
    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_hides_no_non_finite_entropy(self, reduction, kind, bad, rng):
        entropy, threshold = entropies(rng)
        entropy[1, 2, 3, 4] = bad
        result = penalty(entropy, threshold, np.log(LENGTH), kind=kind, reduction=reduction)
        assert np.isfinite(result).sum() == result.size - 1

    def test_of_microbatches_averages_to_that_of_the_batch(self, rng):
        entropy, threshold = entropies(rng)
        parts = [
            penalty(entropy[:, part : part + 2], threshold, np.log(LENGTH))
            for part in range(0, BATCH, 2)
        ]
        whole = penalty(entropy, threshold, np.log(LENGTH))
        np.testing.assert_allclose(np.mean(parts), whole, rtol=1e-6)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"kind": "soft"}, r"'soft'.*hard.*excess"),
            ({"kind": "excesss"}, r"'excesss'.*'excess'"),
            ({"reduction": "heads"}, r"'heads'.*'head'.*mean.*head.*sum.*none"),
            ({"tolerance": -0.1}, r"tolerance.*-0\.1"),
            ({"threshold": jnp.ones(4)}, r"\(3, 8, 4, 32\).*\(4,\)"),
            ({"threshold": jnp.ones((4, 3))}, r"\(4, 3\)"),
            ({"threshold": jnp.ones(())}, r"\(\)"),
            ({"entropy": jnp.ones((4, 32))}, r"\(4, 32\)"),
            ({"max_entropy": jnp.ones(4)}, r"max_entropy.*\(4,\)"),
            ({"max_entropy": jnp.ones((4, 32))}, r"max_entropy.*\(4, 32\)"),
        ],
    )
    def test_refuses_bad_arguments_in_one_line(self, changes, message, rng):
        entropy, threshold = (jnp.asarray(x) for x in entropies(rng))
        arguments: dict[str, Any] = {"entropy": entropy, "threshold": threshold, "max_entropy": 1.0}
        with pytest.raises(ValueError, match=message) as refusal:
            egattn.entropy_penalty(**arguments | changes)
        assert "\n" not in str(refusal.value)


def finite_differences(function, inputs, which: int, step: float = 1e-6):
    """Central differences of a scalar function with respect to one of its float64 inputs."""
    result = np.zeros_like(inputs[which])
    for index in np.ndindex(result.shape):
        values = []
        for sign in (1, -1):
            moved = [x.copy() for x in inputs]
            moved[which][index] += sign * step
            values.append(function(*moved))
        result[index] = (values[0] - values[1]) / (2 * step)
    return result


class TestSummary:
    def test_equals_loops_over_heads(self, rng):
        entropy, _ = entropies(rng)
        summary = jax.jit(egattn.entropy_summary)(jnp.asarray(entropy))
        wide = entropy.astype(np.float64)
        means = np.array([[wide[n, :, h].mean() for h in range(HEADS)] for n in range(LAYERS)])
        np.testing.assert_allclose(summary.mean, wide.mean(), rtol=1e-6)
        np.testing.assert_allclose(summary.layer_mean, means.mean(1), rtol=1e-6)
        np.testing.assert_allclose(summary.head_mean, means, rtol=1e-6)
        for n, h in np.ndindex(LAYERS, HEADS):
            expected = np.quantile(wide[n, :, h].ravel(), [0.05, 0.5, 0.95])
            np.testing.assert_allclose(summary.quantiles[:, n, h], expected, rtol=1e-5)
        np.testing.assert_array_equal(summary.nonfinite, [0, 0, 0])
        assert summary.nonfinite.dtype == jnp.int32

    def test_means_of_heads_are_means_of_rows_first(self):
        program = str(jax.jit(head_mean).lower(jnp.ones((2, 8, 3, 64))).compile().as_text())
        shapes = re.findall(r"= f32\[([\d,]+)\]\S* reduce\(", program)
        assert sorted(shapes) == ["2,3", "2,8,3"]

    def test_counts_heads_in_quarters_of_the_largest(self):
        # The largest head mean is 4: quarters begin at 0, 1, 2 and 3, each with its own edge.
        means = np.array([[0.0, 0.99, 1.0, 2.0], [2.5, 2.99, 3.0, 4.0]], np.float32)
        entropy = np.broadcast_to(means[:, None, :, None], (2, 3, 4, 5))
        summary = egattn.entropy_summary(jnp.asarray(entropy))
        np.testing.assert_allclose(summary.range_shares, [2 / 8, 1 / 8, 3 / 8, 2 / 8], rtol=1e-6)

    @pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
    def test_a_head_that_is_not_finite_is_in_no_range(self, array):
        means = array(np.array([[np.nan, 1.0, 4.0], [np.inf, 0.0, -1e-7]], np.float32))
        assert range_counts(means).tolist() == [2, 1, 0, 1]
        np.testing.assert_allclose(range_shares(means), [2 / 6, 1 / 6, 0, 1 / 6], rtol=1e-6)
        assert type(range_shares(means)) is type(range_counts(means)) is type(means)
        assert range_counts(array(np.full((2, 3), np.nan, np.float32))).tolist() == [0, 0, 0, 0]

    def test_shares_of_all_heads_make_one(self, rng):
        for _ in range(5):
            shares = egattn.entropy_summary(jnp.asarray(entropies(rng)[0])).range_shares
            np.testing.assert_allclose(shares.sum(), 1, rtol=1e-6)

    def test_of_collapsed_heads_is_the_lowest_range(self):
        summary = egattn.entropy_summary(jnp.zeros((2, 1, 3, 4)))
        np.testing.assert_array_equal(summary.range_shares, [1, 0, 0, 0])

    def test_of_one_layer_needs_no_layer_axis(self, rng):
        entropy = jnp.asarray(entropies(rng)[0])
        one, stacked = egattn.entropy_summary(entropy[1]), egattn.entropy_summary(entropy[1:2])
        jax.tree.map(np.testing.assert_array_equal, one, stacked)
        assert one.head_mean.shape == (1, HEADS)

    def test_counts_rows_that_are_not_finite_and_shows_where(self, rng):
        entropy, _ = entropies(rng)
        entropy[0, 0, 1, :3] = np.nan
        entropy[2, 4, 3, 5] = np.inf
        summary = egattn.entropy_summary(jnp.asarray(entropy))
        np.testing.assert_array_equal(summary.nonfinite, [3, 0, 1])
        np.testing.assert_array_equal(
            np.isfinite(summary.head_mean), [[1, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]]
        )
        np.testing.assert_array_equal(np.isfinite(summary.layer_mean), [False, True, False])
        assert not np.isfinite(summary.mean)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize("shape", [(4, 5), (1, 2, 3, 4, 5)])
    def test_refuses_other_shapes(self, shape):
        with pytest.raises(ValueError, match=r"\[L, B, H, T\].*" + str(shape)[1:-1]):
            egattn.entropy_summary(jnp.zeros(shape))


def assert_same(actual, expected) -> None:
    """Equal but for the order of float32 sums, judged leaf by leaf."""
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6 * np.abs(y).max())


class TestSharding:
    """Splitting batch and heads over eight devices changes no number beyond rounding."""

    @pytest.fixture
    def shard(self):
        mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)

        def shard(x, *axes):
            return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes)))

        return shard

    @pytest.mark.parametrize("reduction", FORMULAS)
    def test_penalty_and_gradients(self, reduction, shard, rng):
        entropy, threshold = entropies(rng)

        def loss(entropy, threshold):
            return penalty(entropy, threshold, np.log(LENGTH), reduction=reduction).sum()

        run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
        whole = run(jnp.asarray(entropy), jnp.asarray(threshold))
        rows, heads = shard(entropy, None, "data", "tensor"), shard(threshold, None, "tensor")
        assert len(rows.sharding.device_set) == 8
        split = run(rows, heads)
        assert_same(split, whole)

    def test_summary(self, shard, rng):
        entropy, _ = entropies(rng)
        run = jax.jit(egattn.entropy_summary)
        whole, split = run(jnp.asarray(entropy)), run(shard(entropy, None, "data", "tensor"))
        assert_same(split, whole)

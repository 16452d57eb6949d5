"""Truncations and sampling against float64 NumPy."""

from functools import partial

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egattn.generate.config import Sampling
from egattn.generate.filters import filter_logits, nucleus
from egattn.generate.sample import sample
from egattn.generate.search import check_start, next_token_entropy
from tests.generate.models import (
    CHAIN_1,
    CHAIN_2,
    Attending,
    assert_frequencies,
    chain_model,
    check_paths,
    entropy,
    fractions,
    log_chain,
    log_softmax,
    shares,
    spell,
)

ROWS = 200_000
PLAIN = Sampling()
ATTENDING = Attending()


def truncated(logits, temperature=1.0, top_k=None, top_p=None, min_p=None, keep=1):
    """Probabilities after the truncations, one token at a time, float64."""
    log_probs = log_softmax(np.float64(logits) / temperature)
    order = sorted(range(len(logits)), key=lambda i: (-log_probs[i], i))
    kept = [i for i in order if log_probs[i] > -np.inf]
    if top_k is not None:
        last = log_probs[kept[min(max(top_k, keep), len(kept)) - 1]]
        kept = [i for i in kept if log_probs[i] >= last]
    if top_p is not None:
        total, mass, chosen = sum(np.exp(log_probs[kept])), 0.0, []
        for i in kept:
            if mass >= top_p * total and top_p < 1 and len(chosen) >= keep:
                break
            chosen.append(i)
            mass += np.exp(log_probs[i])
        kept = chosen
    if min_p is not None:
        p = np.exp(log_probs[kept] - log_probs[kept[0]])
        kept = [i for rank, i in enumerate(kept) if p[rank] >= min_p or rank < keep]
    result = np.zeros(len(logits))
    result[kept] = np.exp(log_probs[kept]) / sum(np.exp(log_probs[kept]))
    return result


# Masses whose sums never fall on a threshold to within rounding.
WEIGHTS = np.array([2.03, 1.51, 0.707, 3.1, 0.11, 5.03, 0.013, 0.31])


@hypothesis.given(
    order=st.permutations(range(8)),
    impossible=st.sets(st.integers(0, 7), max_size=7),
    temperature=st.sampled_from([0.5, 1.0, 1.7]),
    top_k=st.sampled_from([None, 1, 3, 8]),
    top_p=st.sampled_from([None, 0.05, 0.5, 0.8, 0.95, 1.0]),
    min_p=st.sampled_from([None, 0.0, 0.05, 0.3, 1.0]),
    keep=st.sampled_from([1, 2, 3]),
)
@hypothesis.settings(max_examples=150)
def test_truncations(order, impossible, temperature, top_k, top_p, min_p, keep):
    logits = np.log(WEIGHTS[list(order)])
    logits[list(impossible)] = -np.inf
    sampling = Sampling(temperature, top_k, top_p, min_p)
    actual = jax.nn.softmax(filter_logits(jnp.float32(logits), sampling, keep))
    expected = truncated(logits, temperature, top_k, top_p, min_p, keep)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_ties_at_the_boundary():
    equal = jnp.zeros(8)

    def kept(sampling):
        return np.flatnonzero(filter_logits(equal, sampling) > -jnp.inf).tolist()

    # Like transformers: top-k keeps all that tie with the k-th, top-p no more than it needs.
    assert kept(Sampling(top_k=3)) == list(range(8))
    assert kept(Sampling(top_p=0.375)) == [0, 1, 2]
    assert kept(Sampling(min_p=1.0)) == list(range(8))


def test_all_but_one_impossible():
    logits = jnp.full(8, -jnp.inf).at[5].set(-3.0)
    for sampling in (
        Sampling(top_k=8),
        Sampling(top_p=1.0),
        Sampling(top_p=0.1),
        Sampling(min_p=0),
    ):
        assert np.flatnonzero(filter_logits(logits, sampling) > -jnp.inf).tolist() == [5]
    assert next_token_entropy(logits) == 0


def test_mass_one_keeps_every_possible_token():
    # A float32 cumulative sum of 200,000 probabilities reaches 1 early.
    logits = jax.random.normal(jax.random.key(0), (200_000,)) * 3
    assert jnp.all(filter_logits(logits, Sampling(top_p=1.0)) > -jnp.inf)
    # And a probability below float32's smallest is one still.
    assert jnp.all(nucleus(jnp.array([0.0, -200.0]), 1.0))


@partial(jax.jit, static_argnames=("rows", "steps", "samples", "sampling", "eos", "pad"))
def draw(chain, seed, *, rows=1, steps=1, samples=1, sampling=PLAIN, eos=None, pad=0):
    step, logits, cache = chain_model(chain, rows, samples)
    return sample(
        step,
        logits,
        cache,
        jax.random.key(seed),
        sampling,
        max_new_tokens=steps,
        num_samples=samples,
        eos=eos,
        pad=pad,
    )


@partial(jax.jit, static_argnums=0)
def draw_one(top_k, key, chain, temperature, top_p, min_p):
    sampling = Sampling(temperature, top_k, top_p, min_p)
    return sample(*chain_model(chain, ROWS), key, sampling, max_new_tokens=1).paths.tokens[:, 0]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (1.0, None, 1.0, 0.0),
        (0.7, None, 1.0, 0.0),
        (1.0, 3, 1.0, 0.0),
        (1.0, None, 0.8, 0.0),
        (1.0, None, 1.0, 0.12),
        (1.5, 6, 0.9, 0.2),
    ],
)
def test_frequencies(temperature, top_k, top_p, min_p):
    logits = np.log(WEIGHTS)
    expected = truncated(logits, temperature, top_k, top_p, min_p)
    letters = "ABCDEFGH"
    expected = {letters[i]: p for i, p in enumerate(expected) if p > 0}
    chain = (np.float32(logits), np.zeros((8, 8), np.float32))
    tokens = draw_one(top_k, jax.random.key(1), chain, temperature, top_p, min_p)
    assert_frequencies(shares(tokens, letters), expected, ROWS)


def test_sequences_of_a_chain():
    result = draw(log_chain(CHAIN_1), 2, rows=ROWS // 2, steps=2, samples=2)
    tokens = np.asarray(result.paths.tokens)
    start, rows = fractions(CHAIN_1)
    exact = {spell((a, b)): start[a] * rows[a][b] for a in range(3) for b in range(3)}
    assert_frequencies(shares(tokens.reshape(-1, 2)), exact, ROWS)
    # The samples of a row are independent, too.
    first = shares(tokens[:, :, 0])
    exact = {spell((a, b)): start[a] * start[b] for a in range(3) for b in range(3)}
    assert_frequencies(first, exact, ROWS // 2)


def test_greedy_takes_the_lowest_of_the_most_probable():
    chain = np.array([0.0, 1, 1]), np.array([[5.0, 1, 1], [1, 0, 1], [0, 0, 0]])
    static = draw(chain, 0, steps=4, sampling=Sampling(temperature=0))
    assert static.paths.tokens.tolist() == [[[1, 0, 0, 0]]]
    assert not np.any(static.tempered_log_probability)
    step, logits, cache = chain_model(chain)
    traced = jax.jit(
        lambda t: sample(
            step, logits, cache, jax.random.key(0), Sampling(temperature=t), max_new_tokens=4
        )
    )(0.0)
    assert np.array_equal(traced.paths.tokens, static.paths.tokens)
    assert np.array_equal(traced.paths.log_probability, static.paths.log_probability)
    assert not np.any(traced.tempered_log_probability)


@pytest.fixture(scope="module")
def attended():
    @partial(jax.jit, static_argnums=0)
    def run(batch, seed):
        step, logits, cache = ATTENDING.model(batch, 3)
        key = jax.random.key(seed)
        sampling = Sampling(temperature=1.3, top_p=0.9)
        return logits, sample(
            step, logits, cache, key, sampling, max_new_tokens=12, num_samples=3, eos=(1, 8)
        )

    return lambda batch, seed=0: jax.tree.map(np.asarray, run(batch, seed))


def test_records_equal_a_recomputation(attended):
    logits, result = attended(4)
    paths = result.paths
    assert len(np.unique(paths.lengths)) > 3
    for row in range(4):
        for k in range(3):
            check_paths(ATTENDING, logits, paths, row, k)
            length = paths.lengths[row, k]
            tokens = paths.tokens[row, k]
            assert not np.any(tokens[length:])
            assert not np.isin(tokens[: length - 1], (1, 8)).any()
            assert length == 12 or tokens[length - 1] in (1, 8)
            for i in range(12):
                plain = ATTENDING.next_log_probs(logits[row], tokens[:i])[0]
                both = (plain, log_softmax(plain / 1.3)) if i < length else np.zeros((2, 11))
                recorded = (result.token_log_probability, result.tempered_log_probability)
                for actual, log_probs in zip(recorded, both, strict=True):
                    assert actual[row, k, i] == pytest.approx(log_probs[tokens[i]], abs=1e-5)


def test_rows_do_not_depend_on_the_batch(attended):
    one, four = attended(1)[1].paths, attended(4)[1].paths
    assert one.lengths.max() < four.lengths.max()
    assert np.array_equal(one.tokens[0], four.tokens[0])
    assert np.array_equal(one.lengths[0], four.lengths[0])
    np.testing.assert_allclose(one.observed[0], four.observed[0], atol=1e-6)


def test_the_end_is_padded():
    result = draw(log_chain(CHAIN_2), 3, rows=50, steps=6, eos=2, pad=7)
    tokens, lengths = np.asarray(result.paths.tokens[:, 0]), np.asarray(result.paths.lengths[:, 0])
    assert set(lengths) == {1, 2, 3, 4, 5, 6}
    for row, length in zip(tokens, lengths, strict=True):
        assert np.all(row[length:] == 7)
        assert np.all(row[: length - 1] < 2)
        assert length == 6 or row[length - 1] == 2
    fed = np.asarray(result.paths.observed["fed"][:, 0])
    inner = np.arange(6) < lengths[:, None] - 1
    assert np.array_equal(fed, np.where(inner, tokens, 0))


def test_entropy_of_the_next_token():
    log_probs = log_softmax([0.3, -1.0, 2.0, -np.inf])
    assert next_token_entropy(jnp.float32(log_probs)) == pytest.approx(entropy(log_probs), abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -0.1}, "temperature must be 0 or at least 1e-30, and finite, got -0.1"),
        ({"temperature": 1e-40}, "at least 1e-30, and finite, got 1e-40"),
        (
            {"temperature": float("nan")},
            "temperature must be 0 or at least 1e-30, and finite, got nan",
        ),
        ({"top_k": 0}, "top_k must be between 1 and 3 .the vocabulary., got 0"),
        ({"top_k": 4}, "top_k must be between 1 and 3 .the vocabulary., got 4"),
        ({"top_p": 0.0}, "top_p must be in .0, 1., got 0.0"),
        ({"top_p": 1.1}, "top_p must be in .0, 1., got 1.1"),
        ({"min_p": -0.1}, "min_p must be in .0, 1., got -0.1"),
        ({"min_p": 1.1}, "min_p must be in .0, 1., got 1.1"),
    ],
)
def test_bad_sampling_is_refused(arguments, message):
    step, logits, cache = chain_model(log_chain(CHAIN_1))
    with pytest.raises(ValueError, match=message):
        sample(step, logits, cache, jax.random.key(0), Sampling(**arguments), max_new_tokens=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    step, logits, cache = chain_model(log_chain(CHAIN_1))
    arguments = {"max_new_tokens": 1, **arguments}
    with pytest.raises(ValueError, match=message):
        sample(step, logits, cache, jax.random.key(0), Sampling(), **arguments)


def test_logits_of_one_prompt_still_need_a_batch():
    with pytest.raises(ValueError, match=r"logits must be \[batch, vocab\], got \(3,\)"):
        check_start(jnp.zeros(3), max_new_tokens=1)

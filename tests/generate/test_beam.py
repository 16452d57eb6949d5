"""Beam search against the plainest implementation of the same rules, in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egattn.generate.beam import beam_search
from egattn.generate.config import BeamSearch, Sampling
from tests.generate.models import (
    CHAIN_1,
    Attending,
    assert_frequencies,
    chain_model,
    check_paths,
    log_chain,
    log_softmax,
    shares,
)

ATTENDING = Attending()
CHAINS, VOCAB = 40, 7


def oracle(next_log_probs, search, steps, eos):
    """Finished hypotheses as (score, tokens, log-probability), the best first."""
    running: list = [(0.0, ())]
    finished: list = []
    for length in range(1, steps + 1):
        pairs = [
            (total + log_prob, (*tokens, token))
            for total, tokens in running
            for token, log_prob in enumerate(next_log_probs(tokens))
            if log_prob > -np.inf
        ]
        pairs = sorted(pairs, key=lambda x: -x[0])[: max(2, 1 + len(eos)) * search.num_beams]
        ends = [tokens[-1] in eos or length == steps for _, tokens in pairs]
        running = [pair for pair, end in zip(pairs, ends, strict=True) if not end]
        running = running[: search.num_beams]
        for (total, tokens), end in list(zip(pairs, ends, strict=True))[: search.num_beams]:
            finished += [(total / length**search.length_penalty, tokens, total)] * end
        finished = sorted(finished, key=lambda x: -x[0])[: search.num_beams]
        if not running or stops(running[0][0], finished, search, length, steps):
            break
    return finished[: search.num_return_sequences]


def stops(best, finished, search, length, steps):
    if len(finished) < search.num_beams:
        return False
    if search.early_stopping is True:
        return True
    if search.early_stopping == "never" and search.length_penalty > 0:
        length = steps
    return best / length**search.length_penalty <= finished[-1][0]


def assert_same(result, row, expected):
    paths = result.paths
    for k, (score, tokens, log_probability) in enumerate(expected):
        assert paths.tokens[row, k][: len(tokens)].tolist() == list(tokens)
        assert paths.lengths[row, k] == len(tokens)
        assert result.score[row, k] == pytest.approx(score, abs=2e-5)
        assert paths.log_probability[row, k] == pytest.approx(log_probability, abs=2e-5)
    assert not np.any(paths.lengths[row, len(expected) :])
    assert np.all(result.score[row, len(expected) :] == -np.inf)
    padding = np.arange(paths.tokens.shape[2]) >= paths.lengths[row][:, None]
    assert np.all(paths.tokens[row][padding] == PAD)


PAD = 5
SEARCHES = [
    (BeamSearch(1), (0,)),
    (BeamSearch(3), (0,)),
    (BeamSearch(3, length_penalty=0.0), (0,)),
    (BeamSearch(3, length_penalty=2.0, num_return_sequences=2), (0,)),
    (BeamSearch(3, length_penalty=2.0, early_stopping="never"), (0,)),
    (BeamSearch(2, length_penalty=-1.0, early_stopping="never"), (0,)),
    (BeamSearch(3, length_penalty=0.6, early_stopping=True), (0,)),
    (BeamSearch(4), (0, 4, 6)),
    (BeamSearch(3, length_penalty=2.0, early_stopping="never"), (0, 2, 3, 4, 6)),
    (BeamSearch(VOCAB, early_stopping=True), (0,)),
    (BeamSearch(4, early_stopping="never"), ()),
]


def shrinking():
    """A chain on which a negative penalty at length T would stop before the best has finished."""
    chances = np.zeros((5 * VOCAB + 1, VOCAB))
    # Unequal everywhere, or many sequences would be equally probable.
    chances[:, :3] = np.random.default_rng(0).dirichlet((99, 99, 99), len(chances))
    chances[0, :3] = 0.3, 0.45, 0.25
    chances[2, :3] = 0.21, 0.69, 0.1
    chances[VOCAB + 2, :3] = 0.9, 0.05, 0.05
    with np.errstate(divide="ignore"):
        return np.log(chances)


@pytest.fixture(scope="module")
def chains():
    """Start [N, V] and rows [N, 5, V, V] of random chains, some with impossible tokens.

    Each step has its own rows: in a plain chain many sequences are exactly as probable as others.
    """
    rng = np.random.default_rng(0)
    logits = 1.5 * rng.standard_normal((CHAINS, 5 * VOCAB + 1, VOCAB))
    logits[CHAINS // 2 :][rng.random(logits[CHAINS // 2 :].shape) < 0.5] = -np.inf
    logits[:, :, 1] = np.maximum(logits[:, :, 1], -1)
    # Ends likely enough for every branch of the stopping rule.
    logits[:, :, 0] += 0.5
    log_probs = np.apply_along_axis(log_softmax, -1, logits)
    log_probs[-1] = shrinking()
    return log_probs[:, 0], log_probs[:, 1:].reshape(CHAINS, 5, VOCAB, VOCAB)


@pytest.mark.parametrize(("search", "eos"), SEARCHES)
def test_equals_the_plain_rules_on_chains(chains, search, eos):
    start, rows = chains

    @jax.jit
    def run(start, rows):
        def step(cache, tokens, t):
            each = jnp.arange(CHAINS)[:, None]
            return rows[each, t, tokens], (), cache

        return beam_search(step, start, (), search, max_new_tokens=6, eos=eos, pad=PAD)

    result = jax.tree.map(np.asarray, run(start.astype(np.float32), rows.astype(np.float32)))
    for i in range(CHAINS):
        expected = oracle(
            lambda x, i=i: rows[i, len(x) - 1, x[-1]] if x else start[i], search, 6, eos
        )
        assert_same(result, i, expected)


@pytest.mark.parametrize(("search", "eos"), [SEARCHES[1], SEARCHES[3], SEARCHES[7]])
def test_equals_the_plain_rules_with_history(search, eos):
    step, logits, cache = ATTENDING.model(4, search.num_beams)

    @jax.jit
    def run(logits, cache):
        return beam_search(step, logits, cache, search, max_new_tokens=12, eos=eos, pad=PAD)

    result = jax.tree.map(np.asarray, run(logits, cache))
    for row in range(4):
        expected = oracle(
            lambda x, row=row: ATTENDING.next_log_probs(logits[row], x)[0], search, 12, eos
        )
        assert_same(result, row, expected)
        for k in range(len(expected)):
            check_paths(ATTENDING, logits, result.paths, row, k)


def test_rows_do_not_depend_on_the_batch():
    def run(batch):
        step, logits, cache = ATTENDING.model(batch, 3)
        search = jax.jit(
            lambda logits, cache: beam_search(
                step, logits, cache, BeamSearch(3), max_new_tokens=12, eos=10
            )
        )
        return search(logits, cache).paths

    one, four = run(1), run(4)
    # The others run longer than the first row.
    assert one.lengths.max() < four.lengths.max()
    assert np.array_equal(one.tokens[0], four.tokens[0])


@pytest.fixture(scope="module")
def beam_sampled():
    @partial(jax.jit, static_argnums=0)
    def run(batch, p, seed):
        step, logits, cache = chain_model(log_chain(CHAIN_1), batch, 2)
        return beam_search(
            step,
            logits,
            cache,
            BeamSearch(2, sampling=Sampling(top_p=p)),
            max_new_tokens=3,
            key=jax.random.key(seed),
        )

    return lambda p, seed=0: run(200_000, p, seed)


def test_beam_sampling_with_little_to_draw_is_beam_search(beam_sampled):
    # Two tokens of each path, so four pairs: all are drawn.
    assert shares(beam_sampled(0.6).paths.tokens[:, 0]) == {"AAA": 1.0}


def test_beam_sampling_of_everything(beam_sampled):
    exact = {
        "AAA": 0.60189747,
        "BBB": 0.19345046,
        "ACC": 0.11494256,
        "AAB": 0.0500885,
        "ABB": 0.03502669,
        "BBA": 0.00457621,
        "ABA": 1.8e-5,
    }
    found = shares(beam_sampled(1.0).paths.tokens[:, 0])
    assert_frequencies(found, exact, 200_000, complete=False)
    # The exact law has no other word; the last one's rounding is larger than 1e-6.
    assert set(found) <= set(exact)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_beams": 0}, "num_beams must be between 1 and 3 .the vocabulary., got 0"),
        ({"num_beams": 4}, "num_beams must be between 1 and 3 .the vocabulary., got 4"),
        ({"num_return_sequences": 3}, "num_return_sequences must be between 1 and 2"),
        ({"num_return_sequences": 0}, "num_return_sequences must be between 1 and 2"),
        ({"early_stopping": "always"}, "early_stopping must be True, False or 'never'"),
        ({"sampling": Sampling()}, "beam sampling needs a key, got None"),
        ({"sampling": Sampling(0.0)}, "temperature must be > 0 for beam sampling, got 0.0"),
        ({"sampling": Sampling(top_k=4)}, "top_k must be between 1 and 3 .the vocabulary., got 4"),
    ],
)
def test_bad_searches_are_refused(arguments, message):
    step, logits, cache = chain_model(log_chain(CHAIN_1), 1, 2)
    search = BeamSearch(**{"num_beams": 2, **arguments})
    with pytest.raises(ValueError, match=message):
        beam_search(step, logits, cache, search, max_new_tokens=3)


def test_no_steps_are_refused():
    step, logits, cache = chain_model(log_chain(CHAIN_1), 1, 2)
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
        beam_search(step, logits, cache, BeamSearch(2), max_new_tokens=0)

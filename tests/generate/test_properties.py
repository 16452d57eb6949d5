"""What holds for every joint nucleus, on a model with history; votes; bad arguments."""

import dataclasses
from functools import partial

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egattn.generate.config import Final, JointNucleus
from egattn.generate.joint_nucleus import joint_nucleus
from egattn.generate.search import gather_paths
from egattn.generate.vote import answer_labels, vote
from tests.generate.models import (
    CHAIN_2,
    Attending,
    chain_model,
    check_paths,
    log_chain,
    log_softmax,
)

ATTENDING = Attending()
PATHS, STEPS, BATCH = 4, 12, 3
END, PAD = 10, 5
RULES = JointNucleus(PATHS, p=1.0)


@partial(jax.jit, static_argnames=("rules", "batch", "steps", "reorder"))
def _attended(traced, seed, rules, batch, steps, reorder):
    step, logits, cache = ATTENDING.model(batch, PATHS)
    rules = dataclasses.replace(rules, **traced)
    key = jax.random.key(seed)
    options = {"max_new_tokens": steps, "eos": END, "pad": PAD, "reorder": reorder}
    return joint_nucleus(step, logits, cache, key, rules, **options)


def attended(seed=0, batch=BATCH, steps=STEPS, reorder=gather_paths, rules=RULES, **traced):
    traced = {"p": 0.9, "temperature": 1.0, "path_exponent": 1.0, **traced}
    traced = {} if rules.mode == "sbs" else traced
    return jax.tree.map(np.asarray, _attended(traced, seed, rules, batch, steps, reorder))


def start(batch=BATCH):
    return ATTENDING.model(batch, PATHS)[1]


settings = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 1000),
        "p": st.sampled_from([0.05, 0.5, 0.9, 1.0]),
        "temperature": st.sampled_from([0.6, 1.0, 1.5]),
        "path_exponent": st.sampled_from([0.0, 0.5, 1.0]),
    }
)


@hypothesis.given(settings)
@hypothesis.settings(max_examples=25)
def test_paths_are_what_a_recomputation_gives(setting):
    result = attended(**setting)
    logits = start()
    for row in range(BATCH):
        for k in range(PATHS):
            check_or_absent(result, logits, row, k, setting["temperature"])
        words = [tuple(x) for x in result.paths.tokens[row][result.paths.lengths[row] > 0]]
        assert len(set(words)) == len(words)


def check_or_absent(result, logits, row, k, temperature):
    paths, length = result.paths, result.paths.lengths[row, k]
    if length == 0:
        assert paths.log_probability[row, k] == -np.inf
        assert result.tempered_log_probability[row, k] == -np.inf
        assert np.all(paths.tokens[row, k] == PAD)
        return
    check_paths(ATTENDING, logits, paths, row, k)
    tokens = paths.tokens[row, k]
    prefixes = [ATTENDING.next_log_probs(logits[row], tokens[:i])[0] for i in range(length)]
    tempered = [log_softmax(x / temperature)[v] for x, v in zip(prefixes, tokens, strict=False)]
    assert result.tempered_log_probability[row, k] == pytest.approx(sum(tempered), abs=1e-4)
    assert np.all(tokens[length:] == PAD)
    assert END not in tokens[: length - 1]
    assert length == STEPS or tokens[length - 1] == END


@hypothesis.given(settings)
@hypothesis.settings(max_examples=25)
def test_statistics_of_the_steps(setting):
    result = attended(**setting)
    size, live = result.nucleus_size, result.live
    assert np.array_equal(live, np.minimum(size, PATHS))
    assert np.array_equal(live[:, -1] > 0, result.paths.lengths.max(1) == STEPS)
    # All eleven tokens are candidates.
    assert result.exact.all()
    happened = size > 0
    # The normaliser is exact, so at p = 1 the whole pool has mass 1.
    most, least = (1 + 1e-5, setting["p"] - 1e-5)
    assert np.all((result.nucleus_mass[happened] > least) & (result.nucleus_mass[happened] < most))
    assert not np.any(result.nucleus_mass[~happened])
    rows = np.arange(BATCH)
    best = result.tempered_log_probability
    assert np.array_equal(best[rows, result.choice], best.max(1))


@pytest.mark.parametrize("mode", ["gumbel", "topk", "sbs"])
def test_all_modes_follow_their_paths(mode):
    result = attended(rules=JointNucleus(PATHS, mode=mode, p=1.0), p=1.0)
    for row in range(BATCH):
        for k in range(PATHS):
            check_paths(ATTENDING, start(), result.paths, row, k)


def test_a_cache_left_in_place_is_noticed():
    def stay(cache, parents):
        return cache

    result, logits = attended(reorder=stay), start()
    wrong = 0
    for row, k in np.ndindex(BATCH, PATHS):
        try:
            check_paths(ATTENDING, logits, result.paths, row, k)
        except AssertionError:
            wrong += 1
    assert wrong > BATCH * PATHS / 2


def test_total_probability_never_grows():
    # Draws do not depend on T, so shorter runs are prefixes of longer ones.
    sums = [
        np.exp(attended(steps=steps, p=1.0).paths.log_probability.astype(np.float64)).sum(1)
        for steps in (4, STEPS)
    ]
    assert np.all(np.diff(sums, axis=0) <= 1e-6)
    assert np.all(sums[0] <= 1 + 1e-6)


def test_rows_do_not_depend_on_the_batch():
    finished_early = 0
    for seed in range(20):
        one, many = (attended(seed, batch, p=0.6) for batch in (1, BATCH))
        finished_early += many.live[0, -1] == 0 < many.live[:, -1].max()
        for name in ("exact", "nucleus_size", "live", "choice"):
            assert np.array_equal(getattr(one, name)[0], getattr(many, name)[0])
        assert np.array_equal(one.paths.tokens[0], many.paths.tokens[0])
        np.testing.assert_allclose(
            one.paths.log_probability[0], many.paths.log_probability[0], atol=1e-5
        )
    assert finished_early >= 2


def test_more_candidates_change_nothing_while_the_flag_is_true():
    few = dataclasses.replace(RULES, num_candidates=5)
    agreed = flagged = 0
    for seed in range(20):
        fewer, all_of_them = (attended(seed, rules=rules, p=0.6) for rules in (few, RULES))
        assert all_of_them.exact.all()
        for row in range(BATCH):
            if not fewer.exact[row].all():
                flagged += 1
                continue
            agreed += 1
            assert np.array_equal(fewer.paths.tokens[row], all_of_them.paths.tokens[row])
            assert np.array_equal(fewer.nucleus_size[row], all_of_them.nucleus_size[row])
    assert agreed >= 5
    assert flagged >= 5


def topk(chain, paths, eos=-1, path_exponent=1.0, length_exponent=0.0, final: Final = "best"):
    rules = JointNucleus(paths, mode="topk", final=final, p=1.0)
    exponents = {"path_exponent": path_exponent, "length_exponent": length_exponent}
    return _topk(rules, 3, chain, exponents, eos)


@partial(jax.jit, static_argnums=(0, 1))
def _topk(rules, steps, chain, exponents, eos):
    step, logits, cache = chain_model(chain, 1, rules.num_paths)
    rules = dataclasses.replace(rules, **exponents)
    key = jax.random.key(0)
    return joint_nucleus(step, logits, cache, key, rules, max_new_tokens=steps, eos=eos)


def test_one_possible_token_makes_one_path():
    chain = log_chain(([0, 1, 0], [[0.2, 0.3, 0.5], [0, 0, 1], [0.6, 0.4, 0]]))
    result = topk(chain, 4, path_exponent=0.0)
    assert result.live.tolist() == [[1, 1, 2]]
    assert result.paths.tokens[0].tolist() == [[1, 2, 0], [1, 2, 1], [0, 0, 0], [0, 0, 0]]
    assert result.paths.lengths.tolist() == [[3, 3, 0, 0]]
    np.testing.assert_allclose(np.exp(result.paths.log_probability), [[0.6, 0.4, 0, 0]], rtol=1e-6)


@pytest.mark.parametrize("mode", ["gumbel", "topk", "sbs"])
def test_paths_that_do_not_exist_or_ended_may_compute_nan(mode):
    step, logits, cache = chain_model(log_chain(CHAIN_2), 1, 6)
    rules = JointNucleus(6, mode=mode, p=1.0)

    @jax.jit
    def run(poison):
        def poisoned(cache, tokens, t):
            logits, observed, cache = step(cache, tokens, t)
            return jnp.where((tokens == -1)[..., None], poison, logits), observed, cache

        key = jax.random.key(0)
        start = (poisoned, logits, cache, key, rules)
        return joint_nucleus(*start, max_new_tokens=4, eos=2, pad=-1)

    clean, nan = run(0.0), run(jnp.nan)
    assert np.any(clean.paths.lengths == 1)
    assert np.any(clean.live[0] < 6)
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(nan), strict=True):
        assert np.array_equal(a, b)


def test_ties_go_to_the_lower_token_of_the_earlier_path():
    chain = log_chain((np.full(4, 0.25), np.full((4, 4), 0.25)))
    result = topk(chain, 3)
    assert result.paths.tokens[0].tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2]]


def test_mass_one_keeps_every_token_of_a_large_vocabulary():
    def step(cache, tokens, t):
        return jnp.zeros((*tokens.shape, 200_000)), (), cache

    logits = 3 * jax.random.normal(jax.random.key(0), (1, 200_000))
    rules = JointNucleus(1, num_candidates=200_000, p=1.0)

    @jax.jit
    def run(logits, key):
        return joint_nucleus(step, logits, (), key, rules, max_new_tokens=1)

    result = run(logits, jax.random.key(1))
    assert result.nucleus_size.tolist() == [[200_000]]
    assert result.exact.all()


@pytest.mark.parametrize("exponent", [0.0, 0.7, 3.0])
def test_length_exponent_ranks_the_answer(exponent):
    result = topk(log_chain(CHAIN_2), 3, eos=2, length_exponent=exponent)
    # AE, ABA and BAE, of length 2, 3 and 3.
    scores = np.log([0.2, 0.105, 0.084]) / ((5 + np.array([2, 3, 3])) / 6) ** exponent
    assert result.choice.tolist() == [np.argmax(scores)]
    assert (exponent > 1) == (result.choice[0] > 0)


def test_votes_add_up_over_equal_answers():
    log_weight = jnp.log(jnp.array([[0.4, 0.2, 0.3, 0.1], [0.4, 0.3, 0.2, 0.1]]))
    labels = np.array([[7, 1, 1, 5], [0, 1, 2, 3]])
    assert vote(labels, log_weight).tolist() == [2, 0]
    # Arrays vote as a whole, and what does not exist has no vote.
    arrays = np.stack([labels, np.zeros_like(labels)], -1)
    assert vote(arrays, log_weight).tolist() == [2, 0]
    log_weight = log_weight.at[0, 2].set(-jnp.inf)
    assert vote(labels, log_weight).tolist() == [0, 0]


def test_answers_may_be_anything_hashable():
    result = topk(log_chain(CHAIN_2), 3, eos=2, final="vote")
    # Sequences are distinct, so their own vote is won by the most probable one.
    assert result.choice.tolist() == [0]
    labels = answer_labels(result.paths.tokens, result.paths.lengths, lambda x: str(len(x)))
    # Two paths of length 3, .105 and .084, against one of length 2, .2; then with a fairer rule.
    assert labels.tolist() == [[0, 1, 1]]
    assert vote(labels, result.tempered_log_probability).tolist() == [0]
    assert vote(labels, jnp.log(jnp.array([[0.18, 0.105, 0.084]]))).tolist() == [1]


def test_gather_moves_paths():
    parents = jnp.array([[1, 1, 0], [2, 0, 1]])
    leaf = jnp.arange(2 * 3 * 4).reshape(2, 3, 4)
    expected = np.stack([np.asarray(leaf)[row, parents[row]] for row in range(2)])
    moved = gather_paths({"k": leaf, "v": leaf[..., 0]}, parents)
    assert np.array_equal(moved["k"], expected)
    assert np.array_equal(moved["v"], expected[..., 0])
    with pytest.raises(ValueError, match=r"\[batch, paths, ...\] = \(2, 3\), got \(3, 2, 4\)"):
        gather_paths(jnp.swapaxes(leaf, 0, 1), parents)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"p": 0.0}, "p must be in .0, 1., got 0.0"),
        ({"p": 1.5}, "p must be in .0, 1., got 1.5"),
        ({"temperature": 0.0}, "temperature must be at least 1e-30 and finite .*'topk'.*, got 0.0"),
        ({"path_exponent": -0.1}, "path_exponent must be in .0, 1., got -0.1"),
        ({"min_p": 2.0}, "min_p must be in .0, 1., got 2.0"),
        ({"num_paths": 0}, "num_paths must be at least 1, got 0"),
        ({"num_candidates": 0}, "num_candidates must be between 1 and 3 .*, got 0"),
        ({"num_candidates": 4}, "num_candidates must be between 1 and 3 .*, got 4"),
        ({"mode": "gumble"}, "unknown mode 'gumble'; did you mean 'gumbel'"),
        ({"final": "last"}, "unknown final 'last'.*valid: best, sample, vote"),
        ({"mode": "sbs"}, "p must be 1 in mode 'sbs', which has no nucleus, got 0.95"),
        ({"mode": "sbs", "p": 1, "min_p": 0.1}, "min_p must be None in mode 'sbs', got 0.1"),
        ({"mode": "sbs", "p": 1, "path_exponent": 0}, "path_exponent must be 1 in mode 'sbs'"),
    ],
)
def test_bad_rules_are_refused(rules, message):
    step, logits, cache = chain_model(log_chain(CHAIN_2), 1, 4)
    with pytest.raises(ValueError, match=message):
        joint_nucleus(
            step, logits, cache, jax.random.key(0), JointNucleus(**rules), max_new_tokens=2
        )


def test_bad_length_is_refused():
    step, logits, cache = chain_model(log_chain(CHAIN_2), 1, 4)
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
        joint_nucleus(step, logits, cache, jax.random.key(0), JointNucleus(), max_new_tokens=0)

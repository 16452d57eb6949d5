"""The joint nucleus against exact results on Markov chains."""

import dataclasses
import itertools
from fractions import Fraction
from functools import partial

import jax
import numpy as np
import pytest

from egattn.generate.config import JointNucleus
from egattn.generate.joint_nucleus import joint_nucleus
from tests.generate.models import (
    CHAIN_1,
    CHAIN_2,
    assert_frequencies,
    chain_model,
    fractions,
    log_chain,
    probability,
    shares,
    spell,
)

ROWS = 200_000
AEB = "ABE"


@partial(jax.jit, static_argnums=(0, 1, 2))
def _run(rules, steps, batch, traced, chain, eos, seed):
    rules = dataclasses.replace(rules, **traced)
    step, logits, cache = chain_model(chain, batch, rules.num_paths)
    key = jax.random.key(seed)
    return joint_nucleus(step, logits, cache, key, rules, max_new_tokens=steps, eos=eos)


def run(chain, rules, steps=3, eos=-1, batch=1, seed=0):
    """Runs a chain; numbers are traced, so that few programs have to be compiled."""
    traced = {}
    if rules.mode != "sbs":
        traced = {"p": rules.p, "path_exponent": rules.path_exponent}
        rules = dataclasses.replace(rules, p=1.0, path_exponent=1.0)
    if rules.min_p is not None:
        traced["min_p"], rules = rules.min_p, dataclasses.replace(rules, min_p=0.5)
    return jax.tree.map(np.asarray, _run(rules, steps, batch, traced, log_chain(chain), eos, seed))


def found(result, letters="ABC", row=0):
    """Words of the live paths with their probabilities."""
    paths = result.paths
    return {
        spell(paths.tokens[row, k], paths.lengths[row, k], letters): np.exp(p)
        for k, p in enumerate(paths.log_probability[row])
        if p > -np.inf
    }


def chosen(result):
    rows = np.arange(len(result.choice))
    return shares(result.paths.tokens[rows, result.choice])


def topk(paths, **more):
    return JointNucleus(paths, mode="topk", p=1.0, **more)


D3 = {"CCC": 0.162, "AAA": 0.07938, "BBB": 0.058835}


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (1, {"AAA": 0.07938}),
        (2, {"AAA": 0.07938, "BBB": 0.058835}),
        (3, D3),
        (4, D3 | {"AAB": 0.0567}),
    ],
)
def test_most_probable_pairs_are_beam_search(paths, expected):
    result = run(CHAIN_1, topk(paths))
    assert found(result) == pytest.approx(expected, rel=1e-5)
    assert list(found(result)) == list(expected)
    assert result.exact.all()


def test_enough_paths_enumerate_every_sequence():
    result = run(CHAIN_1, topk(27))
    words = ["".join(x) for x in itertools.product("ABC", repeat=3)]
    exact = {w: float(probability(CHAIN_1, ["ABC".index(x) for x in w])) for w in words}
    assert found(result) == pytest.approx(exact, rel=1e-5)
    top = ["CCC", "ACC", "BCC", "AAA", "BBB", "AAB", "ABB", "AAC"]
    assert list(found(result))[:8] == top
    assert result.live[0].tolist() == [3, 9, 27]


@pytest.mark.parametrize("path_exponent", [1.0, 0.0])
def test_one_path_is_top_p(path_exponent):
    rules = JointNucleus(1, p=0.6, path_exponent=path_exponent)
    exact = {
        "AAA": Fraction(49, 256),
        "BBB": Fraction(11767, 85264),
        "AAB": Fraction(35, 256),
        "ABB": Fraction(615, 4672),
        "BAA": Fraction(49, 438),
        "BBA": Fraction(574, 5329),
        "ABA": Fraction(15, 146),
        "BAB": Fraction(35, 438),
    }
    assert_frequencies(chosen(run(CHAIN_1, rules, batch=ROWS)), exact, ROWS)


@pytest.mark.parametrize(
    ("path_exponent", "nucleus", "mass"),
    [
        # The normaliser is 0.8, the weight of both paths, or 2 where paths weigh equally.
        (1.0, ["AA", "BB", "AB", "AC"], 1187 / 1600),
        (0.0, ["AA", "BB", "BA", "AB"], 1.45 / 2),
    ],
)
def test_second_nucleus(path_exponent, nucleus, mass):
    rules = JointNucleus(4, p=0.6, path_exponent=path_exponent, mode="topk")
    # The first nucleus is {A, B}; four paths then hold the whole second one.
    result = run(CHAIN_1, rules, steps=2)
    assert set(found(result)) == set(nucleus)
    assert result.nucleus_size[0].tolist() == [2, 4]
    assert result.nucleus_mass[0, 1] == pytest.approx(mass, rel=1e-6)


def pairs(result):
    words = result.paths.tokens.reshape(len(result.choice), 2, -1)
    words = np.sort(words[..., 0] * 3 + words[..., 1], 1)
    kinds, counts = np.unique(words, axis=0, return_counts=True)
    total = len(words)
    names = {i: "ABC"[i // 3] + "ABC"[i % 3] for i in range(9)}
    joined = ["+".join(names[int(i)] for i in kind) for kind in kinds]
    return dict(zip(joined, counts / total, strict=True))


def test_pairs_are_drawn_without_replacement():
    exact = {
        "AA+BB": 0.21452307,
        "AA+AB": 0.20004504,
        "AA+AC": 0.18502396,
        "AB+BB": 0.14372689,
        "AC+BB": 0.13286594,
        "AB+AC": 0.12381510,
    }
    result = run(CHAIN_1, JointNucleus(2, p=0.6), steps=2, batch=ROWS)
    assert_frequencies(pairs(result), exact, ROWS)
    # The first nucleus, {A, B}, holds no more than two, so both are taken.
    assert np.all(result.nucleus_size[:, 0] == 2)
    assert np.all(result.live == 2)
    np.testing.assert_allclose(result.nucleus_mass[:, 0], 0.8, rtol=1e-6)


D9 = {
    "ACC": 1389129911 / 3144926825,
    "AAA": 0.25075829,
    "BBB": 0.13898405,
    "AAB": 0.0801232,
    "ABB": 0.07075943,
    "BBA": 0.01767003,
}
D10 = {
    "CCC": 0.21981075,
    "ACC": 0.1778586,
    "AAA": 0.14126009,
    "BCC": 0.10154219,
    "BBB": 0.08423473,
    "ABB": 0.06501419,
    "AAB": 0.06147254,
    "BAA": 0.0442012,
    "BBA": 0.02978249,
    "AAC": 0.02419314,
    "ABA": 0.02210119,
    "BAB": 0.01122867,
}


@pytest.mark.parametrize(("p", "exact"), [(0.6, D9), (1.0, D10)])
def test_best_of_two_paths(p, exact):
    result = run(CHAIN_1, JointNucleus(2, p=p), batch=ROWS)
    # The table leaves out the rarest words at p = 1; the recursion below has them all.
    complete = abs(sum(exact.values()) - 1) < 1e-6
    assert complete or sum(exact.values()) > 0.98
    assert_frequencies(chosen(result), exact, ROWS, complete)
    assert result.exact.all()


def recursion(p, steps=3):
    """Law of the final pair of paths by exact recursion over sets, for K = 2."""
    start, rows = fractions(CHAIN_1)
    law: dict = {((), ()): Fraction(1)}
    for t in range(steps):
        new = {}
        for state, share in law.items():
            prefixes = [()] if t == 0 else list(state)
            weights = {}
            for prefix in prefixes:
                row = start if t == 0 else rows[prefix[t - 1]]
                weight = probability(CHAIN_1, prefix) if t else Fraction(1)
                weights |= {(*prefix, v): weight * q for v, q in enumerate(row)}
            for pair, q in draws(weights, p):
                new[pair] = new.get(pair, 0) + share * q
        law = new
    return law


def draws(weights, p):
    """Unordered pairs drawn without replacement from the smallest set that holds mass p."""
    total, mass, kept = sum(weights.values()), Fraction(0), {}
    for word in sorted(weights, key=weights.__getitem__, reverse=True):
        if mass < p * total:
            kept[word] = weights[word]
            mass += weights[word]
    q = {word: weight / mass for word, weight in kept.items()}
    for a, b in itertools.combinations(sorted(q), 2):
        yield (a, b), q[a] * q[b] / (1 - q[a]) + q[a] * q[b] / (1 - q[b])


@pytest.mark.parametrize("p", [Fraction("0.6"), Fraction("0.9"), Fraction(1)])
def test_best_of_two_paths_by_recursion(p):
    exact = {}
    for pair, share in recursion(p).items():
        best = spell(max(pair, key=lambda word: probability(CHAIN_1, word)))
        exact[best] = exact.get(best, 0) + share
    result = run(CHAIN_1, JointNucleus(2, p=float(p)), batch=ROWS, seed=1)
    assert_frequencies(chosen(result), exact, ROWS)


def test_final_sample_is_proportional_to_probability():
    exact = {}
    for pair, share in recursion(Fraction("0.9")).items():
        weights = [probability(CHAIN_1, word) for word in pair]
        for word, weight in zip(pair, weights, strict=True):
            exact[spell(word)] = exact.get(spell(word), 0) + share * weight / sum(weights)
    result = run(CHAIN_1, JointNucleus(2, p=0.9, final="sample"), batch=ROWS, seed=2)
    assert_frequencies(chosen(result), exact, ROWS)


def test_too_few_candidates_are_reported():
    result = run(CHAIN_1, JointNucleus(2, num_candidates=2, p=0.6), batch=ROWS)
    assert not result.exact[:, 1].any()
    # What such a result is worth: AAA comes far too often.
    assert chosen(result)["AAA"] == pytest.approx(0.406, abs=0.01)


@pytest.mark.parametrize(
    "rules",
    [
        JointNucleus(1, num_candidates=2, p=1.0),
        JointNucleus(1, num_candidates=2, p=0.9),
        JointNucleus(1, num_candidates=2, min_p=0.1),
        JointNucleus(1, num_candidates=2, mode="sbs", p=1.0),
    ],
)
def test_a_nucleus_that_candidates_do_not_fill_is_reported(rules):
    assert not run(CHAIN_1, rules, steps=1).exact.any()


@pytest.mark.parametrize(
    "rules",
    [
        JointNucleus(1, num_candidates=2, p=0.75),
        JointNucleus(1, num_candidates=2, min_p=0.9),
        JointNucleus(2, num_candidates=2, p=1.0, mode="topk"),
        JointNucleus(2, num_candidates=3, p=1.0),
    ],
)
def test_a_nucleus_that_candidates_fill_is_exact(rules):
    assert run(CHAIN_1, rules, steps=1).exact.all()


def test_min_p_keeps_pairs_by_their_ratio_to_the_heaviest():
    # Of .45 .35 .20 the first two; then of .189 .1435 .135 .126 .112 .0945 those above .1134.
    rules = JointNucleus(4, min_p=0.6, mode="topk")
    result = run(CHAIN_1, rules, steps=2)
    assert list(found(result)) == ["AA", "BB", "AB", "AC"]
    assert result.nucleus_size[0].tolist() == [2, 4]


@pytest.mark.parametrize(
    ("rules", "steps", "expected", "sizes"),
    [
        (topk(1), 6, {"AE": 0.2}, None),
        (topk(2), 2, {"BA": 0.21, "AE": 0.2}, None),
        (topk(2), 3, {"AE": 0.2, "BAE": 0.084}, None),
        (topk(3), 3, {"AE": 0.2, "ABA": 0.105, "BAE": 0.084}, None),
        (JointNucleus(2, mode="topk", p=0.6), 3, {"AE": 0.2, "BAE": 0.084}, [2, 3, 2]),
    ],
)
def test_finished_paths_stay(rules, steps, expected, sizes):
    result = run(CHAIN_2, rules, steps, eos=2)
    assert found(result, AEB) == pytest.approx(expected, rel=1e-5)
    assert list(found(result, AEB)) == list(expected)
    assert sizes is None or result.nucleus_size[0].tolist() == sizes


def test_the_loop_stops_when_all_have_ended():
    result = run(CHAIN_2, topk(1), steps=6, eos=2)
    assert result.paths.lengths.tolist() == [[2]]
    assert result.paths.tokens[0, 0].tolist() == [0, 2, 0, 0, 0, 0]
    assert result.live[0].tolist() == [1, 1, 0, 0, 0, 0]
    assert not result.nucleus_size[0, 2:].any()
    assert not result.paths.observed["fed"][0, 0, 1:].any()


SBS = {"CCC": 0.30658815, "ACC": 0.22202955, "BCC": 0.16949453, "AAA": 0.15872923}


def test_stochastic_beam_search_includes_as_sampling_without_replacement():
    rules = JointNucleus(2, mode="sbs", p=1.0, final="sample")
    result = run(CHAIN_1, rules, batch=ROWS)
    words = shares(result.paths.tokens.reshape(-1, 3))
    included = {word: 2 * share for word, share in words.items()}
    assert_frequencies(included, SBS, ROWS, complete=False)
    every = itertools.product(range(3), repeat=3)
    exact = {spell(word): probability(CHAIN_1, word) for word in every}
    assert_frequencies(chosen(result), exact, ROWS)
    # Slots come in the order of the perturbed log-probabilities, which float32 may round to one.
    assert np.all(result.choice == 0)
    steps = np.diff(result.score, axis=1)
    assert np.all(steps <= 0)
    assert np.mean(steps < 0) > 1 - 1e-4


def test_stochastic_beam_search_keeps_finished_paths():
    rules = JointNucleus(2, mode="sbs", p=1.0, final="sample")
    result = run(CHAIN_2, rules, eos=2, batch=ROWS)
    rows = np.arange(ROWS)
    ended = result.paths.lengths[rows, result.choice] == 1
    assert ended.mean() == pytest.approx(0.15, abs=4 * np.sqrt(0.15 * 0.85 / ROWS))

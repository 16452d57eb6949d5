"""Small models with exact answers for the tests of decoding: Markov chains and one with history."""

import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np

CHAIN_1 = (
    [".45", ".35", ".20"],
    [[".42", ".30", ".28"], [".32", ".41", ".27"], [".06", ".04", ".90"]],
)
"""Tokens A, B, C: nothing ends a sequence."""
CHAIN_2 = (
    [".50", ".35", ".15"],
    [[".25", ".35", ".40"], [".60", ".10", ".30"], [".25", ".35", ".40"]],
)
"""Tokens A, B, E: E = 2 ends a sequence, so its row is never used."""


def fractions(chain):
    start, rows = chain
    return [Fraction(x) for x in start], [[Fraction(x) for x in row] for row in rows]


def log_chain(chain):
    """Log-probabilities of a chain's start [V] and rows [V, V]."""
    with np.errstate(divide="ignore"):
        return tuple(np.log(np.asarray(x, np.float64)).astype(np.float32) for x in chain)


def chain_model(log_probs, batch=1, paths=1):
    """Step, start and cache of a chain given by `log_chain`; observes the token fed and t."""
    start, rows = map(jnp.asarray, log_probs)

    def step(cache, tokens, t):
        observed = {"fed": tokens, "t": jnp.broadcast_to(t, tokens.shape)}
        return rows[jnp.clip(tokens, 0, len(rows) - 1)], observed, cache

    return step, jnp.broadcast_to(start, (batch, len(start))), jnp.zeros((batch, paths))


def probability(chain, sequence):
    start, rows = fractions(chain)
    steps = itertools.pairwise(sequence)
    return start[sequence[0]] * math.prod(rows[a][b] for a, b in steps)


def spell(tokens, length=None, letters="ABC"):
    return "".join(letters[i] for i in np.asarray(tokens).tolist()[:length])


def unspell(text, letters="ABC"):
    return [letters.index(x) for x in text]


def shares(words, letters="ABC"):
    """Relative frequency of each sequence [N, T] as a dict of words."""
    unique, counts = np.unique(np.asarray(words), axis=0, return_counts=True)
    pairs = zip(unique, counts, strict=True)
    return {spell(word, letters=letters): count / len(words) for word, count in pairs}


def assert_frequencies(actual, expected, count, complete=True):
    """Compares frequencies with exact probabilities, each within four standard errors."""
    if complete:
        assert abs(sum(expected.values()) - 1) < 1e-6
        assert set(actual) <= set(expected)
    for word, share in expected.items():
        error = abs(actual.get(word, 0.0) - float(share))
        assert error <= 4 * np.sqrt(float(share) * (1 - float(share)) / count) + 1e-9, word


class Attending:
    """A model with history: attention over the cached embeddings of the tokens fed so far."""

    def __init__(self, vocab=11, width=6, length=12, seed=0, sharpness=3.0):
        rng = np.random.default_rng(seed)
        self.embedding = rng.standard_normal((vocab, width)).astype(np.float32)
        self.position = rng.standard_normal((length, width)).astype(np.float32)
        self.start = rng.standard_normal(vocab).astype(np.float32)
        self.head = (sharpness * rng.standard_normal((width, vocab)) / width).astype(np.float32)
        self.length = length

    def model(self, batch, paths, rows_differ=True):
        """Step, logits after the prompt and a cache [B, K, T, width]; logits differ by row."""
        rows = np.arange(batch)[:, None] * rows_differ
        logits = jnp.asarray(np.roll(self.start, 1)[None] * np.cos(rows) + self.start)
        width = self.embedding.shape[1]
        return self.step, logits, jnp.zeros((batch, paths, self.length, width))

    def step(self, cache, tokens, t):
        fed = jnp.asarray(self.embedding)[tokens] + jnp.asarray(self.position)[t]
        cache = cache.at[:, :, t].set(fed)
        scores = jnp.einsum("bkd,bktd->bkt", fed, cache)
        scores = jnp.where(jnp.arange(self.length) <= t, scores, -jnp.inf)
        weights = jax.nn.softmax(scores)
        observed = -jnp.sum(jnp.where(weights > 0, weights * jnp.log(weights), 0), -1)
        hidden = jnp.einsum("bkt,bktd->bkd", weights, cache)
        return hidden @ jnp.asarray(self.head), observed, cache

    def next_log_probs(self, start, prefix):
        """Log-probabilities after a prefix in float64 without a cache, and the entropy observed."""
        if not len(prefix):
            return log_softmax(start), None
        prefix = np.asarray(prefix)
        fed = self.embedding[prefix].astype(np.float64) + self.position[: len(prefix)]
        weights = np.exp(log_softmax(fed @ fed[-1]))
        logits = weights @ fed @ self.head
        return log_softmax(logits), -np.sum(weights * np.log(weights))


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - np.float64(np.logaddexp.reduce(x))


def entropy(log_probs):
    p = np.exp(log_probs)
    return -np.sum(p[p > 0] * np.asarray(log_probs)[p > 0])


def check_paths(attending, logits, paths, row, k):
    """Recomputes one path without a cache: log-probability, entropies and what was observed."""
    length = int(paths.lengths[row, k])
    tokens = np.asarray(paths.tokens[row, k][:length])
    total, entropies, observed = 0.0, [], []
    for i, token in enumerate(tokens):
        log_probs, seen = attending.next_log_probs(logits[row], tokens[:i])
        total += log_probs[token]
        entropies.append(entropy(log_probs))
        observed += [] if seen is None else [seen]
    np.testing.assert_allclose(paths.log_probability[row, k], total, atol=1e-4)
    np.testing.assert_allclose(paths.entropy[row, k][:length], entropies, atol=1e-5)
    np.testing.assert_allclose(paths.observed[row, k][: length - 1], observed, atol=1e-5)
    assert not np.any(paths.entropy[row, k][length:])
    assert not np.any(paths.observed[row, k][length - 1 :])

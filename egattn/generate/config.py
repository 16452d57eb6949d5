"""What can be chosen about decoding, and the checks of it."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from egattn._spelling import unknown

Scalar = int | float | Float[Array, ""]
"""A number, which may be traced; its range is checked when it is not."""

LEAST_TEMPERATURE = 1e-30
"""Logits divided by less leave float32's range."""

Mode = Literal["gumbel", "topk", "sbs"]
Final = Literal["best", "sample", "vote"]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to sample from logits: temperature, then top-k, top-p and min-p.

    Each truncation sees the distribution that the one before left, renormalised, in the order of
    Hugging Face transformers.
    """

    temperature: Scalar = 1.0
    """Divisor of the logits; 0 takes the most probable token."""
    top_k: int | None = None
    """Keep the k most probable tokens, and those that tie with the k-th."""
    top_p: Scalar | None = None
    """Keep the smallest set of tokens that holds this mass."""
    min_p: Scalar | None = None
    """Keep tokens at least this fraction as probable as the most probable."""

    def check(self, vocab: int) -> None:
        """Raises ValueError if a value that is not traced is out of range."""
        finite = f"0 or at least {LEAST_TEMPERATURE}, and finite"
        check_number("temperature", self.temperature, lambda x: x == 0 or _divides(x), finite)
        if self.top_k is not None:
            check_count("top_k", self.top_k, vocab, " (the vocabulary)")
        if self.top_p is not None:
            check_number("top_p", self.top_p, lambda x: 0 < x <= 1, "in (0, 1]")
        if self.min_p is not None:
            check_number("min_p", self.min_p, lambda x: 0 <= x <= 1, "in [0, 1]")

    @property
    def divisor(self) -> Scalar:
        """The temperature, or 1 where it is 0."""
        return jnp.where(self.temperature == 0, 1.0, self.temperature)


@dataclasses.dataclass(frozen=True)
class BeamSearch:
    """Width, score and end of a beam search, and whether its candidates are drawn."""

    num_beams: int
    """Paths per row K, at most V."""
    num_return_sequences: int | None = None
    """Sequences per row R to return, at most K; None for K."""
    length_penalty: float = 1.0
    """Exponent of the length in the score, the ending token counted; above 0 favours long ones."""
    early_stopping: bool | Literal["never"] = False
    """False stops a row when the best running path, at its present length, would not enter the
    finished set; "never" supposes length T if the penalty is positive; True stops as soon as K
    have finished, too."""
    sampling: Sampling | None = None
    """For beam sampling, temperature (> 0) and truncations of each path's distribution, which is
    not renormalised; candidates are drawn in proportion to exp(score), none twice."""

    def check(self, vocab: int) -> None:
        """Raises ValueError if a value is out of range."""
        if self.sampling is not None:
            self.sampling.check(vocab)
            positive = "> 0 for beam sampling"
            check_number("temperature", self.sampling.temperature, lambda x: x > 0, positive)
        check_count("num_beams", self.num_beams, vocab, " (the vocabulary)")
        check_count("num_return_sequences", self.returned, self.num_beams, " (num_beams)")
        check_number("length_penalty", self.length_penalty, math.isfinite, "finite")
        if self.early_stopping not in (True, False, "never"):
            expected = "True, False or 'never'"
            raise ValueError(f"early_stopping must be {expected}, got {self.early_stopping!r}")

    @property
    def returned(self) -> int:
        """Sequences per row to return."""
        chosen = self.num_return_sequences
        return self.num_beams if chosen is None else chosen


@dataclasses.dataclass(frozen=True)
class JointNucleus:
    """How paths are weighted, drawn and chosen between."""

    num_paths: int = 4
    """Paths per row K."""
    num_candidates: int | None = None
    """Tokens M considered per path, at most V; None for min(64, V), for "sbs" V. Too few show in
    `exact`."""
    mode: Mode = "gumbel"
    """"gumbel" draws K distinct pairs from the nucleus, "topk" takes its K heaviest, "sbs" is
    stochastic beam search: K sequences of the model without replacement, with no nucleus."""
    p: Scalar = 0.95
    """Mass of the nucleus; must be 1 for "sbs"."""
    min_p: Scalar | None = None
    """If given, the nucleus is instead all pairs at least this fraction as heavy as the first."""
    temperature: Scalar = 1.0
    """Divisor of the logits, > 0."""
    path_exponent: Scalar = 1.0
    """Exponent in [0, 1] of a path's probability in its weight; 0 weighs paths equally."""
    final: Final = "best"
    """How to choose the answer: "best" by tempered log-probability; "sample" in proportion to the
    tempered probability ("sbs": the largest perturbed one, which is an exact sample of the model);
    "vote" as `vote` does over equal sequences."""
    length_exponent: Scalar = 0.0
    """For "best", divides log-probabilities by ((5 + length) / 6)**length_exponent."""

    def candidates(self, vocab: int) -> int:
        """Tokens considered per path."""
        default = vocab if self.mode == "sbs" else min(64, vocab)
        return default if self.num_candidates is None else self.num_candidates

    def check(self, vocab: int) -> None:
        """Raises ValueError if a value that is not traced is out of range."""
        check_count("num_paths", self.num_paths)
        check_count("num_candidates", self.candidates(vocab), vocab, " (the vocabulary)")
        check_number("p", self.p, lambda x: 0 < x <= 1, "in (0, 1]")
        Sampling(min_p=self.min_p).check(vocab)
        least = f"at least {LEAST_TEMPERATURE} and finite (for the most probable, mode 'topk')"
        check_number("temperature", self.temperature, _divides, least)
        check_number("length_exponent", self.length_exponent, math.isfinite, "finite")
        check_number("path_exponent", self.path_exponent, lambda x: 0 <= x <= 1, "in [0, 1]")
        for name, value, valid in (("mode", self.mode, Mode), ("final", self.final, Final)):
            if value not in get_args(valid):
                raise ValueError(unknown(name, value, get_args(valid)))
        if self.mode == "sbs":
            needed = "1 in mode 'sbs', which has no nucleus"
            check_number("p", self.p, lambda x: x == 1, needed)
            check_number("path_exponent", self.path_exponent, lambda x: x == 1, needed)
            if self.min_p is not None:
                raise ValueError(f"min_p must be None in mode 'sbs', got {self.min_p}")


def check_count(name: str, value: int, most: int | None = None, why: str = "") -> None:
    """Raises ValueError unless 1 <= value <= most."""
    if value < 1 or (most is not None and value > most):
        limit = f"between 1 and {most}{why}" if most is not None else "at least 1"
        raise ValueError(f"{name} must be {limit}, got {value}")


def _divides(temperature: float) -> bool:
    return LEAST_TEMPERATURE <= temperature < math.inf


def check_number(name: str, value: Any, test: Callable[[float], bool], expected: str) -> None:
    """Raises ValueError if a number fails its test; traced values, unknown as yet, pass."""
    if not isinstance(value, Tracer) and not test(float(value)):
        raise ValueError(f"{name} must be {expected}, got {value}")

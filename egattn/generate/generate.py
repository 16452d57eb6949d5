"""Continues prompts with a decoder: `generate`."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jaxtyping import Array, Float, Int

from egattn._spelling import unknown
from egattn.generate.beam import Beams, beam_search
from egattn.generate.config import BeamSearch, JointNucleus, Sampling, Scalar, check_count
from egattn.generate.joint_nucleus import JointPaths, joint_nucleus
from egattn.generate.network import Network, prepare
from egattn.generate.sample import Samples, sample
from egattn.model import Decoder

Method = Sampling | BeamSearch | JointNucleus
"""How the next tokens are chosen."""

Beyond = Literal["raise", "last"]
"""Beyond the trained positions: raise, or use the last one's embedding and temperature."""


class Generated(NamedTuple):
    """Continuations of a batch of prompts, K per prompt."""

    tokens: Int[Array, "batch paths steps"]
    """New tokens, an end token included; pad after the end."""
    lengths: Int[Array, "batch paths"]
    """Number of new tokens; 0 for a path that does not exist."""
    choice: Int[Array, " batch"]
    """The path to show if only one is wanted."""
    log_probability: Float[Array, "batch paths"]
    """Log-probability of the new tokens under the model at temperature 1, nats."""
    token_entropy: Float[Array, "batch paths steps"]
    """Entropy of the distribution that each new token came from, at temperature 1, nats."""
    attention_entropy: Float[Array, "batch paths steps layers heads"]
    """Entropy of the attention rows that read each new token, nats; the last one is never read."""
    details: Samples | Beams | JointPaths
    """What the method reports beyond that."""


def generate(
    model: Decoder,
    variables: dict[str, Any],
    prompts: Sequence[Sequence[int]],
    method: Method,
    *,
    max_new_tokens: int,
    num_samples: int = 1,
    eos: int | Sequence[int] | None = None,
    pad: int = 0,
    seed: int = 0,
    beyond: Beyond = "raise",
    on_tokens: Callable[[Array], None] | None = None,
) -> Generated:
    """Continues prompts of any lengths, all at once, with a cache of keys and values.

    One program reads the prompts and generates: it is compiled once per method and sizes.

    Args:
      model: The decoder.
      variables: Its variables, as `Decoder.init` or `prepare` returns them.
      prompts: Token ids, at least one each.
      method: `Sampling` (temperature 0 is greedy), `BeamSearch` or `JointNucleus`.
      max_new_tokens: Most new tokens.
      num_samples: For `Sampling`, independent continuations of each prompt.
      eos: Id or ids that end a continuation; None: only the length does.
      pad: Token after the end.
      seed: Chooses the draws.
      beyond: Whether positions beyond the context length raise, or use what the last one learned.
      on_tokens: For `Sampling`, called with each step's tokens [B, K] but the last step's, while
        the program runs.

    Returns:
      The continuations, the K of each prompt in the method's order.

    Raises:
      ValueError: If a prompt is empty or too long, a token or an option is out of range.
      FloatingPointError: If the log-probability of what was chosen is not finite.
    """
    ends = () if eos is None else tuple(map(int, np.atleast_1d(np.asarray(eos)).tolist()))
    _check(model, prompts, method, max_new_tokens, num_samples, seed, beyond)
    _check_tokens(model, "eos", ends)
    _check_tokens(model, "pad", [pad])
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    tokens = np.zeros((len(prompts), int(lengths.max())), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    rules, numbers = _split(method)
    sizes = (max_new_tokens, num_samples, ends, int(pad), on_tokens)
    key = jax.random.key(seed)
    made = _run(model, rules, *sizes, numbers, variables, tokens, lengths, key)
    chosen = np.take_along_axis(
        np.asarray(made.log_probability), np.asarray(made.choice)[:, None], 1
    )
    if not np.isfinite(chosen).all():
        raise FloatingPointError("the decoder's logits are not finite: nothing can be chosen")
    return made


def _split(method: Any) -> tuple[Any, dict[str, Any]]:
    """A method without its numbers, and the numbers: other numbers need no other program."""
    numbers = {}
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        if field.type is Scalar or (field.type == Scalar | None and value is not None):
            numbers[field.name] = jnp.float32(value)
        elif isinstance(value, Sampling):
            rules, numbers[field.name] = _split(value)
            method = dataclasses.replace(method, **{field.name: rules})
    plain = {name: 1.0 for name, x in numbers.items() if not isinstance(x, dict)}
    return dataclasses.replace(method, **plain), numbers


def _joined(rules: Any, numbers: dict[str, Any]) -> Any:
    """The inverse of `_split`."""
    for name, x in numbers.items():
        x = _joined(getattr(rules, name), x) if isinstance(x, dict) else x
        rules = dataclasses.replace(rules, **{name: x})
    return rules


def _check(model: Decoder, prompts, method: Method, new, samples, seed, beyond) -> None:
    c = model.config
    if beyond not in ("raise", "last"):
        raise ValueError(unknown("choice of beyond", beyond, ("raise", "last")))
    check_count("max_new_tokens", new)
    check_count("num_samples", samples)
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed must fit into 64 bits, got {seed}")
    if samples > 1 and not isinstance(method, Sampling):
        raise ValueError(f"num_samples is for sampling, got {samples} with {type(method).__name__}")
    if not len(prompts):
        raise ValueError("expected at least one prompt, got none")
    for prompt in prompts:
        if not len(prompt):
            raise ValueError("expected prompts of at least one token, got an empty one")
        _check_tokens(model, "prompt", prompt)
        # The last new token is not read.
        longest = c.context_length - new + 1
        if len(prompt) > (longest if beyond == "raise" else c.context_length):
            raise ValueError(
                f"a prompt of {len(prompt)} tokens and {new} new ones take {len(prompt) + new - 1} "
                f"positions, the decoder has {c.context_length}"
            )
    method.check(c.vocab_size)


def _check_tokens(model: Decoder, name: str, tokens: Sequence[int]) -> None:
    vocab = model.config.vocab_size
    for token in tokens:
        if not 0 <= token < vocab:
            raise ValueError(f"{name}: expected tokens of 0 to {vocab - 1}, got {token}")


@functools.partial(jax.jit, static_argnums=range(7))
def _run(model, rules, new, samples, eos, pad, on_tokens, numbers, variables, tokens, lengths, key):
    method, paths = _joined(rules, numbers), samples
    if isinstance(method, BeamSearch):
        paths = method.num_beams
    elif isinstance(method, JointNucleus):
        paths = method.num_paths
    if model.stacked:
        model, variables = prepare(model, variables)
    network = Network(model, variables, paths, branching=not isinstance(method, Sampling))
    logits, cache = network.prefill(tokens, lengths, new)
    step = network.step if on_tokens is None else _telling(network.step, on_tokens)
    sizes: dict[str, Any] = {"max_new_tokens": new, "eos": eos, "pad": pad}
    first = jnp.zeros(len(tokens), jnp.int32)
    if isinstance(method, Sampling):
        details = sample(step, logits, cache, key, method, num_samples=samples, **sizes)
        return _generated(details, first)
    sizes["reorder"] = network.reorder
    if isinstance(method, BeamSearch):
        return _generated(beam_search(step, logits, cache, method, key=key, **sizes), first)
    details = joint_nucleus(step, logits, cache, key, method, **sizes)
    return _generated(details, details.choice)


def _telling(step: Callable, on_tokens: Callable[[Array], None]) -> Callable:
    """A step that hands the tokens it reads to the host, in order."""

    def told(cache, tokens, t):
        io_callback(on_tokens, None, tokens, ordered=True)
        return step(cache, tokens, t)

    return told


def _generated(details: Any, choice: Int[Array, " batch"]) -> Generated:
    p = details.paths
    return Generated(p.tokens, p.lengths, choice, p.log_probability, p.entropy, p.observed, details)

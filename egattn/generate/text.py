"""`egattn generate`: text continued by the decoder of a run."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from jaxtyping import Array, Int
from tokenizers import Tokenizer

from egattn.convert.convert import ORIGIN
from egattn.data import load_tokenizer_of
from egattn.data.manifest import TOKENIZER_NAME, sha256_file
from egattn.data.tokenizer import tokenizer_sha256
from egattn.generate.config import BeamSearch, Final, JointNucleus, Mode, Sampling
from egattn.generate.generate import Beyond, Generated, Method, generate
from egattn.model import Decoder
from egattn.train.config import TrainConfig
from egattn.train.variables import load_variables

_DRAWING = ("sample", "beam-sample", "joint")
# Methods that have an option; all have the others.
_FOR = {
    "temperature": _DRAWING,
    "top_k": ("sample", "beam-sample"),
    "top_p": _DRAWING,
    "min_p": _DRAWING,
    "num_samples": ("sample",),
    "num_paths": ("beam", "beam-sample", "joint"),
    "length_penalty": ("beam", "beam-sample"),
    "mode": ("joint",),
    "num_candidates": ("joint",),
    "path_exponent": ("joint",),
    "final": ("joint",),
    "seed": _DRAWING,
}


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
    """Continues prompts with a run's decoder."""

    run: tyro.conf.Positional[Path]
    """Run directory."""
    prompts: tyro.conf.Positional[tuple[str, ...]]
    """Texts to continue, all at once."""
    step: int | None = None
    """Checkpoint; default: the newest."""
    data: Path | None = None
    """Directory with the tokenizer; default: the data that the run was trained on, or what a
    converted run brought along."""
    method: Literal["sample", "beam", "beam-sample", "joint"] = "sample"
    """Independent samples, beam search, beam sampling, or the path-weighted joint nucleus."""
    max_new_tokens: int = 64
    """Most new tokens."""
    temperature: float = 1.0
    """For all but beam: divisor of the logits; for sample, 0 takes the most probable token."""
    top_k: int | None = None
    """For sample and beam-sample: only the k most probable tokens."""
    top_p: float | None = None
    """For all but beam: mass of the nucleus; default: 0.95 for joint, else all."""
    min_p: float | None = None
    """For all but beam: only what is at least this fraction as probable as the first."""
    num_samples: int = 1
    """For sample: continuations of each prompt."""
    num_paths: int = 4
    """For all but sample: paths kept per prompt."""
    length_penalty: float = 1.0
    """For beam and beam-sample: exponent of the length in the score."""
    mode: Mode = "gumbel"
    """For joint: draw the next paths, take the heaviest ones, or stochastic beam search."""
    num_candidates: int | None = None
    """For joint: tokens considered per path; default: 64."""
    path_exponent: float = 1.0
    """For joint: exponent of a path's probability in its weight."""
    final: Final = "best"
    """For joint: how the answer is chosen."""
    beyond: Beyond = "raise"
    """Beyond the trained positions: an error, or what the last one learned."""
    seed: int = 0
    """Chooses the draws."""
    report: bool = False
    """Whether to print each new token with its entropies."""
    json: bool = False
    """Whether to print one JSON object instead of text."""

    def __post_init__(self):
        """Checks what needs no network."""
        if not self.prompts:
            raise ValueError("expected at least one prompt, got none")
        for prompt in self.prompts:
            if any("\ud800" <= character <= "\udfff" for character in prompt):
                raise ValueError(f"expected prompts in UTF-8, got {prompt!a}")
        if self.report and self.json:
            raise ValueError("report is part of json: expected one of them, got both")
        for field in dataclasses.fields(self):
            methods = _FOR.get(field.name, (self.method,))
            if self.method not in methods and getattr(self, field.name) != field.default:
                name = field.name.replace("_", "-")
                raise ValueError(f"{name} is for method {', '.join(methods)}, got {self.method}")

    @property
    def rules(self) -> Method:
        """The method with its options."""
        sampling = Sampling(self.temperature, self.top_k, self.top_p, self.min_p)
        if self.method in ("beam", "beam-sample"):
            drawn = sampling if self.method == "beam-sample" else None
            return BeamSearch(self.num_paths, length_penalty=self.length_penalty, sampling=drawn)
        if self.method == "joint":
            return JointNucleus(
                self.num_paths,
                self.num_candidates,
                self.mode,
                (1.0 if self.mode == "sbs" else 0.95) if self.top_p is None else self.top_p,
                self.min_p,
                self.temperature,
                self.path_exponent,
                self.final,
            )
        return sampling


def generate_text(config: GenerateConfig) -> None:
    """Continues prompts and prints what came of it.

    One sample of one prompt is printed while it is generated.

    Raises:
      FileNotFoundError: If the run, a checkpoint or the tokenizer is missing.
      ValueError: If a prompt is empty or too long, or an option is out of range.
    """
    trained = TrainConfig.read(config.run)
    tokenizer, end = _tokenizer(config, trained)
    if tokenizer.get_vocab_size() > trained.model.vocab_size:
        raise ValueError(
            f"expected a tokenizer of at most {trained.model.vocab_size} tokens, as {config.run} "
            f"has, got {tokenizer.get_vocab_size()}"
        )
    prompts = [tokenizer.encode(text, add_special_tokens=False).ids for text in config.prompts]
    _, variables = load_variables(trained.run, config.step)
    streams = len(prompts) == 1 and config.method == "sample" and config.num_samples == 1
    stream = _Stream(tokenizer, prompts[0]) if streams and not config.json else None
    made = generate(
        Decoder(trained.model),
        variables,
        prompts,
        config.rules,
        max_new_tokens=config.max_new_tokens,
        num_samples=config.num_samples,
        eos=end,
        pad=end,
        seed=config.seed,
        beyond=config.beyond,
        on_tokens=None if stream is None else stream.add,
    )
    made = jax.device_get(made)
    # The last tokens may still be on their way to the stream.
    jax.effects_barrier()
    _warn_inexact(made)
    if config.json:
        print(json.dumps(describe(tokenizer, config.prompts, made), allow_nan=False))
        return
    if stream is not None:
        stream.end(made.tokens[0, 0, : made.lengths[0, 0]])
    else:
        _print_all(tokenizer, config, made)
    if config.report:
        _print_report(tokenizer, made)


def _tokenizer(config: GenerateConfig, trained: TrainConfig) -> tuple[Tokenizer, int]:
    """The one given, the training data's, or that of a converted run's origin; its end token."""
    directories = [trained.data, config.run / ORIGIN] if config.data is None else [config.data]
    paths = [directory / TOKENIZER_NAME for directory in directories]
    present = [path for path in paths if path.is_file()]
    for path in present:
        tokenizer, end = load_tokenizer_of(path.parent)
        if trained.tokenizer_sha256 in ("", sha256_file(path), tokenizer_sha256(tokenizer)):
            return tokenizer, end
    if not present:
        where = f"{paths[0]} ({Path.cwd()})"
        raise FileNotFoundError(
            f"expected a tokenizer.json, got no file at {where}: --data says where one is"
        )
    raise ValueError(f"{config.run} was trained with another tokenizer than {present[0]}")


def _warn_inexact(made: Generated) -> None:
    exact = getattr(made.details, "exact", np.bool_(True))
    if not np.all(exact):
        print(
            f"{np.sum(~exact)} of {exact.size} steps did not see all tokens that they might have "
            "chosen: more --num-candidates would",
            file=sys.stderr,
        )


class _Stream:
    """Prints one continuation token by token; characters of several tokens once they are whole.

    The prompt comes with the first new token: an error finds an empty line.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: list[int]):
        self._tokenizer, self._prompt, self._tokens = tokenizer, prompt, list(prompt)
        self._write: Callable[[str], Any] = sys.stdout.write
        self._shown = ""

    def add(self, tokens: Int[Array, "1 1"]) -> None:
        """Called with the token of a step."""
        self._tokens.append(int(tokens[0, 0]))
        self._show(self._text().rstrip("\ufffd"))

    def end(self, tokens: np.ndarray) -> None:
        """Shows what is missing of the continuation, whose last token no step has read."""
        self._tokens = [*self._prompt, *tokens.tolist()]
        self._show(self._text())
        self._write("\n")
        sys.stdout.flush()

    def _text(self) -> str:
        return self._tokenizer.decode(self._tokens, skip_special_tokens=True)

    def _show(self, text: str) -> None:
        if text.startswith(self._shown):
            self._write(text[len(self._shown) :])
            sys.stdout.flush()
            self._shown = text


def describe(tokenizer: Tokenizer, prompts: tuple[str, ...], made: Generated) -> dict[str, Any]:
    """What was generated, as plain lists and numbers."""
    exact = getattr(made.details, "exact", None)
    return {
        "prompts": [
            {
                "prompt": prompt,
                "choice": int(made.choice[row]),
                **({} if exact is None else {"exact": exact[row].tolist()}),
                "continuations": [
                    _continuation(tokenizer, made, row, path)
                    for path in range(made.tokens.shape[1])
                    if made.lengths[row, path]
                ],
            }
            for row, prompt in enumerate(prompts)
        ]
    }


def _continuation(tokenizer: Tokenizer, made: Generated, row: int, path: int) -> dict[str, Any]:
    length = int(made.lengths[row, path])
    tokens = made.tokens[row, path, :length].tolist()
    return {
        "text": tokenizer.decode(tokens, skip_special_tokens=True),
        "tokens": tokens,
        "log_probability": float(made.log_probability[row, path]),
        "token_entropy": made.token_entropy[row, path, :length].tolist(),
        "attention_entropy": made.attention_entropy[row, path, : length - 1].tolist(),
    }


def _print_all(tokenizer: Tokenizer, config: GenerateConfig, made: Generated) -> None:
    paths = made.tokens.shape[1]
    # Independent samples are all alike.
    chooses = paths > 1 and config.method != "sample"
    for row, prompt in enumerate(config.prompts):
        for path in range(paths):
            if not made.lengths[row, path]:
                continue
            found = _continuation(tokenizer, made, row, path)
            chosen = ", chosen" if chooses and path == made.choice[row] else ""
            print(
                f"--- {row + 1}.{path + 1}, log-probability {found['log_probability']:.2f}{chosen}"
            )
            print(prompt + found["text"])


def _print_report(tokenizer: Tokenizer, made: Generated) -> None:
    """The chosen continuation of each prompt, one new token a line."""
    print(
        "token  entropy of its distribution, of the attention that reads it (mean per layer), nats"
    )
    for row, path in enumerate(made.choice):
        for t in range(made.lengths[row, path]):
            text = tokenizer.decode([int(made.tokens[row, path, t])], skip_special_tokens=False)
            layers = made.attention_entropy[row, path, t].mean(-1)
            read = t < made.lengths[row, path] - 1
            means = " ".join(f"{x:.2f}" for x in layers) if read else "-"
            print(f"{text!r:16} {made.token_entropy[row, path, t]:6.3f}  {means}")

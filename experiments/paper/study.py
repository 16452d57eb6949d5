"""What a study consists of: trainings by one recipe that differ in stated options.

The recipe is the paper's (Appendix): AdamW at 1e-3, linear warm-up and decay, 512 sequences of 128
tokens a step in four parts, GPT-2 small; here in bfloat16 and with a vocabulary of 16,384.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

_B2 = "0.999"


class Rates(NamedTuple):
    """How fast a net learns."""

    learning_rate: str
    """Peak."""
    warmup: str
    """Share of the steps."""
    b2: str = _B2
    """AdamW's decay of the second moment."""

    @property
    def name(self) -> str:
        """Short, for tables."""
        b2 = "" if self.b2 == _B2 else f"-b{self.b2}"
        return f"lr{self.learning_rate}-w{self.warmup}{b2}"

    def words(self) -> str:
        """As options of `egattn train`."""
        words = f"--optimizer.learning-rate {self.learning_rate} --optimizer.warmup {self.warmup}"
        return words if self.b2 == _B2 else f"{words} --optimizer.b2 {self.b2}"


TOKENS_PER_STEP = 512 * 128
VOCAB_SIZE = 16384
MILLION = 1_000_000

# In the study `rates`, of the nets that train at them only SM+R has better ones, by 3 %.
_RATES = Rates("1e-3", "0.3")
# The best ones there for those that diverge, SM and weight norm.
LOWER = Rates("3e-4", "0.3")


@dataclasses.dataclass(frozen=True)
class Training:
    """One training of a study."""

    net: str
    """Name in tables."""
    preset: str
    """Preset of `egattn train`."""
    options: str = ""
    """Options of `egattn train` that differ from the recipe."""
    tokens: int = 20 * MILLION
    """Training tokens."""
    seed: int = 0
    """Seed of parameters and data order."""
    num_layers: int = 12
    """Blocks."""
    context_length: int = 128
    """Positions T."""
    without_ffn: int = 0
    """Deepest layers that have no feed-forward."""
    rates: Rates | None = None
    """How fast it learns; default: what all nets share."""
    more_text: bool = False
    """Train on the text of `more_text.py` as well."""
    paper: float | None = dataclasses.field(default=None, compare=False)
    """Perplexity in the paper."""

    @property
    def name(self) -> str:
        """Name of the run directory; says everything but the options of the net."""
        depth = f"-L{self.num_layers}" if self.num_layers != 12 else ""
        length = f"-T{self.context_length}" if self.context_length != 128 else ""
        return f"{self.net}{depth}{length}-{self.tokens / MILLION:g}M-s{self.seed}"

    @property
    def data(self) -> str:
        """Name of the directory of prepared data."""
        return f"{'more-' if self.more_text else ''}{self.context_length}"

    @property
    def steps(self) -> int:
        """Optimiser steps, the same for every context length."""
        return -(-self.tokens // TOKENS_PER_STEP)

    def words(self) -> list[str]:
        """Options of `egattn train` at full size."""
        rates = self.rates or _RATES
        batch_size, steps = TOKENS_PER_STEP // self.context_length, self.steps
        return (
            f"--preset {self.preset} --model.num-layers {self.num_layers} "
            f"--model.context-length {self.context_length} --model.dtype bfloat16 "
            f"--batch-size {batch_size} --accumulation 4 --steps {steps} --seed {self.seed} "
            f"--evaluate-every {-(-steps // 4)} --checkpoint-every 500 --keep-checkpoints 1 "
            "--log-every 5 "
            f"{rates.words()} {_feed_forward(self.num_layers, self.without_ffn)} {self.options}"
        ).split()

    def smoke_words(self) -> list[str]:
        """The same at toy size: a sixth of the layers, an eighth of the length, four steps."""
        layers, removed = self.num_layers // 6, -(-self.without_ffn // 6)
        return (
            f"--preset {self.preset} --model.num-layers {layers} --model.num-heads 2 "
            f"--model.embed-dim 32 --model.context-length {self.context_length // 8} "
            "--model.implementation reference --batch-size 16 --steps 4 --log-every 1 "
            f"{_feed_forward(layers, removed)} {self.options}"
        ).split()


def _feed_forward(layers: int, removed: int) -> str:
    kinds = ["fused"] * (layers - removed) + ["none"] * removed
    return f"--model.feed-forward {' '.join(kinds)}" if removed else ""


def main_rows(paper: Mapping[str, float | None]) -> tuple[Training, ...]:
    """The paper's nets, with its perplexities: 20 M tokens with three seeds, 100 M with one."""
    # Seed after seed: by the second one every net is compiled.
    short = [
        Training(net, net, seed=seed, paper=x) for seed in (0, 1, 2) for net, x in paper.items()
    ]
    return *short, *(Training(net, net, tokens=100 * MILLION, paper=x) for net, x in paper.items())

"""Cross-entropy search on zeta: zeros with proofs, a control, rare events, what rounding does.

python -m experiments.zeta demo
python -m experiments.zeta zeros --box 0.05 0.95 10 102 --json
python -m experiments.zeta rare --box 0 1 10 30 --eps 1e-6
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from egattn.run import command_line
from egattn.run.options import parse
from experiments.zeta import frequency, precision, rare, report, zeros
from experiments.zeta.box import Box
from experiments.zeta.functions import DAVENPORT_HEILBRONN, ZETA
from experiments.zeta.statement import LIMITS

_PROGRAM = "experiments.zeta"

Numbers = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class _Common:
    seed: int = 0
    """Decides every draw; 0 or more, below 2**32."""
    json: bool = False
    """Print one object."""


@dataclasses.dataclass(frozen=True)
class Zeros(_Common):
    """Zeros of zeta in a box, their number and each of them proved."""

    box: Numbers = (0.05, 0.95, 10.0, 102.0)
    """sigma from and to, t from and to."""
    evaluator: zeros.Method = "auto"
    """How zeta is computed; auto: Euler-Maclaurin, above height 1000 Taylor polynomials."""


@dataclasses.dataclass(frozen=True)
class Control(_Common):
    """The same of the Davenport-Heilbronn function, which has zeros off the line."""

    box: Numbers = (0.05, 0.95, 80.0, 90.0)
    """sigma from and to, t from and to."""


@dataclasses.dataclass(frozen=True)
class Rare(_Common):
    """How often |zeta| <= eps in a box, by importance sampling, beside the exact area."""

    box: Numbers = (0.0, 1.0, 10.0, 30.0)
    """sigma from and to, t from and to."""
    eps: float = 0.01
    """Level, > 0."""
    components: int | None = None
    """Of the mixture; default: as many as the box has zeros."""


@dataclasses.dataclass(frozen=True)
class Frequency(_Common):
    """Law of large numbers: the frequency of |zeta| <= eps comes to a ratio of areas."""

    box: Numbers = (0.0, 1.0, 10.0, 30.0)
    """sigma from and to, t from and to."""
    eps: float = 0.2
    """Level, > 0."""
    samples: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    """Numbers of samples."""
    runs: int = 32
    """Repetitions of each."""


@dataclasses.dataclass(frozen=True)
class Precision(_Common):
    """What rounding does to zeta and to where its zeros seem to be."""


@dataclasses.dataclass(frozen=True)
class Report(_Common):
    """All of it as one HTML page with figures."""

    out: Path = Path("report/zeta")
    """Directory to make; one that this command made is replaced."""


@dataclasses.dataclass(frozen=True)
class Demo(_Common):
    """Zeros, control, rare events and the report, in minutes on 2 CPU cores."""

    out: Path = Path("report/zeta")
    """Directory of the report."""


_COMMANDS: dict[str, type[_Common]] = {
    "demo": Demo,
    "zeros": Zeros,
    "control": Control,
    "rare": Rare,
    "frequency": Frequency,
    "precision": Precision,
    "report": Report,
}


def main(args: Sequence[str] | None = None) -> int:
    """Runs a command; returns 0."""
    words = list(sys.argv[1:] if args is None else args)
    with command_line(" ".join([_PROGRAM, *words[:1]]), ends_process=args is None):
        if not words or words[0] in ("-h", "--help"):
            print(f"usage: python -m {_PROGRAM} COMMAND; COMMAND --help lists the options\n")
            print("\n".join(f"  {name:9s} {kind.__doc__}" for name, kind in _COMMANDS.items()))
            return 0
        if words[0] not in _COMMANDS:
            raise ValueError(f"command must be one of {', '.join(_COMMANDS)}, got {words[0]!r}")
        config = parse(f"{_PROGRAM} {words[0]}", _COMMANDS[words[0]], words[1:])
        if not 0 <= config.seed < 2**32:
            raise ValueError(f"expected a seed from 0 to 2**32 - 1, got {config.seed}")
        with jax.enable_x64(True):
            # Beside an object, the two lines must not stand in its way.
            for line in LIMITS:
                print(line, file=sys.stderr if config.json else sys.stdout, flush=True)
            result, describe = _run(config)
        if config.json:
            print(json.dumps({**dataclasses.asdict(result), "limits": LIMITS}))
        else:
            print(describe(result), flush=True)
    return 0


def _run(config: Any) -> tuple[Any, Callable[[Any], str]]:
    if isinstance(config, Zeros):
        box = Box.of(config.box)
        return zeros.solve(ZETA, box, config.seed, config.evaluator), zeros.describe
    if isinstance(config, Control):
        box = Box.of(config.box)
        return zeros.solve(DAVENPORT_HEILBRONN, box, config.seed), zeros.describe
    if isinstance(config, Rare):
        box = Box.of(config.box, closed=True)
        return rare.run(box, config.eps, config.components, config.seed), rare.describe
    if isinstance(config, Frequency):
        box = Box.of(config.box, closed=True)
        result = frequency.run(box, config.eps, config.samples, config.runs, config.seed)
        return result, frequency.describe
    if isinstance(config, Precision):
        return precision.run(config.seed), precision.describe
    if isinstance(config, Demo) and not config.json:
        return report.run(config.out, config.seed, print), report.describe
    return report.run(config.out, config.seed), report.describe


if __name__ == "__main__":
    sys.exit(main())

"""Score, probability flow and entropy production of active matter.

python -m experiments.active_matter train ring runs/ring
python -m experiments.active_matter evaluate runs/ring
python -m experiments.active_matter report runs/ring
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from egattn.run import command_line

_PROGRAM = "experiments.active_matter"


def train(args: Sequence[str]) -> None:
    """SYSTEM RUN: trains a system's network, or goes on where a run stopped."""
    from egattn.run.signals import active

    # Before the imports take their time: whatever a signal ends from here on, goes on later.
    active().resumes = True
    from egattn.run.options import parse
    from experiments.active_matter.config import PRESETS, TrainConfig
    from experiments.active_matter.training import train

    system, rest = _system(args, "train SYSTEM RUN")
    with _float32():
        train(parse(f"{_PROGRAM} train {system}", TrainConfig, rest, PRESETS[system]))


def evaluate(args: Sequence[str]) -> None:
    """RUN: entropy production of a trained network on held-out snapshots, with every check."""
    from egattn.run.lines import to_json
    from egattn.run.options import parse
    from experiments.active_matter.evaluation import EvaluateConfig, describe, evaluate

    config = parse(f"{_PROGRAM} evaluate", EvaluateConfig, args)
    with _float32():
        values = evaluate(config)
    print(to_json(values) if config.json else describe(values))


def simulate(args: Sequence[str]) -> None:
    """SYSTEM FILE.gsd: writes snapshots of a system."""
    from egattn.run.options import parse
    from experiments.active_matter.snapshots import SIMULATIONS, SimulateConfig, simulate

    system, rest = _system(args, "simulate SYSTEM FILE.gsd")
    with _float32():
        simulate(parse(f"{_PROGRAM} simulate {system}", SimulateConfig, rest, SIMULATIONS[system]))


def report(args: Sequence[str]) -> None:
    """RUN [RUN ...]: pictures and numbers of trained runs in one HTML page."""
    from egattn.run.options import parse
    from experiments.active_matter.report import ReportConfig, write_report

    with _float32():
        page = write_report(parse(f"{_PROGRAM} report", ReportConfig, args))
    print(f"report: {page}")


def demo(args: Sequence[str]) -> None:
    """Trains and evaluates the two smallest systems, in minutes."""
    from experiments.active_matter.demo import demo

    if args:
        raise ValueError(f"demo takes no arguments, got {' '.join(args)}")
    demo(lambda words: _COMMANDS[words[0]](words[1:]))


_COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "demo": demo,
    "train": train,
    "evaluate": evaluate,
    "report": report,
    "simulate": simulate,
}


def _float32() -> AbstractContextManager[None]:
    """Accelerators would round the factors of matrix products to 10 bits, also those of forces."""
    import jax

    return jax.default_matmul_precision("highest")


def _system(args: Sequence[str], usage: str) -> tuple[str, Sequence[str]]:
    from experiments.active_matter.systems import DEFAULTS

    if not args:
        raise ValueError(f"expected {usage}, with SYSTEM one of {', '.join(DEFAULTS)}")
    if args[0] in ("-h", "--help"):
        names = ", ".join(DEFAULTS)
        print(f"usage: python -m {_PROGRAM} {usage}\nSYSTEM is one of {names}; its options follow:")
        args = [next(iter(DEFAULTS)), *args]
    if args[0] not in DEFAULTS:
        raise ValueError(f"system must be one of {', '.join(DEFAULTS)}, got {args[0]!r}")
    return args[0], args[1:]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    args = list(sys.argv[1:] if argv is None else argv)
    with command_line(" ".join([_PROGRAM, *args[:1]]), ends_process=argv is None):
        if not args or args[0] in ("-h", "--help"):
            print(f"usage: python -m {_PROGRAM} COMMAND; COMMAND --help lists the options\n")
            print("\n".join(f"  {name:9s} {run.__doc__}" for name, run in _COMMANDS.items()))
            return
        from egattn.cli import quiet

        quiet()
        if args[0] not in _COMMANDS:
            raise ValueError(f"command must be one of {', '.join(_COMMANDS)}, got {args[0]!r}")
        if args[0] == "demo" and {"-h", "--help"} & set(args):
            print(demo.__doc__)
            return
        _COMMANDS[args[0]](args[1:])


if __name__ == "__main__":
    main()

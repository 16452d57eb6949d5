"""The `egattn` command: one subcommand per program; bad input is one line and exit status 2."""

import argparse
import dataclasses
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from egattn._spelling import unknown
from egattn.run.command import command_line, end_process
from egattn.run.options import parse
from egattn.run.signals import active


def prepare(args: Sequence[str]) -> None:
    """Turns text into tokenised, checksummed shards."""
    from egattn.data import PrepareConfig, prepare

    prepare(parse("egattn prepare", PrepareConfig, args))


def train(args: Sequence[str]) -> None:
    """Trains a decoder, or goes on where a run stopped."""
    # Before the imports take their time: whatever a signal ends from here on, goes on later.
    active().resumes = True
    from egattn.train import train

    train(_train_config(args))


def evaluate(args: Sequence[str]) -> None:
    """Evaluates a checkpoint on the validation split."""
    from egattn.run.lines import to_json
    from egattn.train import EvaluateConfig
    from egattn.train.evaluate import describe, evaluate

    config = parse("egattn evaluate", EvaluateConfig, args)
    values = evaluate(config)
    print(to_json(values) if config.json else describe(values))


def replay(args: Sequence[str]) -> None:
    """Repeats one training step of a run."""
    from egattn.run.lines import to_json
    from egattn.train.replay import ReplayConfig, describe, replay

    config = parse("egattn replay", ReplayConfig, args)
    values = replay(config)
    print(to_json(values) if config.json else describe(values))


def compile_step(args: Sequence[str]) -> None:
    """Compiles the training step for a TPU pod without one."""
    import jax

    from egattn.compile import plan, search
    from egattn.compile.display import show, show_search, to_json

    # Nothing runs here: an accelerator of this machine stays free for others.
    jax.config.update("jax_platforms", "cpu")
    config = _compile_config(args)
    if config.search:
        found = search(config)
        print(to_json(found)) if config.json else show_search(found)
        plans = found.plans
    else:
        plans = [plan(config)]
        print(to_json(plans[0])) if config.json else show(plans[0])
    if not any(p.fits for p in plans):
        sys.exit(1)


def generate(args: Sequence[str]) -> None:
    """Continues text with a trained decoder."""
    from egattn.generate.text import GenerateConfig, generate_text

    generate_text(parse("egattn generate", GenerateConfig, args))


def cost(args: Sequence[str]) -> None:
    """Tells what private inference of a decoder consists of: counts, and estimated traffic."""
    import jax

    from egattn.private import display

    # Only shapes are computed: an accelerator of this machine stays free for others.
    jax.config.update("jax_platforms", "cpu")
    config = _cost_config(args)
    if config.paper:
        print(display.paper_json()) if config.json else display.show_paper()
    else:
        model, gelu = config.model, config.gelu
        print(display.to_json(model, gelu)) if config.json else display.show(model, gelu)


def private(args: Sequence[str]) -> None:
    """Writes programs for two parties: export (a trained decoder), parts (single operations)."""
    import jax

    # Expected results in float32: accelerators' products may have fewer digits.
    jax.config.update("jax_platforms", "cpu")
    programs: dict[str, Callable[[Sequence[str]], None]] = {
        "export": _private_export,
        "parts": _private_parts,
    }
    if args and args[0] in ("-h", "--help"):
        print("usage: egattn private export RUN DIR | egattn private parts DIR; each has --help")
        return
    if not args:
        raise ValueError("expected export or parts")
    if args[0] not in programs:
        raise ValueError(unknown("program", args[0], programs))
    programs[args[0]](args[1:])


def _private_export(args: Sequence[str]) -> None:
    from egattn.private.export import ExportConfig, describe, export

    config = parse("egattn private export", ExportConfig, args)
    print(describe(config, export(config)))


def _private_parts(args: Sequence[str]) -> None:
    import tyro

    from egattn.private.parts import PartsConfig, write_parts

    known, rest = _preset_parser("private parts").parse_known_args(args)
    default = PartsConfig.preset_defaults(known.preset, Path())
    default = dataclasses.replace(default, out=tyro.MISSING)
    config = parse("egattn private parts", PartsConfig, rest, default)
    print(f"{config.out}: {', '.join(write_parts(config))}")


def convert(args: Sequence[str]) -> None:
    """Turns a Hugging Face GPT-2 into a run, or a run into a Hugging Face directory."""
    import jax

    from egattn.convert import ConvertConfig, convert

    # Nothing is computed: an accelerator of this machine stays free for others.
    jax.config.update("jax_platforms", "cpu")
    print("\n".join(convert(parse("egattn convert", ConvertConfig, args))))


def inspect(args: Sequence[str]) -> None:
    """Says what a run, prepared data or a Hugging Face model is."""
    import jax

    from egattn.inspect import InspectConfig, inspect
    from egattn.inspect.as_json import to_json
    from egattn.inspect.display import show

    # Nothing is computed: an accelerator of this machine stays free for others.
    jax.config.update("jax_platforms", "cpu")
    config = parse("egattn inspect", InspectConfig, args)
    found = inspect(config)
    print(to_json(found)) if config.json else show(found)


def report(args: Sequence[str]) -> None:
    """Draws figures and an HTML page from runs."""
    from egattn.report import ReportConfig, summary_lines, write_report

    config = parse("egattn report", ReportConfig, args)
    path = write_report(config)
    print("\n".join([*summary_lines(config.runs), f"report: {path}"]))


def doctor(args: Sequence[str]) -> None:
    """Says whether this machine is fit: packages, directory, devices, jax, attention."""
    from egattn.doctor import DoctorConfig, doctor

    if not doctor(parse("egattn doctor", DoctorConfig, args)):
        end_process(1)


_COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "prepare": prepare,
    "train": train,
    "evaluate": evaluate,
    "replay": replay,
    "report": report,
    "generate": generate,
    "compile": compile_step,
    "cost": cost,
    "private": private,
    "convert": convert,
    "inspect": inspect,
    "doctor": doctor,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    args = list(sys.argv[1:] if argv is None else argv)
    name = " ".join(["egattn", *args[:1]])
    with command_line(name, ends_process=argv is None):
        if not args or args[0] in ("-h", "--help"):
            print("usage: egattn COMMAND [OPTIONS]; egattn COMMAND --help lists the options\n")
            print("\n".join(f"  {name:10s} {run.__doc__}" for name, run in _COMMANDS.items()))
            return
        quiet()
        if args[0] not in _COMMANDS:
            raise ValueError(unknown("command", args[0], _COMMANDS))
        _COMMANDS[args[0]](args[1:])


def quiet() -> None:
    """Silences what Orbax says about its defaults and TensorBoard about NaNs, which runs report."""
    for noisy in ("absl", "tensorboardX"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def _train_config(args: Sequence[str]):
    """Parses `egattn train`: preset, data and origin decide what the other defaults are."""
    import tyro

    from egattn.train import TrainConfig

    first = _preset_parser("train")
    first.add_argument("--data", type=Path, default=Path("data/python"))
    first.add_argument("--init-from", "--init_from", type=Path)
    known, rest = first.parse_known_args(args)
    if {"-h", "--help"} & set(args):
        default = TrainConfig.preset_defaults(known.preset, Path())
    else:
        default = TrainConfig.for_data(Path(), known.data, known.preset, known.init_from)
    default = dataclasses.replace(default, run=tyro.MISSING)
    return parse("egattn train", TrainConfig, rest, default)


def _compile_config(args: Sequence[str]):
    """Parses `egattn compile`: the preset decides what the other defaults are."""
    from egattn.compile import CompileConfig

    known, rest = _preset_parser("compile").parse_known_args(args)
    return parse("egattn compile", CompileConfig, rest, CompileConfig.preset_defaults(known.preset))


def _cost_config(args: Sequence[str]):
    """Parses `egattn cost`: the preset decides what the other defaults are."""
    from egattn.private import CostConfig

    known, rest = _preset_parser("cost").parse_known_args(args)
    return parse("egattn cost", CostConfig, rest, CostConfig.preset_defaults(known.preset))


class _Parser(argparse.ArgumentParser):
    """Raises where argparse would print its usage, which is not that of the command."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _preset_parser(command: str) -> argparse.ArgumentParser:
    """Finds the preset before everything else is parsed."""
    parser = _Parser(prog=f"egattn {command}", add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", default="sm_ln_g")
    return parser

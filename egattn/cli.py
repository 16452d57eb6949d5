"""The `egattn` command: one subcommand per program; bad input is one line and exit status 2."""

import argparse
import contextlib
import dataclasses
import io
import itertools
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from egattn._config import check_local
from egattn._spelling import unknown
from egattn.run.command import command_line, end_process
from egattn.run.signals import active


def prepare(args: Sequence[str]) -> None:
    """Turns text into tokenised, checksummed shards."""
    from egattn.data import PrepareConfig, prepare

    prepare(_parse("prepare", PrepareConfig, args))


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

    config = _parse("evaluate", EvaluateConfig, args)
    values = evaluate(config)
    print(to_json(values) if config.json else describe(values))


def replay(args: Sequence[str]) -> None:
    """Repeats one training step of a run."""
    from egattn.run.lines import to_json
    from egattn.train.replay import ReplayConfig, describe, replay

    config = _parse("replay", ReplayConfig, args)
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

    generate_text(_parse("generate", GenerateConfig, args))


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

    config = _parse("private export", ExportConfig, args)
    print(describe(config, export(config)))


def _private_parts(args: Sequence[str]) -> None:
    import tyro

    from egattn.private.parts import PartsConfig, write_parts

    known, rest = _preset_parser("private parts").parse_known_args(args)
    default = PartsConfig.preset_defaults(known.preset, tyro.MISSING)
    config = _parse("private parts", PartsConfig, rest, default)
    print(f"{config.out}: {', '.join(write_parts(config))}")


def convert(args: Sequence[str]) -> None:
    """Turns a Hugging Face GPT-2 into a run, or a run into a Hugging Face directory."""
    import jax

    from egattn.convert import ConvertConfig, convert

    # Nothing is computed: an accelerator of this machine stays free for others.
    jax.config.update("jax_platforms", "cpu")
    print("\n".join(convert(_parse("convert", ConvertConfig, args))))


def inspect(args: Sequence[str]) -> None:
    """Says what a run, prepared data or a Hugging Face model is."""
    import jax

    from egattn.inspect import InspectConfig, inspect
    from egattn.inspect.as_json import to_json
    from egattn.inspect.display import show

    # Nothing is computed: an accelerator of this machine stays free for others.
    jax.config.update("jax_platforms", "cpu")
    config = _parse("inspect", InspectConfig, args)
    found = inspect(config)
    print(to_json(found)) if config.json else show(found)


def report(args: Sequence[str]) -> None:
    """Draws figures and an HTML page from runs."""
    from egattn.report import ReportConfig, summary_lines, write_report

    config = _parse("report", ReportConfig, args)
    path = write_report(config)
    print("\n".join([*summary_lines(config.runs), f"report: {path}"]))


def doctor(args: Sequence[str]) -> None:
    """Says whether this machine is fit: packages, directory, devices, jax, attention."""
    from egattn.doctor import DoctorConfig, doctor

    if not doctor(_parse("doctor", DoctorConfig, args)):
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
        default = TrainConfig.preset_defaults(known.preset, tyro.MISSING)
    else:
        default = TrainConfig.for_data(tyro.MISSING, known.data, known.preset, known.init_from)
    return _parse("train", TrainConfig, rest, default)


def _compile_config(args: Sequence[str]):
    """Parses `egattn compile`: the preset decides what the other defaults are."""
    from egattn.compile import CompileConfig

    known, rest = _preset_parser("compile").parse_known_args(args)
    return _parse("compile", CompileConfig, rest, CompileConfig.preset_defaults(known.preset))


def _cost_config(args: Sequence[str]):
    """Parses `egattn cost`: the preset decides what the other defaults are."""
    from egattn.private import CostConfig

    known, rest = _preset_parser("cost").parse_known_args(args)
    return _parse("cost", CostConfig, rest, CostConfig.preset_defaults(known.preset))


class _Parser(argparse.ArgumentParser):
    """Raises where argparse would print its usage, which is not that of the command."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _preset_parser(command: str) -> argparse.ArgumentParser:
    """Finds the preset before everything else is parsed."""
    parser = _Parser(prog=f"egattn {command}", add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", default="sm_ln_g")
    return parser


def _parse(command: str, kind: type, args: Sequence[str], default: Any = None) -> Any:
    """Parses a dataclass; an option that does not exist is an error naming the nearest one."""
    import tyro

    kwargs = {} if default is None else {"default": default}
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            config, rest = tyro.cli(
                kind, prog=f"egattn {command}", args=args, return_unknown_args=True, **kwargs
            )
    except SystemExit as stop:
        if stop.code:
            raise ValueError(_one_line(complaint.getvalue())) from None
        raise
    if rest:
        raise ValueError(unknown("argument", rest[0], _options(kind)))
    check_local(config)
    return config


def _one_line(box: str) -> str:
    """The message of a wrapped error: what stands between its title and its first rule."""
    rows = [row.strip("│ ") for row in box.splitlines()]
    # The border has the title; where the output is not UTF-8 there is none, but a rule below it.
    message = rows[1:] if box.startswith("╭") else rows[2:]
    return " ".join(itertools.takewhile(lambda row: not set(row) <= set("─-╰╯"), message))


def _options(kind: Any, prefix: str = "--") -> list[str]:
    """Names of a config's options, nested ones included."""
    names = []
    for field in dataclasses.fields(kind):
        name = prefix + field.name.replace("_", "-")
        nested = isinstance(field.type, type) and dataclasses.is_dataclass(field.type)
        names += _options(field.type, name + ".") if nested else [name]
    return names

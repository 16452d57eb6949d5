"""The paper's experiments: `run` trains what a study consists of, `tables` shows what came out.

python -m experiments.paper run nonlinearity
python -m experiments.paper tables --write
python -m experiments.paper figures
"""

import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from egattn.run import command_line
from experiments.paper import evaluations, figures, more_text, run, tables

Command = (
    Annotated[run.Config, tyro.conf.subcommand("run", description=run.__doc__)]
    | Annotated[tables.Config, tyro.conf.subcommand("tables", description=tables.__doc__)]
    | Annotated[figures.Config, tyro.conf.subcommand("figures", description=figures.__doc__)]
    | Annotated[
        evaluations.Config, tyro.conf.subcommand("evaluations", description=evaluations.__doc__)
    ]
    | Annotated[more_text.Config, tyro.conf.subcommand("more-text", description=more_text.__doc__)]
)


def main(args: Sequence[str] | None = None) -> int:
    """Runs a command; returns 1 if a training failed, else 0."""
    with command_line("experiments.paper", ends_process=args is None):
        config = tyro.cli(Command, args=args, prog="experiments.paper", description=__doc__)
        if isinstance(config, run.Config):
            return int(run.main(config) != 0)
        if isinstance(config, tables.Config):
            tables.main(config)
        elif isinstance(config, figures.Config):
            figures.main(config)
        elif isinstance(config, evaluations.Config):
            evaluations.main(config)
        else:
            more_text.main(config)
    return 0


if __name__ == "__main__":
    sys.exit(main())

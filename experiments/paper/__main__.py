"""The paper's experiments: `run` trains what a study consists of, `tables` shows what came out.

python -m experiments.paper run nonlinearity
python -m experiments.paper tables --write
"""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from experiments.paper import run, tables

Command = (
    Annotated[run.Config, tyro.conf.subcommand("run", description=run.__doc__)]
    | Annotated[tables.Config, tyro.conf.subcommand("tables", description=tables.__doc__)]
)


def main(args: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status: 1 if a training failed, 2 for bad input."""
    config = tyro.cli(Command, args=args, prog="experiments.paper", description=__doc__)
    try:
        if isinstance(config, run.Config):
            return int(run.main(config) != 0)
        tables.main(config)
    except (ValueError, OSError) as error:
        if os.environ.get("EGATTN_TRACEBACK"):
            raise
        print(f"experiments.paper: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Runs an export of `egattn private export` under secure computation and reports what it cost.

    python experiments/private_inference/run.py EXPORT [--protocol SEMI2K] [--processes] [--wan]

This file parses under any Python 3, so that a wrong one gets a sentence and not a syntax error;
the rest of the program, imported below, may use Python 3.10.
"""

import importlib.util
import os
import sys
import traceback

PYTHONS = ((3, 10), (3, 11))


def missing():
    """What this interpreter lacks, as one line, or None."""
    if sys.version_info[:2] not in PYTHONS:
        version = ".".join(map(str, sys.version_info[:2]))
        lacking = f"needs Python 3.10 or 3.11, and {sys.executable} is {version}"
    elif importlib.util.find_spec("spu") is None:
        lacking = f"spu is not installed in {sys.executable}"
    else:
        return None
    return f"{lacking}; `make private-env` makes .venv-private, which has what it takes"


def dispatch(options):
    """Carries out a checked command line and returns its exit status."""
    if options.processes:
        from launch import launch

        return launch(options)
    from party import run_all, run_one

    return run_all(options) if options.rank is None else run_one(options)


def main(arguments):
    """Returns the exit status: 0, 1 for a run that failed, 2 for a command that cannot run."""
    lacking = missing()
    if lacking:
        print("run.py: " + lacking, file=sys.stderr)
        return 2
    from errors import Failure
    from options import parse

    try:
        return dispatch(parse(arguments))
    except Failure as failure:
        if os.environ.get("EGATTN_TRACEBACK") == "1":
            traceback.print_exc()
        print(f"run.py: {failure}", file=sys.stderr)
        return failure.status
    except KeyboardInterrupt:
        print("run.py: interrupted", file=sys.stderr)
        return 1


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # After a failure native threads may still wait for a peer; nothing they could do matters now.
    os._exit(status)

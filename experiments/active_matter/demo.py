"""The demo: one particle in a trap, then two on a ring, trained and held against exact answers.

    make active-matter        (or: python -m experiments.active_matter demo)

Hardware: 2 CPU cores, less than 5 minutes. Expected: entropy production of the trap within 1 % of
0.2667 per degree of freedom, of the ring within 1 % of 0.397, flow centre within 0.1 of
(3.262, -0.190). Seen: 2 min 13 s without installation, 0.2674, 0.3968, (3.204, -0.207).
"""

from collections.abc import Callable

RUNS = "runs/active_matter"
COMMANDS: tuple[str, ...] = (
    f"train trap {RUNS}/trap --steps 600",
    f"evaluate {RUNS}/trap",
    f"train ring {RUNS}/ring --steps 1500 --batch-size 1024 --refresh 5",
    f"evaluate {RUNS}/ring",
    f"report {RUNS}/trap {RUNS}/ring --samples 8192",
)


def demo(run: Callable[[list[str]], None]) -> None:
    """Runs the commands one after the other and shows each, so that a reader can repeat it."""
    for command in COMMANDS:
        print(f"\n$ python -m experiments.active_matter {command}", flush=True)
        run(command.split())

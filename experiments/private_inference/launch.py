"""Starts one process per party on this host, between proxies if wanted, and watches over them."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import proxy
from errors import Failure, UsageError
from export import read_program
from options import Options

RUN = Path(__file__).with_name("run.py")
PREFIX = "run.py: "
LAST_SECONDS = 60.0  # for the other parties to end once rank 0 has published


@dataclass(frozen=True)
class Party:
    """A running party."""

    name: str
    process: asyncio.subprocess.Process
    log: Path


def launch(options: Options) -> int:
    """Runs all parties to their end.

    Returns:
        Exit status 0.

    Raises:
        Failure: as soon as one party fails, or on SIGINT, SIGTERM and SIGHUP; all have ended then.
    """
    read_program(options.export).require_owners()
    with tempfile.TemporaryDirectory(prefix="egattn-private-") as directory:
        asyncio.run(_launch(options, Path(directory)))
    return 0


async def _launch(options: Options, directory: Path) -> None:
    interrupted = asyncio.get_running_loop().create_future()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, _interrupt, interrupted, number)
    ports = _free_ports(len(options.parties))
    if not options.network:
        await _run(options, [ports] * len(ports), directory, interrupted)
        return
    async with proxy.between(ports, **options.network) as seen:
        await _run(options, seen, directory, interrupted)


async def _run(
    options: Options, seen: list[list[int]], directory: Path, interrupted: asyncio.Future[str]
) -> None:
    """Starts the parties, `seen[rank]` being the ports under which a rank finds all of them."""
    parties: list[Party] = []
    try:
        for rank, role in enumerate(options.parties):
            log = directory / f"{role}.log"
            command = _command(options, rank, seen[rank], log)
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,  # closes with this process: see party.py
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for this process to handle, once
            )
            parties.append(Party(f"party {rank} ({role})", process, log))
        await _watch(parties, interrupted)
    finally:
        await _end(parties)


def _interrupt(interrupted: asyncio.Future[str], number: signal.Signals) -> None:
    if not interrupted.done():
        interrupted.set_result(number.name)


async def _watch(parties: list[Party], interrupted: asyncio.Future[str]) -> None:
    """Returns when all parties have ended well."""
    running = {asyncio.ensure_future(_errors(party)): party for party in parties}
    while running:
        # Rank 0 ends last, or nearly: nobody has work left once it has published.
        limit = None if parties[0] in running.values() else LAST_SECONDS
        done, _ = await asyncio.wait(
            {interrupted, *running}, timeout=limit, return_when=asyncio.FIRST_COMPLETED
        )
        if interrupted in done:
            raise Failure(f"interrupted by {interrupted.result()}; all parties were ended")
        if not done:
            raise Failure(f"{next(iter(running.values())).name} did not end after the result")
        for task in [task for task in running if task in done]:
            _judge(running.pop(task), task.result())


async def _errors(party: Party) -> list[str]:
    """Waits for the end of a party; returns the lines of its standard error."""
    assert party.process.stderr is not None
    text = (await party.process.stderr.read()).decode(errors="replace")
    await party.process.wait()
    return [line for line in text.splitlines() if line.strip()]


def _judge(party: Party, errors: list[str]) -> None:
    """Raises Failure unless the party ended well."""
    status = party.process.returncode
    if status == 0:
        return
    if errors and errors[-1].startswith(PREFIX):
        for line in errors[:-1]:  # a traceback, if one was asked for
            print(line, file=sys.stderr)
        kind = UsageError if status == UsageError.status else Failure
        raise kind(f"{party.name}: {errors[-1].removeprefix(PREFIX)}")
    ending = f"exit status {status}"
    if status is not None and status < 0:
        ending = f"killed by {signal.Signals(-status).name}"
    last = errors or _lines(party.log)
    said = f"; its last line: {last[-1][:200]}" if last else ""
    raise Failure(f"{party.name} died: {ending}{said}")


def _lines(log: Path) -> list[str]:
    text = log.read_text(errors="replace") if log.exists() else ""
    return [line for line in text.splitlines() if line.strip()]


async def _end(parties: list[Party]) -> None:
    for party in parties:
        if party.process.returncode is None:
            party.process.kill()
    for party in parties:
        await party.process.wait()


def _command(options: Options, rank: int, ports: list[int], log: Path) -> list[str]:
    """What a user would type to run this party, and three options only launchers use."""
    command = [sys.executable, str(RUN), str(options.export), "--protocol", options.protocol]
    command += ["--rank", str(rank)]
    command += ["--addresses", ",".join(f"127.0.0.1:{port}" for port in ports)]
    names = ["timeout", "connect_timeout"]
    if rank == 0:  # what it reads and how it judges the result is the client's business
        names += ["case", "max_error", "min_agreement"]
    for name in names:
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    if options.cold_only:
        command.append("--cold-only")
    if rank == 0 and options.out is not None:
        command += ["--out", str(options.out)]
    command += ["--supervised", "--native-log", str(log)]
    if options.network:
        command += ["--network", json.dumps(options.network)]
    return command


def _free_ports(count: int) -> list[int]:
    """Ports that are free now; a party that finds its port taken says so."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]

"""Runs the parties: one of them in this process, over TCP, or all of them as threads."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import resource
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import report
from check import check
from errors import Failure, native_message
from export import Client, Program, read_client, read_program, read_weights
from native_log import NativeLog, parse
from options import Options

CLOSING_SECONDS = 30.0

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """What every party does alike."""

    options: Options
    program: Program
    text: str
    log: NativeLog

    def party(self, rank: int) -> str:
        """How errors call a party."""
        return f"party {rank} ({self.options.parties[rank]})"


def run_one(options: Options) -> int:
    """Runs the party `options.rank`; rank 0 checks and reports the result."""
    rank = options.rank
    assert rank is not None
    if options.supervised:
        threading.Thread(target=_end_with_launcher, daemon=True).start()
    program = read_program(options.export)
    program.require_owners()
    values, result = {}, None
    if options.parties[rank] == "client":
        client = read_client(program, options.case)
        values, result = client.values(), Result.read(client, options)
    elif options.parties[rank] == "server":
        values = read_weights(program)
    job = Job(options, program, program.text(), NativeLog(options.native_log))

    import secure

    secure.require_free(options.addresses[rank])
    link = _connect(job, rank)
    shares = secure.make_shares(_io(job), program, values)
    mine = {name: by_rank[rank] for name, by_rank in shares.items()}
    runs = _within(None, lambda: _party(job, rank, link, mine))
    if result:
        result.publish(runs, "tcp")
    return 0


def run_all(options: Options) -> int:
    """Runs every party as a thread of this process, over a link in memory."""
    program = read_program(options.export)
    client = read_client(program, options.case)
    values = client.values() | read_weights(program)
    result = Result.read(client, options)
    job = Job(options, program, program.text(), NativeLog(options.native_log))

    import secure

    shares = secure.make_shares(_io(job), program, values)
    ended: queue.Queue[tuple[int, Any]] = queue.Queue()

    def party(rank: int) -> None:
        mine = {name: by_rank[rank] for name, by_rank in shares.items()}
        try:
            link = secure.memory_link(options.parties, rank, options.timeout)
            ended.put((rank, _party(job, rank, link, mine)))
        except BaseException as error:
            ended.put((rank, error))

    for rank in range(len(options.parties)):
        threading.Thread(target=party, args=(rank,), daemon=True).start()
    outcomes = {}
    for _ in options.parties:
        rank, outcome = ended.get()
        if isinstance(outcome, BaseException):
            raise outcome  # the others would wait for it until their timeout
        outcomes[rank] = outcome
    result.publish(outcomes[0], "memory")
    return 0


@dataclass(frozen=True)
class Result:
    """What rank 0 needs to judge and publish the runs; read before hours are spent on them."""

    client: Client
    options: Options
    expected: Any
    tokens: list[str] | None
    commit: str | None

    @classmethod
    def read(cls, client: Client, options: Options) -> Result:
        """Reads what only the client may open, and which version of this program it starts."""
        tokens = client.tokens() if client.program.kind == "model" else None
        return cls(client, options, client.expected(), tokens, report.commit())

    def publish(self, runs: list[dict[str, Any]], link: str) -> None:
        """Checks the outputs; only then prints and writes what the runs cost.

        Without an expected output, what was computed is published, and nothing about its cost.
        """
        import secure

        options, program = self.options, self.client.program
        outputs = [self.client.unpadded(run.pop("output")) for run in runs]
        figures = None
        if self.expected is not None:
            figures = check(
                outputs,
                self.expected,
                argmax=program.kind == "model",
                max_error=options.max_error,
                min_agreement=options.min_agreement,
            )
        result = {
            "name": program.name,
            "kind": program.kind,
            "case": options.case,
            "protocol": options.protocol,
            "parties": len(options.parties),
            "link": link,
            "network": options.network,
            "settings": secure.settings(_config(program, options.protocol)),
            "versions": report.versions(secure.spu.__version__),
            "commit": self.commit,
            "machine": report.machine(),
            "time": report.utc_now(),
            "check": figures,
            "runs": runs if figures else [],
            "next_token": None,
        }
        if self.tokens is not None:
            token = int(outputs[-1][-1].argmax())
            result["next_token"] = {"token": token, "text": self.tokens[token]}
        print(report.table(result))
        if options.out is not None:
            report.write_json(options.out, result)


def _config(program: Program, protocol: str, profile: bool = False) -> Any:
    import secure

    return secure.runtime_config(program, protocol, profile)


def _io(job: Job) -> Any:
    import secure

    config = _config(job.program, job.options.protocol)
    return secure.spu.Io(len(job.options.parties), config)


def _connect(job: Job, rank: int) -> Any:
    import secure

    options = job.options
    try:
        return _within(
            options.connect_timeout,
            lambda: secure.tcp_link(
                options.parties, options.addresses, rank, options.timeout, options.connect_timeout
            ),
        )
    except TimeoutError as error:
        raise Failure(
            f"the parties did not all connect within {options.connect_timeout:g} s "
            f"(addresses {', '.join(options.addresses)})"
        ) from error
    except RuntimeError as error:
        raise Failure(f"cannot connect: {native_message(error)}") from error


def _party(job: Job, rank: int, link: Any, shares: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One party's whole part, errors in words."""
    try:
        return _execute(job, rank, link, shares)
    except RuntimeError as error:
        message = native_message(error)
        if "Get data timeout" in message:
            message = f"no answer from a party for {job.options.timeout:g} s ({message})"
        raise Failure(f"{job.party(rank)} failed: {message}") from error


def _execute(job: Job, rank: int, link: Any, shares: Mapping[str, Any]) -> list[dict[str, Any]]:
    import secure

    config = _config(job.program, job.options.protocol, profile=rank == 0)
    executable = secure.compile_program(job.program, job.text)
    names = ("cold",) if job.options.cold_only else ("cold", "warm")
    _agree(
        job,
        link,
        spu=secure.spu.__version__,
        program=secure.fingerprint(executable),
        settings=secure.settings(config),
        arguments=[dataclasses.astuple(argument) for argument in job.program.arguments],
        runs=len(names),
    )
    runtime = secure.spu.Runtime(link, config)
    for name, share in shares.items():
        runtime.set_var(name, share)
    runs = [_measure(job, rank, link, runtime, executable, name) for name in names]
    _close(link)
    return runs


def _close(link: Any) -> None:
    """Waits until nothing is under way; a link that cannot close any more has done its work."""
    with contextlib.suppress(TimeoutError, RuntimeError):
        _within(CLOSING_SECONDS, link.stop_link)


def _agree(job: Job, link: Any, **mine: Any) -> None:
    """Raises Failure if parties started by hand differ in what they are about to run."""
    everyone = [json.loads(text) for text in link.all_gather(json.dumps(mine))]
    for rank, theirs in enumerate(everyone):
        for key, value in everyone[0].items():
            if theirs.get(key) != value:
                # Or the others might wait in vain for what this party has said.
                _close(link)
                raise Failure(f"{job.party(rank)} and {job.party(0)} differ in {key}")


def _measure(
    job: Job, rank: int, link: Any, runtime: Any, executable: Any, name: str
) -> dict[str, Any]:
    """Executes once and gives rank 0 the output; what follows the clock is not counted."""
    import secure

    link.barrier()
    mark = job.log.mark()
    clock, cpu = time.perf_counter(), _cpu_seconds()
    runtime.run(executable)
    seconds, cpu = time.perf_counter() - clock, _cpu_seconds() - cpu
    share = runtime.get_var(secure.OUTPUT)
    if rank != 0:
        link.send(0, json.dumps(cpu))
        secure.send_share(link, 0, share)
        return {}
    others = range(1, len(job.options.parties))
    cpus, shares = [cpu], [share]
    for other in others:
        cpus.append(json.loads(link.recv(other)))
        shares.append(secure.receive_share(link, other))
    # Threads of one process share its clock: what rank 0 saw is already everyone's.
    by_party = cpus if job.options.rank is not None else None
    try:
        profile = parse(job.log.since(mark))
    except ValueError as error:
        raise Failure(str(error)) from error
    return {
        "run": name,
        "seconds": seconds,
        "cpu_seconds": sum(cpus) if by_party else cpu,
        "cpu_seconds_by_party": by_party,
        **profile,
        "output": _io(job).reconstruct(shares),
    }


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _within(seconds: float | None, work: Callable[[], T]) -> T:
    """Runs native work in a thread, where it cannot keep this one from ending.

    Raises:
        TimeoutError: if it takes longer; the thread is left alone.
    """
    done: queue.Queue[tuple[bool, Any]] = queue.Queue()

    def target() -> None:
        try:
            done.put((True, work()))
        except BaseException as error:
            done.put((False, error))

    threading.Thread(target=target, daemon=True).start()
    try:
        succeeded, value = done.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if succeeded:
        return value
    raise value


def _end_with_launcher() -> None:
    """Ends this process when the launcher does, however it ends: then standard input closes."""
    sys.stdin.buffer.read()
    os._exit(1)

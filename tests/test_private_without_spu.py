"""The program that runs exports, where no SPU is needed: its complaint, log reader and network."""

import ast
import asyncio
import contextlib
import importlib.util
import re
import socket
import subprocess
import sys
import time
from types import ModuleType

import numpy as np
import pytest
from private_runs import PROGRAM, free_addresses, one_line, start

GENERATOR = np.random.default_rng(0)


def load(name: str) -> ModuleType:
    """A module of the program that needs nothing but Python."""
    path = PROGRAM / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"private_runner_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestWrongEnvironment:
    def test_without_spu(self, tmp_path):
        line = one_line(start(tmp_path, python=sys.executable), 2)
        wrong = sys.version_info[:2] not in ((3, 10), (3, 11))
        assert ("needs Python 3.10 or 3.11" if wrong else "spu is not installed") in line
        assert "make private-env" in line

    def test_wrong_python(self):
        script = (
            f"import runpy, sys; sys.version_info = (3, 12, 1); sys.argv = ['run.py', 'x']\n"
            f"runpy.run_path({str(PROGRAM / 'run.py')!r}, run_name='__main__')"
        )
        ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert ended.returncode == 2
        assert f"run.py: needs Python 3.10 or 3.11, and {sys.executable} is 3.12" in ended.stderr
        assert "make private-env" in ended.stderr

    def test_the_sentence_needs_no_new_syntax(self):
        ast.parse((PROGRAM / "run.py").read_text(), feature_version=(3, 8))

    def test_the_program_needs_no_newer_syntax_than_3_10(self):
        for path in PROGRAM.glob("*.py"):
            ast.parse(path.read_text(), feature_version=(3, 10))
            assert "egattn" not in re.findall(r"^\s*(?:import|from) (\w+)", path.read_text(), re.M)


LOG = """\
[2026-11-25 03:53:24.101] [info] [thread_pool.cc:30] Create a fixed thread pool with size 1
[2026-11-25 03:53:24.512] [info] [api.cc:172] [Profiling] SPU execution f completed, input \
processing took 1.823e-06s, execution took 0.109124231s, output processing took 2.434e-06s, \
total time 0.109128488s.
[2026-11-25 03:53:24.512] [info] [api.cc:220] HLO profiling: total time 0.09670788999999999
[2026-11-25 03:53:24.512] [info] [api.cc:223] - pphlo.reduce, executed 2 times, duration \
0.038677748s, send bytes 6336 recv bytes 6300, send actions 32, recv actions 31
[2026-11-25 03:53:24.512] [info] [api.cc:223] - pphlo.free, executed 16 times, duration \
2.071e-05s, send bytes 0 recv bytes 0, send actions 0, recv actions 0
[2026-11-25 03:53:24.512] [info] [api.cc:220] HAL profiling: total time 0.09498475800000002
[2026-11-25 03:53:24.512] [info] [api.cc:223] - _mux, executed 5 times, duration 0.004970204s, \
send bytes 1536 recv bytes 1537, send actions 5, recv actions 6
[2026-11-25 03:53:24.512] [info] [api.cc:220] MPC profiling: total time 0.09387038999999998
[2026-11-25 03:53:24.512] [info] [api.cc:223] - msb_a2b, executed 6 times, duration \
0.046163394s, send bytes 5824 recv bytes 5824, send actions 42, recv actions 42
[2026-11-25 03:53:24.512] [info] [api.cc:233] Link details: total send bytes 25416, recv bytes \
25417, send actions 97, recv actions 98
"""


class TestNativeLog:
    def test_what_an_execution_reports(self):
        profile = load("native_log").parse(LOG)
        totals = {key: value for key, value in profile.items() if key != "operations"}
        assert totals == {
            "sent_bytes": 25416,
            "received_bytes": 25417,
            "messages": 97,
            "received_messages": 98,
        }
        names = {level: [r["name"] for r in rows] for level, rows in profile["operations"].items()}
        assert names == {"HLO": ["pphlo.reduce", "pphlo.free"], "HAL": ["_mux"], "MPC": ["msb_a2b"]}
        assert profile["operations"]["HLO"][0] == {
            "name": "pphlo.reduce",
            "count": 2,
            "seconds": 0.038677748,
            "sent_bytes": 6336,
            "received_bytes": 6300,
            "messages": 32,
            "received_messages": 31,
        }
        assert profile["operations"]["HLO"][1]["seconds"] == 2.071e-05

    @pytest.mark.parametrize("text", ["", LOG + LOG])
    def test_anything_but_one_execution_is_an_error(self, text):
        with pytest.raises(ValueError, match="expected one 'Link details' line"):
            load("native_log").parse(text)


@contextlib.asynccontextmanager
async def proxied(bandwidth_mbit: float, round_trip_ms: float):
    """Two parties that echo what they get; yields the ports under which each sees the other."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    servers = [await asyncio.start_server(echo, "127.0.0.1", 0) for _ in range(2)]
    ports = [server.sockets[0].getsockname()[1] for server in servers]
    async with load("proxy").between(ports, bandwidth_mbit, round_trip_ms) as seen:
        assert [seen[0][0], seen[1][1]] == ports
        yield seen[0][1], seen[1][0]
        if handlers := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(handlers, timeout=5)  # the end of a connection is delayed, too
    for server in servers:
        server.close()
    await asyncio.sleep(0.05)


async def exchange(port: int, sent: bytes) -> float:
    """Sends bytes, checks that just these come back, and returns how long that took."""
    clock = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def send() -> None:
        writer.write(sent)
        await writer.drain()
        writer.write_eof()

    _, received = await asyncio.gather(send(), reader.read(-1))
    writer.close()
    await writer.wait_closed()
    assert received == sent
    return time.monotonic() - clock


class TestProxy:
    def test_every_round_trip_takes_the_delay(self):
        async def ping() -> float:
            async with proxied(1000, 60) as (port, _):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                clock = time.monotonic()
                for i in range(5):
                    writer.write(bytes([i]))
                    assert await reader.readexactly(1) == bytes([i])
                writer.close()
                await writer.wait_closed()
                return time.monotonic() - clock

        assert asyncio.run(ping()) >= 5 * 0.06

    def test_the_delay_holds_up_no_stream(self):
        async def stream() -> float:
            async with proxied(8000, 200) as (port, _):
                return await exchange(port, GENERATOR.bytes(8_000_000))

        # 8 ms of bandwidth and 200 ms of delay; 123 chunks of 64 KiB one after another: 25 s.
        assert 0.2 <= asyncio.run(stream()) < 5

    def test_connections_share_the_bandwidth_of_a_direction(self):
        async def streams() -> float:
            async with proxied(16, 2) as (port, back):
                clock = time.monotonic()
                half = GENERATOR.bytes(500_000)
                await asyncio.gather(exchange(port, half), exchange(back, half))
                return time.monotonic() - clock

        # Each direction carries one's bytes and the other's echo: 1 MB at 2 MB/s.
        assert asyncio.run(streams()) >= 0.5

    def test_who_does_not_read_stops_who_sends(self):
        async def flood() -> int:
            sent = 0
            with socket.create_server(("127.0.0.1", 0)) as silent:  # connects and never reads
                port = silent.getsockname()[1]
                async with load("proxy").between([port, port], 80_000, 1) as seen:
                    _, writer = await asyncio.open_connection("127.0.0.1", seen[0][1])
                    with contextlib.suppress(asyncio.TimeoutError):
                        while sent < 256 << 20:
                            writer.write(bytes(1 << 20))
                            sent += 1 << 20
                            await asyncio.wait_for(writer.drain(), 2)
                    writer.transport.abort()
            await asyncio.sleep(0.2)  # the proxy notices that both ends are gone
            return sent

        # What the proxy may hold, and the kernel's buffers on the way.
        assert asyncio.run(flood()) < 64 << 20

    def test_nobody_listens_yet(self):
        async def early() -> None:
            port = int(free_addresses(1)[0].rpartition(":")[2])
            async with load("proxy").between([port, port], 100, 1) as seen:
                reader, writer = await asyncio.open_connection("127.0.0.1", seen[0][1])
                assert await reader.read() == b""
                writer.close()
                await writer.wait_closed()

        asyncio.run(asyncio.wait_for(early(), 10))

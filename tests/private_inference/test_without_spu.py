"""The program that runs exports, where no SPU is needed: all but execution."""

import ast
import asyncio
import contextlib
import importlib
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.private_inference.runs import (
    FIXED_POINT,
    IDS,
    LENGTHS,
    PROGRAM,
    TOKENS,
    WEIGHTS,
    change,
    expected_logits,
    free_addresses,
    one_line,
    seal,
    sha256,
    start,
    write_model,
)

GENERATOR = np.random.default_rng(0)
CLIENT = ("inputs.npz", "expected.npz", "tokens.json")


def load(name: str) -> ModuleType:
    """A module of the program that needs nothing but NumPy; its imports are its own."""
    mine = {path.stem for path in PROGRAM.glob("*.py")}
    sys.path.insert(0, str(PROGRAM))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(PROGRAM))
        for each in mine & set(sys.modules):
            del sys.modules[each]


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


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("exports") / "tiny")


@pytest.fixture
def copy(exported, tmp_path) -> Path:
    return shutil.copytree(exported, tmp_path / "copy")


def read(directory: Path) -> None:
    """Reads all of an export."""
    export = load("export")
    program = export.read_program(directory)
    client = export.read_client(program, 1)
    client.values()
    export.read_weights(program)
    client.expected()
    client.tokens()
    program.text()


def complaint_of(directory: Path) -> str:
    # The class belongs to the copy of the program's modules that `read` has loaded.
    with pytest.raises(Exception) as caught:  # noqa: PT011
        read(directory)
    assert type(caught.value).__name__ == "UsageError"
    return str(caught.value)


class TestExport:
    def test_what_is_read(self, exported):
        export = load("export")
        program = export.read_program(exported)
        client = export.read_client(program, 1)
        values = client.values()
        np.testing.assert_array_equal(values.pop("tokens"), np.eye(TOKENS)[IDS[1]])
        assert values == {}
        for name, array in export.read_weights(program).items():
            np.testing.assert_array_equal(array, WEIGHTS[name])
        np.testing.assert_array_equal(client.expected(), expected_logits()[1, : LENGTHS[1]])
        assert client.tokens() == [f"<{i}>" for i in range(TOKENS)]
        assert "stablehlo.dot_general" in program.text()

    @pytest.mark.parametrize(
        ("file", "changes", "complaint"),
        [
            ("program", {"format": 2}, "format 2, and this program reads format 1"),
            ("program", {"output": {}}, "program.json: 'name' is missing"),
            ("program", {"fixed_point": FIXED_POINT | {"field_bits": 32}}, "32, expected 64"),
            ("client", {"cases": "many"}, "client.json: malformed"),
            ("client", {"cases": 0}, "client.json: malformed .*at least 1, got 0"),
            ("client", {"lengths": [9, 5]}, r"lengths must be 2 .* from 1 to 8, got \[9, 5\]"),
            ("client", {"files": {}}, "client.json lists no inputs.npz"),
            ("server", {"files": {}}, "server.json lists no weights.npz"),
            ("server", {"files": 3}, "server.json: malformed"),
        ],
    )
    def test_what_the_files_say(self, copy, file, changes, complaint):
        seal(copy, **{file: changes})
        assert re.search(complaint, complaint_of(copy))

    @pytest.mark.parametrize(
        "name", ["model.mlir", *(f"client/{x}" for x in CLIENT), "server/weights.npz"]
    )
    def test_a_file_that_changed_or_is_gone(self, copy, name):
        (copy / name).write_bytes((copy / name).read_bytes() + b"\n")
        assert f"{name}: changed since it was exported" in complaint_of(copy)
        (copy / name).unlink()
        assert f"{name}: No such file" in complaint_of(copy)

    def test_an_expected_output_that_is_not_listed(self, copy):
        files = {name: sha256(copy / "client" / name) for name in CLIENT if name != "expected.npz"}
        seal(copy, client={"files": files})
        assert "client.json lists no expected.npz" in complaint_of(copy)

    @pytest.mark.parametrize(
        ("file", "arrays", "complaint"),
        [
            ("server/weights", {"head": WEIGHTS["head"] * np.nan}, "head: contains .* not finite"),
            ("server/weights", {"head": WEIGHTS["head"][:3]}, r"head: expected shape \[6, 12\]"),
            ("client/inputs", {"tokens": IDS + TOKENS}, "tokens: expected tokens from 0 to 11"),
            ("client/inputs", {"tokens": IDS * 1.0}, "tokens: expected integers, got float64"),
            ("client/expected", {"logits": np.zeros((2, 8, 3))}, r"expected shape \[2, 8, 12\]"),
        ],
    )
    def test_arrays(self, copy, file, arrays, complaint):
        change(copy, f"{file}.npz", **arrays)
        assert re.search(complaint, complaint_of(copy))


class TestCheck:
    """Expected outputs whose largest value is no measure of an error."""

    @pytest.mark.parametrize("largest", [0, 1e-6, 1e-3])
    def test_the_floor_of_the_bound(self, largest):
        module = load("check")
        expected = np.array([0, largest], np.float32)
        bounds = {"argmax": False, "max_error": 0.02, "min_agreement": 1}
        figures = module.check([expected + np.float32(1.9e-5)], expected, **bounds)
        assert figures["largest_expected"] == np.float32(largest)
        assert figures["relative_error"] == pytest.approx(0.019, rel=1e-3)
        with pytest.raises(module.Failure, match=r"max error 2.1e-05, bound 2e-05 \(0.02 of "):
            module.check([expected, expected + np.float32(2.1e-5)], expected, **bounds)


class TestReport:
    @pytest.mark.parametrize("umask", [0o022, 0o077])
    def test_a_result_has_the_mode_of_a_new_file(self, tmp_path, umask):
        before = os.umask(umask)
        try:
            load("report").write_json(tmp_path / "result.json", {"a": [1]})
        finally:
            os.umask(before)
        assert json.loads((tmp_path / "result.json").read_text()) == {"a": [1]}
        assert stat.S_IMODE((tmp_path / "result.json").stat().st_mode) == 0o666 & ~umask
        assert os.listdir(tmp_path) == ["result.json"]

    def test_an_error_leaves_nothing_behind(self, tmp_path):
        (tmp_path / "result.json").mkdir()
        report = load("report")
        with pytest.raises(report.Failure, match=r"--out .*result.json: Is a directory"):
            report.write_json(tmp_path / "result.json", {})
        with pytest.raises(ValueError, match="not JSON compliant"):
            report.write_json(tmp_path / "other.json", {"a": float("nan")})
        assert os.listdir(tmp_path) == ["result.json"]

    def test_the_commit(self, tmp_path, monkeypatch):
        program = tmp_path / "repository" / "program"
        program.mkdir(parents=True)
        for name in ("errors.py", "report.py"):
            shutil.copy(PROGRAM / name, program)
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)

        def git(words: str) -> str:
            command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words.split()]
            return subprocess.run(
                command, cwd=program.parent, capture_output=True, text=True, check=True
            ).stdout.strip()

        def commit() -> str | None:
            script = "import json, report; print(json.dumps(report.commit()))"
            command = [sys.executable, "-B", "-c", script]
            environment = {**os.environ, "PYTHONPATH": str(program)}
            return json.loads(subprocess.check_output(command, cwd=tmp_path, env=environment))

        assert commit() is None
        git("init --quiet")
        git("add .")
        git("commit --quiet --message=a")
        head = git("rev-parse HEAD")
        assert len(commit() or "") >= 4
        assert head.startswith(commit() or "-")
        (program / "results").mkdir()
        (program / "results" / "a.json").touch()
        (program.parent / "elsewhere").touch()
        assert head.startswith(commit() or "-")
        (program / "new.py").touch()
        assert (commit() or "").endswith("-dirty")
        assert head.startswith((commit() or "-").removesuffix("-dirty"))
        monkeypatch.setenv("PATH", str(tmp_path))
        assert commit() is None


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

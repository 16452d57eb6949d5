"""The program that runs exports under secure computation: what it measures, and how it fails."""

import ast
import asyncio
import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[1]
PROGRAM = REPOSITORY / "experiments" / "private_inference"
PYTHON = os.environ.get("EGATTN_PRIVATE_PYTHON", REPOSITORY / ".venv-private" / "bin" / "python")
spu = pytest.mark.skipif(
    not Path(PYTHON).exists(), reason=f"{PYTHON} does not exist; `make private-env` makes it"
)

POSITIONS, TOKENS, WIDTH = 8, 12, 6
GENERATOR = np.random.default_rng(0)
WEIGHTS = {
    "embedding": GENERATOR.normal(size=(TOKENS, WIDTH)).astype(np.float32),
    "scores": GENERATOR.normal(size=(WIDTH, WIDTH)).astype(np.float32) * np.float32(0.4),
    "head": GENERATOR.normal(size=(WIDTH, TOKENS)).astype(np.float32),
}
IDS = GENERATOR.integers(0, TOKENS, (2, POSITIONS)).astype(np.int32)
LENGTHS = [8, 5]
# A causal mask of -1e4 makes SPU's exponential return garbage of order 1e7.
PART_INPUTS = np.where([[[False]], [[True]]], -1e4, GENERATOR.normal(size=(2, 4, 6)))
PART_INPUTS[1, :, :2] = 0.5
SLOW = ["--bandwidth-mbit", "1000", "--round-trip-ms", "60"]  # for a warm run of about 3 s


def model(tokens, embedding, scores, head):
    x = tokens @ embedding
    return jax.nn.softmax(x @ scores @ x.T) @ x @ head


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def oracle(ids: np.ndarray) -> np.ndarray:
    x = WEIGHTS["embedding"].astype(np.float64)[ids]
    return softmax(x @ WEIGHTS["scores"] @ x.T) @ x @ WEIGHTS["head"]


def expected_logits() -> np.ndarray:
    return np.stack([oracle(ids) for ids in IDS]).astype(np.float32)


def argument(name: str, owner: str, shape: tuple[int, ...], encoding: str = "array") -> dict:
    return {"name": name, "owner": owner, "shape": list(shape), "encoding": encoding}


def write_export(directory: Path, meta: dict, function: Any, **arrays: dict) -> Path:
    directory.mkdir()
    shapes = [jax.ShapeDtypeStruct(a["shape"], jnp.float32) for a in meta["arguments"]]
    text = jax.jit(function, keep_unused=True).lower(*shapes).as_text()
    (directory / "model.mlir").write_text(text)
    for name, content in arrays.items():
        np.savez(directory / f"{name}.npz", **content)
    (directory / "tokens.json").write_text(json.dumps([f"<{i}>" for i in range(TOKENS)]))
    fixed_point = {"field_bits": 64, "fraction_bits": 18, "exp_iterations": 8}
    common = {"format": 1, "egattn": "0.1.0", "cases": 2, "fixed_point": fixed_point, "files": {}}
    (directory / "meta.json").write_text(json.dumps(common | meta))
    seal(directory)
    return directory


def seal(directory: Path, **changes: Any) -> None:
    """Writes into meta.json the changes and what the files' digests are now."""
    path = directory / "meta.json"
    others = [other for other in directory.iterdir() if other != path]
    files = {other.name: hashlib.sha256(other.read_bytes()).hexdigest() for other in others}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"files": files} | changes))


def change(directory: Path, file: str, **arrays: np.ndarray) -> None:
    """Replaces arrays of a file as if they had been exported so."""
    with np.load(directory / file) as old:
        np.savez(directory / file, **{**old, **arrays})
    seal(directory)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    tokens = argument("tokens", "client", (POSITIONS, TOKENS), "one_hot")
    meta = {
        "kind": "model",
        "name": "tiny",
        "arguments": [tokens, *(argument(k, "server", v.shape) for k, v in WEIGHTS.items())],
        "output": {"name": "logits", "shape": [POSITIONS, TOKENS]},
        "lengths": LENGTHS,
    }
    expected = expected_logits()
    expected[1, LENGTHS[1] :] = np.nan  # padding is nobody's business
    return write_export(
        tmp_path_factory.mktemp("exports") / "tiny",
        meta,
        model,
        weights=WEIGHTS,
        inputs={"tokens": IDS},
        expected={"logits": expected},
    )


@pytest.fixture(scope="module")
def part(tmp_path_factory) -> Path:
    meta = {
        "kind": "part",
        "name": "softmax",
        "arguments": [argument("x", "shared", PART_INPUTS.shape[1:])],
        "output": {"name": "y", "shape": list(PART_INPUTS.shape[1:])},
    }
    return write_export(
        tmp_path_factory.mktemp("exports") / "part",
        meta,
        jax.nn.softmax,
        inputs={"x": PART_INPUTS.astype(np.float32)},
        expected={"y": softmax(PART_INPUTS).astype(np.float32)},
    )


@pytest.fixture
def copy(exported, tmp_path) -> Path:
    return shutil.copytree(exported, tmp_path / "copy")


def start(*words: Any, python: Any = PYTHON) -> subprocess.Popen:
    return subprocess.Popen(
        [str(python), str(PROGRAM / "run.py"), *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


def run(*words: Any) -> str:
    """A run that must go well, without a word on standard error."""
    status, output, errors = finish(start(*words))
    assert (status, errors) == (0, ""), errors
    return output


def refused(*words: Any, status: int = 2) -> str:
    """A run that must end with one line on standard error and nothing else."""
    return one_line(start(*words), status)


def one_line(process: subprocess.Popen, status: int) -> str:
    ended, output, errors = finish(process)
    assert (ended, output) == (status, ""), errors
    (line,) = errors.splitlines()
    assert line.startswith("run.py: ")
    return line.removeprefix("run.py: ")


def free_addresses(count: int) -> list[str]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


def children(process: subprocess.Popen) -> dict[int, int]:
    """Process ids of a launcher's parties by rank."""
    found = {}
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):  # it may end while we look
            parent = (directory / "stat").read_text().rpartition(")")[2].split()[1]
            words = (directory / "cmdline").read_text().split("\0")
            if int(parent) == process.pid:
                found[int(words[words.index("--rank") + 1])] = int(directory.name)
    return found


def in_warm_run(process: subprocess.Popen) -> dict[int, int]:
    """Waits until rank 0 has reported the cold run; returns the parties' process ids."""
    while process.poll() is None:
        time.sleep(0.1)
        parties = children(process)
        if len(parties) == 2:
            words = Path(f"/proc/{parties[0]}/cmdline").read_text().split("\0")
            log = Path(words[words.index("--native-log") + 1])
            if log.exists() and b"Link details" in log.read_bytes():
                return parties
    raise AssertionError(process.communicate())


def load(name: str) -> ModuleType:
    """A module of the program that needs nothing but Python."""
    path = PROGRAM / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"private_runner_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@spu
class TestRuns:
    @pytest.mark.parametrize(("protocol", "case"), [("SEMI2K", 0), ("ABY3", 1)])
    def test_in_one_process(self, exported, tmp_path, protocol, case):
        out = tmp_path / "result.json"
        output = run(exported, "--protocol", protocol, "--case", case, "--out", out)
        result = json.loads(out.read_text())
        self.check_result(result, protocol, case)
        assert (result["link"], result["network"]) == ("memory", None)
        assert f"next token: {result['next_token']['text']!r}" in output
        assert "pphlo.exponential" in output

    def test_in_processes(self, exported, tmp_path):
        out = tmp_path / "result.json"
        shaping = ["--bandwidth-mbit", "1000", "--round-trip-ms", "2"]
        run(exported, "--protocol", "SEMI2K", *shaping, "--out", out)
        result = json.loads(out.read_text())
        self.check_result(result, "SEMI2K", 0)
        assert result["link"] == "tcp"
        assert result["network"] == {"bandwidth_mbit": 1000, "round_trip_ms": 2}
        for each in result["runs"]:
            assert len(each["cpu_seconds_by_party"]) == 2
            assert sum(each["cpu_seconds_by_party"]) == pytest.approx(each["cpu_seconds"])
            # Every message of SEMI2K waits for the one before.
            assert each["seconds"] > each["messages"] * 1e-3

    def test_in_three_processes(self, exported):
        output = run(exported, "--protocol", "ABY3", "--processes", "--cold-only")
        assert "ABY3, 3 parties, tcp link" in output
        assert "cold" in output
        assert "warm" not in output

    @pytest.mark.slow
    def test_cheetah(self, exported, tmp_path):
        out = tmp_path / "result.json"
        run(exported, "--out", out)
        result = json.loads(out.read_text())
        self.check_result(result, "CHEETAH", 0)
        cold, warm = result["runs"]
        # Oblivious transfer is set up once, which takes about 10 MB each way.
        assert cold["sent_bytes"] > warm["sent_bytes"] + 5e6

    def check_result(self, result: dict, protocol: str, case: int):
        parties = 3 if protocol == "ABY3" else 2
        assert (result["protocol"], result["parties"]) == (protocol, parties)
        wanted = oracle(IDS[case])[: LENGTHS[case]]
        checked = result["check"]
        assert checked["largest_expected"] == pytest.approx(np.abs(wanted).max(), rel=1e-6)
        assert 0 < checked["max_error"] < 0.02 * checked["largest_expected"]
        assert checked["agreement"] == [LENGTHS[case]] * 2
        token = int(wanted[-1].argmax())
        assert result["next_token"] == {"token": token, "text": f"<{token}>"}
        runtime = result["settings"]["runtime"]
        assert (runtime["field"], runtime["fxp_fraction_bits"]) == ("FM64", 18)
        assert runtime["experimental_enable_colocated_optimization"]
        assert not result["settings"]["cheetah"]["enable_mul_lsb_error"]
        assert [each["run"] for each in result["runs"]] == ["cold", "warm"]
        warm = result["runs"][1]
        for level, rows in warm["operations"].items():
            # Each level tells the whole story in its own words.
            assert sum(row["sent_bytes"] for row in rows) == warm["sent_bytes"] > 0, level
        assert {row["name"] for row in warm["operations"]["HLO"]} >= {"pphlo.dot", "pphlo.reduce"}

    def test_a_part_in_one_process(self, part):
        output = run(part, "--protocol", "SEMI2K")
        assert "softmax: SEMI2K" in output
        assert "argmax" not in output

    def test_a_part_with_shared_inputs_has_no_owner_to_be_a_process(self, part):
        assert "parts are measured in one process" in refused(part, "--processes")


@spu
class TestPrivacy:
    def test_each_party_needs_its_own_files_only_and_may_be_late(self, copy, tmp_path):
        server = shutil.copytree(copy, tmp_path / "server")
        (copy / "weights.npz").unlink()
        for name in ("inputs.npz", "expected.npz", "tokens.json"):
            (server / name).unlink()
        common = ["--protocol", "SEMI2K", "--addresses", ",".join(free_addresses(2))]
        first = start(copy, *common, "--rank", "0")
        time.sleep(5)
        second = start(server, *common, "--rank", "1")
        assert finish(second) == (0, "", "")
        status, output, errors = finish(first)
        assert (status, errors) == (0, "")
        assert f"argmax agreement {POSITIONS}/{POSITIONS}" in output

    def test_a_share_of_who_lacks_the_value_does_not_depend_on_it(self):
        script = f"""if True:
            import sys; sys.path.insert(0, {str(PROGRAM)!r})
            import numpy as np, secure
            from export import Argument, Export
            def shares(protocol, owner, value):
                arguments = (Argument("x", owner, (50,), "array"),)
                export = Export(None, "part", "", 64, 18, 8, arguments, "", (), 1, None, {{}})
                config = secure.runtime_config(export, protocol, False)
                io = secure.spu.Io(3 if protocol == "ABY3" else 2, config)
                return secure.make_shares(io, export, {{"x": value}})["x"]
            for protocol in ("CHEETAH", "SEMI2K", "ABY3"):
                for rank, owner in enumerate(("client", "server")):
                    zeros = shares(protocol, owner, np.zeros(50, np.float32))
                    other = shares(protocol, owner, np.arange(1, 51, dtype=np.float32))
                    for mine, (a, b) in enumerate(zip(zeros, other)):
                        same = (a.meta, a.share_chunks) == (b.meta, b.share_chunks)
                        assert same == (mine != rank), (protocol, owner, mine)
        """
        subprocess.run([str(PYTHON), "-c", script], check=True)


@spu
class TestWrongOutputs:
    """Costs of a wrong result are neither printed nor written."""

    def test_by_more_than_the_bound(self, copy, tmp_path):
        expected = expected_logits()
        expected[0, 3, 4] += 0.05 * np.abs(expected[0]).max()
        change(copy, "expected.npz", logits=expected)
        out = tmp_path / "result.json"
        line = refused(copy, "--protocol", "SEMI2K", "--out", out, status=1)
        assert re.match(r"costs are withheld because the outputs disagree: max error 0\.1", line)
        assert "argmax agreement 8/8" in line
        assert not out.exists()

    def test_by_argmax(self, copy):
        expected = expected_logits()
        expected[0, 3] = -expected[0, 3]
        change(copy, "expected.npz", logits=expected)
        line = refused(copy, "--protocol", "SEMI2K", "--max-error", "9", status=1)
        assert "the outputs disagree" in line
        assert "argmax agreement 7/8, bound 0.96" in line

    def test_by_an_exponential_out_of_range(self, part):
        line = refused(part, "--protocol", "SEMI2K", "--case", "1", status=1)
        assert "the outputs disagree" in line


@spu
class TestBadInput:
    @pytest.mark.parametrize(
        ("words", "complaint"),
        [
            (["--protocol", "CHEETA"], "unknown protocol CHEETA: expected CHEETAH, SEMI2K, ABY3"),
            (["--case", "2"], "--case 2: .* has cases 0 to 1"),
            (["--wan", "--round-trip-ms", "3", "--bandwidth-mbit", "3"], "one or the other"),
            (["--round-trip-ms", "3"], "go together"),
            (["--rank", "0"], "--rank and --addresses go together"),
            (["--rank", "2", "--addresses", "a:1,b:2"], "CHEETAH has ranks 0 to 1"),
            (["--rank", "0", "--addresses", "a:1"], "has 2 parties, got 1"),
            (["--timeout", "9"], "--timeout: expected at least 10 seconds, got 9"),
            (["--out", "/nowhere/result.json"], "not a file in an existing directory"),
        ],
    )
    def test_options(self, exported, words, complaint):
        assert re.search(complaint, refused(exported, *words))

    def test_not_an_export(self, tmp_path):
        assert "is not an export: it has no meta.json" in refused(tmp_path)

    @pytest.mark.parametrize(
        ("changes", "complaint"),
        [
            ({"format": 2}, "format 2, and this program reads format 1"),
            ({"cases": "many"}, "meta.json: malformed"),
            ({"lengths": [9, 5]}, r"lengths must be 2 numbers from 1 to 8, got \[9, 5\]"),
            ({"files": {}}, "meta.json lists no weights.npz|meta.json lists no inputs.npz"),
        ],
    )
    def test_meta(self, copy, changes, complaint):
        seal(copy, **changes)
        assert re.search(complaint, refused(copy))

    @pytest.mark.parametrize(
        "name", ["model.mlir", "weights.npz", "inputs.npz", "expected.npz", "tokens.json"]
    )
    def test_a_file_that_changed_or_is_gone(self, copy, name):
        (copy / name).write_bytes((copy / name).read_bytes() + b"\n")
        assert f"{name}: changed since it was exported" in refused(copy)
        (copy / name).unlink()
        assert f"{name}: No such file" in refused(copy)

    @pytest.mark.parametrize(
        ("file", "arrays", "complaint"),
        [
            ("weights.npz", {"head": WEIGHTS["head"] * np.nan}, "head: contains .* not finite"),
            ("weights.npz", {"head": WEIGHTS["head"][:3]}, r"head: expected shape \[6, 12\]"),
            ("inputs.npz", {"tokens": IDS + TOKENS}, "tokens: expected tokens from 0 to 11"),
            ("inputs.npz", {"tokens": IDS * 1.0}, "tokens: expected integers, got float64"),
            ("expected.npz", {"logits": np.zeros((2, 8, 3))}, r"expected shape \[2, 8, 12\]"),
        ],
    )
    def test_arrays(self, copy, file, arrays, complaint):
        change(copy, file, **arrays)
        assert re.search(complaint, refused(copy))

    def test_a_missing_array_in_a_party(self, copy):
        np.savez(copy / "weights.npz", **{k: v for k, v in WEIGHTS.items() if k != "head"})
        seal(copy)
        line = refused(copy, "--processes")
        assert re.match(r"party 1 \(server\): .*weights.npz: no array 'head'", line)

    def test_a_port_in_use(self, exported):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            addresses = f"{address},{free_addresses(1)[0]}"
            line = refused(exported, "--rank", "0", "--addresses", addresses)
        assert line == f"cannot listen on {address}: port in use"

    def test_parties_of_different_programs(self, copy, tmp_path):
        other = shutil.copytree(copy, tmp_path / "other")
        fixed_point = {"field_bits": 64, "fraction_bits": 16, "exp_iterations": 8}
        seal(other, fixed_point=fixed_point)
        common = ["--protocol", "SEMI2K", "--addresses", ",".join(free_addresses(2))]
        parties = [start(copy, *common, "--rank", "0"), start(other, *common, "--rank", "1")]
        for party in parties:
            assert "party 1 (server) and party 0 (client) differ in settings" in one_line(party, 1)


@spu
class TestBrokenParties:
    def test_killed_in_a_run(self, exported):
        process = start(exported, "--protocol", "SEMI2K", *SLOW)
        parties = in_warm_run(process)
        os.kill(parties[1], signal.SIGKILL)
        clock = time.monotonic()
        assert "party 1 (server) died: killed by SIGKILL" in one_line(process, 1)
        assert time.monotonic() - clock < 5
        assert not Path(f"/proc/{parties[0]}").exists()

    def test_silent_in_a_run(self, exported):
        process = start(exported, "--protocol", "SEMI2K", "--timeout", "10", *SLOW)
        parties = in_warm_run(process)
        os.kill(parties[1], signal.SIGSTOP)
        clock = time.monotonic()
        line = one_line(process, 1)
        assert re.match(r"party 0 \(client\): .*no answer from a party for 10 s", line)
        assert time.monotonic() - clock < 40
        assert not Path(f"/proc/{parties[1]}").exists()

    def test_never_there(self, exported):
        words = ["--addresses", ",".join(free_addresses(2)), "--connect-timeout", "3"]
        clock = time.monotonic()
        line = refused(exported, "--rank", "0", *words, status=1)
        assert "the parties did not all connect within 3 s" in line
        assert time.monotonic() - clock < 30

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
    def test_launcher_interrupted(self, exported, tmp_path, monkeypatch, number):
        monkeypatch.setenv("TMPDIR", str(tmp_path))  # who is killed cannot tidy up
        process = start(exported, "--protocol", "SEMI2K", *SLOW)
        parties = in_warm_run(process)
        process.send_signal(number)
        # Left alone, a party would need 9 seconds to notice that its connections are gone.
        deadline = time.monotonic() + 6
        while any(Path(f"/proc/{party}").exists() for party in parties.values()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        if number == signal.SIGKILL:
            process.communicate()
        else:
            assert f"interrupted by {number.name}; all" in one_line(process, 1)


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

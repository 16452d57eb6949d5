"""The program that runs exports under secure computation: what it measures, and how it fails."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.private_inference.runs import (
    ENVIRONMENT,
    FIXED_POINT,
    IDS,
    LENGTHS,
    PART_INPUTS,
    POSITIONS,
    PROGRAM,
    PYTHON,
    WEIGHTS,
    argument,
    change,
    expected_logits,
    finish,
    free_addresses,
    one_line,
    oracle,
    refused,
    run,
    seal,
    softmax,
    spu,
    start,
    write_export,
    write_model,
)
from tests.processes import Process

pytestmark = pytest.mark.slow

SLOW = ["--bandwidth-mbit", "1000", "--round-trip-ms", "60"]  # for a warm run of about 3 s


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("exports") / "tiny")


@pytest.fixture(scope="module")
def part(tmp_path_factory) -> Path:
    about = {
        "kind": "part",
        "name": "softmax",
        "arguments": [argument("x", "shared", PART_INPUTS.shape[1:])],
        "output": {"name": "y", "shape": list(PART_INPUTS.shape[1:])},
    }
    return write_export(
        tmp_path_factory.mktemp("exports") / "part",
        about,
        jax.nn.softmax,
        inputs={"x": PART_INPUTS.astype(np.float32)},
        expected={"y": softmax(PART_INPUTS).astype(np.float32)},
    )


@pytest.fixture
def copy(exported, tmp_path) -> Path:
    return shutil.copytree(exported, tmp_path / "copy")


def children(process: Process) -> dict[int, int]:
    """Process ids of a launcher's parties by rank."""
    found = {}
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):  # it may end while we look
            parent = (directory / "stat").read_text().rpartition(")")[2].split()[1]
            words = (directory / "cmdline").read_text().split("\0")
            if int(parent) == process.pid:
                found[int(words[words.index("--rank") + 1])] = int(directory.name)
    return found


def in_warm_run(process: Process) -> dict[int, int]:
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
        self.check_commit(result["commit"])
        for level, rows in warm["operations"].items():
            # Each level tells the whole story in its own words.
            assert sum(row["sent_bytes"] for row in rows) == warm["sent_bytes"] > 0, level
        assert {row["name"] for row in warm["operations"]["HLO"]} >= {"pphlo.dot", "pphlo.reduce"}

    def check_commit(self, commit: str | None):
        words = ["git", "-C", str(PROGRAM), "rev-parse", "HEAD"]
        head = subprocess.run(words, capture_output=True, text=True).stdout.strip()
        assert bool(head) == bool(commit)
        assert head.startswith((commit or "").removesuffix("-dirty"))

    def test_a_part_in_one_process(self, part):
        output = run(part, "--protocol", "SEMI2K")
        assert "softmax: SEMI2K" in output
        assert "argmax" not in output

    def test_a_part_whose_output_is_zero(self, tmp_path):
        """The largest expected value is no measure then."""
        x = np.linspace(-3, 3, 24, dtype=np.float32).reshape(2, 3, 4)
        about = {
            "kind": "part",
            "name": "zero",
            "arguments": [argument("x", "shared", (3, 4))],
            "output": {"name": "y", "shape": [3, 4]},
        }
        zero = {"y": np.zeros_like(x)}
        exported = write_export(
            tmp_path / "export", about, lambda x: x * 0.3 - 0.3 * x, inputs={"x": x}, expected=zero
        )
        output = run(exported, "--protocol", "SEMI2K", "--cold-only")
        assert re.search(r"^max error [\d.e-]+ of 0 \(", output, re.M)
        change(exported, "client/expected.npz", y=zero["y"] + 3e-5)
        line = refused(exported, "--protocol", "SEMI2K", "--cold-only", status=1)
        assert "bound 2e-05 (0.02 of 0.001; largest expected value 3e-05)" in line

    def test_a_part_with_shared_inputs_has_no_owner_to_be_a_process(self, part):
        assert "parts are measured in one process" in refused(part, "--processes")


@spu
class TestPrivacy:
    @pytest.mark.parametrize("protocol", ["SEMI2K", "ABY3"])
    def test_each_party_needs_its_own_files_only_and_may_be_late(self, copy, tmp_path, protocol):
        roles = ["client", "server", "helper"][: 3 if protocol == "ABY3" else 2]
        addresses = ",".join(free_addresses(len(roles)))
        parties = []
        for rank, role in enumerate(roles):
            own = shutil.copytree(copy, tmp_path / role)
            for other in {"client", "server"} - {role}:
                shutil.rmtree(own / other)
            words = ["--protocol", protocol, "--rank", rank, "--addresses", addresses]
            parties.append(start(own, *words, "--cold-only"))
            time.sleep(5 if rank == 0 else 0)
        assert all(finish(party) == (0, "", "") for party in parties[1:])
        status, output, errors = finish(parties[0])
        assert (status, errors) == (0, "")
        assert f"argmax agreement {POSITIONS}/{POSITIONS}" in output

    @pytest.mark.parametrize(("rank", "role"), [(0, "client"), (1, "server")])
    def test_nobody_runs_without_its_own_files(self, copy, rank, role):
        words = ["--rank", rank, "--addresses", ",".join(free_addresses(2))]
        shutil.rmtree(copy / role)
        line = refused(copy, *words)
        assert line == f"{copy} lacks the {role}'s files: no {role}/{role}.json"

    def test_a_share_of_who_lacks_the_value_does_not_depend_on_it(self):
        script = f"""if True:
            import sys; sys.path.insert(0, {str(PROGRAM)!r})
            import numpy as np, secure
            from export import Argument, Program
            def shares(protocol, owner, value):
                arguments = (Argument("x", owner, (50,), "array"),)
                program = Program(None, "part", "", 64, 18, 8, arguments, "", (), "")
                config = secure.runtime_config(program, protocol, False)
                io = secure.spu.Io(3 if protocol == "ABY3" else 2, config)
                return secure.make_shares(io, program, {{"x": value}})["x"]
            for protocol in ("CHEETAH", "SEMI2K", "ABY3"):
                for rank, owner in enumerate(("client", "server")):
                    zeros = shares(protocol, owner, np.zeros(50, np.float32))
                    other = shares(protocol, owner, np.arange(1, 51, dtype=np.float32))
                    for mine, (a, b) in enumerate(zip(zeros, other)):
                        same = (a.meta, a.share_chunks) == (b.meta, b.share_chunks)
                        assert same == (mine != rank), (protocol, owner, mine)
        """
        subprocess.run([str(PYTHON), "-c", script], check=True, env=os.environ | ENVIRONMENT)


@spu
class TestWrongOutputs:
    """Costs of a wrong result are neither printed nor written."""

    def test_by_more_than_the_bound(self, copy, tmp_path):
        expected = expected_logits()
        expected[0, 3, 4] += 0.05 * np.abs(expected[0]).max()
        change(copy, "client/expected.npz", logits=expected)
        out = tmp_path / "result.json"
        line = refused(copy, "--protocol", "SEMI2K", "--out", out, status=1)
        assert re.match(r"costs are withheld because the outputs disagree: max error 0\.1", line)
        assert "argmax agreement 8/8" in line
        assert not out.exists()

    def test_by_argmax(self, copy):
        expected = expected_logits()
        expected[0, 3] = -expected[0, 3]
        change(copy, "client/expected.npz", logits=expected)
        line = refused(copy, "--protocol", "SEMI2K", "--max-error", "9", status=1)
        assert "the outputs disagree" in line
        assert "argmax agreement 7/8, bound 0.96" in line

    def test_by_nobody_knows_how_much(self, copy, part, tmp_path):
        out = tmp_path / "result.json"
        token = int(oracle(IDS[1])[LENGTHS[1] - 1].argmax())
        (copy / "client" / "expected.npz").unlink()
        seal(copy)
        words = ["--protocol", "SEMI2K", "--cold-only", "--out", out]
        output = run(copy, *words, "--case", "1", "--processes")
        first, _, withheld, *rest = output.splitlines()
        assert first == "tiny: SEMI2K, 2 parties, tcp link"
        assert withheld.startswith("costs are withheld because there is nothing to compare")
        assert rest == [f"next token: '<{token}>'"]
        result = json.loads(out.read_text())
        assert (result["check"], result["runs"]) == (None, [])
        assert result["next_token"] == {"token": token, "text": f"<{token}>"}
        part = shutil.copytree(part, tmp_path / "part")
        (part / "client" / "expected.npz").unlink()
        seal(part)
        assert run(part, *words).splitlines()[2:] == [withheld]
        assert json.loads(out.read_text())["next_token"] is None

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
        assert "is not an export: it has no program.json" in refused(tmp_path)

    def test_a_file_that_changed(self, copy):
        name = "client/inputs.npz"
        (copy / name).write_bytes((copy / name).read_bytes() + b"\n")
        assert f"{name}: changed since it was exported" in refused(copy)

    def test_a_missing_array_in_a_party(self, copy):
        weights = {k: v for k, v in WEIGHTS.items() if k != "head"}
        np.savez(copy / "server" / "weights.npz", **weights)
        seal(copy)
        line = refused(copy, "--processes")
        assert re.match(r"party 1 \(server\): .*weights.npz: no array 'head'", line)

    def test_a_case_that_is_not_there_in_a_party(self, exported):
        line = refused(exported, "--processes", "--case", "2")
        assert re.match(r"party 0 \(client\): --case 2: .* has cases 0 to 1", line)

    def test_a_port_in_use(self, exported):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            addresses = f"{address},{free_addresses(1)[0]}"
            line = refused(exported, "--rank", "0", "--addresses", addresses)
        assert line == f"cannot listen on {address}: port in use"

    @pytest.mark.parametrize("key", ["settings", "arguments"])
    def test_parties_of_different_programs(self, copy, tmp_path, key):
        other = shutil.copytree(copy, tmp_path / "other")
        about = json.loads((copy / "program.json").read_text())
        changes = {
            "settings": {"fixed_point": FIXED_POINT | {"fraction_bits": 16}},
            "arguments": {"arguments": [*about["arguments"][1:], about["arguments"][0]]},
        }
        seal(other, program=changes[key])
        common = ["--protocol", "SEMI2K", "--addresses", ",".join(free_addresses(2))]
        parties = [start(copy, *common, "--rank", "0"), start(other, *common, "--rank", "1")]
        for party in parties:
            assert f"party 1 (server) and party 0 (client) differ in {key}" in one_line(party, 1)


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

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
from private_runs import (
    IDS,
    LENGTHS,
    PART_INPUTS,
    POSITIONS,
    PROGRAM,
    PYTHON,
    TOKENS,
    WEIGHTS,
    argument,
    change,
    expected_logits,
    finish,
    free_addresses,
    model,
    one_line,
    oracle,
    refused,
    run,
    seal,
    softmax,
    spu,
    start,
    write_export,
)

SLOW = ["--bandwidth-mbit", "1000", "--round-trip-ms", "60"]  # for a warm run of about 3 s


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

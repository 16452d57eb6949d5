"""The command line: which options there are, and which go together."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from errors import UsageError

PARTIES = {
    "CHEETAH": ("client", "server"),
    "SEMI2K": ("client", "server"),
    "ABY3": ("client", "server", "helper"),
}
WAN = {"bandwidth_mbit": 100.0, "round_trip_ms": 80.0}  # the paper's


@dataclass(frozen=True)
class Options:
    """A checked command line.

    Attributes:
        network: what the proxies imitate, `{"bandwidth_mbit": ..., "round_trip_ms": ...}`, or None.
        rank: this process's party, or None when one command runs all of them.
        supervised: a launcher holds this process's standard input open and goes first.
    """

    export: Path
    protocol: str
    processes: bool
    network: dict[str, float] | None
    case: int
    out: Path | None
    timeout: float
    connect_timeout: float
    max_error: float
    min_agreement: float
    cold_only: bool
    rank: int | None
    addresses: tuple[str, ...]
    supervised: bool
    native_log: Path | None

    @property
    def parties(self) -> tuple[str, ...]:
        """The parties' roles, by rank."""
        return PARTIES[self.protocol]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def _positive(text: str) -> float:
    value = float(text)
    if not (0 < value < math.inf):
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
    return value


def _receive_timeout(text: str) -> float:
    # The link has one timeout, and connecting alone lets a message wait for up to 5 seconds.
    value = _positive(text)
    if value < 10:
        raise argparse.ArgumentTypeError(f"expected at least 10 seconds, got {text}")
    return value


def _fraction(text: str) -> float:
    value = float(text)
    if not (0 <= value <= 1):
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, got {text}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="run.py",
        description="Runs an export under secure computation and reports what it cost.",
        epilog="README.md beside this file says more.",
    )
    add = parser.add_argument
    add("export", type=Path, metavar="EXPORT", help="directory of `egattn private export`")
    add("--protocol", type=str.upper, default="CHEETAH", help=f"{', '.join(PARTIES)} (CHEETAH)")
    add("--processes", action="store_true", help="one process per party, over TCP")
    add("--wan", action="store_true", help="100 Mbit/s and 80 ms round trip; implies --processes")
    add("--bandwidth-mbit", type=_positive, help="of each direction between two parties")
    add("--round-trip-ms", type=_positive, help="added to every exchange")
    add("--case", type=int, default=0, help="which of the export's inputs (0)")
    add("--out", type=Path, help="JSON file for the result")
    add("--timeout", type=_receive_timeout, default=3600.0, help="seconds per receive (3600)")
    add("--connect-timeout", type=_positive, default=60.0, help="seconds for all to join (60)")
    add("--max-error", type=_positive, default=0.02, help="of the largest expected value (0.02)")
    add("--min-agreement", type=_fraction, default=0.96, help="of argmax, per position (0.96)")
    add("--cold-only", action="store_true", help="one run, one-off setup included")
    add("--rank", type=int, help="run this party only; needs --addresses")
    add("--addresses", help="host:port of every party by rank, separated by commas")
    for hidden in ("--network", "--native-log"):
        add(hidden, help=argparse.SUPPRESS)
    add("--supervised", action="store_true", help=argparse.SUPPRESS)
    return parser


def parse(arguments: list[str]) -> Options:
    """Checks a command line.

    Raises:
        UsageError: for an option that does not exist, is out of range or contradicts another.
    """
    given = _parser().parse_args(arguments)
    if given.protocol not in PARTIES:
        raise UsageError(f"unknown protocol {given.protocol}: expected {', '.join(PARTIES)}")
    network = _network(given)
    addresses = _addresses(given)
    if given.rank is not None and (given.processes or (network and not given.supervised)):
        raise UsageError("--rank runs one party: --processes and shaping belong to the launcher")
    if given.out is not None:
        if given.rank:
            raise UsageError("--out belongs to rank 0, which gets the result")
        if (given.out.exists() and not given.out.is_file()) or not (
            given.out.resolve().parent.is_dir()
        ):
            raise UsageError(f"--out {given.out}: not a file in an existing directory")
    return Options(
        export=given.export,
        protocol=given.protocol,
        processes=given.processes or (network is not None and given.rank is None),
        network=network,
        case=given.case,
        out=given.out,
        timeout=given.timeout,
        connect_timeout=given.connect_timeout,
        max_error=given.max_error,
        min_agreement=given.min_agreement,
        cold_only=given.cold_only,
        rank=given.rank,
        addresses=addresses,
        supervised=given.supervised,
        native_log=Path(given.native_log) if given.native_log else None,
    )


def _network(given: Any) -> dict[str, float] | None:
    explicit = (given.bandwidth_mbit, given.round_trip_ms)
    if given.network:
        return json.loads(given.network)
    if given.wan and explicit != (None, None):
        raise UsageError("--wan sets bandwidth and round trip: give one or the other")
    if given.wan:
        return dict(WAN)
    if explicit == (None, None):
        return None
    if None in explicit:
        raise UsageError("--bandwidth-mbit and --round-trip-ms go together")
    return {"bandwidth_mbit": given.bandwidth_mbit, "round_trip_ms": given.round_trip_ms}


def _addresses(given: Any) -> tuple[str, ...]:
    if (given.rank is None) != (given.addresses is None):
        raise UsageError("--rank and --addresses go together")
    if given.rank is None:
        return ()
    parties = PARTIES[given.protocol]
    addresses = tuple(given.addresses.split(","))
    if not 0 <= given.rank < len(parties):
        raise UsageError(f"--rank {given.rank}: {given.protocol} has ranks 0 to {len(parties) - 1}")
    if len(addresses) != len(parties):
        raise UsageError(
            f"--addresses: {given.protocol} has {len(parties)} parties, got {len(addresses)}"
        )
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise UsageError(f"--addresses: expected host:port, got {address!r}")
    return addresses

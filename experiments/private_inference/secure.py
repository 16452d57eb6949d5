"""All that is specific to SPU 0.9.5: settings, compilation, links, shares."""

from __future__ import annotations

import errno
import hashlib
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import spu
from errors import Failure, UsageError, native_message
from export import OWNERS, Program
from spu import libspu

Share = libspu.Share
Link = libspu.link.Context
SECRET = libspu.Visibility.VIS_SECRET
OUTPUT = "output"


def runtime_config(program: Program, protocol: str, profile: bool) -> libspu.RuntimeConfig:
    """The settings of a run: the export's fixed point, ownership respected, else SPU's defaults.

    LSB errors in multiplications stay off: with them single values came out wrapped.

    Args:
        program: says how numbers are represented.
        protocol: "CHEETAH", "SEMI2K" or "ABY3".
        profile: whether this party's log reports communication.
    """
    config = libspu.RuntimeConfig(
        protocol=getattr(libspu.ProtocolKind, protocol),
        field=getattr(libspu.FieldType, f"FM{program.field_bits}"),
        fxp_fraction_bits=program.fraction_bits,
    )
    config.fxp_exp_iters = program.exp_iterations
    config.experimental_enable_colocated_optimization = True
    config.enable_hal_profile = config.enable_pphlo_profile = profile
    return config


def compiler_options() -> libspu.CompilerOptions:
    """Defaults, with one reciprocal per row of a softmax instead of one per entry."""
    options = libspu.CompilerOptions()
    options.enable_optimize_denominator_with_broadcast = True
    return options


def settings(config: libspu.RuntimeConfig) -> dict[str, Any]:
    """Every setting that can be read, for the result and to compare between parties."""
    return {
        "runtime": _readable(config),
        "cheetah": _readable(config.cheetah_2pc_config),
        "compiler": _readable(compiler_options()),
    }


def _readable(holder: Any) -> dict[str, Any]:
    values = {}
    for name in dir(type(holder)):
        # Only one party profiles, and the enumerations' members are attributes as well.
        if name.startswith("_") or name[0].isupper() or name.endswith("_profile"):
            continue
        try:
            value = getattr(holder, name)
        except TypeError:  # cheetah's ot_kind: the wheel does not register its type
            continue
        if isinstance(value, bool | int | float | str):
            values[name] = value
        elif isinstance(getattr(value, "name", None), str):
            values[name] = value.name
    return values


def compile_program(program: Program, text: str) -> libspu.Executable:
    """Compiles the program with every argument secret.

    Raises:
        Failure: if SPU does not accept it.
    """
    source = libspu.CompilationSource(
        libspu.SourceIRType.STABLEHLO, text.encode(), [SECRET] * len(program.arguments)
    )
    try:
        code = spu.compile(source, compiler_options())
    except RuntimeError as error:
        raise Failure(f"SPU cannot compile model.mlir: {native_message(error)}") from error
    names = [argument.name for argument in program.arguments]
    return libspu.Executable(name="export", input_names=names, output_names=[OUTPUT], code=code)


def fingerprint(executable: libspu.Executable) -> str:
    """Tells compiled programs apart."""
    return hashlib.sha256(executable.code).hexdigest()


def make_shares(
    io: spu.Io, program: Program, values: Mapping[str, np.ndarray]
) -> dict[str, list[Share]]:
    """Shares of every argument, one per rank.

    An owned argument's share at the other parties is a placeholder of zeros whatever the value
    is. So a party that lacks the value builds its own share from zeros, and nobody sends a share.

    Args:
        io: of the run's settings.
        program: names the arguments.
        values: the arguments that are known here.
    """
    return {
        argument.name: io.make_shares(
            values.get(argument.name, np.zeros(argument.shape, np.float32)),
            SECRET,
            OWNERS[argument.owner],
        )
        for argument in program.arguments
    }


def memory_link(parties: Sequence[str], rank: int, timeout: float) -> Link:
    """Joins a link between threads of this process."""
    return libspu.link.create_mem(_description(parties, parties, timeout), rank)


def tcp_link(
    parties: Sequence[str], addresses: Sequence[str], rank: int, timeout: float, connect: float
) -> Link:
    """Joins a link between processes; `addresses` are host:port by rank, as seen from this one."""
    description = _description(parties, addresses, timeout)
    description.brpc_channel_protocol = "baidu_std"
    description.connect_retry_interval_ms = 500
    # The caller ends the wait in time; brpc must not give up before.
    description.connect_retry_times = int(connect) * 2 + 10
    return libspu.link.create_brpc(description, rank)


def _description(parties: Sequence[str], hosts: Sequence[str], timeout: float) -> libspu.link.Desc:
    description = libspu.link.Desc()
    description.recv_timeout_ms = int(timeout * 1000)
    for party, host in zip(parties, hosts, strict=True):
        description.add_party(party, host)
    return description


def require_free(address: str) -> None:
    """Raises UsageError unless this process can listen on host:port."""
    host, _, port = address.rpartition(":")
    try:
        family, kind, *_, resolved = socket.getaddrinfo(host, int(port), socket.AF_INET)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(resolved)
    except OSError as error:
        reason = "port in use" if error.errno == errno.EADDRINUSE else error.strerror
        raise UsageError(f"cannot listen on {address}: {reason}") from error


def send_share(link: Link, rank: int, share: Share) -> None:
    """Sends a share; raw bytes and not a pickle, which could make its reader run code."""
    link.send(rank, struct.pack("<Q", len(share.share_chunks)))
    for part in (share.meta, *share.share_chunks):
        link.send(rank, part)


def receive_share(link: Link, rank: int) -> Share:
    """Receives what `send_share` sent."""
    (chunks,) = struct.unpack("<Q", link.recv(rank))
    share = Share()
    share.meta = link.recv(rank)
    share.share_chunks = [link.recv(rank) for _ in range(chunks)]
    return share

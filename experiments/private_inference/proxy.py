"""A TCP proxy that imitates a slower network between parties on one host.

Every message from one party to another crosses a `Line`: it waits for its turn at the line's
bandwidth, then travels for the delay. Travelling takes no turn, so a long delay slows no stream
down. All connections between two parties share the two lines between them, whoever opened them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

CHUNK = 1 << 16
# How far reading may run ahead of the line: enough that late wake-ups never leave it idle.
AHEAD_SECONDS = 0.02
CHUNK_OVERHEAD = 256  # bytes of memory that a waiting chunk costs besides its content


class Line:
    """One direction between two parties.

    Args:
        bytes_per_second: bandwidth.
        delay_seconds: from the last byte's turn to its arrival.
    """

    def __init__(self, bytes_per_second: float, delay_seconds: float):
        self._rate = bytes_per_second
        self._delay = delay_seconds
        self._free_at = 0.0
        # What travels is at most bandwidth x delay; the rest waits for a receiver that is slow.
        self.capacity = int(2 * bytes_per_second * delay_seconds) + (1 << 22)

    def enter(self, size: int) -> tuple[float, float]:
        """Takes the next turn for `size` bytes.

        Returns:
            When to read on, and when these bytes arrive, on the running loop's clock.
        """
        now = asyncio.get_running_loop().time()
        self._free_at = max(now, self._free_at) + size / self._rate
        return self._free_at - AHEAD_SECONDS, self._free_at + self._delay


async def _until(moment: float) -> None:
    await asyncio.sleep(max(0.0, moment - asyncio.get_running_loop().time()))


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: Line) -> None:
    """Carries one direction of a connection, in order, until its end; memory stays bounded."""
    waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
    waiting_bytes = 0
    room = asyncio.Event()

    async def accept() -> None:
        nonlocal waiting_bytes
        while True:
            data = await reader.read(CHUNK)
            read_on, arrival = line.enter(len(data))
            waiting_bytes += len(data) + CHUNK_OVERHEAD
            waiting.put_nowait((arrival, data))
            if not data:
                return
            await _until(read_on)
            while waiting_bytes > line.capacity:
                room.clear()
                await room.wait()

    async def deliver() -> None:
        nonlocal waiting_bytes
        while True:
            arrival, data = await waiting.get()
            await _until(arrival)
            if not data:
                writer.write_eof()
                return
            writer.write(data)
            await writer.drain()
            waiting_bytes -= len(data) + CHUNK_OVERHEAD
            room.set()

    await _all_or_none(accept(), deliver())


async def _all_or_none(*steps: Awaitable[None]) -> None:
    """Awaits all; when one fails the others end too, so that no half of a connection lives on."""
    tasks = [asyncio.ensure_future(step) for step in steps]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def forward(target: int, there: Line, back: Line) -> Callable[..., Awaitable[None]]:
    """A connection handler: everything goes on to a port of this host, through two lines."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        # A party may not listen yet, or end first: the other side sees a closed connection. And
        # cancelled is every handler when the loop ends, which is no error to report.
        with contextlib.suppress(OSError, asyncio.CancelledError):
            try:
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target)
                writers.append(far_writer)
                await _all_or_none(
                    carry(reader, far_writer, there), carry(far_reader, writer, back)
                )
            finally:
                for each in writers:
                    each.close()

    return handle


@contextlib.asynccontextmanager
async def between(
    ports: Sequence[int], bandwidth_mbit: float, round_trip_ms: float
) -> AsyncIterator[list[list[int]]]:
    """Puts proxies between parties of this host, for as long as the context lasts.

    Args:
        ports: where the parties listen, by rank.
        bandwidth_mbit: of each direction between two parties, in 10^6 bit/s.
        round_trip_ms: sum of both directions' delays.

    Yields:
        For each rank the ports under which it reaches the parties, its own being itself.
    """
    ranks = range(len(ports))
    lines = {
        (a, b): Line(bandwidth_mbit * 1e6 / 8, round_trip_ms / 2e3) for a in ranks for b in ranks
    }
    seen = [list(ports) for _ in ranks]
    with contextlib.ExitStack() as stack:
        for a, b in lines:
            if a != b:
                handler = forward(ports[b], lines[a, b], lines[b, a])
                server = await asyncio.start_server(handler, "127.0.0.1", 0, limit=CHUNK)
                stack.callback(server.close)
                seen[a][b] = server.sockets[0].getsockname()[1]
        yield seen

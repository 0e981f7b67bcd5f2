"""Count and time messages: what all queues' adapters share, with the standard library alone."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from time import perf_counter, process_time
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from driver import SETTLING_SECONDS, SLICE_SECONDS, Slice, probe, stolen_ticks


class QueueMeasurement(NamedTuple):
    """One measurement of a queue."""

    client: str  # "adapter/variant"
    workload: str  # "consume", "produce" or "latency"
    callers: int
    loop: str
    url: str
    messages: int

    @property
    def variant(self) -> str:
        """The adapter's variant."""
        return self.client.partition("/")[2]


class Handler(Protocol):
    """What a consumer calls with the messages that it received."""

    def one(self, message: Any) -> None:
        """Handle a message."""

    def many(self, messages: list[Any]) -> None:
        """Handle several messages."""


class Queue(NamedTuple):
    """A connected queue of one library."""

    version: str
    put: Callable[[list[bytes]], Awaitable[Any]]  # one message as users do, or many as fast as possible
    consume: Callable[[Handler], Awaitable[Any]]  # until cancelled, or until all messages are handled
    remaining: Callable[[], Awaitable[int]]  # messages that wait or are unacknowledged
    batch: int = 1  # messages per put


class Meter:
    """Counts messages slice by slice; the clock is read in the handlers' calls.

    A separate task for the clock would not run where a library runs jobs without awaiting.

    Args:
        url: The server, whose CPU time is read when the first message is handled, and at the end.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.messages: list[Any] = []
        self.slices: list[Slice] = []
        self._next = 0.0
        self._began: tuple[float, float, int, int] | None = None
        self._probe_ms = 0.0
        self._first = 0
        self._server_before = 0.0

    def one(self, message: Any) -> None:
        """Count a message."""
        self.messages.append(message)
        if perf_counter() >= self._next:
            self._switch_phase()

    def many(self, messages: list[Any]) -> None:
        """Count messages."""
        self.messages += messages
        if perf_counter() >= self._next:
            self._switch_phase()

    def _switch_phase(self) -> None:
        if self._began:
            started, used, stolen, handled = self._began
            seconds, cpu = perf_counter() - started, process_time() - used
            before, self._probe_ms, stolen = self._probe_ms, probe(), stolen_ticks() - stolen
            probe_ms, commands = max(before, self._probe_ms), len(self.messages) - handled
            self.slices.append(Slice(stolen, round(probe_ms, 3), commands, round(seconds, 6), round(cpu, 6)))
            self._began = None
        elif self._next:
            self._began = (perf_counter(), process_time(), stolen_ticks(), len(self.messages))
        else:
            self._first, self._server_before, self._probe_ms = len(self.messages), server_cpu(self.url), probe()
        self._next = perf_counter() + (SLICE_SECONDS if self._began else SETTLING_SECONDS)

    def figures(self) -> dict[str, Any]:
        """Return the slices, and the server's CPU time per message in microseconds.

        Raises:
            RuntimeError: All messages together took less time than one slice.
        """
        used = server_cpu(self.url) - self._server_before
        if not self.slices:
            raise RuntimeError(f"{len(self.messages)} messages were too few to measure anything")
        return {"slices": self.slices, "server_us": used / (len(self.messages) - self._first) * 1e6}


class Arrivals:
    """Measures the time from sending to handling; each message contains the time when it was sent."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.arrivals: list[float] = []
        self._before, self._stolen = probe(), stolen_ticks()

    def one(self, message: Any) -> None:
        """Record when a message arrived."""
        self.arrivals.append(perf_counter())
        self.messages.append(message)

    def many(self, messages: list[Any]) -> None:
        """Record when each message arrived."""
        for message in messages:
            self.one(message)

    def figures(self) -> dict[str, Any]:
        """Return the quantiles, without the first fifth of the messages: consumers were still connecting."""
        taken = sorted(zip(map(int, self.messages), self.arrivals, strict=True))[len(self.messages) // 5 :]
        latencies = sorted(arrival * 1e3 - sent_ns / 1e6 for sent_ns, arrival in taken)
        p50_ms, p99_ms = (latencies[int(len(latencies) * share)] for share in (0.50, 0.99))
        disturbed = {"stolen": stolen_ticks() - self._stolen, "probe_ms": max(self._before, probe())}
        return {**disturbed, "p50_ms": p50_ms, "p99_ms": p99_ms}


async def run_concurrently(number: int, work: Callable[[], Awaitable[Any]]) -> None:
    """Run ``work`` ``number`` times concurrently."""
    await asyncio.gather(*(work() for _ in range(number)))


def server_cpu(url: str) -> float:
    """Return the CPU time of the server's process in seconds."""
    fields = dict(line.split(b":") for line in send_command(url, "INFO cpu").split() if b":" in line)
    return float(fields[b"used_cpu_sys"]) + float(fields[b"used_cpu_user"])


def send_command(url: str, command: str) -> bytes:
    """Send a command and return its reply, without a client library: each environment has a different one."""
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port)) as connection, connection.makefile("rwb") as stream:
        stream.write(command.encode() + b"\r\n")
        stream.flush()
        head = stream.readline()
        return stream.read(int(head[1:])) if head.startswith(b"$") else head

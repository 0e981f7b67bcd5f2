"""What the adapters of all queues share, with the standard library alone: messages are counted and timed here."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from time import perf_counter, process_time
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from driver import SETTLING, SLICE, Slice, probe, stolen_ticks


class Asked(NamedTuple):
    """What to measure."""

    client: str  # "adapter/variant"
    workload: str  # "consume", "produce" or "latency"
    callers: int
    loop: str
    url: str
    messages: int

    @property
    def variant(self) -> str:
        """Which of the adapter's ways."""
        return self.client.partition("/")[2]


class Handler(Protocol):
    """What a consumer calls with what it has got."""

    def one(self, message: Any) -> None:
        """Handle a message."""

    def many(self, messages: list[Any]) -> None:
        """Handle several."""


class Queue(NamedTuple):
    """A connected queue of one library."""

    version: str
    put: Callable[[list[bytes]], Awaitable[Any]]  # one message as its users would, or many as fast as it goes
    consume: Callable[[Handler], Awaitable[Any]]  # until cancelled, or until all messages are handled
    left: Callable[[], Awaitable[int]]  # the messages that are waiting, or not acknowledged yet
    batch: int = 1  # that it puts at a time


class Meter:
    """Counts messages slice by slice; the handlers' own calls tell the time.

    A task that looked at a clock beside them would not get its turn where a library runs jobs without awaiting.

    Args:
        url: The server, which is asked for its CPU time when the first message is handled, and at the end.
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
        """Count it."""
        self.messages.append(message)
        if perf_counter() >= self._next:
            self._turn()

    def many(self, messages: list[Any]) -> None:
        """Count them."""
        self.messages += messages
        if perf_counter() >= self._next:
            self._turn()

    def _turn(self) -> None:
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
        self._next = perf_counter() + (SLICE if self._began else SETTLING)

    def figures(self) -> dict[str, Any]:
        """The slices, and the server's CPU time for each message.

        Raises:
            RuntimeError: It all took less time than one slice.
        """
        used = server_cpu(self.url) - self._server_before
        if not self.slices:
            raise RuntimeError(f"{len(self.messages)} messages were too few to measure anything")
        return {"slices": self.slices, "server_us": used / (len(self.messages) - self._first) * 1e6}


class Arrivals:
    """How long messages that hold the time of their sending took to their handlers."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.arrivals: list[float] = []
        self._before, self._stolen = probe(), stolen_ticks()

    def one(self, message: Any) -> None:
        """Note when."""
        self.arrivals.append(perf_counter())
        self.messages.append(message)

    def many(self, messages: list[Any]) -> None:
        """Note it of each."""
        for message in messages:
            self.one(message)

    def figures(self) -> dict[str, Any]:
        """The quantiles, without the first fifth of the messages, which found consumers still connecting."""
        taken = sorted(zip(map(int, self.messages), self.arrivals, strict=True))[len(self.messages) // 5 :]
        latencies = sorted(arrival * 1e3 - sent_ns / 1e6 for sent_ns, arrival in taken)
        p50_ms, p99_ms = (latencies[int(len(latencies) * share)] for share in (0.50, 0.99))
        disturbed = {"stolen": stolen_ticks() - self._stolen, "probe_ms": max(self._before, probe())}
        return {**disturbed, "p50_ms": p50_ms, "p99_ms": p99_ms}


async def together(number: int, work: Callable[[], Awaitable[Any]]) -> None:
    """Do it so many times at once."""
    await asyncio.gather(*(work() for _ in range(number)))


def server_cpu(url: str) -> float:
    """Seconds of CPU time that the server's process has taken."""
    fields = dict(line.split(b":") for line in ask(url, "INFO cpu").split() if b":" in line)
    return float(fields[b"used_cpu_sys"]) + float(fields[b"used_cpu_user"])


def ask(url: str, command: str) -> bytes:
    """A command's reply, without a client: each environment has another one."""
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port)) as connection, connection.makefile("rwb") as stream:
        stream.write(command.encode() + b"\r\n")
        stream.flush()
        head = stream.readline()
        return stream.read(int(head[1:])) if head.startswith(b"$") else head

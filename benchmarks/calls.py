"""Count the Python and C function calls that a command costs the client; the count is the same on every machine.

Usage: python benchmarks/calls.py [COMMANDS], which prints JSON; or ``calls_per_command()`` in a test.

The servers are real: one alone, and one that is a cluster. A relay in the same thread delivers all replies to a read's
commands at once: with direct sockets, the number of replies per read would depend on the machine.
"""

import asyncio
import gc
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import hiredis
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from redis.asyncio import BlockingConnectionPool, Redis

from aioredis_monitored import MonitoredRedisConnection
from aioredis_monitored.testing import ClusterServers, RedisServer

COMMANDS = 2000
WARM_UP = 5  # calls of each caller before counting, to connect and to fill caches
CHUNK = 1 << 20


class Relay:
    """Forwards each connection's commands to a real server and waits for their replies, blocking the event loop."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self.server = (address.hostname, address.port)
        self.loop = asyncio.get_running_loop()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.listener.setblocking(False)
        self.loop.add_reader(self.listener, self.accept)
        self.sockets: list[socket.socket] = []
        self.address = "{}:{}".format(*self.listener.getsockname())

    def accept(self) -> None:
        """Accept a client and connect it to the server."""
        client, _ = self.listener.accept()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = socket.create_connection(self.server)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sockets += [client, server]
        self.loop.add_reader(client, self.relay, client, server, hiredis.Reader(), hiredis.Reader())

    def relay(
        self, client: socket.socket, server: socket.socket, request_reader: hiredis.Reader, reply_reader: hiredis.Reader
    ) -> None:
        """Forward the commands that have arrived, then all of their replies at once."""
        commands = client.recv(CHUNK)
        if not commands:
            self.loop.remove_reader(client)
            return
        request_reader.feed(commands)
        missing = 0
        while request_reader.gets() is not False:
            missing += 1
        server.sendall(commands)
        replies = b""
        while missing > 0:
            reply_reader.feed(part := server.recv(CHUNK))
            replies += part
            while missing > 0 and reply_reader.gets() is not False:
                missing -= 1
        client.sendall(replies)

    def close(self) -> None:
        """Close all sockets."""
        for each in [self.listener, *self.sockets]:
            self.loop.remove_reader(each)
            each.close()


Maker = Callable[[Relay], Redis]


class Counter:
    """A profile function that counts calls, except those that the relay makes."""

    RELAY = frozenset({Relay.relay.__code__, Relay.accept.__code__})

    def __init__(self) -> None:
        self.calls = 0
        self.relaying = False

    def __call__(self, frame: Any, event: str, _: Any) -> None:
        """Count a call; the interpreter calls this for each call and return."""
        if event == "call" and frame.f_code in self.RELAY:
            self.relaying = True
        elif event == "return" and frame.f_code in self.RELAY:
            self.relaying = False
        elif event in {"call", "c_call"} and not self.relaying:
            self.calls += 1


async def count(make: Maker, url: str, callers: int, commands: int) -> float:
    """Count calls per GET of the client that ``make`` returns for a relay, with ``callers`` concurrent callers."""
    relay = Relay(url)
    try:
        async with make(relay) as client:
            await client.set("bench:calls", b"x" * 64)

            async def caller(gets: int) -> None:
                for _ in range(gets):
                    await client.get("bench:calls")

            await asyncio.gather(*(caller(WARM_UP) for _ in range(callers)))
            each = commands // callers
            counter = Counter()
            tasks = [asyncio.create_task(caller(each)) for _ in range(callers)]
            with garbage_collection_disabled():
                sys.setprofile(counter)
                try:
                    await asyncio.wait(tasks)
                finally:
                    sys.setprofile(None)
            for task in tasks:
                task.result()
            return counter.calls / (each * callers)
    finally:
        relay.close()


@contextmanager
def garbage_collection_disabled() -> Iterator[None]:
    """Disable the garbage collector, whose finalizers would be counted at random."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def redis_py(relay: Relay) -> Redis:
    """Return redis-py's client, the baseline."""
    return Redis.from_pool(BlockingConnectionPool.from_url(f"redis://{relay.address}", max_connections=50))


def ours(**providers: Any) -> Maker:
    """Return a maker of this package's client, which records to these providers."""
    return lambda relay: MonitoredRedisConnection.from_url(f"redis://{relay.address}", **providers)


def in_cluster(**providers: Any) -> Maker:
    """Return a maker of this package's client on a cluster of one node, which is reached through the relay."""

    def make(relay: Relay) -> Redis:
        address_map = "{}:{}={}".format(*relay.server, relay.address)
        return MonitoredRedisConnection.from_url(
            f"redis+cluster://{relay.address}", address_map=address_map, **providers
        )

    return make


def providers() -> dict[str, dict[str, Any]]:
    """Return the telemetry to count with; spans end without a processor, whose thread would disturb the count."""
    metrics = {"meter_provider": MeterProvider([InMemoryMetricReader()])}
    return {"no SDK": {}, "metrics": metrics, "everything": {**metrics, "tracer_provider": TracerProvider()}}


def calls_per_command(
    url: str, cluster_url: str, callers: tuple[int, ...] = (1, 128), commands: int = COMMANDS
) -> dict[str, float]:
    """Count for all clients; the keys are ``"client, number of callers"``.

    Args:
        url: The server.
        cluster_url: The node of a cluster that has no other node.
        callers: The numbers of concurrent callers.
        commands: How many GETs are counted.
    """
    makers = {
        "redis-py pool": (redis_py, url),
        **{name: (ours(**chosen), url) for name, chosen in providers().items()},
        **{f"cluster, {name}": (in_cluster(**chosen), cluster_url) for name, chosen in providers().items()},
    }
    return {
        f"{name}, {number}": round(asyncio.run(count(make, where, number, commands)), 2)
        for name, (make, where) in makers.items()
        for number in callers
    }


if __name__ == "__main__":
    if found := shutil.which("redis-server"):
        os.environ.setdefault("AIOREDIS_MONITORED_SERVER", found)
    with RedisServer() as server, ClusterServers(primaries=1, replicas=0) as cluster:
        commands = int(sys.argv[1]) if len(sys.argv) > 1 else COMMANDS
        print(json.dumps(calls_per_command(server.url, cluster.url, commands=commands)))  # noqa: T201 - the result

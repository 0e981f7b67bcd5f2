"""Sentinels behind one address, or one that says what a test wants, as no real one can be made to lie.

And writers that count what is lost.
"""

import asyncio
import re
import time
from collections import Counter
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import hiredis
import redis.exceptions

from aioredis_monitored._commands.table import TABLE
from support.listening import listening


class FakeSentinel:
    """Answers as a sentinel that names one address as the primary of every service.

    Attributes:
        identity: Its identity; ``None`` if it is too old to say it.
        primary: The address that it names; ``None`` if it knows no service.
        pong: What it replies to PING; ``None`` if it does not.
        pings: How often it was sent.
        config_epoch: The epoch that it gives.
        others: The addresses of the sentinels that it names, by identity.
        replicas: The fields of the replicas that it names, apart from those of one in sync, by address.
        asked_for_replicas: How often it was asked for replicas.
        host: The host on which it listens.
        port: The port on which it listens.
        credentials: What clients have sent with AUTH.
        refuses_credentials: Whether it refuses them.
    """

    def __init__(self, identity, primary, config_epoch=0, others=()):
        self.identity, self.primary, self.config_epoch = identity, primary, config_epoch
        self.others = dict(others)
        self.replicas, self.asked_for_replicas = {}, 0
        self.host, self.port = "127.0.0.1", 0
        self.pong, self.pings = ["pong", ""], 0
        self.credentials, self.refuses_credentials = [], False
        self._subscribers = set()

    async def __aenter__(self):
        self._listening = listening(self._serve, self.host, self.port)
        self.host, self.port = await self._listening.__aenter__()
        return self

    def subscriptions(self):
        """Return the subscribed connections."""
        return frozenset(self._subscribers)

    async def __aexit__(self, *raised):
        await self._listening.__aexit__(None, None, None)

    @property
    def address(self):
        """Where it listens."""
        return self.host, self.port

    def announce(self, channel, data):
        """Publish an event; return to how many clients."""
        for writer in self._subscribers:
            writer.write(_packed(["message", channel, data]))
        return len(self._subscribers)

    async def _serve(self, reader, writer):
        requests = hiredis.Reader(encoding="utf-8")
        try:
            while chunk := await reader.read(65536):
                requests.feed(chunk)
                while (request := requests.gets()) is not False:
                    writer.write(b"".join(map(_packed, self._replies(request, writer))))
        except ConnectionError:
            pass
        finally:
            self._subscribers.discard(writer)
            writer.close()

    def _replies(self, request, writer):
        name, *arguments = request
        if name.endswith("SUBSCRIBE"):
            self._subscribers.add(writer)
            return [[name.lower(), channel, 1] for channel in arguments]
        if name == "AUTH":
            self.credentials.append(arguments)
        self.pings += name == "PING"
        self.asked_for_replicas += arguments[:1] == ["REPLICAS"]
        if name == "PING" and self.pong is None:
            return []
        service = arguments[-1] if arguments else ""
        return [
            {
                "AUTH": ValueError("WRONGPASS invalid username-password pair") if self.refuses_credentials else "OK",
                "PING": self.pong,
                "SENTINEL MYID": self.identity or ValueError("ERR Unknown subcommand"),
                "SENTINEL GET-MASTER-ADDR-BY-NAME": self.primary and [self.primary[0], str(self.primary[1])],
                "SENTINEL MASTER": ["name", service, "config-epoch", str(self.config_epoch)],
                "SENTINEL REPLICAS": [
                    _listed({"ip": host, "port": str(port), "flags": "slave", "master-link-status": "ok"} | fields)
                    for (host, port), fields in self.replicas.items()
                ],
                "SENTINEL SENTINELS": [
                    ["name", identity, "ip", host, "port", str(port), "runid", identity]
                    for identity, (host, port) in self.others.items()
                ],
            }[f"{name} {arguments[0]}" if name == "SENTINEL" else name]
        ]


class SharedAddress:
    """One address in front of several servers.

    Attributes:
        host: The host on which it listens.
        port: The port on which it listens.
        accepted: How many connections it has accepted.
    """

    def __init__(self, reached):
        # The server that each connection reaches.
        self._reached = iter(reached)
        self.host, self.port = "127.0.0.1", 0
        self.accepted = 0

    async def __aenter__(self):
        self._listening = listening(self._accept)
        self.host, self.port = await self._listening.__aenter__()
        return self

    async def __aexit__(self, *raised):
        await self._listening.__aexit__(None, None, None)

    async def _accept(self, reader, writer):
        self.accepted += 1
        server = next(self._reached)
        server_reader, server_writer = await asyncio.open_connection(server.host, server.port)
        await asyncio.gather(_forward(reader, server_writer), _forward(server_reader, writer))


async def _forward(reader, writer):
    with suppress(ConnectionError):
        while chunk := await reader.read(65536):
            writer.write(chunk)
    writer.transport.abort()


def _listed(fields):
    return [word for pair in fields.items() for word in pair]


def _packed(reply):
    match reply:
        case None:
            return b"*-1\r\n"
        case Exception():
            return b"-%s\r\n" % str(reply).encode()
        case int():
            return b":%d\r\n" % reply
        case list():
            return b"*%d\r\n" % len(reply) + b"".join(map(_packed, reply))
        case str():
            return b"$%d\r\n%s\r\n" % (len(reply.encode()), reply.encode())


@dataclass
class Writers:
    """What many callers have written that increment counters and append to lists, one call after the other.

    Attributes:
        acknowledged: How many writes to each key were acknowledged.
        failed: How many writes to each key have failed.
        errors: The texts of the failures.
        slowest: Seconds of the slowest write, whatever its outcome.
        outage: The longest time without an acknowledgement.
        max_lag: Seconds of the longest time that a PING of the primary took, because of either side.
    """

    acknowledged: Counter = field(default_factory=Counter)
    failed: Counter = field(default_factory=Counter)
    errors: Counter = field(default_factory=Counter)
    slowest: float = 0.0
    outage: float = 0.0
    max_lag: float = 0.0
    _started_at: float = 0.0
    _acknowledged_at: float = 0.0

    @classmethod
    @asynccontextmanager
    async def writing(cls, client, callers, per_second, primary):
        """Write in the block; leaving it waits for the writes in flight."""
        now, is_over = time.monotonic(), asyncio.Event()
        writers = cls(_started_at=now, _acknowledged_at=now)
        tasks = [
            asyncio.ensure_future(writers._write(client, number, callers / per_second, is_over))
            for number in range(callers)
        ]
        watching = asyncio.ensure_future(writers._watch_lag(primary))
        try:
            yield writers
        finally:
            watching.cancel()
            is_over.set()
            await asyncio.gather(*tasks)
            await asyncio.wait([watching])

    async def _write(self, client, number, pause, is_over):
        name = f"{'list' if number % 2 else 'counter'}:{number % 20}"
        while not is_over.is_set():
            started = time.monotonic()
            try:
                await (client.rpush(name, "x") if number % 2 else client.incr(name))
            except redis.exceptions.RedisError as error:
                self.failed[name] += 1
                self.errors[f"{type(error).__name__}: {error}"] += 1
            else:
                self.acknowledged[name] += 1
                self.outage = max(self.outage, time.monotonic() - self._acknowledged_at)
                self._acknowledged_at = time.monotonic()
            self.slowest = max(self.slowest, time.monotonic() - started)
            await asyncio.sleep(pause)

    async def _watch_lag(self, primary):
        reader, writer = await asyncio.open_connection(primary.host, primary.port)
        try:
            while True:
                before = time.monotonic()
                writer.write(b"PING\r\n")
                if not await reader.readline():
                    return
                self.max_lag = max(self.max_lag, time.monotonic() - before)
                await asyncio.sleep(0.005)
        except ConnectionError:
            pass  # it was killed
        finally:
            writer.close()

    def differences(self, server):
        """Return how many acknowledged writes a server lacks, and how many it has beyond all that were called."""
        lost = twice = 0
        for name in self.acknowledged.keys() | self.failed.keys():
            there = int((server.call("LLEN", name) if "list" in name else server.call("GET", name)) or 0)
            lost += max(0, self.acknowledged[name] - there)
            twice += max(0, there - self.acknowledged[name] - self.failed[name])
        return lost, twice

    def __str__(self):
        rate = self.acknowledged.total() / (self._acknowledged_at - self._started_at - self.outage)
        return (
            f"{self.acknowledged.total()} acknowledged, {rate:.0f} a second, "
            f"{self.failed.total()} failed {dict(self.errors)}, outage {self.outage:.2f} s, "
            f"slowest {self.slowest:.2f} s, PING took {self.max_lag:.3f} s at most"
        )


def reads_at(*servers):
    """Return how often each command that reads keys, or is a script, has run at the servers, all together."""
    counts = Counter()
    for server in servers:
        for name, calls in re.findall(r"cmdstat_(\S+?):calls=(\d+)", server.call("INFO", "commandstats")):
            info = TABLE.get(name.replace("|", " ").upper())
            # Those of sentinels, and what replicas apply, have no such flag.
            if name in {"eval", "evalsha"} or (info is not None and "readonly" in info.flags):
                counts[name] += int(calls)
    return counts

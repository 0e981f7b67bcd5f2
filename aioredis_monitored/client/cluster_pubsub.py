"""Subscriptions in a cluster: plain ones at any node, and those to shard channels at the nodes of their slots."""

import asyncio
import builtins
from asyncio import sleep  # see _execution/attempts.py
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Coroutine, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, cast

from opentelemetry.trace import Span
from redis.asyncio import Connection
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AskError, ClusterDownError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.typing import EncodableT
from redis.utils import str_if_bytes

from aioredis_monitored._execution.attempts import retry, retry_until_answered
from aioredis_monitored._multiplexer import AttemptFailed
from aioredis_monitored._redispy.overrides import TypedPubSub, deregister_connect_callback, register_connect_callback
from aioredis_monitored._telemetry.context import without_span
from aioredis_monitored._telemetry.recorder import PoolRecorder
from aioredis_monitored._topology.hash_slots import key_slot
from aioredis_monitored.client.pubsub import SUBSCRIBING, MonitoredPubSub
from aioredis_monitored.errors import PoolClosedError
from aioredis_monitored.pool.cluster import MonitoredClusterPool
from aioredis_monitored.pool.pool import MonitoredConnectionPool
from aioredis_monitored.pool.redirects import ClusterRoute, Redirects, is_redirect, note_failure
from aioredis_monitored.pool.retry import MAX_DELAY_SECONDS, exponential_backoff

# Seconds before the next attempt to subscribe at the node that a slot has moved to, after failures and after redirects:
# two nodes may redirect to each other until both know which of them has the slot.
_move_backoff = exponential_backoff(0.05, MAX_DELAY_SECONDS)


class _ShardChannels(MonitoredPubSub):
    """Subscriptions that know the slots of shard channels."""

    def _by_slot(self, channels: Iterable[Any]) -> dict[int, list[Any]]:
        slots: dict[int, list[Any]] = defaultdict(list)
        for channel in channels:
            slots[self._slot(channel)].append(channel)
        return slots

    def _slot(self, channel: Any) -> int:
        return key_slot(self.encoder.encode(channel))


class _NodeSubscriptions(_ShardChannels):
    """What is subscribed on one connection, which a task reads as soon as it is there.

    Args:
        cluster: The pool of the cluster.
        pool: That of the connection.
        arrived: Set when there is a response.
        arguments: Those of ``MonitoredPubSub``.

    Attributes:
        pool: That of the connection.
        responses: What was read, and errors; while there are any, nothing more is read.
        is_removed: Whether the node has left the cluster.
    """

    def __init__(
        self, cluster: MonitoredClusterPool, pool: MonitoredConnectionPool, arrived: asyncio.Event, **arguments: Any
    ) -> None:
        super().__init__(pool, **arguments)
        self.cluster = cluster
        self.pool = pool
        self.responses: deque[Any] = deque()
        self.is_removed = False
        self._arrived = arrived
        self._reading: asyncio.Task[None] | None = None

    def read(self) -> None:
        """Begin to read, unless that has begun, or a response is there.

        No task waits until that is taken: nothing would end it if the subscriptions were never closed.
        """
        is_reading = self._reading is not None and not self._reading.done()
        if not (is_reading or self.responses or self._closings):
            self._reading = asyncio.create_task(self._read_next(), context=without_span())

    async def _read_next(self) -> None:
        while self.connection is not None and not (self.is_removed or self.responses):
            try:
                response = self._sift(await self._read_or_fail(self.connection.health_check_interval))
            except Exception as error:  # noqa: BLE001 - the next call that takes a response raises it
                response = error
            if response is not None:
                self.add(response)

    async def _read_or_fail(self, interval: float) -> Any:
        """Return a response, or the error in place of one; ``None`` if none arrives in the interval."""
        try:
            return await self._next_response(not interval, interval)
        except RedisError as error:
            return error

    def _sift(self, response: Any) -> Any:
        """Return a response if it is for the caller, else ``None``."""
        return response

    def add(self, response: Any) -> None:
        """Add a response."""
        self.responses.append(response)
        self._arrived.set()

    def take(self) -> Any:
        """Return the first response, and read on."""
        response = self.responses.popleft()
        self.read()
        return response

    async def report(self, response: Any) -> None:
        """Report that everything is subscribed again, if this response is the last confirmation of that."""
        await self._report_reconnected(response)

    def is_busy(self) -> bool:
        """Whether a task connects or sends."""
        return self._lock.locked()

    def _backoff(self, failures: int) -> float:
        # Another node takes over in seconds.
        return min(super()._backoff(failures), MAX_DELAY_SECONDS)

    async def aclose(self) -> None:
        """End all subscriptions, and give the connection back."""
        if self._reading is not None:
            self._reading.cancel()
        await super().aclose()


class _PlainSubscriptions(_NodeSubscriptions):
    """Those to plain channels and patterns, which every node serves: a lost connection is replaced by one to any."""

    async def _reconnected(self, pool: MonitoredConnectionPool, lost: AbstractConnection) -> AbstractConnection:
        connection = await pool.acquire()
        deregister_connect_callback(lost, self.on_connect)
        self.connection = connection
        register_connect_callback(connection, self.on_connect)
        try:
            await super().connect()
            await self.on_connect(cast("Connection", connection))
        finally:
            await lost.disconnect(nowait=True)
            await pool.release(lost)
        return connection


class _ShardSubscriptions(_NodeSubscriptions):
    """Those to shard channels at one node, which ends them when their slot leaves it.

    Args:
        cluster: The pool of the cluster.
        pool: The node's.
        arrived: As for ``_NodeSubscriptions``.
        redirects: By slot, how often a node has redirected since one has confirmed a subscription.
        replace: Called when channels may be subscribed at another node.
        arguments: Those of ``MonitoredPubSub``.
    """

    def __init__(
        self,
        cluster: MonitoredClusterPool,
        pool: MonitoredConnectionPool,
        arrived: asyncio.Event,
        *,
        redirects: Counter[int],
        replace: Callable[[], None],
        **arguments: Any,
    ) -> None:
        super().__init__(cluster, pool, arrived, **arguments)
        self._redirects = redirects
        self._replace = replace
        # Of channels that were given up, messages may still be on their way.
        self._given_up: set[Any] = set()
        # How many confirmations are answers to SUNSUBSCRIBE: others say that a slot has left the node.
        self._ending: Counter[Any] = Counter()

    async def subscribe_shards(self, channels: Collection[Any], seconds: float | None, *, is_again: bool) -> None:
        """Subscribe to channels of one slot, in one attempt.

        Args:
            channels: The channels.
            seconds: How long it may take; ``None`` for no bound.
            is_again: Whether they were subscribed at another node.

        Raises:
            AttemptFailed: The attempt failed.
        """
        self._given_up.difference_update(channels)
        self.pending_unsubscribe_shard_channels.difference_update(channels)
        new = dict.fromkeys(each for each in channels if each not in self.shard_channels)
        # First, as a reply may be read before the sending task goes on.
        self.shard_channels.update(new)
        try:
            await self._send_once_to_node("SSUBSCRIBE", channels, seconds)
        except BaseException:
            self.give_up(new)
            raise
        if is_again:
            self._expect_confirmations(len(channels))

    async def unsubscribe_shards(self, channels: Collection[Any], seconds: float | None) -> None:
        """Unsubscribe from channels of one slot, in one attempt; the server confirms it also if there is none.

        Raises:
            AttemptFailed: The attempt failed.
        """
        self.pending_unsubscribe_shard_channels.update(channels)
        await self._end(channels, seconds)

    async def end_given_up(self, channels: Iterable[Any], seconds: float | None) -> None:
        """Unsubscribe from channels that were given up and are not subscribed again, without a response for the caller.

        If the attempt fails, they end with the connection, or their messages are dropped.
        """
        for names in self._by_slot(self._given_up.intersection(channels)).values():
            if self.connection is not None:
                with suppress(AttemptFailed):
                    await self._end(names, seconds)

    async def _end(self, channels: Collection[Any], seconds: float | None) -> None:
        self._ending.update(channels)
        try:
            await self._send_once_to_node("SUNSUBSCRIBE", channels, seconds)
        except BaseException:
            # It was not written, or the connection that it was written to is closed.
            self._ending -= Counter(channels)
            raise

    async def _send_once_to_node(self, command: str, channels: Iterable[Any], seconds: float | None) -> None:
        send = partial(TypedPubSub.execute_command, self, command, *channels)
        await self._send_once(self.pool, send, self._closings, seconds, 0)
        self.read()

    def give_up(self, channels: Iterable[Any]) -> None:
        """Forget channels that are subscribed elsewhere, or no more; their messages are dropped."""
        given_up = self.shard_channels.keys() & channels
        for channel in given_up:
            del self.shard_channels[channel]
        self._given_up |= given_up

    async def on_connect(self, connection: Connection) -> None:
        """Subscribe again; see ``MonitoredPubSub``."""
        ended = set(self.pending_unsubscribe_shard_channels)
        self._ending.clear()
        await super().on_connect(connection)
        self._confirm_ended(ended)

    async def _resubscribe_shard_channels(self) -> None:
        # A server takes those of one slot at a time.
        for channels in self._by_slot(self.shard_channels).values():
            await TypedPubSub.execute_command(self, "SSUBSCRIBE", *channels)

    def _confirm_ended(self, channels: Iterable[Any]) -> None:
        # The server does not: the subscription has ended with its connection, or with the slot.
        for channel in channels:
            self.add([b"sunsubscribe", channel, 0])

    def _sift(self, response: Any) -> Any:
        if isinstance(response, AskError):
            return self._follow(response)
        if isinstance(response, PoolClosedError) and is_redirect(self.cluster, response):
            self.is_removed = True
            self.give_up(list(self.shard_channels))
            self._replace()
            return None
        kind = str_if_bytes(response[0]) if isinstance(response, list) else None
        if kind == "smessage":
            return None if response[1] in self._given_up else response
        if kind == "ssubscribe":
            self._redirects.pop(self._slot(response[1]), None)
        return self._on_unsubscribed(response) if kind == "sunsubscribe" else response

    def _on_unsubscribed(self, response: list[Any]) -> list[Any] | None:
        """Return a confirmation if the caller has asked for it, else ``None``."""
        channel = response[1]
        is_answer = channel in self._ending
        self._ending -= Counter((channel,))
        self._given_up.discard(channel)
        if channel in self.pending_unsubscribe_shard_channels:
            self.pending_unsubscribe_shard_channels.discard(channel)
            self.shard_channels.pop(channel, None)
            return response
        if not is_answer and channel in self.shard_channels:
            # The slot has left the node.
            del self.shard_channels[channel]
            self._replace()
        return None

    def _follow(self, moved: AskError) -> None:
        """Leave a slot to the node that MOVED names."""
        Redirects(self.cluster, None).take(moved, self.pool)
        gone = self._by_slot(self.shard_channels).get(moved.slot_id, [])
        ended = self._by_slot(self.pending_unsubscribe_shard_channels).get(moved.slot_id, [])
        for channel in self._by_slot(self._ending).get(moved.slot_id, []):
            del self._ending[channel]
        self._redirects[moved.slot_id] += 1
        self._expect_confirmations(-len(gone))
        self.give_up(gone)
        self.pending_unsubscribe_shard_channels.difference_update(ended)
        self._confirm_ended(ended)
        self._replace()

    def _backoff(self, failures: int) -> float:
        self.cluster.cluster_topology.request_refresh(self.pool)
        return super()._backoff(failures)


class MonitoredClusterPubSub(_ShardChannels):
    """A ``MonitoredPubSub`` on the pool of a cluster; ``client.pubsub()`` makes it.

    Plain channels and patterns are subscribed at any node; when that is lost, at another one. A shard channel is
    subscribed at the node of its slot, with one connection for each such node; when the slot moves, or its node fails,
    at the slot's new node. Messages of all of these arrive through ``get_message``, ``listen`` and ``run``. What was
    published while a channel was subscribed nowhere is lost, which is logged and counted, and ``on_reconnect`` called,
    as on one server.

    Calls that subscribe to shard channels, or end that, wait for each other. If one that subscribes fails or is
    cancelled, none of its channels that are new stays subscribed.

    Args:
        connection_pool: The pool of the cluster.
        recorder: Where to record.
        server_span: As for ``MonitoredPubSub``.
        on_reconnect: As for ``MonitoredPubSub``; called once for each node at which subscriptions were renewed.
        arguments: Those of ``redis.asyncio.client.PubSub``.
    """

    def __init__(
        self,
        connection_pool: MonitoredClusterPool,
        *,
        recorder: PoolRecorder,
        server_span: Span | None = None,
        on_reconnect: Callable[[], object] | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(
            connection_pool, recorder=recorder, server_span=server_span, on_reconnect=on_reconnect, **arguments
        )
        self._cluster = connection_pool
        self._arguments = {**arguments, "recorder": recorder, "on_reconnect": on_reconnect, "encoder": self.encoder}
        # By their pools, in the order in which the next response is looked for.
        self._parts: dict[MonitoredConnectionPool, _NodeSubscriptions] = {}
        self._arrived = asyncio.Event()
        # The shard channels that are to be subscribed.
        self._wanted: set[Any] = set()
        # A call for shard channels waits until the one before it has ended: what fails is undone.
        self._turn = asyncio.Lock()
        # By slot: each subscribes the slot's channels at its new node.
        self._moving: dict[int, asyncio.Task[None]] = {}
        # By slot: how often a node has redirected since one has confirmed a subscription.
        self._redirects: Counter[int] = Counter()
        # They end what was subscribed by calls that have failed.
        self._undoing: set[asyncio.Task[None]] = set()
        # What is no longer used, until it is closed: whatever closes it may be cancelled before it has begun.
        self._leaving: set[_NodeSubscriptions] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._failure: Exception | None = None

    # Subscribing.

    async def connect(self) -> None:
        """Acquire a connection for plain channels, or replace a lost one."""
        plain = self._plain()
        await plain.connect()
        plain.read()

    async def execute_command(self, *args: EncodableT) -> None:
        """Send a command to the nodes of its shard channels, or to the one for plain channels."""
        name, *given = args
        channels, closings = self._normalized(given), self._closings
        if name == "SSUBSCRIBE":
            async with self._turn:
                await self._subscribe_shards(channels, closings)
        elif name == "SUNSUBSCRIBE":
            channels = channels or list(self.shard_channels)
            async with self._turn:
                await self._unsubscribe_shards(channels, closings)
        else:
            plain = self._plain()
            await plain.execute_command(*args)
            plain.read()

    def _normalized(self, channels: Iterable[EncodableT]) -> list[Any]:
        return [self.encoder.decode(self.encoder.encode(channel)) for channel in channels]

    def _plain(self) -> _NodeSubscriptions:
        plain = self._parts.get(self._cluster)
        if plain is None:
            plain = _PlainSubscriptions(self._cluster, self._cluster, self._arrived, **self._arguments)
            # One record of what is subscribed, and of what is ending, for both objects.
            plain.channels, plain.pending_unsubscribe_channels = self.channels, self.pending_unsubscribe_channels
            plain.patterns, plain.pending_unsubscribe_patterns = self.patterns, self.pending_unsubscribe_patterns
            self._parts[self._cluster] = plain
        return plain

    def _shards(self, pool: MonitoredConnectionPool) -> _ShardSubscriptions:
        part = self._parts.get(pool)
        if part is None:
            self._cluster.cluster_topology.observers.add(self)
            part = self._parts[pool] = _ShardSubscriptions(
                self._cluster,
                pool,
                self._arrived,
                redirects=self._redirects,
                replace=self.on_nodes_changed,
                **self._arguments,
            )
        return cast("_ShardSubscriptions", part)

    def _all_shards(self) -> list[_ShardSubscriptions]:
        return [part for part in self._parts.values() if isinstance(part, _ShardSubscriptions)]

    async def _subscribe_shards(self, channels: Collection[Any], closings: int) -> None:
        new = set(channels) - self._wanted
        try:
            await self._at_slots(channels, closings, self._subscribe_at)
        except BaseException:
            if closings == self._closings:
                self._wanted -= new
                self._give_up(new)
                _begin(self._undoing, self._end_given_up(new))
            raise

    async def _end_given_up(self, channels: Collection[Any]) -> None:
        async with self._turn:
            for part in self._all_shards():
                await part.end_given_up(channels, self._cluster.retry_policy.deadline)
        self.on_nodes_changed()

    async def _subscribe_at(self, part: _ShardSubscriptions, channels: Collection[Any], seconds: float | None) -> None:
        # Not earlier: a refresh in the meantime would subscribe them as well.
        new = set(channels) - self._wanted
        self._wanted |= new
        try:
            await part.subscribe_shards(channels, seconds, is_again=False)
        except BaseException:
            self._wanted -= new
            raise

    async def _unsubscribe_shards(self, channels: Collection[Any], closings: int) -> None:
        self._wanted.difference_update(channels)
        await self._at_slots(channels, closings, _ShardSubscriptions.unsubscribe_shards)

    async def _at_slots(self, channels: Collection[Any], closings: int, send: Callable[..., Any]) -> None:
        """Send a command for the channels of one slot after the other, at its node, with the retries of any call."""
        cluster = self._cluster

        async def attempt(route: ClusterRoute, names: Collection[Any], seconds: float | None, _losses: int) -> None:
            pool = await route.target()
            self._check_open(closings)
            part = self._shards(pool)
            self._give_up(names, but_at=part)
            await send(part, names, seconds)

        for slot, names in self._by_slot(channels).items():
            route = ClusterRoute(cluster, partial(cluster.pool_of_slot, slot), None)
            await retry(route, SUBSCRIBING, partial(attempt, route, names), 0, None)

    def _give_up(self, channels: Iterable[Any], *, but_at: _ShardSubscriptions | None = None) -> None:
        for part in self._all_shards():
            if part is not but_at:
                part.give_up(channels)

    # Following slots.

    def on_nodes_changed(self) -> None:
        """Subscribe the shard channels at the nodes that serve their slots now, and leave the others."""
        slots = self._cluster.cluster_topology.slots
        for slot, channels in self._by_slot(self._wanted).items():
            if slot not in self._moving and self._missing(slots[slot], channels):
                moving = asyncio.create_task(self._move(slot), context=without_span())
                self._moving[slot] = moving
                moving.add_done_callback(partial(self._on_moved, slot), context=without_span())
        for part in self._all_shards():
            is_needed = part.shard_channels or part.pending_unsubscribe_shard_channels or part.responses
            if not is_needed and not part.is_busy() and len(self._parts) > 1:
                self._leaving.add(self._parts.pop(part.pool))
                _begin(self._closing, self._leave(part))

    async def _leave(self, part: _NodeSubscriptions) -> None:
        try:
            await part.aclose()
        finally:
            self._leaving.discard(part)

    def _missing(self, pool: MonitoredConnectionPool | None, channels: Iterable[Any]) -> list[Any]:
        part = None if pool is None else self._parts.get(pool)
        return [channel for channel in channels if part is None or channel not in part.shard_channels]

    async def _move(self, slot: int) -> None:
        if (again := self._redirects[slot] - 1) > 0:
            await sleep(_move_backoff(again))
        await retry_until_answered(partial(self._move_once, slot), _move_backoff)

    async def _move_once(self, slot: int) -> None:
        self._cluster.check_open()
        topology = self._cluster.cluster_topology
        pool = topology.slots[slot]
        if pool is None:
            topology.request_refresh()
            message = f"no node serves the slot {slot}"
            raise ClusterDownError(message)
        if missing := self._missing(pool, self._by_slot(self._wanted).get(slot, [])):
            part = self._shards(pool)
            try:
                await part.subscribe_shards(missing, self._cluster.retry_policy.deadline, is_again=True)
            except AttemptFailed as failed:
                note_failure(self._cluster, failed.error, pool)
                if is_redirect(self._cluster, failed.error):
                    # The node was removed: the next attempt goes to another one.
                    raise RedisConnectionError(str(failed.error)) from failed
                raise failed.error from failed
            self._give_up(missing, but_at=part)

    def _on_moved(self, slot: int, moving: "asyncio.Task[None]") -> None:
        if self._moving.get(slot) is moving:
            del self._moving[slot]
        if moving.cancelled():
            return
        if isinstance(error := moving.exception(), Exception):
            self._failure = error
            self._arrived.set()
        else:
            # It may have moved on.
            self.on_nodes_changed()

    # Reading.

    async def parse_response(self, block: bool = True, timeout: float = 0) -> Any:  # noqa: ASYNC109 - redis-py's
        """Return the next response of any node, as redis-py does for one.

        Raises:
            ReplyDecodingError: The response is not in the connection's encoding; the subscriptions go on.
        """
        return await self._receive(self._parts.values, None if block else timeout)

    async def get_sharded_message(
        self,
        ignore_subscribe_messages: bool = False,
        timeout: float | None = 0.0,  # noqa: ASYNC109 - redis-py's
    ) -> dict[str, Any] | None:
        """Return the next message about shard channels; ``get_message`` returns those as well.

        Args:
            ignore_subscribe_messages: Whether confirmations are none; default ``False``.
            timeout: Seconds to wait; ``None`` for ever; default 0.
        """
        response = await self._receive(self._all_shards, timeout)
        if not response:
            return None
        return cast("dict[str, Any] | None", await self.handle_message(response, ignore_subscribe_messages))

    async def _receive(self, parts: Callable[[], Iterable[_NodeSubscriptions]], seconds: float | None) -> Any:
        if not self._parts and not self._wanted:
            # redis-py says what is missing.
            return await super().parse_response()
        part = None
        with suppress(builtins.TimeoutError):
            async with asyncio.timeout(seconds):
                part = await self._next_ready(parts)
        if part is None:
            return None
        response = part.take()
        # The others come first the next time.
        self._parts[part.pool] = self._parts.pop(part.pool)
        if isinstance(response, Exception):
            raise response
        await part.report(response)
        if not part.subscribed:
            self.on_nodes_changed()
        return response

    async def _next_ready(self, parts: Callable[[], Iterable[_NodeSubscriptions]]) -> _NodeSubscriptions | None:
        """Wait for a response; return ``None`` if all is closed meanwhile."""
        while self._parts or self._wanted:
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            for part in parts():
                if part.responses:
                    return part
            self._arrived.clear()
            await self._arrived.wait()
        return None

    async def _close(self) -> None:
        self._cluster.cluster_topology.observers.discard(self)
        for task in (*self._moving.values(), *self._undoing):
            task.cancel()
        self._leaving.update(self._parts.values())
        self._parts.clear()
        self._moving.clear()
        self._redirects.clear()
        self._wanted.clear()
        self._failure = None
        # Calls that wait see that it is closed.
        self._arrived.set()
        await asyncio.gather(*map(self._leave, self._leaving), return_exceptions=True)
        await super()._close()


def _begin(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(work, context=without_span())
    tasks.add(task)
    task.add_done_callback(tasks.discard)

"""The nodes of a cluster: a pool for each, which of them serves a slot, and the refreshes that keep this up to date."""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import Context
from itertools import count
from math import inf
from operator import itemgetter
from time import monotonic
from typing import Any, Final, NamedTuple, Protocol, cast
from weakref import WeakKeyDictionary, WeakSet, ref

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AskError, ClusterDownError, MovedError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from aioredis_monitored._multiplexer import AttemptFailed
from aioredis_monitored._redispy.connections import ClosingConnections
from aioredis_monitored._redispy.overrides import connect
from aioredis_monitored._timeouts import LATE_SECONDS, LagTolerantTimeout
from aioredis_monitored._topology.hash_slots import SLOTS
from aioredis_monitored._topology.slot_map import SlotMap, host_of
from aioredis_monitored.config.addresses import Address, address_text, is_ip_address
from aioredis_monitored.errors import copied
from aioredis_monitored.pool.names import addresses_of
from aioredis_monitored.pool.node_pool import ClosingPools
from aioredis_monitored.pool.pool import MonitoredConnectionPool
from aioredis_monitored.pool.replicas import SILENT_SECONDS, SuspectedServers
from aioredis_monitored.pool.retry import RetryPolicy, is_transient

_LOGGER: Final = logging.getLogger("aioredis_monitored.pool")
# So that clients that begin or fail at the same time spread their calls and refreshes.
_random: Final = random.Random()  # noqa: S311 - nothing secret

# The reply of a server that is no node of a cluster.
_NO_CLUSTER: Final = "cluster support disabled"
# In that of a sentinel.
_UNKNOWN: Final = "unknown command"
_NODE_TIMEOUT: Final = "cluster-node-timeout"
# What a refresh asks, and what the first one asks as well: in one round trip.
_QUERIES: Final = (("CLUSTER", "SLOTS"), ("CONFIG", "GET", _NODE_TIMEOUT))
# Between the beginnings of two refreshes, up to half as much again: clients that lose the same node must not all ask
# the others at once.
_MIN_INTERVAL_SECONDS: Final = 0.5
# How long one node may take to answer, and how long the first one may take before a further one is asked, too.
_ANSWER_SECONDS: Final = 1.0
_HEDGE_SECONDS: Final = 0.25
# How long asking the nodes that are known may take, however many there are, and as long asking the start nodes. Until a
# name of these is resolved, there is nothing to do but to wait, for the deadline of calls, or without one for so long.
_ASK_SECONDS: Final = 2 * _ANSWER_SECONDS
_RESOLVE_SECONDS: Final = 10.0
# How old what is known may be where a caller waits for what is newer.
_RECENT_SECONDS: Final = 1.0
# How often it is checked whether a node is silent.
_CHECK_SECONDS: Final = SILENT_SECONDS / 3
# How often a node is probed that a caller waits for on a connection of its own: a blocked call owes nothing for long.
_PROBE_SECONDS: Final = 1.0
# For how long a node stays known that another one has redirected to, and that has no slots yet.
_REDIRECTED_SECONDS: Final = 30.0


class PoolFactory(Protocol):
    """Makes pools and connections to nodes: the pool of the cluster."""

    name: str
    retry_policy: RetryPolicy

    def make_pool(self, address: Address, name: str | None) -> MonitoredConnectionPool:
        """Make the pool of a node, whose certificate is for ``name`` if that is given."""

    def make_connection_to(self, address: Address, name: str | None) -> AbstractConnection:
        """Make a connection to a node that belongs to no pool."""

    def closed_error(self) -> Exception:
        """Return the error of what is done after the end."""

    def on_refresh(self) -> None:
        """React to a refresh that begins."""

    def on_failovers(self, count: int) -> None:
        """React to primaries whose place replicas have taken since the refresh before."""

    def on_node_timeout(self, seconds: float) -> None:
        """Take the seconds of silence after which the cluster replaces a node; called once, if a node says it."""


class TopologyObserver(Protocol):
    """Learns when the nodes may have changed."""

    def on_nodes_changed(self) -> object:
        """React to a refresh that has succeeded."""


class _Candidate(NamedTuple):
    """A node that may be asked for the slot map.

    Attributes:
        address: Where it is.
        name: The name that its certificate is for; ``None`` for its host.
    """

    address: Address
    name: str | None


class ClusterTopology:
    """The nodes of one cluster, as the last refresh and the redirects since have shown them.

    A refresh asks for the slot map. It is done in the background, one at a time: at first use, when a node redirects,
    cannot be reached, or is silent, and regularly. The nodes that serve slots and their replicas are asked; when none
    of them names a node that serves slots, the start nodes are, whose names are resolved anew. Nodes without slots are
    not asked: one that a caller has named may be in no cluster, or in another one.

    Args:
        start_addresses: Those of the nodes that are asked first.
        factory: Makes pools and connections; it is referenced weakly.
        resolve: Maps an address that a node says to the one that is connected to.
        refresh_seconds: Seconds between two regular refreshes; 0 for none.
        verifies_names: Whether a node must prove its name with a certificate.

    Attributes:
        slots: The pool of the primary of each slot; ``None`` for a slot that is not served.
        primary_pools: The pools of the primaries, in the order in which they have become that.
        pools: The pools of all nodes that are known, by address.
        slot_map: What the last refresh has found.
        is_known: Whether a refresh has succeeded.
        is_closed: Whether the cluster's pool is closed.
        observers: Are called after each refresh that has succeeded; they are referenced weakly.
    """

    def __init__(
        self,
        start_addresses: Sequence[Address],
        factory: PoolFactory,
        resolve: Callable[[str, int], Address],
        refresh_seconds: float,
        *,
        verifies_names: bool,
    ) -> None:
        self._start_addresses = start_addresses
        self._factory = ref(factory)
        self._resolve = resolve
        self._refresh_seconds = refresh_seconds
        self._verifies_names = verifies_names
        self._has_asked_more = False
        # Those that were removed.
        self._closing = ClosingPools()
        # Those that refreshes have made.
        self._closing_connections = ClosingConnections()
        self.observers: WeakSet[TopologyObserver] = WeakSet()
        self._reset()

    def _reset(self) -> None:
        self.slots: list[MonitoredConnectionPool | None] = [None] * SLOTS
        self.primary_pools: list[MonitoredConnectionPool] = []
        self.pools: dict[Address, MonitoredConnectionPool] = {}
        self.is_known = False
        self._addresses: dict[MonitoredConnectionPool, Address] = {}
        # Numbers that are never given twice: to each pool, and apart from these to each that becomes a primary's.
        self._numbers: WeakKeyDictionary[MonitoredConnectionPool, int] = WeakKeyDictionary()
        self._primary_numbers: dict[MonitoredConnectionPool, int] = {}
        self._next_number, self._next_primary_number = count(1), count(1)
        self.slot_map = SlotMap(())
        self._replica_pools: dict[MonitoredConnectionPool | None, list[MonitoredConnectionPool]] = {}
        self._refreshing: asyncio.Task[None] | None = None
        self._refreshed_at = -_MIN_INTERVAL_SECONDS
        # The last error of the refresh that waiting does not change, such as a wrong password.
        self._refusal: RedisError | None = None
        # Where start nodes are or were, those whose names were resolved.
        self._start_places: set[Address] = set(self._start_addresses)
        # Why a node has not answered it.
        self._problem = ""
        self._suspected = SuspectedServers()
        self._redirected: dict[Address, float] = {}
        self._probed_at = 0.0
        self._probing: dict[MonitoredConnectionPool, asyncio.Task[bool]] = {}
        # Those that did not answer the last probe.
        self._silent: set[MonitoredConnectionPool] = set()
        # When primaries were found to be none any more.
        self._demoted: dict[MonitoredConnectionPool, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._was_late = False
        self.is_closed = False
        self._is_lost = False

    # Pools.

    def address_of(self, pool: MonitoredConnectionPool) -> Address:
        """Return the address of a pool's node, which was not removed."""
        return self._addresses[pool]

    def pool_at(self, address: Address) -> MonitoredConnectionPool:
        """Return the pool of the node at an address, which may not be known yet.

        Raises:
            PoolClosedError: The cluster's pool is closed.
        """
        pool = self.pools.get(address)
        if pool is None:
            factory = self._factory()
            if factory is None:
                raise RedisConnectionError("the pool of the cluster is gone")
            if self.is_closed:
                raise factory.closed_error()
            pool = self.pools[address] = factory.make_pool(address, self.slot_map.names.get(address))
            self._addresses[pool] = address
            self._numbers[pool] = next(self._next_number)
        return pool

    def visit(self, address: Address) -> MonitoredConnectionPool:
        """Return the pool of a node that a caller names; one without slots stays known for a while."""
        self._redirected[address] = monotonic()
        return self.pool_at(address)

    def number_of(self, pool: MonitoredConnectionPool) -> int | None:
        """Return the number of a pool; ``None`` if it is not of this cluster."""
        return self._numbers.get(pool)

    def pool_numbered(self, number: int) -> MonitoredConnectionPool | None:
        """Return the pool with a number; ``None`` if its node was removed."""
        return next((pool for pool in self.all_pools() if self._numbers.get(pool) == number), None)

    def primary_pool_from(self, number: int) -> tuple[int, MonitoredConnectionPool] | None:
        """Return the lowest number of a primary from this one on, and the pool; ``None`` if there is none."""
        following = ((each, pool) for pool, each in self._primary_numbers.items() if each >= number)
        return min(following, key=itemgetter(0), default=None)

    def all_pools(self) -> list[MonitoredConnectionPool]:
        """Return the pools of all nodes, also of those that are being closed; may be called in any thread."""
        # One that is removed meanwhile is in both.
        return list(dict.fromkeys((*self.pools.values(), *self._closing)))

    def replica_pool_of_slot(self, slot: int) -> MonitoredConnectionPool | None:
        """Return the pool of a random replica that serves a slot and answers; ``None`` if there is none."""
        return self._suspected.choose_replica(self._replica_pools.get(self.slots[slot], ()))

    def on_replica_failed(self, pool: MonitoredConnectionPool, error: Exception) -> None:
        """Take the error of a call at a replica; see ``SuspectedServers``."""
        # Of one that was removed, it says nothing about the one that may be at its address.
        if pool in self._addresses:
            self._suspected.on_replica_failed(pool, error)

    def is_replica(self, pool: MonitoredConnectionPool) -> bool:
        """Whether a node was a replica when the last refresh found it."""
        return any(pool in replicas for replicas in self._replica_pools.values())

    def known_pools(self) -> list[MonitoredConnectionPool]:
        """Return the pools of the nodes that the last refresh has found, the primaries first."""
        return [self.pool_at(each) for each in self.slot_map.addresses]

    def any_primary_pool(self) -> MonitoredConnectionPool:
        """Return the pool of a random primary, one that answers if there is one.

        Raises:
            AttemptFailed: No primary is known.
        """
        living = [pool for pool in self.primary_pools if self._addresses[pool] not in self._suspected]
        if not self.primary_pools:
            self.request_refresh()
            raise AttemptFailed(ClusterDownError("no node of the cluster serves a slot"), may_have_run=False)
        return _random.choice(living or self.primary_pools)

    # Redirects.

    def on_moved(self, error: MovedError, asked: MonitoredConnectionPool) -> None:
        """Take over the slot's new node, and request a refresh, unless the map says so already."""
        pool = self._redirected_pool(error, asked)
        if self.slots[error.slot_id] is not pool:
            self.slots[error.slot_id] = pool
            self.request_refresh()

    def on_ask(self, error: AskError, asked: MonitoredConnectionPool) -> MonitoredConnectionPool:
        """Return the pool of the node that a slot moves to."""
        return self._redirected_pool(error, asked)

    def _redirected_pool(self, error: AskError, asked: MonitoredConnectionPool) -> MonitoredConnectionPool:
        # It may be removed meanwhile.
        asked_host = asked.connection_kwargs["host"]
        address = self._resolve(host_of(error.host, asked_host), error.port)
        self._redirected[address] = monotonic()
        return self.pool_at(address)

    # Refreshing.

    async def known(self) -> None:
        """Return when the nodes are known, for which an attempt waits no longer than the deadline of calls.

        Raises:
            AttemptFailed: No node answers, or none in time, or one has refused this client.
        """
        if self.is_known:
            return
        refresh, factory = self._start_refresh(), self._factory()
        seconds = None if factory is None else factory.retry_policy.deadline
        failure: BaseException | None
        try:
            async with LagTolerantTimeout(seconds):
                # Not awaited itself: closing the pool cancels it, and not the calls that wait.
                await asyncio.wait([refresh])
        except TimeoutError:
            # The refresh before it may have ended with an error that explains more.
            failure = self._refusal or RedisTimeoutError(f"no answer in {seconds:g} s: {self._explanation()}")
        else:
            failure = RedisConnectionError("the nodes were not found") if refresh.cancelled() else refresh.exception()
        if failure is not None:
            raise AttemptFailed(copied(cast("Exception", failure)), may_have_run=False)

    async def refresh_unless_recent(self, ends_at: float | None) -> None:
        """Return when the nodes are known as they were at most a second ago, or none of them says which there are.

        Args:
            ends_at: Until when that is waited for, by the monotonic clock; ``None`` for any time.
        """
        if not self.is_closed and monotonic() - self._refreshed_at > _RECENT_SECONDS:
            seconds = None if ends_at is None else max(0.0, ends_at - monotonic())
            await asyncio.wait([self._start_refresh()], timeout=seconds)

    def request_refresh(self, suspected: MonitoredConnectionPool | None = None) -> None:
        """Refresh in the background, if that is not done already.

        Args:
            suspected: The pool of a node that did not answer; default ``None``.
        """
        if suspected is not None and suspected in self._addresses:
            self._suspected.add(self._addresses[suspected])
        if not self.is_closed:
            self._start_refresh()

    def _start_refresh(self) -> "asyncio.Task[None]":
        """Return the refresh that is under way, or begin one."""
        if self._refreshing is None:
            # In an empty context: no call has asked for it alone.
            self._refreshing = asyncio.get_running_loop().create_task(self._refresh_once(), context=Context())
            self._refreshing.add_done_callback(self._on_refresh_done, context=Context())
        return self._refreshing

    def _on_refresh_done(self, refresh: "asyncio.Task[None]") -> None:
        if refresh is self._refreshing:
            self._refreshing = None
        error = None if refresh.cancelled() else refresh.exception()
        if error is not None and not self._is_lost:
            # Once, and not with each refresh until one succeeds.
            _LOGGER.warning("%s: a topology refresh failed: %s", self._title(), error)
        self._is_lost = error is not None
        if self._timer is None and not self.is_closed:
            self._arm_timer()

    async def _refresh_once(self) -> None:
        wait = self._refreshed_at + _MIN_INTERVAL_SECONDS * (1 + _random.random() / 2) - monotonic()
        if wait > 0:
            await asyncio.sleep(wait)
        self._refreshed_at, self._refusal = monotonic(), None
        if (factory := self._factory()) is not None:
            factory.on_refresh()
        in_order = sorted(self._serving(), key=lambda each: (each in self._suspected, _random.random()))
        candidates = [_Candidate(address, self.slot_map.names.get(address)) for address in in_order]
        found = await self._ask(candidates) if candidates else None
        if found is None or not found.ranges:
            self._problem = self._problem or "its name is being resolved"
            found = await self._ask((), self._start_addresses) or found
        # A map without slots says nothing about those that are known: these may be at nodes that did not answer.
        if found is None or (self.slot_map.ranges and not found.ranges):
            raise self._refusal or RedisConnectionError(self._explanation())
        self._take(found)

    def _title(self) -> str:
        factory = self._factory()
        return "the pool of a cluster" if factory is None else f"pool {factory.name!r}"

    def _explanation(self) -> str:
        asked = ", ".join(address_text(*each) for each in self._start_addresses)
        others = len(self._serving() - self._start_places)
        return (
            f"no node of the cluster says which node serves which slots: asked {asked}"
            f"{f' and {others} others' if others else ''}; the last one: {self._problem or 'no answer yet'}"
        )

    def _serving(self) -> set[Address]:
        """Return the addresses of the nodes that the last refresh has found, and of those that serve slots since."""
        return {self._addresses[pool] for pool in set(self.slots) if pool is not None}.union(self.slot_map.addresses)

    async def _start_candidates(self, host: str, port: int) -> list[_Candidate]:
        """Return all addresses of a start node's name."""
        try:
            found = await addresses_of(host, port)
        except OSError as error:
            where = address_text(host, port)
            self._problem = f"{where}: {error}"
            if not self._is_lost:
                _LOGGER.warning("%s: the start node %s cannot be resolved: %s", self._title(), where, error)
            return []
        self._start_places.update(found)
        return [_Candidate(address, None if is_ip_address(host) else host) for address in found]

    async def _ask(self, candidates: Sequence[_Candidate], names: Sequence[Address] = ()) -> SlotMap | None:
        """Return the slot map of the first node that names one that serves slots.

        Without such a node, an empty map is returned if one has answered in time, or else ``None``. A further node is
        asked when one has not answered for a while: a frozen one takes connections.

        Args:
            candidates: Those to ask.
            names: Names whose addresses are asked as well, as soon as they are resolved; default none.
        """
        loop = asyncio.get_running_loop()
        waiting, asking = list(candidates), set[asyncio.Task[SlotMap | None]]()
        resolving = {asyncio.ensure_future(self._start_candidates(*each)) for each in names}
        is_due, empty = True, None
        try:
            async with asyncio.timeout(_ASK_SECONDS if waiting else self._resolve_seconds()) as limit:
                while waiting or asking or resolving:
                    if waiting and (is_due or not asking):
                        asking.add(asyncio.ensure_future(self._ask_one(waiting.pop(0))))
                    await asyncio.wait(
                        asking | resolving,
                        timeout=_HEDGE_SECONDS if waiting else None,
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                    for each in asking:
                        if each.done() and (found := each.result()) is not None:
                            if found.ranges:
                                return found
                            empty = found
                    resolved = {each for each in resolving if each.done()}
                    further = [candidate for each in resolved for candidate in each.result()]
                    if further and not waiting and not asking:
                        limit.reschedule(loop.time() + _ASK_SECONDS)
                    waiting += _random.sample(further, len(further))
                    is_due = not resolved
                    asking, resolving = {each for each in asking if not each.done()}, resolving - resolved
        except TimeoutError:
            pass
        finally:
            for task in (*asking, *resolving):
                task.cancel()
            if asking or resolving:
                # They close their connections.
                await asyncio.wait(asking | resolving)
        return empty

    def _resolve_seconds(self) -> float:
        factory = self._factory()
        deadline = None if factory is None else factory.retry_policy.deadline
        return _RESOLVE_SECONDS if deadline is None else deadline

    async def _ask_one(self, candidate: _Candidate) -> SlotMap | None:
        factory = self._factory()
        if factory is None:
            return None
        address, name = candidate
        connection = factory.make_connection_to(address, name)
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await connect(connection)
                asks_more = not self._has_asked_more
                await connection.send_packed_command(connection.pack_commands(_QUERIES[: 1 + asks_more]))
                found = SlotMap.parse(await connection.read_response(), address[0], self._resolve)
                if asks_more and not self._has_asked_more:
                    self._has_asked_more = True
                    with suppress(ResponseError, ValueError):  # the user may not ask that, or the server not say it
                        factory.on_node_timeout(_node_timeout(await connection.read_response()))
        except Exception as error:  # noqa: BLE001 - whatever has happened at one node, others may answer
            if isinstance(error, ResponseError) and str(error).endswith(_NO_CLUSTER):
                error = ResponseError(f"{error}: use redis:// or rediss://, the forms for a single server")
            elif isinstance(error, ResponseError) and _UNKNOWN in str(error):
                error = ResponseError(
                    f"{error}; it is no node: of sentinels, use redis+sentinel:// or rediss+sentinel://"
                )
            self._problem = f"{address_text(*address)}: {str(error) or type(error).__qualname__}"
            self._suspected.add(address)
            if isinstance(error, RedisError) and not is_transient(error):
                error.args = (self._problem, *error.args[1:])
                self._refusal = error
            return None
        finally:
            # What was asked is answered, and callers wait for it.
            await self._closing_connections.close(connection)
        self._suspected.discard(address)
        if not found.ranges:
            self._problem = f"{address_text(*address)}: it knows no node that serves a slot"
        # The certificate of a node that does not say what it is called is for the name that was connected to.
        return found if name is None else found.with_name(address[0], name)

    def _take(self, found: SlotMap) -> None:
        """Replace the map; nodes that are no primaries any more are left, and unknown ones closed."""
        if (factory := self._factory()) is not None:
            factory.on_failovers(self.slot_map.failovers_until(found))
        before, names = self.primary_pools, self.slot_map.names
        self.slot_map, self.is_known, self._problem = found, True, ""
        if self._verifies_names:
            for address in list(self.pools):
                # It was found by a redirect, which does not say what the node is called.
                if found.names.get(address) != names.get(address):
                    self._remove(address)
        pools = {address: self.pool_at(address) for address in found.addresses}
        slots: list[MonitoredConnectionPool | None] = [None] * SLOTS
        for each in found.ranges:
            slots[each.first : each.last + 1] = [pools[each.primary]] * (each.last - each.first + 1)
        self.slots = slots
        self._replica_pools = {
            pools[each]: [pools[address] for address in found.replicas[each]] for each in found.primaries
        }
        primary_pools = [pools[address] for address in found.primaries]
        self.primary_pools = [each for each in before if each in primary_pools] + [
            each for each in primary_pools if each not in before
        ]
        numbers = self._primary_numbers
        self._primary_numbers = {
            each: numbers.get(each) or next(self._next_primary_number) for each in self.primary_pools
        }
        demoted = self._demoted | dict.fromkeys(set(before).difference(primary_pools), monotonic())
        self._demoted = {pool: at for pool, at in demoted.items() if pool not in primary_pools}
        self._leave_silent()
        since = monotonic() - _REDIRECTED_SECONDS
        for address in self.pools.keys() - pools.keys():
            if self._redirected.get(address, -inf) < since:
                self._remove(address)
        for observer in list(self.observers):
            observer.on_nodes_changed()

    def _remove(self, address: Address) -> None:
        pool = self.pools[address]
        self._closing.close(pool)
        del self.pools[address], self._addresses[pool]
        self._redirected.pop(address, None)
        self._suspected.forget(address)
        self._silent.discard(pool)
        self._demoted.pop(pool, None)

    # Silent nodes.

    def _arm_timer(self, seconds: float = _CHECK_SECONDS) -> None:
        loop = asyncio.get_running_loop()
        when = loop.time() + seconds
        self._timer = loop.call_at(when, _check_regularly, ref(self), when, context=Context())

    def check(self, when: float) -> None:
        """Refresh if a node is silent, or the last refresh is long ago; leave demoted nodes that are silent.

        Args:
            when: When the check was due, by the event loop's clock.
        """
        self._timer = None
        if asyncio.get_running_loop().time() - when > LATE_SECONDS and not self._was_late:
            # What has arrived while the event loop was busy is read first.
            self._was_late = True
            self._arm_timer(LATE_SECONDS)
            return
        self._was_late = False
        for pool in self.known_pools():
            if pool.silent_seconds() > SILENT_SECONDS:
                self.request_refresh(pool)
        if self._refresh_seconds and monotonic() - self._refreshed_at > self._refresh_seconds:
            self.request_refresh()
        if monotonic() - self._probed_at > _PROBE_SECONDS:
            self._probed_at = monotonic()
            for pool in self.pools.values():
                if pool.is_dedicated_in_use and pool not in self._probing:
                    self._probe(pool)
        self._leave_silent()
        self._arm_timer()

    def _probe(self, pool: MonitoredConnectionPool) -> None:
        """Refresh if a node that owes nothing does not answer a PING, either."""
        probing = asyncio.get_running_loop().create_task(pool.answers_within(SILENT_SECONDS), context=Context())
        self._probing[pool] = probing

        def on_done(task: "asyncio.Task[bool]") -> None:
            self._probing.pop(pool, None)
            if task.cancelled() or self.is_closed:
                return
            if task.result():
                self._silent.discard(pool)
            else:
                self._silent.add(pool)
                self._leave_silent()
                self.request_refresh(pool)

        probing.add_done_callback(on_done, context=Context())

    def _leave_silent(self) -> None:
        """Close the connections to nodes that were demoted and are silent: they owe replies, or answer no probe.

        A node that was demoted while it can be reached answers what it owes, with redirects. What it was asked later is
        as with any node.
        """
        now = monotonic()
        for pool, at in self._demoted.items():
            seconds = max(SILENT_SECONDS / 2, now - at)
            if pool.silent_seconds() > seconds:
                pool.close_silent(seconds)
            if pool in self._silent:
                pool.close_dedicated()

    # Closing.

    async def aclose(self) -> None:
        """Stop refreshing, close the pools of all nodes, and forget them.

        Raises:
            redis.exceptions.RedisError: One of them cannot be closed.
        """
        ending = self._stop()
        if ending:
            await asyncio.wait(ending)
        try:
            await self._closing.aclose()
        finally:
            await self._closing_connections.wait_closed()

    def detach_connections(self) -> list[AbstractConnection]:
        """Stop refreshing, and forget all nodes; return the connections to them, which are not closed by this."""
        self._stop()
        return self._closing.detach_connections()

    def _stop(self) -> list[asyncio.Task[Any]]:
        """Stop refreshing, and forget all nodes but their pools; return the tasks that are about to end."""
        if self._timer is not None:
            self._timer.cancel()
        refreshing = () if self._refreshing is None else (self._refreshing,)
        background: list[asyncio.Task[Any]] = [*refreshing, *self._probing.values()]
        # Those of an event loop that is closed have ended with it.
        cancelled = [each for each in background if not each.get_loop().is_closed()]
        for each in cancelled:
            each.cancel()
        self._closing.add(self.pools.values())
        self._reset()
        self.is_closed = True
        return cancelled

    def open(self) -> None:
        """Refresh again, at next use."""
        self.is_closed = False


def _node_timeout(reply: Any) -> float:
    """Return the seconds that CONFIG GET has replied, which is a list in RESP2, and a map in RESP3."""
    *_, milliseconds = reply.values() if isinstance(reply, dict) else reply
    return int(milliseconds) / 1000


def _check_regularly(topology: "ref[ClusterTopology]", when: float) -> None:
    # A weak reference: the event loop must not keep a forgotten pool alive.
    if (living := topology()) is not None:
        living.check(when)

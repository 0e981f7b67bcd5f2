"""Commands in a cluster: which node each goes to, and what several nodes reply to one command."""

from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from inspect import isawaitable
from time import monotonic
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from aioredis_monitored._commands.table import MAX_WORD_LENGTH, argument_text, operation_name, parse_command
from aioredis_monitored._commands.traits import blocking_timeout, traits_of
from aioredis_monitored._execution.attempts import Attempt, retry
from aioredis_monitored._execution.replicas import ReplicaExecutor
from aioredis_monitored._execution.routing import NOT_FOR_PARSING, CommandExecutor, apply_callback
from aioredis_monitored._execution.scatter import Scatter, nodes_known
from aioredis_monitored._execution.targets import TARGET_NODES, resolve_targets
from aioredis_monitored._redispy.cluster import join_replies
from aioredis_monitored._redispy.overrides import EMPTY_RESPONSE, NEVER_DECODE
from aioredis_monitored._telemetry.operation import Observer
from aioredis_monitored._topology.hash_slots import key_slot
from aioredis_monitored._topology.placement import FIRST_KEY, Kind, may_read_from_replica, placement_of, routing_error
from aioredis_monitored.errors import ClusterRoutingError, decoding_error
from aioredis_monitored.pool.cluster import MonitoredClusterPool
from aioredis_monitored.pool.pool import MonitoredConnectionPool
from aioredis_monitored.pool.redirects import ClusterRoute
from aioredis_monitored.pool.replicas import seconds_at_replica
from aioredis_monitored.pool.routes import FailureRoute
from aioredis_monitored.pool.topology import ClusterTopology

# The bits of SCAN's cursor that name the node; the server's own cursor stands above them. A million nodes may become
# primaries while a pool lives.
_CURSOR_NODE_BITS: Final = 20
# The bits of a client's id that are the server's; those above them name the node. A server counts from 1 on.
_CLIENT_ID_BITS: Final = 48
# Commands that name a client by its id, and those of their options that have no value.
_NAMES_CLIENTS: Final = frozenset({"CLIENT KILL", "CLIENT LIST", "CLIENT TRACKING", "CLIENT UNBLOCK"})
_CLIENT_FLAGS: Final = frozenset({"ON", "OFF", "BCAST", "OPTIN", "OPTOUT", "NOLOOP"})  # codespell:ignore
# What means the same on a handle as on its client.
_OF_THE_CLUSTER: Final = frozenset({Kind.SPLIT, Kind.ALL_PRIMARIES, Kind.ALL_NODES, Kind.CURSOR})
_ONE_NODE: Final = frozenset({Kind.SLOT, Kind.ANY})
_SEVERAL_NODES: Final = frozenset({Kind.SPLIT, Kind.ALL_PRIMARIES, Kind.ALL_NODES})


class ClusterExecutor(ReplicaExecutor):
    """Executes the commands of one client on a ``MonitoredClusterPool``; see ``CommandExecutor``."""

    __slots__ = ()

    pool: MonitoredClusterPool

    def execute(
        self,
        caller: Redis,
        pool: MonitoredConnectionPool,  # noqa: ARG002 - the client's own, whose class is known
        args: tuple[Any, ...],
        options: dict[str, Any],
        observer: Observer | None = None,
        seconds: float | None = None,
        losses: int | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """Execute one command at the node of its keys, or at those that it is for; see ``CommandExecutor``.

        It chooses the node of most commands and is no coroutine itself, as each one costs a call some 3 %.
        """
        if options and (targets := options.pop(TARGET_NODES, None)) is not None:
            return self._execute_at(caller, targets, args, options, observer)
        if len(args) > 1 and type(name := args[0]) is str and name in FIRST_KEY:
            chosen = self.pool.cluster_topology.slots[key_slot(args[1])]
            if chosen is not None and not (self.reads_replicas and may_read_from_replica(args)):
                if observer is not None:
                    observer.set_server(chosen.telemetry.server)
                # In Python 3.11, super() would take another tenth of a microsecond.
                return CommandExecutor.execute(self, caller, chosen, args, options, observer, seconds, losses)
        return self._execute_placed(caller, args, options, observer)

    def _further_attempts(
        self,
        caller: Redis,
        pool: MonitoredConnectionPool,
        args: tuple[Any, ...],
        options: dict[str, Any],
        observer: Observer | None,
    ) -> tuple[FailureRoute, Attempt[Any]]:
        route = ClusterRoute(self.pool, partial(self.pool.of, args), observer, pool=pool)
        return route, partial(self._attempt, caller, route, args, options, observer)

    async def _attempt(
        self,
        caller: Redis,
        route: ClusterRoute,
        args: tuple[Any, ...],
        options: dict[str, Any],
        observer: Observer | None,
        seconds: float | None,
        losses: int,
    ) -> Any:
        pool = await route.target()
        return await super().execute(caller, pool, args, options, observer, seconds, losses)

    async def _execute_placed(
        self,
        caller: Redis,
        args: tuple[Any, ...],
        options: dict[str, Any],
        observer: Observer | None,
    ) -> Any:
        cluster, placement = self.pool, placement_of(args)
        reads = self.reads_replicas and may_read_from_replica(args)
        if placement.kind in _ONE_NODE:
            if placement.slot is not None and reads:
                if not cluster.cluster_topology.is_known:
                    await nodes_known(cluster, observer, needs_primary=False)
                if (replica := cluster.choose_replica(placement.slot)) is not None:
                    seconds = seconds_at_replica(cluster.retry_policy)
                    return await self._read(caller, replica, args, options, observer, seconds)
            choose: Callable[[], MonitoredConnectionPool] = partial(cluster.of, args)
            if placement.slot is not None and placement.kind is Kind.ANY:
                choose = partial(cluster.pool_near_slot, placement.slot)
            route = ClusterRoute(cluster, choose, observer)
            attempt = partial(self._attempt, caller, route, args, options, observer)
            return await retry(route, traits_of(args), attempt, blocking_timeout(args) or 0, observer)
        if placement.kind is Kind.CURSOR:
            reply = await _scan(cluster, args, observer)
        elif placement.kind in _SEVERAL_NODES:
            (reply,) = await Scatter(cluster, [args], observer, reads_replicas=reads).run()
        elif (found := _client_of(cluster, args)) is not None:
            pool, command = found
            (reply,) = await Scatter(cluster, [command], observer, [pool]).run()
        else:
            raise routing_error(args, placement)
        return await _parse(caller, cluster, args, options, reply)

    async def connect(self, caller: Redis) -> None:  # noqa: ARG002 - the interface
        """Find the nodes of the cluster: a client that keeps to one connection gets it by its first key."""
        await nodes_known(self.pool, None, needs_primary=False)

    async def _execute_at(
        self,
        caller: Redis,
        targets: object,
        args: tuple[Any, ...],
        options: dict[str, Any],
        observer: Observer | None,
    ) -> Any:
        """Execute one command at the nodes that the caller names, at all of them at the same time.

        Returns:
            What redis-py does: the reply of a single node, and else a dictionary of replies by the names of the nodes,
            unless redis-py makes one value of the replies to that command.

        Raises:
            redis.exceptions.RedisError: That of the first node that has failed.
        """
        cluster = self.pool
        nodes = await resolve_targets(cluster, targets, observer)
        pools = [cluster.pool_of(node) for node in nodes]
        found = _client_of(cluster, args)
        commands = [args if found is None or found[0] is not pool else found[1] for pool in pools]
        replies = await Scatter(cluster, commands, observer, pools).run()
        parsed = [await _parse(caller, cluster, args, options, reply) for reply in replies]
        named = {node.name: reply for node, reply in zip(nodes, parsed, strict=True)}
        for_parsing = {option: value for option, value in options.items() if option not in NOT_FOR_PARSING}
        return join_replies(parse_command(args).name.upper(), named, for_parsing)

    async def execute_dedicated(
        self, caller: Redis, args: tuple[Any, ...], options: dict[str, Any], observer: Observer | None
    ) -> Any:
        """Execute one command on the pinned connection, or else on any dedicated one; see ``CommandExecutor``.

        Of CLIENT ID, the reply names the node as well, as ids repeat across nodes.
        """
        cluster = self.pool
        if (targets := options.pop(TARGET_NODES, None)) is not None:
            if self.pin is not None:
                raise ClusterRoutingError(
                    "a handle keeps to the node of its first key: use target_nodes= on the client that made it"
                )
            return await self._execute_at(caller, targets, args, options, observer)
        if self.pin is not None and (found := _client_of(cluster, args)) is not None:
            pool, command = found
            if command[0] == "CLIENT TRACKING":
                if caller.connection is None or not pool.is_acquired(caller.connection):
                    raise ClusterRoutingError(
                        f"REDIRECT names a client at {pool.name}, and this handle keeps to no connection there: call a "
                        f"command with the same key on both handles first"
                    )
                return await super().execute_dedicated(caller, command, options, observer)
            (reply,) = await Scatter(cluster, [command], observer, [pool]).run()
            return await _parse(caller, cluster, args, options, reply)
        if self.pin is not None and placement_of(args).kind in _OF_THE_CLUSTER:
            if caller.connection is not None and cluster.will_discard(caller.connection):
                raise ClusterRoutingError(
                    f"{operation_name(args).upper()} concerns several nodes, and this handle has altered its "
                    f"connection to one of them: use the client that made it"
                )
            return await self._execute_placed(caller, args, options, observer)
        reply = await super().execute_dedicated(caller, args, options, observer)
        if self.pin is not None and isinstance(reply, int) and parse_command(args).name.upper() == "CLIENT ID":
            self.pin.is_identified = True
            number = cluster.owner_number(caller.connection)
            return reply if number is None else number << _CLIENT_ID_BITS | reply
        return reply


async def _parse(
    caller: Redis, cluster: MonitoredClusterPool, args: tuple[Any, ...], options: dict[str, Any], reply: Any
) -> Any:
    """Return what several nodes have replied as redis-py's callbacks parse it, or raise the error."""
    if isinstance(reply, Exception):
        if EMPTY_RESPONSE in options and isinstance(reply, ResponseError):
            return options[EMPTY_RESPONSE]
        raise reply
    try:
        if NEVER_DECODE not in options:
            reply = cluster.decode_reply(reply)
        callbacks: Any = caller.response_callbacks
        callback = dict.get(callbacks, args[0].upper())
        if callback is None:
            return reply
        parsed = apply_callback(callback, reply, options)
        return await parsed if isawaitable(parsed) else parsed
    except UnicodeDecodeError as error:
        raise decoding_error(error) from None


async def _scan(cluster: MonitoredClusterPool, args: tuple[Any, ...], observer: Observer | None) -> Any:
    """Scan one primary after the other; the cursor's lowest bits name the one that comes next.

    A node that becomes a primary while a scan goes on is scanned at its end: its keys may have been at one that was not
    scanned to the end.
    """
    topology, deadline = cluster.cluster_topology, cluster.retry_policy.deadline
    ends_at = None if deadline is None else monotonic() + deadline
    await nodes_known(cluster, observer)
    given, *rest = parse_command(args).arguments or [""]
    text = argument_text(given, MAX_WORD_LENGTH)
    if not _is_number(text):
        # The server says what is wrong with it.
        (reply,) = await Scatter(cluster, [args], observer, [topology.any_primary_pool()]).run()
        return reply
    cursor, number = divmod(int(text), 1 << _CURSOR_NODE_BITS)
    while (found := topology.primary_pool_from(number)) is not None:
        at, pool = found
        command = ("SCAN", cursor if at == number else 0, *rest)
        is_current = partial(_is_primary_from, topology, number, found)
        (reply,) = await Scatter(cluster, [command], observer, [pool], has_nodes=is_current).run()
        if isinstance(reply, RedisConnectionError | RedisTimeoutError) and not is_current():
            # It was replaced meanwhile.
            number, cursor = at, 0
            continue
        if isinstance(reply, Exception):
            return reply
        cursor, keys = int(reply[0]), reply[1]
        if not cursor:
            following = topology.primary_pool_from(at + 1)
            if following is None:
                # Keys that were not seen yet may have moved to a node that is new.
                await topology.refresh_unless_recent(ends_at)
                following = topology.primary_pool_from(at + 1)
            at = 0 if following is None else following[0]
        return [b"%d" % (cursor << _CURSOR_NODE_BITS | at), keys]
    return [b"0", []]


def _is_primary_from(topology: ClusterTopology, number: int, found: tuple[int, MonitoredConnectionPool]) -> bool:
    """Whether ``found`` is still the first primary from a number on."""
    return topology.primary_pool_from(number) == found


def _client_of(
    cluster: MonitoredClusterPool, args: Sequence[Any]
) -> tuple[MonitoredConnectionPool, tuple[Any, ...]] | None:
    """Return the pool of the node of the client that a command names by its id, and the command with the node's id.

    ``None`` of a command that names none, and of ids that no ``client_id()`` of this pool has returned.

    Raises:
        ClusterRoutingError: It names clients of several nodes.
    """
    call = parse_command(args)
    name, arguments = call.name.upper(), list(call.arguments)
    if name not in _NAMES_CLIENTS:
        return None
    words = [argument_text(each, MAX_WORD_LENGTH).upper() for each in arguments]
    pools: list[MonitoredConnectionPool] = []
    for position in [0] if name == "CLIENT UNBLOCK" else _id_positions(words):
        if not _is_number(words[position]):
            return None
        number, arguments[position] = divmod(int(words[position]), 1 << _CLIENT_ID_BITS)
        if (pool := cluster.pool_numbered(number)) is None:
            return None
        pools.append(pool)
    if len(set(pools)) > 1:
        raise ClusterRoutingError(f"{name} names clients of several nodes: make a call for each of them")
    return (pools[0], (name, *arguments)) if pools else None


def _id_positions(words: Sequence[str]) -> Iterator[int]:
    """Yield where the ids are among the words of a CLIENT command that has options."""
    position = 0
    while position < len(words):
        option = words[position]
        position += 1
        if option in {"ID", "REDIRECT"}:
            while position < len(words) and _is_number(words[position]):
                yield position
                position += 1
        elif option not in _CLIENT_FLAGS:
            # Its value may be any word.
            position += 1


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit()

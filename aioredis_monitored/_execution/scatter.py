"""Commands that go to several nodes of a cluster: pipelines, commands that are split, and commands for all nodes."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, cast

from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from aioredis_monitored._commands.traits import Traits, blocking_timeout, traits_of_batch
from aioredis_monitored._execution.attempts import (
    dedicated_attempt,
    dedicated_connection,
    leave_refusing_server,
    reject_write_counting,
    retry,
)
from aioredis_monitored._execution.pinned import discard_if_altered
from aioredis_monitored._multiplexer import ISOLATE_AFTER, AttemptFailed, BatchFuture
from aioredis_monitored._telemetry.operation import Observer
from aioredis_monitored._topology.placement import Kind, Part, Placement, combine, placement_of, routing_error, split
from aioredis_monitored.errors import PoolClosedError
from aioredis_monitored.pool.cluster import MonitoredClusterPool
from aioredis_monitored.pool.pool import MonitoredConnectionPool
from aioredis_monitored.pool.redirects import Redirects, is_redirect, note_failure
from aioredis_monitored.pool.retry import RetryPolicy

_ASKING: Final = ("ASKING",)
# What is pending is retried only if it is safe to: the loop over attempts need not ask.
_PENDING: Final = Traits(shareable=True, alters_connection=False, retry_safe=True, runs_code=False)


# What a node answers that does not serve now, and has not run the command.
_NOT_NOW = (BusyLoadingError, ClusterDownError, MasterDownError, ReadOnlyError, TryAgainError)
_NEEDS_NODES = frozenset({Kind.ALL_PRIMARIES, Kind.ALL_NODES})


class _Command:
    """A command that goes to one node, and its reply when there is one.

    Args:
        args: The command.
        choose: Returns the node that it goes to now.
    """

    __slots__ = ("args", "choose", "importing", "is_pending", "reply")

    def __init__(self, args: tuple[Any, ...], choose: Callable[[], MonitoredConnectionPool]) -> None:
        self.args = args
        self.choose = choose
        self.importing: MonitoredConnectionPool | None = None
        self.is_pending = True
        self.reply: Any = None

    def settle(self, reply: Any) -> None:
        """Set the reply, or the error in its place."""
        self.is_pending, self.reply = False, reply


class _Expanded(NamedTuple):
    """What one command of the caller has become.

    Attributes:
        commands: Those that are sent, each to one node.
        placement: Says how their replies are combined; ``None`` if there is one of them, or none.
        parts: What the command was split into.
    """

    commands: list[_Command]
    placement: Placement | None = None
    parts: Sequence[Part] = ()

    def reply(self) -> Any:
        """Return the reply to the caller's command, or its error."""
        replies = [each.reply for each in self.commands]
        return replies[0] if self.placement is None else combine(self.placement, replies, self.parts)


class Scatter:
    """One call whose commands go to several nodes: those for a node in one piece, to all nodes at the same time.

    Commands in one slot keep their order. What a node redirects did not run, and is sent again, to the node that it
    names. The commands that were sent to a node whose connection broke are sent again as a whole, if none of them ran
    for certain, or running all twice does no harm; otherwise the error takes the place of their replies.

    It is the route of the call: see ``Route``.

    Args:
        cluster: The pool.
        commands: The commands.
        observer: Is given the node, if there is only one; ``None`` for none.
        nodes: The node that each of the commands goes to first, ``None`` for that of its placement; default: each goes
            to that.
    """

    def __init__(
        self,
        cluster: MonitoredClusterPool,
        commands: Iterable[tuple[Any, ...]],
        observer: Observer | None,
        nodes: Sequence[MonitoredConnectionPool | None] = (),
    ) -> None:
        self._cluster = cluster
        self._given = list(commands)
        self._observer = observer
        self._nodes = nodes or [None] * len(self._given)
        self._expanded: list[_Expanded] = []
        self._commands: list[_Command] = []
        self._redirects = Redirects(cluster, observer)
        self._is_redirected = False
        self._last: MonitoredConnectionPool | None = None

    async def run(self, seconds: float | None = None) -> list[Any]:
        """Send the commands, and return their replies, as hiredis has parsed them; errors are values.

        Args:
            seconds: How long it may take; default ``None``, for no bound but each attempt's.
        """
        wait = sum(blocking_timeout(args) or 0 for args in self._given)
        try:
            await self._prepare()
            await retry(self, _PENDING, self._attempt, wait, self._observer)
        except RedisError as error:
            for each in self._commands:
                if each.is_pending:
                    each.settle(error)
            if not self._expanded:
                raise
        return [each.reply() for each in self._expanded]

    async def _prepare(self) -> None:
        """Find out what is sent where; a command that goes to no node fails alone."""
        if any(placement_of(args).kind in _NEEDS_NODES for args in self._given):
            await find_nodes(self._cluster, self._observer)
        self._expanded = [self._expand(args, node) for args, node in zip(self._given, self._nodes, strict=True)]
        self._commands = [each for expanded in self._expanded for each in expanded.commands]

    def _expand(self, args: tuple[Any, ...], node: MonitoredConnectionPool | None) -> _Expanded:
        if node is not None:
            return _Expanded([_Command(args, partial(_this, node))])
        placement, topology = placement_of(args), self._cluster.cluster_topology
        match placement.kind:
            case Kind.SLOT:
                return _Expanded([self._at_slot(args, cast("int", placement.slot))])
            case Kind.ANY:
                return _Expanded([_Command(args, topology.any_primary)])
            case Kind.SPLIT:
                parts = split(args)
                return _Expanded([self._at_slot(part.args, part.slot) for part in parts], placement, parts)
            case Kind.ALL_PRIMARIES:
                return _Expanded([_Command(args, partial(_this, node)) for node in topology.primaries], placement)
            case Kind.ALL_NODES:
                return _Expanded([_Command(args, partial(_this, node)) for node in topology.known_nodes()], placement)
        refused = _Command(args, topology.any_primary)
        refused.settle(routing_error(args, placement))
        return _Expanded([refused])

    def _at_slot(self, args: tuple[Any, ...], slot: int) -> _Command:
        return _Command(args, partial(self._cluster.node_of_slot, slot))

    # The route.

    @property
    def retry_policy(self) -> RetryPolicy:
        """That of the cluster's pool."""
        return self._cluster.retry_policy

    def is_connected(self) -> bool:
        """Whether there is a connection on which a node has answered."""
        return self._cluster.is_connected()

    async def target(self) -> MonitoredConnectionPool:
        """Return the cluster's pool: each command has a node of its own."""
        return self._cluster

    def follow(self, failure: AttemptFailed) -> float | None:  # noqa: ARG002 - each command's redirect is followed
        """Return the seconds to wait before what was redirected is sent again; ``None`` if nothing was."""
        return self._redirects.delay() if self._is_redirected else None

    # Attempts.

    async def _attempt(self, seconds: float | None, losses: int) -> None:
        """Send what is pending.

        Raises:
            AttemptFailed: Something is still pending, and may be sent again.
        """
        self._cluster.check_open()
        await self._cluster.cluster_topology.known()
        self._is_redirected = False
        groups: dict[MonitoredConnectionPool, list[_Command]] = {}
        failure: AttemptFailed | None = None
        for each in self._commands:
            if each.is_pending:
                try:
                    groups.setdefault(each.importing or each.choose(), []).append(each)
                except AttemptFailed as failed:
                    failure = failed
        observer = self._observer
        if observer is not None and len(groups) == 1 and failure is None:
            observer.set_server(next(iter(groups)).telemetry.server)
        elif len(groups) > 1:
            observer = None
        sending = [self._send(node, commands, observer, seconds, losses) for node, commands in groups.items()]
        failures = await asyncio.gather(*sending)
        failure = next(filter(None, failures), failure)
        if failure is not None:
            raise failure
        self._cluster.retry_policy.server_unreachable = False

    async def _send(
        self,
        node: MonitoredConnectionPool,
        commands: list[_Command],
        observer: Observer | None,
        seconds: float | None,
        losses: int,
    ) -> AttemptFailed | None:
        """Send commands to one node, and settle those that need no further attempt; return why the others do."""
        traits = traits_of_batch([each.args for each in commands])
        try:
            replies = await self._replies(node, commands, traits, observer, seconds, losses)
        except (AttemptFailed, PoolClosedError) as error:
            failed = error if isinstance(error, AttemptFailed) else AttemptFailed(error, may_have_run=False)
            if is_redirect(self._cluster, failed.error):
                self._is_redirected = True
                return failed
            note_failure(self._cluster, failed.error, node)
            if failed.may_have_run and not traits.retry_safe:
                for each in commands:
                    each.settle(failed.error)
                return None
            return failed
        leave_refusing_server(node, replies)
        failure = None
        for each, reply in zip(commands, replies, strict=True):
            each.importing = None
            if isinstance(reply, AskError):
                each.importing = self._redirects.take(reply, node)
                if isinstance(reply, MovedError):
                    each.choose = partial(self._cluster.node_of_slot, reply.slot_id)
                self._is_redirected = True
            elif not isinstance(reply, _NOT_NOW):
                each.settle(reply)
                continue
            else:
                note_failure(self._cluster, reply, node)
            failure = AttemptFailed(reply, may_have_run=False)
        if failure is None:
            node.retry_policy.server_unreachable = False
        return failure

    async def _replies(
        self,
        node: MonitoredConnectionPool,
        commands: list[_Command],
        traits: Traits,
        observer: Observer | None,
        seconds: float | None,
        losses: int,
    ) -> list[Any]:
        sent = [args for each in commands for args in ((_ASKING, each.args) if each.importing else (each.args,))]
        if node.multiplexer is not None and traits.shareable and losses < ISOLATE_AFTER:
            future: BatchFuture = node.multiplexer.send_batch(sent, observer, losses)
            replies = await (future if seconds is None else future.wait_for(seconds))
            if isinstance(replies, AttemptFailed):
                raise replies
        elif node.multiplexer is not None and traits.shareable:
            async with node.multiplexer.isolated(seconds) as left:
                replies = await self._dedicated_replies(node, sent, observer, left)
        else:
            replies = await self._dedicated_replies(node, sent, observer, seconds)
        return [reply for args, reply in zip(sent, replies, strict=True) if args is not _ASKING]

    async def _dedicated_replies(
        self,
        node: MonitoredConnectionPool,
        sent: Sequence[tuple[Any, ...]],
        observer: Observer | None,
        seconds: float | None,
    ) -> list[Any]:
        for args in sent:
            reject_write_counting(args)
        wait = sum(blocking_timeout(args) or 0 for args in sent)
        replies: list[Any] = []
        async with dedicated_attempt(node, seconds, dedicated_connection(node, observer), wait) as connection:
            discard_if_altered(node, connection, [args for args in sent if args is not _ASKING])
            try:
                await connection.send_packed_command(connection.pack_commands(sent))
                while len(replies) < len(sent):
                    try:
                        replies.append(await connection.read_response(disable_decoding=True))
                    except ResponseError as error:
                        replies.append(error)
            except BaseException:
                # Replies that are not read belong to no later call.
                await connection.disconnect(nowait=True)
                raise
        return replies


async def find_nodes(cluster: MonitoredClusterPool, observer: Observer | None) -> None:
    """Return when the nodes of a cluster are known, within the deadline of a call.

    Args:
        cluster: The pool.
        observer: Is given the time that it takes; ``None`` for none.

    Raises:
        redis.exceptions.RedisError: No node answers in time.
    """
    if cluster.cluster_topology.is_known:
        return
    route = cluster.route([], None)

    async def attempt(_seconds: float | None, _losses: int) -> None:
        await route.target()

    await retry(route, _PENDING, attempt, 0, observer)


def _this(node: MonitoredConnectionPool) -> MonitoredConnectionPool:
    return node

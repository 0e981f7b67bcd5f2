"""Commands that go to several nodes of a cluster: pipelines, commands that are split, and commands for all nodes."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from time import monotonic
from typing import Any, Final, NamedTuple

from redis.exceptions import AskError, MovedError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from aioredis_monitored._commands.traits import Traits, blocking_timeout, traits_of, traits_of_batch
from aioredis_monitored._execution.attempts import (
    DedicatedConnection,
    dedicated_attempt,
    leave_refusing_server,
    reject_write_counting,
    retry,
)
from aioredis_monitored._execution.pinned import discard_if_altered
from aioredis_monitored._multiplexer import ISOLATE_AFTER, AttemptFailed, BatchFuture, Multiplexer
from aioredis_monitored._redispy.connections import replies_on
from aioredis_monitored._telemetry.operation import Observer
from aioredis_monitored._topology.node import REPLICA_ROLES, role_in
from aioredis_monitored._topology.placement import Kind, Part, Placement, combine, placement_of, routing_error, split
from aioredis_monitored.errors import PoolClosedError
from aioredis_monitored.pool.cluster import MonitoredClusterPool
from aioredis_monitored.pool.pool import MonitoredConnectionPool
from aioredis_monitored.pool.redirects import Redirects, is_redirect, note_failure
from aioredis_monitored.pool.replicas import seconds_at_replica
from aioredis_monitored.pool.retry import RetryPolicy, is_retryable

_ASKING: Final = ("ASKING",)
# Sent before what a primary is asked for as a whole, such as its number of keys: a replica would answer for itself, and
# redirects only calls with keys. No user can be forbidden to call it; a server before 6.0 answers with an error.
_HELLO: Final = ("HELLO",)
# What is pending is retried only if it is safe to: the loop over attempts need not ask.
_PENDING: Final = Traits(shareable=True, alters_connection=False, retry_safe=True, runs_code=False)


# What redis-py sends, as far as the type of an argument says that.
_SENDABLE: Final = frozenset({bytearray, bytes, float, int, memoryview, str})


class _Command:
    """A command that goes to one node, and its reply when there is one.

    Args:
        args: The command.
        choose: Returns the pool of the node that it goes to now.
        is_for_node: Whether no other node can take its place; default ``False``.
        has_node: Whether its node is still one that the call is for; default ``None``, for always.
        is_for_primary: Whether no replica can answer it; default ``False``.

    Attributes:
        has_left: Whether its node has left the cluster, or the call, before the command ran there.
    """

    __slots__ = (
        "args",
        "choose",
        "has_left",
        "has_node",
        "importing",
        "is_first",
        "is_for_node",
        "is_for_primary",
        "is_pending",
        "pool",
        "reply",
    )

    def __init__(
        self,
        args: tuple[Any, ...],
        choose: Callable[[], MonitoredConnectionPool],
        *,
        is_for_node: bool = False,
        has_node: Callable[[], bool] | None = None,
        is_for_primary: bool = False,
    ) -> None:
        self.args = args
        self.choose = choose
        self.is_for_node = is_for_node
        self.has_node = has_node
        self.is_for_primary = is_for_primary
        self.has_left = False
        self.importing: MonitoredConnectionPool | None = None
        # That it was sent to last.
        self.pool: MonitoredConnectionPool | None = None
        self.is_pending = True
        # Whether those of its slot that follow it wait until it has run.
        self.is_first = False
        self.reply: Any = None

    def preceding(self) -> tuple[tuple[str], ...]:
        """Return what is sent before it."""
        return (_ASKING,) if self.importing else (_HELLO,) if self.is_for_primary else ()

    def slots(self) -> set[int]:
        """Return the slot of its keys; none if it has no keys."""
        slot = placement_of(self.args).slot
        return set() if slot is None else {slot}

    def settle(self, reply: Any) -> None:
        """Set the reply, or the error in its place."""
        self.is_pending, self.reply = False, reply

    def leave(self, pool: MonitoredConnectionPool) -> None:
        """Give up, as the node has left."""
        self.has_left = True
        self.settle(RedisConnectionError(f"{pool.name} has left the cluster"))


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
        if self.placement is None:
            return self.commands[0].reply
        if self.parts:
            return combine(self.placement, [each.reply for each in self.commands], self.parts)
        # A node that has left is none of those that the command is for.
        remaining = [each for each in self.commands if not each.has_left] or self.commands
        # One that has taken the place of another has replied for both of them; errors come last, and stay.
        in_order = sorted(remaining, key=lambda each: isinstance(each.reply, Exception))
        return combine(self.placement, list({each.pool: each.reply for each in in_order}.values()))


class _Sent(NamedTuple):
    """Commands that were sent to one node in one piece.

    Attributes:
        pool: The node's pool.
        commands: The commands.
        batch: What was sent, ASKING and HELLO included.
        began: When, by the monotonic clock.
        replies: The replies, or ``AttemptFailed``.
        retry_safe: Whether all may run twice.
    """

    pool: MonitoredConnectionPool
    commands: list[_Command]
    batch: Sequence[tuple[Any, ...]]
    began: float
    replies: asyncio.Future[Any]
    retry_safe: bool


class Scatter:
    """One call whose commands go to several nodes: those for a node in one piece, to all nodes at the same time.

    Commands for one key keep their order. What a node redirects did not run, and is sent again, to the node that it
    names. The commands that were sent to a node whose connection broke are sent again as a whole, if none of them ran
    for certain, or running all twice does no harm; otherwise the error takes the place of their replies.

    It decides about failures of the call: see ``FailureRoute``.

    Args:
        cluster: The pool.
        commands: The commands.
        observer: Is given the node, if there is only one; ``None`` for none.
        pools: The pool that each of the commands goes to first, ``None`` for that of its placement; default: each goes
            to that.
        reads_replicas: Whether the commands, all of which only read, may go to replicas; default ``False``.
        has_nodes: Whether the nodes of ``pools``, which are primaries, are still those that the call is for: if not, it
            makes no further attempt at them; default ``None``, for always, and for any nodes.
    """

    def __init__(
        self,
        cluster: MonitoredClusterPool,
        commands: Iterable[tuple[Any, ...]],
        observer: Observer | None,
        pools: Sequence[MonitoredConnectionPool | None] = (),
        *,
        reads_replicas: bool = False,
        has_nodes: Callable[[], bool] | None = None,
    ) -> None:
        self._cluster = cluster
        self._given = list(commands)
        self._observer = observer
        self._pools = pools or [None] * len(self._given)
        self._reads_replicas = reads_replicas
        self._has_nodes = has_nodes
        # Those that the attempt goes to: after it, their commands go to primaries.
        self._replicas = set[MonitoredConnectionPool]()
        self._choose_at = cluster.choose_to_read if reads_replicas else cluster.choose_primary
        self._expanded: list[_Expanded] = []
        self._commands: list[_Command] = []
        self._redirects = Redirects(cluster, observer)
        self._is_redirected = False
        # That of the last failure; the failure of one node says nothing about the others.
        self._failed_pool: MonitoredConnectionPool | None = None

    async def run(self) -> list[Any]:
        """Send the commands, and return their replies, as hiredis has parsed them; errors are values.

        Raises:
            redis.exceptions.RedisError: No node answers, and so it is not known where commands for all nodes go.
        """
        self._check()
        wait = sum(blocking_timeout(args) or 0 for args in self._given)
        try:
            placements = [placement_of(args) for args in self._given]
            if any(map(_needs_nodes, placements)):
                await nodes_known(self._cluster, self._observer)
            self._expanded = [self._expand(*each) for each in zip(self._given, placements, self._pools, strict=True)]
            self._commands = [each for expanded in self._expanded for each in expanded.commands]
            await retry(self, _PENDING, self._attempt, wait, self._observer)
        except RedisError as error:
            for each in self._commands:
                if each.is_pending:
                    each.settle(error)
            if not self._expanded:
                raise
        finally:
            self._report_server()
        return [each.reply() for each in self._expanded]

    def _check(self) -> None:
        """Check what would fail at one node when others have got their commands.

        Raises:
            redis.exceptions.DataError: An argument cannot be sent.
            UnicodeEncodeError: The same, of text.
            DedicatedConnectionError: A command counts the writes of its connection.
        """
        for args, pool in zip(self._given, self._pools, strict=True):
            if not (_SENDABLE.issuperset(map(type, args)) and all(map(_is_encodable, args))):
                self._cluster.check_sendable(args)
            if pool is not None:
                reject_write_counting(args)

    def _report_server(self) -> None:
        """Report the server that was asked last; none if commands went to several."""
        if self._observer is None:
            return
        pools = {each.pool for each in self._commands if each.pool is not None}
        if pools:
            self._observer.set_server((pools.pop() if len(pools) == 1 else self._cluster).telemetry.server)

    def _expand(self, args: tuple[Any, ...], placement: Placement, pool: MonitoredConnectionPool | None) -> _Expanded:
        kind, slot, topology = placement.kind, placement.slot, self._cluster.cluster_topology
        if pool is not None:
            return _Expanded(
                [
                    _Command(
                        args,
                        partial(_this, pool),
                        is_for_node=True,
                        has_node=self._has_nodes,
                        is_for_primary=self._has_nodes is not None,
                    )
                ]
            )
        if _needs_nodes(placement):
            return _Expanded([self._at_node(args, each, kind) for each in self._nodes(kind)], placement)
        if kind is Kind.SPLIT:
            parts = split(args)
            return _Expanded([_Command(part.args, self._choose_at(part.slot)) for part in parts], placement, parts)
        if kind is not Kind.SLOT and kind is not Kind.ANY:
            raise routing_error(args, placement)
        if slot is None:
            return _Expanded([_Command(args, topology.any_primary_pool)])
        choose = self._choose_at(slot) if kind is Kind.SLOT else partial(self._cluster.pool_near_slot, slot)
        return _Expanded([_Command(args, choose)])

    def _nodes(self, kind: Kind) -> Sequence[MonitoredConnectionPool]:
        topology = self._cluster.cluster_topology
        return topology.primary_pools if kind is Kind.ALL_PRIMARIES else topology.known_pools()

    def _at_node(self, args: tuple[Any, ...], pool: MonitoredConnectionPool, kind: Kind) -> _Command:
        """Return a command for one of the nodes of its kind, or for the one that has a primary's place by then.

        A replica has no such node, nor a primary whose slots have moved: the command is given up when that node leaves.
        """
        topology = self._cluster.cluster_topology
        if pool not in topology.slots:
            return _Command(
                args,
                lambda: _named(pool.name, self._nodes(kind)) or pool,
                has_node=lambda: _named(pool.name, self._nodes(kind)) is not None,
                is_for_primary=kind is Kind.ALL_PRIMARIES,
            )
        slot = topology.slots.index(pool)
        return _Command(
            args,
            lambda: pool if pool in topology.primary_pools else self._cluster.pool_of_slot(slot),
            is_for_primary=kind is Kind.ALL_PRIMARIES,
        )

    # The route.

    @property
    def retry_policy(self) -> RetryPolicy:
        """That of the node that has failed."""
        return (self._failed_pool or self._cluster).retry_policy

    def is_connected(self) -> bool:
        """Whether there is a connection to that node on which it has answered."""
        return (self._failed_pool or self._cluster).is_connected()

    def follow(self, failure: AttemptFailed, /) -> float | None:
        """Return the seconds to wait before what was redirected is sent again; ``None`` if nothing was."""
        return self._redirects.delay(failure) if self._is_redirected else None

    # Attempts.

    async def _attempt(self, seconds: float | None, losses: int) -> None:
        """Send what is pending.

        Raises:
            AttemptFailed: Something is still pending, and may be sent again.
        """
        self._cluster.check_open()
        await self._cluster.cluster_topology.known()
        self._cluster.retry_policy.server_unreachable = False
        self._is_redirected, self._failed_pool = False, None
        began = monotonic()
        left = seconds
        # Again for those that had to wait until others of their slot had run.
        while any(each.is_pending for each in self._commands):
            failure = await self._send_pending(left, losses)
            if failure is not None:
                raise failure
            if seconds is not None:
                left = max(0.0, began + seconds - monotonic())

    async def _send_pending(self, seconds: float | None, losses: int) -> AttemptFailed | None:
        """Send what is pending and need not wait; return why some of it still is."""
        groups, failure = self._group()
        self._replicas = set(filter(self._cluster.cluster_topology.is_replica, groups if self._reads_replicas else ()))
        observer = self._observer
        if observer is not None and len(groups) == 1:
            observer.set_server(next(iter(groups)).telemetry.server)
        elif len(groups) > 1:
            observer = None
        under_way: list[_Sent] = []
        try:
            for pool, commands in groups.items():
                try:
                    under_way.append(self._send(pool, commands, observer, seconds, losses))
                except PoolClosedError as error:
                    failure = self._fail(pool, commands, AttemptFailed(error, may_have_run=False)) or failure
            # A task to await each would take longer than what it awaits.
            for sent in under_way:
                failure = self._settle(sent, await sent.replies) or failure
        finally:
            for sent in under_way:
                sent.replies.cancel()
        return failure

    def _group(self) -> tuple[dict[MonitoredConnectionPool, list[_Command]], AttemptFailed | None]:
        """Return the pending commands that need not wait for another one, by pool, and why some have no pool."""
        groups: dict[MonitoredConnectionPool, list[_Command]] = {}
        failure: AttemptFailed | None = None
        held = set[int]()
        for each in self._commands:
            if each.is_pending and not (held and held & each.slots()):
                if each.is_first:
                    held |= each.slots()
                if each.has_node is not None and not each.has_node():
                    each.leave(each.choose())
                    continue
                try:
                    each.pool = each.importing or each.choose()
                    groups.setdefault(each.pool, []).append(each)
                except AttemptFailed as failed:
                    failure = failed
        return groups, failure

    def _send(
        self,
        pool: MonitoredConnectionPool,
        commands: list[_Command],
        observer: Observer | None,
        seconds: float | None,
        losses: int,
    ) -> _Sent:
        """Send commands to one node.

        Raises:
            PoolClosedError: The node was removed.
        """
        batch = [each.args for each in commands]
        traits = traits_of_batch(batch)
        if any(each.importing or each.is_for_primary for each in commands):
            batch = [args for each in commands for args in (*each.preceding(), each.args)]
            # Once: if that node fails, the one that serves the slot says which has it by then.
            for each in commands:
                each.importing = None
        if pool in self._replicas:
            seconds = seconds_at_replica(self._cluster.retry_policy, seconds)
        began = monotonic()
        multiplexer = pool.multiplexer
        replies: asyncio.Future[Any]
        if multiplexer is not None and traits.shareable and losses < ISOLATE_AFTER:
            shared: BatchFuture = multiplexer.send_batch(batch, observer, losses)
            replies = shared if seconds is None else asyncio.ensure_future(shared.wait_for(seconds))
        else:
            isolated = multiplexer if traits.shareable else None
            replies = asyncio.ensure_future(self._send_alone(pool, isolated, batch, observer, seconds))
        return _Sent(pool, commands, batch, began, replies, traits.retry_safe)

    def _settle(self, sent: _Sent, replies: list[Any] | AttemptFailed) -> AttemptFailed | None:
        """Settle the commands that need no further attempt; return why the others do."""
        pool, commands = sent.pool, sent.commands
        if isinstance(replies, AttemptFailed):
            return self._fail(pool, commands, replies, retry_safe=sent.retry_safe)
        leave_refusing_server(pool, replies, since=sent.began)
        if len(replies) > len(commands):
            replies = _replies_of(sent, replies)
        if not any(isinstance(reply, Exception) for reply in replies):
            for each, reply in zip(commands, replies, strict=True):
                each.settle(reply)
            pool.retry_policy.server_unreachable = False
            return None
        failure = None
        # The slots of which later commands have run.
        passed: set[int] = set()
        for each, reply in zip(reversed(commands), reversed(replies), strict=True):
            if self._is_pending(each, reply, pool, passed):
                self._failed_pool, failure = pool, AttemptFailed(reply, may_have_run=False)
            else:
                each.settle(reply)
                passed |= each.slots()
        return failure

    def _is_pending(self, command: _Command, reply: object, pool: MonitoredConnectionPool, passed: set[int]) -> bool:
        """Whether a command has not run, and is to be sent again; take over what its reply says about the nodes."""
        has_passed = bool(passed & command.slots())
        if isinstance(reply, Exception) and not isinstance(reply, AskError) and pool in self._replicas:
            self._leave_replica(pool, reply)
            return True
        # A slot that is moving has some of its keys at each node, so an ASK says nothing about those of later commands.
        if isinstance(reply, AskError) and not (has_passed and isinstance(reply, MovedError)):
            command.importing = self._redirects.take(reply, pool)
            if isinstance(reply, MovedError):
                # Also of a node that the caller has named.
                command.choose = partial(self._cluster.pool_of_slot, reply.slot_id)
            self._is_redirected = True
            return True
        if not isinstance(reply, Exception) or has_passed:
            # After what was called later, it would undo that.
            return False
        if not is_retryable(reply, may_have_run=True, traits=traits_of(command.args)):
            return False
        # A later one that was redirected would overtake it.
        command.is_first = True
        note_failure(self._cluster, reply, pool)
        return True

    def _fail(
        self, pool: MonitoredConnectionPool, commands: list[_Command], failed: AttemptFailed, *, retry_safe: bool = True
    ) -> AttemptFailed | None:
        """Settle commands that have failed together if they must not be sent again; else return why they are."""
        if is_redirect(self._cluster, failed.error):
            for each in commands:
                if each.is_for_node:
                    each.leave(pool)
            is_pending = any(each.is_pending for each in commands)
            self._is_redirected = self._is_redirected or is_pending
            return failed if is_pending else None
        if pool in self._replicas:
            self._leave_replica(pool, failed.error)
            return AttemptFailed(failed.error, may_have_run=failed.may_have_run)
        note_failure(self._cluster, failed.error, pool)
        if failed.may_have_run and not retry_safe:
            for each in commands:
                each.settle(failed.error)
            return None
        self._failed_pool = pool
        return failed

    def _leave_replica(self, pool: MonitoredConnectionPool, error: Exception) -> None:
        """Have commands that a replica has failed sent to the primary, which has the last word, as in ``ReplicaRoute``.

        That is the route of a whole call, and these may be some of its commands.
        """
        note_failure(self._cluster, error, pool)
        self._cluster.on_replica_failed(pool, error)
        self._is_redirected = True

    async def _send_alone(
        self,
        pool: MonitoredConnectionPool,
        isolated: Multiplexer | None,
        batch: Sequence[tuple[Any, ...]],
        observer: Observer | None,
        seconds: float | None,
    ) -> list[Any] | AttemptFailed:
        """Send commands on a dedicated connection, isolated if a multiplexer is given."""
        try:
            if isolated is None:
                return await self._dedicated_replies(pool, batch, observer, seconds)
            async with isolated.isolated(seconds) as left:
                return await self._dedicated_replies(pool, batch, observer, left)
        except AttemptFailed as failed:
            return failed
        except PoolClosedError as error:
            return AttemptFailed(error, may_have_run=False)

    async def _dedicated_replies(
        self,
        pool: MonitoredConnectionPool,
        sent: Sequence[tuple[Any, ...]],
        observer: Observer | None,
        seconds: float | None,
    ) -> list[Any]:
        wait = sum(blocking_timeout(args) or 0 for args in sent)
        async with dedicated_attempt(pool, seconds, DedicatedConnection(pool, observer), wait) as connection:
            discard_if_altered(pool, connection, [args for args in sent if _is_given(args)])
            replies = await replies_on(connection, sent)
            leave_refusing_server(pool, replies, connection)
        return replies


def _is_given(args: tuple[Any, ...]) -> bool:
    """Whether something is a command of the caller, and not sent before one."""
    return args is not _ASKING and args is not _HELLO


def _replies_of(sent: _Sent, replies: list[Any]) -> list[Any]:
    """Return the replies to the commands themselves, and an error for each that a replica has answered in vain."""
    is_replica = any(
        role_in(reply) in REPLICA_ROLES for args, reply in zip(sent.batch, replies, strict=True) if args is _HELLO
    )
    own = [reply for args, reply in zip(sent.batch, replies, strict=True) if _is_given(args)]
    if not is_replica:
        return own
    error = RedisConnectionError(f"{sent.pool.name} is a replica, and not a primary as it was")
    return [
        error if each.is_for_primary and traits_of(each.args).retry_safe else reply
        for each, reply in zip(sent.commands, own, strict=True)
    ]


async def nodes_known(cluster: MonitoredClusterPool, observer: Observer | None, *, needs_primary: bool = True) -> None:
    """Return when the nodes of a cluster are known, after as many attempts as the policy allows.

    Args:
        cluster: The pool.
        observer: Is given the delays between attempts; ``None`` for none.
        needs_primary: Whether one of them must serve slots; default ``True``.

    Raises:
        redis.exceptions.RedisError: No node answers, or none serves slots.
    """
    route = cluster.route([], observer)

    async def attempt(_seconds: float | None, _losses: int) -> None:
        if needs_primary:
            await route.target()
        else:
            cluster.check_open()
            await cluster.cluster_topology.known()

    await retry(route, _PENDING, attempt, 0, observer)


def _needs_nodes(placement: Placement) -> bool:
    # By identity: the hash of an enumeration's member is computed in Python.
    return placement.kind is Kind.ALL_PRIMARIES or placement.kind is Kind.ALL_NODES


def _is_encodable(argument: object) -> bool:
    # Other text may have surrogates, for instance.
    return type(argument) is not str or argument.isascii()


def _this(pool: MonitoredConnectionPool) -> MonitoredConnectionPool:
    return pool


def _named(name: str, pools: Iterable[MonitoredConnectionPool]) -> MonitoredConnectionPool | None:
    """Return the pool of a node, which may have been made anew."""
    return next((pool for pool in pools if pool.name == name), None)

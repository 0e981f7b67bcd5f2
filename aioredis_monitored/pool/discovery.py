"""Finds the servers of a service by asking all its sentinels, and follows what each of them announces."""

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from contextvars import Context
from math import inf
from time import monotonic
from typing import Any, Final, NamedTuple, Protocol
from weakref import ref

from redis.asyncio import Connection
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from aioredis_monitored._redispy.sockets import abort_sockets
from aioredis_monitored._timeouts import LagTolerantTimeout
from aioredis_monitored._topology.follow_schedule import FollowSchedule
from aioredis_monitored._topology.known_sentinels import KnownSentinels, Sentinel
from aioredis_monitored._topology.sentinel import (
    BELIEF_SECONDS,
    Answer,
    Change,
    Election,
    PrimaryTracker,
    elect,
)
from aioredis_monitored.config.addresses import Address
from aioredis_monitored.pool.names import addresses_of
from aioredis_monitored.pool.retry import exponential_backoff
from aioredis_monitored.pool.sentinel_connections import SentinelConnections, read_reply

_LOGGER: Final = logging.getLogger("aioredis_monitored.pool")

# Seconds that sentinels get to answer; those that take longer count as unreachable. At most half of what calls have, so
# that there is time to connect to the primary.
_MAX_ASK_SECONDS: Final = 0.5
# Seconds for connecting to a sentinel whose events are followed.
_FOLLOW_SECONDS: Final = 2.0
# Seconds without an event after which a sentinel must show that it is there, and seconds that it gets for that.
_PING_SECONDS: Final = 5.0
# Between connections to follow a sentinel that fail.
_follow_backoff: Final = exponential_backoff(0.05, 1.0)
# Between those that are made to see whether they reach another sentinel.
_miss_backoff: Final = exponential_backoff(0.05, 30.0)


class PrimaryLocation(NamedTuple):
    """Where the primary is.

    Attributes:
        host: The host, mapped to one that this process can reach.
        port: The port, mapped as well.
        outdated: Done when another one is or will be the primary.
        announced: The address as the sentinels announce it.
        generation: How many failovers had begun when it was looked up.
    """

    host: str
    port: int
    outdated: "asyncio.Future[None]"
    announced: Address
    generation: int


class ServiceListener(Protocol):
    """The pool that connects to the servers of the service."""

    def on_hold(self) -> None:
        """Begin no further call on a present connection: another primary is about to be promoted."""

    def on_switch(self, host: str, port: int) -> None:
        """End all connections to other servers than this one, which is the primary now."""

    def on_replicas(self, addresses: frozenset[Address]) -> None:
        """Take the replicas that are in sync; called whenever sentinels have answered that were asked for them."""


class SentinelDiscovery:
    """Finds the servers of one service by asking all its sentinels, and follows what each of them announces.

    Args:
        tracker: What is believed about the primary.
        given: The names or addresses of sentinels, each with its port.
        connections: Connects to the sentinels, and asks them.
        map_address: Maps an address that a sentinel announces to the one that is connected to.
        listener: Is told of failovers and replicas; it is referenced weakly, as tasks keep this object alive.
        deadline: Seconds in which the primary must be found; ``None`` for any time.
        name: The pool's name, for messages.
    """

    def __init__(
        self,
        tracker: PrimaryTracker,
        given: Iterable[Address],
        connections: SentinelConnections,
        *,
        map_address: Callable[[str, int], Address],
        listener: ServiceListener,
        deadline: float | None,
        name: str,
    ) -> None:
        self.tracker = tracker
        self._known = KnownSentinels(given, map_address)
        self._map_address = map_address
        self._connections = connections
        self._listener = ref(listener)
        self._deadline = deadline
        self._ask_seconds = _MAX_ASK_SECONDS if deadline is None else min(_MAX_ASK_SECONDS, deadline / 2)
        self._name = name
        self._was_representative = True
        self._ended: list[asyncio.Task[Any]] = []
        self._clear()

    def _clear(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = 0
        # An event loop keeps no task alive.
        self._tasks: set[asyncio.Task[Any]] = set()
        self._followers: dict[Sentinel, asyncio.Task[None]] = {}
        # By identity, of each sentinel that is followed: done when it is not any more.
        self._followed: dict[str | None, asyncio.Future[None]] = {}
        # Of the given names.
        self._resolving: dict[Address, asyncio.Task[None]] = {}
        self._asking: asyncio.Task[Election] | None = None
        self._asked_at = -inf
        # When the sentinels were asked whose answers were taken last.
        self._elected_at = -inf
        self._checking: asyncio.Task[None] | None = None
        self._resumed = asyncio.Event()
        self._resumed.set()
        self._hold_timer: asyncio.TimerHandle | None = None
        # Done, and replaced, when locations that were given out are outdated.
        self._outdated: asyncio.Future[None] | None = None

    # Looking the primary up.

    async def locate(self) -> PrimaryLocation:
        """Return where the primary is, as soon as calls are not held; begin to follow the sentinels.

        Raises:
            redis.exceptions.AuthenticationError: All sentinels that answer refuse the credentials.
            redis.exceptions.NoPermissionError: All that answer forbid their user to ask.
            redis.exceptions.ConnectionError: No sentinel that answers knows the service, or none answers in time.
        """
        if self._loop is None:
            self._loop, self._process = asyncio.get_running_loop(), os.getpid()
        try:
            async with LagTolerantTimeout(self._deadline):
                return await self._locate()
        except TimeoutError:
            raise self._failure(elect((), self._known.count())) from None

    async def _locate(self) -> PrimaryLocation:
        resumed, tracker = self._resumed, self.tracker
        while True:
            await resumed.wait()
            self._check_open(resumed)
            generation = tracker.generation
            primary = tracker.believed(monotonic())
            if primary is None:
                election = await self._ask_once()
                self._check_open(resumed)
                primary = tracker.believed(monotonic()) or election.primary
                if primary is None:
                    raise self._failure(election)
            if generation == tracker.generation and resumed.is_set():
                if self._outdated is None:
                    self._outdated = asyncio.get_running_loop().create_future()
                return PrimaryLocation(*self._map_address(*primary), self._outdated, primary, generation)

    def _check_open(self, resumed: asyncio.Event) -> None:
        if resumed is not self._resumed:
            message = f"pool {self._name!r} was closed while it looked for the primary of {self.tracker.service!r}"
            raise RedisConnectionError(message)

    def _failure(self, election: Election) -> RedisError:
        problems = self._known.problems()
        text = f"no primary of {self.tracker.service!r} is known: {election.answered} of {election.known} sentinels"
        text += " answered" + (", and none of them knows it" if election.answered else "")
        text += f" ({'; '.join(problems)})" if problems else ""
        if not election.answered and any(each.refuses_credentials for each in self._known.sentinels):
            return AuthenticationError(f"{text}; check sentinel_username and sentinel_password")
        if not election.answered and any(each.refusal for each in self._known.sentinels):
            return NoPermissionError(f"{text}; check the rights of sentinel_username")
        return RedisConnectionError(text)

    def refute(self, address: Address) -> None:
        """Take the word of a server that it is no primary."""
        self.tracker.refute(address, monotonic())

    # Asking all sentinels.

    async def _ask_once(self) -> Election:
        """Ask the sentinels; all that ask at the same time share the answer."""
        asking = self._asking
        if asking is None or asking.done():
            asking = self._asking = self._start(self._ask_all())
        # Not shielded: that would pass on the cancellation of the task as one of the caller.
        await asyncio.wait([asking])
        return elect((), self._known.count()) if asking.cancelled() else asking.result()

    def ask_unless_recent(self, seconds: float) -> None:
        """Ask in the background, if sentinels are followed in this event loop, and were not asked for so long."""
        now = monotonic()
        if now - self._asked_at > seconds and self._loop is asyncio.get_running_loop():
            self._asked_at = now
            self._start(self._ask_once())

    def _ask_anew(self) -> None:
        """Ask in the background: an answer that is under way may be older than what has just been learned."""
        self._asking = None
        self._start(self._ask_once())

    async def _ask_all(self) -> Election:
        loop = asyncio.get_running_loop()
        asked_at = self._asked_at = monotonic()
        answers: list[Answer] = []
        asked: set[Sentinel] = set()
        pending: dict[asyncio.Task[Any], Sentinel | None] = dict.fromkeys(self._resolve_names())
        # As long as there is no address, there is nothing to do but to wait for one.
        deadline = inf
        election = elect(answers, self._known.count())
        try:
            while not election.is_certain:
                # Those that another one has named are asked as well.
                pending |= self._ask_further(asked, answers)
                if not pending:
                    break
                if asked and deadline == inf:
                    asked_at, deadline = monotonic(), loop.time() + self._ask_seconds
                done, _ = await asyncio.wait(
                    pending,
                    timeout=None if deadline == inf else max(0.0, deadline - loop.time()),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not done:
                    self._on_silence(pending.values())
                    break
                for task in done:
                    sentinel = pending.pop(task)
                    if sentinel is not None and (answer := task.result()) is not None:
                        answers.append(answer)
                        self._known.learn(sentinel, answer, keeps_identity=sentinel.identity in self._followed)
                election = elect(answers, self._known.count())
        finally:
            for task, sentinel in pending.items():
                if sentinel is not None:
                    task.cancel()
        self._on_election(election, answers, asked_at)
        return election

    def _on_silence(self, pending: Iterable[Sentinel | None]) -> None:
        for sentinel in pending:
            if sentinel is not None:
                sentinel.on_failure(TimeoutError(f"no answer in {self._ask_seconds:g} s"))

    def _ask_further(self, asked: set[Sentinel], answers: Iterable[Answer]) -> "dict[asyncio.Task[Any], Sentinel]":
        """Ask where no sentinel was asked yet, unless the one that is announced there has answered elsewhere."""
        answered = {answer.sentinel for answer in answers}
        further = [
            each
            for each in self._known.sentinels
            if each not in asked and (each.given_as is not None or each.identity not in answered)
        ]
        asked.update(further)
        places = [place for each in further for place in (each, self._known.shared_place(each)) if place is not None]
        return {self._start(self._connections.ask(place, self._ask_seconds)): place for place in places}

    def _resolve_names(self) -> "list[asyncio.Task[None]]":
        """Resolve the names that may have other addresses by now; return what to wait for before sentinels are counted.

        That is not what an earlier call has begun, if there are sentinels to ask: it may never end.
        """
        running = {given: task for given, task in self._resolving.items() if not task.done()}
        begun = {
            given: self._start(self._resolve_name(given))
            for given in self._known.given
            if given not in running and self._known.may_have_moved(given)
        }
        self._resolving = running | begun
        return list((begun if self._known.sentinels else self._resolving).values())

    async def _resolve_name(self, given: Address) -> None:
        self._known.on_resolving(given)
        try:
            addresses = await addresses_of(*given)
        except OSError as error:
            self._known.on_unresolved(given, str(error))
            return
        self._known.on_resolved(given, addresses)
        if self._loop is not None and (self._asking is None or self._asking.done()):
            # Those who have asked did not wait.
            self._follow_all()

    def _on_election(self, election: Election, answers: Iterable[Answer], asked_at: float) -> None:
        if self._loop is None:
            # The pool was closed meanwhile.
            return
        if election.answered and election.is_representative:
            self._known.forget_unlisted(answers)
        if election.primary is not None and election.is_representative != self._was_representative:
            self._was_representative = election.is_representative
            if not election.is_representative:
                _LOGGER.warning(
                    "pool %r: only %d of %d sentinels of %r answer; their word is taken for the primary",
                    self._name,
                    election.answered,
                    election.known,
                    self.tracker.service,
                )
        self._follow_all()
        if asked_at > self._elected_at:
            # Slow answers are older than those to later questions.
            self._elected_at = asked_at
            self._apply(self.tracker.on_election(election, monotonic()))
        listener = self._listener()
        if self._connections.asks_replicas and election.primary is not None and listener is not None:
            listener.on_replicas(frozenset(self._map_address(*each) for each in election.replicas))

    # Following what sentinels announce.

    def _follow_all(self) -> None:
        for sentinel in self._followers.keys() - set(self._known.sentinels):
            self._followers.pop(sentinel).cancel()
        for sentinel in self._known.sentinels:
            # Those that have not answered yet as well: others were faster, or they are down for now.
            follower = self._followers.get(sentinel)
            if follower is None or follower.done():
                self._followers[sentinel] = self._start(self._follow(sentinel))

    async def _follow(self, sentinel: Sentinel) -> None:
        schedule, is_logged = FollowSchedule(_follow_backoff, _miss_backoff), False
        while True:
            await asyncio.sleep(schedule.pause)
            await self._wait_unfollowed(sentinel)
            place = schedule.choose(sentinel, self._known.shared_place(sentinel), monotonic())
            try:
                async with self._connections.connected(place, _FOLLOW_SECONDS) as connection:
                    await self._follow_over(connection, sentinel, place, schedule)
            except (RedisError, OSError) as error:
                place.on_failure(error)
                schedule.on_failure(is_refused=place.refuses_credentials)
                if schedule.failures == 1 and isinstance(error, ResponseError):
                    _LOGGER.warning(
                        "pool %r: the sentinel %s refuses subscriptions, so that failovers are noticed late: %s",
                        self._name,
                        place,
                        error,
                    )
            except Exception:
                # Whatever it is, the next event counts.
                schedule.on_failure()
                if not is_logged:
                    is_logged = True
                    _LOGGER.exception(
                        "pool %r: following the sentinel %s failed; it goes on with a new connection",
                        self._name,
                        place,
                    )

    async def _follow_over(
        self, connection: Connection, sentinel: Sentinel, place: Sentinel, schedule: FollowSchedule
    ) -> None:
        """Follow a sentinel until its connection ends, if that has reached it and it is not followed elsewhere."""
        answer = await self._connections.identify(connection, place)
        # At a given address, its own follower takes whichever is reached.
        keeps_identity = place is not sentinel and place.identity in self._followed
        self._known.learn(place, answer, keeps_identity=keeps_identity)
        if answer.sentinel != sentinel.identity:
            schedule.on_other()
        elif answer.sentinel in self._followed:
            schedule.on_followed_elsewhere()
        else:
            with self._following(answer.sentinel):
                await self._connections.subscribe(connection)
                place.on_answer()
                schedule.on_followed()
                # Events may have been missed until now.
                self._ask_anew()
                await self._take_events(connection)

    async def _wait_unfollowed(self, sentinel: Sentinel) -> None:
        """Wait while a sentinel is followed at another address."""
        while (followed := self._followed.get(sentinel.identity)) is not None:
            await asyncio.wait([followed])

    @contextmanager
    def _following(self, identity: str) -> Iterator[None]:
        """Have all others wait until the end of the block who would follow the same sentinel."""
        followed, loop = self._followed, asyncio.get_running_loop()
        ended = followed[identity] = loop.create_future()
        try:
            yield
        finally:
            del followed[identity]
            if not loop.is_closed():
                ended.set_result(None)

    async def _take_events(self, connection: Connection) -> None:
        is_awaited = False
        while True:
            # Users who may not call PING get an error, which shows that the sentinel is there as well.
            response = await read_reply(connection, _PING_SECONDS)
            match response:
                case None if is_awaited:
                    return
                case None:
                    await connection.send_command("PING")
                case ["message", channel, data] | ["pmessage", _, channel, data]:
                    self._on_event(channel, data)
            is_awaited = response is None

    def _on_event(self, channel: str, data: str) -> None:
        before = self.tracker.primary
        self._apply(self.tracker.on_event(channel, data, monotonic()))
        if self.tracker.primary != before:
            if self._checking is not None:
                self._checking.cancel()
            self._checking = self._start(self._check_announced())

    async def _check_announced(self) -> None:
        """Ask whether most sentinels name the primary that one has announced, as soon as they know it."""
        is_checked = False
        while not is_checked:
            await asyncio.sleep(BELIEF_SECONDS)
            # An answer that is under way may have been ignored already, in favour of the announcement.
            self._asking = None
            is_checked = (await self._ask_once()).is_representative

    # Holding calls during a failover.

    def _apply(self, change: Change) -> None:
        listener = self._listener()
        if change is Change.NONE or listener is None:
            return
        if change is Change.ASK:
            self._ask_anew()
            return
        if self._hold_timer is not None:
            self._hold_timer.cancel()
            self._hold_timer = None
        if change is not Change.RESUME and self._outdated is not None:
            self._outdated.set_result(None)
            self._outdated = None
        if change is Change.HOLD:
            self._resumed.clear()
            loop = asyncio.get_running_loop()
            self._hold_timer = loop.call_later(self.tracker.hold_seconds, self._end_hold, context=Context())
            listener.on_hold()
            return
        self._resumed.set()
        if change is Change.SWITCH and self.tracker.primary is not None:
            listener.on_switch(*self._map_address(*self.tracker.primary))

    def _end_hold(self) -> None:
        self._hold_timer = None
        self.tracker.held_until = -inf
        _LOGGER.warning(
            "pool %r: no replica of %r was promoted in %s s; calls go on, and a promotion that comes later may lose "
            "some of them",
            self._name,
            self.tracker.service,
            self.tracker.hold_seconds,
        )
        self._resumed.set()

    # Tasks, and their end.

    def _start(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        # In a context of its own: it outlives the request that has begun it.
        task = asyncio.Task(work, loop=asyncio.get_running_loop(), context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def end(self) -> None:
        """Follow the sentinels no longer, until the primary is looked up again; may be called in any thread."""
        loop, connections, is_forked = self._loop, self._connections.detach(), os.getpid() != self._process
        tasks, timer, resumed = list(self._tasks), self._hold_timer, self._resumed
        self._clear()
        self.tracker.forget()
        if loop is None:
            return
        self._ended = tasks
        if not loop.is_running():
            # Nothing that is scheduled there may ever run.
            for connection in connections:
                abort_sockets(connection, loop, forked=is_forked)
        if _is_running_here(loop):
            # At once: what goes on for another tick may start what nothing would end.
            _end(tasks, timer, resumed)
        elif not loop.is_closed():
            loop.call_soon_threadsafe(_end, tasks, timer, resumed)

    async def wait_ended(self) -> None:
        """Wait until the tasks that ``end`` has cancelled have closed their connections."""
        # Those of an event loop that is closed never end.
        ended, self._ended = [each for each in self._ended if not each.get_loop().is_closed()], []
        if ended:
            await asyncio.wait(ended)
        await self._connections.wait_closed()


def _is_running_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def _end(tasks: "list[asyncio.Task[Any]]", timer: asyncio.TimerHandle | None, resumed: asyncio.Event) -> None:
    if timer is not None:
        timer.cancel()
    # Those that wait see that the pool is closed.
    resumed.set()
    for task in tasks:
        task.cancel()

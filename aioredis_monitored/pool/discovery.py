"""Finds the servers of a service by asking all its sentinels, and follows what each of them announces."""

import asyncio
import logging
import os
import random
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import Context
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import Any, Final, NamedTuple, Protocol
from weakref import ref

from redis.asyncio import Connection
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.maint_notifications import MaintNotificationsConfig

from aioredis_monitored._redispy.connections import close_connection, with_safe_send, with_shared_context
from aioredis_monitored._redispy.located import NamedSSLConnection
from aioredis_monitored._redispy.overrides import connect
from aioredis_monitored._redispy.sockets import abort_socket
from aioredis_monitored._timeouts import lag_tolerant_timeout
from aioredis_monitored._topology.sentinel import (
    ABORT_EVENTS,
    BELIEF_SECONDS,
    EVENTS,
    REPLICA_EVENTS,
    Answer,
    Change,
    Election,
    PrimaryTracker,
    answer_of,
    elect,
)
from aioredis_monitored.config.address_map import AddressMap
from aioredis_monitored.config.addresses import Address, address_text
from aioredis_monitored.pool.names import addresses_of
from aioredis_monitored.pool.retry import exponential_backoff

_LOGGER: Final = logging.getLogger("aioredis_monitored.pool")
_random: Final = random.Random()  # noqa: S311 - nothing secret

# Seconds that sentinels get to answer; those that take longer count as unreachable. At most half of what calls have, so
# that there is time to connect to the primary.
_MAX_ASK_SECONDS: Final = 0.5
# Seconds for connecting to a sentinel whose events are followed.
_FOLLOW_SECONDS: Final = 2.0
# Seconds without an event after which a sentinel must show that it is there, and seconds that it gets for that.
_PING_SECONDS: Final = 5.0
_MAX_BACKOFF_SECONDS: Final = 1.0
# Seconds until credentials that a sentinel has refused are sent again to follow it: too many refusals lock an account.
_REFUSED_SECONDS: Final = 30.0
# The longest pause between two connections that are made to see whether they reach another sentinel, and how many are
# made before the pause doubles: which one is reached may be random.
_MAX_STRANGER_BACKOFF_SECONDS: Final = 30.0
_STRANGERS_PER_BACKOFF: Final = 4
_RESP2: Final = 2


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


@dataclass(eq=False, slots=True)
class _Sentinel:
    """An address of a sentinel: one that others announce for it, or a given one, where any may be reached.

    Attributes:
        host: Where to connect to.
        port: The TCP port.
        given_as: The name or address under which the application has given it; ``None`` if another sentinel has.
        identity: Which sentinel it is that is announced there, or that was reached there last at a given address;
            ``None`` as long as that is unknown.
        is_announced: Whether other sentinels announce the address.
        problem: Why it did not answer last.
        refuses: Whether that is because of the credentials.
    """

    host: str
    port: int
    given_as: Address | None = None
    identity: str | None = None
    is_announced: bool = False
    problem: str = ""
    refuses: bool = False

    def __str__(self) -> str:
        return address_text(self.host, self.port)

    @property
    def unknown_identity(self) -> str:
        """What stands for the identity of a sentinel that does not say it, as those before 6.2."""
        return f"{self.host}:{self.port}"

    def on_answer(self) -> None:
        """Take that it is there."""
        self.problem, self.refuses = "", False

    def on_failure(self, error: Exception) -> None:
        """Take why it does not answer."""
        self.problem, self.refuses = str(error) or type(error).__qualname__, isinstance(error, AuthenticationError)


class SentinelDiscovery:
    """Knows all sentinels of one service: those that are given, all addresses of a name, and those that these know.

    Args:
        tracker: What is believed about the primary.
        given: The names or addresses of sentinels, each with its port.
        arguments: Arguments of the connections to sentinels, such as credentials and those for TLS.
        uses_tls: Whether the connections to sentinels are encrypted.
        address_map: Maps the addresses that sentinels announce; ``None`` to use them as they are.
        listener: Is told of failovers and replicas; it is referenced weakly, as tasks keep this object alive.
        asks_replicas: Whether the sentinels are also asked which replicas are in sync.
        deadline: Seconds in which the primary must be found; ``None`` for any time.
        name: The pool's name, for messages.
    """

    def __init__(
        self,
        tracker: PrimaryTracker,
        given: Iterable[Address],
        arguments: Mapping[str, Any],
        *,
        uses_tls: bool,
        address_map: AddressMap | None,
        listener: ServiceListener,
        asks_replicas: bool,
        deadline: float | None,
        name: str,
    ) -> None:
        self.tracker = tracker
        self._given = list(dict.fromkeys(given))
        self._uses_tls = uses_tls
        self._address_map = address_map
        self._listener = ref(listener)
        self._asks_replicas = asks_replicas
        self._events = (*EVENTS, *REPLICA_EVENTS) if asks_replicas else EVENTS
        self._deadline = deadline
        self._ask_seconds = _MAX_ASK_SECONDS if deadline is None else min(_MAX_ASK_SECONDS, deadline / 2)
        self._name = name
        self._arguments = {
            # Subscriptions of RESP2 need no handler for pushed messages, and its connections no HELLO.
            "protocol": _RESP2,
            "decode_responses": True,
            "encoding_errors": "replace",
            "driver_info": None,
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
            **arguments,
        }
        self._backoff = exponential_backoff(0.05, _MAX_BACKOFF_SECONDS)
        self._stranger_backoff = exponential_backoff(0.05, _MAX_STRANGER_BACKOFF_SECONDS)
        self._sentinels: list[_Sentinel] = []
        # The addresses of the given names, and why names could not be resolved.
        self._resolved: dict[Address, list[Address]] = {}
        self._unresolved: dict[Address, str] = {}
        self._was_representative = True
        self._ended: list[asyncio.Task[Any]] = []
        self._clear()

    def _clear(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = 0
        # An event loop keeps no task alive.
        self._tasks: set[asyncio.Task[Any]] = set()
        self._followers: dict[_Sentinel, asyncio.Task[None]] = {}
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
        self._connections: set[Connection] = set()

    # Looking the primary up.

    async def locate(self) -> PrimaryLocation:
        """Return where the primary is, as soon as calls are not held; begin to follow the sentinels.

        Raises:
            redis.exceptions.AuthenticationError: All sentinels that answer refuse the credentials.
            redis.exceptions.ConnectionError: No sentinel that answers knows the service, or none answers in time.
        """
        if self._loop is None:
            self._loop, self._process = asyncio.get_running_loop(), os.getpid()
        try:
            async with lag_tolerant_timeout(self._deadline):
                return await self._locate()
        except TimeoutError:
            raise self._failure(elect((), self._known())) from None

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
                return PrimaryLocation(*self.reachable(primary), self._outdated, primary, generation)

    def _check_open(self, resumed: asyncio.Event) -> None:
        if resumed is not self._resumed:
            message = f"pool {self._name!r} was closed while it looked for the primary of {self.tracker.service!r}"
            raise RedisConnectionError(message)

    def reachable(self, announced: Address) -> Address:
        """Return an address that was announced as it is to be connected to."""
        return announced if self._address_map is None else self._address_map.resolve(*announced)

    def refute(self, address: Address) -> None:
        """Take the word of a server that it is no primary."""
        self.tracker.refute(address, monotonic())

    async def _ask_once(self) -> Election:
        """Ask the sentinels; all that ask at the same time share the answer."""
        asking = self._asking
        if asking is None or asking.done():
            asking = self._asking = self._start(self._ask_all())
        # Not shielded: that would pass on the cancellation of the task as one of the caller.
        await asyncio.wait([asking])
        return elect((), self._known()) if asking.cancelled() else asking.result()

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

    def _start(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        # In a context of its own: it outlives the request that has begun it.
        task = asyncio.Task(work, loop=asyncio.get_running_loop(), context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _ask_all(self) -> Election:
        loop = asyncio.get_running_loop()
        asked_at = self._asked_at = monotonic()
        answers: list[Answer] = []
        asked: set[_Sentinel] = set()
        pending: dict[asyncio.Task[Any], _Sentinel | None] = dict.fromkeys(self._resolve_all())
        # As long as there is no address, there is nothing to do but to wait for one.
        deadline = inf
        election = elect(answers, self._known())
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
                        self._learn(sentinel, answer)
                election = elect(answers, self._known())
        finally:
            for task, sentinel in pending.items():
                if sentinel is not None:
                    task.cancel()
        self._on_election(election, answers, asked_at)
        return election

    def _on_silence(self, pending: Iterable[_Sentinel | None]) -> None:
        for sentinel in pending:
            if sentinel is not None:
                sentinel.on_failure(TimeoutError(f"no answer in {self._ask_seconds:g} s"))

    def _ask_further(self, asked: set[_Sentinel], answers: Iterable[Answer]) -> "dict[asyncio.Task[Any], _Sentinel]":
        """Ask where no sentinel was asked yet, unless the one that is announced there has answered elsewhere."""
        answered = {answer.sentinel for answer in answers}
        further = [
            each
            for each in self._sentinels
            if each not in asked and (each.given_as is not None or each.identity not in answered)
        ]
        asked.update(further)
        return {self._start(self._ask(place)): place for each in further for place in self._places(each)}

    def _resolve_all(self) -> "list[asyncio.Task[None]]":
        """Resolve the names that may have other addresses by now; return what to wait for before sentinels are counted.

        That is not what an earlier call has begun, if there are sentinels to ask: it may never end.
        """
        running = {given: task for given, task in self._resolving.items() if not task.done()}
        begun = {
            given: self._start(self._resolve(given))
            for given in self._given
            if given not in running and self._may_have_moved(given)
        }
        self._resolving = running | begun
        return list((begun if self._sentinels else self._resolving).values())

    def _may_have_moved(self, given: Address) -> bool:
        addresses = self._resolved.get(given, ())
        return not addresses or any(each.problem for each in self._sentinels if (each.host, each.port) in addresses)

    async def _resolve(self, given: Address) -> None:
        if given not in self._resolved:
            self._unresolved.setdefault(given, "its name is being resolved")
        try:
            addresses = await addresses_of(*given)
        except OSError as error:
            self._unresolved[given] = str(error)
            return
        self._unresolved.pop(given, None)
        self._set_addresses(given, addresses)
        if self._loop is not None and (self._asking is None or self._asking.done()):
            # Those who have asked did not wait.
            self._follow_all()

    def _set_addresses(self, given: Address, addresses: list[Address]) -> None:
        self._resolved[given] = addresses
        # The given ones last: several may be announced where one is given.
        in_order = sorted(self._sentinels, key=lambda each: each.given_as is not None)
        known = {(each.host, each.port): each for each in in_order}
        for host, port in addresses:
            if (host, port) in known:
                known[host, port].given_as = given
            else:
                self._sentinels.append(_Sentinel(host, port, given))
        self._sentinels = [
            each for each in self._sentinels if each.given_as != given or (each.host, each.port) in addresses
        ]

    def _places(self, sentinel: _Sentinel) -> list[_Sentinel]:
        """Return where to reach a sentinel: also behind a given address, if its own could not be reached last."""
        if sentinel.given_as is not None or not sentinel.problem:
            return [sentinel]
        # A given address that is announced is that of one sentinel; any other may be one in front of several.
        shared = [each for each in self._sentinels if each.given_as and each.identity and not each.is_announced]
        return [sentinel, _random.choice(shared)] if shared else [sentinel]

    async def _ask(self, sentinel: _Sentinel) -> Answer | None:
        service = self.tracker.service
        commands = [
            ("SENTINEL", "MYID"),
            ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service),
            ("SENTINEL", "MASTER", service),
            ("SENTINEL", "SENTINELS", service),
        ]
        if self._asks_replicas:
            commands.append(("SENTINEL", "REPLICAS", service))
        try:
            async with self._connected(sentinel, self._ask_seconds) as connection:
                await connection.send_packed_command(connection.pack_commands(commands))
                identity, *replies = [await _read(connection) for _ in commands]
            if isinstance(replies[0], ResponseError):
                sentinel.on_failure(replies[0])
                return None
            answer = answer_of(_identity_in(identity, sentinel), *replies)
        except Exception as error:  # noqa: BLE001 - whatever one has answered, the others count
            sentinel.on_failure(error)
            return None
        sentinel.on_answer()
        return answer

    @asynccontextmanager
    async def _connected(self, sentinel: _Sentinel, seconds: float) -> AsyncIterator[Connection]:
        try:
            async with asyncio.timeout(seconds):
                addresses = await addresses_of(sentinel.host, sentinel.port)
        except TimeoutError:
            message = f"its name was not resolved in {seconds:g} s"
            raise TimeoutError(message) from None
        for number, (address, _) in enumerate(addresses, 1):
            connection = self._connection_to(sentinel, address, seconds)
            self._connections.add(connection)
            try:
                try:
                    await connect(connection)
                except (RedisError, OSError) as error:
                    if number == len(addresses) or isinstance(error, AuthenticationError):
                        raise
                    continue
                yield connection
                return
            finally:
                self._connections.discard(connection)
                await close_connection(connection)

    def _connection_to(self, sentinel: _Sentinel, address: str, timeout: float) -> Connection:
        arguments = {
            **self._arguments,
            "host": address,
            "port": sentinel.port,
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
        }
        if not self._uses_tls:
            return with_safe_send(Connection(**arguments))
        name, _ = sentinel.given_as or (sentinel.host, sentinel.port)
        return with_safe_send(with_shared_context(NamedSSLConnection(server_name=name, **arguments)))

    # Which sentinels there are.

    def _learn(self, place: _Sentinel, answer: Answer) -> None:
        if place.given_as is not None and place.identity not in self._followed:
            # The one that is followed at the address is not forgotten for another one that was reached there since.
            place.identity = answer.sentinel
        for identity, announced in answer.others.items():
            host, port = self.reachable(announced)
            known = [each for each in self._sentinels if (each.host, each.port) == (host, port)]
            for each in known:
                if each.identity in {None, each.unknown_identity}:
                    each.identity = identity
                each.is_announced = each.is_announced or each.identity == identity
            # Also one that is known at another address: it may have moved, or be reached there by chance.
            if all(each.identity != identity for each in known):
                self._sentinels.append(_Sentinel(host, port, identity=identity, is_announced=True))

    def _known(self) -> int:
        """How many sentinels there are: a given name without the address of one that is known counts as another."""
        known = [each for each in self._sentinels if each.identity is not None]
        addresses = {(each.host, each.port) for each in known}
        others = [given for given in self._given if addresses.isdisjoint(self._resolved.get(given, ()))]
        return len({each.identity for each in known}) + len(others)

    def _on_election(self, election: Election, answers: Iterable[Answer], asked_at: float) -> None:
        if self._loop is None:
            # The pool was closed meanwhile.
            return
        if election.answered and election.is_representative:
            self._forget_unlisted(answers)
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
        if self._asks_replicas and election.primary is not None and listener is not None:
            listener.on_replicas(frozenset(self.reachable(each) for each in election.replicas))

    def _forget_unlisted(self, answers: Iterable[Answer]) -> None:
        """Forget the addresses at which no sentinel that has answered announces another one, unless they are given."""
        listed: dict[str | None, set[Address]] = {}
        for answer in answers:
            # One that has answered alone is where it was announced before.
            listed.setdefault(answer.sentinel, set())
            for identity, announced in answer.others.items():
                listed.setdefault(identity, set()).add(self.reachable(announced))
        kept = []
        for each in self._sentinels:
            addresses = listed.get(each.identity)
            is_listed = addresses is not None and (not addresses or (each.host, each.port) in addresses)
            each.is_announced = each.is_announced and is_listed
            if is_listed or each.given_as is not None:
                kept.append(each)
        self._sentinels = kept

    def _failure(self, election: Election) -> RedisConnectionError:
        problems = [
            *(f"{address_text(*address)}: {reason}" for address, reason in self._unresolved.items()),
            *(f"{each}: {each.problem}" for each in self._sentinels if each.problem),
        ]
        text = f"no primary of {self.tracker.service!r} is known: {election.answered} of {election.known} sentinels"
        text += " answered" + (", and none of them knows it" if election.answered else "")
        text += f" ({'; '.join(problems)})" if problems else ""
        if not election.answered and any(each.refuses for each in self._sentinels):
            return AuthenticationError(f"{text}; check sentinel_username and sentinel_password")
        return RedisConnectionError(text)

    # Following what sentinels announce.

    def _follow_all(self) -> None:
        for sentinel in self._followers.keys() - set(self._sentinels):
            self._followers.pop(sentinel).cancel()
        for sentinel in self._sentinels:
            # Those that have not answered yet as well: others were faster, or they are down for now.
            follower = self._followers.get(sentinel)
            if follower is None or follower.done():
                self._followers[sentinel] = self._start(self._follow(sentinel))

    async def _follow(self, sentinel: _Sentinel) -> None:
        failures, strangers, pause, is_logged = 0, 0, 0.0, False
        # When an address in front of several sentinels may be tried again: each connection may reach another one.
        shared_at = -inf
        while True:
            await asyncio.sleep(pause)
            await self._wait_unfollowed(sentinel)
            *_, place = self._places(sentinel) if failures and monotonic() >= shared_at else [sentinel]
            if place is not sentinel:
                strangers += 1
                shared_at = monotonic() + self._stranger_backoff(strangers // _STRANGERS_PER_BACKOFF)
            try:
                async with self._connected(place, _FOLLOW_SECONDS) as connection:
                    answer = await self._ask_who(connection, place)
                    identity = answer.sentinel
                    if sentinel.given_as is not None:
                        sentinel.identity = identity
                    self._learn(place, answer)
                    if sentinel.identity != identity:
                        strangers += place is sentinel
                        count = strangers // _STRANGERS_PER_BACKOFF if place is sentinel else 0
                        pause = self._stranger_backoff(count)
                    elif identity in self._followed:
                        pause = 0.0
                    else:
                        with self._following(identity):
                            await self._subscribe(connection)
                            place.on_answer()
                            failures = strangers = 0
                            # Events may have been missed until now.
                            self._ask_anew()
                            await self._take_events(connection)
                        pause = self._backoff(failures)
            except (RedisError, OSError) as error:
                failures += 1
                place.on_failure(error)
                pause = _REFUSED_SECONDS if place.refuses else self._backoff(failures)
                if failures == 1 and isinstance(error, ResponseError):
                    _LOGGER.warning(
                        "pool %r: the sentinel %s refuses subscriptions, so that failovers are noticed late: %s",
                        self._name,
                        place,
                        error,
                    )
            except Exception:
                # Whatever it is, the next event counts.
                failures += 1
                pause = self._backoff(failures)
                if not is_logged:
                    is_logged = True
                    _LOGGER.exception(
                        "pool %r: following the sentinel %s failed; it goes on with a new connection",
                        self._name,
                        place,
                    )

    async def _ask_who(self, connection: Connection, place: _Sentinel) -> Answer:
        """Ask which sentinel a connection has reached, and for the others: those who are asked may never name it."""
        await connection.send_packed_command(
            connection.pack_commands([("SENTINEL", "MYID"), ("SENTINEL", "SENTINELS", self.tracker.service)])
        )
        identity, others = [await _read(connection) for _ in range(2)]
        return answer_of(_identity_in(identity, place), None, None, others)

    async def _wait_unfollowed(self, sentinel: _Sentinel) -> None:
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

    async def _subscribe(self, connection: Connection) -> None:
        await connection.send_packed_command(
            connection.pack_commands([("PSUBSCRIBE", ABORT_EVENTS), ("SUBSCRIBE", *self._events)])
        )
        for _ in range(1 + len(self._events)):
            await connection.read_response()

    async def _take_events(self, connection: Connection) -> None:
        is_awaited = False
        while True:
            # Users who may not call PING get an error, which shows that the sentinel is there as well.
            response = await _read(connection, _PING_SECONDS)
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
            listener.on_switch(*self.reachable(self.tracker.primary))

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

    # Ending.

    def end(self) -> None:
        """Follow the sentinels no longer, until the primary is looked up again; may be called in any thread."""
        loop, connections, is_forked = self._loop, self._connections, os.getpid() != self._process
        tasks, timer, resumed = list(self._tasks), self._hold_timer, self._resumed
        self._clear()
        self.tracker.forget()
        if loop is None:
            return
        self._ended = tasks
        if not loop.is_running():
            # Nothing that is scheduled there may ever run.
            for connection in connections:
                if connection.is_connected:
                    abort_socket(connection, loop, forked=is_forked)
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


def _identity_in(reply: object, place: _Sentinel) -> str:
    """Return the identity in the reply to ``SENTINEL MYID``, or without one what was announced for the address."""
    return reply if isinstance(reply, str) else place.identity or place.unknown_identity


async def _read(connection: Connection, seconds: float | None = None) -> Any:
    """Return a reply, errors as well; ``None`` if ``seconds`` pass without one."""
    try:
        return await connection.read_response(timeout=seconds)
    except ResponseError as error:
        return error

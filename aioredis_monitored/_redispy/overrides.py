"""The methods of redis-py that are private, undocumented or untyped, and that this package calls or overrides.

``tests/integration/test_redispy_contract.py`` says what it relies on for each of them.

Calls for which this package only needs types are ``methodcaller``s: unlike a function, they add no Python call to those
of each command.
"""
# ruff: noqa: ASYNC109, SLF001 - what stands here is private to redis-py, or has its signature
# mypy: disallow-untyped-calls=False

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from operator import methodcaller
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, Self, overload

from redis._parsers.helpers import bool_ok, parse_set_result
from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.client import Monitor, Pipeline, PubSub
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.lock import Lock
from redis.client import EMPTY_RESPONSE, NEVER_DECODE
from redis.event import AsyncAfterConnectionReleasedEvent
from redis.himport import parse_himport_set_args
from redis.observability.attributes import PubSubDirection
from redis.observability.recorder import record_pubsub_message
from redis.typing import ChannelT, EncodableT, KeysT, KeyT, PatternT

__all__ = [
    "EMPTY_RESPONSE",
    "NEVER_DECODE",
    "PubSubDirection",
    "TypedLock",
    "TypedMonitor",
    "TypedPipeline",
    "TypedPool",
    "TypedPubSub",
    "TypedRedis",
    "announce_release",
    "bool_ok",
    "check_health",
    "close_after_failure",
    "connect",
    "connect_socket",
    "deregister_connect_callback",
    "execute_command",
    "forget_re_auth_token",
    "get_connection",
    "get_encoder",
    "parse_himport_set",
    "parse_set_result",
    "re_auth",
    "record_pubsub_message",
    "register_connect_callback",
    "send_and_parse",
    "should_reconnect",
    "single_connection_lock",
]

# Connections.

# Connects and shakes hands, if the connection is not connected.
connect: Final[Callable[[AbstractConnection], Coroutine[Any, Any, None]]] = methodcaller("connect")
# Connects the socket alone: neither a handshake nor the callbacks for a connection that is made.
connect_socket: Final[Callable[[AbstractConnection], Coroutine[Any, Any, None]]] = methodcaller("_connect")
# Sends a PING if ``health_check_interval`` has passed, and waits for the reply.
check_health: Final[Callable[[AbstractConnection], Coroutine[Any, Any, None]]] = methodcaller("check_health")
# Whether the connection must be closed after the current call.
should_reconnect: Final[Callable[[AbstractConnection], bool]] = methodcaller("should_reconnect")
# Sends the credentials given to ``set_re_auth_token``, if any, and discards them.
re_auth: Final[Callable[[AbstractConnection], Coroutine[Any, Any, None]]] = methodcaller("re_auth")
# Discards them unsent.
forget_re_auth_token: Final[Callable[[AbstractConnection], None]] = methodcaller("set_re_auth_token", None)


def register_connect_callback(
    connection: AbstractConnection, callback: Callable[[Any], Coroutine[Any, Any, None]]
) -> None:
    """Have a bound method called after each handshake; the connection refers to it weakly."""
    connection.register_connect_callback(callback)


def deregister_connect_callback(
    connection: AbstractConnection, callback: Callable[[Any], Coroutine[Any, Any, None]]
) -> None:
    """Have a bound method no longer called after handshakes."""
    connection.deregister_connect_callback(callback)


# Pools.

# Acquires a connected connection from any pool.
get_connection: Final[Callable[[ConnectionPool], Coroutine[Any, Any, AbstractConnection]]] = methodcaller(
    "get_connection"
)


def announce_release(pool: ConnectionPool, connection: AbstractConnection) -> Coroutine[Any, Any, None]:
    """Send new credentials, if any, on a connection that is released.

    Raises:
        redis.exceptions.RedisError: The server refuses them, or cannot be reached.
    """
    dispatcher: Any = pool._event_dispatcher
    sending: Coroutine[Any, Any, None] = dispatcher.dispatch_async(AsyncAfterConnectionReleasedEvent(connection))
    return sending


# Clients.


class ValueEncoder(Protocol):
    """Makes bytes of values, and of bytes what callers get."""

    def encode(self, value: EncodableT) -> bytes: ...

    def decode(self, value: EncodableT) -> EncodableT: ...


# The encoder of a client's values.
get_encoder: Final[Callable[[Redis], ValueEncoder]] = methodcaller("get_encoder")
# The operands of an HIMPORT SET, for which redis-py sends more than the command; ``None`` for any other command.
parse_himport_set: Final[Callable[[Sequence[Any]], object | None]] = parse_himport_set_args


def execute_command(client: Redis, *args: Any, **options: Any) -> Coroutine[Any, Any, Any]:
    """Run one command on any client and return its parsed reply."""
    return client.execute_command(*args, **options)


def send_and_parse(
    client: Redis,
    connection: AbstractConnection,
    command_name: str | bytes,
    args: Sequence[Any],
    options: Mapping[str, Any],
) -> Coroutine[Any, Any, Any]:
    """Make one attempt: send a command on a connection, and return its reply as the client or pipeline parses it.

    Args:
        client: The client or pipeline.
        connection: The connection.
        command_name: The name under which the response callback is found.
        args: The command.
        options: Those of ``parse_response``.
    """
    return client._send_command_parse_response(connection, command_name, *args, **options)


def close_after_failure(client: Redis) -> Callable[..., Coroutine[Any, Any, None]]:
    """Return what redis-py calls with the connection and the error after a failed attempt, which disconnects it."""
    close: Callable[..., Coroutine[Any, Any, None]] = client._close_connection
    return close


def single_connection_lock(client: Redis) -> asyncio.Lock:
    """Return the lock under which a client that keeps to one connection uses it."""
    lock: asyncio.Lock = client._single_conn_lock
    return lock


# Types for what subclasses override and call with super(): at run time, these are redis-py's own classes.

if TYPE_CHECKING:
    from redis.asyncio.client import AsyncPubsubWorkerExceptionHandler, PubsubWorkerExceptionHandler
    from typing_extensions import TypeVar

    _ScoreT = TypeVar("_ScoreT", default=float)

    class TypedPool(BlockingConnectionPool):
        """redis-py's blocking pool."""

        def make_connection(self) -> AbstractConnection: ...

        def get_available_connection(self) -> AbstractConnection: ...

    class TypedRedis(Redis):
        """redis-py's client, whose iterators do not say what they yield."""

        async def _send_command_parse_response(
            self, conn: Any, command_name: str | bytes, *args: Any, **options: Any
        ) -> Any: ...

        def scan_iter(  # type: ignore[override]  # redis-py's own bases disagree
            self, match: PatternT | None = None, count: int | None = None, _type: str | None = None, **kwargs: Any
        ) -> AsyncGenerator[bytes | str]: ...

        def sscan_iter(  # type: ignore[override]  # redis-py's own bases disagree
            self, name: KeyT, match: PatternT | None = None, count: int | None = None
        ) -> AsyncGenerator[bytes | str]: ...

        def zscan_iter(  # type: ignore[override]  # redis-py's own bases disagree
            self,
            name: KeyT,
            match: PatternT | None = None,
            count: int | None = None,
            score_cast_func: Callable[[Any], _ScoreT] = ...,
        ) -> AsyncGenerator[tuple[bytes | str, _ScoreT] | list[bytes | str | _ScoreT]]: ...

        @overload  # type: ignore[override]  # redis-py's own bases disagree
        def hscan_iter(
            self,
            name: KeyT,
            match: PatternT | None = None,
            count: int | None = None,
            no_values: Literal[False] | None = None,
        ) -> AsyncGenerator[tuple[bytes | str, bytes | str]]: ...

        @overload
        def hscan_iter(
            self, name: KeyT, match: PatternT | None = None, count: int | None = None, *, no_values: Literal[True]
        ) -> AsyncGenerator[bytes | str]: ...

        @overload
        def hscan_iter(
            self, name: KeyT, match: PatternT | None = None, count: int | None = None, no_values: bool | None = None
        ) -> AsyncGenerator[tuple[bytes | str, bytes | str]] | AsyncGenerator[bytes | str]: ...

        def hscan_iter(self, *args: Any, **kwargs: Any) -> Any: ...

    class TypedPipeline(Pipeline):
        """redis-py's pipeline, whose batches run on any object that packs, sends and reads as a connection does."""

        def __len__(self) -> int: ...

        def multi(self) -> None: ...

        async def watch(self, *names: KeyT) -> bool: ...  # type: ignore[override]  # redis-py's own bases disagree

        async def unwatch(self) -> bool: ...  # type: ignore[override]  # redis-py's own bases disagree

        async def discard(self) -> None: ...

        async def reset(self) -> None: ...  # type: ignore[override]  # redis-py's own bases disagree

        async def load_scripts(self) -> None: ...

        async def _execute_transaction(self, connection: Any, commands: Any, raise_on_error: bool) -> list[Any]: ...

        async def _execute_pipeline(self, connection: Any, commands: Any, raise_on_error: bool) -> list[Any]: ...

        async def _send_command_parse_response(
            self, conn: Any, command_name: str | bytes, *args: Any, **options: Any
        ) -> Any: ...

        async def _disconnect_raise_on_watching(self, connection: Any, *failure: Any) -> None: ...

        async def _disconnect_reset_raise_on_watching(self, connection: Any, *failure: Any) -> None: ...

    class TypedPubSub(PubSub):
        """redis-py's subscriptions."""

        connection: Any
        encoder: ValueEncoder

        async def aclose(self) -> None: ...

        async def check_health(self) -> None: ...

        async def connect(self) -> None: ...

        async def handle_message(self, response: Any, ignore_subscribe_messages: bool = False) -> Any: ...

        async def __aenter__(self) -> Self: ...

        async def __aexit__(self, *raised: object) -> None: ...

        @property
        def subscribed(self) -> bool: ...

        def unsubscribe(self, *args: KeysT) -> Awaitable[None]: ...

        def punsubscribe(self, *args: ChannelT) -> Awaitable[None]: ...

        def sunsubscribe(self, *args: KeysT, target_node: Any = None) -> Awaitable[None]: ...

        def ping(self, message: EncodableT | None = None) -> Awaitable[bool]: ...

        def listen(self) -> AsyncGenerator[dict[str, Any]]: ...

        async def get_message(
            self,
            ignore_subscribe_messages: bool = False,
            timeout: float | None = 0.0,
        ) -> dict[str, Any] | None: ...

        async def run(
            self,
            *,
            exception_handler: PubsubWorkerExceptionHandler | AsyncPubsubWorkerExceptionHandler | None = None,
            poll_timeout: float = 1.0,
            pubsub: PubSub | None = None,
        ) -> None: ...

    class TypedMonitor(Monitor):
        """redis-py's monitor."""

        async def __aenter__(self) -> Any: ...

    class TypedLock(Lock):
        """redis-py's lock, which declares its scripts as ``None`` and takes any object for ``local``."""

        local: Any
        lua_extend: Any
        lua_reacquire: Any
        lua_release: Any

else:
    TypedPool = BlockingConnectionPool
    TypedRedis = Redis
    TypedPipeline = Pipeline
    TypedPubSub = PubSub
    TypedMonitor = Monitor
    TypedLock = Lock

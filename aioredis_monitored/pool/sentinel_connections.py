"""The connections to sentinels, and what is asked over them."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from redis.asyncio import Connection
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig

from aioredis_monitored._redispy.connections import ClosingConnections, with_safe_send, with_shared_context
from aioredis_monitored._redispy.located import NamedSSLConnection
from aioredis_monitored._redispy.overrides import connect
from aioredis_monitored._topology.known_sentinels import Sentinel
from aioredis_monitored._topology.sentinel import ABORT_EVENTS, EVENTS, REPLICA_EVENTS, Answer, answer_of
from aioredis_monitored.pool.names import addresses_of

_RESP2: Final = 2
# What a server replies that is no sentinel.
_UNKNOWN: Final = "unknown command"


class SentinelConnections:
    """Connects to the sentinels of one service, and asks them about it.

    Args:
        service: The name of the service.
        arguments: Arguments of the connections, such as credentials and those for TLS.
        uses_tls: Whether the connections are encrypted.
        asks_replicas: Whether the sentinels are also asked which replicas are in sync, and for the events about these.

    Attributes:
        asks_replicas: Whether the sentinels are also asked which replicas are in sync, and for the events about these.
    """

    def __init__(self, service: str, arguments: Mapping[str, Any], *, uses_tls: bool, asks_replicas: bool) -> None:
        self.asks_replicas = asks_replicas
        self._service = service
        self._uses_tls = uses_tls
        self._events = (*EVENTS, *REPLICA_EVENTS) if asks_replicas else EVENTS
        self._arguments = {
            # Subscriptions of RESP2 need no handler for pushed messages, and its connections no HELLO.
            "protocol": _RESP2,
            "decode_responses": True,
            "encoding_errors": "replace",
            "driver_info": None,
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
            **arguments,
        }
        self._connections: set[Connection] = set()
        self._closing = ClosingConnections()

    @asynccontextmanager
    async def connected(self, sentinel: Sentinel, seconds: float) -> AsyncIterator[Connection]:
        """Connect to a sentinel, and close the connection when the block ends.

        Args:
            sentinel: Where to connect to; of a name, its addresses are tried one after the other.
            seconds: The time to resolve the name, to connect to each address, and to get a reply.

        Raises:
            OSError: The name has no address, or was not resolved in time.
            redis.exceptions.AuthenticationError: The sentinel refuses the credentials.
            redis.exceptions.RedisError: No address can be connected to.
        """
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
                # What was asked is answered, and may have little time.
                await self._closing.close(connection)

    def _connection_to(self, sentinel: Sentinel, address: str, timeout: float) -> Connection:
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

    def detach(self) -> list[AbstractConnection]:
        """Return all connections, those that are being made or closed as well, and forget those that are open."""
        connections, self._connections = self._connections, set()
        return [*connections, *self._closing]

    async def wait_closed(self) -> None:
        """Wait until the sockets of the connections that were closed are, for at most two seconds."""
        await self._closing.wait_closed()

    # Asking.

    async def ask(self, sentinel: Sentinel, seconds: float) -> Answer | None:
        """Ask a sentinel where the primary is, which other sentinels there are, and which replicas if that is wanted.

        Args:
            sentinel: Which one to ask; it gets to know whether it has answered.
            seconds: The time that it has.

        Returns:
            What it answers; ``None`` if it does not.
        """
        commands = [
            ("SENTINEL", "MYID"),
            ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service),
            ("SENTINEL", "MASTER", self._service),
            ("SENTINEL", "SENTINELS", self._service),
        ]
        if self.asks_replicas:
            commands.append(("SENTINEL", "REPLICAS", self._service))
        try:
            async with self.connected(sentinel, seconds) as connection:
                await connection.send_packed_command(connection.pack_commands(commands))
                identity, *replies = [await read_reply(connection) for _ in commands]
            if isinstance(error := replies[0], ResponseError):
                if _UNKNOWN in str(error):
                    error = ResponseError(f"{error}; it is no sentinel: name sentinels, or use redis:// for a server")
                sentinel.on_failure(error)
                return None
            answer = answer_of(sentinel.identity_in(identity), *replies)
        except Exception as error:  # noqa: BLE001 - whatever one has answered, the others count
            sentinel.on_failure(error)
            return None
        sentinel.on_answer()
        return answer

    async def identify(self, connection: Connection, place: Sentinel) -> Answer:
        """Ask which sentinel a connection has reached, and for the others: those who are asked may never name it."""
        await connection.send_packed_command(
            connection.pack_commands([("SENTINEL", "MYID"), ("SENTINEL", "SENTINELS", self._service)])
        )
        identity, others = [await read_reply(connection) for _ in range(2)]
        return answer_of(place.identity_in(identity), None, None, others)

    async def subscribe(self, connection: Connection) -> None:
        """Subscribe to the events of the sentinel that a connection has reached."""
        await connection.send_packed_command(
            connection.pack_commands([("PSUBSCRIBE", ABORT_EVENTS), ("SUBSCRIBE", *self._events)])
        )
        for _ in range(1 + len(self._events)):
            await connection.read_response()


async def read_reply(connection: Connection, seconds: float | None = None) -> Any:
    """Return a reply, errors as well; ``None`` if ``seconds`` pass without one."""
    try:
        return await connection.read_response(timeout=seconds)
    except ResponseError as error:
        return error

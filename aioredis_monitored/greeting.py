"""The first words on a new RESP2 connection, so that a server that turns it away is heard."""

from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError


async def greet(connection: AbstractConnection) -> None:
    """Connect as redis-py does, after a first exchange.

    A server with too many clients says so and hangs up. redis-py asks something at once in RESP3 only; in RESP2 it
    writes several commands before it reads, one of which fails, and what the server said is lost.

    Raises:
        redis.exceptions.ConnectionError: The server turns the connection away, and its reason.
    """
    parser: Any = connection._parser  # noqa: SLF001 - redis-py's on_connect does it too, but reads too late
    parser.on_connect(connection)
    await connection.send_command("PING", check_health=False)
    try:
        await connection.read_response(disconnect_on_error=False)
    except RedisError as error:
        # Any other answer, such as NOAUTH, is none of the greeting's business.
        if getattr(error, "status_code", None) in {None, "ERR"}:
            raise
    await connection.on_connect()

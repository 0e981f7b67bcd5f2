"""Waiting on a connection of one's own for something to fetch."""

import asyncio
import builtins
from asyncio import sleep  # see attempts
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from math import inf
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import (
    ConnectionError,  # noqa: A004
    OutOfMemoryError,
    RedisError,
    ResponseError,
    TimeoutError,  # noqa: A004
)

from aioredis_monitored.deadline import LATE, patient_timeout
from aioredis_monitored.fetching.aside import Aside
from aioredis_monitored.fetching.fetch import SETTLE_SECONDS, Fetch
from aioredis_monitored.patience import insist, patiently, shielded
from aioredis_monitored.retry import pauses

# Of the first attempt to unblock a connection, doubled each time: a command can be overtaken by what is to end it.
_FIRST_PAUSE: Final = 0.005
# So many seconds before the end the server's clock and ours agree that it is over.
CLOSE_ENOUGH: Final = 0.01
# Seconds between one look and the next while the server has no memory for waiting.
_seconds_after = pauses(0.02, 0.5)


class Waiting:
    """Waits on a connection of one's own until there is something to fetch.

    Args:
        connection: A connected one.
        fetch: What to fetch.
        send_aside: Sends a command while this connection waits.
    """

    def __init__(self, connection: AbstractConnection, fetch: Fetch, send_aside: Aside) -> None:
        self._connection = connection
        self._fetch = fetch
        self._send_aside = send_aside
        self._answer_within = connection.socket_timeout
        self._owed = 0
        self._replies: list[Any] = []
        self._may_be_unblocked = False
        # Until when what a caller has left is settled, and whether that was put off.
        self._settled_by = inf
        self._was_busy = False

    async def fetched(self, seconds: float) -> Any:
        """What comes within so many seconds, or is there if that is 0; ``None`` if nothing comes.

        Raises:
            redis.exceptions.ConnectionError: The connection broke; what was on its way is lost.
            redis.exceptions.TimeoutError: The server does not answer, not even that there is nothing.
            redis.exceptions.ResponseError: The server's error.
        """
        connection, fetch, loop = self._connection, self._fetch, asyncio.get_running_loop()
        # With one, redis-py would write in steps between which it can be cancelled.
        connection.socket_timeout = None
        try:
            deadline = loop.time() + seconds
            found = None
            if seconds == 0 or fetch.is_batch:
                found = await self._look()
            failures = 0
            while found is None and (left := deadline - loop.time()) > CLOSE_ENOUGH:
                wait = min(left, fetch.longest_wait)
                try:
                    found = await self._ask(fetch.waiting(wait), wait, fetch.arrived)
                except OutOfMemoryError:
                    # Waiting may need memory, also if nothing comes; what is there can be fetched without.
                    found = await self._look()
                    failures += 1
                    if found is None:
                        await sleep(min(left, _seconds_after(failures)))
            if found is None:
                fetch.note_empty()
            return found
        finally:
            connection.socket_timeout = self._answer_within
            if self._owed or self._may_be_unblocked:
                await connection.disconnect(nowait=True)

    async def _look(self) -> Any:
        fetch = self._fetch
        return await self._ask([fetch.at_once()], 0, lambda replies: _found(fetch, replies))

    async def _ask(
        self, commands: Sequence[tuple[Any, ...]], wait: float, found_in: Callable[[Sequence[Any]], Any]
    ) -> Any:
        limit = None if self._answer_within is None else wait + self._answer_within
        try:
            async with patient_timeout(limit):
                # Its id is for unblocking it.
                await self._say(("CLIENT", "ID"), *commands)
                await self._hear()
        except asyncio.CancelledError:
            self._begin_to_settle()
            with suppress(builtins.TimeoutError):
                # It ends by then by itself; later, the connection is closed.
                await insist(partial(self._settle, found_in), 3 * SETTLE_SECONDS)
            raise
        except builtins.TimeoutError:
            raise TimeoutError(f"no reply in {limit:.3g} s") from None
        _, *replies = self._replies
        error = next((reply for reply in replies if isinstance(reply, Exception)), None)
        found = found_in(_without_errors(replies))
        if error is not None:
            if found is not None:
                self._begin_to_settle()
                await self._put_back(found)
            raise error
        return found

    async def _say(self, *commands: tuple[Any, ...]) -> None:
        connection = self._connection
        self._owed, self._replies = len(commands), []
        if not connection.is_connected:
            # redis-py would connect anew.
            raise ConnectionError("Connection closed.")
        await connection.send_packed_command(connection.pack_commands(commands), check_health=False)

    async def _hear(self) -> None:
        """Read what is owed; it may be cancelled and called again."""
        while self._owed:
            try:
                reply = await self._connection.read_response(True, inf, disconnect_on_error=False)
            except ResponseError as error:
                reply = error
            self._owed -= 1
            self._replies.append(reply)

    def _begin_to_settle(self) -> None:
        self._settled_by = asyncio.get_running_loop().time() + SETTLE_SECONDS
        self._was_busy = False

    def _may_settle(self) -> bool:
        """Whether there is time to settle; an event loop that was busy at its end has not read what came by then."""
        now = asyncio.get_running_loop().time()
        if not self._was_busy and now - self._settled_by > LATE:
            self._was_busy = True
            self._settled_by = now + SETTLE_SECONDS
        return now < self._settled_by

    async def _settle(self, found_in: Callable[[Sequence[Any]], Any]) -> None:
        """Let the waiting end, and put back what it has brought."""
        asked = await self._unblock()
        if self._owed:
            self._fetch.note_unsettled()
        else:
            found = found_in(_without_errors(self._replies[1:]))
            if found is not None:
                await self._put_back(found)
        for each in asked:
            if not await patiently(each, self._settled_by):
                # It would unblock whoever has the connection then.
                self._may_be_unblocked = True
                each.cancel()

    async def _unblock(self) -> list["asyncio.Future[Any]"]:
        asked: list[asyncio.Future[Any]] = []
        pause = _FIRST_PAUSE
        while self._owed and self._may_settle():
            if self._replies and isinstance(self._replies[0], int):
                asked.append(self._send_aside("CLIENT", "UNBLOCK", self._replies[0]))
            if not await self._hear_for(pause):
                break
            pause *= 2
        return asked

    async def _put_back(self, found: Any) -> None:
        for command in self._fetch.putting_back(found):
            with suppress(RedisError, asyncio.CancelledError, builtins.TimeoutError):
                async with self._in_time(inf):
                    await self._say(command)
            while self._owed and self._may_settle():
                if not await self._hear_for(inf):
                    break
            if self._owed or not isinstance(self._replies[0], Exception):
                break
        if self._owed or isinstance(self._replies[0], Exception):
            self._fetch.note_unsettled()

    async def _hear_for(self, seconds: float) -> bool:
        """Read what is owed, whatever happens to this task; return whether that can be gone on with."""
        try:
            with shielded():
                async with self._in_time(seconds):
                    await self._hear()
        except (asyncio.CancelledError, builtins.TimeoutError):
            return True
        except RedisError:
            return False
        return True

    def _in_time(self, seconds: float) -> AbstractAsyncContextManager[object]:
        return patient_timeout(max(0.0, min(seconds, self._settled_by - asyncio.get_running_loop().time())))


def _found(fetch: Fetch, replies: Sequence[Any]) -> Any:
    (reply,) = replies
    return None if reply is None else fetch.found(reply)


def _without_errors(replies: Sequence[Any]) -> list[Any]:
    return [None if isinstance(reply, Exception) else reply for reply in replies]

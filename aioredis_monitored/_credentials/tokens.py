"""A provider of tokens that expire: it renews them in time, and hands the new ones to those who listen."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextvars import Context
from time import monotonic
from typing import Any, Final, NamedTuple
from weakref import ref

from redis import exceptions
from redis.auth.token import TokenInterface
from redis.credentials import StreamingCredentialProvider
from redis.exceptions import RedisError

_LOGGER: Final = logging.getLogger("aioredis_monitored.credentials")
# The part of a token's life after which it is renewed, and that after which new connections wait for the new one.
_RENEWED_AT: Final = 0.5
_AWAITED_AT: Final = 0.75
# Between two requests for a token when the first has failed, or has brought the same token.
_MIN_DELAY_SECONDS: Final = 0.2
_MAX_RETRY_SECONDS: Final = 30.0


class _Issued(NamedTuple):
    """A token, and by the monotonic clock, when it is renewed, when connections wait for that, and when it expires."""

    token: TokenInterface
    renew_at: float
    await_at: float
    expires_at: float


class TokenProvider(StreamingCredentialProvider):
    """Gives connections the present token, and listeners each new one before the last one expires.

    A token is requested in a thread, as that may take a network, by one caller for all that want one at the same time.
    When half of its life is over, the next connection has it renewed; if there is no new one to be had, the present one
    is used for as long as it is valid. From the first connection on, a timer renews it for those connections that are
    there, and goes on trying when that fails. The timer ends with the provider or with the event loop.

    Args:
        name: What errors and the log call the provider.
        request_token: Returns a token, whose claim ``oid`` is the name of its user. It is called in a thread.
        session_seconds: How long the server keeps a connection after it has accepted a token, if that does not depend
            on the token; default ``None``: until the token expires.
    """

    def __init__(
        self, name: str, request_token: Callable[[], TokenInterface], session_seconds: float | None = None
    ) -> None:
        self._name = name
        self._request_token = request_token
        self._session_seconds = session_seconds
        self._issued: _Issued | None = None
        self._listeners: list[Callable[[Any], Any]] = []
        # What listeners know.
        self._announced: str | None = None
        self._request: asyncio.Task[_Issued] | None = None
        # Renews, in this event loop.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._renewal: asyncio.Task[None] | None = None
        self._is_failing = False

    async def get_credentials_async(self) -> tuple[str, str]:
        """Return the user and the token for a new connection.

        Raises:
            redis.exceptions.ConnectionError: No token could be had, and the last one has expired.
            redis.exceptions.AuthenticationError: There is nothing to get a token with.
        """
        issued = self._issued
        if issued is None or monotonic() >= issued.await_at:
            try:
                issued = await self._renew()
            except RedisError:
                if issued is None or monotonic() >= issued.expires_at:
                    raise
        elif monotonic() >= issued.renew_at:
            # The present one will do: a server of tokens that is slow delays no connection.
            self._begin_request()
        self._start_renewing(issued)
        return (issued.token.try_get("oid"), issued.token.get_value())

    def discard(self, credentials: Any) -> None:
        """Forget a token that the server has refused; the next connection gets another one."""
        issued = self._issued
        if issued is not None and tuple(credentials) == (issued.token.try_get("oid"), issued.token.get_value()):
            self._issued = None

    def on_next(self, callback: Callable[[Any], Any]) -> None:
        """Have an async callback called with each new token, beside those that are there."""
        self._listeners.append(callback)

    def on_error(self, callback: Callable[[Exception], Any]) -> None:
        """Ignore a callback: a renewal that fails is logged, and tried again."""

    def is_streaming(self) -> bool:
        """Whether tokens are renewed without being asked for."""
        return self._loop is not None and not self._loop.is_closed()

    # Requesting.

    async def _renew(self) -> _Issued:
        # A caller that leaves must not take it from the others.
        return await asyncio.shield(self._begin_request())

    def _begin_request(self) -> asyncio.Task[_Issued]:
        loop = asyncio.get_running_loop()
        request = self._request
        if request is None or request.done() or request.get_loop() is not loop:
            # In a context of its own: it is not one caller's.
            request = self._request = loop.create_task(self._obtain(), context=Context())
            request.add_done_callback(_retrieve, context=Context())
        return request

    async def _obtain(self) -> _Issued:
        try:
            self._issued = await self._request_once()
        except RedisError as error:
            # The first of several failures in a row.
            if not self._is_failing:
                _LOGGER.warning("%s; it is tried again, and a token that is still valid is used meanwhile", error)
            self._is_failing = True
            raise
        self._is_failing = False
        return self._issued

    async def _request_once(self) -> _Issued:
        try:
            token = await asyncio.to_thread(self._request_token)
        except RedisError:
            raise
        except Exception as error:
            # Its text may quote secrets. Libraries wrap what has happened.
            cause = error.__cause__ or error.__context__ or error
            raise exceptions.ConnectionError(
                f"the credentials {self._name!r} gave no token: {type(cause).__qualname__}"
            ) from error
        lifetime, now = token.get_expires_at_ms() / 1000 - time.time(), monotonic()
        if lifetime <= 0:
            raise exceptions.ConnectionError(
                f"the credentials {self._name!r} gave a token that has expired; is this machine's clock right?"
            )
        return _Issued(token, now + lifetime * _RENEWED_AT, now + lifetime * _AWAITED_AT, now + lifetime)

    # Renewing.

    def _start_renewing(self, issued: _Issued) -> None:
        if not self._listeners or self.is_streaming():
            return
        self._loop = asyncio.get_running_loop()
        self._announced = issued.token.get_value()
        self._schedule(self._delay_after(issued))

    def _schedule(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        # A provider without a pool stops.
        loop.call_later(seconds, _on_time, ref(self), context=Context())

    def start_renewal(self) -> None:
        """Renew the token, and schedule the next renewal."""
        self._renewal = asyncio.get_running_loop().create_task(self._renew_and_announce(), context=Context())

    async def _renew_and_announce(self) -> None:
        try:
            issued = await self._renew()
        except RedisError:
            self._schedule(self._delay_after_failure())
            return
        self._schedule(self._delay_after(issued))
        # Libraries that keep tokens return the same one until shortly before its end.
        if self._announced != (value := issued.token.get_value()):
            self._announced = value
            for listener in self._listeners:
                await listener(issued.token)

    def _delay_after(self, issued: _Issued) -> float:
        if self._session_seconds is not None:
            return self._session_seconds * _RENEWED_AT
        return max(_MIN_DELAY_SECONDS, issued.renew_at - monotonic())

    def _delay_after_failure(self) -> float:
        remaining = 0.0 if self._issued is None else self._issued.expires_at - monotonic()
        # Some more attempts while the present token is valid.
        delay = remaining / 4 if remaining > 0 else _MAX_RETRY_SECONDS
        return min(_MAX_RETRY_SECONDS, max(_MIN_DELAY_SECONDS, delay))


def _on_time(reference: "ref[TokenProvider]") -> None:
    if (provider := reference()) is not None:
        provider.start_renewal()


def _retrieve(request: "asyncio.Task[_Issued]") -> None:
    # For asyncio: those who wait for it raise it, and they may all have left.
    if not request.cancelled():
        request.exception()

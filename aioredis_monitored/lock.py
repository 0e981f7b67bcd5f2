"""redis-py's lock: acquiring it is one span, and how long locks are waited for and held is measured."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any, Literal, cast

from redis.asyncio.lock import Lock
from redis.exceptions import LockNotOwnedError
from redis.typing import Number

from aioredis_monitored.handle import Handle
from aioredis_monitored.telemetry import own
from aioredis_monitored.telemetry.ambience import folded
from aioredis_monitored.telemetry.operation import Operation
from aioredis_monitored.telemetry.telemetry import Telemetry


class MonitoredLock(Lock):
    """A lock that reports where its client does, and whose scripts are its own.

    redis-py keeps them on the class, bound to the first client of the process, which keeps that client, its pool and
    its event loop alive.
    """

    def register_scripts(self) -> None:
        """Bind the three scripts to this lock's client."""
        # redis-py declares the three as None.
        self.lua_release = self.redis.register_script(self.LUA_RELEASE_SCRIPT)  # type: ignore[assignment]
        self.lua_extend = self.redis.register_script(self.LUA_EXTEND_SCRIPT)  # type: ignore[assignment]
        self.lua_reacquire = self.redis.register_script(self.LUA_REACQUIRE_SCRIPT)  # type: ignore[assignment]

    async def acquire(
        self, blocking: bool | None = None, blocking_timeout: Number | None = None, token: str | bytes | None = None
    ) -> bool:
        """Acquire the lock, as redis-py does; one span, whatever it takes.

        Args:
            blocking: Whether to wait for it; default: as the lock was made.
            blocking_timeout: How long to wait, in seconds; default: as the lock was made.
            token: What to know the holder by; default: something random.

        Returns:
            Whether it was acquired.
        """
        client = self.redis
        if not isinstance(client, Handle) or not client.telemetry.is_heard():
            acquired: bool = await super().acquire(blocking, blocking_timeout, token)
            return acquired
        expiry = ("PX", int(self.timeout * 1000)) if self.timeout else ()
        # As redis-py's do_acquire sends it; the token shows nowhere.
        command = ("SET", self.name, b"", "NX", *expiry)
        operation = client.operation_of(client.telemetry.acquisition_call(command), command)
        return await operation.observe(self._acquire(client.telemetry, operation, blocking, blocking_timeout, token))

    async def _acquire(self, telemetry: Telemetry, operation: Operation, *how: Any) -> bool:
        polling = _Polling(self, telemetry)
        acquired: bool = False
        started = perf_counter()
        try:
            with folded(operation):
                acquired = await Lock.acquire(cast("Lock", polling), *how)
        finally:
            now = perf_counter()
            if acquired:
                # It may have expired before, unnoticed.
                self._end_hold(is_lost=True)
                # Beside the token, which threads have one each of.
                self.local.held_since = now
            telemetry.measure(telemetry.instruments.lock_wait_time.record, now - started)
            outcome = {own.LOCK_ACQUIRED: acquired, own.LOCK_POLLS: polling.count}
            operation.call = operation.call.with_span_attributes(outcome)
        return acquired

    async def do_release(self, expected_token: bytes) -> None:
        """Give it up; redis-py's ``release`` calls this."""
        with self._noticing_loss():
            await super().do_release(expected_token)
        self._end_hold()

    async def do_extend(self, additional_time: Number, replace_ttl: bool) -> Literal[True]:
        """Keep it for longer; redis-py's ``extend`` calls this."""
        with self._noticing_loss():
            return await super().do_extend(additional_time, replace_ttl)

    async def do_reacquire(self) -> Literal[True]:
        """Keep it for its whole time once more; redis-py's ``reacquire`` calls this."""
        with self._noticing_loss():
            return await super().do_reacquire()

    @contextmanager
    def _noticing_loss(self) -> Iterator[None]:
        try:
            yield
        except LockNotOwnedError:
            self._end_hold(is_lost=True)
            raise

    def _end_hold(self, *, is_lost: bool = False) -> None:
        client, since = self.redis, getattr(self.local, "held_since", None)
        if since is None or not isinstance(client, Handle):
            return
        # redis-py keeps the token of a lock that extend has found lost; it is counted once.
        self.local.held_since = None
        telemetry = client.telemetry
        telemetry.measure(telemetry.instruments.lock_hold_time.record, perf_counter() - since)
        if is_lost:
            telemetry.measure(telemetry.instruments.lock_lost.add, 1)


class _Polling:
    """Stands in for a lock in redis-py's loop that polls for it: tasks may share the lock, but not the count."""

    def __init__(self, lock: MonitoredLock, telemetry: Telemetry) -> None:
        self._lock = lock
        self._telemetry = telemetry
        self.count = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lock, name)

    async def do_acquire(self, token: str | bytes) -> bool:
        self.count += 1
        acquired = await self._lock.do_acquire(token)
        if not acquired and self.count == 1:
            # At once: who looks at the metrics may be looking for what this waits for.
            self._telemetry.measure(self._telemetry.instruments.lock_contended.add, 1)
        return acquired

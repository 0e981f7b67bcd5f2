"""Names of servers, each of which is resolved once at a time, in a thread of its own."""

import asyncio
import os
import socket
from contextlib import suppress
from threading import Lock, Thread
from time import monotonic
from typing import Final

from aioredis_monitored.config.addresses import Address, is_ip_address

# Seconds for which an outcome is kept that none has waited for to the end: those who left try again.
_KEPT_SECONDS: Final = 3.0

# Its addresses, or why there are none.
_Outcome = list[str] | str


async def addresses_of(host: str, port: int) -> list[Address]:
    """Return all addresses of a name; that of an IP address is itself.

    That takes as long as the system takes: it is for the caller to leave. The resolution then goes on, and serves those
    who ask for the same name while it does, or if none was left, within 3 s of its end. A name that the system never
    resolves has one thread, and no other name waits for it.

    Args:
        host: The name or IP address.
        port: The port of each address.

    Raises:
        OSError: The name has no address, or the system cannot say which.
    """
    if is_ip_address(host):
        return [(host, port)]
    waiter: asyncio.Future[_Outcome] = asyncio.get_running_loop().create_future()
    resolution = _resolutions.join(host, waiter)
    try:
        outcome = await waiter
    finally:
        _resolutions.leave(resolution, waiter)
    if isinstance(outcome, str):
        raise OSError(outcome)
    return [(address, port) for address in outcome]


class _Resolution:
    """One resolution of a name, with those who wait for its outcome."""

    def __init__(self) -> None:
        self.waiters: set[asyncio.Future[_Outcome]] = set()
        self.outcome: _Outcome | None = None
        self.ended_at = 0.0

    @property
    def is_outdated(self) -> bool:
        """Whether it has ended too long ago."""
        return self.outcome is not None and monotonic() - self.ended_at > _KEPT_SECONDS


class _Resolutions:
    """Those of this process that go on, or have an outcome for which none has waited."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all of them, as a forked process does, which has none of the threads."""
        self._lock = Lock()
        self._by_host: dict[str, _Resolution] = {}

    def join(self, host: str, waiter: "asyncio.Future[_Outcome]") -> _Resolution:
        """Have a future get the outcome of the resolution of a name, which is begun if that is not done yet."""
        with self._lock:
            self._by_host = {name: each for name, each in self._by_host.items() if not each.is_outdated}
            resolution = self._by_host.get(host)
            if resolution is None:
                resolution = _Resolution()
                # Not one of the event loop's: names that are never resolved would take all of these, and the loop's end
                # would wait for them.
                Thread(target=self._resolve, args=(host, resolution), name=f"resolve {host}", daemon=True).start()
                self._by_host[host] = resolution
            if resolution.outcome is None:
                resolution.waiters.add(waiter)
            else:
                waiter.set_result(resolution.outcome)
        return resolution

    def leave(self, resolution: _Resolution, waiter: "asyncio.Future[_Outcome]") -> None:
        """Wait no longer."""
        with self._lock:
            resolution.waiters.discard(waiter)

    def _resolve(self, host: str, resolution: _Resolution) -> None:
        outcome: _Outcome
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            outcome = list(dict.fromkeys(str(address[0]) for *_, address in found))
        except Exception as error:  # noqa: BLE001 - names that cannot be encoded raise other errors
            outcome = str(error) or type(error).__qualname__
        with self._lock:
            resolution.outcome, resolution.ended_at = outcome, monotonic()
            if resolution.waiters:
                del self._by_host[host]
            for waiter in resolution.waiters:
                with suppress(RuntimeError):  # its event loop is closed
                    waiter.get_loop().call_soon_threadsafe(_settle, waiter, outcome)


def _settle(waiter: "asyncio.Future[_Outcome]", outcome: _Outcome) -> None:
    if not waiter.done():
        waiter.set_result(outcome)


_resolutions: Final = _Resolutions()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_resolutions.reset)

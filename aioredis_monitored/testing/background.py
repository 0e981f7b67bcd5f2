"""A proxy that runs beside a test, whichever event loop the test has, or none."""

import asyncio
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Final, Self

from aioredis_monitored.testing.proxy import FaultProxy

_REPLY_SECONDS: Final = 30.0


class BackgroundProxy(FaultProxy):
    """A ``FaultProxy`` in a thread with an event loop of its own; a context manager, not an asynchronous one.

    Its attributes and ``cut`` are for the threads of tests.

    Args:
        host: The server's host.
        port: The server's port.
    """

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="redis_faults", daemon=True)

    def cut(self) -> None:
        """Cut every open connection (RST), and return when that is done."""
        if threading.current_thread() is self._thread:
            super().cut()
        else:
            self._call(self._cut())

    async def _cut(self) -> None:
        super().cut()

    def _call(self, coroutine: Coroutine[Any, Any, object]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_REPLY_SECONDS)

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self.__aenter__())
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._call(self.__aexit__(exc_type, exc, traceback))
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

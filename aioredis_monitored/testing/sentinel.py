"""Temporary servers under Sentinel for tests."""

from collections import Counter
from collections.abc import Sequence

from aioredis_monitored.testing.group import ServerGroup, responsive, start_together, wait_while
from aioredis_monitored.testing.server import RedisServer, TlsFiles, free_ports

_OPERATION_SECONDS = 30.0
_INFO_VALID_MILLISECONDS = 30_000
_QUICK_REPLICATION = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")


class _Sentinel(RedisServer):
    """A sentinel that also connects again, and asks for signs of life, more than once within ``down_after`` seconds.

    It would do so once a second. When a failover gives it a new primary, it would take that for down before it has
    connected, and start another failover.
    """

    def __init__(
        self,
        *arguments: str,
        down_after: float,
        port: int,
        configuration: str,
        password: str | None,
        tls: TlsFiles | None,
    ) -> None:
        super().__init__("--sentinel", *arguments, port=port, configuration=configuration, password=password, tls=tls)
        self._ping_period = min(1.0, down_after / 2)

    def start(self) -> None:
        super().start()
        self.call("SENTINEL", "DEBUG", "PING-PERIOD", round(self._ping_period * 1000))


class SentinelServers(ServerGroup):
    """A primary and its replicas under Sentinel on 127.0.0.1, without persistence; up in one to three seconds.

    Use it as a context manager, or call ``start`` and ``stop``.

    Args:
        arguments: Further command line arguments of every data server.
        replicas: How many replicas the primary has.
        sentinels: How many sentinels watch over them.
        down_after: After how many seconds of silence a sentinel takes a server for down.
        failover_timeout: Sentinel's ``failover-timeout``, in seconds.
        quorum: How many sentinels must take the primary for down before one fails it over.
        service: The name that the sentinels give to the primary and its replicas.
        sentinel_arguments: Further command line arguments of every sentinel.
        password: The password of the default user at every data server; default none.
        sentinel_password: The password of the default user at every sentinel; default none.
        tls: The files for TLS, for all servers; default no TLS. The embedded server has no TLS.

    Attributes:
        data: The data servers; at first the primary is the first.
        sentinels: The sentinels.
    """

    def __init__(
        self,
        *arguments: str,
        replicas: int = 2,
        sentinels: int = 3,
        down_after: float = 0.5,
        failover_timeout: float = 3.0,
        quorum: int = 2,
        service: str = "mymaster",
        sentinel_arguments: Sequence[str] = (),
        password: str | None = None,
        sentinel_password: str | None = None,
        tls: TlsFiles | None = None,
    ) -> None:
        self._arguments = arguments
        self._counts = 1 + replicas, sentinels
        self._down_after = down_after
        self._failover_timeout = failover_timeout
        self._quorum = quorum
        self._service = service
        self._sentinel_arguments = sentinel_arguments
        self._password = password
        self._sentinel_password = sentinel_password
        self._tls = tls
        self.data: list[RedisServer] = []
        self.sentinels: list[RedisServer] = []

    @property
    def url(self) -> str:
        """The ``redis+sentinel://`` or ``rediss+sentinel://`` URL with all sentinels, without a password."""
        hosts = ",".join(f"{sentinel.host}:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis{'s' if self._tls else ''}+sentinel://{hosts}/{self._service}"

    def primary(self) -> RedisServer:
        """Return the data server that most running sentinels name as the primary, whether it runs or not.

        Raises:
            LookupError: No sentinel runs.
        """
        named = Counter(self._named_by(sentinel) for sentinel in responsive(self.sentinels))
        if not named:
            raise LookupError("no sentinel runs")
        [(port, _)] = named.most_common(1)
        return next(server for server in self.data if server.port == port)

    def failover(self) -> RedisServer:
        """Make a replica the primary by SENTINEL FAILOVER; return it when all running sentinels name it.

        The former primary takes itself for one for ten seconds more; ``wait_ok`` waits for its end.

        Raises:
            LookupError: No sentinel runs.
            redis.exceptions.ResponseError: The sentinel refused, for instance because another failover is going on.
            TimeoutError: The sentinels did not agree on another primary within 30 s.
        """
        former = self.primary()
        sentinels = responsive(self.sentinels)
        sentinels[0].call("SENTINEL", "FAILOVER", self._service)

        def problem() -> str | None:
            named = {self._named_by(sentinel) for sentinel in sentinels}
            return None if len(named) == 1 and former.port not in named else f"the sentinels name {sorted(named)}"

        wait_while(problem, _OPERATION_SECONDS)
        return self.primary()

    def _named_by(self, sentinel: RedisServer) -> int:
        return int(sentinel.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)[1])

    @property
    def _servers(self) -> Sequence[RedisServer]:
        return [*self.data, *self.sentinels]

    def _launch(self) -> None:
        data_count, sentinel_count = self._counts
        ports = free_ports(data_count + sentinel_count)
        first, *others = ports[:data_count]
        self.data = [
            RedisServer(
                *_QUICK_REPLICATION,
                *self._arguments,
                port=port,
                # In the file, which Sentinel has rewritten after a failover.
                configuration="" if port == first else f"replicaof 127.0.0.1 {first}\n",
                password=self._password,
                tls=self._tls,
            )
            for port in [first, *others]
        ]
        self.sentinels = self._make_sentinels(ports[data_count:], first, others)
        # A replica that comes before its primary tries again after a second.
        start_together(self.data[:1])
        start_together(self.data[1:])
        # Sentinels ask a replica for its state, and then not again for ten seconds.
        wait_while(self._replication_problem, _OPERATION_SECONDS)
        start_together(self.sentinels)

    def _make_sentinels(self, ports: list[int], primary: int, replicas: list[int]) -> list[RedisServer]:
        ids = {port: f"{number:040x}" for number, port in enumerate(ports, 1)}

        def configuration(port: int) -> str:
            name = self._service
            lines = [
                f"myid {ids[port]}",
                f"monitor {name} 127.0.0.1 {primary} {self._quorum}",
                f"down-after-milliseconds {name} {round(self._down_after * 1000)}",
                f"failover-timeout {name} {round(self._failover_timeout * 1000)}",
                f"parallel-syncs {name} {len(replicas)}",
                *(f"known-replica {name} 127.0.0.1 {replica}" for replica in replicas),
                *(f"known-sentinel {name} 127.0.0.1 {other} {ids[other]}" for other in ports if other != port),
            ]
            if self._password is not None:
                lines.append(f"auth-pass {name} {self._password}")
            if self._sentinel_password is not None:
                lines.append(f"sentinel-pass {self._sentinel_password}")
            return "".join(f"sentinel {line}\n" for line in lines)

        return [
            _Sentinel(
                *self._sentinel_arguments,
                down_after=self._down_after,
                port=port,
                configuration=configuration(port),
                password=self._sentinel_password,
                tls=self._tls,
            )
            for port in ports
        ]

    def _clear(self) -> None:
        self.data, self.sentinels = [], []

    def _replication_problem(self, primary: RedisServer | None = None) -> str | None:
        primary = primary or self.data[0]
        # Redis 7.0 may send a replica nothing for up to a second after both say that it is connected; promoted in this
        # time, it would lack all that was written.
        primary.call("PUBLISH", "replication", "test")
        written = primary.call("ROLE")[1]
        for server in responsive(self.data):
            role = server.call("ROLE")
            if server is primary:
                if role[0] != "master":
                    return f"{server} is not the primary yet"
            elif role[0] != "slave" or role[2] != primary.port or role[3] != "connected":
                return f"{server} is not a connected replica of {primary}"
            elif role[4] < written:
                return f"{server} has not received yet what {primary} has written"
        return None

    def _problem(self) -> str | None:
        primary = self.primary()
        if primary not in responsive(self.data):
            return f"{primary}, the primary, does not run"
        if problem := self._replication_problem(primary):
            return problem
        replicas = {server.port for server in responsive(self.data)} - {primary.port}
        sentinels = responsive(self.sentinels)
        for sentinel in sentinels:
            watched = _fields(sentinel.call("SENTINEL", "MASTER", self._service))
            if int(watched["port"]) != primary.port or watched["flags"] != "master":
                return f"{sentinel} names another primary, takes it for down, or is failing it over"
            sentinel.call("SENTINEL", "CKQUORUM", self._service)
            if self._seen_by(sentinel, "SENTINELS") | {sentinel.port} != {other.port for other in sentinels}:
                return f"{sentinel} does not see the other sentinels"
            if self._seen_by(sentinel, "REPLICAS") != replicas:
                return f"{sentinel} does not see the replicas"
        return None

    def _seen_by(self, sentinel: RedisServer, kind: str) -> set[int]:
        """Return the ports of what a sentinel takes for healthy."""
        found = set()
        for reply in sentinel.call("SENTINEL", kind, self._service):
            state = _fields(reply)
            is_down = {"s_down", "o_down", "disconnected"} & set(state["flags"].split(","))
            # A replica of which nothing is known cannot be promoted.
            if not is_down and int(state.get("info-refresh", "0")) < _INFO_VALID_MILLISECONDS:
                found.add(int(state["port"]))
        return found


def _fields(reply: list[str]) -> dict[str, str]:
    return dict(zip(reply[::2], reply[1::2], strict=True))

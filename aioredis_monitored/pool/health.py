"""Whether the servers of a pool take calls: what ``pool.health()`` finds and returns."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import Any, Final, Literal

from redis.exceptions import RedisError, ResponseError
from redis.utils import str_if_bytes

from aioredis_monitored._topology.node import REPLICA_ROLES, field_in
from aioredis_monitored.config.url import Topology
from aioredis_monitored.errors import MonitoredRedisError

# Sends commands in one piece, and returns their replies as hiredis has parsed them; error replies are values.
Ask = Callable[[Sequence[tuple[Any, ...]]], Awaitable[Sequence[Any]]]

_ROLE: Final = ("HELLO",)
# A script without the flag no-writes is refused where a write would be (a replica, no room in memory, no room on disk,
# too few replicas), and this one writes nothing. It names no key, so that no user lacks the right to one
# (https://redis.io/docs/latest/develop/programmability/lua-api/#script_flags).
_WRITE: Final = ("EVAL", "#!lua\nreturn 1", 0)
_REPLICAS: Final = ("INFO", "replication")
_STATE: Final = ("CLUSTER", "INFO")
# The codes of errors by which a server says that the user may not ask something, or that it does not know it.
_NOT_ASKED_AGAIN: Final = frozenset({"ERR", "NOPERM"})
_NOT_ASKED_SECONDS: Final = 600.0
# The codes of errors by which a server refuses a write.
_REFUSALS: Final = frozenset({"MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "READONLY"})


@dataclass(frozen=True, slots=True)
class ServerHealth:
    """Whether a server takes calls.

    Attributes:
        server: Host and port or path, and the database.
        latency: Seconds from ``PING`` to its reply; ``None`` without a reply.
        role: ``primary`` or ``replica``; ``None`` if the server does not say it.
        writable: Whether it accepts writes; ``None`` if that is unknown, as before Redis 7.0 or without ``+eval``.
        replicas: How many replicas are connected to it; ``None`` if that is unknown, as without ``+info``.
        problem: Why it is not ``ok``; empty if it is.
    """

    server: str
    latency: float | None = None
    role: Literal["primary", "replica"] | None = None
    writable: bool | None = None
    replicas: int | None = None
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Whether it answers, and refuses no writes as far as that is known."""
        return not self.problem


@dataclass(frozen=True, slots=True)
class PoolHealth:
    """Whether the servers of a pool take calls; ``await pool.health()`` returns it.

    Attributes:
        topology: ``standalone``, ``sentinel`` or ``cluster``.
        servers: The server that calls go to; of a cluster, all primaries that are known.
        problem: Why it is not ``ok``, for all servers together; empty if it is.
    """

    topology: Topology
    servers: tuple[ServerHealth, ...]
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Whether all servers answer, refuse no writes as far as that is known, and, of a cluster, serve all slots."""
        return not self.problem

    @property
    def latency(self) -> float | None:
        """The longest of the servers' latencies in seconds; ``None`` if one has not replied, or none is known."""
        known = [each.latency for each in self.servers if each.latency is not None]
        return max(known) if known and len(known) == len(self.servers) else None

    @property
    def role(self) -> Literal["primary", "replica"] | None:
        """The role of the servers; ``None`` if that is unknown, or not the same."""
        roles = {each.role for each in self.servers}
        return roles.pop() if len(roles) == 1 else None

    @property
    def writable(self) -> bool | None:
        """Whether all servers accept writes; ``None`` if that is unknown of one, and no other one refuses them."""
        found = {each.writable for each in self.servers}
        return False if False in found else None if None in found or not found else True

    @property
    def replicas(self) -> int | None:
        """How many replicas all servers have together; ``None`` if that is unknown of one."""
        known = [each.replicas for each in self.servers if each.replicas is not None]
        return sum(known) if known and len(known) == len(self.servers) else None


class ServerCheck:
    """Checks one server; what its user may not ask, or it does not know, is not asked again for ten minutes.

    Each refusal adds an entry to the server's ACL log.

    Args:
        knows_hello: Whether the server knows ``HELLO``, at which some proxies hang up.
        is_node: Whether it is a node of a cluster.
    """

    def __init__(self, *, knows_hello: bool, is_node: bool) -> None:
        self._questions = [_ROLE] * knows_hello + [_WRITE, _REPLICAS] + [_STATE] * is_node
        # Until when they are not asked, by the monotonic clock.
        self._refused: dict[tuple[Any, ...], float] = {}

    async def run(self, server: str, ping: Callable[[], Awaitable[object]], ask: Ask) -> ServerHealth:
        """Ask the server; errors become the result's problem.

        Args:
            server: What the result calls it.
            ping: Sends ``PING``.
            ask: Sends the questions.
        """
        problem, latency = "", None
        questions = [each for each in self._questions if monotonic() >= self._refused.get(each, 0.0)]
        began = perf_counter()
        try:
            try:
                await ping()
            except ResponseError as error:
                # A server that cannot save refuses PING as well.
                problem = _refusal_in(error)
                if not problem:
                    raise
            latency = perf_counter() - began
            replies = await ask(questions)
        except Exception as error:  # noqa: BLE001 - also what a credential provider raises
            return ServerHealth(server, latency, problem=problem_of(error))
        # Without a connection to ask on, nothing is known.
        answers = dict(zip(questions, replies, strict=False))
        for question, answer in answers.items():
            if isinstance(answer, ResponseError) and answer.status_code in _NOT_ASKED_AGAIN:
                self._refused[question] = monotonic() + _NOT_ASKED_SECONDS
        problem = problem or _refusal_in(answers.get(_WRITE))
        role = _role(field_in(answers.get(_ROLE), "role") or _field_of(answers.get(_REPLICAS), "role"))
        is_tried = _WRITE in answers and not isinstance(answers[_WRITE], Exception)
        if not problem and not is_tried and role == "replica":
            problem = "writes are refused: it is a replica"
        writable = False if problem else True if is_tried else None
        if _field_of(answers.get(_STATE), "cluster_state") == "fail":
            problem = "the cluster's state is fail, in which its nodes take no calls"
        elif field_in(answers.get(_ROLE), "mode") == "sentinel":
            problem = "it is a sentinel: use a redis+sentinel:// URL"
        return ServerHealth(
            server,
            latency,
            role,
            writable,
            int(replicas) if (replicas := _field_of(answers.get(_REPLICAS), "connected_slaves")) else None,
            problem,
        )


def problem_of(error: Exception) -> str:
    """Return what an error says, or else what it is."""
    # Others, such as those of a credential provider, may quote secrets.
    is_known = isinstance(error, RedisError | MonitoredRedisError | OSError)
    return (is_known and str(error)) or type(error).__qualname__


def _refusal_in(answer: object) -> str:
    """Return what a server says that refuses writes; empty if it does not."""
    if not isinstance(answer, RedisError):
        return ""
    # redis-py takes the codes that it knows off the text.
    code = answer.status_code or str(answer).partition(" ")[0]
    return f"writes are refused: {code} {str(answer).removeprefix(f'{code} ')}" if code in _REFUSALS else ""


def _role(said: str) -> Literal["primary", "replica"] | None:
    return "replica" if said in REPLICA_ROLES else "primary" if said else None


def _field_of(answer: object, name: str) -> str:
    """Return a field of a reply to ``INFO``; empty if it has none."""
    text = str_if_bytes(answer) if isinstance(answer, bytes | str) else ""
    fields = (line.partition(":") for line in text.splitlines())
    return next((value for field, _, value in fields if field == name), "")

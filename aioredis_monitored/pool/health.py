"""Whether the servers of a pool take calls: what ``pool.health()`` finds and returns."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final, Literal

from redis.exceptions import RedisError, ResponseError
from redis.utils import str_if_bytes

from aioredis_monitored._topology.node import REPLICA_ROLES, role_in
from aioredis_monitored.config.url import Topology

# Sends commands in one piece, and returns their replies as hiredis has parsed them; error replies are values.
Ask = Callable[[Sequence[tuple[Any, ...]]], Awaitable[Sequence[Any]]]

_ROLE: Final = ("HELLO",)
# A script without the flag no-writes is refused where a write would be (a replica, no room in memory, no room on disk,
# too few replicas), and this one writes nothing. It names no key, so that no user lacks the right to one
# (https://redis.io/docs/latest/develop/programmability/lua-api/#script_flags).
_WRITE: Final = ("EVAL", "#!lua\nreturn 1", 0)
_REPLICAS: Final = ("INFO", "replication")
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
    """Checks one server; what the server has refused or does not know is not asked for again.

    Each refusal would add an entry to the server's ACL log.

    Args:
        asks_hello: Whether the server knows ``HELLO``, at which some proxies hang up.
    """

    def __init__(self, *, asks_hello: bool) -> None:
        self._questions = [_ROLE] * asks_hello + [_WRITE, _REPLICAS]

    async def run(self, server: str, ping: Callable[[], Awaitable[object]], ask: Ask) -> ServerHealth:
        """Ask the server; errors become the result's problem.

        Args:
            server: What the result calls it.
            ping: Sends ``PING``.
            ask: Sends the questions.
        """
        refusal, latency = "", None
        began = perf_counter()
        try:
            try:
                await ping()
            except ResponseError as error:
                # A server that cannot save refuses PING as well.
                refusal = _refusal_in(error)
                if not refusal:
                    raise
            latency = perf_counter() - began
            questions = list(self._questions)
            answers = dict(zip(questions, await ask(questions), strict=True)) if questions else {}
        except Exception as error:  # noqa: BLE001 - also what a credential provider raises
            return ServerHealth(server, latency, problem=problem_of(error))
        refusal = refusal or _refusal_in(answers.get(_WRITE))
        for question, answer in answers.items():
            if isinstance(answer, ResponseError) and not refusal:
                self._questions.remove(question)
        role = _role(role_in(answers.get(_ROLE)) or _field_of(answers.get(_REPLICAS), "role"))
        if not refusal and _WRITE not in self._questions and role == "replica":
            refusal = "it is a replica"
        return ServerHealth(
            server,
            latency,
            role,
            False if refusal else True if _WRITE in self._questions else None,
            int(replicas) if (replicas := _field_of(answers.get(_REPLICAS), "connected_slaves")) else None,
            f"writes are refused: {refusal}" if refusal else "",
        )


def problem_of(error: Exception) -> str:
    """Return what an error says, or else what it is."""
    return str(error) or type(error).__name__


def _refusal_in(answer: object) -> str:
    """Return what a server says that refuses writes; empty if it does not."""
    if not isinstance(answer, RedisError):
        return ""
    # redis-py takes the codes that it knows off the text.
    code = answer.status_code or str(answer).partition(" ")[0]
    return f"{code} {str(answer).removeprefix(f'{code} ')}" if code in _REFUSALS else ""


def _role(said: str) -> Literal["primary", "replica"] | None:
    return "replica" if said in REPLICA_ROLES else "primary" if said else None


def _field_of(answer: object, name: str) -> str:
    """Return a field of a reply to ``INFO``; empty if it has none."""
    text = str_if_bytes(answer) if isinstance(answer, bytes | str) else ""
    fields = (line.partition(":") for line in text.splitlines())
    return next((value for field, _, value in fields if field == name), "")

"""A temporary Redis Cluster for tests."""

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from redis.exceptions import ResponseError

from aioredis_monitored._topology.hash_slots import SLOTS, key_slot
from aioredis_monitored.testing.group import ServerGroup, responsive, start_together, wait_while
from aioredis_monitored.testing.server import RedisServer, TlsFiles, free_ports, server_binary, server_version

_OPERATION_SECONDS = 30.0
_MIGRATE_MILLISECONDS = 5000
# Redis gives a failover up after 5 s.
_FAILOVER_SECONDS = 6.0
_VOTE_MARGIN_SECONDS = 0.1
# Of Redis, and of Valkey, which goes on from there.
_FIRST_WITH_SHARD_IDS = (7, 2)


class NodeServer(RedisServer):
    """A node of a cluster; a killed node that is started again has the same port and id, and is empty.

    ``ClusterServers`` makes it.

    Attributes:
        id: The node's id in the cluster, 40 hexadecimal digits.
    """

    def __init__(
        self,
        *arguments: str,
        node_id: str,
        port: int,
        bus_port: int,
        node_timeout: float,
        nodes_conf: str,
        password: str | None,
        tls: TlsFiles | None,
    ) -> None:
        super().__init__(*arguments, port=port, password=password, tls=tls)
        self._bus_port = bus_port
        self._node_timeout = node_timeout
        self._nodes_conf = nodes_conf
        self.id = node_id

    def _write_files(self, directory: Path) -> None:
        super()._write_files(directory)
        Path(directory, "nodes.conf").write_text(self._nodes_conf)

    def _options(self, port: int) -> dict[str, str]:
        options = super()._options(port) | {
            "--cluster-enabled": "yes",
            "--cluster-port": str(self._bus_port),
            "--cluster-config-file": "nodes.conf",
            "--cluster-node-timeout": str(round(self._node_timeout * 1000)),
            "--repl-diskless-sync-delay": "0",
            "--repl-ping-replica-period": "1",
        }
        return options | {"--tls-cluster": "yes"} if self._tls else options


class _NodeState(NamedTuple):
    """What one node knows of another."""

    id: str
    flags: frozenset[str]
    primary_id: str
    epoch: int
    is_connected: bool
    slots: tuple[range, ...]


class ClusterServers(ServerGroup):
    """A Redis or Valkey cluster on 127.0.0.1, without persistence, which takes about two seconds to start.

    Use it as a context manager, or call ``start`` and ``stop``.

    Args:
        arguments: Further command line arguments of every node.
        primaries: How many primaries share the slots, in equal parts.
        replicas: How many replicas each primary has.
        node_timeout: After how many seconds of silence a node counts as failed.
        hostnames: Returns the host name that a node announces, by its index in ``nodes``; default none.
        password: The password of the default user at every node; default none.
        tls: The files for TLS; default no TLS. The embedded server has no TLS.

    Attributes:
        nodes: The nodes, first all primaries, then a replica of each, then perhaps another one of each.
    """

    def __init__(
        self,
        *arguments: str,
        primaries: int = 3,
        replicas: int = 1,
        node_timeout: float = 1.0,
        hostnames: Callable[[int], str] | None = None,
        password: str | None = None,
        tls: TlsFiles | None = None,
    ) -> None:
        self._arguments = arguments
        self._primaries = primaries
        self._replicas = replicas
        self._node_timeout = node_timeout
        self._hostnames = hostnames
        self._password = password
        self._tls = tls
        self._made = 0
        self._failed_over_at: dict[NodeServer, float] = {}
        self.nodes: list[NodeServer] = []

    @property
    def url(self) -> str:
        """The ``redis+cluster://`` or ``rediss+cluster://`` URL with all nodes, without a password."""
        hosts = ",".join(f"{node.host}:{node.port}" for node in self.nodes)
        return f"redis{'s' if self._tls else ''}+cluster://{hosts}"

    def primaries(self) -> list[NodeServer]:
        """Return the running nodes that take themselves for primaries."""
        return [node for node in responsive(self.nodes) if "master" in _own_state(node).flags]

    def owner(self, slot_or_key: int | str | bytes) -> NodeServer:
        """Return the running primary of a slot, or of a key's slot.

        Raises:
            LookupError: No running node has the slot.
        """
        slot = slot_or_key if isinstance(slot_or_key, int) else key_slot(slot_or_key)
        states = [(_own_state(node), node) for node in responsive(self.nodes)]
        claims = [(state.epoch, node) for state, node in states if any(slot in part for part in state.slots)]
        if not claims:
            message = f"no running node has slot {slot}"
            raise LookupError(message)
        # One that was frozen during a failover claims its former slots until it hears of it.
        return max(claims, key=lambda claim: claim[0])[1]

    def replica_of(self, node: NodeServer) -> NodeServer:
        """Return the first running replica of a node.

        Raises:
            LookupError: The node has no running replica.
        """
        for other in responsive(self.nodes):
            if _own_state(other).primary_id == node.id:
                return other
        message = f"{node} has no running replica"
        raise LookupError(message)

    def add_node(self) -> NodeServer:
        """Start a further node and return it when all running nodes know it: a primary without slots."""
        port, bus_port = free_ports(2)
        [node] = self._make_nodes([(port, bus_port)], primaries=0)
        node.start()
        known = responsive(self.nodes)
        self.nodes.append(node)
        for other in known:
            other.call("CLUSTER", "MEET", node.host, node.port, bus_port)
        self.wait_ok()
        return node

    def remove_node(self, node: NodeServer) -> None:
        """Stop a node without slots, and make all running nodes forget it.

        Raises:
            ValueError: The node has slots.
            redis.exceptions.ResponseError: The node has a replica, which cannot forget it.
        """
        if node in responsive(self.nodes) and (slots := sum(map(len, _own_state(node).slots))):
            message = f"node to remove must have no slots, got {slots}: migrate them first"
            raise ValueError(message)
        self.nodes.remove(node)
        node.kill()
        try:
            for other in responsive(self.nodes):
                other.call("CLUSTER", "FORGET", node.id)
        finally:
            node.stop()

    def begin_migration(self, slot: int, target: NodeServer) -> None:
        """Let a slot migrate: its owner replies ASK for keys that it does not have, and the target serves ASKING."""
        source = self.owner(slot)
        target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)

    def migrate_keys(self, slot: int, target: NodeServer, count: int) -> int:
        """Move up to ``count`` keys of a migrating slot to its target, in one step; return how many were moved."""
        source = self.owner(slot)
        keys = source.call("CLUSTER", "GETKEYSINSLOT", slot, count)
        if keys:
            password = () if self._password is None else ("AUTH", self._password)
            address = (target.host, target.port, "", 0, _MIGRATE_MILLISECONDS)
            source.call("MIGRATE", *address, *password, "KEYS", *keys)
        return len(keys)

    def end_migration(self, slot: int, target: NodeServer) -> None:
        """Give a migrating slot, of which all keys were moved, to its target; return when all running nodes know it.

        Raises:
            ValueError: Its owner still has keys of the slot.
            TimeoutError: The nodes did not agree about its owner within 30 s.
        """
        if keys := self.owner(slot).call("CLUSTER", "COUNTKEYSINSLOT", slot):
            message = f"slot {slot} must have no keys at its owner, got {keys}: migrate_keys() moves them"
            raise ValueError(message)
        others = [node for node in self.primaries() if node is not target]
        target.call("CLUSTER", "SETSLOT", slot, "NODE", target.id)
        for node in others:
            # It may have heard of it from the target; without its last slot it is no primary then, and refuses.
            with suppress(ResponseError):
                node.call("CLUSTER", "SETSLOT", slot, "NODE", target.id)
        # Replicas hear of it from their primaries; until then, they would name the former owner to clients.
        wait_while(lambda: self._disagreement(slot), _OPERATION_SECONDS)

    def _disagreement(self, slot: int) -> str | None:
        owners = {
            state.id
            for node in responsive(self.nodes)
            for state in _states(node)
            if any(slot in part for part in state.slots)
        }
        return None if len(owners) == 1 else f"nodes have different owners for slot {slot}: {', '.join(sorted(owners))}"

    def migrate(self, slot: int, target: NodeServer, *, batch: int = 10, pause: float = 0.0) -> None:
        """Move a slot and its keys to another primary while it is in use.

        Args:
            slot: The slot.
            target: The primary that gets it.
            batch: How many keys are moved in one step.
            pause: Seconds between two steps.
        """
        self.begin_migration(slot, target)
        while self.migrate_keys(slot, target, batch):
            time.sleep(pause)
        self.end_migration(slot, target)

    def migrate_atomically(self, slots: Collection[int], target: NodeServer) -> None:
        """Move slots of one node by CLUSTER MIGRATESLOTS, which Valkey has since 9.0, and wait for the end.

        Raises:
            ValueError: The slots belong to several nodes.
            NotImplementedError: The server has no such command.
            RuntimeError: The server gave the migration up; the message has its reason.
            TimeoutError: The migration did not end within 30 s.
        """
        sources = {self.owner(slot) for slot in slots}
        if len(sources) != 1:
            message = f"slots must belong to one node, got {len(sources)}"
            raise ValueError(message)
        [source] = sources
        ranges = [bound for part in _ranges(slots) for bound in (part[0], part[-1])]
        try:
            source.call("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", *ranges, "NODE", target.id)
        except ResponseError as error:
            if "unknown subcommand" not in str(error):
                raise
            message = "the server has no CLUSTER MIGRATESLOTS: use Valkey 9 or newer, or migrate()"
            raise NotImplementedError(message) from error

        def problem() -> str | None:
            # The newest comes first.
            fields = source.call("CLUSTER", "GETSLOTMIGRATIONS")[0]
            job = dict(zip(fields[::2], fields[1::2], strict=True))
            if job["state"] in {"failed", "cancelled"}:
                message = f"the migration was given up, {job['state']}: {job['message']}"
                raise RuntimeError(message)
            return None if job["state"] == "success" else f"the migration's state is {job['state']}"

        wait_while(problem, _OPERATION_SECONDS)

    def failover(self, replica: NodeServer) -> None:
        """Make a replica the primary by CLUSTER FAILOVER; return when it is, and the former primary, if it runs, knows.

        Nodes refuse a second vote about the same primary and replica within twice ``node_timeout``, which would stop
        writes for seconds; ``failover`` waits for the end of that time first.

        Raises:
            ValueError: The node is no replica.
            TimeoutError: The replica did not become the primary within 30 s, for instance because its primary does not
                run.
        """
        primary_id = _own_state(replica).primary_id
        if primary_id == "-":
            message = f"node to promote must be a replica, got {replica}, a primary"
            raise ValueError(message)
        primary = next(node for node in self.nodes if node.id == primary_id)
        last = max(self._failed_over_at.get(node, -math.inf) for node in (primary, replica))
        time.sleep(max(0.0, last + 2 * self._node_timeout + _VOTE_MARGIN_SECONDS - time.monotonic()))
        asked_at = -math.inf

        def problem() -> str | None:
            nonlocal asked_at
            if "master" in _own_state(replica).flags:
                # One that is killed before it knows starts as a primary again, without keys.
                unaware = [node for node in responsive([primary]) if "master" in _own_state(node).flags]
                return f"{primary} still takes itself for a primary" if unaware else None
            if time.monotonic() - asked_at > _FAILOVER_SECONDS:
                replica.call("CLUSTER", "FAILOVER")
                asked_at = time.monotonic()
            return f"{replica} is still a replica"

        wait_while(problem, _OPERATION_SECONDS)
        self._failed_over_at[primary] = self._failed_over_at[replica] = time.monotonic()

    def start(self) -> None:
        """Start the servers and return when they have found each other, and each names all others to clients.

        Raises:
            FileNotFoundError: There is no server to start.
            RuntimeError: The servers are running already, or one did not start; the message ends with its output then.
            TimeoutError: They did not find each other within 30 s.
        """
        super().start()
        wait_while(self._unnamed, _OPERATION_SECONDS)

    def _unnamed(self) -> str | None:
        # A replica has no part in CLUSTER SLOTS until others know that it has received anything.
        for node in self.nodes:
            named = {port for _, _, *nodes in node.call("CLUSTER", "SLOTS") for _, port, *_ in nodes}
            if missing := {each.port for each in self.nodes} - named:
                return f"{node} does not name the nodes at the ports {sorted(missing)}"
        return None

    @property
    def _servers(self) -> Sequence[RedisServer]:
        return self.nodes

    def _launch(self) -> None:
        total = self._primaries * (1 + self._replicas)
        ports = free_ports(2 * total)
        self.nodes = self._make_nodes(list(zip(ports[:total], ports[total:], strict=True)), primaries=self._primaries)
        start_together(self.nodes)

    def _clear(self) -> None:
        self.nodes = []
        self._made = 0
        self._failed_over_at.clear()

    def _make_nodes(self, ports: list[tuple[int, int]], *, primaries: int) -> list[NodeServer]:
        """Make nodes that know each other from the start; without primaries each is alone, and has no slots."""
        first = self._made
        self._made += len(ports)
        ids = [f"{first + index + 1:040x}" for index in range(len(ports))]
        bounds = [round(SLOTS * index / primaries) for index in range(primaries + 1)] if primaries else []
        shares = [f" {start}-{end - 1}" for start, end in pairwise(bounds)]
        knows_shards = server_version(server_binary()) >= _FIRST_WITH_SHARD_IDS
        names = [self._hostnames(first + index) if self._hostnames else "" for index in range(len(ports))]

        def line(index: int, myself: int) -> str:
            port, bus_port = ports[index]
            primary = index % primaries if primaries else index
            is_replica = index != primary
            # Without its shard's id, Valkey 9 crashes at SPUBLISH; servers that know none take it for a host name.
            name = f"{names[index]},shard-id={ids[primary]}" if knows_shards else names[index]
            address = f"127.0.0.1:{port}@{bus_port}{',' if name else ''}{name}"
            flags = f"{'myself,' if index == myself else ''}{'slave' if is_replica else 'master'}"
            epoch = primary + 1 if primaries else 0
            slots = shares[index] if index < primaries else ""
            primary_id = ids[primary] if is_replica else "-"
            return f"{ids[index]} {address} {flags} {primary_id} 0 0 {epoch} connected{slots}\n"

        nodes = []
        for index, (port, bus_port) in enumerate(ports):
            announced = ("--cluster-announce-hostname", names[index]) if names[index] else ()
            lines = [line(other, index) for other in range(len(ports))]
            nodes.append(
                NodeServer(
                    *announced,
                    *self._arguments,
                    node_id=ids[index],
                    port=port,
                    bus_port=bus_port,
                    node_timeout=self._node_timeout,
                    nodes_conf="".join([*lines, f"vars currentEpoch {primaries} lastVoteEpoch 0\n"]),
                    password=self._password,
                    tls=self._tls,
                )
            )
        return nodes

    def _problem(self) -> str | None:
        running = responsive(self.nodes)
        ids = {node.id for node in running}
        views = []
        for node in running:
            if "cluster_state:ok" not in node.call("CLUSTER", "INFO"):
                return f"the cluster is not ok for {node}"
            role = node.call("ROLE")
            if role[0] == "slave" and role[3] != "connected":
                return f"{node} is not connected to its primary"
            states = {state.id: state for state in _states(node)}
            met = {
                state.id
                for state in states.values()
                if state.is_connected and not state.flags & {"handshake", "fail", "fail?", "noaddr"}
            }
            if not ids <= met:
                return f"{node} has no connection to all others, or takes one for failed"
            views.append({(state.id, state.slots) for state in states.values() if state.slots})
        if any(view != views[0] for view in views):
            return "nodes have different owners for a slot"
        if views and not {node_id for node_id, _ in views[0]} <= ids:
            return "the owner of slots does not run"
        return None


def _own_state(node: NodeServer) -> _NodeState:
    return next(state for state in _states(node) if "myself" in state.flags)


def _states(node: NodeServer) -> Iterator[_NodeState]:
    for line in node.call("CLUSTER", "NODES").splitlines():
        node_id, _, flags, primary_id, _, _, epoch, link, *slots = line.split()
        yield _NodeState(
            id=node_id,
            flags=frozenset(flags.split(",")),
            primary_id=primary_id,
            epoch=int(epoch),
            is_connected=link == "connected",
            # What is in brackets is a slot that migrates.
            slots=tuple(_range(part) for part in slots if not part.startswith("[")),
        )


def _range(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def _ranges(slots: Collection[int]) -> list[list[int]]:
    """Return the slots in order, those that follow each other together."""
    ranges: list[list[int]] = []
    for slot in sorted(set(slots)):
        if ranges and ranges[-1][-1] + 1 == slot:
            ranges[-1].append(slot)
        else:
            ranges.append([slot])
    return ranges

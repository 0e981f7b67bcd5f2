"""The nodes of a cluster: whether they serve all slots, and say the same about them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from redis.exceptions import RedisError
from redis.utils import str_if_bytes

from aioredis_monitored._topology.hash_slots import SLOTS
from aioredis_monitored._topology.slot_map import SlotMap
from aioredis_monitored.cli.doctor.login import explain
from aioredis_monitored.cli.doctor.subject import Server, is_refused
from aioredis_monitored.cli.findings import Finding, at, fault, ok, unknown, warning
from aioredis_monitored.config.addresses import Address, address_text

_STATE: Final = "cluster_state"


async def check_cluster(servers: Sequence[Server]) -> list[Finding]:
    """Compare what the nodes say about the slots."""
    found, maps = [], {}
    for server in servers:
        try:
            slots, info = await server.ask_all(("CLUSTER", "SLOTS"), ("CLUSTER", "INFO"))
        except RedisError as error:
            found.append(at(explain(error, server.subject), server.name))
            continue
        if is_refused(slots):
            finding = fault("cluster", "the user may not ask for the slots", "give it +cluster|slots")
            found.append(at(finding, server.name))
        elif not isinstance(slots, RedisError):
            maps[server.name] = _parse(server, slots)
        found += [at(each, server.name) for each in _state(info)]
    owners = {name: _owners(each) for name, each in maps.items()}
    if owners:
        found += _agreement(owners)
        found += _spare(max(maps.values(), key=lambda each: len(each.ranges)))
    return found


def _state(info: object) -> list[Finding]:
    if is_refused(info):
        return [unknown("cluster", "whether the node thinks that the cluster is up", "+cluster|info")]
    text = str_if_bytes(info) if isinstance(info, bytes | str) else ""
    state = next((line.partition(":")[2] for line in text.splitlines() if line.startswith(_STATE)), "")
    if state in ("", "ok"):
        return []
    return [fault("cluster", f"the node takes no calls, as the cluster's state is {state}", "see the other findings")]


def _parse(server: Server, reply: Any) -> SlotMap:
    addresses = server.subject.settings.config.address_map
    resolve = (lambda *where: where) if addresses is None else addresses.resolve
    return SlotMap.parse(reply, server.name.rpartition(":")[0].strip("[]"), resolve)


def _owners(slots: SlotMap) -> Mapping[int, Address]:
    return {slot: each.primary for each in slots.ranges for slot in range(each.first, each.last + 1)}


def _agreement(owners: Mapping[str, Mapping[int, Address]]) -> list[Finding]:
    """Compare which node serves each slot, as the nodes see it."""
    found = []
    believed: defaultdict[int, set[Address | None]] = defaultdict(set)
    for slots in owners.values():
        for slot in range(SLOTS):
            believed[slot].add(slots.get(slot))
    disputed = [slot for slot, each in believed.items() if len(each) > 1]
    missing = [slot for slot, each in believed.items() if each == {None}]
    if disputed:
        text = f"the nodes disagree about {len(disputed)} of {SLOTS} slots"
        found.append(warning("cluster", text, "wait until slots that move have moved; else: redis-cli --cluster check"))
    if missing:
        text = f"no node serves {len(missing)} of {SLOTS} slots"
        found.append(fault("cluster", text, "start the nodes that had them, or redis-cli --cluster fix"))
    if not found:
        found.append(ok("cluster", f"{len(owners)} nodes agree about all slots"))
    return found


def _spare(slots: SlotMap) -> list[Finding]:
    alone = tuple(address_text(*each) for each in slots.primaries if not slots.replicas[each])
    if not alone:
        return []
    text = "a primary has no replica: its slots are not served when it fails"
    return [at(warning("cluster", text, "add replicas"), *alone)]

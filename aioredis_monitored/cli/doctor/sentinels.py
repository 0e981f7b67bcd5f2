"""The sentinels of a service: whether they answer, and name the same primary."""

import asyncio
from typing import Final

from aioredis_monitored._topology.known_sentinels import Sentinel
from aioredis_monitored._topology.sentinel import Answer
from aioredis_monitored.cli.doctor.subject import Place, Subject
from aioredis_monitored.cli.findings import Finding, at, fault, ok, warning
from aioredis_monitored.config.addresses import Address, address_text
from aioredis_monitored.config.readers import PasswordPath
from aioredis_monitored.pool.sentinel_connections import SentinelConnections

_MIN_SENTINELS: Final = 3


async def check_sentinels(subject: Subject, places: list[Place]) -> list[Finding]:
    """Ask the sentinels that are given, and those that these name."""
    config = subject.settings.config
    service = config.service or ""
    connections = _connections(subject, service)
    given = [Sentinel(place.host, place.port or 0, given_as=(place.host, place.port or 0)) for place in places]
    answers = await _ask(connections, given, subject.patience)
    named = {identity: address for each in answers.values() for identity, address in each.others.items()}
    known = {each.sentinel for each in answers.values()}
    resolve = (lambda *where: where) if config.address_map is None else config.address_map.resolve
    unasked = {resolve(*address) for identity, address in named.items() if identity not in known}
    others = [Sentinel(*address) for address in sorted(unasked.difference(each.address for each in given))]
    answers |= await _ask(connections, others, subject.patience)
    await connections.wait_closed()
    return _findings(service, [*given, *others], answers, count=len(known | named.keys()))


def _connections(subject: Subject, service: str) -> SentinelConnections:
    config = subject.settings.config
    file = config.sentinel_password_file
    credentials = {
        "username": config.sentinel_username,
        # Read when the configuration was.
        "password": file.password if isinstance(file, PasswordPath) else config.sentinel_password,
    }
    tls = {name: value for name, value in subject.pool.connection_kwargs.items() if name.startswith("ssl_")}
    return SentinelConnections(service, {**credentials, **tls}, uses_tls=config.tls, asks_replicas=True)


async def _ask(connections: SentinelConnections, sentinels: list[Sentinel], seconds: float) -> dict[Sentinel, Answer]:
    answers = await asyncio.gather(*(connections.ask(each, seconds) for each in sentinels))
    return {sentinel: answer for sentinel, answer in zip(sentinels, answers, strict=True) if answer is not None}


def _findings(service: str, sentinels: list[Sentinel], answers: dict[Sentinel, Answer], *, count: int) -> list[Finding]:
    primaries: set[Address] = {each.primary for each in answers.values() if each.primary is not None}
    make = warning if answers else fault
    advice = "start it, or correct its address, its user or its password"
    silent = (each for each in sentinels if each not in answers)
    found = [at(make("sentinel", each.problem or "no answer", advice), str(each)) for each in silent]
    unaware = tuple(str(each) for each, answer in answers.items() if answer.primary is None)
    if answers and not primaries:
        found.append(
            fault("sentinel", f"no sentinel knows the service {service!r}", "correct it at the end of the URL")
        )
    elif unaware:
        text = f"does not know the service {service!r}"
        found.append(at(warning("sentinel", text, "have it monitor the service"), *unaware))
    if len(primaries) > 1:
        text = f"the sentinels name several primaries: {', '.join(sorted(address_text(*each) for each in primaries))}"
        found.append(
            warning("sentinel", text, "wait for the end of a failover; else compare SENTINEL CKQUORUM at each")
        )
    if len(primaries) == 1:
        [primary] = primaries
        found.append(
            ok("sentinel", f"{len(answers)} of {count} sentinels name {address_text(*primary)} as primary of {service}")
        )
        if count < _MIN_SENTINELS:
            text = "fewer than 3 sentinels: no majority is left when one fails"
            found.append(warning("sentinel", text, "add sentinels"))
        if not any(each.replicas for each in answers.values()):
            text = "no replica is in sync: nothing takes the place of the primary when it fails"
            found.append(warning("sentinel", text, "add replicas, or see why they are not in sync"))
    return found

"""The arguments of pools that find their servers: those of clusters, and of services under Sentinel."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from redis.asyncio import Connection

from aioredis_monitored.config.addresses import Address, read_addresses
from aioredis_monitored.config.schema import validate_arguments
from aioredis_monitored.config.url import Topology
from aioredis_monitored.errors import ConfigurationError
from aioredis_monitored.pool.arguments import without_defaults

# Arguments that name one server.
_NAMING_A_SERVER: Final = ("host", "port", "path")


def validate_servers(
    name: str,
    servers: object,
    arguments: Mapping[str, Any],
    topology: Topology,
    problems: Sequence[tuple[str, str]] = (),
) -> tuple[list[Address], dict[str, Any]]:
    """Check the arguments of a pool that finds its servers, all at once.

    Args:
        name: What the argument is called that says where to begin: ``nodes`` or ``sentinels``.
        servers: Its value.
        arguments: All other arguments of the pool.
        topology: That of the pool.
        problems: What was found in other arguments; default: nothing.

    Returns:
        The addresses to begin with, and the other arguments, read.

    Raises:
        ConfigurationError: Some of them cannot be used.
    """
    found = list(problems)
    addresses: list[Address] = []
    read: dict[str, Any] = {}
    try:
        addresses = read_addresses(servers)
    except ValueError as error:
        found.append((name, str(error)))
    kind = arguments.get("connection_class", Connection)
    if not (isinstance(kind, type) and issubclass(kind, Connection)):
        actual = getattr(kind, "__name__", type(kind).__name__)
        found.append(("connection_class", f"must be Connection or SSLConnection, or a subclass, got {actual}"))
    found += [
        (each, f"must be left out: the {name} name the server")
        for each in _NAMING_A_SERVER
        if arguments.get(each) is not None
    ]
    try:
        read = validate_arguments(without_defaults(arguments), topology)
    except ConfigurationError as error:
        found += error.problems
    if found:
        raise ConfigurationError(*found)
    return addresses, read

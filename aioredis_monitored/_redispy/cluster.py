"""How redis-py's cluster client names nodes and parses replies.

``tests/integration/test_redispy_contract.py`` says what is relied on.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from redis.cluster import (
    AbstractRedisCluster,
    parse_cluster_shards,
    parse_cluster_shards_unified,
    parse_cluster_shards_with_str_keys,
    parse_cluster_slots,
)

ALL_NODES: Final[str] = AbstractRedisCluster.ALL_NODES
DEFAULT_NODE: Final[str] = AbstractRedisCluster.DEFAULT_NODE
PRIMARIES: Final[str] = AbstractRedisCluster.PRIMARIES
RANDOM: Final[str] = AbstractRedisCluster.RANDOM
REPLICAS: Final[str] = AbstractRedisCluster.REPLICAS

# By the name of a command, what makes one value of the replies of the nodes that the caller has named.
_RESULT_CALLBACKS: Final[Mapping[str, Callable[..., Any]]] = AbstractRedisCluster.RESULT_CALLBACKS


def join_replies(command: str, replies: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """Return what redis-py returns for the replies of the nodes that the caller has named.

    Args:
        command: The name of the command.
        replies: The parsed replies, by the names of the nodes.
        options: Those of ``execute_command`` that callbacks take.
    """
    if (callback := _RESULT_CALLBACKS.get(command)) is not None:
        return callback(command, replies, **options)
    return replies if len(replies) > 1 else next(iter(replies.values()))


def cluster_callbacks(*, is_protocol_given: bool, has_legacy_responses: bool) -> dict[str, Callable[..., Any]]:
    """Return the response callbacks that a cluster client has in place of those of a client of one server.

    Args:
        is_protocol_given: Whether the caller has chosen RESP2 or RESP3.
        has_legacy_responses: Whether the caller gets what redis-py calls legacy responses, its default.
    """
    if not has_legacy_responses:
        shards = parse_cluster_shards_unified
    elif is_protocol_given:
        shards = parse_cluster_shards
    else:
        shards = parse_cluster_shards_with_str_keys
    return {"CLUSTER SHARDS": shards, "CLUSTER SLOTS": parse_cluster_slots}

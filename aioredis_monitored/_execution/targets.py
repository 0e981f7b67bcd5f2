"""The nodes that a caller has named by ``target_nodes=``, and what it is returned for their replies."""

import random
from collections.abc import Iterable, Mapping
from typing import Any

from aioredis_monitored._execution.scatter import nodes_known
from aioredis_monitored._redispy.cluster import ALL_NODES, DEFAULT_NODE, PRIMARIES, RANDOM, REPLICAS
from aioredis_monitored._telemetry.operation import Observer
from aioredis_monitored._topology.node import ClusterNode
from aioredis_monitored.errors import ClusterRoutingError
from aioredis_monitored.pool.cluster import MonitoredClusterPool
from aioredis_monitored.pool.pool import MonitoredConnectionPool

# The option of ``execute_command``, as in redis-py's cluster client.
TARGET_NODES = "target_nodes"
_FLAGS = (PRIMARIES, REPLICAS, ALL_NODES, RANDOM, DEFAULT_NODE)


async def resolve_targets(
    cluster: MonitoredClusterPool, targets: object, observer: Observer | None
) -> list[ClusterNode]:
    """Return the nodes that a caller has named, in its order, when those of the cluster are known.

    Args:
        cluster: The pool.
        targets: See ``TargetNodes``. A node that has no slots yet can be named, to give it some.
        observer: Is given the delays between attempts to find the nodes; ``None`` for none.

    Raises:
        redis.exceptions.RedisError: No node answers.
        ClusterRoutingError: The cluster has no such nodes now.
        TypeError: It names no nodes.
    """
    await nodes_known(cluster, observer, needs_primary=False)
    if isinstance(targets, str):
        nodes = _flagged(cluster, targets)
    elif isinstance(targets, Mapping):
        nodes = [_node(each) for each in targets.values()]
    elif isinstance(targets, Iterable):
        nodes = [_node(each) for each in targets]
    else:
        nodes = [_node(targets)]
    if not nodes:
        raise ClusterRoutingError(f"the cluster has no node for target_nodes={targets!r}")
    return list(dict.fromkeys(nodes))


def _flagged(cluster: MonitoredClusterPool, flag: str) -> list[ClusterNode]:
    if flag == PRIMARIES:
        return cluster.primaries()
    if flag == REPLICAS:
        return cluster.replicas()
    if flag == ALL_NODES:
        return cluster.nodes()
    if flag == RANDOM:
        return random.sample(cluster.nodes(), min(1, len(cluster.nodes())))
    if flag == DEFAULT_NODE:
        return cluster.primaries()[:1]
    message = f"target_nodes must be one of {', '.join(_FLAGS)}, or nodes, got {flag!r}"
    raise TypeError(message)


def _node(target: Any) -> ClusterNode:
    try:
        return target if isinstance(target, ClusterNode) else ClusterNode(str(target.host), int(target.port))
    except AttributeError:
        message = f"target_nodes must be a ClusterNode, several of them, or a flag, got {type(target).__name__}"
        raise TypeError(message) from None


async def resolve_target_pool(
    cluster: MonitoredClusterPool, targets: object, observer: Observer | None
) -> MonitoredConnectionPool:
    """Return the pool of the node that a caller has named where only one can be: in a pipeline, and for MONITOR.

    Raises:
        redis.exceptions.RedisError: No node answers.
        ClusterRoutingError: The cluster has no such node now, or several.
        TypeError: It names no nodes.
    """
    nodes = await resolve_targets(cluster, targets, observer)
    if len(nodes) > 1:
        raise ClusterRoutingError(f"target_nodes= must name one node here, got {len(nodes)}")
    return cluster.pool_of(nodes[0])

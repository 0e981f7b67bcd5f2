"""What ``dir`` shows of a client and a pool: redis-py's names, and this package's public ones."""

import redis.asyncio

from aioredis_monitored import MonitoredConnectionPool, MonitoredRedisConnection


def added_names(ours, theirs):
    return {name for name in set(dir(ours)) - set(dir(theirs)) if not name.startswith("__")}


async def test_client_adds_only_public_names_and_its_executor(server):
    async with MonitoredRedisConnection.from_url(server.url) as client, redis.asyncio.Redis() as plain:
        assert {"context_name", "in_context", "server_span", "_command_executor"} == added_names(client, plain)


async def test_pinned_client_has_the_same_names_as_its_client(client):
    async with client.client() as pinned:
        assert dir(pinned) == dir(client)


# Names that clients and the shared connection need from the pool, the only object that they share.
OF_THE_POOL = {
    *("name", "telemetry", "stats", "ping", "health", "server_health", "get_retry", "retry_policy", "multiplexer"),
    *("acquire", "reconnect", "is_acquired", "was_reconnected", "discard_on_release", "will_discard", "is_connected"),
    *("check_open", "bind_event_loop", "closed_error", "background_tasks"),
    *("decodes_replies", "decode_reply", "is_decodable", "write_pending", "retire_connections"),
    *("acquire_for_sharing", "return_closed", "has_free_connection", "on_acquired", "on_timeout", "on_lag"),
    # For the pytest plugin, which closes it there.
    "event_loop",
    # For pools whose server changes.
    "is_current",
    # For pool_from_config, and for the pools that a pool makes for its servers.
    *("for_topology", "checks_arguments"),
    # For routing, which a cluster's pool does.
    *("route", "target", "follow", "is_sharing", "is_asking", "reads_replicas", "silent_seconds", "close_silent"),
    *("is_dedicated_in_use", "answers_within", "close_dedicated", "detach_connections"),
}


def test_pool_adds_what_clients_and_the_shared_connection_need_alone():
    added = added_names(MonitoredConnectionPool(), redis.asyncio.BlockingConnectionPool())

    assert {name for name in added if not name.startswith("_")} == OF_THE_POOL

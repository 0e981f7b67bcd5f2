"""The private parts that tests read or replace: the package's, redis-py's, asyncio's and OpenTelemetry's."""

import itertools

import redis.asyncio.observability.recorder
import redis.observability.recorder
from opentelemetry import context, trace
from redis._parsers import _AsyncHiredisParser, _AsyncRESP3Parser

from aioredis_monitored._commands import traits
from aioredis_monitored._commands.table import parse_command
from aioredis_monitored._execution import fetch
from aioredis_monitored._telemetry import coexistence, guard, hotkeys, operation, recorder
from aioredis_monitored._telemetry.direct import binding, public, sdk
from aioredis_monitored._telemetry.operation import Operation
from aioredis_monitored._telemetry.recorder import PoolRecorder
from aioredis_monitored._telemetry.spans import Server
from aioredis_monitored._topology import placement
from aioredis_monitored.client import lock, pubsub
from aioredis_monitored.client.client import _plain_recorders
from aioredis_monitored.components import store
from aioredis_monitored.pool import discovery, health, replicas, sentinel, topology
from aioredis_monitored.pool.pool import MonitoredConnectionPool
from aioredis_monitored.queue import queue, worker
from aioredis_monitored.testing import server

# Pool.


def acquired_connections_of(pool):
    """Return the set of a pool's acquired connections, of a plain redis-py pool as well."""
    return pool._in_use_connections


def idle_connections_of(pool):
    """Return the list of a pool's idle connections, of a plain redis-py pool as well."""
    return pool._available_connections


def streaming_provider_of(pool):
    """Return the streaming provider that a pool was given, which its connections know by another object."""
    return pool.connection_kwargs["credential_provider"]._provider


def waiters_of(pool):
    """Return the callers that wait for a slot of a pool, but not for the reserved one."""
    return pool._slots.waiters


def reserved_waiters_of(pool):
    """Return the callers that wait for the reserved slot of a pool."""
    return pool._slots.reserved_waiters


def is_reserved_slot_free(pool):
    """Return whether a pool keeps a slot for its shared connection."""
    return pool._slots.is_reserved_slot_free()


def forget_topology_classes(monkeypatch):
    """Let classes of pools be registered for topologies until the end of the test, and no others."""
    monkeypatch.setattr(MonitoredConnectionPool, "_topology_classes", {})


def forget_removed_nodes_at_once(monkeypatch):
    """Have a cluster's pool forget a node that a caller or another node has named with the next refresh."""
    monkeypatch.setattr(topology, "_REDIRECTED_SECONDS", 0.0)


async def refresh_topology(pool):
    """Have a cluster's pool ask which node serves which slots, and return when it knows."""
    await pool.cluster_topology._start_refresh()


def let_refresh_be_old(pool):
    """Have a cluster's pool take its last refresh for one of a minute ago."""
    pool.cluster_topology._refreshed_at -= 60


def set_time_for_asking_nodes(monkeypatch, seconds):
    """Replace the time that asking the nodes of a cluster may take."""
    monkeypatch.setattr(topology, "_ASK_SECONDS", seconds)


def let_refreshes_take(monkeypatch, seconds):
    """Replace the time that a node has to answer a refresh, and that of a whole refresh."""
    monkeypatch.setattr(topology, "_ANSWER_SECONDS", seconds)
    monkeypatch.setattr(topology, "_ASK_SECONDS", seconds)


def number_pools_from(pool, number):
    """Have a cluster's pool go on with a number, as if it had made that number of pools of nodes."""
    pool.cluster_topology._next_number = itertools.count(number)


# Demo and servers.


def demo_termination():
    """Return the context manager in which signals end the demo."""
    from aioredis_monitored.cli import demo

    return demo._Termination()


def set_stop_time(monkeypatch, seconds):
    """Replace the time that a server has to stop by itself."""
    monkeypatch.setattr(server, "_STOP_SECONDS", seconds)


# Shared connection.

# What redis-py's connection must have to be shared.
ATTRIBUTES_OF_SHAREABLE_CONNECTION = ("_writer", "_parser")


def shared_connection_of(client):
    """Return the connection that a client's ordinary calls share now."""
    return client.connection_pool.multiplexer._main.connection


def bulk_connection_of(client):
    """Return the shared connection for large values; ``None`` while there is none."""
    return client.connection_pool.multiplexer._bulk.connection


def call_counts_of(client):
    """Return how many calls the main and the bulk connection have, in flight and queued."""
    multiplexer = client.connection_pool.multiplexer
    main, bulk = (manager.in_flight() + len(manager.queued) for manager in (multiplexer._main, multiplexer._bulk))
    return {"main": main, "bulk": bulk}


def remember_large(client, call):
    """Report to the multiplexer that the reply to a call was large."""
    client.connection_pool.multiplexer._remember_large(call)


def large_keys_of(client):
    """Return the commands and keys whose replies were large."""
    return client.connection_pool.multiplexer._large_keys


def pretend_idle(shared_connection, seconds):
    """Move the last activity of a shared connection into the past."""
    shared_connection._last_active -= seconds


def transport_of_shared(shared_connection):
    """Return the transport that a shared connection writes to."""
    return shared_connection._transport


def replace_transport(shared_connection, transport):
    """Replace the transport that a shared connection writes to."""
    shared_connection._transport = transport


def reader_of_shared(shared_connection):
    """Return the parser of a shared connection."""
    return shared_connection._reader


def replace_reader(shared_connection, reader):
    """Replace the parser of a shared connection."""
    shared_connection._reader = reader


def wrap_queue_timeout(client, wrap):
    """Replace the callback for queued calls that time out by ``wrap(name, callback)``."""
    manager = client.connection_pool.multiplexer._main
    manager._on_timeout = wrap("timeout", manager._on_timeout)


def wrap_callbacks(shared_connection, wrap):
    """Replace the callbacks of a shared connection by ``wrap(name, callback)``."""
    shared_connection._flush = wrap("flush", shared_connection._flush)
    shared_connection._on_health_check = wrap("health check", shared_connection._on_health_check)
    shared_connection._on_timeout = wrap("timeout", shared_connection._on_timeout)


def set_lag_report_interval(monkeypatch, seconds):
    """Replace the minimum of seconds between two reports of the event loop lag."""
    monkeypatch.setattr("aioredis_monitored._multiplexer.connection._REPORT_INTERVAL_SECONDS", seconds)


# Client, locks and subscriptions.


def recorder_of(client):
    """Return the recorder of a client's calls."""
    return client._command_executor.recorder


def record_with(client, recorder):
    """Replace the recorder of a client's calls."""
    client._command_executor.recorder = recorder


def record_plain_pool(pool, recorder):
    """Set the recorder of all calls on a plain redis-py pool."""
    _plain_recorders[pool] = recorder


def set_lock_undo_time(monkeypatch, seconds):
    """Replace the seconds in which a cancelled lock call undoes its work."""
    monkeypatch.setattr(lock, "_UNDO_SECONDS", seconds)


def tasks_with_holds_of(redis_lock):
    """Return the tasks for which a lock remembers a hold."""
    return redis_lock.local._of_tasks


def is_background_acquisition(task):
    """Return whether a task acquires a lock apart from its caller's task."""
    return task.get_coro().__qualname__ == lock._Acquisition._run.__qualname__


def set_reconnect_backoff(monkeypatch, backoff):
    """Replace the function that returns the delay after a number of failed reconnects."""
    monkeypatch.setattr(pubsub, "reconnect_backoff", backoff)


def reconnect_failures_of(subscriptions):
    """Return how many attempts to reconnect have failed since the last message."""
    return subscriptions._failures


def next_reconnect_of(subscriptions):
    """Return when the next attempt to reconnect may begin; 0 while none is due."""
    return subscriptions._retry_at


def reconnect_task_of(subscriptions):
    """Return the task that reconnects; ``None`` if there is none."""
    return subscriptions._reconnecting


def connection_lock_of(subscriptions):
    """Return the asyncio lock of redis-py that a task has while it connects or sends."""
    return subscriptions._lock


# Queue.

# The coroutines that a get() is in while it restores a message, and while it waits for the reply to BLPOP.
SETTLING_COROUTINES = {fetch._BlockingFetch._settle.__name__, fetch._Restore.wait_settled.__name__}
BLOCKING_COROUTINE = fetch._BlockingFetch._read_replies.__name__


def pop_of(queue):
    """Return the commands with which a queue's get() pops and restores messages."""
    return queue._pop


def leases_of(queue):
    """Return the manager of a queue's leases."""
    return queue._leases


def renewer_of(queue):
    """Return the renewer of a queue's leases."""
    return queue._leases._renewer


def renewal_task_of(queue):
    """Return the task that renews a queue's leases; ``None`` if there is none."""
    return queue._leases._renewer._task


def renewal_timer_of(queue):
    """Return the timer of the next renewal of a queue's leases; ``None`` if there is none."""
    return queue._leases._renewer._timer


def is_worker_loop(task):
    """Return whether a task is one of the loops of a worker."""
    return worker.Worker._loop.__qualname__ in task.get_coro().__qualname__


def set_failure_backoff(monkeypatch, backoff):
    """Replace the function that returns a worker's delay after a number of failures."""
    monkeypatch.setattr(worker, "_failure_backoff", backoff)


def move_clock_of_health(monkeypatch, seconds):
    """Let that many seconds have passed since servers have refused to say something."""
    now = health.monotonic
    monkeypatch.setattr(health, "monotonic", lambda: now() + seconds)


def move_clock_of_queue_health(monkeypatch, seconds):
    """Let that many seconds have passed since this process has last consumed."""
    now = queue.monotonic
    monkeypatch.setattr(queue, "monotonic", lambda: now() + seconds)


def auth_backoff(failures):
    """Return a worker's delay after its credentials were refused a number of times."""
    return worker._auth_backoff(failures)


# Components.

MAX_CONFIG_ENTRIES = store._MAX_ENTRIES


def cached_entries_of(config_store):
    """Return a store's cached answers, by their keys in Redis."""
    return config_store._entries


def read_task_of(entry):
    """Return the task that reads a cached answer of a store."""
    return entry._reading


# Commands.

BLOCKING_COMMANDS = traits._BLOCKING
MAY_BLOCK = traits._MAY_BLOCK
ALTERS_CONNECTION = traits._ALTERS_CONNECTION
OUT_OF_BAND = traits._OUT_OF_BAND
RETRY_SAFE = traits._RETRY_SAFE
RUNS_CODE = traits._RUNS_CODE
COUNTS_CONNECTION_WRITES = traits._COUNTS_CONNECTION_WRITES

# Telemetry.

NATIVE_METRICS_WARNING = coexistence._NATIVE_METRICS_WARNING


def forget_logged_failures(monkeypatch):
    """Let telemetry failures be logged although earlier tests have caused them."""
    monkeypatch.setattr(guard, "_logged", set())


def forget_native_metrics_warning(monkeypatch):
    """Let the warning of redis-py's own metrics be logged although an earlier test has caused it."""
    monkeypatch.setattr(coexistence, "_warned", [])


def original_of(method):
    """Return redis-py's method behind a tool's patch; ``None`` if the patch does not show it."""
    return coexistence._original(method)


def queue_spec_of(queue):
    """Return what a queue says of its fetches in the terms of the conventions."""
    return queue._pop.messaging


def cached_messaging_specs_of(recorder):
    """Return the specs and the attributes of the messaging operations that a recorder has seen."""
    return recorder._messaging_specs, recorder._message_attributes


def cached_command_specs_of(recorder):
    """Return the names and attributes that a recorder keeps for repeated commands."""
    return recorder._specs


def set_max_reported_keys(monkeypatch, count):
    """Replace the number of hot keys that are reported by their names."""
    monkeypatch.setattr(hotkeys, "_MAX_REPORTED_KEYS", count)


def set_real_instrument(monkeypatch, instrument, real):
    """Replace what a proxy instrument of OpenTelemetry forwards points to."""
    monkeypatch.setattr(instrument, "_real_instrument", real)


# OpenTelemetry.

SUPPRESS_INSTRUMENTATION_KEY = context._SUPPRESS_INSTRUMENTATION_KEY


def set_tracer_provider(monkeypatch, provider):
    """Replace the global tracer provider; ``None`` for none."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)


def set_logger_provider(monkeypatch, provider):
    """Replace the global logger provider."""
    monkeypatch.setattr("opentelemetry._logs._internal._LOGGER_PROVIDER", provider)


# FaultProxy.


def upstream_of(proxy):
    """Return the address that a proxy forwards new connections to."""
    return proxy._upstream


def redirect(proxy, host, port):
    """Have a proxy forward new connections to another address."""
    proxy._upstream = (host, port)


def redirect_nowhere(proxy):
    """Have a proxy forward new connections to a port without a server; return the address before."""
    before, proxy._upstream = proxy._upstream, ("127.0.0.1", 1)
    return before


def forwarding_tasks_of(proxy):
    """Return the tasks that forward a proxy's open connections."""
    return proxy._tasks


# redis-py.

HIREDIS_PARSER = _AsyncHiredisParser
PYTHON_PARSER = _AsyncRESP3Parser


def stream_reader_of(connection):
    """Return the stream that a connection reads from."""
    return connection._reader


def unread_bytes_of(connection):
    """Return the bytes that have arrived on a connection and that its parser has not read."""
    return connection._reader._buffer


def replace_write(monkeypatch, owner, write):
    """Replace the coroutine function with which a connection, or all of a class, write; return the one before."""
    before = owner._send_packed_command
    monkeypatch.setattr(owner, "_send_packed_command", write)
    return before


def replace_ask(pipe, ask):
    """Replace the coroutine function with which a watching pipeline sends and reads; return the one before."""
    before, pipe._send_command_parse_response = pipe._send_command_parse_response, ask
    return before


def event_dispatcher_of(client):
    """Return the event dispatcher of a client."""
    return client._event_dispatcher


def set_native_metrics(monkeypatch, collector):
    """Replace what collects the metrics of redis-py's client for asyncio."""
    monkeypatch.setattr(redis.asyncio.observability.recorder, "_async_metrics_collector", collector)


def set_blocking_native_metrics(monkeypatch, collector):
    """Replace what collects the metrics of redis-py's blocking client, and of pub/sub."""
    monkeypatch.setattr(redis.observability.recorder, "_metrics_collector", collector)


# asyncio.


def awaited_future_of(task):
    """Return the future that a task waits for; ``None`` if it is about to run."""
    return task._fut_waiter


# Sentinel.


def sentinels_of(pool):
    """Return the sentinels that a pool knows."""
    return pool._discovery._known.sentinels


def followers_of(pool):
    """Return the tasks that follow what sentinels announce."""
    return list(pool._discovery._followers.values())


def number_of_sentinels_known_to(pool):
    """Return how many sentinels a pool counts."""
    return pool._discovery._known.count()


async def ask_sentinels_of(pool):
    """Ask the sentinels that a pool knows, and return what their answers amount to."""
    return await pool._discovery._ask_once()


def failovers_begun_of(pool):
    """Return how many failovers were announced to a pool."""
    return pool._discovery.tracker.generation


def set_time_for_asking_sentinels(monkeypatch, seconds):
    """Replace the time that sentinels get to answer, of which the deadline of calls allows less."""
    monkeypatch.setattr(discovery, "_MAX_ASK_SECONDS", seconds)


def shorten_ping_of_sentinels(monkeypatch, seconds):
    """Shorten the time after which a silent sentinel is asked whether it is there."""
    monkeypatch.setattr(discovery, "_PING_SECONDS", seconds)


def replicas_of(pool):
    """Return the pools of the replicas from which a pool reads."""
    return list(pool._replicas)


def set_age_of_replicas(monkeypatch, seconds):
    """Set how old the sentinels' word about replicas may be while calls read."""
    monkeypatch.setattr(sentinel, "_REPLICAS_SECONDS", seconds)


def set_suspicion_of_servers(monkeypatch, seconds):
    """Set for how long a server is suspected that did not answer, or has failed a call."""
    monkeypatch.setattr(replicas, "_SUSPECTED_SECONDS", seconds)


def keys_in_order(args):
    """Return the keys by which a command is routed in a cluster; none if a server would refuse the arguments."""
    call = parse_command(args)
    return [call.arguments[position] for position in placement._key_positions(call.name.upper(), call)]


# The direct way.


def goes_directly(client):
    """Return whether the spans, and the points, of a client's pool go directly."""
    recorder = client.connection_pool.telemetry
    parts = (recorder.recording.spans, recorder.operation_points)
    return tuple(type(part).__name__.startswith("Direct") for part in parts)


def sizes_of_additions(monkeypatch, recorder):
    """Return a list that gets how many points of calls go to the SDK together, each time when some do."""
    points, sizes = type(recorder.operation_points), []
    add_up = points._add_up
    monkeypatch.setattr(points, "_add_up", lambda *arguments: sizes.append(len(arguments[4])) or add_up(*arguments))
    return sizes


def forget_explanations(monkeypatch):
    """Have it be logged anew why spans and points go the public way."""
    monkeypatch.setattr(public, "_logged", set())


def forget_known_functions(monkeypatch):
    """Let no version of the SDK be known."""
    monkeypatch.setattr(sdk, "_known", dict)
    monkeypatch.setattr(sdk, "_found_known", [])


def start_recorder(tracer_provider, meter_provider):
    """Return the recorder of a pool on no server."""
    server = Server({"db.system.name": "redis", "server.address": "127.0.0.1"}, "127.0.0.1")
    return PoolRecorder(server, tracer_provider=tracer_provider, meter_provider=meter_provider)


def new_operation(recorder, args):
    """Return the record of a command that has started."""
    operation = Operation(recorder, recorder.command_spec(args), args, None)
    operation.start()
    return operation


def chances():
    """Return what chooses the calls to keep that are in no trace."""
    return operation._random


def record_by_the_api(monkeypatch):
    """Have spans and points go the public way."""
    monkeypatch.setattr(
        recorder, "bind", lambda tracer, histogram, **_: binding.bind(tracer, histogram, is_direct=False)
    )

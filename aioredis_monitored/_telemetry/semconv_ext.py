"""Names that the semantic conventions do not have, each with its reason; semconv.py has those of the conventions."""

from typing import Final

_OURS: Final = "aioredis_monitored"

# Parts of a span's duration, in seconds: waiting for a connection or in the shared connection's queue, connecting, and
# from the writing of the command to its reply. The conventions have them as metrics of a pool only.
CONNECT_DURATION: Final = f"{_OURS}.connect.duration"
WAIT_DURATION: Final = f"{_OURS}.wait.duration"
WIRE_DURATION: Final = f"{_OURS}.wire.duration"
# The number of failed commands in a batch: the conventions have only the first one's error.type.
BATCH_FAILED: Final = f"{_OURS}.batch.failed"
# The number of calls that a span stands for, if options keep a share of them: OpenTelemetry calls it the adjusted
# count, and has no attribute for it.
ADJUSTED_COUNT: Final = f"{_OURS}.adjusted_count"
# What the application's key_template returns for the key: few enough values to group points by.
KEY_TEMPLATE: Final = f"{_OURS}.key.template"
# How often nodes of a cluster have redirected the call, or commands in it, on its span, only if they have; the counter
# of all redirects, and whether each was MOVED or ASK; how often nodes were asked for the slot map; the nodes that are
# known; how often a replica took its primary's place. The conventions know no clusters.
REDIRECTS: Final = f"{_OURS}.redirects"
CLUSTER_REDIRECTS: Final = f"{_OURS}.cluster.redirects"
CLUSTER_REDIRECT: Final = f"{_OURS}.cluster.redirect"
CLUSTER_REFRESHES: Final = f"{_OURS}.cluster.refreshes"
CLUSTER_NODES: Final = f"{_OURS}.cluster.nodes"
FAILOVERS: Final = f"{_OURS}.failovers"
# The calls of a request to Redis and their seconds, on the request's span: the conventions describe single calls.
REQUEST_CALLS: Final = f"{_OURS}.request.calls"
REQUEST_DURATION: Final = f"{_OURS}.request.duration"
# The commands that a request has called more often than the limit, an array on the request's span, because trace search
# finds attributes and span events are deprecated; the same name is the log event for each of them, for those who alert
# on logs. The limit is an attribute of the event. The conventions have no name for repeated calls.
REQUEST_REPEATED: Final = f"{_OURS}.request.repeated"
REQUEST_REPEATED_LIMIT: Final = f"{_OURS}.request.repeated_limit"

# The conventions list other brokers only, and leave the names of operations to each broker.
MESSAGING_SYSTEM_REDIS: Final = "redis"
OPERATION_ACK: Final = "ack"
OPERATION_NACK: Final = "nack"
OPERATION_PROCESS: Final = "process"
OPERATION_PUBLISH: Final = "publish"
OPERATION_RECEIVE: Final = "receive"
OPERATION_SEND: Final = "send"
# A queue: its messages, those that this process holds, and its dead letters; messages recovered from dead consumers,
# messages whose lease another consumer got, and messages that a cancelled get may have lost; seconds in the queue. The
# conventions have none of these.
QUEUE_DEPTH: Final = f"{_OURS}.queue.depth"
QUEUE_IN_FLIGHT: Final = f"{_OURS}.queue.in_flight"
QUEUE_DEAD: Final = f"{_OURS}.queue.dead"
QUEUE_RECOVERED: Final = f"{_OURS}.queue.recovered"
QUEUE_LEASE_LOST: Final = f"{_OURS}.queue.lease_lost"
QUEUE_UNSETTLED: Final = f"{_OURS}.queue.unsettled"
QUEUE_TIME: Final = f"{_OURS}.queue.time"

# The calls in flight on the shared connection: the conventions assume one caller for each connection.
CONNECTION_IN_FLIGHT: Final = f"{_OURS}.connection.in_flight"
# The calls per second that are about a key or a key template, and whether they read or write; the conventions have no
# keys.
HOT_KEYS_RATE: Final = f"{_OURS}.hot_keys.rate"
KEY: Final = f"{_OURS}.key"
KEY_ACCESS: Final = f"{_OURS}.key.access"
# Acquiring a lock is one span, however often Redis is asked, and releasing it is one; whether it was acquired, as not
# getting it is no error, and how often Redis was asked. The conventions have no locks.
LOCK_ACQUIRE: Final = "lock.acquire"
LOCK_RELEASE: Final = "lock.release"
LOCK_ACQUIRED: Final = f"{_OURS}.lock.acquired"
LOCK_POLLS: Final = f"{_OURS}.lock.polls"
# The seconds until a lock is acquired or given up, and until it is released or lost: both are times of the application,
# which no metric about Redis covers.
LOCK_WAIT_TIME: Final = f"{_OURS}.lock.wait_time"
LOCK_HOLD_TIME: Final = f"{_OURS}.lock.hold_time"
# Acquisitions that found the lock held by another owner, and locks that were gone before their release: their owners
# were unprotected. The conventions have no locks.
LOCK_CONTENDED: Final = f"{_OURS}.lock.contended"
LOCK_LOST: Final = f"{_OURS}.lock.lost"
# Subscriptions renewed after their connection was lost: messages published meanwhile never arrive. The conventions
# count messages that arrive.
PUBSUB_RECONNECTS: Final = f"{_OURS}.pubsub.reconnects"
# Seconds from reading a reply to resuming its caller: a busy event loop looks like a slow server without it.
EVENT_LOOP_LAG: Final = f"{_OURS}.event_loop.lag"

"""Names that the semantic conventions do not have, each with the reason why it is needed; semconv.py has theirs."""

from typing import Final

_OURS: Final = "aioredis_monitored"

# Of a span, in seconds: what of its duration was spent waiting for a connection or in the shared connection's queue,
# connecting, and between the writing of the command and its reply. Conventions have these as a pool's metrics only.
CONNECT_DURATION: Final = f"{_OURS}.connect.duration"
WAIT_DURATION: Final = f"{_OURS}.wait.duration"
WIRE_DURATION: Final = f"{_OURS}.wire.duration"
# How many commands of a batch have failed: conventions have the first one's error.type.
BATCH_FAILED: Final = f"{_OURS}.batch.failed"
# What the application's key template makes of the key, for few enough values to count by.
KEY_TEMPLATE: Final = f"{_OURS}.key.template"
# A request's calls to Redis, on the request's own span.
REQUEST_CALLS: Final = f"{_OURS}.request.calls"
REQUEST_DURATION: Final = f"{_OURS}.request.duration"
# The event on a request's span that one command was called too often, and how often that is.
REPEATED: Final = f"{_OURS}.repeated"
REPEATED_MORE_THAN: Final = f"{_OURS}.repeated.more_than"

# Conventions name other brokers only, and leave the names of operations to each of them.
MESSAGING_SYSTEM_REDIS: Final = "redis"
OPERATION_ACK: Final = "ack"
OPERATION_NACK: Final = "nack"
OPERATION_PROCESS: Final = "process"
OPERATION_PUBLISH: Final = "publish"
OPERATION_RECEIVE: Final = "receive"
OPERATION_SEND: Final = "send"
# A queue: how many messages are in it, how many this process holds, how many are in the list of the dead; those that
# were recovered from dead consumers, those whose lease was lost to another one, and those that a cancelled get may have
# lost; how long they were in the queue. Conventions have none of these.
QUEUE_DEPTH: Final = f"{_OURS}.queue.depth"
QUEUE_IN_FLIGHT: Final = f"{_OURS}.queue.in_flight"
QUEUE_DEAD: Final = f"{_OURS}.queue.dead"
QUEUE_RECOVERED: Final = f"{_OURS}.queue.recovered"
QUEUE_LEASE_LOST: Final = f"{_OURS}.queue.lease_lost"
QUEUE_UNSETTLED: Final = f"{_OURS}.queue.unsettled"
QUEUE_TIME: Final = f"{_OURS}.queue.time"

# What callers share one connection for; conventions know connections that one caller has at a time.
CONNECTION_IN_FLIGHT: Final = f"{_OURS}.connection.in_flight"
# The calls per second that are about a key, which is named or a template, of late; conventions know no keys.
HOT_KEYS_RATE: Final = f"{_OURS}.hot_keys.rate"
KEY: Final = f"{_OURS}.key"
KEY_ACCESS: Final = f"{_OURS}.key.access"
# Acquiring a lock is one span, whatever it takes, and releasing it is one; whether it was acquired, as not
# getting it is no error, and how often Redis was asked. Conventions know no locks.
LOCK_ACQUIRE: Final = "lock.acquire"
LOCK_RELEASE: Final = "lock.release"
LOCK_ACQUIRED: Final = f"{_OURS}.lock.acquired"
LOCK_POLLS: Final = f"{_OURS}.lock.polls"
# How long locks are waited for, whether that ends with having one or not, and how long they are held: both are times of
# the application, which no metric about Redis has.
LOCK_WAIT_TIME: Final = f"{_OURS}.lock.wait_time"
LOCK_HOLD_TIME: Final = f"{_OURS}.lock.hold_time"
# Acquisitions that found the lock held by another, and locks that were gone before they were released: what to protect
# was unprotected then.
LOCK_CONTENDED: Final = f"{_OURS}.lock.contended"
LOCK_LOST: Final = f"{_OURS}.lock.lost"
# Subscriptions that were renewed after their connection was lost: what was published meanwhile never came. Conventions
# count messages that come.
PUBSUB_RECONNECTS: Final = f"{_OURS}.pubsub.reconnects"
# From the reading of a reply until its caller goes on: what looks like a slow server and is a busy event loop.
EVENT_LOOP_LAG: Final = f"{_OURS}.event_loop.lag"

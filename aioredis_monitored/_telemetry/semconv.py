"""Names of the OpenTelemetry semantic conventions that this package emits (v1.44.0).

They are copies, because the package ``opentelemetry-semantic-conventions`` pins one exact ``opentelemetry-api``; a test
compares each with that package.
"""

from typing import Final

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"

# https://opentelemetry.io/docs/specs/semconv/db/redis/
DB_NAMESPACE: Final = "db.namespace"
DB_OPERATION_BATCH_SIZE: Final = "db.operation.batch.size"
DB_OPERATION_NAME: Final = "db.operation.name"
DB_QUERY_SUMMARY: Final = "db.query.summary"
DB_QUERY_TEXT: Final = "db.query.text"
DB_RESPONSE_STATUS_CODE: Final = "db.response.status_code"
DB_STORED_PROCEDURE_NAME: Final = "db.stored_procedure.name"
DB_SYSTEM_NAME: Final = "db.system.name"
ERROR_TYPE: Final = "error.type"
NETWORK_PEER_ADDRESS: Final = "network.peer.address"
NETWORK_PEER_PORT: Final = "network.peer.port"
NETWORK_TRANSPORT: Final = "network.transport"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"

DB_SYSTEM_REDIS: Final = "redis"
TRANSPORT_TCP: Final = "tcp"
TRANSPORT_UNIX: Final = "unix"

# https://opentelemetry.io/docs/specs/semconv/db/database-metrics/
DB_CLIENT_OPERATION_DURATION: Final = "db.client.operation.duration"
DB_CLIENT_CONNECTION_COUNT: Final = "db.client.connection.count"
DB_CLIENT_CONNECTION_CREATE_TIME: Final = "db.client.connection.create_time"
DB_CLIENT_CONNECTION_IDLE_MAX: Final = "db.client.connection.idle.max"
DB_CLIENT_CONNECTION_IDLE_MIN: Final = "db.client.connection.idle.min"
DB_CLIENT_CONNECTION_MAX: Final = "db.client.connection.max"
DB_CLIENT_CONNECTION_PENDING_REQUESTS: Final = "db.client.connection.pending_requests"
DB_CLIENT_CONNECTION_POOL_NAME: Final = "db.client.connection.pool.name"
DB_CLIENT_CONNECTION_STATE: Final = "db.client.connection.state"
DB_CLIENT_CONNECTION_TIMEOUTS: Final = "db.client.connection.timeouts"
DB_CLIENT_CONNECTION_USE_TIME: Final = "db.client.connection.use_time"
DB_CLIENT_CONNECTION_WAIT_TIME: Final = "db.client.connection.wait_time"

# https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/
MESSAGING_BATCH_MESSAGE_COUNT: Final = "messaging.batch.message_count"
MESSAGING_DESTINATION_NAME: Final = "messaging.destination.name"
MESSAGING_DESTINATION_TEMPLATE: Final = "messaging.destination.template"
MESSAGING_OPERATION_NAME: Final = "messaging.operation.name"
MESSAGING_OPERATION_TYPE: Final = "messaging.operation.type"
MESSAGING_SYSTEM: Final = "messaging.system"

OPERATION_TYPE_PROCESS: Final = "process"
OPERATION_TYPE_RECEIVE: Final = "receive"
OPERATION_TYPE_SEND: Final = "send"
OPERATION_TYPE_SETTLE: Final = "settle"

# https://opentelemetry.io/docs/specs/semconv/messaging/messaging-metrics/
MESSAGING_CLIENT_CONSUMED_MESSAGES: Final = "messaging.client.consumed.messages"
MESSAGING_CLIENT_OPERATION_DURATION: Final = "messaging.client.operation.duration"
MESSAGING_CLIENT_SENT_MESSAGES: Final = "messaging.client.sent.messages"
MESSAGING_PROCESS_DURATION: Final = "messaging.process.duration"

STATE_IDLE: Final = "idle"
STATE_USED: Final = "used"

# https://opentelemetry.io/docs/specs/semconv/general/recording-errors/, for values beyond a limit
OTHER: Final = "_OTHER"

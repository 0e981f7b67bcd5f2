"""Values for the arguments that redis-py's client takes, each different from the argument's default."""

import ssl

import redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.event import EventDispatcher
from redis.maint_notifications import MaintNotificationsConfig

NOT_RETRIED = Retry(NoBackoff(), 0)

GIVEN = {
    "host": "db.example",
    "port": 7,
    "db": "2",
    "password": "p",
    "socket_timeout": 3,
    "socket_connect_timeout": 1.5,
    "socket_read_size": 4096,
    "socket_keepalive": False,
    "socket_keepalive_options": {},
    "unix_socket_path": "/run/redis.sock",
    "encoding": "latin-1",
    "encoding_errors": "replace",
    "decode_responses": True,
    "retry_on_timeout": True,
    "retry": NOT_RETRIED,
    "retry_on_error": [redis.ConnectionError],
    "ssl": True,
    "ssl_keyfile": "/no/such.key",
    "ssl_certfile": "/no/such.pem",
    "ssl_cert_reqs": "none",
    "ssl_include_verify_flags": [ssl.VERIFY_X509_STRICT],
    "ssl_exclude_verify_flags": [ssl.VERIFY_X509_STRICT],
    "ssl_ca_certs": "/no/such.pem",
    "ssl_ca_data": "pem",
    "ssl_ca_path": "/etc/ssl",
    "ssl_check_hostname": False,
    "ssl_min_version": ssl.TLSVersion.TLSv1_3,
    "ssl_ciphers": "ALL",
    "ssl_password": "p",
    "max_connections": 3,
    "single_connection_client": True,
    "health_check_interval": 30,
    "client_name": "shop",
    "lib_name": "lib",
    "lib_version": "1",
    "driver_info": None,
    "username": "u",
    "auto_close_connection_pool": False,
    "redis_connect_func": lambda _: None,
    "credential_provider": redis.UsernamePasswordCredentialProvider("u", "p"),
    "protocol": "3",
    "legacy_responses": False,
    "event_dispatcher": EventDispatcher(),
    "maint_notifications_config": MaintNotificationsConfig(enabled=False),
}

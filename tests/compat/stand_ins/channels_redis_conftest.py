"""Makes channels_redis' tests of layers without hosts, which connect to the default port, connect to the server."""

import os

import channels_redis.core
from channels_redis.utils import decode_hosts

channels_redis.core.decode_hosts = lambda hosts: decode_hosts(hosts or [os.environ["COMPAT_URL"]])

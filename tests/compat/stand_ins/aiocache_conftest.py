"""Makes aiocache's tests, which connect to the default port, connect to the server that runs."""

import inspect
import os

import pytest
import redis
from aiocache.backends.redis import RedisBackend

_defaults = {
    name: parameter.default
    for name, parameter in inspect.signature(RedisBackend.__init__).parameters.items()
    if parameter.default is not parameter.empty
}
_ours = {**_defaults, "endpoint": os.environ["COMPAT_HOST"], "port": int(os.environ["COMPAT_PORT"])}
RedisBackend.__init__.__defaults__ = tuple(_ours.values())


@pytest.fixture(autouse=True)
def _no_keys_of_other_tests():
    """A test that fails before its end would leave keys that make others fail."""
    with redis.Redis.from_url(os.environ["COMPAT_URL"]) as client:
        client.flushall()

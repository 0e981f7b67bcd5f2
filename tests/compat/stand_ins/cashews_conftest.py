"""Stand-in for cashews' ``tests/conftest.py``, which its sdist lacks; with its two backends that use Redis."""

import os
from unittest.mock import Mock
from uuid import uuid4

import pytest
from cashews import Cache, register_backend
from cashews.backends.redis import Redis
from cashews.backends.redis.client_side import BcastClientSide


@pytest.fixture
def redis_dsn():
    return os.environ["COMPAT_URL"]


@pytest.fixture
def backend_factory():
    def create(kind, *arguments, **named):
        return kind(*arguments, **{"suppress": False, **named})

    return create


@pytest.fixture(params=[Redis, BcastClientSide])
async def raw_backend(request, redis_dsn, backend_factory):
    options = {"client_side_prefix": f"{uuid4().hex}:"} if request.param is BcastClientSide else {}
    made = backend_factory(request.param, redis_dsn, **options)
    await made.init()
    await made.clear()
    yield made, request.param.__name__
    await made.close()


@pytest.fixture
def backend(raw_backend):
    return raw_backend[0]


@pytest.fixture
def target(backend):
    return Mock(wraps=backend)


@pytest.fixture
def cache(target):
    register_backend("target", lambda **_: target)
    made = Cache()
    made.setup("target://")
    return made

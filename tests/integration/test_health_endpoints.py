"""``HealthEndpoints``, mounted in applications."""

import pytest
import redis.asyncio
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.routing import Mount

from aioredis_monitored import HealthEndpoints, MonitoredConnectionPool, RedisContextFactory


def fastapi_app(endpoints, lifespan):
    app = FastAPI(lifespan=lifespan)
    app.mount("/health", endpoints)
    return app


def starlette_app(endpoints, lifespan):
    return Starlette(routes=[Mount("/health", endpoints)], lifespan=lifespan)


@pytest.fixture(params=[fastapi_app, starlette_app])
def make_app(request):
    return request.param


@pytest.fixture
def probed(make_app, server):
    pool = MonitoredConnectionPool.from_url(server.url, name="cache")
    with TestClient(make_app(HealthEndpoints(pool), RedisContextFactory(pool).lifespan)) as client:
        yield client


def test_ready_says_what_was_found(probed):
    response = probed.get("/health/ready")

    assert response.status_code == 200
    found = response.json()["cache"]
    assert found.pop("latency") > 0
    assert found == {
        "ok": True,
        "problem": "",
        "topology": "standalone",
        "role": "primary",
        "writable": True,
        "replicas": 0,
    }
    assert response.headers["cache-control"] == "no-store"


def test_one_pool_that_is_not_ready_makes_the_process_unready(make_app, server):
    pool = MonitoredConnectionPool.from_url(server.url, name="cache")
    gone = MonitoredConnectionPool.from_url("redis://127.0.0.1:1", name="gone")
    with TestClient(make_app(HealthEndpoints(pool, gone), RedisContextFactory(pool).lifespan)) as client:
        response = client.get("/health/ready")
        alive = client.get("/health/alive")
        client.portal.call(gone.aclose)

    assert response.status_code == 503
    assert {name: found["ok"] for name, found in response.json().items()} == {"cache": True, "gone": False}
    assert response.json()["gone"]["problem"].startswith("Error 111 ")
    assert (alive.status_code, alive.json()) == (200, {})


def test_alive_asks_no_server(probed, inspector):
    before = inspector.info("stats")["total_commands_processed"]

    assert probed.get("/health/alive").status_code == 200

    assert inspector.info("stats")["total_commands_processed"] == before + 1


def test_probes_may_be_heads_and_end_with_a_slash(probed):
    assert (probed.head("/health/ready").status_code, probed.head("/health/ready").content) == (200, b"")
    assert probed.get("/health/alive/").status_code == 200


def test_other_methods_and_paths_are_refused(probed):
    assert probed.post("/health/ready").status_code == 405
    assert probed.post("/health/alive").headers["allow"] == "GET, HEAD"
    assert probed.get("/health/").status_code == 404
    assert probed.get("/health/readiness").status_code == 404


def test_no_pool_is_refused_at_once():
    with pytest.raises(TypeError, match=r"^pools must be MonitoredConnectionPool, got BlockingConnectionPool$"):
        HealthEndpoints(redis.asyncio.BlockingConnectionPool())


async def test_websocket_is_refused():
    with pytest.raises(RuntimeError, match="HTTP alone, got websocket"):
        await HealthEndpoints()({"type": "websocket"}, None, None)


async def test_two_pools_of_one_name_are_refused(server):
    pools = [MonitoredConnectionPool.from_url(server.url, name="redis") for _ in range(2)]

    with pytest.raises(ValueError, match=r"^two pools have the name 'redis': give each its own"):
        HealthEndpoints(*pools)

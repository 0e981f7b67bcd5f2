"""The types that users of the frameworks' integrations see; mypy and pyright check this file, which is never run."""

from typing import Any, assert_type

from aiohttp import web
from fastapi import FastAPI, Request, WebSocket
from litestar import Litestar
from litestar.connection import ASGIConnection
from litestar.connection import Request as LitestarRequest
from starlette.applications import Starlette
from starlette.requests import Request as StarletteRequest
from starlette.websockets import WebSocket as StarletteWebSocket

from aioredis_monitored import MonitoredConnectionPool, MonitoredRedisConnection
from aioredis_monitored.integrations import aiohttp, fastapi, litestar, starlette


async def of_fastapi(app: FastAPI, pool: MonitoredConnectionPool, request: Request, websocket: WebSocket) -> None:
    fastapi.setup(app, pool)
    fastapi.setup(app, pool, name="cache")
    assert_type(await fastapi.get_redis(request), MonitoredRedisConnection)
    assert_type(await fastapi.get_redis(websocket), MonitoredRedisConnection)
    assert_type(await fastapi.redis_dependency("cache")(request), MonitoredRedisConnection)


async def endpoint(redis: fastapi.RedisDep) -> None:
    assert_type(redis, MonitoredRedisConnection)


class State(starlette.RedisState):
    cache: MonitoredRedisConnection


async def of_starlette(
    app: Starlette, pool: MonitoredConnectionPool, request: StarletteRequest[State], websocket: StarletteWebSocket
) -> None:
    starlette.setup(app, pool)
    assert_type(request.state["redis"], MonitoredRedisConnection)
    assert_type(request.state["cache"], MonitoredRedisConnection)
    request.state["other"]  # type: ignore[typeddict-item]
    assert_type(starlette.get_redis(request), MonitoredRedisConnection)
    assert_type(starlette.get_redis(websocket, "cache"), MonitoredRedisConnection)


async def handler(redis: litestar.RedisDep) -> None:
    assert_type(redis, MonitoredRedisConnection)


def guard(connection: ASGIConnection[Any, Any, Any, Any], request: LitestarRequest[Any, Any, Any]) -> None:
    assert_type(litestar.get_redis(connection), MonitoredRedisConnection)
    assert_type(litestar.get_redis(request, "cache"), MonitoredRedisConnection)


def of_litestar(pool: MonitoredConnectionPool) -> Litestar:
    return Litestar(plugins=[litestar.RedisPlugin(pool), litestar.RedisPlugin(pool, name="cache")])


async def of_aiohttp(app: web.Application, pool: MonitoredConnectionPool, request: web.Request) -> None:
    aiohttp.setup(app, pool)
    assert_type(app[aiohttp.redis_key("cache")], MonitoredRedisConnection)
    assert_type(aiohttp.get_redis(request), MonitoredRedisConnection)
    aiohttp.setup(Starlette(), pool)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

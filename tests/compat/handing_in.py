"""Hand our client to a library by the code that the documentation shows, use the library, and look at what it records.

``COMPAT_URL`` is the server's URL, the argument the library's name. It fails unless the library's commands are spans,
and the server accepts as few connections as ``works_inside.toml`` says. With ``COMPAT_CLIENT=redis-py`` it hands
redis-py's client in by the same code, and fails unless that takes as many connections as it says.
"""

import asyncio
import os
import sys
import tomllib
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

from opentelemetry import metrics, trace
from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis

import aioredis_monitored
from aioredis_monitored import MonitoredRedisConnection, pool_from_config
from aioredis_monitored.testing import TelemetryCapture

LIBRARIES = tomllib.loads(Path(__file__).with_name("works_inside.toml").read_text("utf-8"))
URL = os.environ["COMPAT_URL"]
AT_ONCE = 30


async def at_once(function):
    """Call a function with thirty numbers at the same time."""
    return await asyncio.gather(*(function(number) for number in range(AT_ONCE)))


async def aiocache(made):
    await at_once(lambda number: made.cache.set(f"key-{number}", number, ttl=60))
    assert await at_once(lambda number: made.cache.get(f"key-{number}")) == list(range(AT_ONCE))
    await made.cache.close()
    assert await made.redis.ping()
    return {"SETEX": AT_ONCE, "GET": AT_ONCE}


async def aiogram(made):
    from aiogram.fsm.storage.base import StorageKey

    storage = made.dispatcher.storage
    await at_once(lambda number: storage.set_state(StorageKey(1, number, number), "asked"))
    states = await at_once(lambda number: storage.get_state(StorageKey(1, number, number)))
    assert states == ["asked"] * AT_ONCE
    return {"SET": AT_ONCE, "GET": AT_ONCE}


async def aiohttp_session(made):
    from aiohttp import web
    from aiohttp.test_utils import TestClient, TestServer
    from aiohttp_session import get_session, session_middleware

    async def handle(request):
        session = await get_session(request)
        session["count"] = session.get("count", 0) + 1
        return web.json_response(session["count"])

    app = web.Application(middlewares=[session_middleware(made.storage)])
    app.router.add_get("/", handle)
    async with TestClient(TestServer(app)) as browser:
        assert [await (await browser.get("/")).json() for _ in range(3)] == [1, 2, 3]
    return {"SET": 3, "GET": 2}


async def arq(made):
    from arq import func

    async def double(context, number):
        return 2 * number

    functions = [func(double, name="double")]
    worker = made.Worker(functions, redis_pool=made.queue, burst=True, handle_signals=False, poll_delay=0.05)
    jobs = await at_once(lambda number: made.queue.enqueue_job("double", number))
    await worker.main()
    assert await asyncio.gather(*(job.result(timeout=20) for job in jobs)) == [2 * number for number in range(AT_ONCE)]
    await worker.close()
    # The worker polls as often as it has to.
    return {"ZRANGEBYSCORE": 1, "WATCH": AT_ONCE}


async def bullmq(made):
    jobs = await at_once(lambda number: made.queue.add("paint", {"number": number}))
    assert (await made.queue.getJobCounts("wait"))["wait"] == AT_ONCE
    assert (await made.queue.getJob(jobs[3].id)).data == {"number": 3}
    await made.queue.close()
    return {"EVALSHA": AT_ONCE, "HGETALL": 1}


async def cashews(made):
    await made.cache.init()
    await at_once(lambda number: made.cache.set(f"key-{number}", number))
    assert await at_once(lambda number: made.cache.get(f"key-{number}")) == list(range(AT_ONCE))
    await made.cache.set_many({"one": 1, "two": 2}, expire=60)
    assert await made.cache.get_many("one", "two") == (1, 2)
    await made.cache.close()
    return {"SET": AT_ONCE, "GET": AT_ONCE, "MGET": 1}


async def channels_redis(made):
    waiting = [asyncio.create_task(made.layer.receive(f"channel-{number}")) for number in range(2)]
    await asyncio.sleep(0.1)
    for number in range(2):
        await made.layer.send(f"channel-{number}", {"type": "text", "number": number})
    assert [message["number"] for message in await asyncio.gather(*waiting)] == [0, 1]
    await made.layer.flush()
    return {"ZADD": 2, "BZPOPMIN": 2}


async def faststream(made):
    received = []

    @made.broker.subscriber(list="numbers")
    async def handle(number: int) -> None:
        received.append(number)

    await made.broker.start()
    await at_once(lambda number: made.broker.publish(number, list="numbers"))
    async with asyncio.timeout(30):
        while len(received) < AT_ONCE:
            await asyncio.sleep(0.01)
    assert sorted(received) == list(range(AT_ONCE))
    await made.broker.stop()
    return {"RPUSH": AT_ONCE, "BLPOP": AT_ONCE}


async def limits(made):
    from limits import RateLimitItemPerMinute
    from limits.aio.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter

    for limiter in (FixedWindowRateLimiter(made.storage), MovingWindowRateLimiter(made.storage)):
        limit = RateLimitItemPerMinute(20)
        hits = await at_once(lambda _, limiter=limiter, limit=limit: limiter.hit(limit, type(limiter).__name__))
        assert Counter(hits) == {True: 20, False: AT_ONCE - 20}
    return {"EVALSHA": 2 * AT_ONCE}


async def litestar(made):
    await at_once(lambda number: made.store.set(f"key-{number}", str(number), expires_in=60))
    assert await at_once(lambda number: made.store.get(f"key-{number}")) == [b"%d" % n for n in range(AT_ONCE)]
    await made.channels.on_startup()
    await made.channels.subscribe(["news"])
    await asyncio.sleep(0.1)
    await made.channels.publish(b"text", ["news"])
    async with asyncio.timeout(20):
        assert await anext(made.channels.stream_events()) == ("news", b"text")
    await made.channels.on_shutdown()
    return {"SET": AT_ONCE, "GET": AT_ONCE}


async def saq(made):
    from saq import Worker

    async def double(context, *, number):
        return 2 * number

    worker = Worker(made.queue, functions=[("double", double)], concurrency=3)
    working = asyncio.create_task(worker.start())
    try:
        results = await made.queue.map("double", [{"number": number} for number in range(AT_ONCE)], timeout=20)
    finally:
        await worker.stop()
        await asyncio.gather(working, return_exceptions=True)
    assert sorted(results) == [2 * number for number in range(AT_ONCE)]
    return {"EVALSHA": AT_ONCE, "BLMOVE": 1}


async def starsessions(made):
    await at_once(lambda number: made.store.write(f"id-{number}", b"data", lifetime=60, ttl=60))
    assert await at_once(lambda number: made.store.read(f"id-{number}", lifetime=60)) == [b"data"] * AT_ONCE
    return {"SET": AT_ONCE, "GET": AT_ONCE}


async def taskiq_redis(made):
    from taskiq.api import run_receiver_task

    # Its result backend is made, and gets the pool, in the same way.
    results = made.redis_backend.RedisAsyncResultBackend(URL)
    results.redis_pool = made.pool
    broker = made.broker.with_result_backend(results)

    @broker.task
    async def double(number: int) -> int:
        return 2 * number

    await broker.startup()
    worker = asyncio.create_task(run_receiver_task(broker))
    tasks = await at_once(double.kiq)
    found = [await task.wait_result(timeout=20) for task in tasks]
    assert [result.return_value for result in found] == [2 * number for number in range(AT_ONCE)]
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)
    await broker.shutdown()
    return {"LPUSH": AT_ONCE, "BRPOP": AT_ONCE, "SET": AT_ONCE, "EXISTS": AT_ONCE}


async def connections_of(server):
    """Return how many connections the server has accepted."""
    return (await server.info("stats"))["total_connections_received"]


async def probe(name, pool, client, kind):
    """Run a library's code, and the library; return the commands that must be spans, and the number of connections."""
    before = await connections_of(client)
    namespace = {"__name__": name, "redis": kind(connection_pool=pool), "pool": pool, "url": URL}
    exec(LIBRARIES[name]["code"], namespace)  # noqa: S102 - our own documentation
    # The code may import a module of that name.
    made = SimpleNamespace(**{**namespace, "redis": kind(connection_pool=pool)})
    expected = await globals()[name.replace("-", "_")](made)
    return expected, await connections_of(client) - before


async def main(name):
    """Hand our client in."""
    # Code that makes its own pools takes the global providers, as a service's does.
    with TelemetryCapture() as telemetry:
        trace.set_tracer_provider(telemetry.tracer_provider)
        metrics.set_meter_provider(telemetry.meter_provider)
        async with pool_from_config({"redis.url": URL}) as pool, Redis.from_url(URL) as client:
            await client.flushall()
            expected, accepted = await probe(name, pool, client, MonitoredRedisConnection)
    seen = Counter(span.attributes.get("db.operation.name") for span in telemetry.spans)
    print(f"{name}: {accepted} connections, spans {dict(seen)}")
    missing = {command: count for command, count in expected.items() if seen[command] < count}
    assert not missing, f"{missing} are not spans; there are {dict(seen)}"
    most = LIBRARIES[name]["connections"]
    assert accepted <= most, f"{accepted} connections, and not {most} at most"


async def main_with_redispy(name):
    """Hand redis-py's client in, in the same way."""
    aioredis_monitored.MonitoredRedisConnection = Redis
    aioredis_monitored.MonitoredConnectionPool = BlockingConnectionPool
    pool = ConnectionPool.from_url(URL, socket_timeout=None)
    async with Redis.from_url(URL) as client:
        await client.flushall()
        _, accepted = await probe(name, pool, client, Redis)
    await pool.disconnect()
    print(f"{name}: {accepted} connections with redis-py's client")
    least = LIBRARIES[name]["instead_of"]
    assert accepted >= least, f"{accepted} connections, and not {least} at least"


if __name__ == "__main__":
    is_ours = os.environ["COMPAT_CLIENT"] == "ours"
    asyncio.run((main if is_ours else main_with_redispy)(sys.argv[1]))

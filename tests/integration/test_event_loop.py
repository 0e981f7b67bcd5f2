"""The package does not block the event loop."""

import blockbuster

from aioredis_monitored import Components, MessageQueue, redis_connection


async def test_package_never_blocks_the_event_loop(client, server):
    @redis_connection("logs")
    async def log(conn):
        await conn.incr("logged")

    async def use_everything():
        async with client.pipeline("batch") as pipe:
            await pipe.set("a", 1).get("a").execute()
        async with client.lock("lock"):
            await client.get("a")
        async with MessageQueue("mail", client) as queue:
            await queue.put(b"message")
            await queue.get(1)
        async with Components({"redis.logs.url": server.url}):
            await log()

    # First uses import modules, such as OpenTelemetry's context, which blocks once.
    await use_everything()
    with blockbuster.blockbuster_ctx():
        await use_everything()
        await client.connection_pool.aclose()

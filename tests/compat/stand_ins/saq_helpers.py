"""Stand-in for SAQ's ``tests/helpers.py``, which its sdist lacks; without Postgres."""

import os
import unittest

from saq.queue import Queue


async def create_redis_queue(url=None, **kwargs):
    queue = Queue.from_url(url or os.environ["COMPAT_URL"], **kwargs)
    await queue.connect()
    return queue


async def cleanup_queue(queue):
    await queue.redis.flushdb()
    await queue.disconnect()


async def setup_postgres():
    raise unittest.SkipTest("there is no Postgres")


async def create_postgres_queue(**kwargs):
    raise unittest.SkipTest("there is no Postgres")


async def teardown_postgres():
    pass

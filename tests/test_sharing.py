import asyncio
import time

from sharing import stopwatch


def compute(seconds):
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


async def test_a_stopwatch_forgives_one_stall_and_counts_what_is_computed_again_and_again():
    once = stopwatch()
    compute(0.2)
    await asyncio.sleep(0)
    took = once()
    assert took.running < 0.15
    assert took.seconds >= 0.2

    often = stopwatch()
    for _ in range(3):
        compute(0.2)
        await asyncio.sleep(0.06)
    assert often().running > 0.4


async def test_a_stopwatch_counts_what_is_waited_for():
    took = stopwatch()
    await asyncio.wait([asyncio.ensure_future(asyncio.sleep(0.2))])
    assert took().within(0.19, 0.3)  # uvloop counts in milliseconds

"""The stopwatch of the tests: what it counts, and what a machine may do to it."""

import asyncio
import time

import pytest
from sharing import _clocks, stopwatch


def compute(seconds):
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


async def test_a_stopwatch_forgives_one_stall_and_counts_what_is_computed_again_and_again(until):
    once = stopwatch()
    compute(0.2)
    took = once()
    assert took.running < 0.15
    assert took.seconds >= 0.2

    often = stopwatch()
    turns = _clocks[asyncio.get_running_loop()]._stalls
    for _ in range(3):
        compute(0.2)
        known = len(turns)
        await until(lambda known=known: len(turns) > known)
    assert often().running > 0.4


async def test_a_stopwatch_counts_what_is_waited_for():
    took = stopwatch()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await asyncio.get_running_loop().create_future()

    assert took().within(0.19, 0.3)  # uvloop counts in milliseconds

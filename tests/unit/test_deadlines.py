"""Deadlines of many calls: late ones are cancelled, and other cancellations are not taken for a deadline."""

import asyncio
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.sharing import begun

from aioredis_monitored._timeouts import DeadlineTimer


async def run_until(deadlines, deadline, attempt):
    with deadlines.until(deadline):
        return await attempt


async def test_deadline_timer_returns_result_or_error_before_the_deadline():
    deadlines, soon = DeadlineTimer(), asyncio.get_running_loop().time() + 60

    async def fail():
        raise ValueError("its own")

    assert 1 == await run_until(deadlines, soon, asyncio.sleep(0, 1))
    with pytest.raises(ValueError, match="its own"):
        await run_until(deadlines, soon, fail())
    assert 0 == asyncio.current_task().cancelling()


async def test_deadline_timer_cancels_late_calls_in_any_order_of_start():
    deadlines, loop = DeadlineTimer(), asyncio.get_running_loop()
    ended = []

    async def late(number, seconds):
        with pytest.raises(TimeoutError):
            await run_until(deadlines, loop.time() + seconds, asyncio.Event().wait())
        ended.append(number)
        # The task is no longer being cancelled.
        assert 0 == asyncio.current_task().cancelling()

    await asyncio.gather(*(late(number, 0.05 * number) for number in (3, 1, 4, 2, 0, -1)))
    assert [-1, 0, 1, 2, 3, 4] == sorted(ended)
    assert ended[-1] == 4


async def test_deadline_timer_propagates_cancellation_by_the_caller():
    deadlines, loop = DeadlineTimer(), asyncio.get_running_loop()
    (task,) = await begun(run_until(deadlines, loop.time() + 60, asyncio.Event().wait()))
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()

    async def slowly():
        try:
            await asyncio.Event().wait()
        finally:
            # Until this call is late too.
            await asyncio.Event().wait()

    (task,) = await begun(run_until(deadlines, loop.time() + 0.01, slowly()))
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_deadline_timer_returns_result_of_call_that_survives_the_deadline():
    deadlines, loop = DeadlineTimer(), asyncio.get_running_loop()

    async def stubborn():
        with pytest.raises(asyncio.CancelledError):
            await asyncio.Event().wait()
        return 1

    assert 1 == await run_until(deadlines, loop.time(), stubborn())
    assert 0 == asyncio.current_task().cancelling()


async def test_deadline_timer_accepts_data_received_while_the_event_loop_was_busy():
    deadlines, loop = DeadlineTimer(), asyncio.get_running_loop()
    near, far = socket.socketpair()
    with far:
        reader, writer = await asyncio.open_connection(sock=near)
        (task,) = await begun(run_until(deadlines, loop.time() + 2, reader.readexactly(2_000_000)))
        with ThreadPoolExecutor() as executor:
            sending = executor.submit(far.sendall, b"x" * 2_000_000)
            time.sleep(4)  # noqa: ASYNC251 - that is the point
            try:
                assert 2_000_000 == len(await task)
            finally:
                writer.close()
            sending.result()


async def test_postponed_deadline_still_expires_while_the_event_loop_is_busy():
    deadlines, loop = DeadlineTimer(), asyncio.get_running_loop()
    tasks = await begun(*(run_until(deadlines, loop.time() + 0.1, asyncio.Event().wait()) for _ in range(2)))
    async with asyncio.timeout(15):
        while not all(task.done() for task in tasks):
            time.sleep(0.15)  # noqa: ASYNC251 - that is the point
            await asyncio.sleep(0)

    assert [TimeoutError] * 2 == [type(task.exception()) for task in tasks]


def test_deadline_timer_works_in_the_next_event_loop():
    deadlines = DeadlineTimer()

    async def late(seconds):
        with pytest.raises(TimeoutError):
            await run_until(deadlines, asyncio.get_running_loop().time() + seconds, asyncio.Event().wait())

    async def in_time():
        await run_until(deadlines, asyncio.get_running_loop().time() + 60, asyncio.sleep(0))

    for _ in range(2):
        asyncio.run(in_time())
        asyncio.run(late(0.01))

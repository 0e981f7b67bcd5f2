"""One measurement of a queue in one process, and a second one that sends where latency is measured; prints a JSON line.

Usage: python benchmarks/queue_driver.py JSON, which is what ``Asked`` holds.
"""

import asyncio
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from time import perf_counter, perf_counter_ns
from typing import Any

from driver import loop_factory
from queue_matrix import LATENCY_RATE
from queue_meter import Arrivals, Asked, Meter, Queue, ask, together

FILLED_AT_ONCE = 100
LOOK_EVERY = 0.02
DEADLINE = 40.0  # seconds, for all messages to be handled
SETTLED = 10.0  # for the last of them to be acknowledged


def connect(asked: Asked) -> AbstractAsyncContextManager[Queue]:
    """The adapter's queue."""
    return importlib.import_module(f"queues.{asked.client.partition('/')[0]}").connect(asked)


async def measure(asked: Asked) -> dict[str, Any]:
    """Measure on an empty server, and check that every message was handled once and is gone.

    Raises:
        RuntimeError: One was not, or there were too few to measure anything.
    """
    ask(asked.url, "FLUSHALL")
    work = {"consume": consume, "produce": produce, "latency": latency}[asked.workload]
    async with connect(asked) as queue:
        return {**await work(queue, asked), "version": queue.version}


async def consume(queue: Queue, asked: Asked) -> dict[str, Any]:
    """Take all messages of a queue that was filled before."""
    messages, meter = payloads(asked.messages), Meter(asked.url)
    for some in cut(messages, FILLED_AT_ONCE):
        await queue.put(some)
    figures = await handled(queue, meter, len(messages))
    check(meter.messages, messages)
    return figures


async def produce(queue: Queue, asked: Asked) -> dict[str, Any]:
    """Put messages, by as many producers as asked for."""
    messages, meter = payloads(asked.messages), Meter(asked.url)
    batches = cut(messages, queue.batch)

    async def producer() -> None:
        for batch in batches:
            await queue.put(batch)
            meter.many(batch)

    await asyncio.wait_for(together(asked.callers, producer), DEADLINE)
    if (stored := await queue.left()) != len(messages):
        raise RuntimeError(f"{stored} messages in the queue instead of {len(messages)}")
    return meter.figures()


async def latency(queue: Queue, asked: Asked) -> dict[str, Any]:
    """Wait on an empty queue for what another process puts at a steady rate."""
    arrivals = Arrivals()
    # A process, and started first: where a library never awaits, nothing else would run beside it.
    command = [sys.executable, __file__, json.dumps(asked._asdict()), "send"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as sender:  # noqa: S603, ASYNC220 - this script
        try:
            figures = await handled(queue, arrivals, asked.messages)
        except BaseException:
            sender.kill()
            raise
        check(arrivals.messages, sender.stdout.read().split())
    return figures


async def send(asked: Asked) -> None:
    """Put one message after the other, and print them; each holds the time at which it was sent."""
    sent = []
    async with connect(asked) as queue:
        started = perf_counter()
        for number in range(asked.messages):
            # A delay in one of them does not alter the rate.
            await asyncio.sleep(started + number / LATENCY_RATE - perf_counter())
            sent.append(payload(perf_counter_ns()))
            await queue.put(sent[-1:])
    print(b"\n".join(sent).decode())  # noqa: T201 - the result


async def handled(queue: Queue, handler: Meter | Arrivals, number: int) -> dict[str, Any]:
    """Let consumers run until they have handled and acknowledged so many messages; what the handler then knows."""
    consuming = asyncio.ensure_future(queue.consume(handler))
    try:
        deadline = perf_counter() + DEADLINE
        while len(handler.messages) < number:
            if consuming.done():
                consuming.result()
            if consuming.done() or perf_counter() > deadline:
                raise RuntimeError(f"only {len(handler.messages)} of {number} messages handled")
            await asyncio.wait([consuming], timeout=LOOK_EVERY)
        figures = handler.figures()
        deadline = perf_counter() + SETTLED
        while left := await queue.left():
            if perf_counter() > deadline:
                raise RuntimeError(f"{left} messages left of {number} that were handled")
            await asyncio.sleep(LOOK_EVERY)
    finally:
        consuming.cancel()
        await asyncio.wait([consuming], timeout=SETTLED)
    if not consuming.done():
        raise RuntimeError("consumers go on although they were cancelled")
    return figures


def check(handled: list[Any], put: list[bytes]) -> None:
    """A queue that loses messages, or delivers them twice, may be fast.

    Raises:
        RuntimeError: These are not the same messages.
    """
    found, expected = sorted(map(int, handled)), sorted(map(int, put))
    if found != expected:
        raise RuntimeError(f"{len(found)} messages handled, {len(set(found))} different, of {len(expected)} put")


def payload(number: int) -> bytes:
    """A message of 64 bytes."""
    return b"%064d" % number


def payloads(number: int) -> list[bytes]:
    """So many different messages."""
    return [payload(n) for n in range(number)]


def cut(messages: list[bytes], size: int) -> Iterator[list[bytes]]:
    """Them in batches, which several producers may share."""
    return (messages[start : start + size] for start in range(0, len(messages), size))


async def main(asked: Asked, *, is_sender: bool) -> None:
    """Do what is asked."""
    if is_sender:
        await send(asked)
    else:
        print(json.dumps(await measure(asked)))  # noqa: T201 - the result


if __name__ == "__main__":
    told = Asked(**json.loads(sys.argv[1]))
    with asyncio.Runner(loop_factory=loop_factory(told.loop)) as runner:
        runner.run(main(told, is_sender=sys.argv[2:] == ["send"]))

"""Make one measurement of a queue in one process, with a second one that sends for latencies; print a line of JSON.

Usage: python benchmarks/queue_driver.py JSON, which has the fields of ``QueueMeasurement``.
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
from queue_meter import Arrivals, Meter, Queue, QueueMeasurement, run_concurrently, send_command

FILL_BATCH = 100
POLL_SECONDS = 0.02
DEADLINE_SECONDS = 40.0  # for all messages to be handled
ACK_DEADLINE_SECONDS = 10.0  # for the last messages to be acknowledged


def connect(measurement: QueueMeasurement) -> AbstractAsyncContextManager[Queue]:
    """Connect the adapter's queue."""
    return importlib.import_module(f"queues.{measurement.client.partition('/')[0]}").connect(measurement)


async def measure(measurement: QueueMeasurement) -> dict[str, Any]:
    """Measure on an empty server, and check that every message was handled once and is gone.

    Raises:
        RuntimeError: A message was not handled once, or there were too few to measure.
    """
    send_command(measurement.url, "FLUSHALL")
    work = {"consume": consume, "produce": produce, "latency": latency}[measurement.workload]
    async with connect(measurement) as queue:
        return {**await work(queue, measurement), "version": queue.version}


async def consume(queue: Queue, measurement: QueueMeasurement) -> dict[str, Any]:
    """Fill a queue, then measure how its messages are consumed."""
    messages, meter = payloads(measurement.messages), Meter(measurement.url)
    for some in batches_of(messages, FILL_BATCH):
        await queue.put(some)
    figures = await run_consumers(queue, meter, len(messages))
    check(meter.messages, messages)
    return figures


async def produce(queue: Queue, measurement: QueueMeasurement) -> dict[str, Any]:
    """Put messages with ``callers`` producers."""
    messages, meter = payloads(measurement.messages), Meter(measurement.url)
    batches = batches_of(messages, queue.batch)

    async def producer() -> None:
        for batch in batches:
            await queue.put(batch)
            meter.many(batch)

    await asyncio.wait_for(run_concurrently(measurement.callers, producer), DEADLINE_SECONDS)
    if (stored := await queue.remaining()) != len(messages):
        raise RuntimeError(f"{stored} messages in the queue instead of {len(messages)}")
    return meter.figures()


async def latency(queue: Queue, measurement: QueueMeasurement) -> dict[str, Any]:
    """Consume from an empty queue messages that another process puts at a steady rate."""
    arrivals = Arrivals()
    # A process, started first: some libraries never await, so that no task would run beside them.
    command = [sys.executable, __file__, json.dumps(measurement._asdict()), "send"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as sender:  # noqa: S603, ASYNC220 - this script
        try:
            figures = await run_consumers(queue, arrivals, measurement.messages)
        except BaseException:
            sender.kill()
            raise
        check(arrivals.messages, sender.stdout.read().split())
    return figures


async def send(measurement: QueueMeasurement) -> None:
    """Put one message after the other and print them; each contains the time when it was sent."""
    sent = []
    async with connect(measurement) as queue:
        started = perf_counter()
        for number in range(measurement.messages):
            # A late message does not change the rate.
            await asyncio.sleep(started + number / LATENCY_RATE - perf_counter())
            sent.append(payload(perf_counter_ns()))
            await queue.put(sent[-1:])
    print(b"\n".join(sent).decode())  # noqa: T201 - the result


async def run_consumers(queue: Queue, handler: Meter | Arrivals, number: int) -> dict[str, Any]:
    """Run consumers until they have handled and acknowledged ``number`` messages; return the handler's figures."""
    consuming = asyncio.ensure_future(queue.consume(handler))
    try:
        deadline = perf_counter() + DEADLINE_SECONDS
        while len(handler.messages) < number:
            if consuming.done():
                consuming.result()
            if consuming.done() or perf_counter() > deadline:
                raise RuntimeError(f"only {len(handler.messages)} of {number} messages handled")
            await asyncio.wait([consuming], timeout=POLL_SECONDS)
        figures = handler.figures()
        deadline = perf_counter() + ACK_DEADLINE_SECONDS
        while remaining := await queue.remaining():
            if perf_counter() > deadline:
                raise RuntimeError(f"{remaining} messages left of {number} that were handled")
            await asyncio.sleep(POLL_SECONDS)
    finally:
        consuming.cancel()
        await asyncio.wait([consuming], timeout=ACK_DEADLINE_SECONDS)
    if not consuming.done():
        raise RuntimeError("consumers still run after cancellation")
    return figures


def check(handled: list[Any], put: list[bytes]) -> None:
    """Check that each message was handled once: a queue that loses or repeats messages may be fast.

    Raises:
        RuntimeError: The handled messages are not those that were put.
    """
    found, expected = sorted(map(int, handled)), sorted(map(int, put))
    if found != expected:
        raise RuntimeError(f"{len(found)} messages handled, {len(set(found))} different, of {len(expected)} put")


def payload(number: int) -> bytes:
    """Return a message of 64 bytes."""
    return b"%064d" % number


def payloads(number: int) -> list[bytes]:
    """Return ``number`` different messages."""
    return [payload(n) for n in range(number)]


def batches_of(messages: list[bytes], size: int) -> Iterator[list[bytes]]:
    """Iterate over the messages in batches; several producers may share the iterator."""
    return (messages[start : start + size] for start in range(0, len(messages), size))


async def main(measurement: QueueMeasurement, *, is_sender: bool) -> None:
    """Send messages, or measure and print the result."""
    if is_sender:
        await send(measurement)
    else:
        print(json.dumps(await measure(measurement)))  # noqa: T201 - the result


if __name__ == "__main__":
    measurement = QueueMeasurement(**json.loads(sys.argv[1]))
    with asyncio.Runner(loop_factory=loop_factory(measurement.loop)) as runner:
        runner.run(main(measurement, is_sender=sys.argv[2:] == ["send"]))

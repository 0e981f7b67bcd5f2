"""Blocks that one task enters and another one leaves, as async generators do."""

import asyncio
import contextvars
import gc
import logging

import pytest
from opentelemetry import trace

from aioredis_monitored import Components, MessageQueue
from aioredis_monitored._telemetry.context import AttachedContext, nested_in, suppressed


@pytest.fixture(autouse=True)
def logs_nothing(caplog):
    """OpenTelemetry logs a traceback for a context that cannot be detached; check that it does not."""
    yield
    assert [] == [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.WARNING]


def _current():
    return trace.get_current_span().get_span_context().span_id


@pytest.fixture
async def published(client):
    """Yield a message for ``process``, and the subscription that received it."""
    async with client.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe("news")
        await client.publish("news", "hello")
        async with asyncio.timeout(10):
            async for message in pubsub.listen():
                yield pubsub, message
                return


@pytest.fixture(params=["process", "take", "take_many"])
async def handling(request, client, published):
    """Yield an async generator function whose block is left when the generator is closed."""
    async with MessageQueue("orders", client) as queue:
        await queue.put_many([b"one", b"two", b"three"])

        async def process():
            pubsub, message = published
            with pubsub.process(message):
                yield _current()

        async def take():
            async with queue.take(timeout=5):
                yield _current()

        async def take_many():
            async with queue.take_many(2, timeout=5):
                yield _current()

        yield {"process": process, "take": take, "take_many": take_many}[request.param]


async def test_closing_task_keeps_its_span_when_generator_is_foreign(handling, telemetry):
    generator, tracer = handling(), telemetry.tracer_provider.get_tracer("test")
    with tracer.start_as_current_span("entering"):
        entered = await anext(generator)

    async def close():
        with tracer.start_as_current_span("leaving") as own:
            await generator.aclose()
            assert own.get_span_context().span_id == _current()
        return _current()

    # The task's context is not a copy of this one, in which the block's span is current.
    assert 0 == await asyncio.create_task(close(), context=contextvars.Context())
    assert entered in {span.context.span_id for span in telemetry.spans}


async def test_closing_task_restores_previous_span_after_inherited_context(handling, telemetry):
    generator, tracer = handling(), telemetry.tracer_provider.get_tracer("test")
    with tracer.start_as_current_span("before") as before:
        entered = await anext(generator)

        async def close():
            assert entered == _current()
            await generator.aclose()
            return _current()

        assert before.get_span_context().span_id == await asyncio.create_task(close())
        # No other task can change the current span of this one.
        assert entered == _current()
    assert 0 == _current()


async def test_closing_task_restores_previous_span_after_own_generator(handling, telemetry):
    generator, tracer = handling(), telemetry.tracer_provider.get_tracer("test")
    with tracer.start_as_current_span("before") as before:
        assert _current() != await anext(generator)
        await generator.aclose()

        assert before.get_span_context().span_id == _current()


async def test_event_loop_closes_collected_generator_and_ends_its_span(handling, telemetry, until):
    async def enter():
        return await anext(handling())

    entered = await asyncio.create_task(enter())
    gc.collect()

    await until(lambda: entered in {span.context.span_id for span in telemetry.spans})
    assert 0 == _current()


async def test_injected_generator_closes_in_another_task(server, telemetry, inspector):
    async with Components({"redis.logs.url": server.url}, **telemetry.providers) as components:

        @components.redis_connection("logs")
        async def numbers(redis):
            try:
                yield await redis.incr("number")
            finally:
                await redis.incr("number")

        generator = numbers()
        assert 1 == await anext(generator)
        await asyncio.create_task(generator.aclose())

    assert b"2" == inspector.get("number")


@pytest.mark.parametrize("block", [suppressed, lambda: nested_in(None)], ids=["silence", "folded"])
def test_discarded_coroutine_leaves_context_block_without_warning(block):
    async def stuck():
        with block():
            await asyncio.get_running_loop().create_future()

    async def start():
        # As a stopped loop leaves its coroutines behind.
        coroutine = stuck()
        contextvars.copy_context().run(coroutine.send, None)
        return coroutine

    asyncio.run(start()).close()


async def test_attached_context_detach_keeps_inner_context():
    outer = AttachedContext(trace.set_span_in_context(trace.NonRecordingSpan(trace.SpanContext(1, 1, False))))

    async def leave():
        inner = trace.NonRecordingSpan(trace.SpanContext(1, 2, False))
        with trace.use_span(inner):
            outer.detach()
            return _current()

    assert (2, 1) == (await asyncio.create_task(leave()), _current())

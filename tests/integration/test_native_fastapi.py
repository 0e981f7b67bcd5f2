"""FastAPI's native telemetry: where the Redis spans and the request's statistics are among its spans."""

from inspect import cleandoc

import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient

from aioredis_monitored import MonitoredConnectionPool, RedisContextFactory, RedisMiddleware, TelemetryOptions

CALLS, SECONDS = "aioredis_monitored.request.calls", "aioredis_monitored.request.duration"
REPEATED = "aioredis_monitored.request.repeated"


@pytest.fixture
def factory(server, telemetry):
    options = TelemetryOptions(repeated_calls=1)
    return RedisContextFactory(MonitoredConnectionPool.from_url(server.url, **telemetry.providers, telemetry=options))


@pytest.fixture
def make_app(factory, telemetry):
    """Make applications without any instrumentation but FastAPI's own."""

    def make(**settings):
        app = FastAPI(lifespan=factory.lifespan, telemetry={**telemetry.providers, **settings})
        app.add_middleware(RedisMiddleware, factory=factory)
        return app

    return make


@pytest.fixture
def app(make_app):
    return make_app()


def request_stats(telemetry):
    """Return the statistics that spans have, without the duration, by the names of the spans."""
    assert all((CALLS in span.attributes) == (SECONDS in span.attributes) for span in telemetry.spans)
    return {
        span.name: (span.attributes[CALLS], span.attributes.get(REPEATED))
        for span in telemetry.spans
        if CALLS in span.attributes
    }


def test_redis_spans_are_children_of_fastapis_spans(app, telemetry):
    async def count_visit(request: Request) -> None:
        await request.state.redis.hincrby("visits", "home", 1)

    @app.get("/users/{user}", dependencies=[Depends(count_visit)])
    async def name_of(request: Request, user: str) -> str | None:
        return await request.state.redis.get(f"name:{user}")

    with TestClient(app) as web:
        assert 200 == web.get("/users/7").status_code

    expected = """
        GET /users/{user} kind=SERVER
          fastapi.dependencies kind=INTERNAL
            HINCRBY
          fastapi.endpoint kind=INTERNAL
            GET
          fastapi.serialization kind=INTERNAL
    """
    assert cleandoc(expected) == telemetry.tree()
    assert "fastapi" == telemetry.span("GET /users/{user}").instrumentation_scope.name


def test_redis_spans_are_children_of_request_span_without_operation_spans(make_app, telemetry):
    app = make_app(operation_spans=False)

    @app.get("/users/{user}")
    async def name_of(request: Request, user: str) -> str | None:
        return await request.state.redis.get(f"name:{user}")

    with TestClient(app) as web:
        assert 200 == web.get("/users/7").status_code

    assert ["GET /users/{user} kind=SERVER", "  GET"] == telemetry.tree().splitlines()
    assert {"GET /users/{user}": (1, None)} == request_stats(telemetry)


def test_request_span_has_statistics_of_handler_and_dependencies(app, telemetry):
    async def count_visit(request: Request) -> None:
        await request.state.redis.hincrby("visits", "home", 1)

    @app.get("/users/{user}", dependencies=[Depends(count_visit)])
    async def name_of(request: Request, user: str) -> str | None:
        await request.state.redis.get(f"title:{user}")
        return await request.state.redis.get(f"name:{user}")

    with TestClient(app) as web:
        assert 200 == web.get("/users/7").status_code

    assert {"GET /users/{user}": (3, ("GET",))} == request_stats(telemetry)
    durations = [
        (span.end_time - span.start_time) / 1e9
        for span in telemetry.spans
        if span.instrumentation_scope.name == "aioredis_monitored"
    ]
    assert 3 == len(durations)
    assert sum(durations) == pytest.approx(telemetry.span("GET /users/{user}").attributes[SECONDS], abs=1e-4)


def test_request_span_has_statistics_of_streamed_response(app, telemetry):
    @app.get("/log")
    async def log(request: Request) -> StreamingResponse:
        async def lines():
            for _ in range(3):
                yield f"{await request.state.redis.incr('line')}\n"

        return StreamingResponse(lines())

    with TestClient(app) as web:
        assert "1\n2\n3\n" == web.get("/log").text

    assert {"GET /log": (3, ("INCRBY",))} == request_stats(telemetry)


def test_request_span_has_statistics_of_failed_handler(app, telemetry):
    @app.get("/broken")
    async def broken(request: Request) -> None:
        await request.state.redis.get("key")
        raise LookupError

    with TestClient(app, raise_server_exceptions=False) as web:
        assert 500 == web.get("/broken").status_code

    assert {"GET /broken": (1, None)} == request_stats(telemetry)
    assert "LookupError" == telemetry.span("GET /broken").attributes["error.type"]


def test_connection_span_has_statistics_of_websocket(app, telemetry):
    @app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        for _ in range(2):
            await websocket.send_json(await websocket.state.redis.incr("messages"))
        await websocket.close()
        await websocket.state.redis.get("messages")

    with TestClient(app) as web, web.websocket_connect("/socket") as opened:
        assert [1, 2] == [opened.receive_json() for _ in range(2)]

    assert {"WS /socket": (3, ("INCRBY",))} == request_stats(telemetry)


def test_calls_of_background_task_are_its_children_and_not_in_statistics(app, telemetry):
    async def forget(redis):
        await redis.delete("key")

    @app.get("/orders")
    async def order(request: Request, later: BackgroundTasks) -> None:
        await request.state.redis.get("key")
        later.add_task(forget, request.state.redis)

    with TestClient(app) as web:
        assert 200 == web.get("/orders").status_code

    # The request's span ends with the response, before the task starts.
    assert {"GET /orders": (1, None)} == request_stats(telemetry)
    assert telemetry.span("fastapi.background_task").context.span_id == telemetry.span("DEL").parent.span_id


@pytest.mark.parametrize(
    "messages",
    [
        [{"type": "http.response.body", "body": b"1", "more_body": True}, {"type": "http.response.body", "body": b"2"}],
        [{"type": "http.response.body", "body": b"1"}, {"type": "http.response.trailers", "headers": []}],
        [
            {"type": "http.response.body", "body": b"1"},
            {"type": "http.response.trailers", "headers": [], "more_trailers": True},
            {"type": "http.response.trailers", "headers": []},
        ],
        [{"type": "http.response.pathsend", "path": "/etc/hostname"}],
    ],
    ids=["body", "trailers", "more trailers", "pathsend"],
)
async def test_request_span_has_statistics_up_to_last_message_of_response(app, factory, telemetry, messages):
    sent = []

    async def endpoint(scope, receive, send):
        start = {"type": "http.response.start", "status": 200, "headers": []}
        has_trailers = messages[-1]["type"] == "http.response.trailers"
        await send({**start, "trailers": True} if has_trailers else start)
        for message in messages:
            await scope["state"]["redis"].get("key")
            await send(message)

    async def send(message):
        sent.append(message)

    app.mount("/raw", endpoint)
    scope = {"type": "http", "method": "GET", "path": "/raw/", "query_string": b"", "headers": []}
    async with factory.connection_pool:
        await app(scope, None, send)

    repeated = ("GET",) if len(messages) > 1 else None
    assert [(len(messages), repeated)] == list(request_stats(telemetry).values())
    assert messages == sent[1:]

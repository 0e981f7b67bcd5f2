"""``opentelemetry-instrument`` in front of uvicorn: an application that sets up no telemetry has it all."""

import json
import os
import signal
import socket
import subprocess
import sysconfig
import urllib.request
from pathlib import Path

import pytest

SCRIPTS = Path(sysconfig.get_path("scripts"))

APP = """
from fastapi import FastAPI, Request
from aioredis_monitored import RedisContextFactory, RedisMiddleware, config_from_env, pool_from_config

factory = RedisContextFactory(pool_from_config(config_from_env()))
app = FastAPI(lifespan=factory.lifespan)
app.add_middleware(RedisMiddleware, factory=factory)


@app.get("/visits/{page}")
async def visits(request: Request, page: str) -> int:
    await request.state.redis.get(f"title:{page}")
    return await request.state.redis.hincrby("visits", page, 1)
"""


def spans_in(text):
    """Return what the console exporter has printed: JSON objects, one after another."""
    decoder, spans = json.JSONDecoder(), []
    while text := text.lstrip():
        span, end = decoder.raw_decode(text)
        spans.append(span)
        text = text[end:]
    return spans


@pytest.fixture
def visit(server, tmp_path):
    """Serve the application, send it one request, stop it, and return its spans."""

    def run(**environment):
        (tmp_path / "app.py").write_text(APP, "utf-8")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
        exporters = ["--traces_exporter", "console", "--metrics_exporter", "none", "--logs_exporter", "none"]
        with socket.create_server(("127.0.0.1", 0)) as listening, (tmp_path / "spans.json").open("wb") as spans:
            url = f"http://127.0.0.1:{listening.getsockname()[1]}/visits/home"
            serve = [SCRIPTS / "uvicorn", "--fd", str(listening.fileno()), "--log-level", "warning", "app:app"]
            process = subprocess.Popen(  # noqa: S603 - the scripts of this Python
                [SCRIPTS / "opentelemetry-instrument", *exporters, *serve],
                cwd=tmp_path,
                env={**inherited, "REDIS_URL": server.url, **environment},
                pass_fds=[listening.fileno()],
                stdout=spans,
            )
        try:
            # The socket is listening: the request waits until uvicorn accepts it.
            with urllib.request.urlopen(url, timeout=60) as response:
                assert 1 == json.load(response)
            # The interpreter exits in the ordinary way and flushes the spans, which it does not after SIGTERM.
            process.send_signal(signal.SIGINT)
            assert 0 == process.wait(60)
        finally:
            process.kill()
            process.wait()
        return spans_in((tmp_path / "spans.json").read_text("utf-8"))

    return run


@pytest.mark.parametrize(
    ("disabled", "parents"),
    [("", ["GET /visits/{page}"]), ("fastapi", ["fastapi.endpoint", "GET /visits/{page}"])],
    ids=["instrumentor of FastAPI", "native telemetry of FastAPI"],
)
def test_redis_spans_are_below_server_span_which_has_their_statistics(visit, server, disabled, parents):
    spans = visit(OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=disabled)

    by_id = {span["context"]["span_id"]: span for span in spans}

    def parents_of(span):
        while span := by_id.get(span["parent_id"]):
            yield span["name"]

    calls = [span for span in spans if span["kind"] == "SpanKind.CLIENT"]
    address = f"{server.host}:{server.port}"
    # One span for each, although the instrumentor of redis is active too.
    assert [f"GET {address}", f"HINCRBY {address}"] == [span["name"] for span in calls]
    assert [parents, parents] == [list(parents_of(span)) for span in calls]
    (request,) = (span for span in spans if span["kind"] == "SpanKind.SERVER")
    assert (parents[-1], None) == (request["name"], request["parent_id"])
    assert 2 == request["attributes"]["aioredis_monitored.request.calls"]
    assert 0 < request["attributes"]["aioredis_monitored.request.duration"]
    assert [request] == [span for span in spans if "aioredis_monitored.request.calls" in span["attributes"]]

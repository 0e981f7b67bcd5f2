"""The README: every example runs, and the FastAPI block serves requests whose spans are as documented."""

import ast
import asyncio
import inspect
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser

README = Path(__file__).parents[2] / "README.md"


def evaluator(runner):
    def evaluate(example):
        code = compile(
            "\n" * (example.line + example.parsed.line_offset) + example.parsed,
            example.path,
            "exec",
            flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
            dont_inherit=True,
        )
        result = eval(code, example.namespace)  # noqa: S307 - our own README
        if inspect.iscoroutine(result):
            runner.run(result)

    return evaluate


def examples(evaluate=None):
    document = Sybil([CodeBlockParser("python", evaluate)]).parse(README)
    return list(document.examples())


def test_readme_python_examples_run(server, monkeypatch):
    monkeypatch.setenv("REDIS_URL", server.url)
    with asyncio.Runner() as runner:
        evaluated = [example.evaluate() for example in examples(evaluator(runner))]

    assert len(evaluated) >= 5


RUNNER = """
import os, sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

provider = TracerProvider()
exporter = ConsoleSpanExporter(out=open(sys.argv[2], "w"), formatter=lambda span: span.to_json(indent=None) + "\\n")
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)

namespace = {"__name__": "readme"}
exec(open(sys.argv[1]).read(), namespace)

import uvicorn
uvicorn.run(namespace["app"], fd=int(sys.argv[3]), log_level="warning")
"""


@pytest.fixture
def readme_app(server, tmp_path):
    """Serve the FastAPI block with uvicorn on a real socket; yield its URL and the file of its spans."""
    import socket

    (block,) = (example.parsed for example in examples() if "FastAPI(" in example.parsed)
    (tmp_path / "app.py").write_text(block, "utf-8")
    (tmp_path / "run.py").write_text(RUNNER, "utf-8")
    spans = tmp_path / "spans.json"
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        command = [sys.executable, tmp_path / "run.py", tmp_path / "app.py", spans, str(listening.fileno())]
        environment = {**os.environ, "REDIS_URL": server.url}
        process = subprocess.Popen(command, env=environment, pass_fds=[listening.fileno()])  # noqa: S603
    try:
        yield url, spans
    finally:
        process.terminate()
        assert process.wait(60) in {0, -15}


def test_fastapi_example_records_spans_of_get_pipeline_and_lock(readme_app, server):
    url, path = readme_app
    # The socket is listening: the request waits until uvicorn accepts it.
    for count in (1, 2):
        request = urllib.request.Request(f"{url}/carts/7/42", method="POST")  # noqa: S310 - http
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
            assert {"count": count, "price": 0} == json.load(response)
    # A span ends after its response.
    deadline = time.monotonic() + 60
    while path.read_text("utf-8").count("SpanKind.SERVER") < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    spans = [json.loads(line) for line in path.read_text("utf-8").splitlines()]

    by_id = {span["context"]["span_id"]: span for span in spans}

    def request_of(span):
        while span["parent_id"]:
            span = by_id.get(span["parent_id"], {"parent_id": None, "name": None, "context": {"span_id": None}})
        return span["context"]["span_id"]

    servers = [span["context"]["span_id"] for span in spans if span["kind"] == "SpanKind.SERVER"]
    assert 2 == len(servers)
    address = f"{server.host}:{server.port}"
    second = [span["name"] for span in spans if span["kind"] == "SpanKind.CLIENT" and request_of(span) == servers[1]]
    assert [f"GET {address}", "lock.acquire", "add-to-cart"] == second[:3]
    assert ["lock.release"] == second[3:]


WORKER = """
import asyncio, sys

{recipe}


async def handle_order(order):
    print("begun", flush=True)
    # Not before the signal.
    await asyncio.to_thread(sys.stdin.readline)
    print("handled", order.decode(), flush=True)


asyncio.run(work(handle_order))
"""


def test_sigterm_recipe_drains_worker_and_exits_cleanly(server, inspector, tmp_path):
    (block,) = (example.parsed for example in examples() if "SIGTERM" in example.parsed)
    nodes = ast.parse(block).body
    # Without the top-level statements that come before the function.
    needed = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom | ast.AsyncFunctionDef)]
    names = "from aioredis_monitored import config_from_env, pool_from_config\n"
    program = tmp_path / "worker.py"
    program.write_text(WORKER.format(recipe=names + "\n".join(map(ast.unparse, needed))), "utf-8")
    inspector.rpush("orders", "1001", "1002")
    process = subprocess.Popen(  # noqa: S603 - this Python
        [sys.executable, program],
        env={**os.environ, "REDIS_URL": server.url},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        begun = [process.stdout.readline() for _ in range(2)]
        inspector.rpush("orders", "1003")
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGTERM)
        inspector.rpush("orders", "1004")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        out, err = process.communicate("go\n" * 3, timeout=30)
    finally:
        process.kill()

    assert ["begun\n"] * 2 == begun
    assert ("", 0) == (err, process.returncode)
    assert ["handled 1001", "handled 1002", "handled 1003"] == sorted(out.splitlines())
    # Nothing is held, and later messages wait.
    assert [] == list(inspector.scan_iter("{orders}:p:*"))
    assert [b"1004"] == inspector.lrange("orders", 0, -1)

"""Serve an example of the documentation on a real server, with a span for each request, and report on it.

Usage: serving.py EXAMPLE FILE_DESCRIPTOR

The file descriptor is that of a listening socket. For each line on stdin, ``pools`` or ``spans``, it prints a line of
JSON: the state of the pools, or all spans that have ended.
"""

import asyncio
import gc
import importlib.util
import json
import os
import socket
import sys
import threading

import uvicorn
from aiohttp import web
from fastapi import FastAPI
from opentelemetry import context, trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from sanic import Sanic

from aioredis_monitored import MonitoredConnectionPool

# Their frameworks cancel a request whose client hangs up.
CANCEL_THEMSELVES = {"django_app", "quart_app"}


def load(path):
    """Import a file as a module, as servers do."""
    name = path.rpartition("/")[2].removesuffix(".py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class CancelsOnHangUp:
    """ASGI middleware that cancels a request whose client hangs up, as some frameworks do."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        messages = asyncio.Queue()

        async def listen():
            while True:
                message = await receive()
                messages.put_nowait(message)
                if message["type"] == "http.disconnect":
                    return

        listening = asyncio.create_task(listen())
        serving = asyncio.create_task(self.app(scope, messages.get, send))
        try:
            await asyncio.wait([listening, serving], return_when=asyncio.FIRST_COMPLETED)
            if not serving.done():
                serving.cancel()
                await asyncio.wait([serving])
        finally:
            listening.cancel()
        if not serving.cancelled():
            serving.result()


@web.middleware
async def traced(request, handler):
    """Make the request's span, as an instrumentation of aiohttp does."""
    with trace.get_tracer("test").start_as_current_span(request.path, kind=SpanKind.SERVER):
        return await handler(request)


def serve_sanic(app, descriptor):
    """Serve on Sanic's own server, which cancels requests."""

    @app.on_request
    async def start_span(request):
        span = trace.get_tracer("test").start_span(request.path, kind=SpanKind.SERVER)
        context.attach(trace.set_span_in_context(span))
        # Its connection's, which has one request; what a response triggers, a cancelled request does not.
        asyncio.current_task().add_done_callback(lambda _: span.end())

    app.run(sock=socket.socket(fileno=descriptor), single_process=True, motd=False, access_log=False)


def report(exporter, pools, out):
    for line in sys.stdin:
        if line == "pools\n":
            found = [pool.stats()._asdict() for pool in pools]
        else:
            found = [described(span) for span in exporter.get_finished_spans()]
        print(json.dumps(found), file=out, flush=True)


def described(span):
    return {
        "name": span.name,
        "kind": span.kind.name,
        "scope": span.instrumentation_scope.name,
        "id": span.context.span_id,
        "parent": span.parent and span.parent.span_id,
        "error": span.attributes.get("error.type"),
        "calls": span.attributes.get("aioredis_monitored.request.calls"),
    }


def main(path, descriptor):
    # Some frameworks log requests to stdout.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    module = load(path)
    app = module.make_app() if hasattr(module, "make_app") else module.app
    pools = [each for each in gc.get_objects() if isinstance(each, MonitoredConnectionPool)]
    threading.Thread(target=report, args=[exporter, pools, out], daemon=True).start()
    if isinstance(app, web.Application):
        app.middlewares.insert(0, traced)
        web.run_app(app, sock=socket.socket(fileno=descriptor), handler_cancellation=True, access_log=None, print=None)
        return
    if isinstance(app, Sanic):
        serve_sanic(app, descriptor)
        return
    if not isinstance(app, FastAPI):  # which makes spans itself
        app = OpenTelemetryMiddleware(app, exclude_spans=["receive", "send"])
    if module.__name__ not in CANCEL_THEMSELVES:
        app = CancelsOnHangUp(app)
    uvicorn.run(app, fd=descriptor, log_level="warning", lifespan="on")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

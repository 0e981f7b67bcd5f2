"""A real OTLP/HTTP receiver in a thread: a collector that decodes and keeps what an SDK's exporters send."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Received(NamedTuple):
    """A span, a metric or a log record, with its scope and the scope's schema URL."""

    what: Any
    scope: Any
    schema_url: str


class Collector:
    """The received records."""

    def __init__(self, url):
        self.url = url
        self.requests = []

    @property
    def spans(self):
        """Return all spans."""
        return [
            Received(span, scope.scope, scope.schema_url)
            for path, body in self.requests
            if path == "/v1/traces"
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    @property
    def logs(self):
        """Return all log records."""
        return [
            Received(record, scope.scope, scope.schema_url)
            for path, body in self.requests
            if path == "/v1/logs"
            for resource in ExportLogsServiceRequest.FromString(body).resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]

    @property
    def metrics(self):
        """Return the latest metrics by name."""
        return {
            metric.name: Received(metric, scope.scope, scope.schema_url)
            for path, body in self.requests
            if path == "/v1/metrics"
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


@contextmanager
def collecting():
    """Receive until the end of the block."""

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self):
            collector.requests.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_): ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        collector = Collector(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()


def plain(attributes):
    """Return attributes as a dict: OTLP has pairs of a name and a value with a field per type."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in attributes}

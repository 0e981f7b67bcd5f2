"""Run an OTLP/HTTP receiver that accepts and discards everything, in a separate process; print its endpoint."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Receiver(BaseHTTPRequestHandler):
    """Answers with an empty message, like a collector that accepted all records."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Read and accept a request."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Do not log requests."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)  # noqa: T201 - the parent process reads it
    server.serve_forever()

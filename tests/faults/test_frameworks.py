"""The documentation's applications on real servers, while some of their clients hang up."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections import Counter

import pytest
from support.example_modules import EXAMPLES, ROOT
from websockets.asyncio.client import connect

SERVING = ROOT / "tests" / "support" / "serving.py"
DEADLINE = 60.0
CALLERS = 20
# The calls of their requests are on the requests' spans.
REPORTING = {"aiohttp_app", "fastapi_app", "litestar_app", "starlette_app"}
WORKERS = {"fastapi_app": 1}
WITHOUT_WEBSOCKETS = {"django_app"}


class Application:
    """An example that a process serves.

    Args:
        process: The process.
        address: Where it listens.
    """

    def __init__(self, process, address):
        self._process = process
        self._address = address

    def ask(self, what):
        """Return the state of its ``pools``, or the ``spans`` that have ended."""
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def is_idle(self, workers):
        """Whether no connection is in use but the shared ones, and those of workers."""
        return all(
            pool["used"] <= 1 + workers and not pool["pending"] and not pool["in_flight"] for pool in self.ask("pools")
        )

    def connections(self):
        """Return how many connections the pools know."""
        return sum(pool["used"] + pool["idle"] for pool in self.ask("pools"))

    async def visit(self, hang_up):
        """Count a visit over a WebSocket."""
        async with connect("ws://{}:{}/visits".format(*self._address)) as websocket:
            await websocket.send("home")
            assert int(await websocket.recv()) >= 1
            if hang_up:
                websocket.transport.abort()

    async def request(self, method, path, hang_up=None):
        """Return the status and the JSON of a response; ``None`` if it hangs up before, after ``hang_up`` seconds.

        It also hangs up when it is cancelled.
        """
        reader, writer = await asyncio.open_connection(*self._address)
        try:
            writer.write(f"{method} {path} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n".encode())
            async with asyncio.timeout(DEADLINE if hang_up is None else hang_up):
                response = await reader.read()
        except TimeoutError:
            assert hang_up is not None
            return None
        finally:
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        head, _, body = response.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        if b"transfer-encoding: chunked" in head.lower():
            body = body.split(b"\r\n")[1]
        return status, json.loads(body)


@contextlib.contextmanager
def serving(path, url):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = listening.getsockname()
        process = subprocess.Popen(  # noqa: S603 - this Python
            [sys.executable, SERVING, path, str(listening.fileno())],
            env={**os.environ, "REDIS_URL": url, "PYTHONPATH": str(ROOT)},
            pass_fds=[listening.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    written = []
    reading = threading.Thread(target=lambda: written.extend(process.stderr))
    reading.start()
    try:
        yield Application(process, address)
        process.terminate()
        assert process.wait(DEADLINE) in {0, -15}
    finally:
        process.kill()
        process.wait()
        reading.join()
        process.stdin.close()
        process.stdout.close()
        process.stderr.close()
        print("".join(written))
    assert not written, "".join(written)


def redis_spans(spans):
    """Return the Redis spans that are below a request's, and those that are not."""
    by_id = {span["id"]: span for span in spans}

    def is_below_request(span):
        while span is not None and span["kind"] != "SERVER":
            span = by_id.get(span["parent"])
        return span is not None

    below, others = [], []
    for span in spans:
        if span["scope"] == "aioredis_monitored":
            (below if is_below_request(span) else others).append(span)
    return below, others


class Load:
    """Requests of many clients at a time, of which every tenth hangs up while it waits, and some more at any time.

    Args:
        app: The application.
        dice: Random numbers.

    Attributes:
        sold: How often each cart has certainly changed.
        unsure: How many changes of carts may have happened.
        hung_up: How many clients have hung up while they waited.
    """

    def __init__(self, app, dice):
        self._app = app
        self._dice = dice
        self.sold = Counter()
        self.unsure = self.hung_up = 0

    async def run(self, requests):
        numbers = iter(range(requests))

        async def call():
            for number in numbers:
                await self._request(number)

        async with asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(call())

    async def _request(self, number):
        user, app = number % 7, self._app
        patience = self._dice.uniform(0, 0.03)
        match number % 10:
            case 0 | 1 | 2:
                assert (200, {"name": f"product {user}"}) == await app.request("GET", f"/products/{user}")
            case 3 | 4:
                assert (200, {"waiting": 1}) == await app.request("POST", f"/inbox/{number}/hello")
                assert (200, {"message": "hello"}) == await app.request("GET", f"/inbox/{number}")
            case 5 | 6 | 7:
                status, body = await app.request("POST", f"/carts/{user}/bell")
                assert (200, ["count"]) == (status, list(body))
                self.sold[user] += 1
            case 8:
                if await app.request("POST", f"/carts/{user}/bell", patience) is None:
                    self.unsure += 1
                else:
                    self.sold[user] += 1
            case 9:
                # For a message that never comes, or for a lock that is held.
                waiting = ("GET", f"/inbox/{number}") if number % 20 == 9 else ("POST", "/carts/held/bell")
                assert await app.request(*waiting, patience) is None
                self.hung_up += 1


@pytest.mark.parametrize("requests", [100, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("example", EXAMPLES, ids=[path.stem for path in EXAMPLES])
async def test_example_outlives_clients_that_hang_up_on_real_server(example, requests, server, inspector, dice, until):
    def is_polling():
        return any(client["cmd"] == "blpop" and "b" in client["flags"] for client in inspector.client_list())

    inspector.set("lock:cart:held", "held")
    others = len(inspector.client_list())
    with serving(example, server.url) as app:
        polling = asyncio.create_task(app.request("GET", "/inbox/first"))
        await until(is_polling)
        polling.cancel()
        await until(lambda: not is_polling())
        load = Load(app, dice)
        await load.run(requests)
        if example.stem not in WITHOUT_WEBSOCKETS:
            await asyncio.gather(*(app.visit(hang_up=number % 2) for number in range(10)))
            assert 10 == int(inspector.hget("visits", "home"))

        await until(lambda: app.is_idle(WORKERS.get(example.stem, 0)), DEADLINE)
        await until(lambda: len(inspector.client_list()) == others + app.connections(), DEADLINE)
        await until(lambda: [] == redis_spans(app.ask("spans"))[1], DEADLINE)
        spans = app.ask("spans")
        if example.stem in WORKERS:
            await asyncio.gather(*(app.request("POST", f"/orders/{user}") for user in range(10)))
            await until(lambda: 10 == inspector.llen("shipped"), DEADLINE)

    assert requests // 10 == load.hung_up
    for user in range(7):
        count = int(inspector.hget(f"cart:{user}", "bell") or 0)
        assert load.sold[user] <= count <= load.sold[user] + load.unsure
    assert [b"lock:cart:held"] == inspector.keys("lock:*")
    below, _ = redis_spans(spans)
    assert len(below) > requests
    assert {None, "asyncio.exceptions.CancelledError"} == {span["error"] for span in below}
    if example.stem in REPORTING:
        parents = {span["parent"] for span in below}
        requests_with_calls = {span["id"] for span in spans if span["kind"] == "SERVER" and span["id"] in parents}
        assert requests_with_calls <= {span["id"] for span in spans if span["calls"]}

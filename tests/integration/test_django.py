"""The recipe for Django under WSGI, where each request has an event loop of its own."""

import os
import subprocess
import sys

from support.example_modules import EXAMPLES, ROOT

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from django_app import pool
from django.test import Client

from aioredis_monitored import EventLoopError

client = Client()  # a handler of WSGI
assert {"waiting": 1} == client.post("/inbox/7/hello").json()
try:
    client.post("/inbox/7/hello")
except EventLoopError as error:
    print(error)
"""


def test_second_request_under_wsgi_gets_clear_error(server):
    # Django takes one configuration for a process.
    result = subprocess.run(  # noqa: S603 - this Python
        [sys.executable, "-c", PROGRAM, EXAMPLES[0].parent],
        env={**os.environ, "REDIS_URL": server.url, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert "pool 'redis' belongs to another event loop: make one pool for each loop\n" == result.stdout

"""Faults of the process around a pool: its event loop ends, there is a second one, it forks.

Each program runs in a separate Python, so that the interpreter's messages at its end are checked, too.
"""

import socket
import subprocess
import sys
import textwrap

import pytest

BEGINNING = """
import asyncio, gc, os, sys, warnings
from aioredis_monitored import EventLoopError, MonitoredConnectionPool, MonitoredRedisConnection

def make(url=sys.argv[1], **arguments):
    arguments = {"name": "mine", "multiplex": sys.argv[2] == "True", **arguments}
    return MonitoredConnectionPool.from_url(url, **arguments)

def run_until_complete(coroutine):
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.close()

run = {"asyncio.run": asyncio.run, "run_until_complete": run_until_complete}[sys.argv[3]]
"""
NEVER_CLOSED_WARNING = "ResourceWarning: pool 'mine' was never closed: use 'async with' or aclose()"


@pytest.fixture(params=["asyncio.run", "run_until_complete"])
def run(request):
    return request.param


def outcome(program, url, multiplex, run="asyncio.run", warnings="error"):
    """Run the program; return what it prints, and what it and the interpreter complain about."""
    command = [sys.executable, "-W", warnings, "-c", BEGINNING + textwrap.dedent(program)]
    done = subprocess.run(  # noqa: S603 - our own Python
        [*command, url, str(multiplex), run], capture_output=True, text=True, timeout=120, check=False
    )
    return done.stdout.split(), done.stderr


def warning_and_error_lines(errors):
    """Return the last line of each unhandled error; the other lines are its origin."""
    return [line for line in errors.splitlines() if "Warning: " in line or "Error: " in line or "was destroyed" in line]


# 16: the end of the event loop


def test_unclosed_pool_warns_once_and_rejects_second_event_loop(server, multiplex, run):
    program = """
    pool = make()
    client = MonitoredRedisConnection(connection_pool=pool)

    async def use():
        await asyncio.gather(*(client.ping() for _ in range(10)))
        print("used")

    run(use())
    try:
        run(use())
    except EventLoopError as error:
        print(*str(error).split()[:6], sep="-")
    """
    printed, errors = outcome(program, server.url, multiplex, run)

    assert ["used", "pool-'mine'-belongs-to-another-event"] == printed
    assert [NEVER_CLOSED_WARNING] == warning_and_error_lines(errors), errors


def test_closed_pool_serves_consecutive_event_loops_without_warning(server, multiplex, run):
    program = """
    pool = make()
    client = MonitoredRedisConnection(connection_pool=pool)

    async def use():
        async with pool:
            print(await client.echo("used"))

    run(use())
    run(use())
    """

    assert (["b'used'", "b'used'"], "") == outcome(program, server.url, multiplex, run)


def test_pool_can_be_reused_after_its_event_loop_ended(server, multiplex, run):
    program = """
    pool = make()
    client = MonitoredRedisConnection(connection_pool=pool)

    async def use():
        print(await client.echo("used"))

    async def use_again():
        await pool.aclose()
        async with pool:
            await use()

    run(use())
    run(use_again())
    """

    assert (["b'used'", "b'used'"], "") == outcome(program, server.url, multiplex, run)


def test_event_loop_can_end_while_commands_are_in_flight(own_server, multiplex):
    own_server.freeze()
    program = """
    async def leave(call):
        pool = make()
        client = MonitoredRedisConnection(connection_pool=pool)
        tasks = [asyncio.create_task(call(client, pool)) for _ in range(3)]
        for _ in range(20):
            await asyncio.sleep(0)
        assert not any(task.done() for task in tasks)

    run(leave(lambda client, pool: client.blpop("list", 0)))
    run(leave(lambda client, pool: client.get("key")))
    run(leave(lambda client, pool: client.pipeline().get("key").execute()))
    run(leave(lambda client, pool: pool.get_connection()))
    print("ended")
    """
    printed, errors = outcome(program, own_server.url, multiplex)

    assert ["ended"] == printed, errors
    assert {NEVER_CLOSED_WARNING} >= {*warning_and_error_lines(errors)}, errors


def test_timed_out_commands_leave_no_task(multiplex, run):
    program = """
    async def leave(call):
        pool = make()
        client = MonitoredRedisConnection(connection_pool=pool)
        try:
            async with asyncio.timeout(0.1):
                await call(client)
        except TimeoutError:
            print("left")

    run(leave(lambda client: client.blpop("list", 1)))
    run(leave(lambda client: client.get("key")))
    run(leave(lambda client: client.pipeline().get("key").execute()))
    """
    # The kernel accepts connections for it; it answers nothing.
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        printed, errors = outcome(program, f"redis://127.0.0.1:{deaf.getsockname()[1]}", multiplex, run)

    assert ["left"] * 3 == printed, errors
    assert {NEVER_CLOSED_WARNING} >= {*warning_and_error_lines(errors)}, errors


def test_collected_pool_with_in_flight_replies_warns_once(server, multiplex, run):
    program = """
    async def forget():
        pool = make()
        client = MonitoredRedisConnection(connection_pool=pool)
        await asyncio.gather(*(client.ping() for _ in range(10)))
        left = [asyncio.ensure_future(client.get("key")) for _ in range(5)]
        await asyncio.sleep(0)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    run(forget())
    gc.collect()
    print("ended")
    """
    printed, errors = outcome(program, server.url, multiplex, run)

    assert ["ended"] == printed
    assert [NEVER_CLOSED_WARNING] == warning_and_error_lines(errors), errors


# 17: fork


FORKING = """
pool = make(max_connections=8, socket_timeout=60, timeout=60)
client = MonitoredRedisConnection(connection_pool=pool)

async def echo(number):
    return str(number).encode() == await client.echo(str(number))

async def own(number):
    return await client.brpoplpush("list", "list", 5) == b"element"

async def work():
    return all(await asyncio.gather(*map(echo, range(200)), *map(own, range(20))))

async def use_its_own():
    async with make() as pool:
        print(await MonitoredRedisConnection(connection_pool=pool).echo("own"))

def forget():
    del globals()["pool"], globals()["client"]
    gc.collect()

CHILDREN = {
    "uses": lambda: asyncio.run(work()),
    "closes": lambda: asyncio.run(pool.aclose()),
    "uses its own": lambda: asyncio.run(use_its_own()),
    "forgets": forget,
    "ends": lambda: None,
}

def fork(child):
    process = os.fork()
    if process == 0:
        try:
            CHILDREN[child]()
        except Exception as error:
            print(type(error).__name__)
        sys.stdout.flush()
        end()
    return process

def is_well(process, options=0):
    ended = os.waitpid(process, options)
    return ended[0] and ended[1] == 0
"""
WHILE_RUNNING = """
# A child that returned would run the loop that it has from its parent.
end = lambda: os._exit(0)

async def parent():
    await client.rpush("list", "element")
    results = [await work()]
    for child in CHILDREN:
        under_way = asyncio.gather(*map(echo, range(200)), *map(own, range(20)))
        for _ in range(5):
            await asyncio.sleep(0)
        process = fork(child)
        results += [all(await under_way), await work()]
        while not (well := is_well(process, os.WNOHANG)):
            await asyncio.sleep(0.001)
        results += [well, await work()]
    await pool.aclose()
    return results

print("parent", all(asyncio.run(parent())))
"""
WHILE_STOPPED = """
end = sys.exit
# Not asyncio.Runner: a child that leaves one runs the loop that it has from its parent.
run = asyncio.new_event_loop().run_until_complete
run(client.rpush("list", "element"))
results = [run(work())]
for child in CHILDREN:
    process = fork(child)
    results += [run(work()), is_well(process), run(work())]
run(pool.aclose())
print("parent", all(results))
"""


@pytest.mark.parametrize("parent", [WHILE_RUNNING, WHILE_STOPPED], ids=["while_running", "while_stopped"])
def test_forked_child_gets_event_loop_error_and_parent_continues(server, multiplex, parent):
    # The child's copies of the parent's sockets stay unclosed: only the parent may close them.
    printed, errors = outcome(FORKING + parent, server.url, multiplex, warnings="ignore::ResourceWarning")

    assert ["EventLoopError", "EventLoopError", "b'own'", "parent", "True"] == printed, errors
    assert "" == errors

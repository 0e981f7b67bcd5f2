"""The demo: what it prints, what it leaves behind, how it ends."""

import contextlib
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import httpx2
import pytest
import redis
from support.internals import demo_termination
from support.served_demo import served

import aioredis_monitored
from aioredis_monitored.cli import main


def run(*arguments, **environment):
    kept = {key: value for key, value in os.environ.items() if not key.startswith("REDIS_")}
    return subprocess.run(  # noqa: S603
        [sys.executable, "-m", "aioredis_monitored", *arguments],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_demo_prints_plain_text_and_starts_its_own_server_when_piped():
    result = run("demo")

    assert (0, "") == (result.returncode, result.stderr)
    assert "\x1b" not in result.stdout
    for expected in ("GET /products/42", "POST /checkout", "checkout (3 commands)", "WRONGTYPE", "Where to go next"):
        assert expected in result.stdout
    assert re.search(r"│ LPUSH\s+│ WRONGTYPE\s+│\s+1 │\s+\d+\.\d\d ms │", result.stdout)


def test_demo_starts_a_server_without_redis_url(monkeypatch, capsys):
    monkeypatch.delenv("REDIS_URL", raising=False)

    assert 0 == main(["demo"])
    assert "checkout (3 commands)" in capsys.readouterr().out


def test_demo_uses_the_server_of_redis_url_and_leaves_no_keys(server, monkeypatch, capsys):
    monkeypatch.setenv("REDIS_URL", f"{server.url}/3")

    assert 0 == main(["demo"])
    assert "checkout (3 commands)" in capsys.readouterr().out
    with redis.Redis.from_url(f"{server.url}/3") as client:
        assert [] == client.keys()


def test_demo_on_a_cluster_shows_redirects_and_a_failover_whatever_redis_url_says(monkeypatch, capsys):
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")

    assert 0 == main(["demo", "--cluster"])
    output = capsys.readouterr().out
    for expected in ("checkout (3 commands)", "WRONGTYPE", ", slot moving", ", slot moved", ", node killed"):
        assert expected in output
    assert 2 == len(re.findall(r" ms 1 redirect *$", output, re.MULTILINE))
    for metric, value in (("cluster.redirects ask", 1), ("cluster.redirects moved", 1), ("failovers", 1)):
        assert re.search(rf"aioredis_monitored\.{metric} +│ {value} │", output)
    # Points have their nodes.
    assert len(set(re.findall(r"│ 127\.0\.0\.1:(\d+) +│", output))) > 1


def test_demo_works_in_a_terminal_without_unicode(server):
    result = run("demo", REDIS_URL=server.url, PYTHONIOENCODING="ascii")

    assert (0, "") == (result.returncode, result.stderr)
    assert "====" in result.stdout


def test_demo_reports_unreachable_server_in_one_line(monkeypatch, capsys):
    monkeypatch.setenv("REDIS_URL", "redis://:hunter2@127.0.0.1:1")

    assert 1 == main(["demo"])
    output = capsys.readouterr().err
    assert output.startswith("The demo cannot run: pool 'redis' (127.0.0.1:1/0): Error 111")
    assert "hunter2" not in output


def test_demo_reports_a_server_that_fails_to_start(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for binary in ("/bin/true", "/no/such/server"):
        monkeypatch.setenv("AIOREDIS_MONITORED_SERVER", binary)
        assert 1 == main(["demo"])
        assert capsys.readouterr().err.startswith("The demo cannot run: ")

    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_demo_exits_cleanly_on_signal_while_waiting_for_the_server(own_server, tmp_path, request, number):
    """The server is frozen, so that the demo certainly has calls in progress."""
    if signal.getsignal(number) is signal.SIG_IGN:
        # These tests run under nohup, and their child processes would inherit the ignored signal.
        request.addfinalizer(partial(signal.signal, number, signal.signal(number, signal.SIG_DFL)))
    own_server.freeze()
    environment = {**os.environ, "REDIS_URL": own_server.url, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "aioredis_monitored", "demo"], env=environment, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not _connected_to(own_server.port, process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)

    assert (130, "") == (process.returncode, errors)
    assert [] == list(tmp_path.iterdir())


def test_demo_restores_signal_handlers_after_a_signal(own_server, monkeypatch):
    monkeypatch.setenv("REDIS_URL", own_server.url)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    own_server.freeze()

    def terminate():
        deadline = time.monotonic() + 60
        while not _connected_to(own_server.port, os.getpid()) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=terminate)
    thread.start()
    try:
        assert 130 == main(["demo"])
        assert (signal.SIG_IGN, signal.SIG_DFL) == (signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGTERM))
    finally:
        thread.join()
        signal.signal(signal.SIGHUP, before)


def _connected_to(port, pid):
    """Return whether the process has a TCP socket to the port, from Linux's /proc."""
    sockets = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            sockets.add(str(link.readlink()))
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        columns = line.split()
        if columns[2].endswith(f":{port:04X}") and f"socket:[{columns[9]}]" in sockets:
            return True
    return False


def test_demo_exports_spans_and_metrics_to_otlp(server, collector, monkeypatch, capsys):
    monkeypatch.setenv("REDIS_URL", server.url)

    assert 0 == main(["demo", "--otlp", f"{collector.url}/"])
    capsys.readouterr()
    assert {"/v1/traces", "/v1/metrics"} == {path for path, _ in collector.requests}
    spans = [received.what for received in collector.spans]
    assert {"POST /checkout", "checkout"} < {span.name for span in spans}
    # Sequential ids would repeat in the collector's next demo.
    assert 2**32 < min(int.from_bytes(span.trace_id) for span in spans)


@pytest.mark.parametrize("url", ["localhost:4318", "4318", "grpc://localhost:4317", "http://", "http://h:x", ""])
def test_demo_refuses_an_otlp_url_that_is_none(url, capsys):
    with pytest.raises(SystemExit) as exited:
        main(["demo", "--otlp", url])

    assert 2 == exited.value.code
    assert "--otlp: must be a URL such as http://localhost:4318\n" in capsys.readouterr().err


@pytest.mark.parametrize("columns", [24, 40, 60, 80, 200])
def test_demo_shows_whole_labels_in_narrow_terminals(server, columns):
    result = run("demo", REDIS_URL=server.url, COLUMNS=str(columns))

    assert 0 == result.returncode
    shown = result.stdout.partition("db.client")[0]
    # Labels may go on in the next line, beside which the columns on the right are blank.
    whole = "".join(re.sub(r"[━=]+|\d+\.\d\d ms|\s", "", line) for line in shown.splitlines())
    for label in ("GET/products/42", "checkout(3commands)", ":checkouts?", "lock.release", "WRONGTYPE"):
        assert label in whole


def test_version_is_printed(capsys):
    with pytest.raises(SystemExit) as exited:
        main(["--version"])

    assert 0 == exited.value.code
    assert f"aioredis-monitored {aioredis_monitored.__version__}\n" == capsys.readouterr().out


def test_demo_says_what_to_install_without_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.delitem(sys.modules, "aioredis_monitored.cli.demo", raising=False)

    assert 2 == main(["demo"])
    assert 'pip install "aioredis_monitored[demo]"' in capsys.readouterr().err


def test_cli_prints_usage_without_a_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["aioredis_monitored"])
    with pytest.raises(SystemExit) as exited:
        # Not run_module(), which cannot load a package that pytest rewrites, as it does those that have a plugin.
        runpy.run_path(str(Path(aioredis_monitored.__file__).with_name("__main__.py")), run_name="__main__")

    assert 2 == exited.value.code
    assert "COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_before_the_demo_runs_ends_it_as_ctrl_c_does(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), demo_termination():
        signal.raise_signal(number)

    assert before is signal.getsignal(number)


def traces_at(url, labels):
    """Return the labels of all spans of the page when these are among them."""
    deadline = time.monotonic() + 60
    while True:
        shown = [row["label"] for trace in httpx2.get(f"{url}/traces").json() for row in trace]
        if set(labels) <= set(shown):
            return shown
        assert time.monotonic() < deadline, shown
        time.sleep(0.01)


def test_served_demo_shows_its_last_requests_and_cleans_up_after_ctrl_c(server):
    with served(server.url) as (process, url):
        assert {"order": "taken"} == httpx2.post(f"{url}/checkout").json()
        assert {"product": "a red bicycle"} == httpx2.get(f"{url}/products/42").json()
        assert "The last requests" in httpx2.get(url).text
        shown = traces_at(url, ["POST /checkout", "GET /products/42", "checkout (3 commands)"])
        assert not [label for label in shown if "traces" in label]
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)

    assert (130, "") == (process.returncode, errors)
    with redis.Redis.from_url(server.url) as client:
        assert [] == client.keys()


def test_served_demo_on_its_own_server_cleans_up_after_ctrl_c(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("REDIS_URL", raising=False)
    with served(None) as (process, url):
        assert 200 == httpx2.post(f"{url}/checkout").status_code
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)

    assert (130, "") == (process.returncode, errors)
    assert [] == list(tmp_path.iterdir())


def test_served_demo_keeps_a_bounded_number_of_requests(server):
    with served(server.url) as (_, url):
        for _ in range(25):
            assert 200 == httpx2.get(f"{url}/products/42").status_code
        assert 20 == len(httpx2.get(f"{url}/traces").json())


def test_served_demo_has_no_name_that_another_site_can_give_it(server):
    with served(server.url) as (_, url):
        assert 400 == httpx2.get(f"{url}/traces", headers={"host": "evil.example"}).status_code
        assert 200 == httpx2.get(f"{url}/traces", headers={"host": "localhost"}).status_code


def test_served_demo_exports_to_otlp_as_well(server, collector):
    with served(server.url, "--otlp", collector.url) as (process, url):
        assert 200 == httpx2.post(f"{url}/checkout").status_code
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)

    assert {"POST /checkout", "checkout"} < {received.what.name for received in collector.spans}
    assert {"/v1/traces", "/v1/metrics"} == {path for path, _ in collector.requests}


def test_served_demo_says_that_its_port_is_in_use(server, monkeypatch, capsys):
    monkeypatch.setenv("REDIS_URL", server.url)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert 1 == main(["demo", "--serve", str(taken.getsockname()[1])])
    assert "The demo cannot run: " in capsys.readouterr().err


@pytest.mark.parametrize("port", ["x", "-1", "65536"])
def test_demo_refuses_a_port_that_is_none(port, capsys):
    with pytest.raises(SystemExit) as exited:
        main(["demo", f"--serve={port}"])

    assert 2 == exited.value.code
    assert "must be a port from 0 to 65535, where 0 is any that is free" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["-a", "hunter2", "doctor"],
        ["queue", "-a", "hunter2", "ls"],
        ["redis://:hun ter2@cache.example"],
        ["demo", "--otlp", "user:hunter2@host:4318"],
        ["demo", "--serve", "hunter2"],
        ["queue", "dead", "mail", "--count", "hunter2"],
        ["doctor", "--json=hunter2"],
        ["doctor", "--timeout", "hunter2"],
        ["config", "check", "hunter2"],
    ],
)
def test_wrong_arguments_are_not_repeated_as_they_may_be_passwords(arguments, capsys):
    with pytest.raises(SystemExit) as exited:
        main(arguments)

    assert 2 == exited.value.code
    errors = capsys.readouterr().err
    assert "error: " in errors
    assert "hunter2" not in errors
    assert "ter2" not in errors


@pytest.mark.parametrize("arguments", [["doctor"], ["config", "check"], ["queue", "ls"]])
def test_reader_that_leaves_and_a_terminal_without_the_characters_are_no_errors(server, arguments):
    environment = {**os.environ, "REDIS_URL": server.url, "REDIS_CLIENT_NAMEÄ": "x", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "aioredis_monitored", *arguments]
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as output:
        left = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.PIPE, timeout=60, check=False)  # noqa: S603
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603

    assert 1 == left.returncode
    assert b"Traceback" not in left.stderr
    assert 0 == shown.returncode
    assert "Traceback" not in shown.stderr


def test_demo_with_a_configuration_that_cannot_be_used_is_no_outage(monkeypatch, capsys):
    monkeypatch.setenv("REDIS_URL", "foo://x")

    assert 2 == main(["demo"])
    assert "redis.url" in capsys.readouterr().err


def test_served_demo_says_at_once_that_its_server_cannot_be_reached(monkeypatch, capsys):
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")

    assert 1 == main(["demo", "--serve", "0"])
    assert capsys.readouterr().err.startswith("The demo cannot run: pool 'redis' (127.0.0.1:1/0): Error 111")


def test_console_script_finds_what_the_configuration_names_in_its_directory(tmp_path):
    (tmp_path / "vault.py").write_text("def provider(config): ...\n")
    script = Path(sys.executable).parent / "aioredis-monitored"
    environment = {**os.environ, "REDIS_URL": "redis://h", "REDIS_CREDENTIALS": "vault:provider"}

    result = subprocess.run(  # noqa: S603
        [script, "config", "check"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )

    assert (0, "") == (result.returncode, result.stderr)

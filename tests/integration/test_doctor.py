"""``doctor`` on real servers: what is broken is the worst line, nothing is changed, and no secret is printed."""

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
import trustme
from support.relaying import hang_up, no_protocol, redis_5, relay

from aioredis_monitored.cli import main
from aioredis_monitored.cli.doctor.rights import QUEUE_COMMANDS
from aioredis_monitored.queue import scripts
from aioredis_monitored.testing import ClusterServers, FaultProxy, RedisServer, SentinelServers

HOST = "127.0.0.1"
SECRET = "hunter2-Zx9"
# What a test allows that finds a server well, and one in which something never answers.
AMPLE = 120.0
BRIEF = 8.0
MAX_SECONDS = 10 * BRIEF + 5
ALLOWED = {
    *("auth", "client|id", "client|list", "client|setinfo", "client|setname", "client|tracking", "client|unblock"),
    *("config|get", "eval", "evalsha", "hello", "info", "ping", "script|load", "select", "slowlog|get"),
}


@pytest.fixture
def doctor(tmp_path, capsys):
    """Run the command in a thread of its own, with variables in a file; return what it prints."""

    async def run(url, *arguments, timeout=AMPLE, **variables):
        file = tmp_path / "variables"
        lines = {"REDIS_URL": url} | {f"REDIS_{name.upper()}": value for name, value in variables.items()}
        file.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
        command = ["doctor", "--json", "--env-file", str(file), "--timeout", str(timeout), *arguments]
        began = time.monotonic()
        code = await asyncio.to_thread(main, command)
        seconds = time.monotonic() - began
        output, errors = capsys.readouterr()
        report = json.loads(output)
        assert (code, "") == (report["exit_code"], errors)
        assert SECRET not in output
        findings = [SimpleNamespace(**each) for each in report["findings"]]
        return SimpleNamespace(code=code, findings=findings, worst=findings[-1], seconds=seconds)

    return run


def assert_fault(report, check, text, advice=""):
    """Check that a fault is the worst line, and that the exit code says so."""
    assert (1, "fault", check) == (report.code, report.worst.verdict, report.worst.check), report.findings
    assert text in report.worst.text
    assert advice in report.worst.advice
    assert report.worst.advice


def found(report, check, verdict="ok"):
    return [each.text for each in report.findings if (each.check, each.verdict) == (check, verdict)]


# A server that is well.


async def test_server_without_faults_is_described(own_server, doctor):
    report = await doctor(own_server.url, "--queue", "mail", max_connections="20")

    assert 0 == report.code
    assert {"ok"} >= {each.verdict for each in report.findings} - {"unknown", "warning"}
    assert f"{own_server.url} (from REDIS_URL)" in found(report, "settings")
    assert "max_connections=20 (from REDIS_MAX_CONNECTIONS)" in found(report, "settings")
    assert any("socket_timeout=5 s" in each for each in found(report, "settings"))
    assert [f"{own_server.host}:{own_server.port} is open"] == found(report, "tcp")
    assert ["RESP3"] == found(report, "protocol")
    assert ["primary that accepts writes, replicas: 0"] == found(report, "role")
    assert ["noeviction"] == found(report, "maxmemory-policy")
    assert ["the user may do all that the queue mail needs"] == found(report, "queue rights")
    assert found(report, "maxclients")[0].endswith("500 pools of max_connections=20 fit")


async def test_findings_are_printed_a_line_each_and_the_worst_last(own_server, tmp_path, capsys):
    own_server.call("CONFIG", "SET", "timeout", "100")
    own_server.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    own_server.call("ACL", "SETUSER", "default", "-slowlog")
    file = tmp_path / "variables"
    file.write_text(f"REDIS_URL={own_server.url}\n")

    assert 1 == await asyncio.to_thread(main, ["doctor", "--env-file", str(file), "--queue", "mail"])
    lines = capsys.readouterr().out.splitlines()
    words = [line.split()[0] for line in lines]
    assert ["ok", "unknown", "warning", "FAULT"] == list(dict.fromkeys(words))
    assert lines[-1].startswith("FAULT    maxmemory-policy: allkeys-lru deletes messages of mail")
    assert "; do this: set maxmemory-policy to noeviction" in lines[-1]
    assert "unknown  slow log: which commands took long; needs +slowlog|get" in lines


async def test_settings_are_shown_as_they_are_understood(own_server, doctor):
    given = {"socket_timeout": "90000 ms", "decode_responses": "yes", "telemetry_include_commands": "get,config get"}
    report = await doctor(own_server.url, protocol="2", **given)

    assert 0 == report.code
    assert {
        "socket_timeout=90.0 s (from REDIS_SOCKET_TIMEOUT)",
        "decode_responses=true (from REDIS_DECODE_RESPONSES)",
        "telemetry_include_commands=CONFIG GET,GET (from REDIS_TELEMETRY_INCLUDE_COMMANDS)",
    } <= set(found(report, "settings"))
    assert found(report, "version")


async def test_unix_socket_is_looked_at(own_server, doctor):
    report = await doctor(f"unix://{own_server.unix_socket_path}")

    assert 0 == report.code
    assert [f"{own_server.unix_socket_path} is open"] == found(report, "socket")


async def test_what_the_user_may_not_see_is_unknown_and_no_fault(own_server, doctor):
    own_server.call("ACL", "SETUSER", "shop", "on", f">{SECRET}", "allkeys", "-@all", "+@connection", "-client|list")
    report = await doctor(own_server.url, username="shop", password=SECRET)

    assert 0 == report.code
    needs = {each.check: each.advice for each in report.findings if each.verdict == "unknown"}
    assert {
        "role": "+eval, and Redis 7.0 or later",
        "maxmemory-policy": "+info or +config|get",
        "timeout": "+config|get",
        "maxclients": "+info or +config|get",
        "clients": "+client|list",
        "slow log": "+slowlog|get",
    } == needs


# Ten set-ups that are broken, and more.


async def test_wrong_password_is_named(doctor):
    with RedisServer(password="right") as server:
        refused = await doctor(server.url, password=SECRET)
        missing = await doctor(server.url)

    assert_fault(refused, "auth", "refuses the user or the password", "password (REDIS_PASSWORD)")
    assert_fault(missing, "auth", "wants a password", "REDIS_PASSWORD_FILE")


@pytest.mark.parametrize(
    ("refused", "check", "text"),
    [
        ("-client|unblock", "rights", "CLIENT UNBLOCK"),
        ("-lmove", "queue rights", "LMOVE"),
        ("resetkeys ~mail", "queue rights", "ZADD"),
    ],
)
async def test_right_that_a_queue_lacks_is_named(own_server, doctor, refused, check, text):
    own_server.call("ACL", "SETUSER", "worker", "on", "nopass", "allkeys", "+@all", *refused.split())
    report = await doctor(own_server.url, "--queue", "mail", username="worker", password="any")

    assert_fault(report, check, text)
    assert 0 == (await doctor(own_server.url, username="worker", password="any")).code


async def test_user_who_may_not_connect_is_named(own_server, doctor):
    own_server.call("ACL", "SETUSER", "shop", "on", "nopass", "allkeys", "-@all")

    report = await doctor(own_server.url, username="shop", password=SECRET)

    assert_fault(report, "rights", "permissions", "+@connection")


async def test_user_who_may_not_choose_the_database_is_named(own_server, doctor):
    own_server.call("ACL", "SETUSER", "shop", "on", "nopass", "allkeys", "+@all", "-select")

    assert_fault(await doctor(f"{own_server.url}/1", username="shop", password="any"), "auth", "select", "+@connection")


async def test_rights_of_a_queue_are_unknown_without_scripts(own_server, doctor):
    own_server.call("ACL", "SETUSER", "worker", "on", "nopass", "allkeys", "+@all", "-eval")
    report = await doctor(own_server.url, "--queue", "mail", username="worker", password="any")

    assert_fault(report, "rights", "queues need EVAL", "+eval")
    assert ["those for the queue mail"] == found(report, "queue rights", "unknown")


@pytest.mark.parametrize("reply_to", [redis_5, no_protocol, hang_up])
async def test_proxy_without_resp3_is_named(doctor, reply_to):
    with RedisServer(password=SECRET) as server:
        async with relay(server, reply_to) as port:
            report = await doctor(f"redis://:{SECRET}@{HOST}:{port}")

    assert_fault(report, "protocol", "does not speak RESP3", "REDIS_PROTOCOL=2")


async def test_proxy_without_resp3_can_be_used_in_resp2(own_server, doctor):
    async with relay(own_server, redis_5) as port:
        report = await doctor(f"redis://{HOST}:{port}", protocol="2")

    assert 0 == report.code
    assert ["RESP2, as protocol=2 says"] == found(report, "protocol")
    assert ["the server does not say what it is"] == found(report, "version", "unknown")


async def test_server_that_always_hangs_up_is_named(own_server, doctor):
    async def reply_to(_):
        return b""

    async with relay(own_server, reply_to) as port:
        report = await doctor(f"redis://{HOST}:{port}")

    assert_fault(report, "connection", "closes the connection", "rediss://")


async def test_old_version_is_a_warning(own_server, doctor):
    async def reply_to(words):
        fields = (b"server", b"redis", b"version", b"6.2.6", b"mode", b"standalone", b"role", b"master")
        bulks = b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in fields)
        return b"%%%d\r\n%s" % (len(fields) // 2, bulks) if words == [b"HELLO"] else None

    async with relay(own_server, reply_to) as port:
        report = await doctor(f"redis://{HOST}:{port}")

    assert (0, ["redis 6.2.6"]) == (report.code, found(report, "version", "warning"))


async def test_round_trip_that_is_long_for_socket_timeout_is_a_warning(own_server, doctor):
    is_late = False

    async def reply_to(words):
        nonlocal is_late
        if is_late and words[0] == b"PING":
            await asyncio.sleep(2)
        # The PINGs that are timed follow it; one is late.
        is_late = words[0] == b"SLOWLOG"

    async with relay(own_server, reply_to) as port:
        report = await doctor(f"redis://{HOST}:{port}", socket_timeout="3 s")

    assert 0 == report.code
    assert "longest 20" in found(report, "round trip", "warning")[0]


async def test_checks_that_take_too_long_are_ended(own_server, doctor):
    async def reply_to(_):
        # Less than a step may take.
        await asyncio.sleep(BRIEF / 12)

    async with relay(own_server, reply_to) as port:
        report = await doctor(f"redis://{HOST}:{port}", timeout=BRIEF)

    assert_fault(report, "time limit", "have not ended in 8 s", "--timeout")
    assert report.seconds < MAX_SECONDS


async def test_server_that_ends_the_connection_during_the_checks_is_named(own_server, doctor):
    async def reply_to(words):
        return b"" if words[0] == b"SLOWLOG" else None

    async with relay(own_server, reply_to) as port:
        report = await doctor(f"redis://{HOST}:{port}")

    assert_fault(report, "connection", "closes the connection")
    assert ["noeviction"] == found(report, "maxmemory-policy")


async def test_busy_machine_is_a_warning(own_server, doctor):
    async def reply_to(words):
        if words[0] == b"SLOWLOG":
            # In C, without releasing the lock of the interpreter, which the thread of doctor needs.
            sum(range(10**8))

    async with relay(own_server, reply_to) as port:
        report = await doctor(f"redis://{HOST}:{port}")

    assert 0 == report.code
    assert "of lag at most in this process" in found(report, "event loop", "warning")[0]


async def test_replies_that_cannot_be_read_are_unknown(own_server, doctor):
    async def reply_to(words):
        if words[0] == b"SLOWLOG":
            return b"*1\r\n:1\r\n"
        return b"*2\r\n+timeout\r\n+never\r\n" if words[0] == b"CONFIG" else None

    async with relay(own_server, reply_to) as port:
        report = await doctor(f"redis://{HOST}:{port}")

    assert 0 == report.code
    assert ["what the server replies cannot be read"] == found(report, "slow log", "unknown")
    assert ["what the server replies cannot be read"] == found(report, "idle timeout", "unknown")


async def test_slow_commands_are_a_warning(own_server, doctor):
    own_server.call("EVAL", "for _ = 1, 1e8 do end", "0")
    report = await doctor(own_server.url)

    assert 0 == report.code
    assert found(report, "slow log", "warning")[0].startswith("EVAL ")


async def test_memory_that_is_nearly_full_is_a_warning(own_server, doctor):
    own_server.call("CONFIG", "SET", "maxmemory", "100mb")
    own_server.call("SETRANGE", "large", str(92 * 2**20), "x")
    report = await doctor(own_server.url)

    assert 0 == report.code
    assert "of maxmemory is used" in found(report, "memory", "warning")[0]


async def test_server_without_some_commands_is_described(doctor):
    renamed = ("SLOWLOG", "CLIENT", "EVALSHA", "EVAL")
    with RedisServer(*(word for name in renamed for word in ("--rename-command", name, ""))) as server:
        report = await doctor(server.url, "--queue", "mail")

    assert 0 == report.code
    assert {"clients", "slow log", "queue rights"} <= {
        each.check for each in report.findings if each.verdict == "unknown"
    }
    assert "the server does not know EVALSHA" in found(report, "rights", "warning")


async def test_socket_that_is_not_there_is_named(doctor, tmp_path):
    assert_fault(await doctor(f"unix://{tmp_path}/none.sock"), "socket", "No such file or directory", "start")


async def test_name_is_resolved(own_server, doctor):
    report = await doctor(f"redis://localhost:{own_server.port}")

    assert 0 == report.code
    assert "127.0.0.1" in found(report, "dns")[0]
    assert f"localhost:{own_server.port} at 127.0.0.1 is open" in found(report, "tcp")


async def test_name_that_is_lost_between_the_checks_is_named(own_server, doctor, monkeypatch):
    resolve = socket.getaddrinfo

    def forget(host, port, *arguments, **options):
        # The pool's connections ask with a port, the first check without.
        if port is not None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return resolve(host, port, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", forget)
    # Connecting to the addresses that were found needs no name.
    report = await doctor(f"redis://localhost:{own_server.port}")

    assert_fault(report, "connection", "Name or service not known")


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def serve_tls(server, authority, tmp_path):
    """Return a factory of proxies with a certificate that is valid for some days, and of the authority's file."""
    file = tmp_path / "authority"
    authority.cert_pem.write_to_path(file)

    def make(name=HOST, days=365):
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        # A little more, as a test takes time.
        end = datetime.now(UTC) + timedelta(days=days, hours=1)
        authority.issue_cert(name, not_before=end - timedelta(days=400), not_after=end).configure_cert(context)
        return FaultProxy(server.host, server.port, tls=context), str(file)

    return make


async def test_expired_certificate_is_named(serve_tls, doctor):
    proxy, file = serve_tls(days=-2)
    async with proxy:
        report = await doctor(f"rediss://{HOST}:{proxy.port}", ssl_ca_certs=file)

    assert_fault(report, "tls", "certificate has expired", "renew")


async def test_other_problems_of_certificates_are_named(serve_tls, server, doctor):
    proxy, file = serve_tls("other.example")
    async with proxy:
        url = f"rediss://{HOST}:{proxy.port}"
        assert_fault(await doctor(url, ssl_ca_certs=file), "tls", "IP address mismatch", "host name")
        assert_fault(await doctor(url), "tls", "local issuer certificate", "ssl_ca_certs")
    plain = await doctor(f"rediss://{server.host}:{server.port}", timeout=BRIEF)
    assert_fault(plain, "tls", "no TLS with", "redis://")
    assert plain.seconds < MAX_SECONDS


async def test_certificate_that_the_client_lacks_is_named(server, authority, doctor, tmp_path):
    file = tmp_path / "authority"
    authority.cert_pem.write_to_path(file)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(HOST).configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    async with FaultProxy(server.host, server.port, tls=context) as proxy:
        report = await doctor(f"rediss://{HOST}:{proxy.port}", ssl_ca_certs=file)

    assert_fault(report, "connection", "", "ssl_certfile")


@pytest.mark.parametrize(("days", "verdict"), [(365, "ok"), (5, "warning")])
async def test_certificate_that_expires_soon_is_a_warning(serve_tls, doctor, days, verdict):
    proxy, file = serve_tls(days=days)
    async with proxy:
        report = await doctor(f"rediss://{HOST}:{proxy.port}", ssl_ca_certs=file)

    assert 0 == report.code
    [text] = found(report, "tls", verdict)
    assert f"expires in {days} days" in text


async def test_certificate_that_is_not_verified_is_a_warning(serve_tls, doctor):
    proxy, _ = serve_tls()
    async with proxy:
        report = await doctor(f"rediss://{HOST}:{proxy.port}", ssl_cert_reqs="none")

    assert 0 == report.code
    assert "no certificate is verified" in found(report, "tls", "warning")[0]


async def test_eviction_policy_that_deletes_messages_is_named(own_server, doctor):
    own_server.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")

    report = await doctor(own_server.url, "--queue", "mail", "--queue", "orders")
    assert_fault(report, "maxmemory-policy", "allkeys-lru deletes messages of mail, orders", "noeviction")
    # A cache is right to have it.
    assert 0 == (await doctor(own_server.url)).code


async def test_replica_is_named(own_server, doctor):
    with RedisServer("--replicaof", own_server.host, str(own_server.port)) as replica:
        report = await doctor(replica.url)

    assert_fault(report, "role", "the server is a replica, which refuses writes", "primary")


async def test_full_maxclients_is_named(own_server, doctor):
    with ExitStack() as stack:
        own_server.call("CONFIG", "SET", "maxclients", "2")
        for _ in range(2):
            client = stack.enter_context(socket.create_connection((own_server.host, own_server.port)))
            client.sendall(b"PING\r\n")
            assert client.recv(7)
        report = await doctor(own_server.url)

    assert_fault(report, "connection", "as many clients as its maxclients allows", "raise maxclients")


async def test_maxclients_below_the_size_of_the_pool_is_a_warning(own_server, doctor):
    own_server.call("CONFIG", "SET", "maxclients", "30")
    report = await doctor(own_server.url)

    assert 0 == report.code
    assert found(report, "maxclients", "warning")[0].endswith("0 pools of max_connections=50 fit")


async def test_frozen_server_is_named_within_the_time_limit(own_server, doctor):
    own_server.freeze()
    report = await doctor(own_server.url, timeout=BRIEF)

    assert_fault(report, "answer", "accepts connections, and does not answer")
    assert report.seconds < MAX_SECONDS


async def test_server_that_falls_silent_during_the_checks_is_named_within_the_time_limit(own_server, doctor, until):
    async with FaultProxy(own_server.host, own_server.port) as proxy:
        proxy.reply_pause = 0.01  # the whole of it would take minutes
        report = await doctor(proxy.url, timeout=BRIEF)

    assert (1, "fault") == (report.code, report.worst.verdict)
    assert report.worst.check in {"answer", "time limit"}
    assert report.seconds < MAX_SECONDS


async def test_address_that_swallows_packets_is_named_within_the_time_limit(doctor):
    with socket.socket() as listener, ExitStack() as stack:
        listener.bind((HOST, 0))
        listener.listen(0)
        # With a full backlog, the kernel drops what asks for a connection.
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        report = await doctor(f"redis://{HOST}:{listener.getsockname()[1]}", timeout=BRIEF)

    assert_fault(report, "tcp", "no answer in", "firewalls")
    assert report.seconds < MAX_SECONDS


async def test_closed_port_is_named(own_server, doctor):
    url = own_server.url
    own_server.kill()

    assert_fault(await doctor(url), "tcp", "Connection refused", "start the server")


async def test_name_without_address_is_named_within_the_time_limit(doctor):
    report = await doctor("redis://no-such-host.invalid", timeout=BRIEF)

    assert_fault(report, "dns", "no-such-host.invalid has no address", "REDIS_URL")
    assert report.seconds < MAX_SECONDS


def test_name_that_is_never_resolved_keeps_no_process_alive(tmp_path):
    """getaddrinfo, which cannot be interrupted, blocks here for longer than the test allows."""
    program = tmp_path / "program.py"
    program.write_text(
        "import socket, sys, time\n"
        "socket.getaddrinfo = lambda *arguments, **options: time.sleep(600)\n"
        "from aioredis_monitored.cli import main\n"
        f"sys.exit(main(['doctor', '--timeout', '{BRIEF}', '--env-file', sys.argv[1]]))\n"
    )
    file = tmp_path / "variables"
    file.write_text("REDIS_URL=redis://cache.example\n")

    command = [sys.executable, str(program), str(file)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=MAX_SECONDS, check=False)  # noqa: S603
    assert (1, "") == (result.returncode, result.stderr)
    assert result.stdout.splitlines()[-1].startswith("FAULT    dns: cache.example has no address: no answer in")


def test_interruption_ends_it_with_the_exit_code_of_shells(tmp_path, capsys):
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen()
        accepted = []

        def interrupt():
            # That of the check of the port, and the one that waits for a reply.
            accepted.extend(listener.accept()[0] for _ in range(2))
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        file = tmp_path / "variables"
        file.write_text(f"REDIS_URL=redis://{HOST}:{listener.getsockname()[1]}\n")
        try:
            assert 130 == main(["doctor", "--env-file", str(file), "--timeout", str(AMPLE)])
        finally:
            thread.join()
            for each in accepted:
                each.close()
    assert ("", "") == capsys.readouterr()


async def test_cluster_with_a_hole_is_named(doctor):
    with ClusterServers(replicas=0, node_timeout=60) as servers:
        for node in servers.nodes:
            node.call("CLUSTER", "DELSLOTS", "5", "6")
        report = await doctor(servers.url)

    assert_fault(report, "cluster", "no node serves 2 of 16384 slots", "redis-cli --cluster fix")
    assert found(report, "cluster", "warning") == ["a primary has no replica: its slots are not served when it fails"]


# Topologies.


async def test_cluster_that_is_well_is_described(cluster, doctor):
    report = await doctor(cluster.url, "--queue", "mail")

    assert 0 == report.code
    assert ["6 nodes agree about all slots"] == found(report, "cluster")
    assert 6 == len(next(each for each in report.findings if each.check == "version").servers)


async def test_nodes_that_disagree_are_a_warning(doctor):
    with ClusterServers(replicas=1, node_timeout=60) as servers:
        target = next(node for node in servers.primaries() if node is not servers.owner(5))
        # Only the node that gives it away gets the command.
        owner = servers.owner(5)
        owner.call("CLUSTER", "SETSLOT", "5", "NODE", target.call("CLUSTER", "MYID"))
        report = await doctor(servers.url)

    assert "the nodes disagree about 1 of 16384 slots" in found(report, "cluster", "warning")


async def test_addresses_that_nodes_announce_in_vain_are_named(cluster, doctor):
    report = await doctor(cluster.url, address_map="*:*=127.0.0.2:*")

    assert_fault(report, "connection", "a server that the cluster or the sentinels announce", "address_map")


async def test_node_that_ends_the_connection_during_the_checks_is_named(cluster, doctor):
    async def reply_to(words):
        return b"" if words[0] == b"SLOWLOG" else None

    node = cluster.primaries()[0]
    async with relay(node, reply_to) as port:
        report = await doctor(cluster.url, address_map=f"{node.host}:{node.port}={HOST}:{port}")

    fault = next(each for each in report.findings if each.verdict == "fault")
    assert "closes the connection" in fault.text
    assert [f"{HOST}:{port}"] == fault.servers
    assert 1 == report.code


async def test_replica_and_rights_that_are_missing_at_one_node_are_named(doctor):
    with ClusterServers(node_timeout=60) as servers:
        for node in servers.nodes:
            node.call("ACL", "SETUSER", "shop", "on", "nopass", "allkeys", "+@all")
        first = servers.primaries()[0]
        first.call("ACL", "SETUSER", "shop", "-cluster", "+cluster|myid")
        replica = servers.replica_of(first)
        replica.kill()
        report = await doctor(servers.url, username="shop", password="any")

    assert_fault(report, "cluster", "the user may not ask for the slots", "+cluster|slots")
    assert [f"{first.host}:{first.port}"] == report.worst.servers
    assert ["whether the node thinks that the cluster is up"] == found(report, "cluster", "unknown")
    assert any(
        f"{replica.host}:{replica.port}" in each.servers for each in report.findings if each.verdict == "warning"
    )


async def test_cluster_at_a_url_for_one_server_is_named(cluster, doctor):
    report = await doctor(cluster.primaries()[0].url)

    assert_fault(report, "version", "the server is a node of a cluster", "redis+cluster://")


async def test_single_server_at_a_url_for_clusters_is_named(server, doctor):
    report = await doctor(f"redis+cluster://{server.host}:{server.port}")

    assert_fault(report, "connection", "no node of a cluster", "redis://")


async def test_start_node_that_is_down_is_a_warning_while_another_one_answers(cluster, doctor):
    report = await doctor(f"{cluster.url},no-such-host.invalid")

    assert 0 == report.code
    assert "no-such-host.invalid has no address" in found(report, "dns", "warning")[0]


async def test_sentinels_that_agree_are_described(sentinels, doctor):
    report = await doctor(sentinels.url)

    assert 0 == report.code
    primary = sentinels.primary()
    assert [f"3 of 3 sentinels name {primary.host}:{primary.port} as primary of mymaster"] == found(report, "sentinel")
    assert ["primary that accepts writes, replicas: 2"] == found(report, "role")
    assert_fault(await doctor(f"{sentinels.url}-2"), "sentinel", "no sentinel knows the service 'mymaster-2'", "URL")


async def test_sentinel_that_is_silent_is_a_warning(doctor):
    with SentinelServers() as servers:
        servers.sentinels[0].freeze()
        report = await doctor(servers.url, timeout=40)
        servers.sentinels[0].thaw()

    assert 0 == report.code
    assert found(report, "sentinel", "warning")


async def test_sentinels_that_disagree_are_warnings(doctor):
    with SentinelServers() as servers:
        unaware, other = servers.sentinels[:2]
        unaware.call("SENTINEL", "REMOVE", "mymaster")
        other.call("SENTINEL", "REMOVE", "mymaster")
        other.call("SENTINEL", "MONITOR", "mymaster", servers.data[1].host, str(servers.data[1].port), "2")
        report = await doctor(servers.url)

    texts = found(report, "sentinel", "warning")
    assert "does not know the service 'mymaster'" in texts
    assert any(text.startswith("the sentinels name several primaries: ") for text in texts)


async def test_sentinel_that_is_alone_without_a_replica_is_a_warning(doctor):
    with SentinelServers(replicas=0, sentinels=1, quorum=1, sentinel_password=SECRET) as servers:
        report = await doctor(servers.url, sentinel_password=SECRET)
        refused = await doctor(servers.url, sentinel_password=f"{SECRET}-x")

    assert 0 == report.code
    texts = found(report, "sentinel", "warning")
    assert any(text.startswith("fewer than 3 sentinels") for text in texts)
    assert any(text.startswith("no replica is in sync") for text in texts)
    assert_fault(refused, "sentinel", "invalid username-password pair", "password")


# What it leaves behind, and what it prints.


def state_of(server):
    keys = sorted(server.call("KEYS", "*"))
    data = {key: (server.call("DUMP", key), server.call("PTTL", key)) for key in keys}
    return data, server.call("CONFIG", "GET", "*"), server.call("ACL", "LIST"), server.call("FUNCTION", "LIST")


async def test_doctor_changes_nothing_at_the_server(own_server, doctor):
    own_server.call("SET", "greeting", "hello")
    own_server.call("RPUSH", "mail", "a", "b")
    own_server.call("ZADD", "{mail}:c", "1", "consumer")
    before = state_of(own_server)
    own_server.call("CONFIG", "RESETSTAT")
    report = await doctor(own_server.url, "--queue", "mail", client_name="shop", db="0")
    stats = own_server.call("INFO", "commandstats")

    assert 0 == report.code
    called = {line.split(":")[0].removeprefix("cmdstat_") for line in stats.splitlines() if line.startswith("cmdstat_")}
    assert called - {"config|resetstat"} <= ALLOWED
    assert before == state_of(own_server)
    assert [] == own_server.call("ACL", "LOG")


async def test_slow_log_is_shown_without_arguments(own_server, doctor):
    own_server.call("CONFIG", "SET", "slowlog-log-slower-than", "0")
    own_server.call("SET", SECRET, SECRET)
    own_server.call("CONFIG", "SET", "slowlog-log-slower-than", "-1")
    report = await doctor(own_server.url)

    [text] = [each.text for each in report.findings if each.check == "slow log"]
    assert "SET 0 ms" in text


async def test_password_in_the_url_or_in_a_file_is_not_shown(doctor, tmp_path):
    """The fixture checks what is printed."""
    file = tmp_path / "password"
    file.write_text(f"{SECRET}\n")
    with RedisServer(password=SECRET) as server:
        place = f"{server.host}:{server.port}"
        in_url = await doctor(f"redis://:{SECRET}@{place}")
        in_file = await doctor(server.url, password_file=str(file))
        wrong = await doctor(f"redis://:{SECRET}-x@{place}")

    assert (0, 0, 1) == (in_url.code, in_file.code, wrong.code)
    assert "password=(hidden) (from REDIS_URL)" in found(in_url, "settings")
    assert f"password_file={file} (from REDIS_PASSWORD_FILE)" in found(in_file, "settings")
    assert 2 == (await doctor(f"redis://:{SECRET}@host:port", db="none")).code


@pytest.mark.parametrize(
    "arguments",
    [
        [f"redis://:{SECRET}@cache.example"],
        ["doctor", f"redis://:{SECRET}@cache.example"],
        ["doctor", "-a", SECRET],
        ["doctor", f"-a{SECRET}"],
        ["doctor", f"--password={SECRET}"],
        ["doctor", "--timeout", SECRET],
        ["doctor", "--queue", f"}}{SECRET}"],
        ["config", f"redis://:{SECRET}@cache.example"],
    ],
)
def test_password_among_the_arguments_is_not_repeated(arguments, capsys):
    with pytest.raises(SystemExit) as exited:
        main(arguments)

    output, errors = capsys.readouterr()
    assert 2 == exited.value.code
    assert SECRET not in output + errors
    assert "error: " in errors


# The list of what a queue calls.


def test_rights_of_a_queue_cover_all_that_its_scripts_call():
    listed = {line.split()[0] for line in QUEUE_COMMANDS}
    texts = [each.text for each in vars(scripts).values() if isinstance(each, scripts.LuaScript)]
    called = {word.split("'")[0] for text in texts for word in text.split("redis.call('")[1:]}

    assert called
    assert called <= listed


async def test_credentials_of_a_factory_are_used_and_named(own_server, doctor, tmp_path, monkeypatch):
    (tmp_path / "vault.py").write_text(
        "import os\n"
        "from redis.credentials import UsernamePasswordCredentialProvider\n\n\n"
        "def provider(config):\n"
        "    return UsernamePasswordCredentialProvider('shop', os.environ['VAULT'])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("VAULT", SECRET)
    own_server.call("ACL", "SETUSER", "shop", "on", f">{SECRET}", "allkeys", "+@all")

    report = await doctor(own_server.url, credentials="vault:provider")
    assert "connected with the credentials of vault:provider" in found(report, "auth")

    monkeypatch.setenv("VAULT", "another")
    report = await doctor(own_server.url, credentials="vault:provider")
    assert_fault(report, "auth", "refuses", "correct credentials (REDIS_CREDENTIALS)")

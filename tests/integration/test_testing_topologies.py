"""The testing package's clusters and Sentinel set-ups: real servers that find each other, and change on request."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
import trustme
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import ResponseError
from redis.retry import Retry

from aioredis_monitored.testing import ClusterServers, RedisServer, SentinelServers, TlsFiles

# Of a hash tag, so that all its keys are in one slot.
SLOT = key_slot(b"tag")
KEYS = [f"{{tag}}{number}" for number in range(25)]


@pytest.fixture
def own_cluster():
    """Yield a cluster that only this test uses, and may break."""
    with ClusterServers() as servers:
        yield servers


@pytest.fixture
def own_sentinels():
    """Yield servers under Sentinel that only this test uses, and may break."""
    with SentinelServers() as servers:
        yield servers


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """Return files for TLS, or skip the test on a server without TLS, as the embedded one is."""
    folder, authority = tmp_path_factory.mktemp("tls"), trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    files = TlsFiles(*(str(folder / name) for name in TlsFiles._fields))
    issued.cert_chain_pems[0].write_to_path(files.certificate)
    issued.private_key_pem.write_to_path(files.key)
    authority.cert_pem.write_to_path(files.authority)
    try:
        with RedisServer(tls=files):
            return files
    except RuntimeError:
        pytest.skip("the server has no TLS")


def moves_atomically(cluster):
    return "valkey_version:9" in cluster.nodes[0].call("INFO", "server")


def other_primary(cluster, node):
    return next(other for other in cluster.primaries() if other is not node)


def fill(cluster):
    for key in KEYS:
        cluster.owner(key).call("SET", key, "value")


def stored(node):
    return {key for key in node.call("CLUSTER", "GETKEYSINSLOT", SLOT, 1000) if key in KEYS}


def client_of(node, **arguments):
    return redis.RedisCluster(host=node.host, port=node.port, **arguments)


def stranger_to(server):
    """Return a client without a password and without TLS, which does not retry."""
    return redis.Redis(host=server.host, port=server.port, retry=Retry(NoBackoff(), 0))


def assert_wants_password(server):
    with stranger_to(server) as client, pytest.raises(redis.exceptions.AuthenticationError):
        client.ping()


def poll(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


def test_cluster_serves_all_slots_with_a_replica_for_each_primary(cluster):
    primaries, replicas = cluster.nodes[:3], cluster.nodes[3:]

    assert primaries == cluster.primaries()
    assert replicas == [cluster.replica_of(node) for node in primaries]
    assert primaries == [cluster.owner(slot) for slot in (0, 8000, 16383)]
    assert cluster.owner(SLOT) is cluster.owner("{tag}key") is cluster.owner(b"{tag}key")
    with client_of(cluster.nodes[0]) as client:
        for number in range(100):
            client.set(f"served:{number}", number)
        assert client.get("served:99") == b"99"


def test_replicas_under_sentinel_are_sent_what_their_primary_writes_from_the_start_on(own_sentinels):
    def is_sent(replica):
        # Bytes that it got after its copy of the primary's data.
        return "repl_backlog_histlen:0" not in replica.call("INFO", "replication")

    assert [True, True] == [is_sent(replica) for replica in own_sentinels.data[1:]]


def test_cluster_url_names_all_nodes(cluster):
    assert "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in cluster.nodes) == cluster.url


def test_cluster_raises_when_started_twice(cluster):
    with pytest.raises(RuntimeError, match="the servers are running already"):
        cluster.start()


@pytest.mark.slow
def test_stopped_cluster_leaves_no_process_and_no_files_and_starts_again():
    servers = ClusterServers(replicas=0)
    servers.start()
    nodes = servers.nodes
    folders = [Path(node.unix_socket_path).parent for node in nodes]
    servers.stop()

    assert [] == servers.nodes
    assert not any(node.is_running for node in nodes)
    assert not any(folder.exists() for folder in folders)
    with servers:
        assert 3 == len(servers.primaries())


@pytest.mark.parametrize("group", [ClusterServers, SentinelServers])
def test_group_error_shows_output_when_startup_fails(group):
    servers = group("--no-such-option", "1")

    with pytest.raises(RuntimeError, match=r"(?s)did not start:.*no-such-option"):
        servers.start()
    servers.stop()


def announced(servers):
    """Return what the first node says of each primary beside its address."""
    return [primary[3] for _, _, primary, *_ in sorted(servers.nodes[0].call("CLUSTER", "SLOTS"))]


@pytest.mark.parametrize("hostnames", [None, lambda index: f"node-{index}.example"])
def test_cluster_without_replicas_takes_messages_in_shard_channels(hostnames):
    with ClusterServers(replicas=0, hostnames=hostnames) as servers:
        assert [0] * 3 == [servers.owner(channel).call("SPUBLISH", channel, "message") for channel in ("a", "b", "c")]
        names = [fields[fields.index("hostname") + 1] if "hostname" in fields else "" for fields in announced(servers)]

        assert [hostnames(index) if hostnames else "" for index in range(3)] == names


def test_migrating_slot_is_asked_for_at_its_target(own_cluster):
    source = own_cluster.owner(SLOT)
    target = other_primary(own_cluster, source)
    fill(own_cluster)
    own_cluster.begin_migration(SLOT, target)
    assert 5 == own_cluster.migrate_keys(SLOT, target, 5)

    moved, kept = stored(target), stored(source)
    assert (5, 20) == (len(moved), len(kept))
    with pytest.raises(ValueError, match=f"slot {SLOT} must have no keys at its owner, got 20: migrate_keys"):
        own_cluster.end_migration(SLOT, target)
    with pytest.raises(redis.exceptions.AskError, match=f"{SLOT} 127.0.0.1:{target.port}"):
        source.call("GET", moved.pop())
    assert source.call("GET", kept.pop()) == "value"
    with pytest.raises(redis.exceptions.MovedError):
        target.call("GET", KEYS[0])

    while own_cluster.migrate_keys(SLOT, target, 7):
        pass
    own_cluster.end_migration(SLOT, target)
    own_cluster.wait_ok()

    assert own_cluster.owner(SLOT) is target
    assert (set(KEYS), set()) == (stored(target), stored(source))


def test_migrated_slot_keeps_its_keys_and_their_bytes(own_cluster):
    target = other_primary(own_cluster, own_cluster.owner(SLOT))
    key, value = b"{tag}\xff\x00", bytes(range(256))
    fill(own_cluster)
    own_cluster.owner(SLOT).call("SET", key, value)
    own_cluster.migrate(SLOT, target, batch=4, pause=0.001)

    assert set(KEYS) == stored(target)
    with redis.Redis(host=target.host, port=target.port) as client:
        assert client.get(key) == value


@pytest.mark.slow
def test_primary_without_its_last_slot_can_be_removed(own_cluster):
    node = own_cluster.add_node()
    assert 4 == len(own_cluster.primaries())
    with pytest.raises(LookupError, match="has no running replica"):
        own_cluster.replica_of(node)
    source = own_cluster.owner(SLOT)
    own_cluster.migrate(SLOT, node)
    assert own_cluster.owner(SLOT) is node
    with pytest.raises(ValueError, match="must have no slots, got 1: migrate them first"):
        own_cluster.remove_node(node)
    own_cluster.migrate(SLOT, source)
    own_cluster.wait_ok()
    own_cluster.remove_node(node)

    assert node not in own_cluster.nodes
    assert not node.is_running
    own_cluster.wait_ok()
    assert not any(node.id in other.call("CLUSTER", "NODES") for other in own_cluster.nodes)


def test_slots_move_atomically_where_the_server_can(own_cluster):
    if not moves_atomically(own_cluster):
        pytest.skip("Valkey has had CLUSTER MIGRATESLOTS since 9.0")
    source = own_cluster.owner(SLOT)
    target = other_primary(own_cluster, source)
    fill(own_cluster)
    neighbours = [SLOT - 4, SLOT - 3, SLOT - 1]
    own_cluster.migrate_atomically([*neighbours, SLOT], target)

    assert set(KEYS) == stored(target)
    assert all(own_cluster.owner(slot) is target for slot in neighbours)
    assert own_cluster.owner(SLOT - 2) is source
    with pytest.raises(ValueError, match="must belong to one node, got 2"):
        own_cluster.migrate_atomically([SLOT - 2, SLOT], target)

    own_cluster.wait_ok()
    own_cluster.migrate_atomically([SLOT], source)
    assert set(KEYS) == stored(source)


def test_atomic_migration_raises_when_it_is_cancelled(own_cluster):
    if not moves_atomically(own_cluster):
        pytest.skip("Valkey has had CLUSTER MIGRATESLOTS since 9.0")
    source = own_cluster.owner(SLOT)
    target = other_primary(own_cluster, source)
    target.freeze()
    with ThreadPoolExecutor() as threads:
        migration = threads.submit(own_cluster.migrate_atomically, [SLOT], target)
        poll(lambda: source.call("CLUSTER", "GETSLOTMIGRATIONS"))
        source.call("CLUSTER", "CANCELSLOTMIGRATIONS")

        with pytest.raises(RuntimeError, match="the migration was given up, cancelled"):
            migration.result(60)


def test_atomic_migration_error_says_which_server_can(cluster):
    if moves_atomically(cluster):
        pytest.skip("the server has CLUSTER MIGRATESLOTS")
    with pytest.raises(NotImplementedError, match="use Valkey 9 or newer"):
        cluster.migrate_atomically([SLOT], other_primary(cluster, cluster.owner(SLOT)))


@pytest.mark.slow
def test_failover_promotes_replica_and_back(own_cluster):
    primary = own_cluster.owner(SLOT)
    replica = own_cluster.replica_of(primary)
    fill(own_cluster)
    for old, new in ((primary, replica), (replica, primary)):
        own_cluster.failover(new)
        own_cluster.wait_ok()

        assert own_cluster.owner(SLOT) is new
        assert own_cluster.replica_of(new) is old
    assert set(KEYS) == stored(primary)


def test_failover_to_a_primary_raises(cluster):
    with pytest.raises(ValueError, match=r"must be a replica, got .*, a primary"):
        cluster.failover(cluster.nodes[0])


def test_cluster_error_says_which_node_is_missing_or_still_needed():
    with ClusterServers(primaries=2, replicas=0) as servers:
        owner = servers.owner(SLOT)
        with pytest.raises(LookupError, match="has no running replica"):
            servers.replica_of(owner)
        with pytest.raises(ValueError, match=r"must have no slots, got 8192: migrate them first"):
            servers.remove_node(owner)
        assert owner in servers.nodes
        if moves_atomically(servers):
            with pytest.raises(ResponseError, match=r"(?i)target node|already|myself|itself"):
                servers.migrate_atomically([SLOT], owner)
        owner.freeze()
        with pytest.raises(LookupError, match=f"no running node has slot {SLOT}"):
            servers.owner(SLOT)


@pytest.mark.slow
def test_killed_primary_is_replaced_and_returns_as_a_replica(own_cluster):
    primary = own_cluster.owner(SLOT)
    replica, known = own_cluster.replica_of(primary), (primary.port, primary.id)
    fill(own_cluster)
    poll(lambda: set(KEYS) == stored(replica))
    primary.kill()
    with pytest.raises(LookupError, match=f"no running node has slot {SLOT}"):
        own_cluster.owner(SLOT)
    own_cluster.wait_ok()
    assert own_cluster.owner(SLOT) is replica
    primary.start()
    own_cluster.wait_ok()

    assert known == (primary.port, primary.call("CLUSTER", "MYID"))
    assert own_cluster.replica_of(replica) is primary
    assert set(KEYS) == stored(replica)


def test_frozen_primary_is_replaced_and_owns_nothing_when_it_thaws(own_cluster):
    primary = own_cluster.owner(SLOT)
    replica = own_cluster.replica_of(primary)
    primary.freeze()
    own_cluster.wait_ok()
    assert primary not in own_cluster.primaries()
    primary.thaw()

    assert own_cluster.owner(SLOT) is replica
    own_cluster.wait_ok()
    assert own_cluster.replica_of(replica) is primary


def test_wait_ok_error_says_what_is_missing():
    with ClusterServers(replicas=0, primaries=3) as servers:
        servers.nodes[0].kill()
        with pytest.raises(TimeoutError, match=r"after 0 s: the owner of slots does not run|the cluster is not ok for"):
            servers.wait_ok(0)


def test_cluster_announces_host_names():
    arguments = ("--cluster-preferred-endpoint-type", "hostname")
    with ClusterServers(*arguments, replicas=0, hostnames=lambda index: f"node-{index}.example") as servers:
        slots = servers.nodes[0].call("CLUSTER", "SLOTS")

        assert ["node-0.example", "node-1.example", "node-2.example"] == sorted(part[2][0] for part in slots)


def test_cluster_with_password_replicates_and_migrates():
    with ClusterServers(password="secret") as servers:
        source = servers.owner(SLOT)
        target = other_primary(servers, source)
        assert_wants_password(source)
        fill(servers)
        servers.migrate(SLOT, target)

        assert set(KEYS) == stored(target)
        with client_of(target, password="secret") as client:
            assert client.get(KEYS[0]) == b"value"


def test_cluster_with_tls_replicates_and_migrates(tls):
    with ClusterServers(tls=tls) as servers:
        target = other_primary(servers, servers.owner(SLOT))
        fill(servers)
        servers.migrate(SLOT, target)

        assert servers.url.startswith(f"rediss+cluster://127.0.0.1:{servers.nodes[0].port},")
        with client_of(target, ssl=True, ssl_ca_certs=tls.authority) as client:
            assert client.get(KEYS[0]) == b"value"
        with stranger_to(target) as plain, pytest.raises(redis.exceptions.ConnectionError):
            plain.ping()


def test_sentinels_know_primary_replicas_and_each_other(sentinels):
    addresses = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in sentinels.sentinels)
    client = redis.Sentinel([("127.0.0.1", sentinels.sentinels[2].port)])

    assert f"redis+sentinel://{addresses}/mymaster" == sentinels.url
    assert sentinels.data[0] is sentinels.primary()
    assert ("127.0.0.1", sentinels.data[0].port) == client.discover_master("mymaster")
    assert {server.port for server in sentinels.data[1:]} == {port for _, port in client.discover_slaves("mymaster")}
    for sentinel in client.sentinels:
        sentinel.close()


def test_sentinel_failover_returns_another_primary(own_sentinels):
    former = own_sentinels.primary()
    primary = own_sentinels.failover()

    assert primary is not former
    assert primary is own_sentinels.primary()
    assert "master" == primary.call("ROLE")[0]


@pytest.mark.slow
def test_former_primary_follows_the_new_one_after_a_failover(own_sentinels):
    former = own_sentinels.primary()
    primary = own_sentinels.failover()
    own_sentinels.wait_ok()

    assert ["slave", "127.0.0.1", primary.port] == former.call("ROLE")[:3]


@pytest.mark.slow
def test_sentinels_replace_a_killed_primary(own_sentinels):
    former = own_sentinels.primary()
    former.kill()
    with pytest.raises(TimeoutError, match="does not run"):
        own_sentinels.wait_ok(0)
    own_sentinels.wait_ok(90)

    assert own_sentinels.primary() is not former


def test_restarted_sentinel_knows_what_it_knew(own_sentinels):
    sentinel = own_sentinels.sentinels[0]
    sentinel.kill()
    own_sentinels.wait_ok()
    sentinel.start()
    own_sentinels.wait_ok()

    assert 2 == len(sentinel.call("SENTINEL", "SENTINELS", "mymaster"))


def test_servers_under_sentinel_with_passwords_and_another_name():
    arguments = {"service": "orders", "password": "data-secret", "sentinel_password": "sentinel-secret"}
    with SentinelServers(replicas=1, **arguments) as servers:
        assert servers.url.endswith("/orders")
        for server in (servers.primary(), servers.sentinels[0]):
            assert_wants_password(server)
        assert servers.failover() is servers.data[1]


def test_servers_under_sentinel_with_tls_agree(tls):
    with SentinelServers(replicas=1, tls=tls) as servers:
        assert servers.url.startswith("rediss+sentinel://")
        with redis.Redis(
            host="127.0.0.1", port=servers.sentinels[0].port, ssl=True, ssl_ca_certs=tls.authority
        ) as client:
            assert client.ping()
        assert servers.failover() is servers.data[1]


def test_wait_ok_error_says_on_what_sentinels_do_not_agree():
    # Sentinel itself takes nothing for down in that time.
    with SentinelServers(replicas=1, sentinels=1, quorum=1, down_after=60) as servers:
        primary = servers.primary()
        [replica] = [server for server in servers.data if server is not primary]
        replica.freeze()
        with pytest.raises(TimeoutError, match="does not see the replicas"):
            servers.wait_ok(0)
        replica.thaw()
        replica.call("REPLICAOF", "NO", "ONE")
        with pytest.raises(TimeoutError, match="is not a connected replica of"):
            servers.wait_ok(0)
        primary.freeze()
        with pytest.raises(TimeoutError, match="the primary, does not run"):
            servers.wait_ok(0)


def test_primary_is_unknown_without_sentinels():
    with SentinelServers(replicas=0, sentinels=1, quorum=1) as servers:
        servers.sentinels[0].kill()
        with pytest.raises(LookupError, match="no sentinel runs"):
            servers.primary()

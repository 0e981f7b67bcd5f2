"""The map of a cluster, as parsed from the replies of servers to CLUSTER SLOTS."""

import pytest

from aioredis_monitored._topology.slot_map import SlotMap, SlotRange


def as_said(host, port):
    return host, port


A, B, C = ("10.0.0.1", 6379), ("10.0.0.2", 6379), ("10.0.0.3", 6379)


def entry(first, last, *addresses):
    return [first, last, *([host, port, b"id", []] for host, port in addresses)]


def test_slot_map_has_primaries_in_the_order_of_their_slots_and_their_replicas():
    reply = [
        entry(8192, 16383, (b"10.0.0.2", 6379)),
        entry(0, 100, (b"10.0.0.1", 6379), (b"10.0.0.3", 6379)),
        entry(101, 8191, (b"10.0.0.1", 6379), (b"10.0.0.3", 6379)),
    ]

    found = SlotMap.parse(reply, "seed", as_said)

    assert found.primaries == (A, B)
    assert found.replicas == {A: (C,), B: ()}
    assert found.addresses == (A, B, C)
    assert found.ranges[0] == SlotRange(0, 100, A, (C,))


@pytest.mark.parametrize("host", [None, b"", "", b"?", "?"], ids=repr)
def test_unknown_host_is_the_one_that_was_asked(host):
    found = SlotMap.parse([entry(0, 16383, (host, 7000))], "10.0.0.9", as_said)

    assert found.primaries == (("10.0.0.9", 7000),)


def test_addresses_are_resolved_before_they_are_compared():
    reply = [entry(0, 1, (b"10.0.0.1", 6379)), entry(2, 3, (b"10.0.0.1", 6379))]

    found = SlotMap.parse(reply, "seed", lambda host, port: (f"nat-{host}", port + 1))

    assert found.primaries == (("nat-10.0.0.1", 6380),)


@pytest.mark.parametrize(
    "metadata", [[b"hostname", b"a.example"], {b"hostname": b"a.example"}, {"hostname": "a.example"}]
)
def test_name_in_the_metadata_is_what_a_certificate_is_for(metadata):
    found = SlotMap.parse([[0, 16383, [b"10.0.0.1", 6379, b"id", metadata]]], "seed", as_said)

    assert found.names == {A: "a.example"}


@pytest.mark.parametrize("metadata", [[b"hostname", b""], [b"ip", b"10.0.0.1"], []])
def test_node_without_a_name_has_none(metadata):
    found = SlotMap.parse([[0, 16383, [b"10.0.0.1", 6379, b"id", metadata]]], "seed", as_said)

    assert found.names == {}


def test_mapped_address_keeps_the_name_that_it_is_mapped_to():
    reply = [[0, 16383, [b"10.0.0.1", 6379, b"id", [b"hostname", b"inside.example"]]]]

    found = SlotMap.parse(reply, "seed", lambda _, port: ("outside.example", port))

    assert found.primaries == (("outside.example", 6379),)
    assert found.names == {}


def test_entry_of_an_old_server_without_ids_is_read():
    found = SlotMap.parse([[0, 16383, [b"10.0.0.1", 6379]]], "seed", as_said)

    assert found.primaries == (A,)


@pytest.mark.parametrize("reply", [None, b"OK", [[0]], [[0, 1, 2]], [[0, 1, [b"10.0.0.1", b"x"]]], 7])
def test_reply_of_another_command_is_refused(reply):
    with pytest.raises(ValueError, match="not a reply to CLUSTER SLOTS"):
        SlotMap.parse(reply, "seed", as_said)


def slot_map(*ranges):
    return SlotMap([SlotRange(first, last, primary, replicas) for first, last, primary, replicas in ranges])


@pytest.mark.parametrize(
    ("later", "failovers"),
    [
        (slot_map((0, 100, A, (B,))), 0),
        (slot_map((0, 100, B, (A,))), 1),
        # The old primary does not answer, or was removed.
        (slot_map((0, 100, B, ())), 1),
        # Its slots were moved, and it serves none any more.
        (slot_map((0, 100, C, (A, B))), 0),
        # A slot was moved to its replica, which became a primary for that.
        (slot_map((0, 50, A, ()), (51, 100, B, ())), 0),
    ],
)
def test_failover_is_a_replica_in_the_place_of_its_primary(later, failovers):
    assert failovers == slot_map((0, 100, A, (B,))).failovers_until(later)


def test_first_map_has_seen_no_failover():
    assert 0 == SlotMap(()).failovers_until(slot_map((0, 100, A, (B,))))

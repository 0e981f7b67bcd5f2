"""What sentinels say about the servers of one service, and what follows from that; without I/O, the clock given in.

The times below were measured in ``SENTINEL FAILOVER``, in seconds from the command: 0.10 the leader says that it is
about to promote a replica; 0.19 that is a primary; 0.49 the leader says so; 0.56 the other sentinels switch; 1.59 the
leader does; 10.6 the old primary is demoted, and acknowledges writes until then, all of which are lost.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from math import inf
from typing import Final, NamedTuple

from aioredis_monitored.config.addresses import Address

# The events that ``PrimaryTracker`` acts on, as channels, and as a pattern of further channels.
_SENTINEL_EVENTS: Final = ("+sentinel", "+sentinel-address-switch")
EVENTS: Final = ("+switch-master", "+promoted-slave", "+failover-state-send-slaveof-noone", *_SENTINEL_EVENTS)
ABORT_EVENTS: Final = "-failover-abort-*"
# Further channels, for pools that read from replicas: after these, others may be in sync.
REPLICA_EVENTS: Final = ("+slave", "+slave-reconf-done", "+reboot", "+sdown", "-sdown")
_ABORT_PREFIX: Final = "-failover-abort-"

# Seconds for which an announced primary is believed: for about one, other sentinels still name its predecessor.
BELIEF_SECONDS: Final = 3.0
# Seconds for which calls are held at most, from the moment in which a sentinel is about to promote a replica.
MAX_HOLD_SECONDS: Final = 2.0
# Seconds for which events are ignored that announce a primary which has said itself that it is none.
_REFUTED_SECONDS: Final = 3.0


class Answer(NamedTuple):
    """What one sentinel answers.

    Attributes:
        sentinel: The identity of the sentinel, which it has under every address.
        primary: The primary that it names; ``None`` if it does not know the service.
        config_epoch: How many failovers it has seen; higher is newer.
        others: The addresses of the other sentinels that it knows, by identity.
        replicas: The addresses of the replicas that are up and in sync, if it was asked for them.
    """

    sentinel: str
    primary: Address | None
    config_epoch: int
    others: Mapping[str, Address]
    replicas: frozenset[Address] = frozenset()


class Election(NamedTuple):
    """What the answers of several sentinels amount to.

    Attributes:
        primary: The primary that most of them name; ``None`` if none knows the service.
        votes: How many sentinels name it.
        answered: How many sentinels have answered.
        known: How many sentinels there are.
        replicas: The replicas in sync, by the word of most of those that name this primary.
    """

    primary: Address | None
    votes: int
    answered: int
    known: int
    replicas: frozenset[Address] = frozenset()

    @property
    def is_certain(self) -> bool:
        """Whether no further answer could change the outcome."""
        return self.votes * 2 > self.known

    @property
    def is_representative(self) -> bool:
        """Whether at least half of the sentinels have answered."""
        return self.answered * 2 >= self.known


def elect(answers: Iterable[Answer], known: int) -> Election:
    """Count answers: the primary that most of them name wins; among equals, the one of the highest epoch.

    Args:
        answers: The answers; of several by one sentinel, the last one counts.
        known: How many sentinels there are.
    """
    by_sentinel = {answer.sentinel: answer for answer in answers}
    votes: dict[Address, int] = {}
    epochs: dict[Address, int] = {}
    for answer in by_sentinel.values():
        if (primary := answer.primary) is not None:
            votes[primary] = votes.get(primary, 0) + 1
            epochs[primary] = max(epochs.get(primary, answer.config_epoch), answer.config_epoch)
    winner = max(votes, key=lambda each: (votes[each], epochs[each]), default=None)
    count = 0 if winner is None else votes[winner]
    in_sync = Counter(
        replica for answer in by_sentinel.values() if answer.primary == winner for replica in answer.replicas
    )
    replicas = frozenset(each for each, times in in_sync.items() if times * 2 > count and each != winner)
    return Election(winner, count, len(by_sentinel), max(known, len(by_sentinel)), replicas)


def answer_of(sentinel: str, primary: object, master: object, others: object, replicas: object = None) -> Answer:
    """Read the replies of a sentinel, all in RESP2 and decoded.

    Args:
        sentinel: Its identity.
        primary: The reply to ``SENTINEL GET-MASTER-ADDR-BY-NAME``; during a failover it is newer than the next one.
        master: The reply to ``SENTINEL MASTER``, or an error.
        others: The reply to ``SENTINEL SENTINELS``, or an error.
        replicas: The reply to ``SENTINEL REPLICAS``, or an error; default ``None``, if that was not asked.
    """
    address = _address_in(primary) if isinstance(primary, list) else None
    epoch = _fields_of(master).get("config-epoch", "")
    addresses = {}
    for each in others if isinstance(others, list) else ():
        fields = _fields_of(each)
        found = _address_in((fields.get("ip"), fields.get("port")))
        if found is not None:
            addresses[fields.get("runid") or f"{found[0]}:{found[1]}"] = found
    return Answer(sentinel, address, int(epoch) if epoch.isdecimal() else 0, addresses, _in_sync(replicas))


def _in_sync(replicas: object) -> frozenset[Address]:
    """Return the replicas that are up, and connected to their primary with all of its data."""
    found = set()
    for each in replicas if isinstance(replicas, list) else ():
        fields = _fields_of(each)
        flags = fields.get("flags", "").split(",")
        is_away = any(flag == "disconnected" or flag.endswith("_down") for flag in flags)
        address = _address_in((fields.get("ip"), fields.get("port")))
        if address is not None and not is_away and fields.get("master-link-status") == "ok":
            found.add(address)
    return frozenset(found)


def _fields_of(reply: object) -> dict[str, str]:
    return dict(zip(reply[::2], reply[1::2], strict=False)) if isinstance(reply, list) else {}


def _address_in(words: Sequence[object]) -> Address | None:
    match words:
        case [str(host), str(port), *_] if host and port.isdecimal():
            return host, int(port)
    return None


class Change(Enum):
    """What a pool has to do about an event or an election.

    Attributes:
        NONE: Nothing.
        HOLD: Begin no call on a present connection, and make no new one.
        RESUME: Make connections again.
        SWITCH: End all connections to other servers than the primary; make connections again.
        ASK: Ask the sentinels: one is new or has moved, a replica has come, left or started again, or a primary was
            announced that may be out of date.
    """

    NONE = auto()
    HOLD = auto()
    RESUME = auto()
    SWITCH = auto()
    ASK = auto()


@dataclass(slots=True)
class PrimaryTracker:
    """What is believed about the primary of a service: which one it is, until when, and whether it is being replaced.

    Args:
        service: The name of the service.
        hold_seconds: How long calls are held at most in one failover; at most ``MAX_HOLD_SECONDS``.

    Attributes:
        primary: The primary as far as it is known.
        generation: How many failovers have begun, as far as their beginning was announced.
        held_until: Until when calls are held; ``-inf`` if they are not.
    """

    service: str
    hold_seconds: float
    primary: Address | None = None
    generation: int = 0
    held_until: float = -inf
    _believed_until: float = -inf
    # Which replica is about to be promoted, or was last.
    _candidate: Address | None = None
    # Those that were the primary, and have not said since that they are none.
    _former: set[Address] = field(default_factory=set)
    _refuted: Address | None = None
    _refuted_until: float = -inf

    def believed(self, now: float) -> Address | None:
        """Return the primary that is believed whatever the sentinels answer; ``None`` if they are to be asked."""
        return self.primary if now < self._believed_until else None

    def on_event(self, channel: str, data: str, now: float) -> Change:
        """Take an event of any sentinel.

        Events about a server have the form ``<kind> <name> <ip> <port> @ <service> <ip> <port>``, without what begins
        with the "@" if they are about the primary.
        """
        words = data.split()
        if channel == "+switch-master":
            # <service> <old ip> <old port> <new ip> <new port>
            return self._on_announced(words[1:3], words[3:5], now) if words[:1] == [self.service] else Change.NONE
        if self.service not in (words[5:6] if "@" in words[4:5] else words[1:2]):
            return Change.NONE
        if channel == "+promoted-slave":
            return self._on_announced(words[6:8], words[2:4], now)
        if channel == "+failover-state-send-slaveof-noone":
            return self._on_promoting(_address_in(words[2:4]), now)
        if channel.startswith(_ABORT_PREFIX):
            return self._resume(now)
        return Change.ASK if channel in _SENTINEL_EVENTS or channel in REPLICA_EVENTS else Change.NONE

    def _on_promoting(self, candidate: Address | None, now: float) -> Change:
        # Once for a failover: another sentinel's connection may tell of it again, or when it is over.
        if now < self.held_until or candidate is None or candidate == self.primary or self._is_refuted(candidate, now):
            return Change.NONE
        self.generation += 1
        self._candidate = candidate
        self.held_until = now + self.hold_seconds
        return Change.HOLD

    def _on_announced(self, replaced: Sequence[str], promoted: Sequence[str], now: float) -> Change:
        primary = _address_in(promoted)
        if primary is None or self._is_refuted(primary, now):
            return Change.NONE
        if primary == self.primary:
            return self._resume(now)
        if self.primary is not None and self._may_be_stale(_address_in(replaced), primary):
            # While another one is believed, the sentinels may not know of it yet: they are asked after that.
            return Change.ASK if self.believed(now) is None else Change.NONE
        self._believed_until = now + BELIEF_SECONDS
        return self._switch(primary, now)

    def _may_be_stale(self, replaced: Address | None, promoted: Address) -> bool:
        """Whether a sentinel may announce an old failover, as one does that was frozen, or has none to announce.

        A failover back to a former primary is a new one if its beginning was announced.
        """
        return replaced != self.primary or (promoted in self._former and promoted != self._candidate)

    def on_election(self, election: Election, now: float) -> Change:
        """Take the outcome of asking the sentinels, of which at least half must have answered."""
        if election.primary is None or not election.is_representative or self.believed(now) is not None:
            return Change.NONE
        if election.primary == self.primary:
            return Change.NONE
        if now < self.held_until and election.primary != self._candidate:
            # Sentinels that do not know of the failover yet.
            return Change.NONE
        return self._switch(election.primary, now)

    def _switch(self, primary: Address, now: float) -> Change:
        before, self.primary, self.held_until, self._candidate = self.primary, primary, -inf, None
        self._former.discard(primary)
        if before is None:
            return Change.NONE
        if not self._is_refuted(before, now):
            self._former.add(before)
        return Change.SWITCH

    def _resume(self, now: float) -> Change:
        was_held = now < self.held_until
        self.held_until = -inf
        return Change.RESUME if was_held else Change.NONE

    def refute(self, address: Address, now: float) -> None:
        """Take the word of a server that it is no primary: it is not believed, and not announced again for a while."""
        self._refuted, self._refuted_until = address, now + _REFUTED_SECONDS
        self._former.discard(address)
        if address == self.primary:
            self._believed_until = -inf

    def _is_refuted(self, address: Address, now: float) -> bool:
        return address == self._refuted and now < self._refuted_until

    def forget(self) -> None:
        """Believe nothing, as a pool does that is closed: events may be missed while it is."""
        self.primary = self._candidate = None
        self._former.clear()
        self.held_until = self._believed_until = self._refuted_until = -inf

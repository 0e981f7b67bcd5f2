"""Which sentinels of a service are known, and where each is reached; without I/O."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from aioredis_monitored._topology.sentinel import Answer
from aioredis_monitored.config.addresses import Address, address_text

_random: Final = random.Random()  # noqa: S311 - nothing secret


@dataclass(eq=False, slots=True)
class Sentinel:
    """An address of a sentinel: one that others announce for it, or a given one, where any may be reached.

    Attributes:
        host: Where to connect to.
        port: The TCP port.
        given_as: The name or address under which the application has given it; ``None`` if another sentinel has.
        identity: Which sentinel it is that is announced there, or that was reached there last at a given address;
            ``None`` as long as that is unknown.
        is_announced: Whether other sentinels announce the address.
        problem: Why it did not answer last.
        refusal: The error, if that is because of the credentials, or of the rights of their user.
    """

    host: str
    port: int
    given_as: Address | None = None
    identity: str | None = None
    is_announced: bool = False
    problem: str = ""
    refusal: RedisError | None = None

    def __str__(self) -> str:
        return address_text(self.host, self.port)

    @property
    def address(self) -> Address:
        """Its host and port."""
        return self.host, self.port

    @property
    def unknown_identity(self) -> str:
        """What stands for the identity of a sentinel that does not say it, as those before 6.2."""
        return f"{self.host}:{self.port}"

    def identity_in(self, reply: object) -> str:
        """Return the identity in the reply to ``SENTINEL MYID``, or without one what was announced for the address."""
        return reply if isinstance(reply, str) else self.identity or self.unknown_identity

    def on_answer(self) -> None:
        """Take that it is there."""
        self.problem, self.refusal = "", None

    def on_failure(self, error: Exception) -> None:
        """Take why it does not answer."""
        self.problem = str(error) or type(error).__qualname__
        self.refusal = error if isinstance(error, AuthenticationError | NoPermissionError) else None

    @property
    def refuses_credentials(self) -> bool:
        """Whether it did not answer last because of the credentials."""
        return isinstance(self.refusal, AuthenticationError)


class KnownSentinels:
    """All sentinels of one service that are known: those that are given, all addresses of a name, and those they know.

    Args:
        given: The names or addresses of sentinels, each with its port.
        map_address: Maps an address that a sentinel announces to the one that is connected to.

    Attributes:
        given: The names or addresses of sentinels, each once.
        sentinels: Those that are known; one that is known at several addresses is in it with each of them.
    """

    def __init__(self, given: Iterable[Address], map_address: Callable[[str, int], Address]) -> None:
        self.given = tuple(dict.fromkeys(given))
        self.sentinels: list[Sentinel] = []
        self._map_address = map_address
        # The addresses of the given names, and why names could not be resolved.
        self._resolved: dict[Address, Sequence[Address]] = {}
        self._unresolved: dict[Address, str] = {}

    def count(self) -> int:
        """Return how many there are: a given name without the address of one that is known counts as another."""
        known = [each for each in self.sentinels if each.identity is not None]
        addresses = {each.address for each in known}
        others = [given for given in self.given if addresses.isdisjoint(self._resolved.get(given, ()))]
        return len({each.identity for each in known}) + len(others)

    def problems(self) -> list[str]:
        """Return why names could not be resolved, and sentinels did not answer last."""
        return [
            *(f"{address_text(*given)}: {reason}" for given, reason in self._unresolved.items()),
            *(f"{each}: {each.problem}" for each in self.sentinels if each.problem),
        ]

    def shared_place(self, sentinel: Sentinel) -> Sentinel | None:
        """Return a given address behind which a sentinel may be reached as well, if its own could not be last."""
        if sentinel.given_as is not None or not sentinel.problem:
            return None
        # A given address that is announced is that of one sentinel; any other may be one in front of several.
        shared = [each for each in self.sentinels if each.given_as and each.identity and not each.is_announced]
        return _random.choice(shared) if shared else None

    # The addresses of given names.

    def may_have_moved(self, given: Address) -> bool:
        """Whether a given name may have other addresses than those that are known."""
        addresses = self._resolved.get(given, ())
        return not addresses or any(each.problem for each in self.sentinels if each.address in addresses)

    def on_resolving(self, given: Address) -> None:
        """Take that a given name is being resolved."""
        if given not in self._resolved:
            self._unresolved.setdefault(given, "its name is being resolved")

    def on_unresolved(self, given: Address, reason: str) -> None:
        """Take why a given name could not be resolved; addresses that it had before are kept."""
        self._unresolved[given] = reason

    def on_resolved(self, given: Address, addresses: Sequence[Address]) -> None:
        """Take all addresses of a given name."""
        self._unresolved.pop(given, None)
        self._resolved[given] = addresses
        # The given ones last: several may be announced where one is given.
        in_order = sorted(self.sentinels, key=lambda each: each.given_as is not None)
        known = {each.address: each for each in in_order}
        for address in addresses:
            if address in known:
                known[address].given_as = given
            else:
                self.sentinels.append(Sentinel(*address, given))
        self.sentinels = [each for each in self.sentinels if each.given_as != given or each.address in addresses]

    # What sentinels answer.

    def learn(self, place: Sentinel, answer: Answer, *, keeps_identity: bool) -> None:
        """Take which sentinel was reached at an address, and which others that one knows.

        Args:
            place: Where it was reached.
            answer: What it has answered.
            keeps_identity: Whether a given address stands for the sentinel that was reached there before, and not for
                this one: that one is still followed there.
        """
        if place.given_as is not None and not keeps_identity:
            place.identity = answer.sentinel
        for identity, announced in answer.others.items():
            address = self._map_address(*announced)
            known = [each for each in self.sentinels if each.address == address]
            for each in known:
                if each.identity in {None, each.unknown_identity}:
                    each.identity = identity
                each.is_announced = each.is_announced or each.identity == identity
            # Also one that is known at another address: it may have moved, or be reached there by chance.
            if all(each.identity != identity for each in known):
                self.sentinels.append(Sentinel(*address, identity=identity, is_announced=True))

    def forget_unlisted(self, answers: Iterable[Answer]) -> None:
        """Forget the addresses at which no sentinel that has answered announces another one, unless they are given."""
        listed: dict[str | None, set[Address]] = {}
        for answer in answers:
            # One that has answered alone is where it was announced before.
            listed.setdefault(answer.sentinel, set())
            for identity, announced in answer.others.items():
                listed.setdefault(identity, set()).add(self._map_address(*announced))
        kept = []
        for each in self.sentinels:
            addresses = listed.get(each.identity)
            is_listed = addresses is not None and (not addresses or each.address in addresses)
            each.is_announced = each.is_announced and is_listed
            if is_listed or each.given_as is not None:
                kept.append(each)
        self.sentinels = kept

"""The addresses that are refused under ``catalog``: only those that are surely a registry's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from ipaddress import ip_network

from ramnet.core.allow import Addr, DenyList, Permit
from ramnet.core.config import Limits
from ramnet.core.dns import TYPE_A, TYPE_AAAA, parse_answer
from ramnet.core.events import WriteLeases
from ramnet.core.learner import Learner, Lesson
from ramnet.core.names import HostName
from ramnet.core.packet import Datagram, parse_packet
from ramnet.core.terms import Book
from ramnet.errors import WireError

# What a public name leads to only behind a gateway that answers for it (RFC 1918, 6598, 4193).
_PRIVATE = tuple(
    map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"))
)


class Denier(Learner):
    """The learner of the book ``deny``.

    A captive portal or a gateway answers for every name with an address of its own, which serves
    much else: what two registries lead to is neither's, nor is a private address.
    """

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits, Book.DENY)
        self._lists: tuple[DenyList, ...] = ()
        self._led: dict[HostName, dict[int, frozenset[Addr]]] = {}

    def permit(self, *allowed: Permit) -> None:
        """Refuse from now on what *all* of these refuse."""
        super().permit(*allowed)
        self._lists = tuple(item for item in allowed if isinstance(item, DenyList))
        self._led = {name: led for name, led in self._led.items() if self.ports_of(name)}

    def teach(
        self, name: HostName, addresses: Iterable[Addr], ttl: int, now: float
    ) -> Lesson | None:
        """Take in that the host of a refused registry leads to these addresses."""
        if not self.ports_of(name):
            return super().teach(name, addresses, ttl, now)
        found = tuple(addresses)
        for version in {address.version for address in found}:
            led = frozenset(address for address in found if address.version == version)
            self._led.setdefault(name, {})[version] = led
        common = self._shared_with_others(name)
        own = tuple(item for item in found if item not in common and not _private(item))
        lesson = super().teach(name, own, ttl, now)
        if lesson is None or not common:
            return lesson
        dropped = self.leases.retain(lambda _name, ip, _port: ip not in common, now)
        if not dropped:
            return lesson
        self._settled = {}
        write = lesson.write or WriteLeases((), (), self.book)
        return replace(lesson, write=replace(write, drop=(*write.drop, *dropped)))

    def refuse(
        self, name: HostName, packet: bytes, open_to_all: Callable[[Addr], bool], now: float
    ) -> Lesson | None:
        """Have every address of an answer refused; None where that cannot be.

        Then who hears the answer is refused when he connects, and is told why. ``open_to_all``
        tells of what the policy's registries lead to: that is refused to nobody.
        """
        parsed = parse_packet(packet)
        if not isinstance(parsed, Datagram) or not self.ports_of(name):
            return None
        try:
            answer = parse_answer(parsed.payload)
        except WireError:
            return None
        # What is cut off is asked for again, by TCP; other types may hint at addresses.
        if answer.truncated or answer.question.qtype not in (TYPE_A, TYPE_AAAA):
            return None
        if any(map(open_to_all, answer.addresses)):
            return None
        if not self._asked(parsed.flow, answer, parsed.payload, now):
            return None
        lesson = self.teach(name, answer.addresses, answer.ttl, now)
        known = all(self.leases.find(address, now) for address in answer.addresses)
        return lesson if known else None

    def _shared_with_others(self, name: HostName) -> frozenset[Addr]:
        """Return the addresses to which both ``name`` and another registry lead."""
        owner = self._owner(name)
        found: set[Addr] = set()
        for other, families in self._led.items():
            if self._owner(other) != owner:
                found.update(*families.values())
        own: set[Addr] = set().union(*self._led.get(name, {}).values())
        return frozenset(found & own)

    def _owner(self, name: HostName) -> str:
        return next((item.owners[name] for item in self._lists if name in item.owners), "")


def _private(address: Addr) -> bool:
    return any(address in net for net in _PRIVATE if net.version == address.version)

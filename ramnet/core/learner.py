"""What DNS answers teach: from packets to leases.

One owner at a time: the daemon guards it with a lock where the queue's thread shares it. Names that
are not allowed cost the look at their question and no more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from ramnet.core.allow import ANY_PORT, Permit
from ramnet.core.config import Limits
from ramnet.core.dns import Answer, parse_answer, parse_answer_head
from ramnet.core.events import Addr, WriteLeases
from ramnet.core.leases import Key, LeaseLimits, LeaseTable, Refusal
from ramnet.core.names import HostName, host_from_wire
from ramnet.core.packet import Datagram, Flow, Segment, parse_packet, udp_payload_at
from ramnet.core.queries import QueryLog
from ramnet.core.streams import Streams
from ramnet.core.terms import Book, Held
from ramnet.errors import WireError

_DNS_HEADER = 12

# How long an answer that taught nothing new is not looked at again when it comes again, octet for
# octet. A lease is renewed at half its life, which is never shorter than this by far.
SETTLED_SECONDS = 1.0
# Answers and names remembered so; when full, all are forgotten, which costs a look at each.
MAX_SETTLED = 8_192
MAX_NAMES = 16_384


class Ignored(StrEnum):
    """Why a DNS message taught nothing."""

    MALFORMED = "malformed"
    NO_QUERY = "no-matching-query"
    NOT_ALLOWED = "name-not-allowed"
    NO_ADDRESS = "no-address"
    NOT_TEACHABLE = "address-not-teachable"
    FULL = "limit-reached"


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a packet taught: ``write`` is what the kernel must be told before the packet may pass.

    ``keys`` are all pairs that the packet leads to, also those that need no write.
    """

    write: WriteLeases | None
    keys: tuple[Key, ...]


class Learner:
    """Owns the leases of one book, the queries that wait for an answer and the TCP streams."""

    def __init__(self, limits: Limits, book: Book = Book.ALLOW) -> None:
        self.book = book
        # Who learns from what this one hears as well, as far as its book is for it.
        self.also: Learner | None = None
        self.leases = LeaseTable(
            LeaseLimits(
                ttl_min=limits.lease_min_seconds,
                ttl_max=limits.lease_max_seconds,
                grace=limits.lease_grace_seconds,
                per_name=limits.leases_per_name,
                total=limits.leases_total,
            )
        )
        self.queries = QueryLog(limits.pending_queries)
        self.answers = 0
        self.learned = 0
        self.ignored: Counter[Ignored] = Counter()
        self._streams = Streams()
        self._allowed: tuple[Permit, ...] = ()
        self._names: dict[bytes, bool] = {}
        self._settled: dict[bytes, float] = {}

    def permit(self, *allowed: Permit) -> None:
        """Learn from now on what *all* of these allow: two while one policy replaces another."""
        self._allowed = allowed
        self._names, self._settled = {}, {}

    def ports_of(self, name: HostName) -> frozenset[int]:
        """Return the ports on which a name may be reached; empty when it is not allowed."""
        ports: frozenset[int] | None = None
        for allowed in self._allowed:
            found = allowed.ports_of(name)
            ports = found if ports is None else _both(ports, found)
        return ports or frozenset()

    def query(self, packet: bytes, now: float) -> None:
        """Keep the copy of a query whose answer could teach; others would only push those out."""
        start = udp_payload_at(packet)
        if start is None or self._allows(packet, start):
            self.queries.add(packet, now)

    def concerns(self, packet: bytes, now: float) -> bool:
        """Tell whether a packet with an answer needs a look: the hot path, without any lock.

        False is certain: the name is not allowed, or the very same answer was settled a moment
        ago. True is only a perhaps.
        """
        start = udp_payload_at(packet)
        if start is None:
            return True
        if self._settled.get(packet[start + 2 :], 0.0) > now:
            return False
        return self._allows(packet, start)

    def _allows(self, packet: bytes, start: int) -> bool:
        """Tell whether the question of the message at ``start`` is for a name that is allowed."""
        # No label of a host name holds a zero, so the name ends at the first.
        name = packet[start + _DNS_HEADER : packet.find(b"\0", start + _DNS_HEADER) + 1]
        # Held on to: a policy change in another thread puts a new dict in the place of this one.
        names = self._names
        known = names.get(name)
        if known is None:
            known = self._is_allowed(name)
            if len(names) >= MAX_NAMES:
                names.clear()
            names[name] = known
        return known

    def settled(self, packet: bytes, now: float) -> None:
        """Note that the kernel holds all that this packet teaches."""
        start = udp_payload_at(packet)
        if start is None:
            return
        if len(self._settled) >= MAX_SETTLED:
            self._settled = {}
        self._settled[packet[start + 2 :]] = now + SETTLED_SECONDS

    def _is_allowed(self, wire: bytes) -> bool:
        """Judge a name in uncompressed wire form; one that does not parse is nobody's."""
        labels: list[bytes] = []
        at = 0
        while at < len(wire) and wire[at]:
            labels.append(wire[at + 1 : at + 1 + wire[at]])
            at += 1 + wire[at]
        name = host_from_wire(tuple(labels))
        return name is not None and bool(self.ports_of(name))

    def packet(self, packet: bytes, now: float) -> list[Lesson]:
        """Take in an IP packet with answers; return what it taught, if anything."""
        parsed = parse_packet(packet)
        if isinstance(parsed, Datagram):
            messages = [parsed.payload]
        elif isinstance(parsed, Segment):
            messages = self._streams.feed(parsed)
        else:
            self.ignored[Ignored.MALFORMED] += 1
            return []
        return [one for message in messages for one in self.message(parsed.flow, message, now)]

    def message(self, flow: Flow, payload: bytes, now: float) -> list[Lesson]:
        """Take in one answer that came by ``flow``; return what it taught, if anything."""
        self.answers += 1
        try:
            head = parse_answer_head(payload)
            name = head.question.name
            if name is None or not self.ports_of(name):
                self._ignore(Ignored.NOT_ALLOWED)
                return []
            answer = parse_answer(payload)
        except WireError:
            self._ignore(Ignored.MALFORMED)
            return []
        if not answer.addresses:
            self._ignore(Ignored.NO_ADDRESS)
            return []
        if not self._asked(flow, answer, payload, now):
            self._ignore(Ignored.NO_QUERY)
            return []
        taught = [self.teach(name, answer.addresses, answer.ttl, now)]
        if self.also is not None and self.also.ports_of(name):
            taught.append(self.also.teach(name, answer.addresses, answer.ttl, now))
        return [lesson for lesson in taught if lesson is not None]

    def _asked(self, flow: Flow, answer: Answer, payload: bytes, now: float) -> bool:
        end = _DNS_HEADER + len(answer.question.wire) + 4
        return self.queries.asked(flow, answer.id, payload[_DNS_HEADER:end], now)

    def _ignore(self, why: Ignored) -> None:
        self.ignored[why] += 1

    def teach(
        self, name: HostName, addresses: Iterable[Addr], ttl: int, now: float
    ) -> Lesson | None:
        """Take in that an allowed name leads to these addresses."""
        ports = self.ports_of(name)
        if not ports:
            self._ignore(Ignored.NOT_ALLOWED)
            return None
        addresses = tuple(addresses)
        learned = self.leases.learn(name, addresses, ttl, ports, now)
        for _, why in learned.ignored:
            bad = why is Refusal.NOT_TEACHABLE
            self.ignored[Ignored.NOT_TEACHABLE if bad else Ignored.FULL] += 1
        self.learned += len(learned.write)
        if learned.drop:
            self._settled = {}
        keys = tuple((address, port) for address in addresses for port in ports)
        if not learned.write and not learned.drop:
            return Lesson(None, keys)
        add = tuple(
            Held(item.ip, item.port, item.timeout, name, self.book) for item in learned.write
        )
        return Lesson(WriteLeases(add, learned.drop, self.book), keys)


def _both(one: frozenset[int], other: frozenset[int]) -> frozenset[int]:
    """Return the ports that two policies agree on."""
    if ANY_PORT in one:
        return other
    return one if ANY_PORT in other else one & other

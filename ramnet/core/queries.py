"""Copies of the queries that left this machine: what an answer is held against before it teaches.

Queries are many, answers that teach are few. So a copy is kept as it came, under client port and
ID, and taken apart only when an answer would change something.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from ramnet.core.packet import Flow, Segment, parse_packet
from ramnet.core.streams import Streams

# How long an answer is waited for. Clients ask again after 5 s (resolv.conf(5)) with a new query.
QUERY_SECONDS: Final = 10.0

_DNS_HEADER: Final = 12
_UDP_HEADER: Final = 8
_QR: Final = 0x80
_ONE_QUESTION: Final = b"\x00\x01"
# A UDP packet as it came; of a TCP stream, a message and who sent it.
_Copy = bytes | tuple[Flow, bytes]
_NONE: Final[deque[_Copy]] = deque()


class QueryLog:
    """The copies of the last ``QUERY_SECONDS``, at most ``limit`` of them; the oldest go first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._order: deque[tuple[float, bytes]] = deque()
        self._copies: dict[bytes, deque[_Copy]] = {}
        self._streams = Streams()

    def __len__(self) -> int:
        return len(self._order)

    def add(self, packet: bytes, now: float) -> None:
        """Keep the copy of an IP packet that went to a trusted resolver."""
        key = _key(packet)
        if key is not None:
            self._keep(key, packet, now)
        else:
            parsed = parse_packet(packet)
            if isinstance(parsed, Segment):
                for message in self._streams.feed(parsed):
                    port = parsed.flow.source_port.to_bytes(2, "big")
                    self._keep(port + message[:2], (parsed.flow, message), now)
        self.expire(now)

    def _keep(self, key: bytes, copy: _Copy, now: float) -> None:
        self._order.append((now, key))
        self._copies.setdefault(key, deque()).append(copy)
        if len(self._order) > self._limit:
            self._forget_oldest()

    def expire(self, now: float) -> None:
        """Forget what is too old to be answered."""
        while self._order and now - self._order[0][0] > QUERY_SECONDS:
            self._forget_oldest()

    def asked(self, answer: Flow, ident: int, question: bytes, now: float) -> bool:
        """Tell whether a query with this ID and question left in the other direction.

        ``question`` is the answer's: name, type and class. Case does not count: clients mix it
        against spoofing and most, but not all, servers repeat it. A query has one answer: what was
        found is not found again.
        """
        self.expire(now)
        flow = answer.reverse
        port = flow.source_port.to_bytes(2, "big")
        wanted = question.lower()
        copies = self._copies.get(port + ident.to_bytes(2, "big"), _NONE)
        for index, copy in enumerate(copies):
            if _is_query(copy, flow, ident, wanted):
                copies[index] = b""  # its place is kept for the order of forgetting
                return True
        return False

    def _forget_oldest(self) -> None:
        _, key = self._order.popleft()
        copies = self._copies[key]
        copies.popleft()
        if not copies:
            del self._copies[key]


def _key(packet: bytes) -> bytes | None:
    """Return client port and ID of a query over UDP, None for anything else."""
    if not packet:
        return None
    if packet[0] >> 4 == 4:  # noqa: PLR2004 - IP version
        start, protocol = (packet[0] & 0x0F) * 4, packet[9:10]
    else:
        start, protocol = 40, packet[6:7]
    if protocol == b"\x11":
        ident = start + _UDP_HEADER
        key = packet[start : start + 2] + packet[ident : ident + 2]
        return key if len(key) == 4 else None  # noqa: PLR2004 - two times two octets
    return None


def _is_query(copy: _Copy, flow: Flow, ident: int, question: bytes) -> bool:
    """Compare whole: addresses, ports, ID, that it is a query, and that it is its only question."""
    if isinstance(copy, tuple):
        sent, payload = copy
    else:
        parsed = parse_packet(copy, cut=True)
        if parsed is None:
            return False
        sent, payload = parsed.flow, parsed.payload
    return (
        sent == flow
        and len(payload) >= _DNS_HEADER
        and payload[:2] == ident.to_bytes(2, "big")
        and not payload[2] & _QR
        and payload[4:6] == _ONE_QUESTION
        and payload[_DNS_HEADER:].lower().startswith(question)
    )

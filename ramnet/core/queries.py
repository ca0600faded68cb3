"""Copies of the queries that left this machine: what an answer is held against before it teaches.

Queries are many, answers that teach are few. So a copy is kept as it came, under client port and
ID, and taken apart only when an answer would change something.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from ramnet.core.packet import Flow, Segment, parse_packet

# How long an answer is waited for. Clients ask again after 5 s (resolv.conf(5)) with a new query.
QUERY_SECONDS: Final = 10.0

_DNS_HEADER: Final = 12
_UDP_HEADER: Final = 8
_QR: Final = 0x80
_ONE_QUESTION: Final = b"\x00\x01"
_NONE: Final[deque[bytes]] = deque()


class QueryLog:
    """The copies of the last ``QUERY_SECONDS``, at most ``limit`` of them; the oldest go first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._order: deque[tuple[float, bytes]] = deque()
        self._copies: dict[bytes, deque[bytes]] = {}

    def __len__(self) -> int:
        return len(self._order)

    def add(self, packet: bytes, now: float) -> None:
        """Keep the copy of an IP packet that went to a trusted resolver."""
        key = _key(packet)
        if key is None:
            return
        self._order.append((now, key))
        self._copies.setdefault(key, deque()).append(packet)
        if len(self._order) > self._limit:
            self._forget_oldest()
        self.expire(now)

    def expire(self, now: float) -> None:
        """Forget what is too old to be answered."""
        while self._order and now - self._order[0][0] > QUERY_SECONDS:
            self._forget_oldest()

    def asked(self, answer: Flow, ident: int, question: bytes, now: float) -> bool:
        """Tell whether a query with this ID and question left in the other direction.

        ``question`` is the answer's: name, type and class. Case does not count: clients mix it
        against spoofing and most, but not all, servers repeat it. Over UDP a query has one answer:
        what was found is not found again. (A TCP segment may hold several queries.)
        """
        self.expire(now)
        flow = answer.reverse
        port = flow.source_port.to_bytes(2, "big")
        wanted = question.lower()
        for key in (port + ident.to_bytes(2, "big"), port):
            copies = self._copies.get(key, _NONE)
            for index, packet in enumerate(copies):
                if _is_query(packet, flow, ident, wanted):
                    if key is not port:
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
    """Return client port and ID of a query over UDP, the client port alone over TCP."""
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
    parsed = parse_packet(packet, cut=True)
    if isinstance(parsed, Segment) and parsed.payload:
        return parsed.flow.source_port.to_bytes(2, "big")
    return None


def _is_query(packet: bytes, flow: Flow, ident: int, question: bytes) -> bool:
    """Compare whole: addresses, ports, ID, that it is a query, and that it is its only question."""
    parsed = parse_packet(packet, cut=True)
    if parsed is None or parsed.flow != flow:
        return False
    payload = parsed.payload
    folded = payload.lower()
    # Over TCP a segment may hold several messages, each behind two octets of length.
    start = folded.find(question, _DNS_HEADER)
    while start >= 0:
        header = payload[start - _DNS_HEADER : start]
        if (
            header[:2] == ident.to_bytes(2, "big")
            and not header[2] & _QR
            and header[4:6] == _ONE_QUESTION
        ):
            return True
        start = folded.find(question, start + 1)
    return False

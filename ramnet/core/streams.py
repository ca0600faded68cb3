"""DNS over TCP: messages out of segments (RFC 1035 section 4.2.2, RFC 7766).

Only what arrives in order is read; what arrives early waits, bounded, until the gap is closed. A
stream that breaks a bound is given up: its segments pass and teach nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from ramnet.core.packet import TCP_FIN, TCP_RST, TCP_SYN, Flow, Segment

# Streams followed at once. Clients use TCP for a truncated answer, one stream each.
MAX_STREAMS: Final = 512
# The octets of one stream that may wait: one message of the greatest length and its prefix, twice.
MAX_WAITING: Final = 2 * (65_535 + 2)
# Segments of one stream that may wait for a gap to close.
MAX_EARLY: Final = 64

_WRAP: Final = 1 << 32
_HALF: Final = 1 << 31


class _Stream:
    """One direction of a connection: what is next, and what waits."""

    __slots__ = ("buffer", "early", "next")

    def __init__(self, sequence: int) -> None:
        self.next = sequence
        self.buffer = bytearray()
        self.early: dict[int, bytes] = {}


class Streams:
    """The answers' direction of the TCP connections to resolvers."""

    def __init__(self) -> None:
        self._streams: OrderedDict[Flow, _Stream] = OrderedDict()
        self.given_up = 0

    def __len__(self) -> int:
        return len(self._streams)

    def feed(self, segment: Segment) -> list[bytes]:
        """Take a segment in and return the messages that it completes, in order.

        A stream is known from its SYN; a segment of one that is not returns nothing.
        """
        flow = segment.flow
        if segment.flags & TCP_SYN:
            self._streams[flow] = _Stream(segment.sequence)
            self._streams.move_to_end(flow)
            while len(self._streams) > MAX_STREAMS:
                self._streams.popitem(last=False)
        stream = self._streams.get(flow)
        if stream is None:
            return []
        if segment.payload and not _take(stream, segment.sequence, segment.payload):
            del self._streams[flow]
            self.given_up += 1
            return []
        done = _messages(stream.buffer)
        if segment.flags & TCP_RST or (segment.flags & TCP_FIN and not stream.early):
            del self._streams[flow]
        return done


def _take(stream: _Stream, sequence: int, payload: bytes) -> bool:
    """Append what continues the stream; keep what is early. False when a bound is broken."""
    ahead = (sequence - stream.next) % _WRAP
    if ahead >= _HALF:  # begins in the past: a retransmission, perhaps with something new behind
        known = _WRAP - ahead
        if known >= len(payload):
            return True
        payload = payload[known:]
        ahead = 0
    if ahead:
        waiting = sum(map(len, stream.early.values())) + len(payload)
        if max(ahead, waiting) > MAX_WAITING or len(stream.early) >= MAX_EARLY:
            return False
        kept = stream.early.get(sequence, b"")
        stream.early[sequence] = max(kept, payload, key=len)
        return True
    _append(stream, payload)
    while stream.early and len(stream.buffer) <= MAX_WAITING:
        start = min(stream.early, key=lambda at: (at - stream.next + _HALF) % _WRAP)
        known = (stream.next - start) % _WRAP
        if known >= _HALF:  # begins behind a gap that is still open
            break
        _append(stream, stream.early.pop(start)[known:])
    return len(stream.buffer) <= MAX_WAITING


def _append(stream: _Stream, payload: bytes) -> None:
    stream.buffer += payload
    stream.next = (stream.next + len(payload)) % _WRAP


def _messages(buffer: bytearray) -> list[bytes]:
    """Cut the complete messages off the front of the buffer."""
    found: list[bytes] = []
    while len(buffer) >= 2:  # noqa: PLR2004 - the two octets of the length
        end = 2 + (buffer[0] << 8 | buffer[1])
        if len(buffer) < end:
            break
        found.append(bytes(buffer[2:end]))
        del buffer[:end]
    return found

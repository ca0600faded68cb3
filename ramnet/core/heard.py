"""Names that were heard in DNS answers: what an address was called when somebody asked for it.

For the record only: no answer in here opens or refuses anything, and none of them was proven. Most
answers are never asked about, so they are kept as they came and taken apart when a refusal wants
the name of an address.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from ramnet.core.dns import parse_answer
from ramnet.core.names import HostName
from ramnet.core.packet import Datagram, Segment, parse_packet
from ramnet.errors import WireError

Addr = IPv4Address | IPv6Address

#: Answers kept as they came: those of a few seconds of a busy machine. A connection follows its
#: answer within milliseconds.
MAX_ANSWERS: Final = 2_048
#: Octets of an answer, its IP packet included: the usual limit of EDNS. A larger one is not kept.
#: With the number above, at most 8 MiB; answers have 100 to 300.
MAX_ANSWER_BYTES: Final = 4_096
#: Addresses whose names are known; those that were heard of longest ago go first.
MAX_ADDRESSES: Final = 8_192
#: Names of one address, the latest: a CDN has thousands, a record shows one.
MAX_NAMES: Final = 4

#: Answers taken apart for one name, the latest: the rest waits for the next. What was refused just
#: now was heard of just now.
MAX_AT_ONCE: Final = 128

_LENGTH: Final = 2  # of a message in a stream (RFC 1035 section 4.2.2)


class HeardNames:
    """``heard`` may be called from any thread, ``names_of`` from one at a time."""

    def __init__(self) -> None:
        self._waiting: deque[bytes] = deque(maxlen=MAX_ANSWERS)
        self._names: OrderedDict[Addr, tuple[HostName, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._names)

    @property
    def waiting(self) -> int:
        """How many answers are kept as they came."""
        return len(self._waiting)

    def heard(self, packet: bytes) -> None:
        """Keep an IP packet with an answer. Costs an append: the hot path."""
        if len(packet) <= MAX_ANSWER_BYTES:
            self._waiting.append(packet)

    def names_of(self, address: Addr) -> tuple[HostName, ...]:
        """Return the names whose chain ended at an address, the one heard last first."""
        self._take_in()
        return self._names.get(address, ())

    def _take_in(self) -> None:
        packets: list[bytes] = []
        while self._waiting and len(packets) < MAX_AT_ONCE:
            packets.append(self._waiting.pop())
        for packet in reversed(packets):
            for message in _messages(packet):
                self._learn(message)

    def _learn(self, message: bytes) -> None:
        try:
            answer = parse_answer(message)
        except WireError:
            return
        name = answer.question.name
        if name is None:
            return
        for address in answer.addresses:
            others = (item for item in self._names.pop(address, ()) if item != name)
            self._names[address] = (name, *others)[:MAX_NAMES]
            if len(self._names) > MAX_ADDRESSES:
                self._names.popitem(last=False)


def _messages(packet: bytes) -> tuple[bytes, ...]:
    """Return the DNS message of a datagram, or of a TCP segment that holds a whole one."""
    parsed = parse_packet(packet)
    if isinstance(parsed, Datagram):
        return (parsed.payload,)
    if isinstance(parsed, Segment):
        length = int.from_bytes(parsed.payload[:_LENGTH], "big")
        if length == len(parsed.payload) - _LENGTH:
            return (parsed.payload[_LENGTH:],)
    return ()

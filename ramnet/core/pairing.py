"""From the copy of a refused packet, and what the notice saw of its connection, to one record."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from ramnet.core.activity import Addr, NameFrom, Record, RefusalCopy, Seen, Verdict
from ramnet.core.packet import Segment, address_of, parse_packet
from ramnet.core.terms import TrafficClass

#: How long a refusal waits for what the notice saw, and the other way round. A client says its name
#: within milliseconds of the connection; who waits for it longer reads a name that was looked up.
PAIR_SECONDS: Final = 1.5
#: Of either that wait. More connections than that at once are recorded without waiting.
MAX_WAITING: Final = 2_048

_IPV4_SIZE: Final = 20
_IPV6_SIZE: Final = 40

#: A connection: source, its port, target, its port.
Ends = tuple[Addr, int, Addr, int]


def refused(copy: RefusalCopy, time: float) -> tuple[Record, Ends | None]:
    """Make the record of a copy, without name and reason; with the ends of a TCP connection."""
    blank = Record(copy.verdict, time, time, copy.traffic, uid=copy.uid, interface=_interface(copy))
    parsed = parse_packet(copy.packet, cut=True)
    if parsed is None:
        plain = _addresses(copy.packet)
        return replace(blank, source=plain[0], address=plain[1]), None
    flow = parsed.flow
    source, target = address_of(flow.source), address_of(flow.target)
    tcp = isinstance(parsed, Segment)
    record = replace(
        blank,
        source=str(source),
        address=str(target),
        port=flow.target_port,
        protocol="tcp" if tcp else "udp",
    )
    return record, (source, flow.source_port, target, flow.target_port) if tcp else None


def _interface(copy: RefusalCopy) -> str:
    """Return where it came in; of what never did (macvlan), where it was about to leave."""
    if copy.traffic is TrafficClass.CONTAINERS:
        return copy.indev or copy.outdev
    return copy.indev


def answered(name: str, packet: bytes, time: float, verdict: Verdict, *, forwarded: bool) -> Record:
    """Make the record of a DNS answer that says that ``name`` does not exist, to whoever asked."""
    parsed = parse_packet(packet)
    return Record(
        verdict,
        time,
        time,
        TrafficClass.CONTAINERS if forwarded else TrafficClass.HOST,
        source="" if parsed is None else str(address_of(parsed.flow.target)),
        name=name,
        name_from=NameFrom.CATALOG,
        protocol="dns",
        why="answered that there is no such name",
    )


def _addresses(packet: bytes) -> tuple[str, str]:
    """Return source and target of a packet of another protocol, or one with more headers."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= _IPV4_SIZE:  # noqa: PLR2004
        return str(IPv4Address(packet[12:16])), str(IPv4Address(packet[16:20]))
    if version == 6 and len(packet) >= _IPV6_SIZE:  # noqa: PLR2004
        return str(IPv6Address(packet[8:24])), str(IPv6Address(packet[24:40]))
    return "", ""


class Pairing:
    """Holds refusals back until the notice has told their name, or for ``PAIR_SECONDS``.

    What the notice saw makes no record by itself: anybody can connect to it and say any name.
    """

    def __init__(self) -> None:
        self._refusals: dict[Ends, tuple[float, Record]] = {}
        self._seen: dict[Ends, tuple[float, Seen]] = {}

    def __len__(self) -> int:
        return len(self._refusals) + len(self._seen)

    def refusal(self, record: Record, ends: Ends, now: float) -> Record | None:
        """Take a refusal in; return it where there is nothing to wait for."""
        seen = self._seen.pop(ends, None)
        if seen is not None:
            return _named(record, seen[1])
        if ends in self._refusals:  # the same packet, sent again
            since, before = self._refusals[ends]
            again = replace(before, last=record.last, count=before.count + record.count)
            self._refusals[ends] = since, again
            return None
        if len(self._refusals) >= MAX_WAITING:
            return record
        self._refusals[ends] = now, record
        return None

    def seen(self, seen: Seen, now: float) -> Record | None:
        """Take in what the notice saw; return the refusal that it belongs to, if it is there."""
        ends = seen.source, seen.source_port, seen.address, seen.port
        waiting = self._refusals.pop(ends, None)
        if waiting is not None:
            return _named(waiting[1], seen)
        if len(self._seen) < MAX_WAITING:
            self._seen[ends] = now, seen
        return None

    def due(self, now: float) -> list[Record]:
        """Give up waiting for what is late; return the refusals among it."""
        found: list[Record] = []
        for ends, (since, record) in list(self._refusals.items()):
            if now < since + PAIR_SECONDS:
                break  # in the order of their coming
            del self._refusals[ends]
            found.append(record)
        for ends, (since, _) in list(self._seen.items()):
            if now < since + PAIR_SECONDS:
                break
            del self._seen[ends]
        return found

    def close(self) -> list[Record]:
        """Return all that waits."""
        found = [record for _, record in self._refusals.values()]
        self._refusals.clear()
        self._seen.clear()
        return found


def _named(record: Record, seen: Seen) -> Record:
    if not seen.name:
        return record
    return replace(record, name=seen.name, name_from=seen.origin)


def notice_may_see(copy: RefusalCopy) -> bool:
    """Tell whether the connection may have been led to the notice: never what is forwarded."""
    return copy.verdict is Verdict.DENIED and copy.traffic is not TrafficClass.CONTAINERS

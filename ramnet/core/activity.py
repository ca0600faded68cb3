"""What was refused or failed, or changed in the policy: a record each, and the ledger of them.

A record is for people and for tools: who, what, when, why. Its JSON form is stable (schema 1).
Times are seconds since the epoch; the ledger counts its windows in seconds of CLOCK_MONOTONIC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final

from ramnet.core.names import MAX_PORT, HostName, parse_host
from ramnet.core.terms import TrafficClass
from ramnet.errors import NameFault

Addr = IPv4Address | IPv6Address

SCHEMA: Final = 1
#: The same thing again within this time is counted, not written.
WINDOW_SECONDS: Final = 60.0
#: New records of one verdict and class: so many at once, and so many a second after that. With
#: these the store, however hard somebody knocks, goes back for hours; a pull retries a few times.
BURST: Final = 300
PER_SECOND: Final = 2.0
#: How often the number of those left out is told.
TELL_SECONDS: Final = 60.0
#: Characters of a text in a record: a sentence, a path.
MAX_TEXT: Final = 500
#: More than ever happens in a window; what is read back is held against it.
MAX_COUNT: Final = 2**53
MAX_UID: Final = 2**32 - 1


class Verdict(StrEnum):
    """What became of it. ``denied`` is ours; ``failed`` is the network's, or a resolver's."""

    DENIED = "denied"
    WOULD_DENY = "would-deny"
    FAILED = "failed"
    POLICY = "policy"


#: What we did, or would have done.
REFUSALS: Final = frozenset({Verdict.DENIED, Verdict.WOULD_DENY})

# How a journal shows it (syslog(3)): what failed is for somebody to look at.
_PRIORITIES: Final = {
    Verdict.DENIED: "5",
    Verdict.WOULD_DENY: "6",
    Verdict.FAILED: "4",
    Verdict.POLICY: "5",
}


class NameFrom(StrEnum):
    """Where a name is from.

    The first three are what the client itself said to the notice. ``lease`` and ``catalog`` were
    looked up or learned; ``dns`` was only heard in an answer that led to the address.
    """

    SNI = "sni"
    HOST = "host"
    CONNECT = "connect"
    LEASE = "lease"
    CATALOG = "catalog"
    DNS = "dns"
    POLICY = "policy"


#: What a client says itself.
SAID: Final = frozenset({NameFrom.SNI, NameFrom.HOST, NameFrom.CONNECT})

_TEXTS: Final = (
    "source",
    "interface",
    "cgroup",
    "name",
    "address",
    "protocol",
    "why",
    "file",
    "digest",
)


@dataclass(frozen=True, slots=True)
class RefusalCopy:
    """A copy of the first octets of a refused packet; ``uid`` is of the socket, if it has one.

    ``indev`` and ``outdev`` are names of devices, empty where there is none.
    """

    verdict: Verdict
    traffic: TrafficClass
    packet: bytes
    uid: int | None = None
    gid: int | None = None
    indev: str = ""
    outdev: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the notice saw of a redirected connection; ``name`` is empty where it said none.

    ``address`` and ``port`` are where the client wanted to go.
    """

    name: str
    origin: NameFrom
    address: Addr
    port: int
    source: Addr
    source_port: int


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the record: ``count`` times between ``first`` and ``last``.

    ``left_out`` is not 0 in a record that only tells how many there was no room for. ``source`` is
    an address in text; what is not known is empty or None. ``file`` and ``digest`` are those of a
    policy.
    """

    verdict: Verdict
    first: float
    last: float
    traffic: TrafficClass | None = None
    uid: int | None = None
    source: str = ""
    interface: str = ""
    cgroup: str = ""
    name: str = ""
    name_from: NameFrom | None = None
    address: str = ""
    port: int | None = None
    protocol: str = ""
    why: str = ""
    count: int = 1
    file: str = ""
    digest: str = ""
    left_out: int = 0

    @property
    def who(self) -> str:
        """Say whose it was, for a person."""
        user = "" if self.uid is None else f"uid {self.uid}"
        source = f"{self.source} on {self.interface}" if self.interface else self.source
        return ", ".join(filter(None, (self.cgroup, user or source)))

    @property
    def what(self) -> str:
        """Say what was wanted, for a person: the name and the address, and the port."""
        port = "" if self.port is None else f":{self.port}"
        plain = f"[{self.address}]" if ":" in self.address and port else self.address
        if not self.name:
            return f"{plain}{port}"
        heard = " (heard in DNS)" if self.name_from is NameFrom.DNS else ""
        behind = f" at {self.address}" if self.address else ""
        return f"{self.name}{port}{behind}{heard}"

    @property
    def sentence(self) -> str:
        """Say all of it in one line."""
        times = f" ({self.count} times)" if self.count > 1 else ""
        head = " ".join(filter(None, (self.verdict, self.traffic, self.what)))
        by = f" by {self.who}" if self.who else ""
        return f"{head}{by}: {self.why}{times}"


def _text(value: object) -> str:
    return value[:MAX_TEXT] if isinstance(value, str) else ""


def _whole(value: object, least: int, most: int) -> int | None:
    good = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
    return value if good else None  # type: ignore[return-value] # an int, as just seen


def time_text(seconds: float) -> str:
    """Write a time as ISO 8601 in UTC, with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def plain_record(record: Record) -> dict[str, Any]:
    """Give a record as JSON values: always the same keys, null where nothing is known."""
    return {
        "schema": SCHEMA,
        "time": time_text(record.first),
        "last": time_text(record.last),
        "verdict": str(record.verdict),
        "class": record.traffic and str(record.traffic),
        "uid": record.uid,
        "source": record.source or None,
        "interface": record.interface or None,
        "cgroup": record.cgroup or None,
        "name": record.name or None,
        "name_from": record.name_from and str(record.name_from),
        "heard": record.name_from is NameFrom.DNS,
        "address": record.address or None,
        "port": record.port,
        "protocol": record.protocol or None,
        "why": record.why,
        "count": record.count,
        "file": record.file or None,
        "digest": record.digest or None,
        "left_out": record.left_out,
    }


def journal_fields(record: Record) -> dict[str, str]:
    """Give a record as the fields of a journal entry; what is not known is left out."""
    plain = plain_record(record)
    own = {f"RAMNET_{key.upper()}": str(value) for key, value in plain.items() if value is not None}
    return {
        "MESSAGE": record.sentence,
        "PRIORITY": _PRIORITIES[record.verdict],
        "SYSLOG_IDENTIFIER": "ramnet",
        **own,
    }


def record_of(plain: object) -> Record | None:
    """Read the JSON form of a record; None for what is none, or of another schema.

    The file may have been cut off or written over: nothing in it is taken on trust.
    """
    if not isinstance(plain, dict) or plain.get("schema") != SCHEMA:
        return None
    try:
        verdict = Verdict(str(plain.get("verdict")))
        traffic = TrafficClass(plain["class"]) if plain.get("class") is not None else None
        origin = NameFrom(plain["name_from"]) if plain.get("name_from") is not None else None
        first, last = _seconds(plain.get("time")), _seconds(plain.get("last"))
    except (ValueError, TypeError, OverflowError):
        return None
    count = _whole(plain.get("count"), 0, MAX_COUNT)
    left_out = _whole(plain.get("left_out"), 0, MAX_COUNT)
    if count is None or left_out is None:
        return None
    return Record(
        verdict,
        first,
        last,
        traffic=traffic,
        uid=_whole(plain.get("uid"), 0, MAX_UID),
        name_from=origin,
        port=_whole(plain.get("port"), 0, MAX_PORT),
        count=count,
        left_out=left_out,
        **{key: _text(plain.get(key)) for key in _TEXTS},
    )


def seen_of(plain: object) -> Seen | None:
    """Read what the responder tells; None for anything that is not exactly that.

    The responder has no privilege and speaks with anybody: its word is checked like the wire's.
    """
    if not isinstance(plain, Mapping):
        return None
    port = _whole(plain.get("port"), 1, MAX_PORT)
    source_port = _whole(plain.get("source_port"), 1, MAX_PORT)
    if port is None or source_port is None:
        return None
    try:
        origin = NameFrom(str(plain.get("from")))
        address, source = _address(plain.get("address")), _address(plain.get("source"))
        name: HostName | str = parse_host(plain["name"]) if plain.get("name") else ""
    except (ValueError, TypeError, AttributeError, NameFault):
        return None
    if origin not in SAID:
        return None
    return Seen(name, origin, address, port, source, source_port)


def _address(text: object) -> Addr:
    if not isinstance(text, str):
        raise TypeError("an address is a text")
    found = ip_address(text)
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return mapped or found


def _seconds(text: object) -> float:
    if not isinstance(text, str):
        raise TypeError("a time is a text")
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError("a time without a zone")
    return found.timestamp()


@dataclass(slots=True)
class _Bucket:
    """Room for new records of one verdict and class; ``left_out`` found none."""

    room: float
    at: float
    left_out: int = 0
    told: float = 0.0
    first: float = 0.0
    last: float = 0.0


@dataclass(slots=True)
class _Window:
    """What came again since ``opened``, and is to be told when the window closes."""

    opened: float
    again: Record | None = None


_Kind = tuple[Verdict, TrafficClass | None]


class Ledger:
    """Decides what is written: the first of its kind at once, the same again once a window.

    Each verdict and class has a limit of its own, so that a flood of one hides nothing of another.
    Only what the limit let through opens a window: their number is bounded by it.
    """

    def __init__(self) -> None:
        self._windows: dict[tuple[Any, ...], _Window] = {}
        self._buckets: dict[_Kind, _Bucket] = {}

    def __len__(self) -> int:
        return len(self._windows)

    def add(self, record: Record, now: float) -> Record | None:
        """Take a record in; return what is to be written at once, if anything is."""
        key = _key(record)
        window = self._windows.get(key)
        if window is not None and now < window.opened + WINDOW_SECONDS:
            window.again = record if window.again is None else _both(window.again, record)
            return None
        bucket = self._bucket(record, now)
        bucket.room = min(BURST, bucket.room + (now - bucket.at) * PER_SECOND)
        bucket.at = now
        if bucket.room < 1:
            self.leave_out(record, now)
            return None
        bucket.room -= 1
        self._windows[key] = _Window(now)
        before = window.again if window is not None else None
        return record if before is None else _both(before, record)

    def leave_out(self, record: Record, now: float) -> None:
        """Count a record, with all that it counts, among those that there was no room for."""
        bucket = self._bucket(record, now)
        if not bucket.left_out:
            bucket.first = record.first
        bucket.left_out += record.count
        bucket.last = max(bucket.last, record.last)

    def due(self, now: float) -> list[Record]:
        """Close the windows that are over; return what came in them, and what was left out."""
        found: list[Record] = []
        for key, window in list(self._windows.items()):  # in the order of their opening, nearly
            if now >= window.opened + WINDOW_SECONDS:
                del self._windows[key]
                if window.again is not None:
                    found.append(window.again)
        for kind, bucket in self._buckets.items():
            if bucket.left_out and now >= bucket.told + TELL_SECONDS:
                found.append(_left_out(kind, bucket))
                bucket.left_out, bucket.told = 0, now
        return found

    def close(self) -> list[Record]:
        """Return all that was not told yet."""
        found = [window.again for window in self._windows.values() if window.again is not None]
        found += [_left_out(kind, item) for kind, item in self._buckets.items() if item.left_out]
        self._windows.clear()
        self._buckets.clear()
        return found

    def _bucket(self, record: Record, now: float) -> _Bucket:
        kind = record.verdict, record.traffic
        found = self._buckets.get(kind)
        if found is None:
            found = self._buckets[kind] = _Bucket(BURST, now, told=now - TELL_SECONDS)
        return found


def _key(record: Record) -> tuple[Any, ...]:
    who = record.traffic, record.uid, record.source, record.interface, record.cgroup
    what = record.name, record.address, record.port, record.protocol
    return record.verdict, who, what, record.why, record.digest


def _both(one: Record, other: Record) -> Record:
    first, last = min(one.first, other.first), max(one.last, other.last)
    return replace(one, first=first, last=last, count=one.count + other.count)


def _left_out(kind: _Kind, bucket: _Bucket) -> Record:
    verdict, traffic = kind
    why = f"{bucket.left_out} more were left out: too many in a short time"
    return Record(
        verdict,
        bucket.first,
        bucket.last,
        traffic=traffic,
        why=why,
        count=0,
        left_out=bucket.left_out,
    )

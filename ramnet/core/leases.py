"""Which addresses are open right now, because which names led there, and for how long.

A lease is one element of the kernel's set: an (address, port) pair with an expiry. The table says
which elements to write and which to delete; it does no I/O and never reads a clock. Times are
seconds of CLOCK_MONOTONIC. Like the timeouts of set elements in the kernel, that clock stands still
while the host sleeps, so the two stay together.

The table never claims more than the kernel holds: a lease is here for as long as its element was
told to live. Each name that led to it has an expiry of its own, never later than the element's.
So an element stays while any of its names lasts, and may outlive the last one by a little.

Cost: every lease and every (lease, name) link stands in a heap by expiry. What was moved or removed
leaves a stale entry there, skipped on the way out and swept when stale ones outnumber the live. So
learning is O(log n) amortised for each address that changes, O(1) for one that is known, and memory
stays within a constant factor of ``LeaseLimits``.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv6Address
from itertools import count
from math import ceil, inf
from typing import Final, Generic, TypeVar

from ramnet.core.addresses import IPAddress, teachable
from ramnet.core.names import HostName

#: What a lease is about: address and TCP/UDP port.
Key = tuple[IPAddress, int]


#: Stale heap entries that are not worth a sweep yet.
_STALE_ALLOWANCE: Final = 64


class Refusal(StrEnum):
    """Why an address was not learned."""

    NOT_TEACHABLE = "not-teachable"  #: no answer may open such an address
    NAME_FULL = "name-full"  #: this one answer holds more than a name may have
    TABLE_FULL = "table-full"


@dataclass(frozen=True, slots=True)
class LeaseLimits:
    """The bounds of a lease table. Times in seconds; their defaults are the configuration's."""

    #: TTLs below this are raised to it: CDNs answer with a few seconds, clients keep it for longer.
    ttl_min: float
    #: TTLs above this are cut to it, so that a wrong answer does not stay for weeks.
    ttl_max: float
    #: Added to each lease: who uses the address in the last second of the TTL still has to dial.
    grace: float
    #: (address, port) pairs a name. S3 answers with other addresses every few seconds; Cilium went
    #: from 50 to 1,000 addresses a name for that.
    per_name: int
    #: Leases, and as many links of a name to a lease. Each with one link takes 1.3 kB.
    total: int
    #: Names a lease. Thousands of names share an address at a CDN; those in use are few.
    names_per_lease: int = 64


@dataclass(frozen=True, slots=True)
class Write:
    """An element that the kernel is to hold for ``timeout`` whole seconds from now.

    It may be there already: one that is about to expire is not safely told from one that is gone,
    so add, delete and add again in one transaction.
    """

    ip: IPAddress
    port: int
    timeout: int


@dataclass(frozen=True, slots=True)
class Learned:
    """What an answer changes. No key is both in ``write`` and in ``drop``.

    ``known`` counts the pairs whose element lives long enough without a write; ``ignored`` has an
    entry for each pair that was not learned.
    """

    write: tuple[Write, ...]
    drop: tuple[Key, ...]
    known: int
    ignored: tuple[tuple[IPAddress, Refusal], ...]


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease as seen at one moment.

    ``remaining`` is in seconds. ``names`` are those whose own lease still runs, the longest first;
    none are left when the element was read back from the kernel without them, or outlives them.
    """

    ip: IPAddress
    port: int
    remaining: float
    names: tuple[HostName, ...]


class _Timed:
    """Something with an expiry that heaps refer to.

    ``ticket`` tells the heap entry that counts from stale ones; 0 is nobody's: it is gone.
    """

    __slots__ = ("due", "ticket")

    def __init__(self) -> None:
        self.due = -inf
        self.ticket = 0


class _Element(_Timed):
    """A lease in the table; ``due`` is when the kernel drops the element."""

    __slots__ = ("ip", "links", "port")

    def __init__(self, ip: IPAddress, port: int) -> None:
        super().__init__()
        self.ip = ip
        self.port = port
        self.links: dict[HostName, _Link] = {}


class _Link(_Timed):
    """A name that led to an element; ``due`` is when the name's own lease ends."""

    __slots__ = ("element", "name")

    def __init__(self, element: _Element, name: HostName) -> None:
        super().__init__()
        self.element = element
        self.name = name


_T = TypeVar("_T", bound=_Timed)


class _Queue(Generic[_T]):
    """Items by expiry. ``live`` is kept by the owner: how many items stand in it for real."""

    __slots__ = ("_heap", "live")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, _T]] = []
        self.live = 0

    def __iter__(self) -> Iterator[_T]:
        return (item for _, ticket, item in self._heap if item.ticket == ticket)

    def push(self, item: _T) -> None:
        """Put an item in whose ``due`` and ``ticket`` are new."""
        heapq.heappush(self._heap, (item.due, item.ticket, item))
        if len(self._heap) > 2 * self.live + _STALE_ALLOWANCE:
            self._heap = [entry for entry in self._heap if entry[2].ticket == entry[1]]
            heapq.heapify(self._heap)

    def pop_due(self, now: float) -> Iterator[_T]:
        """Take out the items that are due at ``now``."""
        while self._heap and self._heap[0][0] <= now:
            _, ticket, item = heapq.heappop(self._heap)
            if item.ticket == ticket:
                yield item

    def first(self, usable: Callable[[_T], bool]) -> _T | None:
        """Find the usable item that is due first; it stays in."""
        passed: list[tuple[float, int, _T]] = []
        found: _T | None = None
        while self._heap and found is None:
            entry = heapq.heappop(self._heap)
            if entry[2].ticket == entry[1]:
                passed.append(entry)
                found = entry[2] if usable(entry[2]) else None
        for entry in passed:
            heapq.heappush(self._heap, entry)
        return found


class LeaseTable:
    """The leases of one traffic class. Not safe for threads: one owner.

    Every method that takes ``now`` first forgets what has run out by then.
    """

    def __init__(self, limits: LeaseLimits) -> None:
        self.limits = limits
        #: How many pairs were not learned, by reason, since the table was made.
        self.refused: Counter[Refusal] = Counter()
        self._by_ip: dict[IPAddress, dict[int, _Element]] = {}
        self._by_name: dict[HostName, _Queue[_Link]] = {}
        self._elements: _Queue[_Element] = _Queue()
        self._links: _Queue[_Link] = _Queue()
        self._tickets = count(1)

    def __len__(self) -> int:
        return self._elements.live

    def learn(
        self,
        name: HostName,
        addresses: Iterable[IPAddress],
        ttl: int,
        ports: Collection[int],
        now: float,
    ) -> Learned:
        """Take in that ``name`` leads to ``addresses`` for ``ttl`` seconds; open ``ports`` there.

        The lease runs for the TTL, clamped, plus grace. No write is needed while at least half of
        that is left and no less than the TTL itself and half the grace: whoever heard this answer
        may use the address for all of its TTL. The caller must `discard` what the kernel refused.

        A name that is over its cap loses the pair of its own that runs out first, never one of this
        answer. A full table refuses new pairs instead: dropping leases of others would let one
        zone with endless addresses cut off every registry, while room comes back by itself as
        leases run out.
        """
        self.expire(now)
        limits = self.limits
        timeout = ceil(min(max(ttl, limits.ttl_min), limits.ttl_max) + limits.grace)
        enough = max(timeout / 2, min(ttl, limits.ttl_max) + limits.grace / 2)
        write: list[Write] = []
        drop: list[Key] = []
        ignored: list[tuple[IPAddress, Refusal]] = []
        known = 0
        pairs = dict.fromkeys((_as_sent(ip), port) for ip in addresses for port in ports)
        for pair in pairs:
            ip, port = pair
            element = self._get(ip, port)
            if element is None or name not in element.links:
                refusal = self._make_room(name, element, pair, pairs, drop)
                if refusal is not None:
                    ignored.append((ip, refusal))
                    continue
            if element is None:
                element = self._add(ip, port)
            if element.due - now < enough:
                self._extend(element, now + timeout)
                write.append(Write(ip, port, timeout))
            else:
                known += 1
            self._link(element, name, min(now + timeout, element.due))
        self.refused.update([reason for _, reason in ignored])
        return Learned(tuple(write), tuple(drop), known, tuple(ignored))

    def restore(
        self, ip: IPAddress, port: int, name: HostName | None, expires_in: float, now: float
    ) -> bool:
        """Take in an element that the kernel holds for ``expires_in`` more seconds.

        Call it once for each name that is known. A name that is full is left out. False means that
        the table will not hold the element: the caller should delete it.
        """
        self.expire(now)
        if not expires_in > 0 or _as_sent(ip) != ip or not teachable(ip):
            return False
        element = self._get(ip, port)
        if element is None:
            if self._elements.live >= self.limits.total:
                return False
            element = self._add(ip, port)
        if now + expires_in > element.due:
            self._extend(element, now + expires_in)
        if name is not None and (name in element.links or self._has_room(name)):
            self._link(element, name, now + expires_in)
        return True

    def discard(self, ip: IPAddress, port: int) -> bool:
        """Forget one lease because the kernel does not hold it; tell whether it was here."""
        element = self._get(ip, port)
        if element is None:
            return False
        self._remove(element)
        return True

    def expire(self, now: float) -> tuple[Key, ...]:
        """Forget what has run out; return the leases that ended (the kernel has dropped them)."""
        for link in self._links.pop_due(now):
            self._unlink(link)
        ended: list[Key] = []
        for element in self._elements.pop_due(now):
            self._remove(element)
            ended.append((element.ip, element.port))
        return tuple(ended)

    def retain(
        self, allowed: Callable[[HostName, IPAddress, int], bool], now: float
    ) -> tuple[Key, ...]:
        """Keep what a new policy allows: forget names, and drop the leases left without any.

        A lease without a name is dropped too, since nothing says that the policy allows it.
        Returns what was dropped, to be deleted in the kernel.
        """
        self.expire(now)
        dropped: list[Key] = []
        for element in list(self._all()):
            for link in list(element.links.values()):
                if not allowed(link.name, element.ip, element.port):
                    self._unlink(link)
            if not element.links:
                self._remove(element)
                dropped.append((element.ip, element.port))
        return tuple(dropped)

    def find(self, ip: IPAddress, now: float) -> tuple[Lease, ...]:
        """Look up the leases of an address, one for each port."""
        self.expire(now)
        return tuple(_seen(element, now) for element in self._by_ip.get(_as_sent(ip), {}).values())

    def by_name(self, name: HostName, now: float) -> tuple[Lease, ...]:
        """Look up the leases that a name led to."""
        self.expire(now)
        return tuple(_seen(link.element, now) for link in self._by_name.get(name, ()))

    def snapshot(self, now: float) -> tuple[Lease, ...]:
        """List all leases, to build the ruleset from. The elements made so must live as long."""
        self.expire(now)
        return tuple(_seen(element, now) for element in self._all())

    def _all(self) -> Iterator[_Element]:
        return (element for ports in self._by_ip.values() for element in ports.values())

    def _get(self, ip: IPAddress, port: int) -> _Element | None:
        ports = self._by_ip.get(ip)
        return None if ports is None else ports.get(port)

    def _has_room(self, name: HostName) -> bool:
        mine = self._by_name.get(name)
        return self._links.live < self.limits.total and (
            mine is None or mine.live < self.limits.per_name
        )

    def _make_room(
        self,
        name: HostName,
        element: _Element | None,
        pair: Key,
        pairs: Collection[Key],
        drop: list[Key],
    ) -> Refusal | None:
        """Make room for one more link of ``name``, or say why there is none."""
        if element is None and not teachable(pair[0]):
            return Refusal.NOT_TEACHABLE
        mine = self._by_name.get(name)
        if mine is not None and mine.live >= self.limits.per_name:
            oldest = mine.first(lambda link: (link.element.ip, link.element.port) not in pairs)
            if oldest is None:
                return Refusal.NAME_FULL
            self._unlink(oldest)
            if not oldest.element.links:
                self._remove(oldest.element)
                drop.append((oldest.element.ip, oldest.element.port))
        full = self._links.live >= self.limits.total
        if full or (element is None and self._elements.live >= self.limits.total):
            return Refusal.TABLE_FULL
        return None

    def _add(self, ip: IPAddress, port: int) -> _Element:
        element = _Element(ip, port)
        self._by_ip.setdefault(ip, {})[port] = element
        self._elements.live += 1
        return element

    def _extend(self, element: _Element, due: float) -> None:
        element.due = due
        element.ticket = next(self._tickets)
        self._elements.push(element)

    def _link(self, element: _Element, name: HostName, due: float) -> None:
        """Let ``name`` hold the element until ``due``; an earlier answer is never cut short."""
        link = element.links.get(name)
        if link is None:
            if len(element.links) >= self.limits.names_per_lease:
                # The element stays; only who led there first is forgotten.
                self._unlink(min(element.links.values(), key=lambda one: one.due))
            link = element.links[name] = _Link(element, name)
            self._links.live += 1
            self._by_name.setdefault(name, _Queue()).live += 1
        elif due <= link.due:
            return
        link.due = due
        link.ticket = next(self._tickets)
        self._links.push(link)
        self._by_name[name].push(link)

    def _unlink(self, link: _Link) -> None:
        link.ticket = 0
        del link.element.links[link.name]
        self._links.live -= 1
        mine = self._by_name[link.name]
        mine.live -= 1
        if not mine.live:
            del self._by_name[link.name]

    def _remove(self, element: _Element) -> None:
        for link in list(element.links.values()):
            self._unlink(link)
        element.ticket = 0
        self._elements.live -= 1
        ports = self._by_ip[element.ip]
        del ports[element.port]
        if not ports:
            del self._by_ip[element.ip]


def _as_sent(ip: IPAddress) -> IPAddress:
    """Turn an IPv4-mapped address into the IPv4 address that its packets carry."""
    mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
    return ip if mapped is None else mapped


def _seen(element: _Element, now: float) -> Lease:
    links = sorted(element.links.values(), key=lambda link: -link.due)
    return Lease(element.ip, element.port, element.due - now, tuple([link.name for link in links]))

"""What a policy and the catalogue say of one host or address: the first steps of ``explain``.

The verdict itself is ``ramnet.core.explain``'s; this finds the entries behind it, those that would
allow more than they do (another port, expired), and what the catalogue knows of the host.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from itertools import islice
from typing import Final

from ramnet.core.advice import Advice, Kind, advise
from ramnet.core.allow import HTTPS, LOCALHOST, Addr, AllowList, Grant, Network, expansion
from ramnet.core.catalog import Catalog, CatalogEntry, Owner, Role
from ramnet.core.explain import LOOPBACK, Target, covers
from ramnet.core.names import Address, HostName, HostPattern, parse_address
from ramnet.core.policy import DestinationEntry, Policy, RegistryEntry

Entry = RegistryEntry | DestinationEntry

# What a person reads of one host; a policy with more entries for it repeats itself.
MAX_BEARINGS: Final = 32
# Expired entries are expanded one by one, at about 0.1 ms each; the rest of such a policy is not.
MAX_EXPIRED: Final = 10_000
# Names that led to one address: at a CDN they are thousands.
MAX_NAMES: Final = 16


class Standing(StrEnum):
    """What an entry of the policy means for the target."""

    ALLOWS = "allows"
    OTHER_PORT = "other-port"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Bearing:
    """An entry of the policy that bears on the target.

    ``number`` counts the entries of its table in the file, from 1. ``pattern`` is what of it covers
    ``name``, or, where that is empty, the target's address.
    """

    number: int
    entry: Entry
    pattern: HostPattern | Network
    grant: Grant
    standing: Standing
    name: str = ""

    @property
    def table(self) -> str:
        """The table of the policy file that it is in."""
        return "destination" if isinstance(self.entry, DestinationEntry) else "registry"

    @property
    def admits(self) -> str:
        """What a wildcard lets in besides; empty where it is none."""
        if not (isinstance(self.pattern, HostPattern) and self.pattern.wildcard):
            return ""
        return f"{self.pattern} admits every name below {self.pattern.name}, whoever has it"


@dataclass(frozen=True, slots=True)
class Companion:
    """A host that clients of the target's registry contact as well, and whether they may."""

    pattern: HostPattern
    role: Role
    port: int
    allowed: bool
    optional: bool


@dataclass(frozen=True, slots=True)
class Rulebook:
    """A policy (None where none is valid), its expansion, and what both are read with."""

    policy: Policy | None
    allowed: AllowList
    catalog: Catalog
    today: date


@dataclass(frozen=True, slots=True)
class Background:
    """The policy's and the catalogue's part of an explanation."""

    bearings: tuple[Bearing, ...] = ()
    owners: tuple[Owner, ...] = ()
    companions: tuple[Companion, ...] = ()
    advice: Advice | None = None


def background(target: Target, names: Iterable[HostName], book: Rulebook) -> Background:
    """Find what stands behind the verdict on ``target``; ``names`` led to it, if an address.

    Looks at every entry of the policy: a million take about a second.
    """
    subjects = (target.host,) if target.host is not None else tuple(islice(names, MAX_NAMES))
    found = tuple(islice(_bearings(target, subjects, book), MAX_BEARINGS))
    owners = book.catalog.owners_of(target.host) if target.host is not None else ()
    entry = owners[0].entry if owners else None
    return Background(
        bearings=found,
        owners=owners,
        companions=tuple(_companions(entry, book)) if entry is not None else (),
        advice=_advice(target, found, owners, book),
    )


def _bearings(target: Target, names: tuple[HostName, ...], book: Rulebook) -> Iterator[Bearing]:
    """Yield the entries that cover the target on some port, in the order of the file."""
    policy = book.policy
    if policy is None:
        return
    grants = [grant for name in names for grant in book.allowed.names.find(name)]
    for address in addresses_of(target):
        grants += book.allowed.grants_for(address)
    addresses = {parse_address(grant.registry) for grant in grants}
    expired = 0
    for number, entry in enumerate(policy.registry, 1):
        if is_expired(entry, book.today):
            expired += 1
            if expired <= MAX_EXPIRED:
                yield from _covering(number, entry, target, names, book)
        elif entry.address in addresses:
            yield from _covering(number, entry, target, names, book)
    for number, destination in enumerate(policy.destination, 1):
        if destination.address in addresses:
            yield from _covering(number, destination, target, names, book)


def is_expired(entry: Entry, today: date) -> bool:
    """Whether an entry was in force and is not any more."""
    return isinstance(entry, RegistryEntry) and entry.expires is not None and entry.expires < today


def addresses_of(target: Target) -> tuple[Addr, ...]:
    """Return what a target is reached at without DNS."""
    if target.address is not None:
        return (target.address,)
    return LOOPBACK if target.host == LOCALHOST else ()


def _covering(
    number: int, entry: Entry, target: Target, names: tuple[HostName, ...], book: Rulebook
) -> Iterator[Bearing]:
    """Yield what of an entry covers the target, each once."""
    seen: set[tuple[object, Standing]] = set()
    for pattern, grant in expansion(entry, book.catalog):
        if isinstance(pattern, HostPattern):
            name: str | None = next((name for name in names if pattern.matches(name)), None)
        else:
            name = "" if any(address in pattern for address in addresses_of(target)) else None
        standing = Standing.ALLOWS if covers(grant, target.port) else Standing.OTHER_PORT
        if is_expired(entry, book.today):
            standing = Standing.EXPIRED
        if name is not None and (pattern, standing) not in seen:
            seen.add((pattern, standing))
            yield Bearing(number, entry, pattern, grant, standing, name)


def _companions(entry: CatalogEntry, book: Rulebook) -> Iterator[Companion]:
    for host in entry.hosts:
        port = HTTPS if HTTPS in host.ports else min(host.ports)
        # Of a wildcard, a name below it stands for all of them.
        name = HostName(f"x.{host.pattern.name}") if host.pattern.wildcard else host.pattern.name
        allowed = any(covers(grant, port) for grant in book.allowed.names.find(name))
        yield Companion(host.pattern, host.role, port, allowed, host.optional)


def _advice(
    target: Target, found: tuple[Bearing, ...], owners: tuple[Owner, ...], book: Rulebook
) -> Advice | None:
    """Say what to add; None where it is allowed, or nobody knows whose it is."""
    if target.host is None or any(item.standing is Standing.ALLOWS for item in found):
        return None
    over = (item for item in found if item.standing is Standing.EXPIRED)
    expired = next((item for item in over if covers(item.grant, target.port)), None)
    if expired is not None:
        return Advice(Kind.REGISTRY, str(expired.entry.address))
    port = None if target.port == HTTPS else target.port
    own = str(Address(HostPattern(target.host), None, port))
    if not owners or port is not None:
        return Advice(Kind.REGISTRY, own)
    entry = owners[0].entry
    if "*" in entry.key:  # whose account it is, the host does not tell
        return None
    named = {entry.key, *entry.aliases}
    listed = next((text for text in book.allowed.registries if text in named), entry.key)
    return advise(target.host, target.port, listed, book.policy, book.catalog)

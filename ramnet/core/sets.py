"""The sets of addresses that rules look into, and the rules that let their elements pass.

Host sets hold what was learned, with a timeout; static sets the networks of a policy. Every table
has its own: the kernel cannot share a set between two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, collapse_addresses

from ramnet.core.allow import ANY_PORT, Addr, AllowList, Network
from ramnet.core.ruleset import Rule, Set
from ramnet.core.terms import FAMILIES, Book, Held, element_of, host_set

# nft refuses a comment of 128 bytes or more; a longer name goes without.
_COMMENT = 128


@dataclass(frozen=True, slots=True)
class StaticSet:
    """The networks of one family that may be reached on ``port``, None for every one."""

    item: Set
    port: int | None
    destination: bool

    @property
    def ip(self) -> str:
        """How nft calls the family."""
        return "ip" if self.item.kind == "ipv4_addr" else "ip6"


def learned_sets(books: Iterable[Book], held: Iterable[Held], size: int) -> Iterator[Set]:
    """Make the host sets of these books with what is held; ``size`` is the number of leases.

    What is denied is denied on ports of its own, never on all of them.
    """
    learned = list(held)
    for book in books:
        for port in (1,) if book is Book.DENY else (1, ANY_PORT):
            for version, _ in FAMILIES:
                yield _learned_set(book, version, port, learned, size)


def _learned_set(book: Book, version: int, port: int, held: list[Held], size: int) -> Set:
    """Make the set of a book and family; ``port`` is ``ANY_PORT``, or 1 for any other."""
    elements = tuple(
        f"{element_of(book, item.address, item.port)[1]}"
        f" timeout {max(1, int(item.seconds * 1000))}ms"
        + (f' comment "{item.name}"' if item.name and len(item.name) < _COMMENT else "")
        for item in held
        if item.book is book and item.address.version == version and min(item.port, 1) == port
    )
    name = host_set(book, version, port)
    kind = f"ipv{version}_addr" + (" . inet_service" if port else "")
    # The kernel counts what has run out until it sweeps, about a second later: twice the leases.
    return Set(name, kind, ("timeout",), 2 * size, elements=elements, learned=True)


def learned_rules(book: Book) -> Iterator[Rule]:
    """Let TCP to what a book holds pass."""
    for v, ip in FAMILIES:
        yield Rule(f"{ip} daddr . tcp dport @{book}{v} accept")
    for v, ip in FAMILIES:
        yield Rule(f"meta l4proto tcp {ip} daddr @{host_set(book, v, ANY_PORT)} accept")


def catalog_rules(registries: Iterable[StaticSet], refuse: str) -> Iterator[Rule]:
    """Refuse, by this verdict, the addresses of registries that are known and not allowed.

    Nothing else; and not what a registry of the policy leads to.
    """
    yield from learned_rules(Book.HEARD)
    yield from static_rules(registries)
    for v, ip in FAMILIES:
        match = f"meta l4proto {{ tcp, udp }} {ip} daddr . th dport @{Book.DENY}{v}"
        yield Rule(f"{match} {refuse}")


def address_sets(name: str, addresses: Iterable[Addr]) -> Iterator[Set]:
    """Make the sets of one name, of either family, that hold these addresses."""
    known = sorted(set(addresses), key=int)
    for version, _ in FAMILIES:
        elements = tuple(str(item) for item in known if item.version == version)
        yield Set(f"{name}{version}", f"ipv{version}_addr", elements=elements)


def static_sets(allowed: AllowList) -> list[StaticSet]:
    """Make one interval set for each port and family: plain intervals, which every kernel has.

    Those of destinations are apart, since containers may not reach them.
    """
    grouped: dict[tuple[int, int | None, bool], list[Network]] = {}
    for network, grant in allowed.networks:
        for port in [None] if grant.ports is None else sorted(grant.ports):
            grouped.setdefault((network.version, port, grant.destination), []).append(network)
    made = []
    for (version, port, destination), members in grouped.items():
        kind = "destination" if destination else "static"
        name = f"{kind}{version}_{'any' if port is None else port}"
        item = Set(name, f"ipv{version}_addr", ("interval",), elements=_collapse(members))
        made.append(StaticSet(item, port, destination))
    return made


def static_rules(static: Iterable[StaticSet]) -> Iterator[Rule]:
    """Let TCP to the networks of a policy pass."""
    for one in static:
        match = "meta l4proto tcp" if one.port is None else f"tcp dport {one.port}"
        yield Rule(f"{match} {one.ip} daddr @{one.item.name} accept")


def _collapse(networks: list[Network]) -> tuple[str, ...]:
    """Merge overlapping networks of one family: nft refuses intervals that overlap."""
    v4 = [network for network in networks if isinstance(network, IPv4Network)]
    v6 = [network for network in networks if isinstance(network, IPv6Network)]
    return tuple(map(str, (*collapse_addresses(v4), *collapse_addresses(v6))))

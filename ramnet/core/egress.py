"""The table ``netdev ramnet``: containers that leave by an uplink past every other hook.

A macvlan or ipvlan child hands its packets to its parent device in the network namespace of the
machine; there neither output nor forward sees them (but for ipvlan in modes l3 and l3s, which
output sees as packets without a socket). They meet the egress hook of the parent: kernel 5.16, nft
1.0.1. What is judged is what is not the machine's own: its source is not an address of the machine
with a hardware address of the machine. Forwarded packets that were not NATed are judged as well,
for the second time.

No conntrack, no defragmentation and no ``reject`` there (EOPNOTSUPP on kernel 6.18, measured):

- What is refused is dropped; the client sees a timeout.
- Flags count only in a packet that is no fragment: a first fragment is judged as a SYN. Then later
  ones may pass, for nothing comes of them (RFC 1858). UDP ports are in every first fragment.
- An answer over UDP cannot be told from a question: ``strict`` refuses both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from ramnet.core.allow import Addr, AllowList
from ramnet.core.dns import DNS_PORT
from ramnet.core.policy import ClassMode
from ramnet.core.refusal import REJECTED, Refusal, edge_refuse_chain, refuse
from ramnet.core.ruleset import Chain, Counter, Family, Hook, Rule, Set, Table
from ramnet.core.sets import (
    StaticSet,
    address_sets,
    catalog_rules,
    learned_rules,
    learned_sets,
    static_rules,
    static_sets,
)
from ramnet.core.terms import (
    FAMILIES,
    LOCAL,
    PRIORITY,
    REFUSED,
    RESOLVERS,
    TABLE,
    Book,
    Held,
    Settings,
    TrafficClass,
)

OWN = "own"

# From these a machine asks for an address while it has none (RFC 2131, RFC 4862).
_UNSPECIFIED = (IPv4Address(0), IPv6Address(0))
# Nothing of this goes past the link: finding an address, a router or a neighbour.
_LINK_ONLY = {4: "{ 224.0.0.0/24, 255.255.255.255 }", 6: "ff02::/16"}

_REFUSE = f"goto {refuse(TrafficClass.CONTAINERS)}"


@dataclass(frozen=True, slots=True)
class Uplink:
    """A device that may have macvlan or ipvlan children: its interface index and its name."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Local:
    """What the machine itself sends from: hardware addresses, and addresses of IP."""

    macs: frozenset[str]
    addresses: frozenset[Addr]


@dataclass(frozen=True, slots=True)
class EgressSets:
    """What the rules look up: what a policy allows, what was learned, and whom to ask."""

    allowed: AllowList
    held: tuple[Held, ...] = ()
    resolvers: tuple[Addr, ...] = ()


def egress_books(mode: ClassMode) -> tuple[Book, ...]:
    """Return the books whose elements the table needs; they are to be written to it as well."""
    match mode:
        case ClassMode.CATALOG:
            return Book.HEARD, Book.DENY
        case ClassMode.STRICT:
            return (Book.HEARD,)
        case ClassMode.OFF:
            return ()


def compile_egress(
    uplinks: Iterable[Uplink],
    local: Local,
    mode: ClassMode,
    sets: EgressSets,
    settings: Settings,
    refusal: Refusal = REJECTED,
) -> Table | None:
    """Compile the table; None where there is nothing to judge, and no table is to be.

    A kernel before 6.16 refuses the whole table when one of the uplinks is not there (ENOENT), and
    deletes the chain of one that goes away; a later one keeps the chain and waits for its device.
    """
    links = sorted(uplinks, key=lambda link: link.index)
    if mode is ClassMode.OFF or not links:
        return None
    strict = mode is ClassMode.STRICT
    static = [one for one in static_sets(sets.allowed) if not one.destination]  # for engines
    made = [
        Set(OWN, "ether_addr", elements=tuple(sorted(local.macs))),
        *address_sets(LOCAL, (*local.addresses, *_UNSPECIFIED)),
        *(address_sets(RESOLVERS, sets.resolvers) if strict else ()),
        *learned_sets(egress_books(mode), sets.held, settings.set_size),
        *(one.item for one in static),
    ]
    # Under `catalog`, frames that a child tagged itself pass: no rule reaches their ports.
    judge = (*_hidden(), *(_strict(static) if strict else catalog_rules(static, _REFUSE)))
    chains = [
        Chain(f"uplink{link.index}", _ours(), Hook.EGRESS, PRIORITY, device=link.name)
        for link in links
    ]
    return Table(
        TABLE,
        (Counter(REFUSED),),
        tuple(made),
        (edge_refuse_chain(refusal), Chain("judge", judge), *chains),
        family=Family.NETDEV,
    )


def _ours() -> tuple[Rule, ...]:
    """Let pass what belongs to a connection that stands, or is the machine's own; judge the rest.

    The first is nearly every packet, and costs no look into a set. Some systems take a SYN with FIN
    for a SYN.
    """
    return (
        Rule(
            "ip frag-off & 0x3fff == 0 tcp flags & (syn|ack) != syn accept",
            "each connection is judged when it begins",
        ),
        Rule("ip6 nexthdr tcp tcp flags & (syn|ack) != syn accept"),
        *(Rule(f"ether saddr @{OWN} {ip} saddr @{LOCAL}{v} accept") for v, ip in FAMILIES),
        Rule(
            f"ether saddr @{OWN} ether type != {{ ip, ip6 }} accept",
            "not IP; or tagged, and judged at the device of its VLAN",
        ),
        Rule("goto judge"),
    )


def _hidden() -> Iterator[Rule]:
    """Refuse, in every mode, what is made so that it cannot be judged."""
    for ip in ("ip", "ip6"):
        # The sender of a raw frame (AF_PACKET) chooses what the kernel takes it for.
        yield Rule(f"ether type {ip} meta protocol != {ip} {_REFUSE}", "not what it says it is")
    # A routing header names another destination; a header behind that of a fragment may hide
    # the ports in the next one (RFC 7112).
    yield Rule(f"rt type 0-255 {_REFUSE}")
    yield Rule(f"frag nexthdr {{ 0, 43, 44, 51, 60 }} {_REFUSE}")


def _strict(static: list[StaticSet]) -> Iterator[Rule]:
    """Let pass registries of the policy and what it takes to be on a network; nothing else."""
    yield Rule("ether type arp accept")
    yield Rule("vlan type arp accept")
    yield Rule("ip frag-off & 0x1fff != 0 accept", "later fragments: nothing without the first")
    yield Rule("frag frag-off != 0 accept")
    yield Rule("ip protocol { icmp, igmp } accept")
    yield Rule("meta protocol ip6 meta l4proto icmpv6 accept")
    for v, ip in FAMILIES:
        yield Rule(f"meta l4proto udp {ip} daddr {_LINK_ONLY[v]} accept")
    for v, ip in FAMILIES:
        match = f"meta l4proto {{ tcp, udp }} th dport {DNS_PORT}"
        yield Rule(f"{match} {ip} daddr @{RESOLVERS}{v} accept")
    yield from learned_rules(Book.HEARD)
    yield from static_rules(static)
    yield Rule(_REFUSE)

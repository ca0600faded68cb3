"""The names, numbers and keys of our table: what the rules and those who feed them share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ramnet.core.allow import ANY_PORT, Addr
from ramnet.core.config import ScopeMode
from ramnet.core.scope import Scope

TABLE = "ramnet"
# The chains that judge what this machine's own sockets send, and what engines do: a table in which
# both have rules is a whole one.
OUTPUT = "output"
ENGINE = "engine"
# Any number will do as long as nobody else uses it; the kernel lets a group have one owner.
NFLOG_GROUP = 7261
# Copies of what is refused, for the record.
REFUSALS_GROUP = 7262
# A queue, like a group, has one owner. The first is for answers that teach what engines may reach,
# the second for those that other programs and containers are to hear.
QUEUE = 7261
OTHERS_QUEUE = 7262

# After conntrack (-200), before mangle (-150) and every NAT (-100): the destination is still the
# one that the client asked for.
PRIORITY = -160
RAW = -300  # before conntrack
# Behind the NAT of what comes in (100): only there does the answer of a resolver that the machine
# redirects its queries to have the source that was asked.
AFTER_NAT = 110

# What copies of queries say that come from programs of the host.
HOST_QUERY = "host"
# A packet that begins a connection.
SYN = "tcp flags & (fin|syn|rst|ack) == syn"
RESOLVERS = "resolvers"
ANSWERERS = "answerers"
# What the machine itself sends from.
LOCAL = "local"
# While the daemon refreshes this set, answers are held; when it hangs or dies they pass.
ALIVE = "alive"
ALIVE_SECONDS = 1.0
# While the responder gives signs of life this set is refreshed, for as long; refused connections
# are led to it then, and are only refused otherwise.
NOTICE = "notice"
# The chains of the rule that nft's language cannot say (xt NFQUEUE), by queue; it goes there by
# netlink.
COMPAT_CHAIN = "hold"
OTHERS_COMPAT_CHAIN = "hold_others"
COMPAT_CHAINS = {COMPAT_CHAIN: QUEUE, OTHERS_COMPAT_CHAIN: OTHERS_QUEUE}

PACED = "paced"
IMPOSTERS = "imposters"
REFUSED = "refused"
HELD = "held_first_syn"

FAMILIES = ((4, "ip"), (6, "ip6"))


class TrafficClass(StrEnum):
    """Whose traffic: that of engines, of everybody else on the machine, of containers."""

    ENGINE = "engine"
    HOST = "host"
    CONTAINERS = "containers"


class Book(StrEnum):
    """What a learned address is kept for; the values are the names of the sets.

    ``ALLOW`` is what engines may reach, ``HEARD`` what everybody else may: the registries of the
    policy, as far as containers under ``strict`` heard of them or the daemon looked them up.
    ``DENY`` is what nobody may who is judged by the catalogue.
    """

    ALLOW = "allow"
    HEARD = "heard"
    DENY = "deny"


class Rung(StrEnum):
    """How answers are followed: held by nft's queue, held by xt's NFQUEUE, or only copied."""

    NATIVE = "native"
    COMPAT = "compat"
    OBSERVE = "observe"


@dataclass(frozen=True, slots=True)
class Resolver:
    """A trusted resolver: where queries to it leave, and where its answers must come in.

    Both are interface indices and differ where the machine itself redirects the queries (a
    published container). ``owners`` are the users whose sockets answer on ``lo``; None where the
    resolver is not on this machine.
    """

    address: Addr
    interface: int
    answers: int
    owners: frozenset[int] | None = None

    @property
    def direct(self) -> bool:
        """Whether answers come in where queries leave."""
        return self.answers == self.interface


@dataclass(frozen=True, slots=True)
class Held:
    """A learned address as the kernel holds it; ``seconds`` until it runs out."""

    address: Addr
    port: int
    seconds: float
    name: str
    book: Book = Book.ALLOW


@dataclass(frozen=True, slots=True)
class Machine:
    """What the rules need to know of the machine's network.

    ``bridges`` are the interface indices of containers' bridges, ``uplinked`` of those that the
    network outside is on as well; ``addresses`` are the machine's own.
    """

    bridges: tuple[int, ...] = ()
    uplinked: tuple[int, ...] = ()
    addresses: frozenset[Addr] = frozenset()


NOWHERE = Machine()

# Every program of the network namespace is judged as an engine, on the ports of registries.
EVERYBODY = Scope(ScopeMode.NETNS)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the machine decides of the ruleset.

    ``ct_dns`` and ``ct_host`` are the bits of the conntrack mark on DNS flows, ``set_size`` the
    size of each host set, ``rung`` how answers are followed, ``scope`` who is an engine,
    ``egress`` whether the kernel has that hook. ``notice`` is the port where the responder listens,
    None where there is none, on the loopback addresses of ``notice_families``; ``mark_notice`` is
    the bit of the mark on packets that are led there.
    """

    ct_dns: int
    set_size: int
    rung: Rung
    scope: Scope = EVERYBODY
    ct_host: int = 0x0400_0000
    egress: bool = False
    notice: int | None = None
    notice_families: tuple[int, ...] = (4, 6)
    mark_notice: int = 0x0800_0000


def host_set(book: str, version: int, port: int) -> str:
    """Name the set that holds an address with this port; one of its own for every port at once."""
    return f"{book}{version}" if port != ANY_PORT else f"{book}_any{version}"


def element_of(book: str, address: Addr, port: int) -> tuple[str, str]:
    """Return the host set that holds an address, and its element there in nft's language."""
    key = f"{address} . {port}" if port != ANY_PORT else str(address)
    return host_set(book, address.version, port), key

"""What happens (events) and what is to be done about it (commands): the words of the engine."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address

from ramnet.core.allow import AllowList
from ramnet.core.egress import Local, Uplink
from ramnet.core.leases import Key
from ramnet.core.names import HostName
from ramnet.core.policy import Policy
from ramnet.core.ruleset import Table
from ramnet.core.terms import Book, Held, Resolver

Addr = IPv4Address | IPv6Address


class Level(StrEnum):
    """How much a log line matters; the values are those of syslog(3)."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "err"


# Events


@dataclass(frozen=True, slots=True)
class Started:
    """All that the first ruleset needs has been told; ``held`` is what the kernel still holds."""

    held: tuple[Held, ...]


@dataclass(frozen=True, slots=True)
class PolicyRead:
    """A valid policy was read; ``allowed`` is what it allows, where that was found out already.

    For a long policy that takes seconds, which the engine's lock should not see.
    """

    policy: Policy
    digest: str
    allowed: AllowList | None = None


@dataclass(frozen=True, slots=True)
class PolicyRejected:
    """The policy file is missing or not valid; ``problem`` has its faults with their places."""

    problem: str


@dataclass(frozen=True, slots=True)
class ResolversFound:
    """The trusted resolvers and their interfaces, as the machine is set up now."""

    resolvers: tuple[Resolver, ...]


@dataclass(frozen=True, slots=True)
class LinksFound:
    """The devices of this machine, as it is set up now.

    ``bridges`` and ``uplinked`` are interface indices: bridges of containers alone, and those that
    the network outside is on as well. ``local`` is what the machine itself sends from.
    """

    bridges: tuple[int, ...]
    uplinks: tuple[Uplink, ...]
    local: Local
    uplinked: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ScopeProbed:
    """What the live probe of the scope found wrong; empty when engines are told apart."""

    problem: str


@dataclass(frozen=True, slots=True)
class QueryCopy:
    """A copy of an IP packet with a DNS query that leaves for a trusted resolver.

    ``forwarded``: a container sent it; ``host``: a program of the host that is no engine.
    """

    packet: bytes
    forwarded: bool = False
    host: bool = False


@dataclass(frozen=True, slots=True)
class AnswerCopy:
    """A copy of an IP packet with DNS answers that our rules believe.

    ``forwarded``: a container is to hear it.
    """

    packet: bytes
    forwarded: bool = False


@dataclass(frozen=True, slots=True)
class Resolved:
    """The daemon itself asked for a name: all its addresses, and the least TTL in seconds."""

    name: HostName
    addresses: tuple[Addr, ...]
    ttl: int


@dataclass(frozen=True, slots=True)
class Unresolved:
    """The daemon asked for a name and no resolver gave an answer."""

    name: HostName
    why: str


@dataclass(frozen=True, slots=True)
class TableLoaded:
    """The kernel took the table of the ``LoadTable`` before."""


@dataclass(frozen=True, slots=True)
class TableRefused:
    """The kernel did not take the table; what was in force stays in force."""

    problem: str


@dataclass(frozen=True, slots=True)
class TableLost:
    """Our table is not in the kernel any more, or an element could not be written to it."""

    problem: str


@dataclass(frozen=True, slots=True)
class EgressLoaded:
    """The kernel took the table of the ``LoadEgress`` before."""


@dataclass(frozen=True, slots=True)
class EgressLost:
    """The kernel did not take the table, or it is not in the kernel any more."""

    problem: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""

    today: date


Event = (
    Started
    | PolicyRead
    | PolicyRejected
    | ResolversFound
    | LinksFound
    | ScopeProbed
    | QueryCopy
    | AnswerCopy
    | Resolved
    | Unresolved
    | TableLoaded
    | TableRefused
    | TableLost
    | EgressLoaded
    | EgressLost
    | Tick
)


# Commands


@dataclass(frozen=True, slots=True)
class LoadTable:
    """Change our table in one transaction; answer with ``TableLoaded`` or ``TableRefused``.

    ``before`` is what is loaded; then what was learned stays in the kernel, less ``drop`` (pairs of
    set and element). Without it the table is put in the place of whatever is there.
    """

    table: Table
    before: Table | None = None
    drop: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class LoadEgress:
    """Put the table of the uplinks in the place of whatever is there; None: there is to be none.

    ``books`` are those whose leases are to be written to it as well from now on; with ``keep`` what
    was learned means what it meant, and may stay. Answer with ``EgressLoaded`` or ``EgressLost``.
    """

    table: Table | None
    books: tuple[Book, ...]
    keep: bool = False


@dataclass(frozen=True, slots=True)
class WriteLeases:
    """Add or extend elements of the host sets of a book, and remove others.

    To be answered with ``TableLost`` on failure.
    """

    add: tuple[Held, ...]
    drop: tuple[Key, ...]
    book: Book = Book.ALLOW


@dataclass(frozen=True, slots=True)
class ResolveNames:
    """From now on keep exactly these names resolved."""

    names: tuple[HostName, ...]


@dataclass(frozen=True, slots=True)
class Log:
    """Tell the operator."""

    level: Level
    message: str


@dataclass(frozen=True, slots=True)
class PolicyChanged:
    """Another policy is in force from now on; None where none is valid."""

    before: Policy | None
    now: Policy | None
    digest: str


Command = LoadTable | LoadEgress | WriteLeases | ResolveNames | Log | PolicyChanged

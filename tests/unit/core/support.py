"""What tests of the core share: policies, DNS packets, an engine with a pretended kernel."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date
from ipaddress import IPv4Address, IPv6Address, ip_address

import dnslib

from ramnet import __version__
from ramnet.core.allow import AllowList, allow_list
from ramnet.core.catalog import load_catalog
from ramnet.core.config import Limits, ScopeMode, Weak
from ramnet.core.egress import Local
from ramnet.core.engine import Engine
from ramnet.core.events import (
    Addr,
    AnswerCopy,
    Command,
    EgressLoaded,
    EgressLost,
    Event,
    LinksFound,
    LoadEgress,
    LoadTable,
    Log,
    PolicyRead,
    QueryCopy,
    ResolversFound,
    Started,
    TableLoaded,
    TableRefused,
    WriteLeases,
)
from ramnet.core.names import HostName
from ramnet.core.policy import ClassMode, Policy, parse_policy, policy_digest
from ramnet.core.scope import Group, Scope
from ramnet.core.terms import Book, Resolver, Rung, Settings

CATALOG = load_catalog()
TODAY = date(2026, 3, 1)
# Every program of the namespace is judged strictly, as on a machine that is there for Docker only.
STRICT = Scope(ScopeMode.NETNS, weak=Weak.STRICT)
GROUPS = (
    Group("ramnetengines.slice", 1, 4711, "unified/ramnetengines.slice"),
    Group("user.slice/podman.service", 2, 4712, "unified/user.slice/podman.service"),
)
CGROUP = Scope(ScopeMode.CGROUP, GROUPS, host=ClassMode.CATALOG)
MARK = Scope(ScopeMode.MARK, GROUPS, mark=0x0200_0000, host=ClassMode.CATALOG)
UID = Scope(ScopeMode.UID, uids=(0, 1000), host=ClassMode.CATALOG)
NETNS = Scope(ScopeMode.NETNS)


def settings(scope: Scope = STRICT, rung: Rung = Rung.OBSERVE) -> Settings:
    return Settings(0x0100_0000, 1024, rung, scope)


SETTINGS = settings()
SERVER = IPv4Address("192.0.2.53")
CLIENT = IPv4Address("192.0.2.10")
RESOLVERS = (Resolver(SERVER, 2, 2),)


def policy(*addresses: str, more: str = "") -> Policy:
    """A policy that lists these registries; ``more`` is appended to the last one's table."""
    entries = "".join(f'[[registry]]\naddress = "{address}"\n' for address in addresses)
    text = f'version = 1\norganization = "acme"\n{entries}{more}'
    return parse_policy(text, source="policy.toml", ramnet_version=__version__)


def read(found: Policy) -> PolicyRead:
    return PolicyRead(found, policy_digest(found))


def allowed(found: Policy | None, today: date = TODAY) -> AllowList:
    return allow_list(found, CATALOG, today)


def host(name: str) -> HostName:
    return HostName(name)


def udp(source: Addr, source_port: int, target: Addr, target_port: int, payload: bytes) -> bytes:
    """An IP packet as the kernel copies it; checksums are not looked at."""
    size = 8 + len(payload)
    body = struct.pack("!HHHH", source_port, target_port, size, 0) + payload
    if isinstance(source, IPv6Address):
        head = struct.pack("!IHBB", 6 << 28, size, 17, 64)
    else:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + size, 0, 0, 64, 17, 0)
    return head + source.packed + target.packed + body


def syn(source: Addr, target: Addr, port: int = 443, source_port: int = 40_000) -> bytes:
    """The first packet of a TCP connection, as the kernel copies it."""
    body = struct.pack("!HHIIBBHHH", source_port, port, 1, 0, 10 << 4, 2, 64_240, 0, 0) + b"\0" * 20
    if isinstance(source, IPv6Address):
        head = struct.pack("!IHBB", 6 << 28, len(body), 6, 64)
    else:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, 6, 0)
    return head + source.packed + target.packed + body


def question(name: str, qtype: str = "A", *, ident: int = 7) -> bytes:
    record = dnslib.DNSRecord.question(name, qtype)
    record.header.id = ident
    return bytes(record.pack())


def reply(name: str, *addresses: str, qtype: str = "A", ident: int = 7, ttl: int = 60) -> bytes:
    record = dnslib.DNSRecord.question(name, qtype).reply()
    record.header.id = ident
    for address in addresses:
        record.add_answer(*dnslib.RR.fromZone(f"{name} {ttl} IN {qtype} {address}"))
    return bytes(record.pack())


def query(
    name: str, qtype: str = "A", *, ident: int = 7, port: int = 40_000, forwarded: bool = False
) -> QueryCopy:
    """A client's query as it leaves."""
    packet = udp(CLIENT, port, SERVER, 53, question(name, qtype, ident=ident))
    return QueryCopy(packet, forwarded)


def answer(
    name: str,
    *found: str,
    qtype: str = "A",
    ident: int = 7,
    port: int = 40_000,
    ttl: int = 60,
) -> AnswerCopy:
    """The resolver's answer to ``query`` with the same arguments."""
    return told(reply(name, *found, qtype=qtype, ident=ident, ttl=ttl), port=port)


def told(
    payload: bytes, *, server: Addr = SERVER, client: Addr = CLIENT, port: int = 40_000
) -> AnswerCopy:
    """These octets as an answer."""
    return AnswerCopy(udp(server, 53, client, port, payload))


def links(*bridges: int) -> LinksFound:
    """These bridges and no uplink."""
    return LinksFound(bridges, (), Local(frozenset(), frozenset()))


def ip(text: str) -> IPv4Address | IPv6Address:
    return ip_address(text)


def loads(commands: Iterable[Command]) -> list[LoadTable]:
    return [command for command in commands if isinstance(command, LoadTable)]


def logs(commands: Iterable[Command]) -> list[str]:
    return [command.message for command in commands if isinstance(command, Log)]


def writes(commands: Iterable[Command], book: Book = Book.ALLOW) -> list[tuple[str, int]]:
    """The pairs that a book gets."""
    return [
        (str(item.address), item.port)
        for command in commands
        if isinstance(command, WriteLeases) and command.book is book
        for item in command.add
    ]


@dataclass
class Story:
    """An engine and a kernel that takes every table, unless ``refuses`` says why not.

    ``refuses_edge`` says so of the table of the uplinks.
    """

    limits: Limits = field(default_factory=Limits)
    refuses: str = ""
    refuses_edge: str = ""
    settings: Settings = SETTINGS

    def __post_init__(self) -> None:
        self.engine = Engine(CATALOG, self.limits, self.settings, TODAY)

    def tell(self, event: Event, now: float = 0.0) -> list[Command]:
        """Hand one event in, answer each LoadTable, and return every command that came of it."""
        waiting: list[Event] = [event]
        said: list[Command] = []
        while waiting:
            commands = self.engine.handle(waiting.pop(0), now)
            said += commands
            taken = TableRefused(self.refuses) if self.refuses else TableLoaded()
            waiting += [taken] * len(loads(commands))
            problem = self.refuses_edge
            edge = EgressLost(problem) if problem else EgressLoaded()
            waiting += [edge for item in commands if isinstance(item, LoadEgress)]
        return said

    def start(self, found: Policy | None, now: float = 0.0) -> list[Command]:
        """Go through a start as the daemon does."""
        self.tell(ResolversFound(RESOLVERS), now)
        if found is not None:
            self.tell(read(found), now)
        return self.tell(Started(()), now)

    def ask(self, name: str, *addresses: str, now: float = 0.0, ttl: int = 60) -> list[Command]:
        """Let a client look a name up."""
        assert self.tell(query(name), now) == []
        return self.tell(answer(name, *addresses, ttl=ttl), now)

    def held(self, now: float = 0.0, book: Book = Book.ALLOW) -> set[tuple[str, int]]:
        """The pairs that the engine holds for a book."""
        engine = self.engine
        learners = (engine.learner, engine.heard, engine.denied)
        (learner,) = (item for item in learners if item.book is book)
        return {(str(lease.ip), lease.port) for lease in learner.leases.snapshot(now)}


def addresses(*texts: str) -> tuple[Addr, ...]:
    return tuple(map(ip_address, texts))

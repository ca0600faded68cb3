"""What the tests of the core share: policies, DNS packets, and an engine with a pretended kernel."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import date
from ipaddress import IPv4Address, IPv6Address, ip_address

import dnslib

from ramnet import __version__
from ramnet.core.catalog import load_catalog
from ramnet.core.compiler import AllowList, Marks, Resolver, allow_list
from ramnet.core.config import Limits
from ramnet.core.engine import Engine
from ramnet.core.events import (
    Addr,
    Command,
    DnsPacket,
    Event,
    LoadTable,
    Log,
    PolicyRead,
    ResolversFound,
    Started,
    TableLoaded,
    TableRefused,
    WriteLeases,
)
from ramnet.core.names import HostName
from ramnet.core.policy import Policy, parse_policy, policy_digest

CATALOG = load_catalog()
TODAY = date(2026, 3, 1)
MARKS = Marks(0x0100_0000, 1024)
SERVER = IPv4Address("192.0.2.53")
CLIENT = IPv4Address("192.0.2.10")
RESOLVERS = (Resolver(SERVER, 2),)


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


def query(name: str, qtype: str = "A", *, ident: int = 7, port: int = 40_000) -> DnsPacket:
    """A client's query as the kernel copies it."""
    record = dnslib.DNSRecord.question(name, qtype)
    record.header.id = ident
    return _packet(record, port, query=True)


def answer(
    name: str, *addresses: str, qtype: str = "A", ident: int = 7, port: int = 40_000, ttl: int = 60
) -> DnsPacket:
    """The resolver's answer to ``query`` with the same arguments."""
    record = dnslib.DNSRecord.question(name, qtype).reply()
    record.header.id = ident
    for address in addresses:
        record.add_answer(*dnslib.RR.fromZone(f"{name} {ttl} IN {qtype} {address}"))
    return _packet(record, port, query=False)


def _packet(record: dnslib.DNSRecord, port: int, *, query: bool) -> DnsPacket:
    return DnsPacket(query, SERVER, 53, CLIENT, port, 2, bytes(record.pack()))


def ip(text: str) -> IPv4Address | IPv6Address:
    return ip_address(text)


def loads(commands: Iterable[Command]) -> list[LoadTable]:
    return [command for command in commands if isinstance(command, LoadTable)]


def logs(commands: Iterable[Command]) -> list[str]:
    return [command.message for command in commands if isinstance(command, Log)]


def writes(commands: Iterable[Command]) -> list[tuple[str, int]]:
    """The pairs that are opened."""
    return [
        (str(item.address), item.port)
        for command in commands
        if isinstance(command, WriteLeases)
        for item in command.add
    ]


@dataclass
class Story:
    """An engine and a kernel that takes every table, unless ``refuses`` says why not."""

    limits: Limits = field(default_factory=Limits)
    refuses: str = ""

    def __post_init__(self) -> None:
        self.engine = Engine(CATALOG, self.limits, MARKS, TODAY)

    def tell(self, event: Event, now: float = 0.0) -> list[Command]:
        """Hand one event in, answer each LoadTable, and return every command that came of it."""
        waiting: list[Event] = [event]
        said: list[Command] = []
        while waiting:
            commands = self.engine.handle(waiting.pop(0), now)
            said += commands
            for _ in loads(commands):
                waiting.append(TableRefused(self.refuses) if self.refuses else TableLoaded())
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

    def held(self, now: float = 0.0) -> set[tuple[str, int]]:
        return {(str(lease.ip), lease.port) for lease in self.engine.leases.snapshot(now)}


def on_port(packet: DnsPacket, **changes: object) -> DnsPacket:
    """The same packet with other ends."""
    return replace(packet, **changes)  # type: ignore[arg-type]


def addresses(*texts: str) -> tuple[Addr, ...]:
    return tuple(map(ip_address, texts))

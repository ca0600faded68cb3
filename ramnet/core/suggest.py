"""From the record to the policy: the entries that would allow what was refused.

A suggestion is for a person to read, not a decision: whatever a client asked for is in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from ipaddress import ip_address
from typing import Final

from ramnet.core.activity import REFUSALS, NameFrom, Record
from ramnet.core.allow import ANY_PORT, HTTPS, AllowList, Registries, allow_list
from ramnet.core.catalog import Catalog
from ramnet.core.names import HostName, parse_host
from ramnet.core.policy import Policy
from ramnet.core.terms import TrafficClass
from ramnet.errors import NameFault

#: Entries and comments; a record may hold as many names as a flood had. The most frequent stay.
MAX_ENTRIES: Final = 500


@dataclass(slots=True)
class _Wish:
    """Something that was asked for: how often, by whom, and how sure its name is."""

    title: str = ""
    count: int = 0
    classes: set[str] = field(default_factory=set)
    heard: bool = True

    def add(self, record: Record) -> None:
        """Count a record in."""
        self.count += record.count
        self.classes.add(record.traffic or "unknown")
        self.heard = self.heard and record.name_from is NameFrom.DNS

    @property
    def told(self) -> str:
        """Say how often and by whom."""
        times = "once" if self.count == 1 else f"{self.count} times"
        sure = "; the name was only heard in DNS" if self.heard else ""
        return f"{times} by {', '.join(sorted(self.classes))}{sure}"


_Wishes = dict[str, _Wish]


def suggest(records: Iterable[Record], policy: Policy, catalog: Catalog, today: date) -> str:
    """Write TOML that may be appended to ``policy``: what its refusals ask for.

    Hosts of catalogued registries become their registry. What has no name, or is no TCP, becomes a
    comment, and so does an entry that is in the policy and has expired: it cannot be there twice.
    """
    allowed = allow_list(policy, catalog, today)
    registries: _Wishes = {}
    datagrams: _Wishes = {}
    addresses: _Wishes = {}
    for record in records:
        if record.verdict not in REFUSALS or not record.count:
            continue
        name = _host(record.name)
        if name is None:
            if _is_address(record.address) and not _reached(allowed, record):
                addresses.setdefault(_end(record.address, record.port), _Wish()).add(record)
        elif record.protocol == "udp":
            datagrams.setdefault(_end(name, record.port), _Wish()).add(record)
        elif not _allows(allowed, name, record):
            known = catalog.registry_of(name)
            key, title = (known.key, known.title) if known else (_end(name, record.port), "")
            registries.setdefault(key, _Wish(title)).add(record)
    expired = {str(entry.address): entry.expires for entry in policy.registry}
    return "".join(_written(registries, datagrams, addresses, expired))


def _host(text: str) -> HostName | None:
    try:
        return parse_host(text)
    except NameFault:
        return None


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _end(host: str, port: int | None) -> str:
    if port in (None, HTTPS):
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _allows(allowed: AllowList, name: HostName, record: Record) -> bool:
    """Tell whether the policy allows by now what was refused."""
    engine = record.traffic is TrafficClass.ENGINE
    ports = (allowed if engine else Registries(allowed)).ports_of(name)
    return ANY_PORT in ports or (bool(ports) if record.port is None else record.port in ports)


def _reached(allowed: AllowList, record: Record) -> bool:
    grants = allowed.grants_for(ip_address(record.address))
    return any(grant.ports is None or record.port in grant.ports for grant in grants)


def _written(
    registries: _Wishes,
    datagrams: _Wishes,
    addresses: _Wishes,
    expired: Mapping[str, date | None],
) -> Iterator[str]:
    if not (registries or datagrams or addresses):
        yield "# Nothing was refused that this policy does not allow by now.\n"
        return
    yield (
        "# Suggested by `ramnet policy suggest`. Read it before you keep it: whatever anybody\n"
        "# asked for is in here, wanted or not.\n"
    )
    for address, wish in _ranked(registries):
        if address in expired:
            yield f"\n# {address} was asked for {wish.told}; it is listed above and has expired\n"
            continue
        nickname = f"nickname = {json.dumps(wish.title)}\n" if wish.title else ""
        yield f'\n# {wish.told}\n[[registry]]\naddress = "{address}"\n{nickname}'
    yield from _comments("UDP, which no registry needs; see [[destination]]", datagrams)
    yield from _comments(
        "addresses without a name; where they are a registry's, list them as its networks",
        addresses,
    )


def _ranked(wishes: _Wishes) -> list[tuple[str, _Wish]]:
    """Return what was asked for most often, first; no more than ``MAX_ENTRIES``."""
    return sorted(wishes.items(), key=lambda item: (-item[1].count, item[0]))[:MAX_ENTRIES]


def _comments(title: str, wishes: _Wishes) -> Iterator[str]:
    if wishes:
        yield f"\n# {title}:\n"
    for what, wish in _ranked(wishes):
        yield f"# {what}  {wish.told}\n"

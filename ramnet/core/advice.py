"""What to add to a policy so that one refused host is allowed: one value for all who suggest it.

``ramnet doctor`` and others print it as the line of the policy file and as the command that writes
that line; ``ramnet policy add`` takes exactly the options that are used here.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from ramnet.core.allow import HTTPS, LOCALHOST
from ramnet.core.catalog import Catalog, CatalogEntry
from ramnet.core.names import Address, HostName, HostPattern
from ramnet.core.policy import Policy, RegistryEntry

Host = HostName | IPv4Address | IPv6Address


class Kind(StrEnum):
    """By what a host becomes allowed."""

    REGISTRY = "registry"
    EXTRA_HOST = "extra-host"
    NETWORK = "network"
    REGION = "region"
    UNVERIFIED = "unverified"


@dataclass(frozen=True, slots=True)
class Advice:
    """One addition to a policy.

    ``address`` is that of the registry's entry, as the policy writes it or has to; ``value`` is the
    host, network or region that the entry lacks, and empty where there is nothing more to say.
    """

    kind: Kind
    address: str
    value: str = ""

    def toml(self, policy: Policy | None) -> str:
        """Write the entry to add, or the whole line that its entry in ``policy`` is to have."""
        entry = _entry_of(policy, self.address)
        match self.kind:
            case Kind.REGISTRY:
                return f"[[registry]]\naddress = {json.dumps(self.address)}\n"
            case Kind.EXTRA_HOST:
                return _line("extra_hosts", entry.extra_hosts if entry else (), self.value)
            case Kind.NETWORK:
                return _line("networks", entry.networks if entry else (), self.value)
            case Kind.REGION:
                return _line("regions", entry.regions if entry else (), self.value)
            case Kind.UNVERIFIED:
                return "unverified_hosts = true\n"

    @property
    def command(self) -> str:
        """The command that does it."""
        words = ["ramnet", "policy", "add", self.address]
        if self.kind is Kind.UNVERIFIED:
            words.append("--unverified-hosts")
        elif self.kind is not Kind.REGISTRY:
            words += [f"--{self.kind}", self.value]
        return shlex.join(words)

    def report(self, policy: Policy | None) -> dict[str, Any]:
        """Describe it as JSON values."""
        return {
            "kind": str(self.kind),
            "address": self.address,
            "value": self.value or None,
            "toml": self.toml(policy),
            "command": self.command,
        }


def advise(host: Host, port: int, registry: str, policy: Policy | None, catalog: Catalog) -> Advice:
    """Say what allows ``host`` on ``port`` as a companion of ``registry``, which is refused now.

    ``registry`` is the address of the policy's entry, or the one that it would have: where the
    policy has none, that entry is what is missing first.
    """
    entry = _entry_of(policy, registry)
    if entry is None:
        return Advice(Kind.REGISTRY, registry)
    if isinstance(host, str):
        known = _companion(host, entry, catalog)
        if known is not None:
            return known
    own = entry.address.any_port or port == (entry.address.port or HTTPS)
    if isinstance(host, IPv4Address | IPv6Address):
        if own:
            return Advice(Kind.NETWORK, registry, str(host))
    elif host != LOCALHOST and (own or port == HTTPS):
        return Advice(Kind.EXTRA_HOST, registry, host)
    return Advice(Kind.REGISTRY, _address(host, port))


def _companion(host: HostName, entry: RegistryEntry, catalog: Catalog) -> Advice | None:
    """Say what the entry has to ask for, where the catalogue knows the host as its registry's."""
    registry = catalogued(entry.address, catalog)
    known = registry.host_of(host) if registry is not None else None
    if known is not None and known.region and known.region not in entry.regions:
        return Advice(Kind.REGION, str(entry.address), known.region)
    if known is not None and known.optional and not entry.unverified_hosts:
        return Advice(Kind.UNVERIFIED, str(entry.address))
    return None


def catalogued(address: Address, catalog: Catalog) -> CatalogEntry | None:
    """Return what the catalogue knows of an address; it speaks of HTTPS on its usual port."""
    if address.pattern is None or address.port not in (None, HTTPS):
        return None
    return catalog.lookup(address.pattern)


def _entry_of(policy: Policy | None, registry: str) -> RegistryEntry | None:
    entries = policy.registry if policy is not None else ()
    return next((entry for entry in entries if str(entry.address) == registry), None)


def _line(key: str, old: Iterable[object], new: str) -> str:
    values = dict.fromkeys([*map(str, old), new])
    return f"{key} = [{', '.join(json.dumps(value) for value in values)}]\n"


def _address(host: Host, port: int) -> str:
    shown = None if port == HTTPS else port
    if isinstance(host, str):
        return str(Address(HostPattern(host), None, shown))
    return str(Address(None, host, shown))

"""What ``ramnet registry`` tells of the catalogue, as plain values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ramnet.core.catalog import Catalog
from ramnet.core.cataloghosts import (
    CatalogEntry,
    CatalogHost,
    CatalogTemplate,
    HostTemplate,
    Owner,
)
from ramnet.core.explain import parse_target
from ramnet.core.names import HostName, HostPattern, parse_pattern
from ramnet.core.placeholders import placeholders
from ramnet.errors import NameFault


@dataclass(frozen=True, slots=True)
class Found:
    """What the catalogue knows of a name.

    ``named`` is the registry that it names; ``owners`` are those that it is a host of, which may
    be the same.
    """

    named: CatalogEntry | None
    owners: tuple[Owner, ...]


def host_asked(text: str) -> HostName:
    """Return the host that ``text`` means: a host, or an image's registry. A port is not looked at.

    Raises ``NameFault`` or ``ReferenceFault``.
    """
    target = parse_target(text)
    if target.host is None:
        raise NameFault(
            f"'{target.text}' is an address, and the catalogue knows hosts by name",
            hint=f"`ramnet explain {target.text}` tells which name led to it",
        )
    return target.host


def search(text: str, catalog: Catalog) -> Found:
    """Look up a registry, an image, a host or a wildcard.

    Raises ``NameFault`` or ``ReferenceFault``.
    """
    if text.startswith("*."):
        return Found(catalog.lookup(parse_pattern(text)), ())
    host = host_asked(text)
    return Found(catalog.lookup(HostPattern(host)), catalog.owners_of(host))


def template_report(template: CatalogTemplate) -> dict[str, Any]:
    """Describe a registry as the catalogue writes it, with its placeholders."""
    own = placeholders(template.key)
    hosts = [
        _host(host.name, host, next(iter(placeholders(host.name) - own), None))
        for host in template.hosts
    ]
    return _registry(template, hosts)


def entry_report(entry: CatalogEntry) -> dict[str, Any]:
    """Describe a registry whose address is known."""
    hosts = [_host(str(host.pattern), host, None) for host in entry.hosts]
    hosts += [_host(item.template.name, item.template, item.kind) for item in entry.regional]
    return _registry(entry, hosts)


def owner_report(owner: Owner) -> dict[str, Any]:
    """Describe a registry to which a host belongs, and what the host is there."""
    match = {
        "name": str(owner.host.pattern),
        "role": str(owner.host.role),
        "region": owner.region or None,
        "optional": owner.optional,
    }
    return {**entry_report(owner.entry), "match": match}


def found_report(found: Found) -> list[dict[str, Any]]:
    """Describe all that a search found, the registry that was named first."""
    owners = {owner.entry.key: owner_report(owner) for owner in found.owners}
    if found.named is None:
        return list(owners.values())
    named = owners.pop(found.named.key, None) or entry_report(found.named)
    return [named, *owners.values()]


def fixed_names(catalog: Catalog) -> Iterator[str]:
    """Yield the names by which registries without placeholders can be asked for."""
    for entry in catalog:
        yield entry.key
        yield from entry.aliases


def _registry(
    registry: CatalogEntry | CatalogTemplate, hosts: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "key": registry.key,
        "title": registry.title,
        "aliases": list(registry.aliases),
        "note": registry.note or None,
        "default_regions": list(registry.default_regions),
        "hosts": hosts,
        "match": None,
    }


def _host(name: str, host: CatalogHost | HostTemplate, kind: str | None) -> dict[str, Any]:
    """Describe a host; ``regional`` names the placeholder that a policy's regions fill."""
    return {
        "name": name,
        "role": str(host.role),
        "ports": sorted(host.ports),
        "source": str(host.source),
        "cite": host.cite,
        "registry_only": host.registry_only,
        "shared": host.shared,
        "optional": host.optional,
        "regional": kind,
    }

"""The registries of containerd, Podman and BuildKit, from the text of their files.

Any bytes give facts; what does not parse is a fact as well (``Unreadable``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ramnet.core.enginefacts import (
    Endpoint,
    Fact,
    Insecure,
    Mirror,
    Named,
    Unreadable,
    endpoint,
    printable,
)
from ramnet.core.enginetables import (
    MAX_ITEMS,
    list_of_tables,
    read_toml,
    table_of,
    tables_in,
    text_at,
    texts_at,
)

# What settings name a registry for, see ``Named``.
SETTINGS: Final = "settings"
SEARCH: Final = "search"
# The folder of hosts.toml that stands for every registry without one (containerd, hosts.md).
_ANY_REGISTRY: Final = "_default"


def containerd_config(data: bytes, source: str) -> tuple[tuple[Fact, ...], tuple[str, ...]]:
    """Return what containerd's config.toml says of registries, and its folders of hosts.toml."""
    table = read_toml(data)
    if isinstance(table, str):
        return (Unreadable(source, table),), ()
    facts: list[Fact] = []
    folders: list[str] = []
    for plugin in tables_in(table.get("plugins")).values():
        registry = table_of(plugin.get("registry"))
        faults: list[Unreadable] = []
        folders += text_at(registry, "config_path", source, faults).split(":")
        for name, mirror in tables_in(registry.get("mirrors")).items():
            urls = texts_at(mirror, "endpoint", source, faults)
            facts += [Mirror(printable(name), endpoint(url, "https"), source) for url in urls]
        for name, host in tables_in(registry.get("configs")).items():
            facts.append(Named(endpoint(name, "https"), SETTINGS, source))
            if table_of(host.get("tls")).get("insecure_skip_verify") is True:
                facts.append(Insecure(endpoint(name, "https"), source))
        facts += faults
    return tuple(facts[:MAX_ITEMS]), tuple(folder for folder in folders if folder)[:MAX_ITEMS]


def hosts_toml(registry: str, data: bytes, source: str) -> Iterator[Fact]:
    """Yield what containerd's hosts.toml of one registry says."""
    table = read_toml(data)
    if isinstance(table, str):
        yield Unreadable(source, table)
        return
    faults: list[Unreadable] = []
    server = text_at(table, "server", source, faults)
    hosts = list(tables_in(table.get("host")).items())[:MAX_ITEMS]
    if server and not _belongs(endpoint(server, "https"), registry):
        yield Mirror(printable(registry), endpoint(server, "https"), source)
    elif not hosts and registry != _ANY_REGISTRY:
        yield Named(_folder(registry), SETTINGS, source)
    for url, host in hosts:
        where = endpoint(url, "https")
        yield Mirror(printable(registry), where, source)
        if host.get("skip_verify") is True:
            yield Insecure(where, source)
    yield from faults


def _folder(name: str) -> Endpoint:
    """Read the name of a folder of hosts.toml, which may say a port as ``host_5000_``."""
    host, _, port = name.removesuffix("_").rpartition("_")
    return endpoint(f"{host}:{port}" if host and name.endswith("_") else name, "https")


def registries_conf(data: bytes, source: str) -> Iterator[Fact]:
    """Yield what containers-registries.conf(5) says; version 2 of the format."""
    table = read_toml(data)
    if isinstance(table, str):
        yield Unreadable(source, table)
        return
    faults: list[Unreadable] = []
    for text in texts_at(table, "unqualified-search-registries", source, faults):
        yield Named(endpoint(text, "https"), SEARCH, source)
    for entry in list_of_tables(table.get("registry")):
        location = text_at(entry, "location", source, faults)
        prefix = text_at(entry, "prefix", source, faults) or location
        registry = prefix.partition("/")[0]
        where = endpoint(location or prefix, "https")
        if location and not _belongs(where, registry):
            yield Mirror(printable(registry), where, source)
        elif registry and not (
            registry.startswith("*.") or entry.get("blocked") is True or entry.get("mirror")
        ):
            yield Named(where, SETTINGS, source)
        if entry.get("insecure") is True:
            yield Insecure(where, source)
        for mirror in list_of_tables(entry.get("mirror")):
            where = endpoint(text_at(mirror, "location", source, faults), "https")
            yield Mirror(printable(registry), where, source)
            if mirror.get("insecure") is True:
                yield Insecure(where, source)
    yield from faults


def buildkitd_toml(data: bytes, source: str) -> Iterator[Fact]:
    """Yield what buildkitd.toml says of registries."""
    table = read_toml(data)
    if isinstance(table, str):
        yield Unreadable(source, table)
        return
    faults: list[Unreadable] = []
    for name, entry in list(tables_in(table.get("registry")).items())[:MAX_ITEMS]:
        where = endpoint(name, "https")
        mirrors = texts_at(entry, "mirrors", source, faults)
        for url in mirrors:
            yield Mirror(printable(name), endpoint(url, "https"), source)
        if not mirrors:
            yield Named(where, SETTINGS, source)
        if entry.get("insecure") is True or entry.get("http") is True:
            yield Insecure(where, source)
    yield from faults


def _belongs(where: Endpoint, registry: str) -> bool:
    """Whether a server is the registry itself, as registry-1.docker.io is docker.io."""
    own, asked = endpoint(registry, "https").address, where.address
    if own is None or asked is None or own.pattern is None or asked.pattern is None:
        return own is not None and asked is not None and own.ip == asked.ip
    return own.pattern == asked.pattern or str(asked.pattern).endswith(f".{own.pattern}")

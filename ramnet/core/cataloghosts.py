"""The catalogue's registries and their hosts: as it writes them, and filled in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from ramnet.core.names import HostName, HostPattern, parse_pattern
from ramnet.core.placeholders import capture, fill, fits, placeholders


class Role(StrEnum):
    """What a registry's client wants of a host."""

    API = "api"
    AUTH = "auth"
    BLOB = "blob"


class Source(StrEnum):
    """How well a host is known."""

    VENDOR = "V"
    CODE = "S"
    THREAD = "T"
    MEASURED = "M"
    UNVERIFIED = "U"


@dataclass(frozen=True, slots=True)
class CatalogHost:
    """One host that a registry's clients contact.

    ``source`` says how it is known and ``cite`` where from. ``registry_only``: the name serves
    nothing but a registry. ``shared``: its addresses also serve others, or that is not known.
    ``region`` is the region that its name was made for, empty where there is none to choose.
    """

    pattern: HostPattern
    role: Role
    ports: frozenset[int]
    source: Source
    cite: str
    registry_only: bool
    shared: bool
    region: str = ""

    @property
    def optional(self) -> bool:
        """Whether it is in force only where a policy takes unverified hosts."""
        return self.source is Source.UNVERIFIED


@dataclass(frozen=True, slots=True)
class HostTemplate:
    """A ``CatalogHost`` whose name may hold ``{placeholders}``."""

    name: str
    role: Role
    ports: frozenset[int]
    source: Source
    cite: str
    registry_only: bool
    shared: bool

    @property
    def optional(self) -> bool:
        """Whether it is in force only where a policy takes unverified hosts."""
        return self.source is Source.UNVERIFIED

    def fill(self, values: Mapping[str, str], region: str = "") -> CatalogHost:
        """Return the host with each placeholder replaced by its value."""
        return CatalogHost(
            pattern=parse_pattern(fill(self.name, values)),
            role=self.role,
            ports=self.ports,
            source=self.source,
            cite=self.cite,
            registry_only=self.registry_only,
            shared=self.shared,
            region=region,
        )


@dataclass(frozen=True, slots=True)
class RegionalHost:
    """A host whose name depends on a region that the registry's address does not tell.

    ``kind`` is the placeholder left in the template's name: ``region``, ``location`` or
    ``azure`` (``ramnet.core.placeholders.CLOUDS``).
    """

    kind: str
    template: HostTemplate

    def at(self, region: str) -> CatalogHost | None:
        """Return the host of a region; None if that is none of the cloud's regions."""
        return self.template.fill({self.kind: region}, region) if fits(self.kind, region) else None

    def covering(self, name: HostName) -> CatalogHost | None:
        """Return the host of the region in ``name``; None if it is none of these hosts."""
        found = capture(self.template.name, name)
        return self.at(found[self.kind]) if found is not None else None


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One registry with all its hosts; ``key`` and ``aliases`` are what a policy may call it.

    ``hosts`` has the unverified ones as well, and those of ``default_regions``; ``regional`` hosts
    still lack a region. ``hosts_for`` gives those that are in force. ``note`` is for people.
    """

    key: str
    title: str
    aliases: tuple[str, ...]
    hosts: tuple[CatalogHost, ...]
    regional: tuple[RegionalHost, ...] = ()
    default_regions: tuple[str, ...] = ()
    note: str = ""

    @property
    def region_kinds(self) -> tuple[str, ...]:
        """Of which clouds a policy may name regions here; empty where there is no such choice."""
        return tuple(dict.fromkeys(item.kind for item in self.regional))

    @property
    def needs_regions(self) -> bool:
        """Whether some of its hosts are in force only once a policy names regions."""
        return bool(self.regional) and not self.default_regions

    def with_role(self, role: Role) -> tuple[CatalogHost, ...]:
        """Return the hosts of that role without a region, in the order of the catalogue."""
        return tuple(host for host in self.hosts if host.role is role)

    def hosts_for(
        self, regions: Iterable[str] = (), *, unverified: bool = False
    ) -> tuple[CatalogHost, ...]:
        """Return the hosts in force for a policy's entry with these keys, each once.

        A region counts where it has the form that a host's name asks for.
        """
        wanted = tuple(dict.fromkeys(regions))
        found = {host.pattern: host for host in self.hosts}
        for item in self.regional:
            for region in wanted:
                host = item.at(region)
                if host is not None:
                    found.setdefault(host.pattern, host)
        return tuple(host for host in found.values() if unverified or not host.optional)

    def host_of(self, name: HostName) -> CatalogHost | None:
        """Return the host that covers ``name``, be it unverified or of some region, else None."""
        plain = (host for host in self.hosts if host.pattern.matches(name))
        regional = (item.covering(name) for item in self.regional)
        found = [*plain, *(host for host in regional if host is not None)]
        return min(found, key=_closeness, default=None)


def _closeness(host: CatalogHost) -> tuple[bool, bool, bool]:
    """Rank what a host is to its registry: the registry itself first, the doubtful last."""
    return (host.role is not Role.API, bool(host.region), host.optional)


@dataclass(frozen=True, slots=True)
class Owner:
    """A registry to which a host belongs, and what it is there.

    A placeholder that the host does not tell is a wildcard in ``entry``: api.ecr.eu-west-1...
    belongs to ``*.dkr.ecr.eu-west-1.amazonaws.com``.
    """

    entry: CatalogEntry
    host: CatalogHost

    @property
    def region(self) -> str:
        """The region without which the registry's entry does not cover it; empty if none."""
        return self.host.region

    @property
    def optional(self) -> bool:
        """Whether it is in force only where a policy takes unverified hosts."""
        return self.host.optional

    @property
    def rank(self) -> tuple[bool, bool, bool]:
        """Sorts the owners of one host: its own registry first, the doubtful last."""
        return _closeness(self.host)


@dataclass(frozen=True, slots=True)
class CatalogTemplate:
    """A registry as the catalogue writes it: every name may hold ``{placeholders}``.

    The hosts of ``default_regions`` are in force without a policy's word.
    """

    key: str
    title: str
    aliases: tuple[str, ...]
    hosts: tuple[HostTemplate, ...]
    default_regions: tuple[str, ...] = ()
    note: str = ""

    @property
    def is_fixed(self) -> bool:
        """Whether there is nothing to fill in."""
        return "{" not in self.key

    def fill(self, values: Mapping[str, str]) -> CatalogEntry:
        """Return the entry with each placeholder of the key replaced by its value."""
        own = placeholders(self.key)
        hosts: list[CatalogHost] = []
        regional: list[RegionalHost] = []
        for host in self.hosts:
            kind = next(iter(placeholders(host.name) - own), None)
            if kind is None:
                hosts.append(host.fill(values))
                continue
            item = RegionalHost(kind, replace(host, name=fill(host.name, values)))
            regional.append(item)
            defaults = (item.at(region) for region in self.default_regions)
            hosts += [replace(found, region="") for found in defaults if found is not None]
        return CatalogEntry(
            key=fill(self.key, values),
            title=self.title,
            aliases=tuple(fill(alias, values) for alias in self.aliases),
            hosts=tuple(hosts),
            regional=tuple(regional),
            default_regions=self.default_regions,
            note=self.note,
        )

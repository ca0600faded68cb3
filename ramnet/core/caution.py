"""One caution: what it is about, and what several kinds of them ask of an entry."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from ramnet.core.catalog import CatalogEntry
from ramnet.core.names import HostPattern
from ramnet.core.placeholders import CLOUDS, fits
from ramnet.core.policy import RegistryEntry
from ramnet.core.textfile import Finding, KeyPath, place


class Kind(StrEnum):
    """What there is to be said; stable, for tools and for ``--ignore``."""

    DOCKER_HUB_MISSING = "docker-hub-missing"
    WIDE = "wide-wildcard"
    TENANT = "tenant-chosen"
    COMPANION = "companion-only"
    PARTIAL = "partial-registry"
    ALIAS = "cname-target"
    PORT = "other-port"
    EXPIRED = "expired"
    KNOWN = "already-known"
    REGION = "no-region"
    NO_EFFECT = "no-effect"


@dataclass(frozen=True, slots=True)
class Caution:
    """One thing to look at again, and where it is in the file."""

    kind: Kind
    finding: Finding

    def __str__(self) -> str:
        """Write it without its line, which a caution does not know."""
        found = self.finding
        where = f"{place(found.path)}: " if found.path else ""
        hint = f" ({found.hint})" if found.hint else ""
        return f"{where}{found.message}{hint}"


def caution(kind: Kind, path: KeyPath, message: str, hint: str) -> Caution:
    """Make a caution about a key of the file."""
    return Caution(kind, Finding(path, message, hint))


def in_force(pattern: HostPattern, entry: RegistryEntry, known: CatalogEntry) -> bool:
    """Whether a registry's entry brings all that a pattern stands for."""
    hosts = known.hosts_for(entry.regions, unverified=entry.unverified_hosts)
    return any(covers(host.pattern, pattern) for host in hosts)


def covers(wide: HostPattern, narrow: HostPattern) -> bool:
    """Whether one pattern stands for all that another does."""
    return wide == narrow or (wide.wildcard and wide.matches(narrow.name))


def about_regions(
    path: KeyPath, entry: RegistryEntry, known: CatalogEntry | None
) -> Iterator[Caution]:
    """Tell of hosts that lack a region, and of regions and a flag without any effect."""
    kinds = known.region_kinds if known is not None else ()
    for number, region in enumerate(entry.regions):
        if not any(fits(kind, region) for kind in kinds):
            what = f"no host of {entry.address} depends on the region {region}"
            hint = _usual(kinds) or "remove it"
            yield caution(Kind.NO_EFFECT, (*path, "regions", number), what, hint)
    if entry.unverified_hosts and not (known is not None and any(_optional(known))):
        what = f"the catalogue has no unverified host of {entry.address}"
        yield caution(Kind.NO_EFFECT, (*path, "unverified_hosts"), what, "remove it")
    # With extra hosts somebody has looked which ones it needs.
    if known is not None and known.needs_regions and not (entry.regions or entry.extra_hosts):
        what = f"some hosts of {known.title} are named after a region, and no region is given"
        hint = "; ".join(filter(None, (_usual(kinds), known.note)))
        yield caution(Kind.REGION, (*path, "address"), what, hint)


def _optional(known: CatalogEntry) -> Iterator[bool]:
    yield from (host.optional for host in known.hosts)
    yield from (item.template.optional for item in known.regional)


def _usual(kinds: Iterable[str]) -> str:
    examples = " or ".join(CLOUDS[kind] for kind in kinds)
    return f"regions takes {examples}" if examples else ""

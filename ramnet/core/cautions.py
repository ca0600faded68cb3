"""What is valid in a policy and probably not meant: it allows strangers, or nothing at all.

Nothing here is a fault, and nothing here is refused. Each caution has a kind, so that who means it
can say so (``ramnet policy validate --strict --ignore KIND``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date
from itertools import islice
from typing import Final

from ramnet.core.advice import advise, catalogued
from ramnet.core.allow import HTTPS, LOCALHOST
from ramnet.core.catalog import Catalog, CatalogEntry, CatalogHost, Owner, Role
from ramnet.core.caution import Caution, Kind, about_regions, caution, covers, in_force
from ramnet.core.match import Matcher
from ramnet.core.names import Address, HostName, HostPattern
from ramnet.core.placeholders import fixed_suffix
from ramnet.core.policy import Policy, RegistryEntry
from ramnet.core.strangers import strangers
from ramnet.core.suffixes import Suffixes, load_suffixes
from ramnet.core.textfile import Finding, KeyPath

#: More than anybody mends in one go; the report and ``status`` stay small.
MAX_CAUTIONS: Final = 100
#: Lines in ``status``, which has other things to say.
MAX_TOLD: Final = 10

DOCKER_HUB: Final = "docker.io"
# What CDNs and load balancers call their machines. Clients ask for a name of the registry's own,
# which DNS leads here by a CNAME. Names of CloudFront and Azure's CDN are used directly as well.
_BEHIND_CNAMES: Final = (
    "akamai.net",
    "akamaiedge.net",
    "cdn.cloudflare.net",
    "edgekey.net",
    "edgesuite.net",
    "elb.amazonaws.com",
    "fastly.net",
    "trafficmanager.net",
)


def cautions(
    policy: Policy,
    catalog: Catalog,
    suffixes: Suffixes,
    today: date,
    ignored: Iterable[Kind] = (),
) -> tuple[Caution, ...]:
    """Look a policy through; at most ``MAX_CAUTIONS`` in the order of the file.

    One more, without a place, then says that this is not all.
    """
    left_out = frozenset(ignored)
    found = _Reader(policy, catalog, suffixes, today).all()
    wanted = (item for item in found if item.kind not in left_out)
    kept = tuple(islice(wanted, MAX_CAUTIONS))
    more = next(wanted, None)
    if more is None:
        return kept
    told = Finding((), f"there are more than {MAX_CAUTIONS} of these", "mend these first")
    return (*kept, Caution(more.kind, told))


class _Reader:
    """Goes through one policy on one day."""

    def __init__(self, policy: Policy, catalog: Catalog, suffixes: Suffixes, today: date) -> None:
        self._policy = policy
        self._catalog = catalog
        self._suffixes = suffixes
        self._active = frozenset(map(id, policy.active(today)))
        self._families = _families(catalog)
        # Of the active entries those that the catalogue knows, by their place in the file.
        self._known = dict(self._catalogued())
        self._listed = {
            known.key: policy.registry[index] for index, known in reversed(self._known.items())
        }
        self._brought: Matcher[RegistryEntry] | None = None

    def _catalogued(self) -> Iterator[tuple[int, CatalogEntry]]:
        for index, entry in enumerate(self._policy.registry):
            if id(entry) in self._active and self._is_familiar(entry.address.pattern):
                known = catalogued(entry.address, self._catalog)
                if known is not None:
                    yield index, known

    def _is_familiar(self, pattern: HostPattern | None) -> bool:
        """Whether the catalogue may know a name: most of a long policy need no closer look."""
        return pattern is not None and _family(pattern.name) in self._families

    def all(self) -> Iterator[Caution]:
        """Yield every caution, in the order of the file."""
        if DOCKER_HUB not in self._listed:
            yield caution(
                Kind.DOCKER_HUB_MISSING,
                ("registry",),
                "docker.io is not listed: official images, the frontends of BuildKit (# syntax=)"
                " and the helper images of many tools come from there",
                "`ramnet policy add docker.io`, unless a mirror has all of them",
            )
        for index, entry in enumerate(self._policy.registry):
            yield from self._registry(("registry", index), entry, self._known.get(index))
        for index, destination in enumerate(self._policy.destination):
            yield from self._destination(("destination", index, "address"), destination.address)

    def _registry(
        self, path: KeyPath, entry: RegistryEntry, known: CatalogEntry | None
    ) -> Iterator[Caution]:
        if id(entry) not in self._active:
            yield caution(
                Kind.EXPIRED,
                (*path, "expires"),
                f"{entry.address} expired with {entry.expires} and is not allowed any more",
                "write a later day, or remove the entry",
            )
            return
        yield from self._address((*path, "address"), entry.address, known)
        for number, pattern in enumerate(entry.extra_hosts):
            where = (*path, "extra_hosts", number)
            yield from self._strangers(where, pattern)
            # An entry for any port allows its extra hosts on any port, the catalogue's on theirs.
            if known and not entry.address.any_port and in_force(pattern, entry, known):
                what = f"{pattern} comes with {entry.address} anyhow"
                yield caution(Kind.KNOWN, where, what, "remove it")
        yield from about_regions(path, entry, known)

    def _address(
        self, path: KeyPath, address: Address, known: CatalogEntry | None
    ) -> Iterator[Caution]:
        pattern = address.pattern
        if pattern is None or pattern.name == LOCALHOST:
            return
        found = list(self._strangers(path, pattern))
        yield from found
        if known or found:
            return
        if self._is_familiar(pattern):
            useless = self._other_port(path, address) or self._part_of(path, pattern)
        else:
            useless = _behind_cname(path, pattern)
        if useless:
            yield useless

    def _strangers(self, path: KeyPath, pattern: HostPattern) -> Iterator[Caution]:
        found = strangers(path, pattern, self._catalog, self._suffixes)
        if found:
            yield found

    def _destination(self, path: KeyPath, address: Address) -> Iterator[Caution]:
        if address.pattern is None:
            return
        yield from self._strangers(path, address.pattern)
        known = (
            self._catalog.lookup(address.pattern) if self._is_familiar(address.pattern) else None
        )
        if known:
            yield caution(
                Kind.COMPANION,
                path,
                f"{known.title} is a registry: a destination brings none of its other hosts, and"
                " is for engines only",
                "list it as a [[registry]]",
            )

    def _other_port(self, path: KeyPath, address: Address) -> Caution | None:
        if address.pattern is None or address.port in (None, HTTPS):
            return None
        known = self._catalog.lookup(address.pattern)
        if known is None:
            return None
        return caution(
            Kind.PORT,
            path,
            f"{known.title} is on port {HTTPS}: on port {address.port} only this name is allowed,"
            " and no other host of it",
            f'write "{address.pattern}"',
        )

    def _part_of(self, path: KeyPath, pattern: HostPattern) -> Caution | None:
        """Tell of an entry that is one host of a registry, or some, and not the registry."""
        owners = self._catalog.owners_of(_example(pattern))
        owners = tuple(owner for owner in owners if covers(owner.host.pattern, pattern))
        if not owners:
            return (
                self._partial(path, pattern) if pattern.wildcard else _behind_cname(path, pattern)
            )
        bringer = self._bringer(pattern)
        if bringer is not None:
            what = f"{pattern} comes with {bringer.address}, which is listed"
            return caution(Kind.KNOWN, path, what, "remove this entry")
        owner = next((owner for owner in owners if owner.entry.key in self._listed), owners[0])
        listed = self._listed.get(owner.entry.key)
        if listed is not None:
            name, address = _example(pattern), str(listed.address)
            advice = advise(name, HTTPS, address, self._policy, self._catalog)
            hint = f"`{advice.command}`, and remove this entry"
        else:
            hint = _list_it(owner.entry, owner)
        return caution(
            Kind.COMPANION,
            path,
            f"{pattern} is one host of {owner.entry.title} ({owner.host.role}): by itself nothing"
            " can be pulled from it",
            hint,
        )

    def _bringer(self, pattern: HostPattern) -> RegistryEntry | None:
        """Return the entry of the policy whose registry brings a host; None if there is none."""
        if self._brought is None:
            self._brought = Matcher(
                (host.pattern, entry)
                for entry, known in ((self._policy.registry[n], k) for n, k in self._known.items())
                for host in _hosts(entry, known)
            )
        return next(iter(self._brought.find(_example(pattern))), None)

    def _partial(self, path: KeyPath, pattern: HostPattern) -> Caution | None:
        """Tell of a wildcard over some of the hosts of a registry that is not listed itself."""
        partly: list[tuple[CatalogEntry, HostPattern]] = []
        for known in self._catalog:
            hosts = [host.pattern for host in known.hosts_for()]
            lacking = [host for host in hosts if not covers(pattern, host)]
            if hosts and not lacking:
                return None  # that registry is what is meant
            own = [host.pattern for host in known.with_role(Role.API)]
            touched = known.key == pattern.name or any(covers(pattern, host) for host in own)
            if touched and known.key not in self._listed:
                partly.append((known, lacking[0]))
        if not partly:
            return None
        known, host = partly[0]
        what = f"{pattern} does not cover {host}, without which {known.title} does not work"
        return caution(Kind.PARTIAL, path, what, _list_it(known))


def _hosts(entry: RegistryEntry, known: CatalogEntry) -> tuple[CatalogHost, ...]:
    return known.hosts_for(entry.regions, unverified=entry.unverified_hosts)


def _example(pattern: HostPattern) -> HostName:
    """Return a name that a pattern stands for."""
    return HostName(f"x.{pattern.name}") if pattern.wildcard else pattern.name


def _list_it(known: CatalogEntry, owner: Owner | None = None) -> str:
    if known.key.startswith("*."):
        return f'list the registry itself: "{known.key}", with your account in the place of *'
    if owner is not None and owner.region:
        return f'list "{known.key}" with regions = ["{owner.region}"]'
    if owner is not None and owner.optional:
        return f'list "{known.key}" with unverified_hosts = true'
    return f'list "{known.key}", which brings all its hosts'


def _behind_cname(path: KeyPath, pattern: HostPattern) -> Caution | None:
    name = pattern.name
    if not any(name == cdn or name.endswith(f".{cdn}") for cdn in _BEHIND_CNAMES):
        return None
    return caution(
        Kind.ALIAS,
        path,
        f"{pattern} is what a CDN calls its machines; clients ask for another name, which DNS"
        " leads there, and only that one counts",
        "list the name in front of the image; `ramnet doctor IMAGE` shows all that it needs",
    )


def _families(catalog: Catalog) -> frozenset[str]:
    """Return the last two labels of every name in a catalogue."""
    return frozenset(
        _family(fixed_suffix(name))
        for template in catalog.templates
        for name in (template.key, *template.aliases, *(host.name for host in template.hosts))
    )


def _family(name: str) -> str:
    return ".".join(name.rsplit(".", 2)[-2:])


class KeptCautions:
    """The cautions of the policy in force, in words; looked for once for each day and policy."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        # One value, so that two threads may ask.
        self._kept: tuple[Policy | None, date, tuple[str, ...]] = (None, date.min, ())

    def of(self, policy: Policy | None, today: date) -> tuple[str, ...]:
        """Return a line for each of the first ``MAX_TOLD``, and one that says if there are more."""
        of, day, told = self._kept
        if of is not policy or day != today:
            told = self._look(policy, today) if policy is not None else ()
            self._kept = (policy, today, told)
        return told

    def _look(self, policy: Policy, today: date) -> tuple[str, ...]:
        found = cautions(policy, self._catalog, load_suffixes(), today)
        told = [f"policy: {item}" for item in found[:MAX_TOLD]]
        if len(found) > MAX_TOLD:
            told.append("policy: there are more: `ramnet policy validate` shows them")
        return tuple(told)

"""The catalogue of registries: which hosts, beside the one in the policy, a pull contacts.

The data is ``ramnet/data/registries.toml``; its head says what every field means. A registry may
be written with placeholders (``{account}.dkr.ecr.{region}.amazonaws.com``): ``Catalog.lookup``
fills them from the address asked for, in every host of the entry.

Two facts of a host bound what may be refused because of it, and they are kept apart:
``registry_only`` is about its name, ``shared`` about its addresses. Two more bound what is allowed
because of it: unverified hosts and those of a region are in force only where a policy says so
(``CatalogEntry.hosts_for``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from importlib import resources

from ramnet.core.catalogfile import FORMAT, HTTPS, read_templates
from ramnet.core.cataloghosts import (
    CatalogEntry,
    CatalogHost,
    CatalogTemplate,
    HostTemplate,
    Owner,
    RegionalHost,
    Role,
    Source,
)
from ramnet.core.match import Matcher
from ramnet.core.names import HostName, HostPattern, parse_host
from ramnet.core.placeholders import ANY, capture, fixed_suffix, placeholders

__all__ = [
    "FORMAT",
    "HTTPS",
    "Catalog",
    "CatalogEntry",
    "CatalogHost",
    "CatalogTemplate",
    "HostTemplate",
    "Owner",
    "RegionalHost",
    "Role",
    "Source",
    "load_catalog",
    "parse_catalog",
]


class Catalog:
    """All known registries; ``load_catalog`` makes the one that ramnet ships."""

    __slots__ = ("_fixed", "_hosts", "_variable", "templates")

    def __init__(self, templates: Iterable[CatalogTemplate]) -> None:
        self.templates = tuple(templates)
        self._fixed: dict[str, CatalogEntry] = {}
        self._variable: list[tuple[str, CatalogTemplate]] = []
        for template in self.templates:
            entry = template.fill({}) if template.is_fixed else None
            for address in (template.key, *template.aliases):
                if entry is not None:
                    self._fixed[address] = entry
                else:
                    self._variable.append((address, template))
        # By what is fixed at the end of a host's name: few are left to be compared label by label.
        self._hosts = Matcher(
            (HostPattern(parse_host(suffix), wildcard=suffix != host.name), (template, host))
            for template in self.templates
            for host in template.hosts
            for suffix in (fixed_suffix(host.name),)
        )

    def __len__(self) -> int:
        return len(self.templates)

    def __iter__(self) -> Iterator[CatalogEntry]:
        """Iterate over the registries whose hosts are known without filling anything in."""
        return iter({entry.key: entry for entry in self._fixed.values()}.values())

    def lookup(self, pattern: HostPattern) -> CatalogEntry | None:
        """Return the registry that ``pattern`` names by its key or an alias, None if unknown.

        A wildcard names a registry only where it stands for a placeholder that is a whole first
        label: ``*.dkr.ecr.eu-west-1.amazonaws.com`` is ECR of that region for every account.
        """
        text = str(pattern)
        entry = self._fixed.get(text)
        if entry is not None:
            return entry
        for address, template in self._variable:
            values = capture(address, text)
            if values is not None:
                return template.fill(values)
        return None

    def owners_of(self, name: HostName) -> tuple[Owner, ...]:
        """Return the registries to which the host ``name`` belongs, each once; mostly one or none.

        Hosts that are not verified, and those of any region, count as well. The registry whose own
        address it is comes first, those that only may contact it come last.
        """
        entries = {entry.key: entry for entry in self._contacting(name)}.values()
        hosts = [(entry, entry.host_of(name)) for entry in entries]
        owners = [Owner(entry, host) for entry, host in hosts if host is not None]
        return tuple(sorted(owners, key=lambda owner: owner.rank))

    def _contacting(self, name: HostName) -> Iterator[CatalogEntry]:
        """Yield the registries with a host ``name``, once for each; what it lacks is a wildcard."""
        for template, host in self._hosts.find(name):
            values = capture(host.name, name)
            if values is not None:
                own = placeholders(template.key)
                yield template.fill({key: values.get(key, ANY) for key in own})

    def registry_of(self, name: HostName) -> CatalogEntry | None:
        """Return the registry whose API host ``name`` is; None if it serves anything else as well.

        What ``catalog`` mode may refuse: such names, and no others.
        """
        for owner in self.owners_of(name):
            if owner.host.role is Role.API and owner.host.registry_only:
                return owner.entry
        return None


@cache
def load_catalog() -> Catalog:
    """Return the catalogue that ramnet ships, read once.

    Raises ``PolicyError`` if the file was damaged.
    """
    file = resources.files("ramnet.data").joinpath("registries.toml")
    return parse_catalog(file.read_text(encoding="utf-8"), source=file.name)


def parse_catalog(text: str, *, source: str) -> Catalog:
    """Return the catalogue in ``text`` (TOML); ``source`` names it in messages.

    Raises ``PolicyError`` with every fault of the file.
    """
    return Catalog(read_templates(text, source=source))

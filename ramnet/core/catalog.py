"""The catalogue of registries: which hosts, beside the one in the policy, a pull contacts.

The data is ``ramnet/data/registries.toml``; its head says what every field means. A registry may
be written with placeholders (``{account}.dkr.ecr.{region}.amazonaws.com``): ``Catalog.lookup``
fills them from the address asked for, in every host of the entry.

Two facts of a host bound what may be refused because of it, and they are kept apart:
``registry_only`` is about its name, ``shared`` about its addresses.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import resources
from typing import Final, TypeVar

from ramnet.core.names import HostName, HostPattern, Ports, parse_pattern
from ramnet.errors import Fault, NameFault, PolicyError

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)

# The version of the file's format.
FORMAT: Final = 1
HTTPS: Final = frozenset({443})
# Longest text a placeholder may take: cloud regions have up to 23 characters, an account 12. With
# it, no host of an entry can outgrow a label of 63.
MAX_FILL: Final = 32
_FILL_CHARS: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
# What a placeholder takes if a policy allows every value of it: "*.dkr.ecr.eu-west-1...".
_ANY: Final = "*"


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


@dataclass(frozen=True, slots=True)
class CatalogHost:
    """One host that a registry's clients contact.

    ``source`` says how it is known and ``cite`` where from. ``registry_only``: the name serves
    nothing but a registry. ``shared``: its addresses also serve others, or that is not known.
    """

    pattern: HostPattern
    role: Role
    ports: frozenset[int]
    source: Source
    cite: str
    registry_only: bool
    shared: bool


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One registry with all its hosts; ``key`` and ``aliases`` are what a policy may call it."""

    key: str
    title: str
    aliases: tuple[str, ...]
    hosts: tuple[CatalogHost, ...]

    def with_role(self, role: Role) -> tuple[CatalogHost, ...]:
        """Return the hosts of that role, in the order of the catalogue."""
        return tuple(host for host in self.hosts if host.role is role)


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

    def fill(self, values: Mapping[str, str]) -> CatalogHost:
        """Return the host with each placeholder replaced by its value."""
        return CatalogHost(
            pattern=parse_pattern(_fill(self.name, values)),
            role=self.role,
            ports=self.ports,
            source=self.source,
            cite=self.cite,
            registry_only=self.registry_only,
            shared=self.shared,
        )


@dataclass(frozen=True, slots=True)
class CatalogTemplate:
    """A registry as the catalogue writes it: every name may hold ``{placeholders}``."""

    key: str
    title: str
    aliases: tuple[str, ...]
    hosts: tuple[HostTemplate, ...]

    @property
    def is_fixed(self) -> bool:
        """Whether there is nothing to fill in."""
        return "{" not in self.key

    def fill(self, values: Mapping[str, str]) -> CatalogEntry:
        """Return the entry with each placeholder replaced by its value."""
        return CatalogEntry(
            key=_fill(self.key, values),
            title=self.title,
            aliases=tuple(_fill(alias, values) for alias in self.aliases),
            hosts=tuple(host.fill(values) for host in self.hosts),
        )


class Catalog:
    """All known registries; ``load_catalog`` makes the one that ramnet ships."""

    __slots__ = ("_fixed", "_variable", "templates")

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
            values = _capture(address, text)
            if values is not None:
                return template.fill(values)
        return None

    def registry_of(self, name: HostName) -> CatalogEntry | None:
        """Return the registry whose API host ``name`` is; None if it serves anything else as well.

        What ``catalog`` mode may refuse: such names, and no others.
        """
        for template in self.templates:
            for host in template.hosts:
                if host.role is Role.API and host.registry_only:
                    values = _capture(host.name, name)
                    if values is not None:
                        return template.fill(values)
        return None


def _fill(text: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def _capture(template: str, text: str) -> dict[str, str] | None:
    """Return the values of the placeholders that make ``template`` into ``text``, or None."""
    parts, labels = template.split("."), text.split(".")
    if len(parts) != len(labels):
        return None
    values: dict[str, str] = {}
    for part, label in zip(parts, labels, strict=True):
        head, brace, rest = part.partition("{")
        if not brace:
            if part != label:
                return None
            continue
        name, _, tail = rest.partition("}")
        if not (label.startswith(head) and label.endswith(tail)):
            return None
        value = label[len(head) : len(label) - len(tail)]
        if not (_is_fill(value) or value == _ANY):
            return None
        if values.setdefault(name, value) != value:
            return None
    return values


def _is_fill(value: str) -> bool:
    return 0 < len(value) <= MAX_FILL and _FILL_CHARS.issuperset(value)


def _placeholders(text: str) -> frozenset[str]:
    return frozenset(part.partition("}")[0] for part in text.split("{")[1:])


@cache
def load_catalog() -> Catalog:
    """Return the catalogue that ramnet ships, read once.

    Raises ``PolicyError`` if the file was damaged.
    """
    file = resources.files("ramnet.data").joinpath("registries.toml")
    return parse_catalog(file.read_text(encoding="utf-8"), source=file.name)


def parse_catalog(text: str, *, source: str) -> Catalog:
    """Return the catalogue in ``text`` (TOML); ``source`` names it in messages.

    Raises ``PolicyError`` with every fault: unknown or missing keys, values of a wrong kind, names
    that are no host patterns, placeholders that the key does not have, a name used twice.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        fault = Fault("", None, f"not TOML: {err}", "see https://toml.io")
        raise PolicyError(source, [fault]) from err
    reader = _Reader()
    templates = reader.templates(document)
    if reader.faults:
        raise PolicyError(source, reader.faults)
    return Catalog(templates)


class _Table:
    """One TOML table, read key by key; ``finish`` reports the keys that nobody asked for."""

    def __init__(self, faults: list[Fault], place: str, value: object) -> None:
        self._faults = faults
        self._rest: dict[str, object] = value.copy() if isinstance(value, dict) else {}
        self.place = place
        if not isinstance(value, dict):
            self.fault("", f"expected a table, found {_kind(type(value))}", "write key = value")

    def fault(self, key: str, message: str, hint: str) -> None:
        place = ".".join(filter(None, (self.place, key)))
        self._faults.append(Fault(place, None, message, hint))

    def take(self, key: str, kind: type[T], *, optional: bool = False) -> T | None:
        """Return the value of ``key``; None, and a fault, if it is not exactly of that kind."""
        if key not in self._rest:
            if not optional:
                self.fault(key, "is missing", f"add {key} ({_kind(kind)})")
            return None
        value = self._rest.pop(key)
        # Not isinstance: true is an int to Python, not to TOML.
        if type(value) is not kind:
            self.fault(
                key,
                f"expected {_kind(kind)}, found {_kind(type(value))}",
                "the head of the file says what each key means",
            )
            return None
        return value

    def choice(self, key: str, choices: type[E]) -> E | None:
        text = self.take(key, str)
        if text is None:
            return None
        try:
            return choices(text)
        except ValueError:
            known = ", ".join(choices)
            self.fault(key, f"{text!r} is not known", f"write one of: {known}")
            return None

    def texts(self, key: str) -> tuple[str, ...]:
        given = self.take(key, list, optional=True) or []
        texts = tuple(text for text in given if isinstance(text, str))
        if len(texts) != len(given):
            self.fault(key, "expected a list of strings", 'write ["a.example", "b.example"]')
        return texts

    def finish(self) -> None:
        for key in self._rest:
            self.fault(key, "is not a known key", "remove it, or correct its spelling")


class _Reader:
    """Turns the parsed TOML into templates and gathers the faults on the way."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self._owners: dict[str, str] = {}

    def templates(self, document: dict[str, object]) -> list[CatalogTemplate]:
        table = _Table(self.faults, "", document)
        version = table.take("version", int)
        if version not in (None, FORMAT):
            table.fault("version", f"{version} is unknown", f"this ramnet reads version {FORMAT}")
        rows = table.take("registry", list) or []
        table.finish()
        return [
            self._registry(_Table(self.faults, f"registry[{number}]", row))
            for number, row in enumerate(rows)
        ]

    def _registry(self, table: _Table) -> CatalogTemplate:
        key = table.take("key", str) or ""
        title = table.take("title", str) or ""
        aliases = table.texts("aliases")
        sources = _Table(self.faults, f"{table.place}.sources", table.take("sources", dict) or {})
        rows = table.take("hosts", list) or []
        table.finish()
        cites = {tag: sources.take(tag, str, optional=True) or "" for tag in Source}
        sources.finish()

        samples = _samples(key)
        self._address(table, "key", key, samples)
        for alias in aliases:
            self._address(table, "aliases", alias, samples)
        hosts = []
        for number, row in enumerate(rows):
            item = _Table(self.faults, f"{table.place}.hosts[{number}]", row)
            host = _host(item, cites, samples)
            if host is not None:
                hosts.append(host)
        if not any(host.role is Role.API for host in hosts):
            table.fault("hosts", "no host has the role api", "list the registry's own host")
        return CatalogTemplate(key, title, aliases, tuple(hosts))

    def _address(self, table: _Table, key: str, name: str, samples: _Samples) -> None:
        """Check a name by which a policy may call the registry."""
        _check_name(table, key, name, samples)
        if _placeholders(name) != samples[0].keys():
            table.fault(
                key,
                f"{name!r} has other placeholders than the key",
                "an alias gives a value to each placeholder of the key",
            )
        if any(label.count("{") > 1 for label in name.split(".")):
            table.fault(key, f"{name!r} has two placeholders in one label", "use one in each label")
        owner = self._owners.setdefault(name, table.place)
        if owner != table.place:
            table.fault(key, f"{name!r} already names {owner}", "name a registry once")


# Fillings that every name of a registry must survive: the longest values, and, where the key starts
# with a placeholder that is a whole label, the wildcard there.
_Samples = tuple[dict[str, str], ...]


def _samples(key: str) -> _Samples:
    longest = dict.fromkeys(sorted(_placeholders(key)), "a" * MAX_FILL)
    first = key.partition(".")[0]
    if first.startswith("{") and first.endswith("}"):
        return (longest, {**longest, first[1:-1]: _ANY})
    return (longest,)


def _check_name(table: _Table, key: str, name: str, samples: _Samples) -> None:
    unknown = _placeholders(name) - samples[0].keys()
    if unknown:
        table.fault(
            key,
            f"{name!r} has a placeholder that the key does not have: {min(unknown)!r}",
            "every placeholder takes its value from the key",
        )
        return
    for values in samples:
        filled = _fill(name, values)
        try:
            pattern = parse_pattern(filled)
        except NameFault as err:
            table.fault(key, err.message, err.hint)
            return
        if str(pattern) != filled:
            table.fault(key, f"{name!r} is not in canonical form", "write it in lower case")
            return


def _host(table: _Table, cites: Mapping[Source, str], samples: _Samples) -> HostTemplate | None:
    name = table.take("name", str)
    role = table.choice("role", Role)
    source = table.choice("source", Source)
    registry_only = table.take("registry_only", bool)
    shared = table.take("shared", bool)
    ports = _ports(table)
    table.finish()
    if name is not None:
        _check_name(table, "name", name, samples)
    if source is not None and not cites[source]:
        table.fault("source", f"nothing is cited for {source}", f"add {source} to sources")
    if name is None or role is None or source is None or registry_only is None or shared is None:
        return None
    return HostTemplate(name, role, ports, source, cites[source], registry_only, shared)


def _ports(table: _Table) -> frozenset[int]:
    given = table.take("ports", list, optional=True)
    if given is None:
        return HTTPS
    ports = frozenset(port for port in given if type(port) is int)
    if not ports or len(ports) != len(given):
        table.fault("ports", "expected a list of different ports", "write [443], or leave it out")
    try:
        Ports(ports)
    except NameFault as err:
        table.fault("ports", err.message, err.hint)
    return ports


_KINDS: Final[Mapping[type, str]] = {
    str: "a string",
    int: "an integer",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}


def _kind(kind: type) -> str:
    return _KINDS.get(kind, f"a {kind.__name__}")

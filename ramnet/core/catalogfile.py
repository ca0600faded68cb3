"""Reading the catalogue's file: TOML becomes templates, or one error that lists every fault."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from enum import StrEnum
from typing import Final, TypeVar

from ramnet.core.cataloghosts import CatalogTemplate, HostTemplate, Role, Source
from ramnet.core.names import Ports, parse_pattern
from ramnet.core.placeholders import (
    ANY,
    CLOUDS,
    MAX_FILL,
    fill,
    fits,
    fixed_suffix,
    placeholders,
)
from ramnet.errors import Fault, NameFault, PolicyError

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)

# The version of the file's format.
FORMAT: Final = 1
HTTPS: Final = frozenset({443})
# Characters of a note: two lines of a terminal, which doctor prints among others.
MAX_NOTE: Final = 240


def read_templates(text: str, *, source: str) -> list[CatalogTemplate]:
    """Return the registries in ``text`` (TOML); ``source`` names it in messages.

    Raises ``PolicyError`` with every fault: unknown or missing keys, values of a wrong kind, names
    that are no host patterns, placeholders that nothing could fill, a name used twice.
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
    return templates


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
            self._registry(_Table(self.faults, f"registry[{number}]", each))
            for number, row in enumerate(rows)
            for each in self._spread(f"registry[{number}]", row)
        ]

    def _spread(self, place: str, row: object) -> list[object]:
        """Make one registry of each of its ``values``, which take the place of a placeholder."""
        if not isinstance(row, dict) or "values" not in row:
            return [row]
        table = _Table(self.faults, place, row)
        values = _Table(self.faults, f"{place}.values", table.take("values", dict) or {})
        spread: list[object] = [{key: value for key, value in row.items() if key != "values"}]
        for name in sorted(placeholders(str(row.get("key")))):
            texts = values.texts(name)
            spread = [_filled(each, {name: text}) for each in spread for text in texts] or spread
        values.finish()
        return spread

    def _registry(self, table: _Table) -> CatalogTemplate:
        key = table.take("key", str) or ""
        title = table.take("title", str) or ""
        note = table.take("note", str, optional=True) or ""
        aliases = table.texts("aliases")
        regions = table.texts("default_regions")
        sources = _Table(self.faults, f"{table.place}.sources", table.take("sources", dict) or {})
        rows = table.take("hosts", list) or []
        table.finish()
        cites = {tag: sources.take(tag, str, optional=True) or "" for tag in Source}
        sources.finish()
        if len(note) > MAX_NOTE:
            table.fault("note", f"has {len(note)} characters", f"keep it to {MAX_NOTE}")

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
        kinds = {kind for host in hosts for kind in placeholders(host.name) - samples[0].keys()}
        for region in regions:
            if not any(fits(kind, region) for kind in kinds):
                table.fault("default_regions", f"no host has {region!r} in it", "remove it")
        if not any(host.role is Role.API for host in hosts):
            table.fault("hosts", "no host has the role api", "list the registry's own host")
        return CatalogTemplate(key, title, aliases, tuple(hosts), regions, note)

    def _address(self, table: _Table, key: str, name: str, samples: _Samples) -> None:
        """Check a name by which a policy may call the registry."""
        _check_name(table, key, name, samples)
        if placeholders(name) != samples[0].keys():
            table.fault(
                key,
                f"{name!r} has other placeholders than the key",
                "an alias gives a value to each placeholder of the key",
            )
        owner = self._owners.setdefault(name, table.place)
        if owner != table.place:
            table.fault(key, f"{name!r} already names {owner}", "name a registry once")


# Fillings that every name of a registry must survive: the longest values, and, where the key starts
# with a placeholder that is a whole label, the wildcard there.
_Samples = tuple[dict[str, str], ...]


def _samples(key: str) -> _Samples:
    longest = dict.fromkeys(sorted(placeholders(key)), "a" * MAX_FILL)
    whole = _whole_first(key)
    return (longest, {**longest, whole: ANY}) if whole else (longest,)


def _whole_first(key: str) -> str:
    """Return the placeholder that is the whole first label, or nothing."""
    first = key.partition(".")[0]
    return first[1:-1] if first.startswith("{") and first.endswith("}") else ""


def _filled(value: object, values: Mapping[str, str]) -> object:
    """Fill placeholders in every text of a TOML value."""
    match value:
        case str():
            return fill(value, values)
        case list():
            return [_filled(item, values) for item in value]
        case dict():
            return {key: _filled(item, values) for key, item in value.items()}
    return value


def _check_name(table: _Table, key: str, name: str, samples: _Samples) -> None:
    """Check that a name is a host pattern whatever the placeholders of the key are filled with."""
    if any(label.count("{") > 1 for label in name.split(".")):
        table.fault(key, f"{name!r} has two placeholders in one label", "use one in each label")
        return
    if not fixed_suffix(name):
        table.fault(key, f"{name!r} has a placeholder in its last label", "write the domain there")
        return
    for values in samples:
        filled = fill(name, values)
        try:
            pattern = parse_pattern(filled)
        except NameFault as err:
            table.fault(key, err.message, err.hint)
            return
        if str(pattern) != filled:
            table.fault(key, f"{name!r} is not in canonical form", "write it in lower case")
            return


def _check_host(table: _Table, name: str, samples: _Samples) -> None:
    """Check a host's name: as an address, or with a region that the key does not have."""
    own = samples[0].keys()
    more = placeholders(name) - own
    regions = more & CLOUDS.keys()
    if more - regions or len(regions) > 1:
        table.fault(
            "name",
            f"{name!r} has a placeholder that the key does not have: {min(more)!r}",
            f"those of the key can be filled in, and one of {', '.join(CLOUDS)}",
        )
        return
    longest = dict.fromkeys(regions, "a" * MAX_FILL)
    _check_name(table, "name", name, tuple({**values, **longest} for values in samples))
    # Else nobody could say whose host it is, from its name.
    lost = (
        own
        - placeholders(name)
        - {key for values in samples for key in values if values[key] == ANY}
    )
    if lost:
        table.fault(
            "name",
            f"{name!r} does not tell {min(lost)!r}",
            "only a placeholder that is the key's whole first label may be missing",
        )


def _host(table: _Table, cites: Mapping[Source, str], samples: _Samples) -> HostTemplate | None:
    name = table.take("name", str)
    role = table.choice("role", Role)
    source = table.choice("source", Source)
    registry_only = table.take("registry_only", bool)
    shared = table.take("shared", bool)
    ports = _ports(table)
    table.finish()
    if name is not None:
        _check_host(table, name, samples)
    if source is not None and not cites[source]:
        table.fault("source", f"nothing is cited for {source}", f"add {source} to sources")
    if name is None or role is None or source is None or registry_only is None or shared is None:
        return None
    if source is Source.UNVERIFIED and role is Role.API and registry_only:
        table.fault(
            "registry_only",
            "an unverified host would be refused because of the catalogue",
            "write registry_only = false, or say where it is known from",
        )
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

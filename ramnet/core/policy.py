"""The policy file: which registries an organisation allows.

Text becomes one immutable :class:`Policy`, or a PolicyError that lists everything wrong with it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from datetime import date, datetime
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Annotated, Any, ClassVar, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, PlainValidator, ValidationError

from ramnet.core.names import Address, HostPattern, parse_address, parse_pattern
from ramnet.core.placeholders import CLOUDS, is_region
from ramnet.core.textfile import (
    Finding,
    choice,
    expect_text,
    kind_of,
    line_of_text,
    read_document,
    refuse,
    shown,
    validate,
    whole,
)
from ramnet.errors import Fault, NameFault, PolicyError

POLICY_VERSION = 1
MAX_ORGANIZATION = 100  # characters: it is spelled out in certificates and in one-line messages
MAX_NICKNAME = 100  # characters: one column of a table
MAX_CONTACT = 200  # characters: an address or a URL, shown in every refusal
MAX_REASON = 500  # characters: a sentence or two for the next reader
_MAPPED = IPv6Network("::ffff:0:0/96")

Network: TypeAlias = IPv4Network | IPv6Network


class Mode(StrEnum):
    """What happens to a connection that the policy does not allow."""

    ENFORCE = "enforce"
    AUDIT = "audit"


class ClassMode(StrEnum):
    """How a traffic class is judged."""

    STRICT = "strict"
    CATALOG = "catalog"
    OFF = "off"


class OnDeny(StrEnum):
    """How a refused connection is answered."""

    NOTICE = "notice"
    REJECT = "reject"
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class OnDenyEach:
    """How each class is answered; what is forwarded cannot be led to a notice."""

    engine: OnDeny = OnDeny.NOTICE
    host: OnDeny = OnDeny.NOTICE
    containers: OnDeny = OnDeny.REJECT

    def of(self, name: str) -> OnDeny:
        """Return how one class is answered, by its name."""
        found: OnDeny = getattr(self, name)
        return found

    @property
    def plain(self) -> str | dict[str, str]:
        """The shortest way to write it: one word for all, or one for each class."""
        if self == _everybody(self.engine):
            return str(self.engine)
        return {field.name: str(self.of(field.name)) for field in fields(self)}


def _everybody(answer: OnDeny) -> OnDenyEach:
    containers = OnDeny.REJECT if answer is OnDeny.NOTICE else answer
    return OnDenyEach(answer, answer, containers)


def _on_deny(value: object) -> OnDenyEach:
    if not isinstance(value, dict):
        return _everybody(_one_on_deny(value, "engine"))
    known = [field.name for field in fields(OnDenyEach)]
    if unknown := next((key for key in value if key not in known), None):
        raise refuse(f"{shown(str(unknown))} is not a class", f"known are {', '.join(known)}")
    return replace(OnDenyEach(), **{key: _one_on_deny(value[key], key) for key in value})


def _one_on_deny(value: object, name: str) -> OnDeny:
    words = [str(word) for word in OnDeny]
    usual = f"write one of {', '.join(words)}"
    text = expect_text(value)
    if text not in words:
        raise refuse(f"{shown(text)} is no answer to a refused connection", usual)
    if name == "containers" and text == OnDeny.NOTICE:
        why = "what containers send is forwarded, and cannot be led to a notice"
        raise refuse(why, 'write containers = "reject" or "drop"')
    return OnDeny(text)


def _address(value: object) -> Address:
    try:
        return parse_address(expect_text(value))
    except NameFault as error:
        raise refuse(error.message, error.hint) from error


def _pattern(value: object) -> HostPattern:
    text = expect_text(value)
    try:
        return parse_pattern(text)
    except NameFault as error:
        hint = "list addresses under networks" if _is_ip(text) else error.hint
        raise refuse(error.message, hint) from error


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _network(value: object) -> Network:
    text = expect_text(value)
    usual = 'write an IP address or a network, such as "10.20.0.5" or "10.30.0.0/24"'
    head, slash, length = text.partition("/")
    # ip_network also takes netmasks and zone names, which no other tool here would read back.
    if "%" in text or (slash and not (length.isascii() and length.isdigit())):
        raise refuse(f"{shown(text)} is not a network", usual)
    try:
        network = ip_network(text, strict=False)
    except ValueError as error:
        raise refuse(f"{shown(text)} is not a network", usual) from error
    if network.prefixlen == 0:
        raise refuse(f"{text} allows every address", "list the registry's own networks")
    if isinstance(network, IPv6Network) and network.overlaps(_MAPPED):
        mapped = network.network_address.ipv4_mapped
        hint = f"write it as IPv4: {mapped}/{network.prefixlen - 96}" if mapped else usual
        raise refuse(f"{text} covers IPv4-mapped addresses, which no packet carries", hint)
    if slash and ip_network(head) != ip_network(network.network_address):
        raise refuse(
            f"{text} has bits set behind its prefix",
            f'write "{network}" for the whole network, or "{head}" for the one address',
        )
    return network


def _region(value: object) -> str:
    text = expect_text(value)
    if not is_region(text):
        known = " or ".join(CLOUDS.values())
        raise refuse(f"{shown(text)} is not the region of a cloud", f"write {known}")
    return text


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise refuse(f"must be true or false, not {kind_of(value)}", "write it without quotes")
    return value


def _expires(value: object) -> date:
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    day: date | None = None
    if isinstance(value, str):
        try:
            day = date.fromisoformat(value)
        except ValueError:
            day = None
    if day is None or day.isoformat() != value:
        what = shown(value) if isinstance(value, str) else kind_of(value)
        raise refuse(f"must be a date, not {what}", "write it as 2027-01-31, without a time")
    return day


def _version(value: object) -> int:
    if type(value) is not int:
        raise refuse(f"must be the number 1, not {kind_of(value)}", "write version = 1")
    if value != POLICY_VERSION:
        raise refuse("is a version of the format that is not known", "this ramnet reads version 1")
    return value


def _min_ramnet(value: object) -> str:
    text = expect_text(value)
    if not re.fullmatch(r"\d{1,6}(\.\d{1,6}){0,3}", text, re.ASCII):
        raise refuse(f"{shown(text)} is not a version of ramnet", 'write one like "0.2"')
    return text


_AddressKey: TypeAlias = Annotated[Address, PlainValidator(_address)]
_PatternKey: TypeAlias = Annotated[HostPattern, PlainValidator(_pattern)]
_NetworkKey: TypeAlias = Annotated[Network, PlainValidator(_network)]
_RegionKey: TypeAlias = Annotated[str, PlainValidator(_region)]
_Nickname: TypeAlias = Annotated[str, line_of_text(MAX_NICKNAME)]
_Reason: TypeAlias = Annotated[str, line_of_text(MAX_REASON)]
_Port: TypeAlias = Annotated[int, whole(1, 65535)]

# The entries are plain slotted dataclasses, which pydantic fills: a model instance has two dicts
# of its own, which a million entries would feel.


@dataclass(frozen=True, slots=True)
class RegistryEntry:
    """One allowed registry.

    ``extra_hosts`` are companion hosts that the catalogue does not know, ``networks`` is reached
    without DNS, ``expires`` is the last day on which the entry is in force. ``regions`` are those
    of a cloud whose hosts the catalogue names by region, ``unverified_hosts`` takes the hosts too
    that it lists as not verified.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    address: _AddressKey
    nickname: _Nickname | None = None
    extra_hosts: tuple[_PatternKey, ...] = ()
    networks: tuple[_NetworkKey, ...] = ()
    regions: tuple[_RegionKey, ...] = ()
    unverified_hosts: Annotated[bool, PlainValidator(_flag)] = False
    expires: Annotated[date, PlainValidator(_expires)] | None = None
    reason: _Reason | None = None


@dataclass(frozen=True, slots=True)
class DestinationEntry:
    """Something that is not a registry and that engines may reach all the same.

    ``ports`` is empty where the address names its port, or where neither does: then 443 is meant.
    Both TCP and UDP; UDP not on 80 and 443, where registries are.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    address: _AddressKey
    ports: tuple[_Port, ...] = ()
    nickname: _Nickname | None = None
    reason: _Reason | None = None


def _one_source_of_ports(entry: DestinationEntry) -> DestinationEntry:
    if entry.ports and (entry.address.port is not None or entry.address.any_port):
        raise refuse("has a port in its address and a list of ports", "keep one of the two")
    return entry


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Support(_Table):
    """Whom a refused person may ask."""

    contact: Annotated[str, line_of_text(MAX_CONTACT)] | None = None


class Enforcement(_Table):
    """How strictly each traffic class is judged, and how a refusal looks."""

    mode: Annotated[Mode, choice(Mode)] = Mode.ENFORCE
    engine: Annotated[ClassMode, choice(ClassMode)] = ClassMode.STRICT
    containers: Annotated[ClassMode, choice(ClassMode)] = ClassMode.CATALOG
    on_deny: Annotated[OnDenyEach, PlainValidator(_on_deny)] = OnDenyEach()


class Policy(_Table):
    """A valid policy file. ``min_ramnet`` is the oldest ramnet that may read it."""

    version: Annotated[int, PlainValidator(_version)]
    organization: Annotated[str, line_of_text(MAX_ORGANIZATION)]
    min_ramnet: Annotated[str, PlainValidator(_min_ramnet)] | None = None
    support: Support = Support()
    registry: tuple[RegistryEntry, ...] = ()
    destination: tuple[Annotated[DestinationEntry, AfterValidator(_one_source_of_ports)], ...] = ()
    enforcement: Enforcement = Enforcement()

    def active(self, today: date) -> tuple[RegistryEntry, ...]:
        """Give the registries in force on a day: an entry ends when its ``expires`` day ends."""
        return tuple(
            entry for entry in self.registry if entry.expires is None or today <= entry.expires
        )


_KNOWN: dict[tuple[str, ...], tuple[str, ...]] = {
    (): tuple(Policy.model_fields),
    ("support",): tuple(Support.model_fields),
    ("registry",): tuple(field.name for field in fields(RegistryEntry)),
    ("destination",): tuple(field.name for field in fields(DestinationEntry)),
    ("enforcement",): tuple(Enforcement.model_fields),
}


def parse_policy(text: str | bytes, *, source: str, ramnet_version: str) -> Policy:
    """Read a policy: JSON when ``source`` ends in .json, else TOML.

    ``ramnet_version`` is the running version, which ``min_ramnet`` is held against. Whether a
    policy is valid does not depend on the day: an expired entry is valid, but not active.
    Raises PolicyError with every fault of the file.
    """
    document = read_document(text, source=source)
    if not document.text.strip():
        hint = "`ramnet policy init` writes a first policy"
        raise PolicyError(source, [Fault("", None, "the file is empty", hint)])

    def check(policy: Policy | None, data: dict[str, Any]) -> Iterator[Finding]:
        yield from _too_old(data.get("min_ramnet"), ramnet_version)
        if policy:
            yield from _listed_twice(entry.address for entry in policy.registry)
        else:
            yield from _listed_twice(_addresses(data.get("registry")))

    return validate(document, Policy, _KNOWN, check)


def canonical_policy(policy: Policy) -> dict[str, Any]:
    """Give a policy as JSON values: defaults spelled out, names normalised, absent keys left out.

    The result is itself a valid policy, and the same for every spelling of one policy.
    """
    wanted = policy.enforcement
    return _present(
        version=policy.version,
        organization=policy.organization,
        min_ramnet=policy.min_ramnet,
        support=_present(contact=policy.support.contact),
        registry=[_plain_registry(entry) for entry in policy.registry],
        destination=[_plain_destination(entry) for entry in policy.destination],
        enforcement={
            "mode": str(wanted.mode),
            "engine": str(wanted.engine),
            "containers": str(wanted.containers),
            "on_deny": wanted.on_deny.plain,
        },
    )


def policy_digest(policy: Policy) -> str:
    """Digest a policy, as ``sha256:`` and hexadecimal digits, over its canonical JSON form."""
    plain = canonical_policy(policy)
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def initial_policy_text(organization: str) -> str:
    """Write a first policy in TOML, with comments. Raises PolicyError for a bad organization."""
    try:
        Policy(version=POLICY_VERSION, organization=organization)
    except ValidationError as error:
        told = error.errors()[0]["ctx"]
        fault = Fault("organization", None, told["message"], told["hint"])
        raise PolicyError("a new policy", [fault]) from error
    # What may stand in a JSON string unescaped may do so in TOML, and no control character passed.
    return _INITIAL.format(organization=json.dumps(organization, ensure_ascii=False))


_INITIAL = """\
# Which container registries may be used on this machine.
# Check this file with `ramnet policy validate`; a saved change is in force at once.
version = 1
organization = {organization}

# [support]
# contact = "it@acme.example"         # whom a refused person may ask

# One [[registry]] for each allowed registry. Others are refused once this is enforced.
[[registry]]
address = "docker.io"                 # its login and download hosts are known
nickname = "Docker Hub"

# [[registry]]
# address = "registry.corp.example:5000"   # or "localhost:*", "10.0.0.1:5000", "*.example.com"
# nickname = "Corp"
# extra_hosts = ["blobs.corp.example"]     # where its downloads come from, if elsewhere
# networks = ["10.30.0.0/24"]              # addresses that are reached without DNS
# regions = ["eu-west-1"]                  # of a cloud registry: where its layers are kept
# unverified_hosts = true                  # also hosts that `ramnet registry show` marks so
# expires = 2027-01-31                     # the last day on which this entry counts
# reason = "trial of the new registry"

# Engines may need more than registries, such as git for build contexts.
# [[destination]]
# address = "github.com"
# ports = [443]

# It begins in audit mode: nothing is refused, what would be is recorded. `ramnet activity` shows
# it, `ramnet policy suggest` makes entries of it. When it has none to add, write "enforce".
[enforcement]
mode = "audit"                        # enforce | audit
# The defaults of the rest:
# engine = "strict"                   # strict | catalog | off
# containers = "catalog"              # strict | catalog | off
# on_deny = "notice"                  # notice | reject | drop
"""


def _too_old(wanted: object, running: str) -> Iterator[Finding]:
    """Hold ``min_ramnet`` against the running version; its own form is the model's to judge."""
    try:
        least = _release(_min_ramnet(wanted))
    except ValueError:
        return
    if _release(running) < least:
        message = f"this policy needs ramnet {wanted}; this is {running}"
        yield Finding(("min_ramnet",), message, "upgrade ramnet, or lower min_ramnet")


def _release(version: str) -> list[int]:
    """Read the numbers at the start of a version, without the zeros at their end."""
    found = re.match(r"\d+(\.\d+)*", version, re.ASCII)
    numbers = [int(part) for part in found[0].split(".")] if found else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return numbers


def _listed_twice(addresses: Iterable[Address | None]) -> Iterator[Finding]:
    first: dict[Address, int] = {}
    for index, address in enumerate(addresses):
        if address is not None and (before := first.setdefault(address, index)) != index:
            path = ("registry", index, "address")
            earlier = ("registry", before, "address")
            yield Finding(path, f"{address} is already listed at", "merge the two", first=earlier)


def _addresses(entries: object) -> Iterator[Address | None]:
    """Read the addresses of a list of registries that has faults elsewhere."""
    for entry in entries if isinstance(entries, list) else ():
        try:
            yield _address(entry["address"]) if isinstance(entry, dict) else None
        except (KeyError, ValueError):
            yield None  # the model tells


def _present(**keys: Any) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if value not in (None, {}, [], ())}


def _plain_registry(entry: RegistryEntry) -> dict[str, Any]:
    return _present(
        address=str(entry.address),
        nickname=entry.nickname,
        extra_hosts=[str(pattern) for pattern in entry.extra_hosts],
        networks=[str(network) for network in entry.networks],
        regions=list(entry.regions),
        unverified_hosts=entry.unverified_hosts or None,
        expires=entry.expires.isoformat() if entry.expires else None,
        reason=entry.reason,
    )


def _plain_destination(entry: DestinationEntry) -> dict[str, Any]:
    return _present(
        address=str(entry.address),
        ports=sorted(set(entry.ports)),
        nickname=entry.nickname,
        reason=entry.reason,
    )

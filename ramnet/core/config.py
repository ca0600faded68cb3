"""The configuration file, ``ramnet.toml``: what is the machine's own, whatever the policy says."""

from __future__ import annotations

from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Annotated, Self, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, PlainValidator, model_validator

from ramnet.core.textfile import (
    choice,
    expect_text,
    kind_of,
    read_document,
    refuse,
    shown,
    validate,
    whole,
)

MAX_CGROUPS = 16  # engines of one machine; each cgroup costs a set lookup for every new connection
MAX_CGROUP_PATH = 1024  # characters; engines are two or three short levels down
_NAME_MAX = 255  # a component of a path, by linux/limits.h
MAX_UIDS = 16  # users that run engines: root, and those of rootless ones
_UID_MAX = (1 << 32) - 2  # the last one is "no user", see chown(2)
MAX_SERVERS = 16  # pinned resolvers; the C library itself uses three
_MARK_BITS = 32  # a conntrack mark is 32 bits wide

DnsServer: TypeAlias = IPv4Address | IPv6Address


class ScopeMode(StrEnum):
    """How the engines' sockets are told apart from the rest; ``auto`` takes the best that works."""

    AUTO = "auto"
    CGROUP = "cgroup"
    MARK = "mark"
    UID = "uid"
    NETNS = "netns"

    @property
    def precise(self) -> bool:
        """Whether engines, and nobody else, are told apart: then every port can be judged."""
        return self in (ScopeMode.CGROUP, ScopeMode.MARK)


class Weak(StrEnum):
    """What happens where the scope cannot tell engines apart."""

    CATALOG = "catalog"
    STRICT = "strict"
    REFUSE = "refuse"


class HostMode(StrEnum):
    """How programs that are no engines are judged; ``auto``: by catalogue, but not on WSL2."""

    AUTO = "auto"
    CATALOG = "catalog"
    OFF = "off"


class DnsMode(StrEnum):
    """How answers are followed: held until the kernel knows them, or only observed."""

    AUTO = "auto"
    HOLD = "hold"
    OBSERVE = "observe"


def _cgroup(value: object) -> str:
    text = expect_text(value)
    if text.startswith("/"):
        raise refuse(
            f"{shown(text)} is absolute", "write the path below the cgroup2 mount, without a /"
        )
    if any(part in ("", ".", "..") or len(part) > _NAME_MAX for part in text.split("/")):
        raise refuse(f"{shown(text)} is not a path of a cgroup", 'write one like "a.slice/b.slice"')
    if len(text) > MAX_CGROUP_PATH or not text.isprintable():
        raise refuse(f"{shown(text)} is too long or not printable")
    return text


def _few(most: int) -> AfterValidator:
    """Make the rule of a list that holds at most so many items, each once."""

    def rule(items: tuple[object, ...]) -> tuple[object, ...]:
        if len(items) > most:
            raise refuse(f"lists {len(items)} items; the limit is {most}")
        twice = next((item for index, item in enumerate(items) if item in items[:index]), None)
        if twice is not None:
            raise refuse(f"lists {shown(str(twice))} twice", "keep one")
        return items

    return AfterValidator(rule)


def _some(items: tuple[object, ...]) -> tuple[object, ...]:
    if not items:
        raise refuse("is an empty list", "leave the key out for the default")
    return items


def _server(value: object) -> DnsServer:
    text = expect_text(value)
    usual = 'write an IP address, such as "10.0.0.53"; the port is always 53'
    try:
        address = ip_address(text)
    except ValueError as error:
        raise refuse(f"{shown(text)} is not an IP address", usual) from error
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise refuse(f"{shown(text)} names an interface", "leave out the % and what follows it")
    if address.is_unspecified or address.is_multicast:
        raise refuse(f"{address} is not the address of one machine", usual)
    return address


def _mark(value: object) -> int:
    if type(value) is not int:
        raise refuse(f"must be a whole number, not {kind_of(value)}", "such as 0x01000000")
    if not (0 < value < 1 << _MARK_BITS and value.bit_count() == 1):
        raise refuse("must be a single bit of 32", "0x01000000 is one; 0x03000000 is two")
    return value


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Scope(_Table):
    """Whose sockets are an engine's.

    ``cgroups`` are v2 paths relative to the cgroup2 mount. ``uids`` are the users that run engines,
    for mode ``uid``. ``weak`` is for the modes that cannot tell engines from other programs,
    ``host`` for the programs that are no engines.
    """

    mode: Annotated[ScopeMode, choice(ScopeMode)] = ScopeMode.AUTO
    cgroups: Annotated[
        tuple[Annotated[str, PlainValidator(_cgroup)], ...],
        AfterValidator(_some),
        _few(MAX_CGROUPS),
    ] = ("ramnetengines.slice",)
    uids: Annotated[
        tuple[Annotated[int, whole(0, _UID_MAX)], ...],
        AfterValidator(_some),
        _few(MAX_UIDS),
    ] = (0,)
    weak: Annotated[Weak, choice(Weak)] = Weak.CATALOG
    host: Annotated[HostMode, choice(HostMode)] = HostMode.AUTO


class Dns(_Table):
    """How names are followed. ``servers`` pins the trusted resolvers; empty means found ones."""

    mode: Annotated[DnsMode, choice(DnsMode)] = DnsMode.AUTO
    servers: Annotated[
        tuple[Annotated[DnsServer, PlainValidator(_server)], ...],
        _few(MAX_SERVERS),
    ] = ()


class Limits(_Table):
    """Named limits: counts are of entries, times are in seconds.

    ``leases_total`` bounds the kernel's allow sets, ``leases_per_name`` what one name may put
    there. ``pending_queries`` are seen and not answered yet. ``warm_names`` are resolved by the
    daemon itself, ``resolve_concurrency`` at a time. ``control_clients`` are served at once.
    A DNS lifetime is raised to ``lease_min_seconds``, cut to ``lease_max_seconds``, and
    ``lease_grace_seconds`` are added.
    """

    # An element takes about 100 bytes of kernel memory and 1 kB of ours: full, some 90 MB.
    leases_total: Annotated[int, whole(256, 1 << 22)] = 65_536
    # S3 answers with other addresses every few seconds: some six hundred over the shortest lease.
    leases_per_name: Annotated[int, whole(8, 65_536)] = 1_024
    # A few seconds of a busy resolver; one source port each, so more than 65,536 is no use.
    pending_queries: Annotated[int, whole(64, 65_536)] = 16_384
    # Polite to a home router's resolver, and 10,000 names still take less than a minute.
    resolve_concurrency: Annotated[int, whole(1, 256)] = 16
    # More exact names than any organisation lists by hand; the rest are learned when used.
    warm_names: Annotated[int, whole(0, 1_000_000)] = 10_000
    # Every client is a person or a health check at this machine.
    control_clients: Annotated[int, whole(1, 1_024)] = 32
    # Clients keep an answer longer than its lifetime: connection pools, the JVM, retries.
    lease_min_seconds: Annotated[int, whole(1, 86_400)] = 300
    # An address is given up within a day, whatever lifetime the zone claims.
    lease_max_seconds: Annotated[int, whole(60, 604_800)] = 86_400
    # The client's clock starts when it gets the answer, and its connection comes after that.
    lease_grace_seconds: Annotated[int, whole(0, 3_600)] = 60

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.lease_min_seconds > self.lease_max_seconds:
            raise refuse("lease_min_seconds is more than lease_max_seconds", "raise the latter")
        if self.leases_per_name > self.leases_total:
            raise refuse("leases_per_name is more than leases_total", "raise the latter")
        return self


class Mark(_Table):
    """The bits that ramnet may set, each a single one.

    ``ct_dns`` and ``ct_host`` are of the conntrack mark, on DNS flows: of engines, and of other
    programs of the host. ``engine`` is of the mark of engines' sockets and packets, in scope
    ``mark`` only. ``notice`` is of the mark of packets of refused connections, from the verdict to
    the responder's port.
    """

    ct_dns: Annotated[int, PlainValidator(_mark)] = 0x0100_0000
    ct_host: Annotated[int, PlainValidator(_mark)] = 0x0400_0000
    engine: Annotated[int, PlainValidator(_mark)] = 0x0200_0000
    notice: Annotated[int, PlainValidator(_mark)] = 0x0800_0000

    @model_validator(mode="after")
    def _differ(self) -> Self:
        # The packet's mark as well: others copy it to the conntrack mark and back (CONNMARK).
        bits = {self.ct_dns, self.ct_host, self.engine, self.notice}
        if len(bits) < len(type(self).model_fields):
            raise refuse("two of the marks are the same bit", "give each a bit of its own")
        return self


class Config(_Table):
    """A valid configuration; ``Config()`` is what a machine without the file has."""

    scope: Scope = Scope()
    dns: Dns = Dns()
    limits: Limits = Limits()
    mark: Mark = Mark()


_KNOWN: dict[tuple[str, ...], tuple[str, ...]] = {
    (): tuple(Config.model_fields),
    ("scope",): tuple(Scope.model_fields),
    ("dns",): tuple(Dns.model_fields),
    ("limits",): tuple(Limits.model_fields),
    ("mark",): tuple(Mark.model_fields),
}


def parse_config(text: str | bytes, *, source: str) -> Config:
    """Read a configuration: JSON when ``source`` ends in .json, else TOML. It may be empty.

    Raises PolicyError with every fault of the file.
    """
    return validate(read_document(text, source=source), Config, _KNOWN)

"""What is known of the container engines of a machine, as plain values.

``ramnet.core.enginefiles`` reads settings from the text of files, ``ramnet.host.engineconf`` finds
files and processes, and ``ramnet.core.engineconf`` says what all of it means for enforcement.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from ipaddress import IPv4Network, IPv6Network
from typing import Any, TypeAlias, get_args

from pydantic import TypeAdapter

from ramnet.core.names import Address, parse_address
from ramnet.errors import NameFault

# A URL beyond this leads to no host that could be named; parse_address has its own, lower limit.
MAX_URL = 4096
_MAX_SHOWN = 200  # characters of a value that a person gets to see
_PORTS = {"http": 80, "https": 443, "socks4": 1080, "socks5": 1080, "socks5h": 1080}


class EngineName(StrEnum):
    """The programs whose own connections are an engine's."""

    DOCKERD = "dockerd"
    CONTAINERD = "containerd"
    BUILDKITD = "buildkitd"
    PODMAN = "podman"


# The units that run them, by the name that distributions and Docker give these.
UNITS = {
    "docker.service": EngineName.DOCKERD,
    "containerd.service": EngineName.CONTAINERD,
    "podman.service": EngineName.PODMAN,
    "buildkit.service": EngineName.BUILDKITD,
}


def printable(text: str, limit: int = _MAX_SHOWN) -> str:
    """Make a foreign text fit for one line of a terminal: nothing unprintable, and short."""
    plain = "".join(char if char.isprintable() else "?" for char in text[: limit + 1])
    return plain if len(plain) <= limit else f"{plain[:limit]}..."


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a URL leads: its host and TCP port, and nothing else of it.

    User, password, path and query are dropped where the URL is read: they may be secrets, and
    what is not kept is never printed. ``address`` is None when the URL names no host.
    """

    address: Address | None
    port: int

    @property
    def loopback(self) -> bool:
        """Whether it is on this machine's loopback."""
        if self.address is None:
            return False
        if self.address.ip is not None:
            return self.address.ip.is_loopback
        return str(self.address.pattern) == "localhost"

    def __str__(self) -> str:
        if self.address is None:
            return "(an address that cannot be read)"
        return str(Address(self.address.pattern, self.address.ip, self.port))


def endpoint(url: str, scheme: str) -> Endpoint:
    """Read where ``url`` leads; ``scheme`` is what it means where it names none."""
    word = url[:MAX_URL].split(maxsplit=1) or [""]  # a comment may follow
    head, separator, rest = word[0].partition("://")
    if not separator:
        head, rest = scheme, head
    port = _PORTS.get(head.lower(), _PORTS["http"])
    # The last @ of all, even behind a slash: a password may hold one that nobody escaped.
    authority = rest.rpartition("@")[2]
    for end in "/?#":
        authority = authority.partition(end)[0]
    try:
        address = parse_address(authority)
    except NameFault:
        return Endpoint(None, port)
    if address.any_port or (address.pattern is not None and address.pattern.wildcard):
        return Endpoint(None, port)
    return Endpoint(address, address.port or port)


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy that an engine is told to use; ``direct``: some hosts go round it."""

    endpoint: Endpoint
    key: str
    source: str
    direct: bool = False


@dataclass(frozen=True, slots=True)
class Mirror:
    """A server that is asked for the images of ``registry``, before or instead of it."""

    registry: str
    endpoint: Endpoint
    source: str


@dataclass(frozen=True, slots=True)
class Named:
    """A registry that settings name, without saying that another server stands in for it.

    ``why`` is what they name it for: ``login``, ``search``, ``settings``, ``frontend``.
    """

    where: Endpoint
    why: str
    source: str


@dataclass(frozen=True, slots=True)
class Insecure:
    """A registry, or every registry of a network, whose certificate is not checked."""

    where: Endpoint | IPv4Network | IPv6Network
    source: str


@dataclass(frozen=True, slots=True)
class Api:
    """An address, other than a Unix socket, on which an engine takes orders."""

    address: str
    source: str


@dataclass(frozen=True, slots=True)
class ContainerDns:
    """The servers that containers ask instead of the machine's own."""

    servers: tuple[str, ...]
    source: str


@dataclass(frozen=True, slots=True)
class Userland:
    """What is said of docker-proxy: whether it is used, and which program; None: not said."""

    enabled: bool | None
    path: str | None
    source: str


@dataclass(frozen=True, slots=True)
class FoundProxy:
    """The docker-proxy that dockerd finds where nothing is said of it: a file, or what it links."""

    path: str
    source: str


@dataclass(frozen=True, slots=True)
class Snapshotter:
    """Docker keeps images in containerd."""

    source: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Something that could not be read, so that nothing can be said about it."""

    source: str
    why: str


@dataclass(frozen=True, slots=True)
class Engine:
    """A running engine.

    ``cgroup`` is its v2 path without the leading slash, None when the kernel tells none; ``own``
    tells whether it is in our network namespace, None when that cannot be seen; ``rootless`` says
    by what it is known to run without root's rights, and is empty when it has them.
    """

    name: EngineName
    pid: int
    uid: int
    cgroup: str | None
    own: bool | None
    rootless: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


@dataclass(frozen=True, slots=True)
class DockerProxy:
    """A running docker-proxy and its cgroup."""

    pid: int
    cgroup: str | None


@dataclass(frozen=True, slots=True)
class Unit:
    """The unit of an engine on a machine that systemd runs; ``slice`` is empty for the default."""

    name: str
    engine: EngineName
    slice: str
    source: str


@dataclass(frozen=True, slots=True)
class RootlessSetup:
    """The settings of a rootless engine of one user."""

    path: str
    uid: int


@dataclass(frozen=True, slots=True)
class Desktop:
    """Docker Desktop, and by what it was recognised."""

    evidence: str


Fact: TypeAlias = (
    Proxy
    | Mirror
    | Named
    | Insecure
    | Api
    | ContainerDns
    | Userland
    | FoundProxy
    | Snapshotter
    | Unreadable
    | Engine
    | DockerProxy
    | Unit
    | RootlessSetup
    | Desktop
)

_KINDS: dict[str, type[Fact]] = {kind.__name__: kind for kind in get_args(Fact)}


def pack(facts: Iterable[Fact]) -> list[list[Any]]:
    """Turn facts into what JSON can hold: pairs of a kind and its fields."""
    kinds = ((type(fact).__name__, fact) for fact in facts)
    return [[kind, _adapter(kind).dump_python(fact, mode="json")] for kind, fact in kinds]


def unpack(packed: Iterable[list[Any]]) -> tuple[Fact, ...]:
    """Read what ``pack`` made, also when JSON turned tuples into lists.

    Raises ``ValueError`` or ``KeyError`` for anything else.
    """
    return tuple(_adapter(kind).validate_python(fields) for kind, fields in packed)


@cache
def _adapter(kind: str) -> TypeAdapter[Fact]:
    return TypeAdapter(_KINDS[kind])

"""The URLs that registries hand to their clients: realms, redirects, foreign layers (RFC 3986).

A URL that a server names is somebody else's text: its host goes through ``names``, user and
password are dropped, and the query, which often holds a signature, is never shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from ramnet.core.names import HostName, parse_address
from ramnet.errors import NameFault, WireError

PORTS: Final = {"http": 80, "https": 443}
# Twice what web servers take (8 kB), and presigned URLs of object stores have some 2 kB.
MAX_URL: Final = 16 * 1024
_MAX_SHOWN: Final = 120
# RFC 3986 2.2 and 2.3, and '%': what stands in a path or query as it is.
_PLAIN: Final = frozenset(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~:/?#[]@!$&'()*+,;=%"
)
_UNRESERVED: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~")

Host = HostName | IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Url:
    """Where a request goes; ``parse_url`` makes it. ``query`` is without its question mark."""

    scheme: str
    host: Host
    port: int
    path: str
    query: str | None = None

    @property
    def target(self) -> str:
        """What a request line has: path and query."""
        return self.path if self.query is None else f"{self.path}?{self.query}"

    @property
    def authority(self) -> str:
        """Host and port, the latter where it is not the scheme's."""
        host = f"[{self.host}]" if isinstance(self.host, IPv6Address) else str(self.host)
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> tuple[str, Host, int]:
        """By what it is told whether two URLs are of the same server."""
        return (self.scheme, self.host, self.port)

    def with_query(self, pairs: list[tuple[str, str]]) -> Url:
        """Return it with these pairs behind what its query has already."""
        added = "&".join(f"{_escaped(name)}={_escaped(value)}" for name, value in pairs)
        query = "&".join(part for part in (self.query, added) if part)
        return Url(self.scheme, self.host, self.port, self.path, query or None)

    def __str__(self) -> str:
        """Without the query."""
        path = self.path if len(self.path) <= _MAX_SHOWN else f"{self.path[:_MAX_SHOWN]}..."
        return f"{self.scheme}://{self.authority}{path}"


def parse_url(text: str, base: Url | None = None) -> Url:
    """Return the URL in ``text``; a relative one is resolved against ``base``.

    Raises ``WireError`` for what no client of a registry follows.
    """
    if len(text) > MAX_URL:
        raise WireError(f"a URL of {len(text)} characters is too long", where="url")
    if not text.isprintable() or " " in text:
        raise WireError("a URL with spaces or control characters", where="url")
    rest, _, _ = text.partition("#")
    rest, mark, query_text = rest.partition("?")
    query = _quoted(query_text) if mark else None
    scheme, rest = _scheme(rest)
    if scheme is None and base is None:
        raise WireError("a URL without a scheme", where="url")
    if rest.startswith("//"):
        authority, slash, path = rest[2:].partition("/")
        host, port = _authority(authority)
        scheme = scheme or (base.scheme if base is not None else "")
        return _url(scheme, host, port, _without_dots(_quoted(f"{slash}{path}")), query)
    if scheme is not None or base is None:
        raise WireError("a URL without a host", where="url")
    if not rest:
        query = query if query is not None else base.query
        return Url(base.scheme, base.host, base.port, base.path, query)
    folder = "" if rest.startswith("/") else base.path.rpartition("/")[0] + "/"
    path = _without_dots(folder + _quoted(rest))
    return Url(base.scheme, base.host, base.port, path, query)


def _url(scheme: str, host: Host, port: int | None, path: str, query: str | None) -> Url:
    return Url(scheme, host, port or PORTS[scheme], path or "/", query)


def _scheme(text: str) -> tuple[str | None, str]:
    head, colon, rest = text.partition(":")
    if not colon or "/" in head:
        return None, text
    if head.lower() not in PORTS:
        raise WireError("a URL that is neither http nor https", where="url")
    return head.lower(), rest


def _authority(text: str) -> tuple[Host, int | None]:
    where = text.rpartition("@")[2]  # a user and a password: nobody asked for them
    try:
        return parse_authority(where.removesuffix(":"))
    except NameFault as err:
        raise WireError(f"a URL whose host is not readable: {err.message}", where="url") from err


def parse_authority(text: str) -> tuple[Host, int | None]:
    """Return the host and the port of ``host[:port]``; None where it names no port.

    RFC 3986, 3.2, in ASCII or not, without userinfo; IPv6 literals are in brackets. Raises
    ``NameFault``.
    """
    if text.count(":") > 1 and not text.startswith("["):
        raise NameFault(f"{text[:_MAX_SHOWN]!r} has more than one colon")
    address = parse_address(text)
    if address.any_port or (address.pattern is not None and address.pattern.wildcard):
        raise NameFault(f"{text[:_MAX_SHOWN]!r} is a pattern")
    host = address.pattern.name if address.pattern is not None else address.ip
    assert host is not None  # noqa: S101 - an address is a pattern or an IP
    return host, address.port


def _without_dots(path: str) -> str:
    """Remove the segments ``.`` and ``..`` (RFC 3986 5.2.4)."""
    kept: list[str] = []
    parts = path.split("/")[1:]
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if part == "..":
            del kept[-1:]
        elif part != ".":
            kept.append(part)
            continue
        if last:
            kept.append("")
    return "/" + "/".join(kept)


def _quoted(text: str) -> str:
    """Write what stands in no URL as octets of UTF-8, as Go's client does."""
    return "".join(char if char in _PLAIN else _percent(char) for char in text)


def _escaped(text: str) -> str:
    return "".join(char if char in _UNRESERVED else _percent(char) for char in text)


def _percent(char: str) -> str:
    return "".join(f"%{octet:02X}" for octet in char.encode("utf-8", "replace"))

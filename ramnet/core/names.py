"""Host names, host patterns and registry addresses: parsed once, here, into types.

Nothing past this module handles a host name as a bare ``str``:

* ``HostName``: one name as DNS compares it. Lower case, A-labels (``xn--``), no trailing dot,
  1 to 253 octets, labels of 1 to 63 octets out of ``[a-z0-9_-]`` (RFC 1035 2.3.4, RFC 1123 2.1;
  the underscore is not in those, but resolvers and some registries use it).
* ``HostPattern``: a name, or ``*.`` and a name: one or more labels in front of it.
* ``Address``: what a policy says of a registry: a pattern or an IP literal, and perhaps a port.

Text outside ASCII goes through UTS 46 (not transitional) and IDNA 2008. ASCII text is only
lower-cased: an ``xn--`` label is compared as the octets that it is on the wire, so a label that
IDNA would refuse (emoji domains exist) stays usable.

A name whose last label is a number (``10.0.0.1``, ``0x7f000001``, ``1``) is no ``HostName``: the C
library would read it as an IPv4 address and never ask DNS (inet_aton(3); WHATWG URL,
"ends in a number").

Every fault is a ``NameFault`` with a hint.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Final, NewType

from ramnet.errors import NameFault

HostName = NewType("HostName", str)

# RFC 1035 2.3.4: 255 octets on the wire are 253 characters without the root's dot.
MAX_NAME: Final = 253
MAX_LABEL: Final = 63
# Room for a host, brackets, "*." and a port, and for code points that UTS 46 drops. Bounds the work
# on hostile text (IDNA is not linear) before anything looks at it.
MAX_TEXT: Final = 512
MAX_PORT: Final = 65535
# Longest part of a faulty text that a message repeats.
_MAX_SHOWN: Final = 80

_HOST_OCTETS: Final = b"abcdefghijklmnopqrstuvwxyz0123456789-_."
_HOST_CHARS: Final = frozenset(_HOST_OCTETS.decode("ascii"))
_DIGITS: Final = frozenset("0123456789")
_HEX_DIGITS: Final = frozenset("0123456789abcdef")
_MAX_PORT_DIGITS: Final = 5


def parse_host(text: str) -> HostName:
    """Return ``text`` as a ``HostName``; one trailing dot is dropped.

    Raises ``NameFault``.
    """
    if len(text) > MAX_TEXT:
        raise NameFault(f"host name of {len(text)} characters is too long", hint=_HINT_LENGTH)
    name = text.lower() if text.isascii() else _to_a_labels(text)
    if name[-1:] == ".":
        name = name[:-1]
    # Deleting the allowed octets leaves the others: one call into C, where a loop over the
    # characters would cost a microsecond or two.
    if name.encode("ascii").translate(None, _HOST_OCTETS) or not _well_formed(name):
        raise _explain(text, name)
    return HostName(name)


def host_from_wire(labels: tuple[bytes, ...]) -> HostName | None:
    """Return the name made of the ``labels`` of a DNS message, or None if it is no host name.

    ``labels`` are the octets of each label without the root's. Case does not matter. A label with
    a dot inside gives None: as text it could not be told from two labels.
    """
    raw = b".".join(labels).lower()
    if raw.count(b".") != len(labels) - 1 or raw.translate(None, _HOST_OCTETS):
        return None
    name = raw.decode("ascii")
    return HostName(name) if _well_formed(name) else None


def _well_formed(name: str) -> bool:
    """Whether ``name``, already of the allowed characters only, has acceptable labels."""
    if not name or name[0] in "-." or name[-1] in "-.":
        return False
    if ".." in name or ".-" in name or "-." in name:
        return False
    if len(name) > MAX_LABEL and (
        len(name) > MAX_NAME or max(map(len, name.split("."))) > MAX_LABEL
    ):
        return False
    last = name.rfind(".") + 1
    return name[last] not in _DIGITS or not _is_number(name[last:])


def _is_number(label: str) -> bool:
    """Whether inet_aton(3) takes ``label`` for a decimal, octal or hexadecimal number."""
    if label.startswith("0x"):
        return _HEX_DIGITS.issuperset(label[2:])
    return _DIGITS.issuperset(label)


def _to_a_labels(text: str) -> str:
    # Here and not on top: the tables of idna take longer to load than most commands run, and
    # nearly all names are ASCII.
    import idna  # noqa: PLC0415

    try:
        mapped = idna.uts46_remap(text, std3_rules=False, transitional=False)
        return ".".join(
            label if label.isascii() else idna.alabel(label).decode("ascii")
            for label in mapped.split(".")
        )
    except UnicodeError as err:  # the base of idna.IDNAError
        raise NameFault(
            f"{_show(text)} is not an international host name: {_show(str(err))}",
            hint="write the name in its ASCII form (xn--...), as the registry's certificate does",
        ) from err


@dataclass(frozen=True, slots=True)
class HostPattern:
    """``name`` itself, or with ``wildcard`` every name of one or more labels in front of it."""

    name: HostName
    wildcard: bool = False

    def matches(self, host: HostName) -> bool:
        """Whether ``host`` is covered. For many patterns use ``ramnet.core.match.Matcher``."""
        return host.endswith(f".{self.name}") if self.wildcard else host == self.name

    def __str__(self) -> str:
        return f"*.{self.name}" if self.wildcard else self.name


def parse_pattern(text: str) -> HostPattern:
    """Return the pattern that ``text`` says: ``host`` or ``*.host``.

    Raises ``NameFault``. How wide a wildcard may be is the policy's business, not the grammar's.
    """
    if not text.startswith("*."):
        return HostPattern(parse_host(text))
    name = parse_host(text[2:])
    if len(name) + 2 > MAX_NAME:
        raise NameFault(
            f"{_show(text)} leaves no room for a label in front of it", hint=_HINT_LENGTH
        )
    return HostPattern(name, wildcard=True)


@dataclass(frozen=True, slots=True)
class Ports:
    """A set of TCP ports; ``values`` is None for any port.

    Raises ``NameFault`` for a number outside 1 to 65535.
    """

    values: frozenset[int] | None = None

    def __post_init__(self) -> None:
        for port in self.values or ():
            if not 1 <= port <= MAX_PORT:
                raise NameFault(f"port {port} does not exist", hint=_HINT_PORT)

    def __contains__(self, port: int) -> bool:
        return self.values is None or port in self.values

    def __str__(self) -> str:
        return "any" if self.values is None else ", ".join(map(str, sorted(self.values)))


@dataclass(frozen=True, slots=True)
class Address:
    """The address of a registry or destination: a host pattern or an IP literal, and its port.

    Exactly one of ``pattern`` and ``ip`` is set. ``port`` is None if the text named none;
    ``any_port`` is True for ``:*`` and then ``port`` is None. ``parse_address`` makes it.
    """

    pattern: HostPattern | None
    ip: IPv4Address | IPv6Address | None
    port: int | None = None
    any_port: bool = False

    def ports(self, default: Iterable[int]) -> Ports:
        """Return the ports that the address means; ``default`` where it names none."""
        if self.any_port:
            return Ports()
        return Ports(frozenset(default) if self.port is None else frozenset({self.port}))

    def __str__(self) -> str:
        port = ":*" if self.any_port else "" if self.port is None else f":{self.port}"
        if isinstance(self.ip, IPv6Address) and port:
            return f"[{self.ip}]{port}"
        return f"{self.pattern or self.ip}{port}"


def parse_address(text: str) -> Address:
    """Return the ``Address`` that ``text`` says.

    Forms: ``docker.io``, ``registry.corp.example:5000``, ``localhost:*``, ``*.example.com``,
    ``10.0.0.1:5000``, ``[2001:db8::1]:5000``, ``2001:db8::1``. An IPv4-mapped IPv6 literal gives
    the IPv4 address, which is what leaves on the wire. Raises ``NameFault``.
    """
    if len(text) > MAX_TEXT:
        raise NameFault(f"address of {len(text)} characters is too long", hint=_HINT_LENGTH)
    host, colon, port_text = _split_port(text)
    port, any_port = _parse_port(text, port_text) if colon else (None, False)
    ip = _parse_ip(text, host)
    if ip is not None:
        return Address(None, ip, port, any_port)
    return Address(parse_pattern(host), None, port, any_port)


def _split_port(text: str) -> tuple[str, str, str]:
    """Return the host (IPv6 in brackets), a colon if a port follows, and the port."""
    if "/" in text or "@" in text:
        raise _explain(text, text)
    if text.startswith("["):
        inside, bracket, rest = text.partition("]")
        if not bracket or rest[:1] not in ("", ":"):
            raise NameFault(f"{_show(text)} has unpaired brackets", hint=_HINT_IPV6)
        return f"{inside}]", rest[:1], rest[1:]
    if text.count(":") > 1:
        return f"[{text}]", "", ""
    return text.partition(":")


def _parse_ip(text: str, host: str) -> IPv4Address | IPv6Address | None:
    """Return ``host`` as an address, None if it is not written as one."""
    ip: IPv4Address | IPv6Address
    if host.startswith("["):
        if "%" in host:
            raise NameFault(
                f"{_show(text)} has a zone; link-local addresses cannot be allowed",
                hint="give the registry a routable address or a name",
            )
        try:
            v6 = IPv6Address(host[1:-1])
        except ValueError as err:
            raise NameFault(f"{_show(text)} is not an IPv6 address", hint=_HINT_IPV6) from err
        ip = v6.ipv4_mapped or v6
    elif host[-1:] in _DIGITS:
        try:
            ip = IPv4Address(host)
        except ValueError:
            return None  # a name that ends in a digit, or one that parse_host explains better
    else:
        return None
    if ip.is_unspecified or ip.is_multicast:
        raise NameFault(
            f"{_show(text)}: {ip} is not the address of one machine",
            hint="write the address that clients connect to, such as 127.0.0.1",
        )
    return ip


def _parse_port(text: str, port: str) -> tuple[int | None, bool]:
    if port == "*":
        return None, True
    digits = port.isascii() and port.isdigit() and len(port) <= _MAX_PORT_DIGITS
    if not digits or port.startswith("0") or int(port) > MAX_PORT:
        raise NameFault(f"{_show(text)}: {_show(port)} is not a port", hint=_HINT_PORT)
    return int(port), False


_HINT_LENGTH: Final = f"a host name has at most {MAX_NAME} characters, a label at most {MAX_LABEL}"
_HINT_PORT: Final = (
    "a port is a number from 1 to 65535, or * for any; tags do not belong to an address"
)
_HINT_IPV6: Final = "write 2001:db8::1, or [2001:db8::1]:5000 with a port"
_HINT_STAR: Final = (
    "* may only stand as the whole first label, as in *.example.com;"
    " it covers one or more labels there"
)


def _show(text: str) -> str:
    """Return ``text`` quoted, without control characters, cut to a length fit for a message."""
    return repr(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}...")


# Why a character cannot stand in a host name, and what to do instead.
_ODD: Final = {
    "*": ("has a misplaced *", _HINT_STAR),
    ":": ("contains ':'", "only a host name can stand here, without port; no IPv6 address either"),
    "@": ("contains '@'", "write only the host; user names and digests do not belong here"),
}


def _explain(text: str, name: str) -> NameFault:
    """Return the fault for ``text``, whose folded form ``name`` is no host name."""
    shown = _show(text)
    if not name:
        return NameFault("the host name is empty", hint="write a name such as docker.io")
    if "/" in name:
        return _explain_slash(text, shown)
    odd = "@" if "@" in name else next((char for char in name if char not in _HOST_CHARS), "")
    if not odd:
        return _explain_labels(name, shown)
    if odd.isspace():
        return NameFault(f"{shown} contains white space", hint="write one host in each entry")
    other = (
        f"contains {odd!r}",
        "a host name is made of letters, digits, hyphens, underscores and dots",
    )
    message, hint = _ODD.get(odd, other)
    return NameFault(f"{shown} {message}", hint=hint)


def _explain_slash(text: str, shown: str) -> NameFault:
    scheme, _, rest = text.partition("://") if "://" in text else ("", "", text)
    if scheme:
        return NameFault(
            f"{shown} is a URL", hint=f"write only the host: {_show(rest.partition('/')[0])}"
        )
    try:
        ip_network(text, strict=False)
    except ValueError:
        host = _show(text.partition("/")[0])
        return NameFault(
            f"{shown} contains a path",
            hint=f"an entry names a whole registry, not a repository: {host}",
        )
    return NameFault(
        f"{shown} is a network, not a host", hint="list networks under the key 'networks'"
    )


def _explain_labels(name: str, shown: str) -> NameFault:
    labels = name.split(".")
    if "" in labels:
        return NameFault(f"{shown} has an empty label", hint="remove the extra dot")
    if len(name) > MAX_NAME or any(len(label) > MAX_LABEL for label in labels):
        return NameFault(f"{shown} is too long", hint=_HINT_LENGTH)
    if any(label[0] == "-" or label[-1] == "-" for label in labels):
        return NameFault(
            f"{shown} has a label that starts or ends with a hyphen", hint="remove the hyphen"
        )
    return NameFault(
        f"{shown} is not a host name: it ends in a number, so programs take it for an IPv4 address",
        hint="write an IPv4 address as four decimal numbers without leading zeros,"
        " where an address is allowed",
    )

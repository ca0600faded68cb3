"""What a client asks first in the clear: the head of an HTTP/1 request (RFC 9110, RFC 9112).

Read in two ways, out of the same parts (``split_head``):

* ``parse_head``, for who judges a request that somebody else answers: strict. Whatever another
  program might read as another host is an error, even where RFC 9112 lets a server be tolerant.
* ``ramnet.core.notice``, which answers whatever comes: what it cannot read is passed over.

Only the first request is looked at. What follows it on the same connection, by keep-alive, in a
tunnel or after an upgrade, is not told here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final

from ramnet.core.urls import PORTS, Host, parse_authority
from ramnet.errors import NameFault, WireError

# Octets. Four times what Docker sends with a token, as nginx and Apache have it.
MAX_HEAD: Final = 8 * 1024
# RFC 9113, 3.4: what a client sends that knows without asking that the server speaks HTTP/2.
HTTP2_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

_WHERE: Final = "HTTP head"
_VERSIONS: Final = frozenset({"HTTP/1.0", "HTTP/1.1"})
_TCHAR: Final = "[!#$%&'*+.^_`|~0-9A-Za-z-]"  # RFC 9110, 5.6.2
# The longest registered method has 17 characters (UPDATEREDIRECTREF).
_METHOD: Final = re.compile(rf"{_TCHAR}{{1,32}}")
_FIELD_NAME: Final = re.compile(rf"{_TCHAR}+")
_END_OF_HEAD: Final = re.compile(rb"\r?\n\r?\n")
# A method and white space. Strictly it is one space, but servers may take others (RFC 9112, 3), and
# skip empty lines in front (2.2): as that is HTTP to them, it is here, and parse_head refuses it.
_REQUEST: Final = re.compile(rf"[\r\n]*{_TCHAR}{{1,32}}(?:[ \t\v\f]|\r[^\n])".encode())
_BEGINNING: Final = re.compile(rf"[\r\n]*(?:{_TCHAR}{{1,32}}\r?)?".encode())
# Lines that end by CR LF, none of them empty but the last, without control characters: RFC 9112,
# 2.2, and RFC 9110, 5.5, let recipients replace a bare CR or NUL, and take a bare LF for an end.
_LINES: Final = re.compile(rb"(?:[\t\x20-\x7e\x80-\xff]+\r\n)+\r\n")
_TARGET: Final = re.compile(r"[!-~]+")


class Kind(Enum):
    """What a stream of a client is, by its first octets."""

    HTTP1 = "http1"
    HTTP2 = "http2"  # without TLS, "with prior knowledge"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Head:
    """The parts of a head, not judged; ``split_head`` makes it.

    The names of ``fields`` are in lower case. ``odd`` says that there are lines that are no field:
    continued ones (obs-fold), those with white space before the colon, or without one.
    """

    method: str
    target: str
    version: str
    fields: tuple[tuple[str, str], ...]
    odd: bool

    @property
    def absolute(self) -> tuple[str, str]:
        """Scheme and authority of a target in absolute-form; both empty in other forms."""
        scheme, separator, rest = self.target.partition("://")
        if not separator or scheme.lower() not in PORTS:
            return "", ""
        return scheme.lower(), re.split("[/?#]", rest, maxsplit=1)[0]

    @property
    def html(self) -> bool:
        """Whether the client can show a page: the last ``Accept`` counts."""
        return "text/html" in dict(self.fields).get("accept", "").lower()


@dataclass(frozen=True, slots=True)
class Request:
    """A request that can be read in one way only; ``parse_head`` makes it.

    ``host`` and ``port`` are what the client wants, whoever it asks for it; ``port`` is None where
    it names none. ``scheme`` is ``http`` or ``https`` in absolute-form, else empty.
    """

    method: str
    target: str
    host: Host
    port: int | None = None
    scheme: str = ""
    html: bool = False

    @property
    def connect(self) -> bool:
        """Whether a proxy is asked for a tunnel."""
        return self.method == "CONNECT"

    @property
    def absolute(self) -> bool:
        """Whether the target is in absolute-form, as a proxy is asked (RFC 9112, 3.2.2)."""
        return bool(self.scheme)

    @property
    def head_only(self) -> bool:
        """Whether the answer has no body."""
        return self.method == "HEAD"


def kind_of(data: bytes | bytearray) -> Kind | None:
    """Return what a stream is that begins so; None while these are too few octets to tell.

    More octets do not change what is not None. ``HTTP1`` is said of what a tolerant server might
    take for a request; other protocols that begin by a word and a space are among it.
    """
    data = data[:MAX_HEAD]
    if data.startswith(HTTP2_PREFACE):
        return Kind.HTTP2
    if HTTP2_PREFACE.startswith(data):
        return None
    if _REQUEST.match(data):
        return Kind.HTTP1
    if _BEGINNING.fullmatch(data):
        # As many empty lines as that are no head, which head_of says.
        return None if len(data) < MAX_HEAD else Kind.HTTP1
    return Kind.OTHER


def head_of(data: bytes | bytearray) -> bytes | None:
    """Return the head of a request with the empty line that ends it; None while that is missing.

    The lines may end by LF alone, of which ``parse_head`` makes an error. Raises ``WireError``
    where the head is longer than ``MAX_HEAD``.
    """
    found = _END_OF_HEAD.search(data, 0, MAX_HEAD)
    if found is None:
        if len(data) >= MAX_HEAD:
            raise _fault(f"more than {MAX_HEAD} octets")
        return None
    return bytes(data[: found.end()])


def split_head(head: bytes) -> Head:
    """Take the head of an HTTP/1 request apart, its lines ended in any way.

    Raises ``WireError`` where it does not begin by a request line.
    """
    first, *rest = (line.rstrip("\r") for line in head.decode("latin-1").split("\n"))
    words = first.split(" ")
    if len(words) != len(("method", "target", "version")) or not words[2].startswith("HTTP/"):
        raise _fault("not a request line")
    method, target, version = words
    if not _METHOD.fullmatch(method):
        raise _fault("not a method")
    fields = []
    odd = False
    for line in filter(None, rest):
        name, colon, value = line.partition(":")
        if colon and _FIELD_NAME.fullmatch(name):
            fields.append((name.lower(), value.strip(" \t")))  # RFC 9110, 5.6.3: OWS
        else:
            odd = True
    return Head(method, target, version, tuple(fields), odd)


def parse_head(head: bytes) -> Request:
    """Read what ``head_of`` has returned, strictly: the request has one host, by any reading.

    Hosts are compared as ``parse_host`` returns them: in lower case, without one trailing dot.
    Raises ``WireError`` for everything else.
    """
    if not _LINES.fullmatch(head):
        raise _fault("line ends or control characters that not all programs read alike")
    parts = split_head(head)
    if parts.version not in _VERSIONS:
        raise _fault("not a version of HTTP/1")
    if parts.odd:
        raise _fault("a line that is not a field")
    named = [value for name, value in parts.fields if name == "host"]
    if len(named) != 1:  # RFC 9112, 3.2: to be answered by 400. HTTP/1.0 may have none.
        raise _fault("no host" if not named else "more than one host")
    host, port = _target(parts, *_authority(named[0]))
    return Request(parts.method, parts.target, host, port, parts.absolute[0], parts.html)


def _target(parts: Head, host: Host, port: int | None) -> tuple[Host, int | None]:
    """Return what counts of the target and of the field ``Host``, which must not differ."""
    target = parts.target
    # No program sends a fragment (RFC 9112, 3.2), or octets that are not ASCII.
    if not _TARGET.fullmatch(target) or "#" in target:
        raise _fault("characters that no target has")
    if parts.method == "CONNECT":
        wanted, door = _authority(target)
        if door is None:  # RFC 9112, 3.2.3
            raise _fault("CONNECT without a port")
        # Some clients leave the port out of the field.
        if (host, port or door) != (wanted, door):
            raise _fault("a target and a host that differ")
        return wanted, door
    scheme, authority = parts.absolute
    if scheme:
        # Servers have to take the target (RFC 9112, 3.2.2), and not all do.
        wanted, door = _authority(authority)
        usual = PORTS[scheme]
        if (host, port or usual) != (wanted, door or usual):
            raise _fault("a target and a host that differ")
        return wanted, door
    # A URL library may take what follows two slashes for a host (RFC 3986, 4.2); some of them,
    # a backslash for a slash.
    origin = target.startswith("/") and target[1:2] not in {"/", "\\"}
    if not origin and (parts.method, target) != ("OPTIONS", "*"):  # RFC 9112, 3.2.4
        raise _fault("a target of no form that its method has")
    return host, port


def _authority(text: str) -> tuple[Host, int | None]:
    if not text.isascii():  # octets without an alphabet
        raise _fault("a host that is not ASCII")
    try:
        return parse_authority(text)
    except NameFault as err:
        raise _fault(f"not a host and a port: {err.message}") from err


def _fault(message: str) -> WireError:
    return WireError(message, where=_WHERE)

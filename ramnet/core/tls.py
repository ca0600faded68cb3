"""What a TLS client says first: the server's name, read out of the ClientHello.

Bytes in, a frozen value out; anything malformed is a ``WireError`` and never another exception.

The name decides whether a connection may go on, so a hello must be readable in one way only. What
one server would refuse and another read differently is an error here, never a guess:

- A field has to fill exactly what holds it, and no octets follow the last one.
- An extension stands once (RFC 8446 section 4.2). The values that clients make up so that servers
  stay used to unknown ones (GREASE, RFC 8701) are extensions like others.
- The server name is one host name, as RFC 6066 section 3 has it: ASCII, no dot at its end, no
  address. Lists of several names are older than that, and servers took the first or the last.
- All records before the end of the hello are of the handshake and none is empty (RFC 8446 section
  5.1). The record in which the hello ends holds nothing else: a change of keys or the server's turn
  comes next (the same section), and servers differ in what they do with octets that come too soon.

What follows that record is not looked at: early data, or after a HelloRetryRequest a second hello,
which must repeat the first one's name (RFC 8446 section 4.1.2).

Sources: RFC 8446 (TLS 1.3), RFC 5246 (TLS 1.2, the same message), RFC 6066 section 3 (server name),
RFC 7301 (ALPN), RFC 9849 (Encrypted Client Hello).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ramnet.core.names import HostName, parse_host
from ramnet.errors import NameFault, WireError

#: Octets of the handshake message with its header. Usual hellos have 200 to 600; a post-quantum key
#: share makes it 1,500 to 2,000, and ECH, tickets and padding add a few thousand. Servers written
#: in Go or Rust end here as well; the format itself would allow 16 MiB.
MAX_HELLO: Final = 64 * 1024
#: A hello of up to 4 kB may come in records of one octet each, as some do to get past filters.
MAX_RECORDS: Final = 4096
_RECORD_HEADER: Final = 5  # type, version, length (RFC 8446 section 5.1)
#: The octets in which a hello must end, with the headers of its records: with so many, `read_hello`
#: gives a value or an error, so nobody has to keep more. It follows from the two bounds above.
MAX_RECORDS_OCTETS: Final = MAX_HELLO + MAX_RECORDS * _RECORD_HEADER
#: About twice as many as there are with a number (IANA); bounds the work on empty ones.
MAX_EXTENSIONS: Final = 128
#: Clients offer one to three.
MAX_PROTOCOLS: Final = 32

_HANDSHAKE: Final = b"\x16"  # the record type, 22
_MAJOR: Final = b"\x03"  # of SSL 3.0 and all of TLS, where it means nothing any more
_MAX_FRAGMENT: Final = 1 << 14

_CLIENT_HELLO: Final = 1
_MESSAGE_HEADER: Final = 4  # type and length (RFC 8446 section 4)
_TLS_1_0: Final = 0x0301
_TLS_MAX: Final = 0x03FF
_RANDOM: Final = 32
_MAX_SESSION_ID: Final = 32

_SERVER_NAME: Final = 0
_ALPN: Final = 16
_ECH: Final = 0xFE0D
_ECH_OUTER: Final = 0
_ECH_INNER: Final = 1
#: The forerunner of ECH, of drafts that no client follows now: it carries a name that a server may
#: still go by, and the hello then has no other.
_ESNI: Final = 0xFFCE
_HOST_NAME: Final = 0

_WHERE: Final = "ClientHello"


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What a hello says of where it wants to go.

    ``server_name`` is the name in the clear (SNI), None where the hello has none. ``ech`` tells
    whether there is an encrypted hello as well (RFC 9849, type outer): if it is real, the server
    goes by the name inside it, and ``server_name`` is only that of the provider. Clients send a
    made-up one too (GREASE ECH, section 6.2 there), and nobody but the server can tell the two
    apart: the caller decides what to make of it. ``alpn`` are the protocols that the client offers,
    in its order, one character for each octet; made-up ones are among them and are not ASCII.
    """

    server_name: HostName | None
    ech: bool
    alpn: tuple[str, ...]


class _IncompleteError(Exception):
    """The octets so far end before the message does; never leaves this module."""


class _Reader:
    """Takes fields off ``data``, the first octets of something that is ``size`` octets long."""

    __slots__ = ("_data", "_pos", "_size")

    def __init__(self, data: bytes, size: int) -> None:
        self._data = data
        self._size = size
        self._pos = 0

    @property
    def left(self) -> int:
        """Octets up to the end, those that are not there yet included."""
        return self._size - self._pos

    def take(self, size: int) -> bytes:
        """Take ``size`` octets; that they cannot be there is told before they could be."""
        end = self._pos + size
        if end > self._size:
            raise WireError(f"a field of {size} octets where {self.left} are left", where=_WHERE)
        if end > len(self._data):
            raise _IncompleteError
        taken = self._data[self._pos : end]
        self._pos = end
        return taken

    def number(self, size: int) -> int:
        """Take a number of ``size`` octets."""
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        """Take octets behind their count, which has ``size`` octets itself."""
        return self.take(self.number(size))


def is_tls(data: bytes) -> bool | None:
    """Tell whether a stream that begins with ``data`` is TLS; None while there are too few octets.

    A handshake record of major version 3 it must be. The hello of SSL 2.0, which also could offer
    TLS (RFC 5246 appendix E.2), has been forbidden since RFC 8446 (appendix D.5) and is none.
    """
    kind, major = data[:1], data[1:2]
    if kind not in {b"", _HANDSHAKE} or major not in {b"", _MAJOR}:
        return False
    return True if major else None


def read_hello(data: bytes | bytearray) -> ClientHello | None:
    """Read the ClientHello that the client's octets begin with; None while it is not complete.

    ``data`` are the client's first octets, in order and from the first one on; what follows the
    hello's last record is ignored. Never None where they are ``MAX_RECORDS_OCTETS`` or more.

    Reads from the start each time, up to the hello's end: on hostile octets a few milliseconds,
    where a usual hello takes some microseconds. So count the calls, or let octets gather.

    Raises ``WireError`` (``where`` is ``ClientHello``) as soon as it is clear that no octets to
    come can make it a hello that is acceptable: see the top of this module.
    """
    message, size = _message(data)
    try:
        return _read(_Reader(message, size)) if size else None
    except _IncompleteError:
        return None


def _message(data: bytes | bytearray) -> tuple[bytes, int]:
    """Take the handshake message out of its records: what is there of it, and its whole size.

    The size is 0 while the message's own header is not complete.
    """
    message = bytearray()
    announced = 0  # octets in the records so far, the last one counted whole
    size = pos = 0
    for _ in range(MAX_RECORDS):
        header = bytes(data[pos : pos + _RECORD_HEADER])
        if is_tls(header) is False:
            raise WireError("not a TLS handshake record", where=_WHERE)
        if len(header) < _RECORD_HEADER:
            return bytes(message), size
        length = int.from_bytes(header[-2:], "big")
        if not 1 <= length <= _MAX_FRAGMENT:
            raise WireError(f"a record of {length} octets", where=_WHERE)
        start = pos + _RECORD_HEADER
        pos = start + length
        announced += length
        message += data[start:pos]
        size = size or _size(message)
        if size and announced > size:
            raise WireError("more than the hello in its last record", where=_WHERE)
        if announced == size or len(data) < pos:
            return bytes(message), size
    raise WireError(f"more than {MAX_RECORDS} records", where=_WHERE)


def _size(message: bytearray) -> int:
    """Return how long the message is, with its header; 0 while the header does not tell."""
    if message and message[0] != _CLIENT_HELLO:
        raise WireError(f"handshake message {message[0]}", where=_WHERE)
    if len(message) < _MESSAGE_HEADER:
        return 0
    size = _MESSAGE_HEADER + int.from_bytes(message[1:_MESSAGE_HEADER], "big")
    if size > MAX_HELLO:
        raise WireError(f"a message of {size} octets", where=_WHERE)
    return size


def _read(reader: _Reader) -> ClientHello:
    """Read a whole message (RFC 8446 section 4.1.2)."""
    reader.take(_MESSAGE_HEADER)
    # 3.4 and more are no versions, but servers must take a higher one for their own highest (RFC
    # 5246 appendix E.1). SSL 3.0 knows no extensions, so its servers would pass the name over (RFC
    # 7568 forbids it); anything else, such as DTLS with its cookie, is laid out differently.
    version = reader.number(2)
    if not _TLS_1_0 <= version <= _TLS_MAX:
        raise WireError(f"version 0x{version:04x}", where=_WHERE)
    reader.take(_RANDOM)
    length = reader.number(1)
    if length > _MAX_SESSION_ID:
        raise WireError(f"a session ID of {length} octets", where=_WHERE)
    reader.take(length)
    length = reader.number(2)
    if not length or length % 2:
        raise WireError(f"cipher suites of {length} octets", where=_WHERE)
    reader.take(length)
    length = reader.number(1)
    if not length:
        raise WireError("no compression methods", where=_WHERE)
    reader.take(length)
    if not reader.left:  # TLS 1.2 and before: extensions may be left out
        return ClientHello(None, ech=False, alpn=())
    length = reader.number(2)
    if length != reader.left:
        raise WireError(f"{length} octets of extensions, {reader.left} left", where=_WHERE)
    return _read_extensions(reader)


def _read_extensions(reader: _Reader) -> ClientHello:
    """Read the extensions, which go on to the end of the message."""
    server_name: HostName | None = None
    ech = False
    alpn: tuple[str, ...] = ()
    seen: set[int] = set()
    while reader.left:
        kind = reader.number(2)
        if kind in seen:
            raise WireError(f"extension {kind} twice", where=_WHERE)
        seen.add(kind)
        if len(seen) > MAX_EXTENSIONS:
            raise WireError(f"more than {MAX_EXTENSIONS} extensions", where=_WHERE)
        if kind == _ESNI:
            raise WireError("an encrypted server name of a draft", where=_WHERE)
        content = reader.vector(2)
        if kind == _SERVER_NAME:
            server_name = _read_server_name(content)
        elif kind == _ALPN:
            alpn = _read_protocols(content)
        elif kind == _ECH:
            ech = _read_ech(content)
    return ClientHello(server_name, ech=ech, alpn=alpn)


def _read_server_name(content: bytes) -> HostName:
    """Read the name out of a list that holds exactly one (RFC 6066 section 3)."""
    reader = _Reader(content, len(content))
    length = reader.number(2)
    if length != reader.left:
        raise WireError(f"a list of {length} octets, {reader.left} left", where=_WHERE)
    # No other kind was ever defined, and servers differ in whether they pass one over.
    kind = reader.number(1)
    if kind != _HOST_NAME:
        raise WireError(f"server name of kind {kind}", where=_WHERE)
    name = reader.vector(2)
    if reader.left:
        raise WireError("more than one server name", where=_WHERE)
    # An international name comes as A-labels; the dot at the end is left off.
    if not name.isascii() or name.endswith(b"."):
        raise WireError("a server name that is not ASCII or ends in a dot", where=_WHERE)
    try:
        # Addresses are no host names: their last label is a number, or they have colons.
        return parse_host(name.decode("ascii"))
    except NameFault as err:
        raise WireError(f"server name: {err.message}", where=_WHERE) from err


def _read_protocols(content: bytes) -> tuple[str, ...]:
    """Read the list of protocols (RFC 7301 section 3.1): one or more, none of them empty."""
    reader = _Reader(content, len(content))
    length = reader.number(2)
    if not length or length != reader.left:
        raise WireError(f"a list of {length} octets, {reader.left} left", where=_WHERE)
    protocols: list[str] = []
    while reader.left:
        protocol = reader.vector(1)
        if not protocol:
            raise WireError("an empty protocol", where=_WHERE)
        if len(protocols) == MAX_PROTOCOLS:
            raise WireError(f"more than {MAX_PROTOCOLS} protocols", where=_WHERE)
        protocols.append(protocol.decode("latin-1"))
    return tuple(protocols)


def _read_ech(content: bytes) -> bool:
    """Tell whether an encrypted hello is inside (RFC 9849 section 5).

    The type inner marks a hello that was inside, handed on in the clear: its own name counts.
    """
    kind = _Reader(content, len(content)).number(1)
    if kind not in {_ECH_OUTER, _ECH_INNER}:
        raise WireError(f"encrypted hello of type {kind}", where=_WHERE)
    return kind == _ECH_OUTER

"""What a connection opens with, and the name that it says it goes to.

The client's first octets in, in order and from the first one on: TLS (``core.tls``), a request of
HTTP/1 (``core.http``), or something that says no name. As long as they do not tell, they either
wait or may go on: nothing passes from which a server could conclude whom the client wants.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Final

from ramnet.core.http import Kind, head_of, kind_of, parse_head
from ramnet.core.tls import is_tls, read_hello
from ramnet.core.urls import Host
from ramnet.errors import WireError

#: Records of a hello. Clients send one, and a few where they split it on purpose. Each takes one
#: reading of the whole, so that the most that a client can cost is some ten milliseconds.
MAX_HELLO_RECORDS: Final = 64
_RECORD_HEADER: Final = 5
# What a client of SSH says, without having heard anything: its server may wait for no more.
_SSH: Final = b"SSH-"
# A request line after which a server of HTTP/1 waits for the end of the head. After any other line
# one of HTTP/0.9 would answer.
_REQUEST_LINE: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32} [!-~]+ HTTP/1\.[01]\r\n")
# Lines that nobody could take for the end of a head, and one that has not ended.
_LINE: Final = rb"[\t\x20-\x7e\x80-\xff]+"
_UNFINISHED: Final = re.compile(rb"(?:" + _LINE + rb"\r\n)+(?:" + _LINE + rb"\r?)?")


class Protocol(StrEnum):
    """What the octets are; ``UNKNOWN`` has no name that could be read."""

    TLS = "TLS"
    HTTP = "HTTP"
    HTTP2 = "HTTP/2 without TLS"
    UNKNOWN = "unknown"


class Waiting(Enum):
    """The octets so far do not tell: all of them have to wait, or may go on."""

    HOLD = "hold"
    PASS = "pass"  # noqa: S105 - not a password


@dataclass(frozen=True, slots=True)
class Opening:
    """What a connection opened with.

    ``host`` is the name that it goes to, None where it says none; ``port`` is the one next to that
    name in HTTP. ``relayed``: a proxy is asked to go there (CONNECT, or a target in absolute-form);
    ``ech``: the name in the clear need not be the one that the server goes by (RFC 9849).
    ``problem`` says what cannot be read, or not in one way only; empty where there is nothing.
    """

    protocol: Protocol
    host: Host | None = None
    port: int | None = None
    relayed: bool = False
    ech: bool = False
    problem: str = ""


class Opener:
    """Gathers the first octets of one client until they tell.

    Bounded by what the readers of TLS and HTTP take, 69 kB at most; each octet is looked at a
    bounded number of times.
    """

    __slots__ = ("_edge", "_edges", "data")

    def __init__(self) -> None:
        self.data = bytearray()
        # Where the header of a record ends next, or a record, in turns; and how many have ended.
        self._edge = _RECORD_HEADER
        self._edges = 0

    def feed(self, octets: bytes) -> Opening | Waiting:
        """Take the next octets in. Not to be called again once it has returned an opening."""
        self.data += octets
        try:
            return self._tell()
        except WireError as err:
            protocol = Protocol.TLS if is_tls(bytes(self.data[:2])) else Protocol.HTTP
            return Opening(protocol, problem=err.message)

    def _tell(self) -> Opening | Waiting:
        data = self.data
        tls = is_tls(bytes(data[:2]))
        if tls:
            return self._tls()
        if tls is None or (len(data) < len(_SSH) and _SSH.startswith(data)):
            return Waiting.HOLD
        kind = Kind.OTHER if data.startswith(_SSH) else kind_of(data)
        if kind is Kind.HTTP1:
            return self._http()
        if kind is None:
            return Waiting.HOLD
        return Opening(Protocol.HTTP2 if kind is Kind.HTTP2 else Protocol.UNKNOWN)

    def _tls(self) -> Opening | Waiting:
        """Read the hello when another record begins or ends: in between, it cannot be complete."""
        before = self._edges
        while len(self.data) >= self._edge and self._edges <= 2 * MAX_HELLO_RECORDS:
            end = self._edge
            header = self._edges % 2 == 0
            length = int.from_bytes(self.data[end - 2 : end], "big") if header else _RECORD_HEADER
            self._edge, self._edges = end + length, self._edges + 1
        if self._edges == before:
            return Waiting.PASS
        if self._edges > 2 * MAX_HELLO_RECORDS:
            raise WireError(f"more than {MAX_HELLO_RECORDS} records", where="ClientHello")
        hello = read_hello(self.data)
        if hello is None:
            return Waiting.PASS
        return Opening(Protocol.TLS, hello.server_name, ech=hello.ech)

    def _http(self) -> Opening | Waiting:
        head = head_of(self.data)
        if head is None:
            unfinished = _REQUEST_LINE.match(self.data) and _UNFINISHED.fullmatch(self.data)
            return Waiting.PASS if unfinished else Waiting.HOLD
        request = parse_head(head)
        relayed = request.connect or request.absolute
        return Opening(Protocol.HTTP, request.host, request.port, relayed=relayed)

"""ClientHellos: built field by field, right or wrong, and those that OpenSSL sends."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise

SERVER_NAME = 0
GROUPS = 10
ALPN = 16
PADDING = 21
SESSION_TICKET = 35
PRE_SHARED_KEY = 41
VERSIONS = 43
KEY_SHARE = 51
ESNI = 0xFFCE
ECH = 0xFE0D

GREASE = (0x0A0A, 0x1A1A)  # RFC 8701
CHANGE_CIPHER_SPEC = b"\x14\x03\x03\x00\x01\x01"


def vector(size: int, content: bytes) -> bytes:
    """Octets behind their count of ``size`` octets."""
    return len(content).to_bytes(size, "big") + content


def extension(kind: int, content: bytes = b"") -> bytes:
    return kind.to_bytes(2, "big") + vector(2, content)


def name_entry(name: str | bytes, kind: int = 0) -> bytes:
    octets = name.encode("latin-1") if isinstance(name, str) else name
    return bytes([kind]) + vector(2, octets)


def server_names(*entries: bytes) -> bytes:
    return extension(SERVER_NAME, vector(2, b"".join(entries)))


def protocols(*names: bytes) -> bytes:
    return extension(ALPN, vector(2, b"".join(vector(1, name) for name in names)))


def ech(kind: int = 0, size: int = 200) -> bytes:
    """An encrypted hello: suite, configuration, key, payload (RFC 9849 section 5)."""
    outer = b"\0\1\0\1" + b"\x2a" + vector(2, bytes(32)) + vector(2, bytes(size))
    return extension(ECH, bytes([kind]) + (b"" if kind else outer))


@dataclass(frozen=True)
class Hello:
    """A ClientHello; ``names`` None leaves the server name out, ``extras`` go behind the rest."""

    names: tuple[bytes, ...] | None = (name_entry("registry.example"),)
    alpn: tuple[bytes, ...] = ()
    versions: tuple[int, ...] = (0x0304, 0x0303)
    extras: tuple[bytes, ...] = ()
    grease: bool = False
    key_share: int = 32  # octets; a post-quantum one has 1216
    padding: int = 0
    legacy_version: int = 0x0303
    session_id: bytes = bytes(32)
    suites: bytes = b"\x13\x01\x13\x02"
    compression: bytes = b"\0"
    kind: int = 1
    without_extensions: bool = False
    trailing: bytes = b""

    def extensions(self) -> list[bytes]:
        """The extensions, GREASE at either end as browsers send it."""
        found = [extension(GREASE[0])] if self.grease else []
        if self.names is not None:
            found.append(server_names(*self.names))
        found.append(extension(GROUPS, b"\0\2\0\x1d"))
        if self.alpn:
            found.append(protocols(*self.alpn))
        if self.versions:
            listed = b"".join(version.to_bytes(2, "big") for version in self.versions)
            found.append(extension(VERSIONS, vector(1, listed)))
        group = b"\x00\x1d" if self.key_share == 32 else b"\x11\xec"  # X25519, with ML-KEM-768
        share = group + vector(2, bytes(self.key_share))
        found.append(extension(KEY_SHARE, vector(2, share)))
        found += self.extras
        if self.grease:
            found.append(extension(GREASE[1], b"\0"))
        if self.padding:
            found.append(extension(PADDING, bytes(self.padding)))
        return found

    def body(self) -> bytes:
        fixed = (
            self.legacy_version.to_bytes(2, "big")
            + bytes(range(32))
            + vector(1, self.session_id)
            + vector(2, self.suites)
            + vector(1, self.compression)
        )
        tail = b"" if self.without_extensions else vector(2, b"".join(self.extensions()))
        return fixed + tail + self.trailing

    def message(self) -> bytes:
        return message(self.body(), self.kind)

    def wire(self) -> bytes:
        """The hello in as few records as it fits."""
        return records(self.message())

    def padded_to(self, size: int) -> Hello:
        """The same with a message of ``size`` octets, which has room for padding."""
        return replace(self, padding=size - len(replace(self, padding=1).message()) + 1)


def message(body: bytes, kind: int = 1) -> bytes:
    return bytes([kind]) + vector(3, body)


def record(fragment: bytes, kind: int = 22, version: int = 0x0301) -> bytes:
    return bytes([kind]) + version.to_bytes(2, "big") + vector(2, fragment)


def records(octets: bytes, cuts: Iterable[int] = ()) -> bytes:
    """A message in records, cut at ``cuts`` and where a record would be too long."""
    size = len(octets)
    places = {0, size, *range(0, size, 1 << 14), *(cut for cut in cuts if 0 < cut < size)}
    return b"".join(record(octets[a:b]) for a, b in pairwise(sorted(places)))


def in_single_octets(octets: bytes) -> bytes:
    return b"".join(record(octets[at : at + 1]) for at in range(len(octets)))


def openssl_hello(
    name: str | None, *, latest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, alpn: Iterable[str] = ()
) -> bytes:
    """What OpenSSL sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.maximum_version = latest
    if alpn:
        context.set_alpn_protocols(list(alpn))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake without an answer")


def openssl_hears(data: bytes) -> list[str | None]:
    """The name that OpenSSL as a server reads (None: no name); empty where it gives up before."""
    heard: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = lambda _object, name, _context: heard.append(name)
    incoming = ssl.MemoryBIO()
    server = context.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True)
    incoming.write(data)
    with suppress(ssl.SSLError):  # it has no certificate, or waits for more
        server.do_handshake()
    return heard

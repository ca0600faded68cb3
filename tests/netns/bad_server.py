"""A server that is no good registry; a program of its own.

    python bad_server.py ADDRESS MODE CERTIFICATE KEY

MODE is one of ``MODES``. It takes any number of connections at ADDRESS port 443, one thread each.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import repeat

READY = "the bad server listens"

OK = b"HTTP/1.1 200 OK\r\nDocker-Distribution-Api-Version: registry/2.0\r\n"
MANIFEST = b"Content-Type: application/vnd.docker.distribution.manifest.v2+json\r\n"
DENIED = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n"
PING = b"GET /v2/ "
# What sets a terminal's title, clears it, and begins a line anew.
ESCAPES = b"\x1b]0;owned\x07\x1b[2J\x9b31m\rpassed"


def mute(_: bytes) -> Iterator[bytes]:
    while True:
        time.sleep(1)
        yield b""


def noise(_: bytes) -> Iterator[bytes]:
    yield os.urandom(4096)


def text(_: bytes) -> Iterator[bytes]:
    yield b"220 mail.example ESMTP\r\n" + ESCAPES + b"\r\n"


def silence(_: bytes) -> Iterator[bytes]:
    yield b""


def drip(_: bytes) -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n"
    for _second in range(3600):
        time.sleep(1)
        yield b"X"


def endless_header(_: bytes) -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nX-Long: "
    yield from repeat(b"a" * 65536)


def many_headers(_: bytes) -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n"
    yield from repeat(b"X-Many: 1\r\n" * 1000)


def endless_manifest(request: bytes) -> Iterator[bytes]:
    if request.startswith(PING):
        yield OK + b"Content-Length: 2\r\nConnection: close\r\n\r\n{}"
    else:
        yield OK + MANIFEST + b'\r\n{"schemaVersion": 2, "layers": ['
        yield from repeat(b'{"digest": "x"},' * 4096)


def deep_manifest(request: bytes) -> Iterator[bytes]:
    body = b"{}" if request.startswith(PING) else b"[" * 500_000
    head = b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
    yield OK + MANIFEST + head + body


def short_manifest(request: bytes) -> Iterator[bytes]:
    body = b"{}" if request.startswith(PING) else b'{"schemaVersion": 2'
    yield OK + MANIFEST + b"Content-Length: 5000\r\nConnection: close\r\n\r\n" + body


def escapes(_: bytes) -> Iterator[bytes]:
    yield DENIED + b'WWW-Authenticate: Bearer realm="https://a' + ESCAPES + b'/t"\r\n\r\n'


def odd_realm(_: bytes) -> Iterator[bytes]:
    yield DENIED + b'WWW-Authenticate: Bearer realm="file:///etc/shadow",service="x"\r\n\r\n'


def odd_challenge(_: bytes) -> Iterator[bytes]:
    yield DENIED + b'WWW-Authenticate: Bearer realm="https://x, , =,\\"\r\n\r\n'


def odd_location(_: bytes) -> Iterator[bytes]:
    yield (
        b"HTTP/1.1 307 Temporary Redirect\r\nContent-Length: 0\r\nConnection: close\r\n"
        b"Location: gopher://[::1/" + ESCAPES + b"\r\n\r\n"
    )


# Whether TLS comes first, and what is sent after a request.
MODES: dict[str, tuple[bool, Callable[[bytes], Iterator[bytes]]]] = {
    "mute": (False, mute),
    "noise": (False, noise),
    "mute-in-tls": (True, mute),
    "silence": (True, silence),
    "text": (True, text),
    "drip": (True, drip),
    "endless-header": (True, endless_header),
    "many-headers": (True, many_headers),
    "endless-manifest": (True, endless_manifest),
    "deep-manifest": (True, deep_manifest),
    "short-manifest": (True, short_manifest),
    "escapes": (True, escapes),
    "odd-realm": (True, odd_realm),
    "odd-challenge": (True, odd_challenge),
    "odd-location": (True, odd_location),
}


def answer(raw: socket.socket, mode: str, context: ssl.SSLContext) -> None:
    tls, say = MODES[mode]
    with contextlib.suppress(OSError), raw:
        if not tls:
            for piece in say(b""):
                raw.sendall(piece)
            return
        with context.wrap_socket(raw, server_side=True) as sock:
            request = b""
            while b"\r\n\r\n" not in request:
                piece = sock.recv(65536)
                if not piece:
                    return
                request += piece
            for piece in say(request):
                sock.sendall(piece)


def main(address: str, mode: str, certificate: str, key: str) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 443), family=family) as server:
        sys.stderr.write(f"{READY}\n")
        sys.stderr.flush()
        while True:
            sock, _ = server.accept()
            threading.Thread(target=answer, args=(sock, mode, context), daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])

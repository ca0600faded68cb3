"""A way round: a TCP relay to one place, or an HTTP proxy that goes wherever it is told (CONNECT).

A program of its own, for containers and sandboxes: PORT HOST PORT is a relay, PORT alone a proxy.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from threading import Thread

SECONDS = 10.0
BACKLOG = 16
CHUNK = 65536


def pump(source: socket.socket, sink: socket.socket) -> None:
    """Copy until the source ends, and tell the sink."""
    with contextlib.suppress(OSError):
        while data := source.recv(CHUNK):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def serve(client: socket.socket, target: tuple[str, int] | None) -> None:
    with client:
        if target is None:
            words = client.makefile("rb", 0)
            _, place, *_ = words.readline().decode().split()
            while words.readline().strip():
                pass
            host, _, port = place.rpartition(":")
            target = host.strip("[]"), int(port)
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        with socket.create_connection(target, SECONDS) as server:
            server.settimeout(None)
            back = Thread(target=pump, args=(server, client))
            back.start()
            pump(client, server)
            back.join()


def main(port: str, *target: str) -> None:
    place = (target[0], int(target[1])) if target else None
    with socket.create_server(
        ("::", int(port)), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True
    ) as listener:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            client, _ = listener.accept()
            Thread(target=serve, args=(client, place), daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])

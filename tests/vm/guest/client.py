"""Asks for fresh names, a few at a time, and connects at once to the address in each answer.

By hand: a resolver library would take longer than the race that this is to lose. Odd numbers ask
for an IPv6 address. Prints what became of it as JSON; times are in seconds.
"""

from __future__ import annotations

import errno
import json
import selectors
import socket
import struct
import sys
import time
from collections.abc import Iterator

RESOLVER = ("203.0.113.54", 53)
PORT = 443
AT_ONCE = 4  # emulated processors sleep and wake slowly: one name at a time is mostly that
IDLE_SECONDS = 20.0  # nothing has come for so long: the rest never will
SLOW_SECONDS = 0.9  # a SYN that was lost is sent again after 1 s


def query(name: str, ident: int, qtype: int) -> bytes:
    """Write a query as a stub resolver does."""
    labels = b"".join(bytes((len(part),)) + part.encode() for part in name.split("."))
    head = struct.pack("!HHHHHH", ident, 0x0100, 1, 0, 0, 0)
    return head + labels + b"\0" + struct.pack("!HH", qtype, 1)


class Asker:
    """Takes numbers one after the other: asks for the name, connects to the address."""

    def __init__(self, numbers: Iterator[int], selector: selectors.BaseSelector) -> None:
        self.waits: list[float] = []
        self.failed: list[tuple[int, str]] = []
        self.connected = self.slow = 0
        self._numbers = numbers
        self._selector = selector
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.connect(RESOLVER)
        self._udp.settimeout(0)
        self._tcp = self._udp  # until there is one
        self._number = -1
        self._since = 0.0
        selector.register(self._udp, selectors.EVENT_READ, self._heard)
        self._ask()

    def _ask(self) -> None:
        self._number = next(self._numbers, -1)
        if self._number < 0:
            self._selector.unregister(self._udp)
            return
        self._since = time.monotonic()
        name, qtype = f"h{self._number}.fresh.example", 28 if self._number & 1 else 1
        self._udp.send(query(name, self._number, qtype))

    def _heard(self) -> None:
        answer = self._udp.recv(512)
        now = time.monotonic()
        self.waits.append(now - self._since)
        family, width = (socket.AF_INET6, 16) if self._number & 1 else (socket.AF_INET, 4)
        self._tcp = socket.socket(family, socket.SOCK_STREAM)
        self._tcp.settimeout(0)
        self._since = now
        code = self._tcp.connect_ex((socket.inet_ntop(family, answer[-width:]), PORT))
        if code == errno.EINPROGRESS:
            self._selector.register(self._tcp, selectors.EVENT_WRITE, self._through)
        else:
            self._done(code)

    def _through(self) -> None:
        self._selector.unregister(self._tcp)
        self._done(self._tcp.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def _done(self, code: int) -> None:
        self._tcp.close()
        self.slow += time.monotonic() - self._since > SLOW_SECONDS
        if code:
            self.failed.append((self._number, errno.errorcode[code]))
        else:
            self.connected += 1
        self._ask()


def main(first: int, count: int) -> None:
    begin = time.monotonic()
    with selectors.DefaultSelector() as selector:
        numbers = iter(range(first, first + count))
        askers = [Asker(numbers, selector) for _ in range(AT_ONCE)]
        while selector.get_map():
            ready = selector.select(IDLE_SECONDS)
            if not ready:
                break
            for key, _ in ready:
                key.data()
    waits = sorted(wait for asker in askers for wait in asker.waits)
    failed = [item for asker in askers for item in asker.failed]
    found = {
        "asked": count,
        "answered": len(waits),
        "connected": sum(asker.connected for asker in askers),
        "slow": sum(asker.slow for asker in askers),
        "failed": failed[:10],
        "answer_p50": waits[len(waits) // 2] if waits else None,
        "answer_p99": waits[len(waits) * 99 // 100] if waits else None,
        "seconds": time.monotonic() - begin,
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

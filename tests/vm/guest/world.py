"""The guest's world: a client and a far side in namespaces, DNS, and a listener at every address.

``h<number>.fresh.example`` leads to an address of its own, an IPv4 address for A and an IPv6
address for AAAA. The far side counts by destination which connections have reached it.
"""

from __future__ import annotations

import contextlib
import ctypes
import selectors
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

CLIENT, FAR = "client", "far"
RESOLVER = "203.0.113.54"
EVIL = "198.51.100.66"
TTL_SECONDS = 1  # the shortest: how long an address stays open is ramnet's decision
FRESH_V4, FRESH_V6 = IPv4Address("10.64.0.0"), IPv6Address("2001:db8:64::")
CLONE_NEWNET = 0x40000000

_NETWORK = f"""
netns add {CLIENT}
netns add {FAR}
link add up0 netns {CLIENT} type veth peer name up0 netns {FAR}
"""
_SIDES = {
    CLIENT: """
link set lo up
address add 192.0.2.2/24 dev up0
address add 2001:db8:ffff::2/64 dev up0 nodad
link set up0 up
route add default via 192.0.2.1
route add default via 2001:db8:ffff::1 dev up0
""",
    FAR: f"""
link set lo up
address add 192.0.2.1/24 dev up0
address add 2001:db8:ffff::1/64 dev up0 nodad
link set up0 up
address add {RESOLVER}/32 dev lo
address add {EVIL}/32 dev lo
route add local {FRESH_V4}/16 dev lo
route add local {FRESH_V6}/64 dev lo
""",
}


def enter(netns: str) -> list[str]:
    """Return the command that runs a program in a network namespace, with all else as it is."""
    return ["nsenter", f"--net=/run/netns/{netns}", "--"]


def make() -> None:
    """Make both namespaces and the wire between them."""
    Path("/etc/resolv.conf").write_text(f"nameserver {RESOLVER}\n", encoding="ascii")
    # By itself a machine of this size follows 8,192 connections, and drops what begins another.
    Path("/proc/sys/net/netfilter/nf_conntrack_max").write_text("65536", encoding="ascii")
    subprocess.run(["ip", "-batch", "-"], input=_NETWORK, text=True, check=True)
    for netns, commands in _SIDES.items():
        argv = [*enter(netns), "ip", "-batch", "-"]
        subprocess.run(argv, input=commands, text=True, check=True)


def inside(netns: str, work: Callable[[], T]) -> T:
    """Run ``work`` in a thread that has entered a namespace; sockets made there stay there."""
    done: list[T] = []

    def body() -> None:
        libc = ctypes.CDLL(None, use_errno=True)  # os.setns is of Python 3.12
        with Path(f"/run/netns/{netns}").open("rb") as namespace:
            if libc.setns(namespace.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        done.append(work())

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    return done[0]


def fresh_address(number: int, qtype: int) -> bytes:
    """Return where the name of a number leads."""
    base = FRESH_V4 if qtype == 1 else FRESH_V6
    return (base + number).packed


class FarSide:
    """The DNS server and the listeners, in a thread of their own."""

    def __init__(self) -> None:
        self.reached: set[str] = set()
        self._dns, *self._listeners = inside(FAR, _far_sockets)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._dns, selectors.EVENT_READ, self._answer)
            for listener in self._listeners:
                selector.register(listener, selectors.EVENT_READ, self._accept)
            while True:
                for key, _ in selector.select():
                    assert isinstance(key.fileobj, socket.socket)
                    with contextlib.suppress(BlockingIOError):
                        while True:
                            key.data(key.fileobj)

    def _answer(self, sock: socket.socket) -> None:
        query, peer = sock.recvfrom(512)
        end = query.index(b"\0", 12) + 5
        first = query[13 : 13 + query[12]]
        if not first.startswith(b"h"):  # nobody's business here
            sock.sendto(query[:2] + b"\x85\x83" + query[4:], peer)
            return
        qtype = int.from_bytes(query[end - 4 : end - 2], "big")
        address = fresh_address(int(first[1:]), qtype)
        record = struct.pack("!HHHIH", 0xC00C, qtype, 1, TTL_SECONDS, len(address)) + address
        head = query[:2] + struct.pack("!HHHHH", 0x8580, 1, 1, 0, 0)
        sock.sendto(head + query[12:end] + record, peer)

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        self.reached.add(connection.getsockname()[0])
        connection.close()


def _far_sockets() -> Sequence[socket.socket]:
    dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    dns.bind((RESOLVER, 53))
    made = [dns]
    for family, everywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        listener = socket.socket(family, socket.SOCK_STREAM)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((everywhere, 443))
        listener.listen(1024)
        made.append(listener)
    for sock in made:
        sock.settimeout(0)
    return made


def connect(address: str, port: int = 443, seconds: float = 10.0) -> str:
    """Connect from the client: ``connected``, ``refused``, or what else became of it."""

    def attempt() -> str:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.settimeout(seconds)
            try:
                sock.connect((address, port))
            except ConnectionRefusedError:
                return "refused"
            except OSError as err:
                return repr(err)
            return "connected"

    return inside(CLIENT, attempt)


def connect_fresh(number: int) -> str:
    """Connect to where a number's name leads by IPv4, without asking."""
    return connect(str(FRESH_V4 + number))


def udp() -> socket.socket:
    """Make a UDP socket."""
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

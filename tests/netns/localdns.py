"""Resolvers on the client itself, and packets of any making: what forgers and set-ups share."""

from __future__ import annotations

import base64
import json
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from ramnet.lab.forge import Datagram, checksum, packet
from ramnet.lab.process import Process
from ramnet.lab.programs import require
from ramnet.lab.sandbox import Sandbox

NOBODY = 65534
# Linux's linux/tcp.h; Python has no names for them.
_TCP_REPAIR, _TCP_REPAIR_QUEUE, _TCP_QUEUE_SEQ = 19, 20, 21
_REPAIR_ON, _REPAIR_OFF = 1, -1  # -1: without a window probe
_RECEIVE, _SEND = 1, 2
_PSH_ACK = 0x18


# --- a resolver


def resolver_argv(
    address: str, upstream: str, *, user: int = 0, drop_to: str = "root"
) -> list[str]:
    """Return the command of a dnsmasq at ``address`` that asks ``upstream`` and keeps nothing.

    It runs as ``user`` from the start, as systemd-resolved does, or binds as root and becomes
    ``drop_to`` afterwards, as dnsmasq does by itself.
    """
    argv = [require("dnsmasq"), "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv"]
    argv += ["--no-hosts", "--no-poll", "--cache-size=0", "--pid-file", "--log-facility=-"]
    argv += ["--bind-interfaces", f"--listen-address={address}", f"--server={upstream}"]
    argv += [f"--user={drop_to}", "--log-queries"]
    if not user:
        return argv
    ids = [f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    capability = "+net_bind_service"
    caps = [f"--inh-caps={capability}", f"--ambient-caps={capability}"]
    return [require("setpriv"), *ids, *caps, *argv]


@contextmanager
def local_resolver(
    sandbox: Sandbox,
    log: Path,
    address: str,
    upstream: str,
    *,
    user: int = 0,
    drop_to: str = "root",
) -> Iterator[Process]:
    """Run a resolver on the machine itself; see ``resolver_argv``."""
    argv = resolver_argv(address, upstream, user=user, drop_to=drop_to)
    process = sandbox.popen(argv, log=log)
    try:
        process.wait_for_line("using nameserver")
        yield process
    finally:
        process.kill()


# --- packets


@dataclass(frozen=True, slots=True)
class Forged:
    """An IP packet and the address whose route it takes, if that is not its own target."""

    packet: bytes
    target: str
    via: str = ""


def udp_packet(source: tuple[str, int], target: tuple[str, int], payload: bytes) -> bytes:
    """Return an IP packet with a UDP datagram."""
    return packet(Datagram(*source, *target, payload))


def tcp_packet(
    source: tuple[str, int],
    target: tuple[str, int],
    numbers: tuple[int, int],
    payload: bytes,
) -> bytes:
    """Return an IP packet with a TCP segment; ``numbers`` are sequence and acknowledgement."""
    body = struct.pack("!HHIIBBHHH", source[1], target[1], *numbers, 5 << 4, _PSH_ACK, 0xFFFF, 0, 0)
    body += payload
    src, dst = ip_address(source[0]).packed, ip_address(target[0]).packed
    total = checksum(src + dst + struct.pack("!IxxxB", len(body), socket.IPPROTO_TCP) + body)
    body = body[:16] + total.to_bytes(2, "big") + body[18:]
    if len(src) == len(IPv6Address("::").packed):
        return struct.pack("!IHBB", 6 << 28, len(body), socket.IPPROTO_TCP, 64) + src + dst + body
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, socket.IPPROTO_TCP, 0)
    head += src + dst
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + body


def tcp_numbers(sock: socket.socket) -> tuple[int, int]:
    """Return sequence and acknowledgement of the next segment that ``sock`` expects.

    The owner of a connection can read them off the wire; here the kernel is asked (TCP_REPAIR).
    """
    found = []
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, _REPAIR_ON)
    for queue in (_RECEIVE, _SEND):
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_QUEUE, queue)
        found.append(sock.getsockopt(socket.IPPROTO_TCP, _TCP_QUEUE_SEQ) & 0xFFFFFFFF)
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, _REPAIR_OFF)
    return found[0], found[1]


# --- who sends them

# As "user" the program gives everything up; as "user-with-raw" its sockets are that user's, but it
# keeps the capability (setfsuid(2)), as a program with file capabilities would.
SENDER = """
import base64, ctypes, json, os, socket, sys
who, user, lines = json.load(sys.stdin)
if who == "user":
    os.setgroups([]); os.setresgid(user, user, user); os.setresuid(user, user, user)
elif who == "user-with-raw":
    ctypes.CDLL(None).setfsuid(user)
for to, text in lines:
    raw = base64.b64decode(text)
    six = raw[0] >> 4 == 6
    try:
        if who == "frames":
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        else:
            family = socket.AF_INET6 if six else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
    except PermissionError:
        sys.exit("no raw socket")
    with sock:
        try:
            if who == "frames":
                kind = 0x86DD if six else 0x0800
                sock.sendto(bytes(12) + kind.to_bytes(2, "big") + raw, ("lo", kind))
            else:
                sock.sendto(raw, (to, 0))
        except PermissionError:
            sys.exit("dropped")
"""
NO_RAW_SOCKET = "no raw socket"  # the kernel's refusal
DROPPED = "dropped"  # what the kernel says of a packet that a rule on output has dropped


def sender_input(packets: Sequence[Forged], who: str, user: int = NOBODY) -> str:
    """Return the input of ``SENDER``.

    ``who`` is ``raw`` (IP packets as root), ``frames`` (frames on ``lo``, past the rules on what
    leaves), ``user`` or ``user-with-raw``.
    """
    lines = [(one.via or one.target, base64.b64encode(one.packet).decode()) for one in packets]
    return json.dumps([who, user, lines])


def send(sandbox: Sandbox, packets: Sequence[Forged], who: str = "raw") -> str:
    """Send packets from a sandbox; return what kept them from being sent, if anything did."""
    argv = [sys.executable, "-I", "-S", "-c", SENDER]
    done = sandbox.run(argv, input=sender_input(packets, who), check=False)
    said = done.stderr.strip()
    assert said in ("", NO_RAW_SOCKET, DROPPED), said
    return said

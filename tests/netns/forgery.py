"""A query of the forger's own, the lie that would answer it, and whether it was believed."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count

from ramnet.lab import topology
from ramnet.lab.lab import Lab
from ramnet.lab.ramnet import Daemon
from ramnet.lab.sandbox import Sandbox
from tests.netns.dnsworld import (
    CONFIG,
    LEARN_SECONDS,
    Heard,
    Saying,
    Script,
    addr,
    learned,
    patched,
    policy,
    query,
    reply,
    socket_in,
    status,
    wait_learned,
)
from tests.netns.localdns import Forged, local_resolver, tcp_numbers, tcp_packet, udp_packet
from tests.netns.support import remove_rules

UPSTREAM = "203.0.113.54"
STUB, WSL = "127.0.0.53", "10.255.255.254"
RESOLVER_USER = 971
POLICY = policy("*.wild.example")
PROTOCOLS = ("udp", "tcp")
# Without these the kernel drops what comes in with an address of the machine itself, or of 127/8.
MARTIANS = ("accept_local", "route_localnet")


@dataclass(frozen=True, slots=True)
class Where:
    """A resolver: its address, the client's own address towards it, the user that answers."""

    address: str
    client: str
    user: int | None = None
    patch: str = ""

    @property
    def local(self) -> bool:
        return self.user is not None


NO_IMPOSTERS_RULE = """
import ramnet.core.compiler as compiler
compiler.imposter_rules = lambda servers: ()
"""

TEACHES_WHAT_IS_FORWARDED = """
import time
import ramnet.host.hold as hold
take = hold.Holder._take
def teach(self, line, queued, passed):
    if line.blocker is None:
        take(self, line, queued, passed)
        return
    learner = self._engine.learner
    learner._asked = lambda *_: True
    with self._lock:
        for lesson in learner.packet(queued.packet, time.monotonic()):
            if lesson.write is not None:
                self.write(lesson.write)
    passed.append(queued.ident)
hold.Holder._take = teach
"""

EVERYBODY_MAY_SERVE = """
import ramnet.host.sockets as sockets
sockets.FIRST_ORDINARY_USER = 1 << 32
"""

RESOLVERS = {
    "remote": Where(UPSTREAM, topology.CLIENT_V4),
    "stub": Where(STUB, "127.0.0.1", RESOLVER_USER),
    "wsl": Where(WSL, WSL, RESOLVER_USER),
    "stub-of-root": Where(STUB, "127.0.0.1", 0),
    "wsl-of-root": Where(WSL, WSL, 0),
    "stub6": Where("::1", "::1", RESOLVER_USER),
    "remote-teaching-what-is-forwarded": Where(
        UPSTREAM, topology.CLIENT_V4, None, TEACHES_WHAT_IS_FORWARDED
    ),
    "stub-that-everybody-may-serve": Where(STUB, "127.0.0.1", RESOLVER_USER, EVERYBODY_MAY_SERVE),
    "stub-without-the-rule": Where(STUB, "127.0.0.1", RESOLVER_USER, NO_IMPOSTERS_RULE),
    "wsl-without-the-rule": Where(WSL, WSL, RESOLVER_USER, NO_IMPOSTERS_RULE),
    "stub6-without-the-rule": Where("::1", "::1", RESOLVER_USER, NO_IMPOSTERS_RULE),
}


@dataclass(slots=True)
class Stage:
    """A client that asks one resolver, with a daemon that trusts it; ``truth`` by name."""

    lab: Lab
    where: Where
    script: Script
    daemon: Daemon
    truth: dict[str, str]
    _stack: ExitStack
    _numbers: Iterator[int] = field(default_factory=count)

    @property
    def client(self) -> Sandbox:
        return self.lab.client

    def fresh(self) -> tuple[str, str]:
        """Return a name and an address that nobody has used."""
        number = next(self._numbers)
        return f"n{number}.wild.example", f"10.78.{number >> 8}.{number & 255}"

    def ask(self, protocol: str) -> Outstanding:
        """Ask for a fresh name; the query has arrived, and its answer is not there yet."""
        name, bad = self.fresh()
        kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
        sock = self._stack.enter_context(socket_in(self.client, self.where.client, kind))
        sock.settimeout(LEARN_SECONDS)
        wire = query(name)
        target = (self.where.address, 53)
        if protocol == "udp":
            sock.sendto(wire, target)
        else:
            sock.connect(target)
            sock.sendall(framed(wire))
        self.script.wait(name)
        return Outstanding(sock, wire, name, bad, self.where)

    def honest(self, protocol: str = "udp") -> None:
        """Have a look-up answered honestly: it teaches, and all before it has been judged."""
        name, good = self.fresh()
        self.truth[name] = good
        sock = self.look_up(name, protocol)
        assert sock
        wait_learned(self.client, good)

    def look_up(self, name: str, protocol: str) -> bytes:
        kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
        with socket_in(self.client, self.where.client, kind) as sock:
            sock.settimeout(LEARN_SECONDS)
            sock.connect((self.where.address, 53))
            sock.sendall(query(name) if protocol == "udp" else framed(query(name)))
            return sock.recv(4096)

    def imposters(self) -> int:
        return int(status(self.daemon)["dns"]["imposters"])


@dataclass(frozen=True, slots=True)
class Outstanding:
    """A query of the forger's own: everything about it is known, and it waits."""

    sock: socket.socket
    wire: bytes
    name: str
    bad: str
    where: Where

    def lie(self, via: str = "") -> Forged:
        """Return the packet that would answer it with the bad address."""
        message = reply(self.wire, addr(self.name, self.bad))
        source, target = (self.where.address, 53), self.sock.getsockname()[:2]
        if self.sock.type == socket.SOCK_DGRAM:
            return Forged(udp_packet(source, target, message), target[0], via)
        numbers = tcp_numbers(self.sock)
        return Forged(tcp_packet(source, target, numbers, framed(message)), target[0], via)

    def heard(self) -> bool:
        """Tell whether the lie has arrived at the program that asked."""
        return bool(self.sock.recv(4096))

    def silence(self) -> bool:
        """Tell that nothing has arrived."""
        self.sock.settimeout(0.1)
        try:
            return not self.sock.recv(4096)
        except TimeoutError:
            return True


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


@contextmanager
def stage(lab: Lab, where: Where) -> Iterator[Stage]:
    truth: dict[str, str] = {}

    def behave(heard: Heard) -> Saying:
        good = truth.get(heard.name)
        return None if good is None else reply(heard.wire, addr(heard.name, good))

    with ExitStack() as stack:
        script = stack.enter_context(Script(lab.world, UPSTREAM, behave=behave))
        if where.user is not None:
            log = lab.directory / f"resolver-{where.user}.log"
            log.unlink(missing_ok=True)
            stack.enter_context(
                local_resolver(lab.client, log, where.address, UPSTREAM, user=where.user)
            )
        lab.client.set_resolvers(where.address)
        # Only once the daemon is gone: it would put the table back, for the next one to adopt.
        stack.callback(remove_rules, lab.client)
        daemon = stack.enter_context(patched(lab, where.patch, POLICY, CONFIG))
        sockets = stack.enter_context(ExitStack())
        yield Stage(lab, where, script, daemon, truth, sockets)


@contextmanager
def answers_by(sandbox: Sandbox, address: str, interface: str) -> Iterator[None]:
    """Believe answers of a resolver that come in by one more interface."""
    name = "answerers6" if ":" in address else "answerers4"
    where = ["element", "inet", "ramnet", name, f"{{ {address} . {interface} }}"]
    sandbox.run(["nft", "add", *where])
    try:
        yield
    finally:
        sandbox.run(["nft", "delete", *where])


def sysctl(sandbox: Sandbox, interface: str, value: int, *keys: str) -> None:
    for key in keys:
        path = f"/proc/sys/net/ipv4/conf/{interface}/{key}"
        sandbox.run(["/bin/sh", "-c", f"echo {value} >{path}"])


Teller = Callable[[Forged], object]


def believed(made: Stage, protocol: str, tell: Teller, via: str = "") -> None:
    """Have a lie told and wait until it is believed."""
    asked = made.ask(protocol)
    tell(asked.lie(via))
    wait_learned(made.client, asked.bad)


def ignored(made: Stage, protocol: str, tell: Teller, via: str = "") -> Outstanding:
    """Have a lie told and an honest answer judged behind it; only that one must have taught."""
    asked = made.ask(protocol)
    tell(asked.lie(via))
    made.honest(protocol)
    assert not learned(made.client, asked.bad)
    return asked

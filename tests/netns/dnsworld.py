"""DNS by hand: a server that says what a test tells it, clients that ask, and what became of it.

A socket stays in the network namespace in which it was made, whoever uses it. So a thread enters a
sandbox, makes the socket and ends, and the test itself then is the server, the client or the
resolver under test: nothing has to be told to another process, and no time is lost.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import json
import os
import re
import secrets
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self, TypeVar

from dnslib import AAAA, CNAME, QTYPE, RR, A, DNSHeader, DNSQuestion, DNSRecord

from ramnet.host.control import ask as ask_daemon
from ramnet.lab.lab import Lab
from ramnet.lab.process import wait_until
from ramnet.lab.ramnet import Daemon
from ramnet.lab.sandbox import Sandbox

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
LEARN_SECONDS = 10.0  # milliseconds on an idle machine
CONFIG = '[scope]\nmode = "netns"\nweak = "strict"\n'
OBSERVE = f'{CONFIG}[dns]\nmode = "observe"\n'
# The two ways to follow answers, for what must hold in both.
MODES = {"observe": OBSERVE, "hold": f'{CONFIG}[dns]\nmode = "hold"\n'}


def policy(*addresses: str) -> str:
    """Return a policy that lists these registries."""
    listed = "".join(f'[[registry]]\naddress = "{address}"\n' for address in addresses)
    return f'version = 1\norganization = "acme"\n{listed}[enforcement]\non_deny = "reject"\n'


# --- sockets in a sandbox


def inside(sandbox: Sandbox, work: Callable[[], T]) -> T:
    """Run ``work`` in a thread that has entered the network namespace of a sandbox."""
    done: list[T] = []
    failed: list[BaseException] = []

    def enter() -> None:
        try:
            _enter(sandbox)
            done.append(work())
        except BaseException as err:  # noqa: BLE001 - raised again in the caller's thread
            failed.append(err)

    thread = threading.Thread(target=enter, name=f"inside {sandbox.name}")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


def _enter(sandbox: Sandbox) -> None:
    """Move this thread into the network namespace of a sandbox (os.setns came with Python 3.12)."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(f"/proc/{sandbox.pid}/ns/net").open("rb") as namespace:
        if libc.setns(namespace.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


def socket_in(sandbox: Sandbox, address: str, kind: int, port: int = 0) -> socket.socket:
    """Make a socket of ``kind`` in a sandbox, bound to an address (and port) there."""

    def make() -> socket.socket:
        sock = socket.socket(family_of(address), kind)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address, port))
        except BaseException:
            sock.close()
            raise
        return sock

    return inside(sandbox, make)


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


# --- messages


def query(name: str, qtype: str = "A", *, ident: int | None = None, qclass: int = 1) -> bytes:
    """Return a query as a stub resolver writes it."""
    header = DNSHeader(id=secrets.randbelow(1 << 16) if ident is None else ident, rd=1)
    question = DNSQuestion(name, QTYPE.reverse[qtype], qclass)
    return bytes(DNSRecord(header, questions=[question]).pack())


def addr(name: str, address: str, *, ttl: int = 60, rclass: int = 1) -> RR:
    """Return an A or AAAA record."""
    if ":" in address:
        return RR(name, QTYPE.AAAA, rclass, ttl, AAAA(tuple(ip_address(address).packed)))
    return RR(name, QTYPE.A, rclass, ttl, A(address))


def alias(name: str, target: str, *, ttl: int = 60) -> RR:
    """Return a CNAME record."""
    return RR(name, QTYPE.CNAME, ttl=ttl, rdata=CNAME(target))


def reply(
    asked: bytes,
    *answers: RR,
    authority: Sequence[RR] = (),
    additional: Sequence[RR] = (),
    questions: Sequence[DNSQuestion] | None = None,
    header: Mapping[str, int] | None = None,
) -> bytes:
    """Return an answer to a query; ``header`` replaces fields of what an honest one has."""
    heard = DNSRecord.parse(asked)
    fields = {"id": heard.header.id, "qr": 1, "aa": 1, "rd": 1, "ra": 1, **(header or {})}
    message = DNSRecord(
        DNSHeader(**fields),
        questions=list(heard.questions if questions is None else questions),
        rr=list(answers),
        auth=list(authority),
        ar=list(additional),
    )
    return bytes(message.pack())


# --- the server


@dataclass(frozen=True, slots=True)
class Heard:
    """One query that reached a scripted server."""

    wire: bytes
    server: str
    client: str
    port: int
    tcp: bool
    time: float

    @property
    def record(self) -> Any:
        return DNSRecord.parse(self.wire)

    @property
    def name(self) -> str:
        return str(self.record.q.qname).rstrip(".").lower()

    @property
    def qtype(self) -> str:
        return str(QTYPE[self.record.q.qtype])


@dataclass(frozen=True, slots=True)
class Raw:
    """Octets for a TCP connection without the length in front; it is closed behind them."""

    data: bytes


#: What a server says to a query: datagrams in order (over TCP: one message), or nothing.
Saying = bytes | Raw | Sequence[bytes] | None
Behaviour = Callable[[Heard], Saying]


def silence(_: Heard) -> Saying:
    return None


def zone(table: Mapping[str, Sequence[str]], *, ttl: int = 60) -> Behaviour:
    """Behave like an honest server; a name that is not in the table does not exist."""

    def say(heard: Heard) -> Saying:
        if heard.name not in table:
            return reply(heard.wire, header={"rcode": 3})
        wanted = [one for one in table[heard.name] if (":" in one) == (heard.qtype == "AAAA")]
        return reply(heard.wire, *(addr(heard.name, one, ttl=ttl) for one in wanted))

    return say


class Script:
    """A DNS server (UDP and TCP) at addresses of a sandbox that does what ``behave`` says.

    ``behave`` may be replaced at any time. As a context manager it is closed at the end.
    """

    def __init__(
        self, sandbox: Sandbox, *addresses: str, behave: Behaviour = silence, port: int = 53
    ) -> None:
        self.behave = behave
        self._heard: list[Heard] = []
        self._udp: dict[str, socket.socket] = {}
        self._kept: list[socket.socket] = []
        self._selector = selectors.DefaultSelector()
        self._over = False
        self.failures: list[Exception] = []
        for address in addresses:
            udp = socket_in(sandbox, address, socket.SOCK_DGRAM, port)
            self._udp[address] = udp
            self._selector.register(udp, selectors.EVENT_READ, address)
            tcp = socket_in(sandbox, address, socket.SOCK_STREAM, port)
            tcp.listen(64)
            self._selector.register(tcp, selectors.EVENT_READ, address)
        self._thread = threading.Thread(target=self._serve, name="scripted DNS")
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the server; raises what its behaviour raised."""
        self._over = True
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            self._selector.unregister(key.fileobj)
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        for sock in self._kept:
            sock.close()
        self._selector.close()
        if self.failures:
            raise self.failures[0]

    def heard(self, name: str | None = None, qtype: str | None = None) -> list[Heard]:
        """Return the queries so far, in order."""
        return [
            one
            for one in list(self._heard)
            if name in (None, one.name) and qtype in (None, one.qtype)
        ]

    def wait(self, name: str, qtype: str | None = None, *, count: int = 1) -> Heard:
        """Wait for the ``count``-th query of a name and return it."""
        wait_until(
            lambda: len(self.heard(name, qtype)) >= count,
            LEARN_SECONDS,
            f"query {count} for {name} {qtype or ''}",
        )
        return self.heard(name, qtype)[count - 1]

    def say(self, heard: Heard, *messages: bytes) -> None:
        """Send datagrams to who asked, from the address that was asked."""
        for message in messages:
            self._udp[heard.server].sendto(message, (heard.client, heard.port))

    def tell(self, server: str, client: tuple[str, int], message: bytes) -> None:
        """Send a datagram from port 53 of ``server`` to anybody."""
        self._udp[server].sendto(message, client)

    def _serve(self) -> None:
        while not self._over:
            for key, _ in self._selector.select(0.02):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                try:
                    if sock.type == socket.SOCK_DGRAM:
                        self._datagram(sock, key.data)
                    else:
                        self._connection(sock, key.data)
                except OSError:  # the other side has gone
                    continue
                except Exception as err:  # noqa: BLE001 - a fault of the script: see close
                    self.failures.append(err)

    def _datagram(self, sock: socket.socket, server: str) -> None:
        wire, peer = sock.recvfrom(65535)
        heard = Heard(wire, server, peer[0], peer[1], tcp=False, time=time.monotonic())
        self._heard.append(heard)
        said = self.behave(heard)
        if said is None or isinstance(said, Raw):
            return
        self.say(heard, *([said] if isinstance(said, bytes) else said))

    def _connection(self, listener: socket.socket, server: str) -> None:
        """Serve one connection: its only query comes in at once."""
        sock, peer = listener.accept()
        sock.settimeout(2)
        size = int.from_bytes(_exactly(sock, 2), "big")
        heard = Heard(
            _exactly(sock, size), server, peer[0], peer[1], tcp=True, time=time.monotonic()
        )
        self._heard.append(heard)
        said = self.behave(heard)
        if said is None:
            self._kept.append(sock)
            return
        with sock:
            if isinstance(said, Raw):
                sock.sendall(said.data)
                return
            for message in [said] if isinstance(said, bytes) else said:
                sock.sendall(len(message).to_bytes(2, "big") + message)


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            raise OSError(errno.ECONNRESET, "closed early")
        data += part
    return data


# --- the clients


@dataclass(frozen=True, slots=True)
class Asked:
    """A query that a client of a sandbox has sent and that waits for its answer."""

    sock: socket.socket
    wire: bytes
    server: str
    client: str
    port: int

    @property
    def name(self) -> str:
        return str(DNSRecord.parse(self.wire).q.qname).rstrip(".").lower()


# Pairs of neighbouring ports, of some 14,000: more than all tests use in the time of a flow.
_recent_pairs: deque[int] = deque(maxlen=4096)


class Clients:
    """Ordinary programs of a sandbox that ask for names; their sockets are closed at the end."""

    def __init__(self, sandbox: Sandbox, v4: str, v6: str) -> None:
        self.sandbox = sandbox
        self._own = {socket.AF_INET: v4, socket.AF_INET6: v6}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def bind(self, towards: str) -> socket.socket:
        """Make a UDP socket on the client's own address towards a server; nothing is sent.

        Neither its port nor its neighbour (``port ^ 1``) was any client's a short while ago: the
        kernel remembers a flow for half a minute after its socket, and what a server sends to its
        port is no lie until then.
        """
        own = self._own[family_of(towards)]
        while True:
            sock = socket_in(self.sandbox, own, socket.SOCK_DGRAM)
            pair = sock.getsockname()[1] >> 1
            if pair not in _recent_pairs:
                break
            sock.close()
        _recent_pairs.append(pair)
        sock.settimeout(LEARN_SECONDS)
        return self._stack.enter_context(sock)

    def ask(self, server: str, wire: bytes) -> Asked:
        """Send a query from a fresh port."""
        sock = self.bind(server)
        sock.sendto(wire, (server, 53))
        client, port = sock.getsockname()[:2]
        return Asked(sock, wire, server, client, port)


# --- the rules


@contextmanager
def replaced(sandbox: Sandbox, chain: str, which: str, text: str) -> Iterator[None]:
    """Put ``text`` in the place of the last rule of ramnet's chain with ``which`` in it, and undo.

    A rule that is gone or too much makes the daemon load its table again, within a second. So there
    are as many rules as before, and there have to be as many jumps.
    """
    listing = ["nft", "-a", "list", "chain", "inet", "ramnet", chain]
    found = re.findall(r"^\t\t(.*) # handle (\d+)$", sandbox.run(listing).stdout, re.MULTILINE)
    before, handle = [one for one in found if which in one[0]][-1]
    replace = ["nft", "replace", "rule", "inet", "ramnet", chain, "handle"]
    sandbox.run([*replace, handle, f'{text} comment "a test"'])
    try:
        yield
    finally:
        now = re.search(r'comment "a test" # handle (\d+)', sandbox.run(listing).stdout)
        assert now is not None, "the daemon has loaded its table again"
        sandbox.run([*replace, now[1], before])


# --- what became of it


@dataclass(frozen=True, slots=True)
class Element:
    """One element of the kernel's host sets; times in seconds."""

    timeout: float
    expires: float
    name: str


def leases(sandbox: Sandbox) -> dict[tuple[str, int], Element]:
    """Return what the kernel holds in ``allow4`` and ``allow6``, by address and port."""
    found: dict[tuple[str, int], Element] = {}
    for item in _elements(sandbox, "allow"):
        one = item["elem"]
        address, port = one["val"]["concat"]
        key = (str(ip_address(address)), int(port))
        found[key] = Element(one["timeout"], one.get("expires", 0), one.get("comment", ""))
    return found


def resolvers(sandbox: Sandbox) -> set[tuple[str, str]]:
    """Return the trusted resolvers as the kernel holds them: address and interface."""
    pairs = (item["concat"] for item in _elements(sandbox, "resolvers"))
    return {(str(ip_address(address)), str(interface)) for address, interface in pairs}


def _elements(sandbox: Sandbox, name: str) -> Iterator[Any]:
    done = sandbox.run(["nft", "-j", "list", "table", "inet", "ramnet"])
    for part in json.loads(done.stdout)["nftables"]:
        if part.get("set", {}).get("name") in (f"{name}4", f"{name}6"):
            yield from part["set"].get("elem", ())


def learned(sandbox: Sandbox, *addresses: str, port: int = 443) -> bool:
    """Tell whether the kernel lets connections to all these addresses pass."""
    held = leases(sandbox)
    return all((str(ip_address(address)), port) in held for address in addresses)


def wait_learned(sandbox: Sandbox, *addresses: str, port: int = 443) -> None:
    """Wait until the kernel holds these addresses."""
    wait_until(
        lambda: learned(sandbox, *addresses, port=port), LEARN_SECONDS, f"learning {addresses}"
    )


def status(daemon: Daemon) -> dict[str, Any]:
    """Return ``status`` by the control socket: a command line takes half a second to start."""
    return ask_daemon(str(daemon.runtime_dir), "status")


@dataclass(frozen=True, slots=True)
class Attempt:
    """How a connect ended: ``connected``, ``timeout`` or the name of an errno, and after what."""

    outcome: str
    seconds: float


def connect_all(
    sandbox: Sandbox, targets: Iterable[tuple[str, int]], seconds: float = 6.0
) -> dict[tuple[str, int], Attempt]:
    """Connect from a sandbox to all targets side by side; each attempt has ``seconds``."""
    wanted = list(dict.fromkeys(targets))
    return inside(sandbox, lambda: _connect_all(wanted, seconds))


def _connect_all(
    targets: Sequence[tuple[str, int]], seconds: float
) -> dict[tuple[str, int], Attempt]:
    done: dict[tuple[str, int], Attempt] = {}
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        for target in targets:
            sock = stack.enter_context(socket.socket(family_of(target[0]), socket.SOCK_STREAM))
            sock.settimeout(0)
            begin = time.monotonic()
            code = sock.connect_ex(target)
            if code == errno.EINPROGRESS:
                selector.register(sock, selectors.EVENT_WRITE, (target, begin))
            else:
                done[target] = Attempt(_outcome(code), time.monotonic() - begin)
        end = time.monotonic() + seconds
        while selector.get_map() and time.monotonic() < end:
            for key, _ in selector.select(0.1):
                target, begin = key.data
                assert isinstance(key.fileobj, socket.socket)
                code = key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                done[target] = Attempt(_outcome(code), time.monotonic() - begin)
                selector.unregister(key.fileobj)
    return {target: done.get(target, Attempt("timeout", seconds)) for target in targets}


def _outcome(code: int) -> str:
    return errno.errorcode.get(code, str(code)) if code else "connected"


# --- the world


SERVERS = ("203.0.113.54", "2001:db8::54")


@dataclass(slots=True)
class World:
    """A lab whose client asks a scripted server, with a daemon that has only that to believe."""

    lab: Lab
    script: Script
    daemon: Daemon
    mode: str = "hold"
    _names: Iterator[int] = field(default_factory=itertools.count)

    @property
    def client(self) -> Sandbox:
        return self.lab.client

    def name(self, parent: str = "wild.example") -> str:
        """Return a name that nobody has used."""
        return f"n{next(self._names)}.{parent}"

    def address(self) -> str:
        """Return an address that nobody has used; it is private and reached by nobody."""
        number = next(self._names)
        return f"10.77.{number >> 8}.{number & 255}"

    def ignored(self, why: str) -> int:
        """Return how many answers the daemon ignored for a reason."""
        return int(status(self.daemon)["dns"]["ignored"].get(why, 0))

    def answers(self) -> int:
        """Return how many answers the daemon took in."""
        return int(status(self.daemon)["dns"]["answers"])

    def held(self) -> tuple[int, int]:
        """Return how many answers the daemon has seen in mode ``hold``, and how many it held."""
        hold = status(self.daemon)["dns"]["hold"]
        return (hold["seen"], hold["held"]) if hold else (0, 0)

    def truth(self, clients: Clients, address: str | None = None, server: str = SERVERS[0]) -> str:
        """Have a client ask and the server answer honestly; return the address once learned.

        The daemon reads answers in order, so all that came before this one has been judged.
        """
        name, address = self.name(), address or self.address()
        asked = clients.ask(server, query(name, "AAAA" if ":" in address else "A"))
        heard = self.script.wait(name)
        self.script.say(heard, reply(asked.wire, addr(name, address)))
        wait_learned(self.client, address)
        return address


class PatchedDaemon(Daemon):
    """A daemon with some of its code replaced before it starts: ``patch`` is Python.

    It shows that a defence is what refuses: without it the same lie is believed.
    """

    patch = ""

    def _environment(self) -> dict[str, str]:
        folder = self.policy_file.parent / "patch"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(self.patch, encoding="utf-8")
        found = super()._environment()
        return found | {"PYTHONPATH": f"{folder}{os.pathsep}{found['PYTHONPATH']}"}


@contextmanager
def patched(lab: Lab, patch: str, policy_text: str, config: str = CONFIG) -> Iterator[Daemon]:
    """Run a daemon with ``patch`` in the client of a lab."""
    folder = lab.directory / f"patched-{secrets.token_hex(4)}"
    folder.mkdir()
    daemon = PatchedDaemon(lab.client, folder, policy_text, config)
    daemon.patch = patch
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.abandon()

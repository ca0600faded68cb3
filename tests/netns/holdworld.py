"""Mode ``hold`` under load: a resolver that makes addresses up, and clients that connect at once.

The resolver, the server behind all its addresses and the clients are processes of their own, each
one tight loop: a slow client would give the daemon the time that the tests want to take away.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from ramnet.lab.lab import Lab
from ramnet.lab.process import Process, wait_until
from ramnet.lab.ramnet import Daemon
from ramnet.lab.sandbox import Sandbox
from tests.netns.dnsworld import LEARN_SECONDS, status

# Where the resolver of this world listens; the scripted servers of a test have other addresses.
RESOLVER = "203.0.113.54"
RESOLVER_V6 = "2001:db8::54"
SCRIPTED = "203.0.113.55"

PORT = 443
# What a connection may take: a SYN that is sent again takes 1 s (the limit).
DELAYED_SECONDS = 0.5

STRICT = '[scope]\nmode = "netns"\nweak = "strict"\n'


def config(mode: str = "auto", more: str = "") -> str:
    """Return a configuration with this DNS mode."""
    return f'{STRICT}[dns]\nmode = "{mode}"\n{more}'


# --- the resolver

# The address of "h7.c3.any.example" is 10.67.0.7 or 2001:db8:64:3::7: from the name alone, so that
# each name leads to an address that no other leads to. A query of a name that starts with "q" is
# not answered.
_NAMES = """
import re, socket, struct

def wire(name):
    return b"".join(bytes([len(one)]) + one.encode() for one in name.split(".")) + b"\\0"

def query(ident, name, kind):
    head = struct.pack("!HHHHHH", ident & 0xFFFF, 0x0100, 1, 0, 0, 0)
    return head + wire(name) + struct.pack("!HH", kind, 1)

def answer(asked):
    size = asked[12]
    second = 13 + size
    number = int(asked[13:second])
    block = int(asked[second + 1 : second + 1 + asked[second]])
    v6 = asked[-3] == 28
    if v6:
        data = struct.pack("!HHHHHHHH", 0x2001, 0xDB8, 0x64, block, 0, 0, 0, number)
    else:
        data = struct.pack("!BBH", 10, 64 + block, number)
    head = asked[:2] + b"\\x85\\x80\\0\\1\\0\\1\\0\\0\\0\\0"
    record = b"\\xc0\\x0c" + asked[-4:] + b"\\0\\0\\0\\x3c" + struct.pack("!H", len(data)) + data
    return head + asked[12:] + record
"""

_RESOLVER = (
    _NAMES
    + """
import select, sys

poll, socks = select.poll(), {}
for address in sys.argv[1:]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
    sock.bind((address, 53))
    sock.setblocking(False)
    socks[sock.fileno()] = sock
    poll.register(sock, select.POLLIN)
print("ready", flush=True)
while True:
    for number, _ in poll.poll():
        sock = socks[number]
        try:
            for _ in range(64):
                asked, peer = sock.recvfrom(4096)
                if asked[13:14].isdigit():
                    sock.sendto(answer(asked), peer)
        except BlockingIOError:
            continue
        except OSError:
            continue
"""
)

_SERVER = """
import socket, sys
with socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, backlog=4096,
                          dualstack_ipv6=True) as server:
    print("ready", flush=True)
    while True:
        try:
            server.accept()[0].close()
        except OSError:
            continue
"""

# Asks for ``count`` names of a block and connects to what each answer says as soon as it is there.
# "a" and "aaaa": one query at a time. "one": A and AAAA side by side from one socket, as glibc
# asks; "two": each from a socket of its own, as Go does. "patient" goes on with the next name
# while connects are under way, so that one that is delayed holds up no other.
_CLIENT = (
    _NAMES
    + """
import errno, json, os, select, sys, time

shape, server, block, count, parent, seconds = json.loads(sys.argv[1])
family = socket.AF_INET6 if ":" in server else socket.AF_INET
clock = time.monotonic
asks, connects, said, examples, open_ = [], [], {}, [], {}
selector = select.poll()

def note(outcome, took, address):
    said[outcome] = said.get(outcome, 0) + 1
    connects.append(took)
    if outcome != "connected" and len(examples) < 3:
        examples.append([outcome, address, took])

def outcome(code):
    return errno.errorcode.get(code, str(code)) if code else "connected"

def target(got):
    if got[-6:-4] == b"\\0\\4":
        return socket.AF_INET, socket.inet_ntoa(got[-4:])
    return socket.AF_INET6, socket.inet_ntop(socket.AF_INET6, got[-16:])

def dial(got, begin):
    now = clock()
    asks.append(now - begin)
    kind, address = target(got)
    sock = socket.socket(kind, socket.SOCK_STREAM)
    if shape == "patient":
        sock.setblocking(False)
        code = sock.connect_ex((address, 443))
        if code == errno.EINPROGRESS:
            open_[sock.fileno()] = sock, now, address
            selector.register(sock, select.POLLOUT)
            return
        note(outcome(code), clock() - now, address)
    else:
        sock.settimeout(5)
        try:
            sock.connect((address, 443))
            code = 0
        except TimeoutError:
            code = errno.ETIMEDOUT
        except OSError as err:
            code = err.errno
        note(outcome(code), clock() - now, address)
    sock.close()

def finish(wait):
    for number, _ in selector.poll(wait):
        sock, begin, address = open_.pop(number)
        selector.unregister(sock)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        note(outcome(code), clock() - begin, address)
        sock.close()

def bound():
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.connect((server, 53))
    sock.settimeout(5)
    return sock

kinds = {"a": [1], "aaaa": [28], "patient": [1]}.get(shape, [1, 28])
kept = bound()
lost, number, end = 0, 0, clock() + seconds
while number < count and clock() < end:
    name = f"{number}.{block}.{parent}"
    begin = clock()
    if shape == "two":
        socks = [bound() for _ in kinds]
        for step, sock in enumerate(socks):
            sock.send(query(number * 2 + step, name, kinds[step]))
        poll = select.poll()
        for sock in socks:
            poll.register(sock, select.POLLIN)
        waiting = {sock.fileno(): sock for sock in socks}
        while waiting:
            ready = poll.poll(5000)
            if not ready:
                lost += len(waiting)
                break
            for number_, _ in ready:
                sock = waiting.pop(number_)
                poll.unregister(sock)
                dial(sock.recv(2048), begin)
        for sock in socks:
            sock.close()
    else:
        for step, kind in enumerate(kinds):
            kept.send(query(number * 2 + step, name, kind))
        for _ in kinds:
            try:
                dial(kept.recv(2048), begin)
            except TimeoutError:
                lost += 1
    if open_:
        finish(0)
    number += 1
end = clock() + 10
while open_ and clock() < end:
    finish(100)
for _, begin, address in open_.values():
    note("timeout", clock() - begin, address)
print(json.dumps({"names": number, "lost": lost, "said": said, "examples": examples,
                  "asks": asks, "connects": connects}))
"""
)


@dataclass(frozen=True, slots=True)
class Run:
    """What became of a client's names; times in seconds."""

    names: int
    lost: int
    said: dict[str, int]
    examples: list[Any]
    asks: list[float]
    connects: list[float]

    @property
    def refused(self) -> int:
        """How many connects did not succeed, for whatever reason."""
        return sum(count for outcome, count in self.said.items() if outcome != "connected")

    @property
    def delayed(self) -> int:
        """How many answers or connects took longer than a client would notice."""
        return sum(took > DELAYED_SECONDS for took in (*self.asks, *self.connects))

    def __str__(self) -> str:
        """Summarise, for a failed assert."""
        asks, connects = sorted(self.asks) or [0.0], sorted(self.connects) or [0.0]
        return (
            f"{self.names} names, {self.said}, {self.lost} lost, {self.delayed} delayed,"
            f" {self.examples}; answers p50 {asks[len(asks) // 2] * 1e3:.2f} ms,"
            f" max {asks[-1] * 1e3:.0f} ms; connects max {connects[-1] * 1e3:.0f} ms"
        )


class Client:
    """One client process; ``result`` waits for its end."""

    def __init__(
        self,
        lab: Lab,
        shape: str,
        block: int,
        count: int,
        *,
        parent: str = "fresh.example",
        server: str = RESOLVER,
        seconds: float = 60.0,
    ) -> None:
        self._log = lab.directory / f"client-{shape}-{block}"
        said = json.dumps([shape, server, block, count, parent, seconds])
        argv = [sys.executable, "-I", "-S", "-c", _CLIENT, said]
        self._process = lab.client.popen(argv, log=self._log)

    def result(self, seconds: float = 90.0) -> Run:
        """Return what became of its names."""
        assert self._process.wait(seconds) == 0, self._process.tail()
        text = self._log.read_text(encoding="utf-8")
        self._log.unlink()
        return Run(**json.loads(text))


def run(lab: Lab, shape: str, block: int, count: int, **more: Any) -> Run:
    """Run one client to its end."""
    return Client(lab, shape, block, count, **more).result()


# --- the stream: what DNS does while the daemon suffers

_STREAM = (
    _NAMES
    + """
import json, select, sys, time

server, block, parent, rate, seconds = json.loads(sys.argv[1])
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
sock.connect((server, 53))
poll = select.poll()
poll.register(sock, select.POLLIN)
clock = time.monotonic
print("begun", flush=True)
begin = clock()
sent, got, number = [], {}, 0
while True:
    now = clock()
    if now - begin > seconds + 3 or (now - begin > seconds and len(got) == number):
        break
    if now - begin < seconds and now >= begin + number / rate:
        sock.send(query(number, f"{number}.{block}.{parent}", 1))
        sent.append(now)
        number += 1
        continue
    due = begin + number / rate if now - begin < seconds else now + 0.05
    for _ in poll.poll(max(0, (due - now) * 1000)):
        data = sock.recv(2048)
        got.setdefault(int.from_bytes(data[:2], "big"), clock())
print(json.dumps({"sent": sent, "got": got}))
"""
)


@dataclass(frozen=True, slots=True)
class Answers:
    """When the queries of a stream left and their answers came (by number), monotonic seconds."""

    sent: list[float]
    got: dict[int, float]

    @property
    def lost(self) -> list[int]:
        """The queries that nobody ever answered."""
        return [number for number in range(len(self.sent)) if number not in self.got]

    @property
    def gap(self) -> float:
        """The longest time in which no answer came."""
        times = [self.sent[0], *sorted(self.got.values())]
        return max(after - before for before, after in itertools.pairwise(times))

    def slowest(self, since: float = 0.0, until: float = float("inf")) -> float:
        """The longest that an answer took to a query that left in this time."""
        return max(
            (at - self.sent[n] for n, at in self.got.items() if since <= self.sent[n] <= until),
            default=0.0,
        )

    def cost(self, slow: float = DELAYED_SECONDS) -> float:
        """How long queries went unanswered, or were answered late: the sum, in seconds of them."""
        late = sum(at - self.sent[number] > slow for number, at in self.got.items())
        rate = len(self.sent) / (self.sent[-1] - self.sent[0])
        return (late + len(self.lost)) / rate


class Stream:
    """Queries at a steady rate, by a process of its own; ``answers`` waits for its end."""

    def __init__(
        self, lab: Lab, block: int, seconds: float, *, parent: str, rate: int = 250
    ) -> None:
        self._log = lab.directory / f"stream-{block}"
        said = json.dumps([RESOLVER, block, parent, rate, seconds])
        self._seconds = seconds
        argv = [sys.executable, "-I", "-S", "-c", _STREAM, said]
        self._process = lab.client.popen(argv, log=self._log)
        self._process.wait_for_line("begun")

    def answers(self) -> Answers:
        """Return what was sent and what came."""
        assert self._process.wait(self._seconds + 30) == 0, self._process.tail()
        found = json.loads(self._log.read_text(encoding="utf-8").partition("\n")[2])
        self._log.unlink()
        return Answers(found["sent"], {int(key): at for key, at in found["got"].items()})


# --- the world and the rules


def routes(lab: Lab) -> None:
    """Give the world every address that the resolver makes up."""
    lab.world.run(["ip", "route", "add", "local", "10.64.0.0/10", "dev", "lo"])
    lab.world.run(["ip", "-6", "route", "add", "local", "2001:db8:64::/48", "dev", "lo"])


@contextmanager
def world() -> Iterator[Lab]:
    """Run a lab whose client has the resolver of this module and a server at every address."""
    with Lab(registries=False) as lab:
        routes(lab)
        start(lab, lab.world, _RESOLVER, RESOLVER, RESOLVER_V6)
        start(lab, lab.world, _SERVER, str(PORT))
        lab.client.set_resolvers(RESOLVER, RESOLVER_V6, SCRIPTED)
        yield lab


def start(lab: Lab, sandbox: Sandbox, script: str, *args: str) -> Process:
    """Start a script that says when it is ready; it ends with the lab."""
    log = Path(f"{lab.directory}/script-{sandbox.name}-{abs(hash((script, args))):x}")
    process = sandbox.popen([sys.executable, "-I", "-S", "-c", script, *args], log=log)
    process.wait_for_line("ready")
    return process


def nft(sandbox: Sandbox, *lines: str) -> str:
    """Load lines of nft's language in a sandbox, as one transaction; return what it prints."""
    return sandbox.run(["nft", "-f", "-"], input="\n".join(lines)).stdout


_HANDLE = re.compile(r"jump hold.*# handle (\d+)")


def change_hold(sandbox: Sandbox, rule: str) -> None:
    """Put another rule in the place of the one that holds answers.

    It must jump to the same chain: then the daemon's table looks untouched to it, and is not put
    back.
    """
    chain = sandbox.run(["nft", "-a", "list", "chain", "inet", "ramnet", "believed"]).stdout
    found = _HANDLE.search(chain)
    assert found is not None, chain
    nft(sandbox, f"replace rule inet ramnet believed handle {found[1]} {rule}")


def without_hold(sandbox: Sandbox) -> None:
    """Take holding away and leave learning: answers are copied to the daemon and pass at once."""
    change_hold(sandbox, "meta l4proto 253 jump hold")  # a protocol that is no answer's


def held(daemon: Daemon) -> dict[str, Any]:
    """Return the counters of the hold."""
    found = status(daemon)["dns"]["hold"]
    assert isinstance(found, dict)
    return found


def wait_nothing_held(daemon: Daemon) -> dict[str, Any]:
    """Wait until no answer waits any more; return the counters."""
    wait_until(lambda: held(daemon)["waiting"] == 0, LEARN_SECONDS, "an empty hold")
    return held(daemon)


def elements(sandbox: Sandbox, prefix: str) -> list[str]:
    """Return the addresses with a prefix that the kernel lets pass, of both families."""
    found: list[str] = []
    for version in (4, 6):
        argv = ["nft", "-j", "list", "set", "inet", "ramnet", f"allow{version}"]
        for part in json.loads(sandbox.run(argv).stdout)["nftables"]:
            for item in part.get("set", {}).get("elem", ()):
                text = str(ip_address(item["elem"]["val"]["concat"][0]))
                if text.startswith(prefix):
                    found.append(text)
    return found


def memory_kib(daemon: Daemon) -> int:
    """Return the resident memory of a daemon."""
    text = Path(f"/proc/{daemon.pid}/status").read_text(encoding="ascii")
    found = re.search(r"^VmRSS:\s+(\d+)", text, re.MULTILINE)
    assert found is not None
    return int(found[1])


def measured(**values: object) -> None:
    """Write what was measured to the test's output: ``pytest -rP`` shows it."""
    sys.stdout.write("".join(f"measured {key} = {value}\n" for key, value in values.items()))


def total(runs: Sequence[Run]) -> str:
    """Summarise runs, for a failed assert."""
    return "\n".join(map(str, runs))

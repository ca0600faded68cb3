"""Programs for tests of the notice, run in sandboxes: a server that nobody may reach, clients of it
that are refused, clients that are no good, and a relay that wants to be in the responder's place.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ramnet.lab.lab import Lab
from ramnet.lab.process import Process
from ramnet.lab.programs import PYTHON_PATH, require
from ramnet.lab.topology import CLIENT_V4
from tests.netns.places import USER
from tests.netns.support import Target

PORT = 7777
REAL = "words of the real server"
NAME = "registry-access-denied-by-acme"
SENTENCE = "registry access denied by acme"
DESCRIPTORS = 8192

_SERVER = """
import socket, sys, threading
listener = socket.create_server(
    ("::", int(sys.argv[1])), family=socket.AF_INET6, backlog=4096, dualstack_ipv6=True
)
print("ready", flush=True)
while True:
    client, peer = listener.accept()
    print("from", *peer[:2], flush=True)
    with client:
        client.sendall(sys.argv[2].encode())
"""

# Connects so many times at once, asks as HTTP or TLS does, and tells what it got: words, "refused",
# "reset", "closed" (without a word) or "timeout". Under TLS nobody goes before all have a
# certificate, which TLS 1.2 sends in the clear.
_ASK = """
import contextlib, errno, json, selectors, socket, ssl, sys, time
seconds, tls, targets = json.load(sys.stdin)
selector, found, kept = selectors.DefaultSelector(), [], []
REQUEST = b"GET /v2/ HTTP/1.1\\r\\nHost: wanted.example\\r\\n\\r\\n"
if tls:
    context, hello = ssl.create_default_context(), ssl.MemoryBIO()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    session = context.wrap_bio(ssl.MemoryBIO(), hello, server_hostname="wanted.example")
    with contextlib.suppress(ssl.SSLWantReadError):
        session.do_handshake()
    REQUEST = hello.read()
NAMES = {errno.ECONNREFUSED: "refused", errno.ECONNRESET: "reset", errno.EPIPE: "reset"}

def done(sock, code, heard):
    selector.unregister(sock)
    kept.append(sock) if tls and heard else sock.close()
    found.append(heard.decode("latin-1") or NAMES.get(code, errno.errorcode.get(code, "closed")))

begin = time.monotonic()
for host, port in targets:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    sock.connect_ex((host, port))
    selector.register(sock, selectors.EVENT_WRITE, bytearray())
while selector.get_map() and time.monotonic() < begin + seconds:
    for key, event in selector.select(0.1):
        sock, heard = key.fileobj, key.data
        try:
            if event & selectors.EVENT_WRITE:
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    done(sock, code, heard)
                    continue
                sock.send(REQUEST)
                selector.modify(sock, selectors.EVENT_READ, heard)
            else:
                data = sock.recv(65536)
                heard += data
                if not data or (tls and b"registry-access-denied-by-" in heard):
                    done(sock, 0, heard)
        except OSError as err:
            done(sock, err.errno, heard)
found += [key.data.decode("latin-1") or "timeout" for key in selector.get_map().values()]
print(json.dumps([time.monotonic() - begin, found]))
"""

# Clients that only take up room, each of one kind, for as long as its input is open.
_NUISANCE = """
import json, os, select, socket, sys, threading, time
kind, host, port, number = json.loads(sys.argv[1])
family = socket.AF_INET6 if ":" in host else socket.AF_INET
HELLO = bytes.fromhex("1603010200010001fc0303") + bytes(64)  # and no more of it
FIRST = {"silent": b"", "slow": b"G", "hello": HELLO, "garbage": None, "header": b"GET / HTTP/1.1"}
socks = []
def fill():
    while len(socks) < number:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.connect_ex((host, port))
        socks.append(sock)
    time.sleep(0.1)
    for sock in list(socks):
        try:
            if FIRST[kind] != b"":
                sock.send(FIRST[kind] or os.urandom(512))
            gone = not sock.recv(4096)
        except BlockingIOError:
            gone = False
        except OSError:
            gone = True
        if gone:
            sock.close()
            socks.remove(sock)
fill()
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    fill()
"""

# Sends the first packet of so many connections, and never another.
_HALF_OPEN = """
import json, socket, struct, sys
from ipaddress import ip_address
from ramnet.lab.forge import checksum
source, host, port, number = json.loads(sys.argv[1])
pair = ip_address(source).packed + ip_address(host).packed
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as sock:
    for sport in range(20000, 20000 + number):
        syn = struct.pack(">HHIIBBHHH", sport, port, sport, 0, 5 << 4, 2, 65535, 0, 0)
        check = checksum(pair + struct.pack(">BBH", 0, socket.IPPROTO_TCP, len(syn)) + syn)
        sock.sendto(syn[:16] + struct.pack(">H", check) + syn[18:], (host, 0))
"""
_NO_RESETS = """
table inet halfopen {
    chain output {
        type filter hook output priority -400
        tcp sport 20000-29999 tcp flags rst drop
    }
}
"""

# Takes the responder's port as soon as it is free, and leads each client on to where it wanted.
_RELAY = """
import select, socket, struct, sys, threading, time
port = int(sys.argv[1])

def pump(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass

def lead(client, family):
    if family == socket.AF_INET:
        raw = client.getsockopt(socket.IPPROTO_IP, 80, 16)
        host = socket.inet_ntop(family, raw[4:8])
    else:
        raw = client.getsockopt(socket.IPPROTO_IPV6, 80, 28)
        host = socket.inet_ntop(family, raw[8:24])
    target = host, int.from_bytes(raw[2:4], "big")
    print("leads to", *target, flush=True)
    with client, socket.create_connection(target, 5) as server:
        threading.Thread(target=pump, args=(client, server), daemon=True).start()
        pump(server, client)

def take(family, host):
    while True:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(1024)
            break
        except OSError:
            listener.close()
            time.sleep(0.0005)
    print("has", host, flush=True)
    while True:
        client, _ = listener.accept()
        print("accepted", host, flush=True)
        threading.Thread(target=lead, args=(client, family), daemon=True).start()

for place in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    threading.Thread(target=take, args=place, daemon=True).start()
print("ready", flush=True)
time.sleep(600)
"""


def start_server(lab: Lab) -> Process:
    """Start the real server on the far side, at ``PORT`` of every address."""
    argv = [sys.executable, "-I", "-S", "-c", _SERVER, str(PORT), REAL]
    server = lab.world.popen(argv, log=lab.world.directory / "real.log")
    server.wait_for_line("ready")
    return server


def ask(
    lab: Lab, *targets: Target, seconds: float = 10.0, tls: bool = False
) -> tuple[float, list[str]]:
    """Ask all of these at once, as an engine: in how many seconds, and what each got."""
    argv = [sys.executable, "-I", "-S", "-c", _ASK]
    said = lab.run_as_engine(
        [*_many_descriptors(), *argv],
        input=json.dumps([seconds, tls, targets]),
        timeout=seconds + 30,
    )
    took, found = json.loads(said.stdout)
    return took, found


def kinds(answers: list[str]) -> Counter[str]:
    """Count answers: "real", "notice", or as ``ask`` names them."""
    return Counter(
        "real" if REAL in one else "notice" if SENTENCE in one or NAME in one else one
        for one in answers
    )


def nuisance(lab: Lab, kind: str, target: Target, number: int) -> Process:
    """Start clients that take up room: silent, slow, garbage, header or hello. As an engine."""
    what = json.dumps([kind, *target, number])
    argv = [*_many_descriptors(), sys.executable, "-I", "-S", "-c", _NUISANCE, what]
    log = lab.client.directory / f"nuisance-{kind}-{time.monotonic_ns()}.log"
    process = lab.client.popen(argv, log=log, cgroup=lab.engine_cgroup, feed=True)
    process.wait_for_line("ready")
    return process


@contextmanager
def half_open(lab: Lab, target: Target, number: int) -> Iterator[None]:
    """Begin so many connections as an engine, and have nobody answer for them."""
    what = json.dumps([CLIENT_V4, *target, number])
    lab.client.run(["nft", "-f", "-"], input=_NO_RESETS)
    try:
        env = {"PYTHONPATH": str(PYTHON_PATH)}
        lab.run_as_engine([sys.executable, "-c", _HALF_OPEN, what], env=env)
        yield
    finally:
        lab.client.run(["nft", "delete", "table", "inet", "halfopen"])


def waiting_for_ack(lab: Lab, port: int) -> int:
    """Count the connections to a port of this machine that are half open."""
    argv = ["ss", "-Htn", "state", "syn-recv", f"sport = :{port}"]
    return len(lab.client.run(argv).stdout.splitlines())


def start_relay(lab: Lab, port: int) -> Process:
    """Start the relay as an ordinary user; it takes the port when it can."""
    log = lab.client.directory / f"relay-{time.monotonic_ns()}.log"
    argv = [require("python3"), "-I", "-S", "-c", _RELAY, str(port)]
    relay = lab.client.popen(argv, log=log, user=USER)
    relay.wait_for_line("ready")
    return relay


def said_by(process: Process) -> str:
    """Return all that a program has said."""
    assert process.log is not None
    return process.log.read_text(encoding="utf-8")


def resident_peak(pid: int) -> int:
    """Return the most memory that a process had, in octets."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


def _many_descriptors() -> list[str]:
    return ["/bin/sh", "-c", f'ulimit -n {DESCRIPTORS} && exec "$@"', "many"]

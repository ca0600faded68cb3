"""A relay that does not wait for whoever is led to its port: it connects to him as he connects.

Both ends may begin a connection (RFC 9293, 3.5), and then none of them sends a SYN-ACK first.
"""

from __future__ import annotations

import time

from ramnet.lab.lab import Lab
from ramnet.lab.process import Process
from ramnet.lab.programs import require
from tests.netns.places import USER

# Takes the responder's port and hears no SYN there, so that a client is neither answered nor
# reset; then it calls each client that waits for the port, and leads him on to where he wanted.
_RELAY = """
import pathlib, socket, struct, sys, threading, time
port, real = map(int, sys.argv[1:])
SYN_SENT = "02"
IP_MINTTL, IPV6_MINHOPCOUNT = 21, 73
FARTHEST = {
    socket.AF_INET: (socket.IPPROTO_IP, IP_MINTTL),
    socket.AF_INET6: (socket.IPPROTO_IPV6, IPV6_MINHOPCOUNT),
}
FAMILIES = ((socket.AF_INET, "127.0.0.1", "tcp"), (socket.AF_INET6, "::1", "tcp6"))

def pump(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass

def bound(family, host):
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    while True:
        try:
            sock.bind((host, port))
            return sock
        except OSError:
            time.sleep(0.001)

def lead(family, host, client, target):
    with bound(family, host) as sock:
        sock.settimeout(5)
        print("calls", *client, flush=True)
        try:
            sock.connect(client)
        except OSError as err:
            print("failed", err, flush=True)
            return
        print("leads to", *target, flush=True)
        with socket.create_connection(target, 5) as server:
            threading.Thread(target=pump, args=(sock, server), daemon=True).start()
            pump(server, sock)

def place(family, text):
    host, _, port = text.partition(":")
    words = struct.iter_unpack(">I", bytes.fromhex(host))
    octets = b"".join(struct.pack("=I", *word) for word in words)
    return socket.inet_ntop(family, octets), int(port, 16)

def call(family, host, table):
    listener = bound(family, host)
    listener.setsockopt(*FARTHEST[family], 255)  # what has another TTL is dropped
    listener.listen(1)
    print("has", host, flush=True)
    done = set()
    while True:
        for line in pathlib.Path("/proc/net", table).read_text().splitlines()[1:]:
            _, source, target, state = line.split()[:4]
            client, wanted = place(family, source), place(family, target)
            if state == SYN_SENT and wanted[1] == real and client not in done:
                done.add(client)
                args = family, host, client, wanted
                threading.Thread(target=lead, args=args, daemon=True).start()
        time.sleep(0.005)

for args in FAMILIES:
    threading.Thread(target=call, args=args, daemon=True).start()
time.sleep(600)
"""


def start_opening_relay(lab: Lab, port: int, real: int) -> Process:
    """Start the relay as an ordinary user; ``real`` is the port that refused clients want."""
    log = lab.client.directory / f"opening-{time.monotonic_ns()}.log"
    argv = [require("python3"), "-I", "-S", "-c", _RELAY, str(port), str(real)]
    return lab.client.popen(argv, log=log, user=USER)

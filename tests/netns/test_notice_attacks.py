"""Attacks on the notice: who is refused stays refused, and nobody else is.

Each with a control in which what is in the way is taken away, and the attack succeeds.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from dnslib import HTTPS, QTYPE, RR, DNSRecord

from ramnet.lab.lab import Lab
from ramnet.lab.process import Process, wait_until
from ramnet.lab.programs import require
from ramnet.lab.ramnet import Daemon
from ramnet.lab.topology import UPLINK
from ramnet.lab.world import EVIL
from tests.netns.dnsworld import Script, addr, patched, query, replaced, reply, socket_in
from tests.netns.noticed import PORT, ask, kinds, said_by, start_server
from tests.netns.noticing import notice_port, responder_of, wait_notice
from tests.netns.opening_relay import start_opening_relay
from tests.netns.places import USER, machine, reach
from tests.netns.support import (
    CORP_REGISTRY,
    DUAL_REGISTRY,
    hung,
    policy,
    put_policy,
    remove_rules,
)
from tests.netns.test_notice_failures import V4, V6, delete_rules, keep_alive, noticing, outcome

pytestmark = pytest.mark.netns

LOCAL = (("ip", "127.0.0.1"), ("ip6", "::1"))
SECRET = b"GET /secret"
NXDOMAIN = 3
SERVER = "203.0.113.54"
ADDRESS = "198.51.100.66"

# Connects, waits for a line, and then says what only the notice may hear.
_LATE = """
import contextlib, json, socket, sys
socks = [socket.create_connection(target, 5) for target in map(tuple, json.loads(sys.argv[1]))]
print("ready", flush=True)
sys.stdin.readline()
for sock in socks:
    with contextlib.suppress(OSError):
        sock.sendall(sys.argv[2].encode())
print("sent", flush=True)
sys.stdin.readline()
"""

# Connects to the responder itself, as often as it can.
_FLOOD = """
import collections, resource, socket, sys
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
kept = collections.deque()
print("ready", flush=True)
while True:
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex(("127.0.0.1", int(sys.argv[1])))
    kept.append(sock)
    if len(kept) > min(16_000, most - 100):
        kept.popleft().close()
"""

_BOUND = """
import socket, sys
host, port, device = sys.argv[1], int(sys.argv[2]), sys.argv[3]
with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    sock.settimeout(0.5)
    sock.connect_ex((host, port))
"""

_ANY_FAMILY = "meta l4proto tcp meta l4proto @notice meta mark set meta mark or 0x08000000 accept"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(engine_cgroup=True) as made:
        start_server(made)
        yield made


@pytest.fixture
def daemon(lab: Lab) -> Iterator[Daemon]:
    with noticing(lab) as made:
        yield made


def test_a_relay_that_begins_the_connection_itself_gets_nobody(lab: Lab, daemon: Daemon) -> None:
    port = notice_port(lab.client)
    relay = start_opening_relay(lab, port, PORT)
    try:
        pid = responder_of(daemon)
        assert pid is not None
        daemon.kill()
        with suppress(ProcessLookupError):  # it ends with the daemon
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: said_by(relay).count("has ") == 2, 5, "the port in other hands")
        keep_alive(lab)
        with lab.capture() as capture:
            assert outcome(lab, seconds=3) == {"timeout"}
            assert said_by(relay).count("calls ") == 2
            assert "leads to" not in said_by(relay)
            assert capture.to(EVIL) == ()

            # The control: the rules as they were, which looked at SYN-ACKs only.
            with ExitStack() as stack:
                for ip, address in LOCAL:
                    end = f"{ip} saddr {address} tcp sport {port}"
                    former = f"{end} tcp flags & (syn | ack) == syn | ack goto answered"
                    stack.enter_context(replaced(lab.client, "noticed", end, former))
                assert outcome(lab) == {"real"}
            assert said_by(relay).count("leads to") == 2
            assert len(capture.to(EVIL, ports=[PORT])) == 2
    finally:
        relay.kill()


# --- a connection that is led when another policy comes


def late_client(lab: Lab) -> Process:
    argv = [require("python3"), "-I", "-S", "-c", _LATE, json.dumps([V4, V6]), SECRET.decode()]
    log = lab.client.directory / f"late-{time.monotonic_ns()}.log"
    client = lab.client.popen(argv, log=log, cgroup=lab.engine_cgroup, feed=True)
    client.wait_for_line("ready")
    return client


def leaks(lab: Lab, client: Process) -> bool:
    """Let the client speak, and tell whether the far side hears it."""
    with lab.capture(everything=True) as capture:
        os.write(client.stdin, b"\n")
        client.wait_for_line("sent")
        return any(SECRET in frame.data for frame in capture.frames())


@pytest.mark.parametrize("how", ["reject", "audit"])
def test_who_is_led_is_not_sent_on_when_nobody_is_led_any_more(
    lab: Lab, daemon: Daemon, how: str
) -> None:
    client, other = late_client(lab), late_client(lab)
    try:
        audit = '\n[enforcement]\nmode = "audit"\n' if how == "audit" else ""
        on_deny = None if audit else "reject"
        put_policy(daemon, policy(CORP_REGISTRY, DUAL_REGISTRY, more=audit, on_deny=on_deny))
        assert outcome(lab) == ({"real"} if audit else {"refused"})
        assert not leaks(lab, client)
        # The control: a kernel without the empty chain, while nobody can put it back.
        with hung(daemon):
            lab.client.run(["nft", "delete", "chain", "inet", "ramnet", "lead"])
            assert leaks(lab, other)
    finally:
        client.kill()
        other.kill()


# --- who is not led


def test_who_is_not_led_does_not_get_into_the_responders_line(lab: Lab, daemon: Daemon) -> None:
    port = notice_port(lab.client)
    doors = [(address, port) for _, address in LOCAL]
    assert reach(machine(lab.client), doors) == {door: {"refused"} for door in doors}
    argv = [require("python3"), "-I", "-S", "-c", _FLOOD, str(port)]
    flood = lab.client.popen(argv, log=lab.client.directory / "flood.log", user=USER)
    try:
        flood.wait_for_line("ready")
        for _ in range(2):
            took, answers = ask(lab, V4, V6)
            assert set(kinds(answers)) == {"notice"}, answers
            assert took < 2
    finally:
        flood.kill()
    with hung(daemon):  # it would put the rules back
        delete_rules(lab, "noticed", "reject with tcp reset")
        assert reach(machine(lab.client), doors) == {door: {"reached"} for door in doors}


def test_who_is_bound_to_an_uplink_is_not_sent_out_of_it(lab: Lab, daemon: Daemon) -> None:
    def sent() -> int:
        with lab.capture() as capture:
            for host, port in (V4, V6):
                argv = [sys.executable, "-I", "-S", "-c", _BOUND, host, str(port), UPLINK]
                lab.run_as_engine(argv)
            return len(capture.syns)

    assert sent() == 0
    with hung(daemon):
        keep_alive(lab)
        delete_rules(lab, "astray", "drop")
        assert sent() > 0


def test_where_loopback_has_no_ipv6_nobody_is_led_there_by_it(lab: Lab) -> None:
    switch = "net.ipv6.conf.lo.disable_ipv6"
    lab.client.run(["sysctl", "-w", f"{switch}=1"])
    try:
        with noticing(lab) as daemon, lab.capture() as capture:
            assert set(kinds(ask(lab, V4)[1])) == {"notice"}
            # A reset comes over loopback as well.
            assert set(kinds(ask(lab, V6, seconds=1.5)[1])) <= {"refused", "timeout"}
            assert capture.syns == ()
            with hung(daemon), replaced(lab.client, "refuse_engine", "@notice", _ANY_FAMILY):
                keep_alive(lab)
                delete_rules(lab, "astray", "drop")
                ask(lab, V6, seconds=1.5)
                assert set(capture.syns) == set(capture.to(["::1"])) != set()
    finally:
        lab.client.run(["sysctl", "-w", f"{switch}=0"])


# --- answers that would have an address refused to all


@pytest.fixture(scope="module")
def bare() -> Iterator[Lab]:
    with Lab(registries=False, engine_cgroup=True) as made:
        made.client.set_resolvers(SERVER)
        yield made


def told(lab: Lab, patch: str, *pairs: tuple[bytes, bytes]) -> list[tuple[int, bool]]:
    """Ask and be told that: the code that the client hears, and whether the address is refused."""
    config = f'[scope]\ncgroups = ["{lab.engine_group}"]\n'
    text = 'version = 1\norganization = "acme"\n[[registry]]\naddress = "gcr.io"\n'
    found = []
    try:
        with Script(lab.world, SERVER) as script, patched(lab, patch, text, config):
            wait_notice(lab.client)
            for asked, said in pairs:
                with socket_in(lab.client, "0.0.0.0", socket.SOCK_DGRAM) as sock:
                    sock.settimeout(5)
                    sock.connect((SERVER, 53))
                    sock.send(asked)
                    script.wait(str(DNSRecord.parse(asked).q.qname).rstrip("."))
                    script.tell(SERVER, sock.getsockname(), said)
                    code = DNSRecord.parse(sock.recv(4096)).header.rcode
                listing = lab.client.run(["nft", "list", "set", "inet", "ramnet", "deny4"]).stdout
                found.append((code, ADDRESS in listing))
    finally:
        remove_rules(lab.client)
    return found


def test_only_an_answer_that_was_asked_for_and_tells_all_refuses_addresses(bare: Lab) -> None:
    forged = query("attacker.example"), reply(query("quay.io"), addr("quay.io", ADDRESS))
    cut, hints, whole = query("ghcr.io"), query("registry-1.docker.io", "HTTPS"), query("quay.io")
    hint = HTTPS(1, "", [(4, socket.inet_aton(ADDRESS))])
    pairs = (
        forged,
        (cut, reply(cut, addr("ghcr.io", ADDRESS), header={"tc": 1})),
        (hints, reply(hints, RR("registry-1.docker.io", QTYPE.HTTPS, ttl=60, rdata=hint))),
        (whole, reply(whole, addr("quay.io", ADDRESS))),
    )
    assert told(bare, "", *pairs) == [(NXDOMAIN, False)] * 3 + [(0, True)]
    # One that the catalogue knows, on addresses that others share: those are refused to nobody.
    shared = query("mcr.microsoft.com")
    answer = reply(shared, addr("mcr.microsoft.com", ADDRESS))
    assert told(bare, "", (shared, answer)) == [(NXDOMAIN, False)]
    # The control: a daemon that does not mind who asked.
    patch = "from ramnet.core.denier import Denier\nDenier._asked = lambda *_: True\n"
    assert told(bare, patch, forged) == [(0, True)]

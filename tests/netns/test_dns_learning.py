"""What DNS teaches reaches the kernel's sets: who asks, what is learned, and for how long."""

from __future__ import annotations

import errno
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Self

import pytest

from ramnet.lab import topology
from ramnet.lab.dns import Record
from ramnet.lab.lab import Lab
from ramnet.lab.process import wait_until
from ramnet.lab.ramnet import Daemon
from ramnet.lab.world import CHAIN, DUAL, EVIL, GHCR, QUAY, V6ONLY
from tests.netns.dnsworld import (
    CONFIG,
    LEARN_SECONDS,
    MODES,
    OBSERVE,
    Clients,
    Script,
    addr,
    connect_all,
    inside,
    learned,
    leases,
    policy,
    query,
    reply,
    resolvers,
    socket_in,
    status,
    wait_learned,
    zone,
)
from tests.netns.support import remove_rules

POLICY = policy("*.wild.example", "ghcr.io", "quay.io", "chain.example", "dual.example")
# The first SYN of a connection may be held; its retransmission comes after 1 s (RFC 6298). The
# next one comes after 3 s, and none is needed.
ONE_RETRANSMISSION = 2.9
NO_RETRANSMISSION = 0.9

DIAL = """
import errno, json, socket, sys, time
found = socket.getaddrinfo(sys.argv[1], 443, type=socket.SOCK_STREAM)
tried = []
for family, kind, proto, _, place in found:
    with socket.socket(family, kind, proto) as sock:
        begin = time.monotonic()
        sock.settimeout(6)
        try:
            sock.connect(place)
            outcome = "connected"
        except TimeoutError:
            outcome = "timeout"
        except OSError as err:
            outcome = errno.errorcode.get(err.errno, str(err))
        tried.append([place[0], outcome, time.monotonic() - begin])
print(json.dumps(tried))
"""


@dataclass(frozen=True, slots=True)
class Dialled:
    address: str
    outcome: str
    seconds: float


def dial(lab: Lab, name: str) -> list[Dialled]:
    """Be a client: resolve a name as every program does, and connect to all that it leads to."""
    done = lab.client.run([sys.executable, "-I", "-S", "-c", DIAL, name])
    return [Dialled(*one) for one in json.loads(done.stdout)]


def reached(lab: Lab, name: str) -> set[str]:
    """Dial a name; every address has to let the client in at the first try (mode hold)."""
    tried = dial(lab, name)
    for one in tried:
        assert one.outcome == "connected", one
        assert one.seconds < NO_RETRANSMISSION, one
    return {one.address for one in tried}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Daemon:
    return lab.daemon(POLICY, config=CONFIG)


@pytest.fixture
def clients(lab: Lab) -> Iterator[Clients]:
    with Clients(lab.client, topology.CLIENT_V4, topology.CLIENT_V6) as made:
        yield made


@contextmanager
def instead(lab: Lab, daemon: Daemon, config: str, *addresses: str) -> Iterator[Daemon]:
    """Run a daemon with another configuration in the place of the usual one."""
    daemon.stop()
    remove_rules(lab.client)
    other = lab.daemon(policy(*addresses), config=config)
    try:
        yield other
    finally:
        other.abandon()
        remove_rules(lab.client)
        daemon.start()


def wait_resolvers(lab: Lab, *addresses: str, interface: str = topology.UPLINK) -> None:
    wanted = {(address, interface) for address in addresses}
    wait_until(lambda: resolvers(lab.client) == wanted, LEARN_SECONDS, f"{wanted} to be trusted")


# --- what teaches


def test_exact_names_are_open_before_anybody_asks(lab: Lab, daemon: Daemon) -> None:
    assert daemon.running
    wait_learned(lab.client, *GHCR, *QUAY, *DUAL, *CHAIN)
    # A client that never resolves (a long-lived connection pool) gets in as well, and at once.
    found = connect_all(lab.client, [(address, 443) for address in (*GHCR, *QUAY, *DUAL)])
    assert {one.outcome for one in found.values()} == {"connected"}
    assert max(one.seconds for one in found.values()) < NO_RETRANSMISSION
    names = {one.name for (address, _), one in leases(lab.client).items() if address in QUAY}
    assert names == {"quay.io"}  # the name that the policy allows, not the end of its chain


def test_a_wildcard_is_learned_from_clients_only(lab: Lab, daemon: Daemon) -> None:
    assert daemon.running
    name, address = "a.b.wild.example", "198.51.100.101"
    lab.dns.set(name, address)
    lab.dns.set("wild.example", "198.51.100.102")
    with lab.capture() as capture:
        wait_learned(lab.client, *GHCR)  # the warm start is over
        assert lab.dns.asked(name) == ()
        assert not learned(lab.client, address)
        assert connect_all(lab.client, [(address, 443)])[address, 443].outcome == "ECONNREFUSED"
        assert capture.to([address]) == ()
        assert reached(lab, name) == {address}
        assert capture.to([address])
        assert {one.name for one in leases(lab.client).values()} >= {name}
        # One or more labels: the name itself is not meant.
        assert {one.outcome for one in dial(lab, "wild.example")} == {"ECONNREFUSED"}
        assert capture.to(["198.51.100.102"]) == ()


def test_what_nobody_allowed_stays_closed_though_it_is_resolved(lab: Lab, daemon: Daemon) -> None:
    assert daemon.running
    with lab.capture() as capture:
        assert {one.outcome for one in dial(lab, "evil.example")} == {"ECONNREFUSED"}
        assert capture.to(EVIL) == ()
    assert not any(learned(lab.client, one) for one in EVIL)


def test_a_chain_teaches_its_end(lab: Lab, daemon: Daemon) -> None:
    assert daemon.running
    lab.dns.update(
        {
            "long.wild.example": Record(cname="one.cdn.example"),
            "one.cdn.example": Record(cname="two.cdn.example"),
            "two.cdn.example": Record(addresses=("198.51.100.103", "2001:db8::103")),
        }
    )
    assert {one.outcome for one in dial(lab, "two.cdn.example")} == {"ECONNREFUSED"}
    assert reached(lab, "long.wild.example") == {"198.51.100.103", "2001:db8::103"}
    assert reached(lab, "chain.example") == set(CHAIN)


def test_both_families_are_learned_from_queries_side_by_side(lab: Lab, daemon: Daemon) -> None:
    """getaddrinfo asks for A and AAAA from one socket at once (glibc, musl)."""
    assert daemon.running
    both = ("198.51.100.104", "2001:db8::104")
    lab.dns.set("both.wild.example", *both)
    assert reached(lab, "both.wild.example") == set(both)
    lab.dns.set("six.wild.example", *V6ONLY)
    assert reached(lab, "six.wild.example") == set(V6ONLY)


def test_rotating_addresses_are_all_reached(lab: Lab, daemon: Daemon) -> None:
    assert daemon.running
    pool = [f"198.51.100.{octet}" for octet in range(110, 134)]
    pool += [f"2001:db8::{octet}" for octet in range(110, 134)]
    pool.sort(key=lambda one: one[-2:])
    seen: set[str] = set()
    with lab.dns.rotating("cdn.wild.example", pool, size=4, period=0.25):
        wait_until(lambda: bool(lab.dns.table.get("cdn.wild.example")), 5, "the rotation")
        deadline = time.monotonic() + 20
        while len(seen) < len(pool) / 2 and time.monotonic() < deadline:
            seen |= reached(lab, "cdn.wild.example")
    assert len(seen) >= len(pool) / 2
    assert learned(lab.client, *seen)  # the first ones too: a lease outlives the short TTL


@pytest.mark.parametrize("name", ["moving.wild.example", "ghcr.io"])
def test_a_changed_address_is_reached_by_whoever_resolves_it(
    lab: Lab, daemon: Daemon, name: str
) -> None:
    assert daemon.running
    addresses = [f"198.51.100.{octet + (10 if name == 'ghcr.io' else 0)}" for octet in (140, 141)]
    former = lab.dns.table.get(name)
    try:
        for address in addresses:
            lab.dns.update({name: Record(addresses=(address,), ttl=1)})
            assert reached(lab, name) == {address}
    finally:
        lab.dns.update({name: former})


# --- the race between an answer and the connect that follows it


SCRIPTED = "203.0.113.54"


@contextmanager
def trusted(lab: Lab, *addresses: str) -> Iterator[None]:
    """Have resolv.conf name these servers, and the lab's own again at the end."""
    lab.client.set_resolvers(*addresses)
    try:
        wait_resolvers(lab, *addresses)
        yield
    finally:
        lab.client.set_resolvers(topology.DNS_V4, topology.DNS_V6)
        wait_resolvers(lab, topology.DNS_V4, topology.DNS_V6)


def race(lab: Lab, name: str, between: Callable[[], None] = lambda: None) -> tuple[str, float]:
    """Ask, and connect to the answer at once; ``between`` runs while the SYN is on its way."""
    with (
        Clients(lab.client, topology.CLIENT_V4, topology.CLIENT_V6) as clients,
        inside(lab.client, lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as sock,
        selectors.DefaultSelector() as selector,
    ):
        asked = clients.ask(SCRIPTED, query(name))
        packed = asked.sock.recv(4096)[-4:]  # the address stands last
        begin = time.monotonic()
        sock.settimeout(0)
        sock.connect_ex((socket.inet_ntoa(packed), 443))
        between()
        selector.register(sock, selectors.EVENT_WRITE)
        if not selector.select(6):
            return "timeout", 6.0
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return errno.errorcode.get(code, "connected"), time.monotonic() - begin


def hang(daemon: Daemon) -> None:
    os.kill(daemon.pid, signal.SIGSTOP)


def go_on(daemon: Daemon) -> None:
    """Continue a daemon, and the nsenter above it that stopped along with it."""
    stat = Path(f"/proc/{daemon.pid}/stat").read_text(encoding="utf-8")
    for pid in (daemon.pid, int(stat.rpartition(")")[2].split()[1])):
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("mode", MODES)
def test_a_connect_right_behind_the_answer_is_never_refused(
    lab: Lab, daemon: Daemon, mode: str
) -> None:
    """In observe mode the first SYN may be dropped, and its retransmission gets in."""
    table = {f"r{number}.wild.example": f"198.51.100.{150 + number}" for number in range(24)}
    behave = zone({name: [address] for name, address in table.items()})
    with (
        instead(lab, daemon, MODES[mode], "*.wild.example") as other,
        Script(lab.world, SCRIPTED, behave=behave),
        trusted(lab, SCRIPTED),
        lab.capture() as capture,
        ThreadPoolExecutor(len(table)) as pool,
    ):
        found = list(pool.map(lambda name: race(lab, name), table))
        assert {outcome for outcome, _ in found} == {"connected"}
        slowest = max(seconds for _, seconds in found)
        said = status(other)
        assert said["refused"] == 0
        if mode == "hold":
            assert slowest < NO_RETRANSMISSION
            assert said["held_first_syn"] == 0
            assert said["dns"]["hold"]["released_late"] == 0
        else:
            assert slowest < ONE_RETRANSMISSION
        # Each connection showed one SYN to the far side: what was held never left.
        assert len(capture.to(table.values())) == len(table)


def test_an_answer_that_is_learned_late_costs_one_retransmission(lab: Lab, daemon: Daemon) -> None:
    """Observe mode only: in mode hold no answer passes before it is learned."""
    behave = zone(
        {"late.wild.example": ["198.51.100.190"], "lost.wild.example": ["198.51.100.191"]}
    )
    with (
        instead(lab, daemon, OBSERVE, "*.wild.example") as observing,
        Script(lab.world, SCRIPTED, behave=behave),
        trusted(lab, SCRIPTED),
    ):

        def continue_soon() -> None:
            time.sleep(0.3)
            go_on(observing)

        hang(observing)
        outcome, seconds = race(lab, "late.wild.example", continue_soon)
        assert outcome == "connected"
        assert NO_RETRANSMISSION < seconds < ONE_RETRANSMISSION
        assert status(observing)["held_first_syn"] == 1
        # The control: were the first SYN judged, this connection would have been refused.
        hang(observing)
        judged = "ip daddr 198.51.100.191 ip daddr . tcp dport != @allow4 reject with tcp reset"
        lab.client.run(["nft", "insert", "rule", "inet", "ramnet", "judge", judged])
        outcome, seconds = race(lab, "lost.wild.example", continue_soon)
        assert outcome == "ECONNREFUSED"
        assert seconds < NO_RETRANSMISSION


# --- which resolver


def teaches(lab: Lab, script: Script, clients: Clients, server: str, address: str) -> None:
    """Have a client ask a server for a fresh name and the server answer; wait until learned."""
    name = f"n{address.replace(':', '-').replace('.', '-')}.wild.example"
    asked = clients.ask(server, query(name, "AAAA" if ":" in address else "A"))
    script.say(script.wait(name), reply(asked.wire, addr(name, address)))
    wait_learned(lab.client, address)


def teaches_nothing(
    lab: Lab, script: Script, clients: Clients, server: str, address: str, *, witness: str
) -> None:
    """Do the same with a server that must not be believed; ``witness`` is one that is."""
    name = f"n{address.replace('.', '-')}.wild.example"
    asked = clients.ask(server, query(name))
    script.say(script.wait(name), reply(asked.wire, addr(name, address)))
    assert asked.sock.recv(4096)
    lab.dns.set(f"witness-{name}", address.replace("10.78", "10.79"))
    clients.ask(witness, query(f"witness-{name}"))
    wait_learned(lab.client, address.replace("10.78", "10.79"))
    assert not learned(lab.client, address)


def test_a_resolver_is_reached_over_ipv6(lab: Lab, daemon: Daemon) -> None:
    assert daemon.running
    with trusted(lab, topology.DNS_V6):
        lab.dns.set("v6.wild.example", "198.51.100.192", "2001:db8::192")
        assert reached(lab, "v6.wild.example") == {"198.51.100.192", "2001:db8::192"}
        asked = lab.dns.asked("v6.wild.example")
        assert {one.client for one in asked} == {topology.CLIENT_V6}


def in_place(lab: Lab, text: str) -> None:
    lab.client.write("/etc/resolv.conf", text)


def by_rename(lab: Lab, text: str) -> None:
    lab.client.write("/etc/resolv.conf", text, rename=True)


def by_another_target(lab: Lab, text: str) -> None:
    """Point a symlink elsewhere, as network managers do."""
    name = f"resolv-{time.monotonic_ns()}"
    lab.client.write(f"/run/{name}", text)
    lab.client.run(["ln", "-s", f"../run/{name}", "/etc/resolv.conf.link"])
    lab.client.run(["mv", "-T", "/etc/resolv.conf.link", "/etc/resolv.conf"])


def behind_a_symlink(lab: Lab, text: str) -> None:
    """Rewrite the target and leave the symlink, as systemd-resolved does."""
    lab.client.write("/run/stub-resolv.conf", "nameserver 127.0.0.9\n")
    lab.client.run(["ln", "-sf", "../run/stub-resolv.conf", "/etc/resolv.conf"])
    wait_resolvers(lab, "127.0.0.9", interface="lo")
    beside = lab.client.path("/run/stub-resolv.conf.new")
    beside.write_text(text, encoding="utf-8")
    beside.rename(lab.client.path("/run/stub-resolv.conf"))


CHANGES: tuple[Callable[[Lab, str], None], ...] = (
    *(in_place, by_rename, by_another_target, behind_a_symlink),
)


@pytest.mark.parametrize("change", CHANGES)
def test_resolv_conf_is_followed(
    lab: Lab, daemon: Daemon, clients: Clients, change: Callable[[Lab, str], None]
) -> None:
    number = CHANGES.index(change)
    with Script(lab.world, SCRIPTED) as script:
        teaches_nothing(
            lab, script, clients, SCRIPTED, f"10.78.{number}.1", witness=topology.DNS_V4
        )
        try:
            change(lab, f"# new\nnameserver {SCRIPTED}\n")
            wait_resolvers(lab, SCRIPTED)
            teaches(lab, script, clients, SCRIPTED, f"10.78.{number}.2")
            assert status(daemon)["dns"]["servers"] == [SCRIPTED]
            # The former one is believed no more: only its own flow reaches it.
            lab.dns.set(f"former{number}.wild.example", f"10.78.{number}.3")
            asked = clients.ask(topology.DNS_V4, query(f"former{number}.wild.example"))
            assert asked.sock.recv(4096)
            teaches(lab, script, clients, SCRIPTED, f"10.78.{number}.4")
            assert not learned(lab.client, f"10.78.{number}.3")
        finally:
            lab.client.path("/etc/resolv.conf").unlink()
            lab.client.set_resolvers(topology.DNS_V4, topology.DNS_V6)
            wait_resolvers(lab, topology.DNS_V4, topology.DNS_V6)


def test_pinned_servers_stand_whatever_resolv_conf_says(
    lab: Lab, daemon: Daemon, clients: Clients
) -> None:
    config = f'{CONFIG}[dns]\nservers = ["{SCRIPTED}"]\n'
    with (
        Script(lab.world, SCRIPTED) as script,
        instead(lab, daemon, config, "*.wild.example") as pinned,
    ):
        wait_resolvers(lab, SCRIPTED)
        said = status(pinned)["dns"]
        assert (said["trust"], said["servers"]) == ("pinned", [SCRIPTED])
        lab.dns.set("pin.wild.example", "10.78.9.1")
        asked = clients.ask(topology.DNS_V4, query("pin.wild.example"))
        assert asked.sock.recv(4096)
        lab.client.set_resolvers(topology.DNS_V6)
        lab.client.set_resolvers(topology.DNS_V4, topology.DNS_V6, rename=True)
        teaches(lab, script, clients, SCRIPTED, "10.78.9.2")
        assert not learned(lab.client, "10.78.9.1")
        assert resolvers(lab.client) == {(SCRIPTED, topology.UPLINK)}
    wait_resolvers(lab, topology.DNS_V4, topology.DNS_V6)
    assert status(daemon)["dns"]["trust"] == "network"
    # The control: from this server the same answer is believed now.
    clients.ask(topology.DNS_V4, query("pin.wild.example"))
    wait_learned(lab.client, "10.78.9.1")


def ip_in(lab: Lab, *commands: str) -> None:
    """Run ``ip`` in the client's network only, so that pids are the machine's."""
    argv = ["nsenter", f"--net=/proc/{lab.client.pid}/ns/net", "--", "ip", "-batch", "-"]
    subprocess.run(argv, input="\n".join(commands), text=True, check=True)


def test_the_route_to_the_resolver_is_followed(lab: Lab, daemon: Daemon, clients: Clients) -> None:
    """The interface that its answers have to come in by is that of the route, as it is now."""
    assert daemon.running
    ip_in(
        lab,
        f"link add vpn0 type veth peer name vpn0 netns {lab.world.pid}",
        "address add 192.168.77.2/24 dev vpn0",
        "link set vpn0 up",
    )
    try:
        lab.world.run(["ip", "address", "add", "192.168.77.1/24", "dev", "vpn0"])
        lab.world.run(["ip", "link", "set", "vpn0", "up"])
        with Script(lab.world, SCRIPTED) as script, trusted(lab, SCRIPTED):
            teaches(lab, script, clients, SCRIPTED, "10.78.10.1")
            ip_in(lab, f"route add {SCRIPTED}/32 via 192.168.77.1")
            wait_resolvers(lab, SCRIPTED, interface="vpn0")
            # An answer to this flow may come by the wire that was right a moment ago: no more.
            name = "routed.wild.example"
            asked = clients.ask(SCRIPTED, query(name))
            heard = script.wait(name)
            lie = reply(heard.wire, addr(name, "10.78.10.2"))
            script.say(heard, lie)  # to the address of the wire, so by the wire
            assert asked.sock.recv(4096) == lie
            with Clients(lab.client, "192.168.77.2", topology.CLIENT_V6) as through:
                teaches(lab, script, through, SCRIPTED, "10.78.10.3")
            assert not learned(lab.client, "10.78.10.2")
            ip_in(lab, f"route del {SCRIPTED}/32 via 192.168.77.1")
            wait_resolvers(lab, SCRIPTED)
            teaches(lab, script, clients, SCRIPTED, "10.78.10.4")
    finally:
        ip_in(lab, "link del vpn0")


def test_without_a_route_there_is_no_resolver_and_status_says_so(lab: Lab, daemon: Daemon) -> None:
    lab.client.set_resolvers("198.18.5.5")
    ip_in(lab, "route add unreachable 198.18.5.5/32")
    try:
        wait_until(lambda: not resolvers(lab.client), LEARN_SECONDS, "the server to be left out")
        assert any("no resolver" in one for one in status(daemon)["warnings"])
    finally:
        ip_in(lab, "route del unreachable 198.18.5.5/32")
        lab.client.set_resolvers(topology.DNS_V4, topology.DNS_V6)
        wait_resolvers(lab, topology.DNS_V4, topology.DNS_V6)


# --- for how long


@pytest.mark.parametrize(
    ("ttl", "timeout"),
    [(0, 360), (5, 360), (300, 360), (3600, 3660), (86_400, 86_460), (604_800, 86_460)],
)
def test_the_kernel_holds_a_lease_for_the_clamped_ttl_and_the_grace(
    lab: Lab, daemon: Daemon, ttl: int, timeout: int
) -> None:
    assert daemon.running
    name, address = f"ttl{ttl}.wild.example", f"10.78.20.{ttl % 251}"
    behave = zone({name: [address]}, ttl=ttl)
    with (
        Script(lab.world, SCRIPTED, behave=behave),
        trusted(lab, SCRIPTED),
        Clients(lab.client, topology.CLIENT_V4, topology.CLIENT_V6) as clients,
    ):
        clients.ask(SCRIPTED, query(name))
        wait_learned(lab.client, address)
    lease = leases(lab.client)[address, 443]
    assert lease.timeout == timeout
    assert timeout - 20 < lease.expires <= timeout


def test_the_least_ttl_of_a_chain_counts(lab: Lab, daemon: Daemon, clients: Clients) -> None:
    assert daemon.running
    lab.dns.update(
        {
            "short.wild.example": Record(cname="end.cdn.example", ttl=1000),
            "end.cdn.example": Record(addresses=("10.78.21.1",), ttl=5000),
        }
    )
    clients.ask(topology.DNS_V4, query("short.wild.example"))
    wait_learned(lab.client, "10.78.21.1")
    assert leases(lab.client)["10.78.21.1", 443].timeout == 1060


SHORT = f"{CONFIG}[limits]\nlease_min_seconds = 2\nlease_grace_seconds = 1\n"
LIFE = 3.0  # of a lease under this configuration, when the TTL is 1 s
PORT = 7443


class Pull:
    """A server that sends a little to every connection until it is gone: a very long pull."""

    def __init__(self, lab: Lab, address: str) -> None:
        self._listener = socket_in(lab.world, address, socket.SOCK_STREAM, PORT)
        self._listener.listen(512)
        self._listener.settimeout(0)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="a pull")
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        with ExitStack() as stack:
            active: list[socket.socket] = []
            while not self._over.wait(0.02):
                with suppress(BlockingIOError):
                    while True:
                        active.append(stack.enter_context(self._listener.accept()[0]))
                for sock in list(active):
                    try:
                        sock.send(b"layer")
                    except OSError:
                        active.remove(sock)
                        sock.close()


def test_extending_a_lease_costs_no_connection_and_a_pull_outlives_it(
    lab: Lab, daemon: Daemon
) -> None:
    """Before kernel 6.12 a timeout is changed by add, delete and add: nobody may see it gone."""
    name, address = "pulse.wild.example", "198.51.100.195"
    behave = zone({name: [address]}, ttl=1)
    with (
        instead(lab, daemon, SHORT, f"*.wild.example:{PORT}"),
        Script(lab.world, SCRIPTED, behave=behave),
        trusted(lab, SCRIPTED),
        Pull(lab, address),
        Clients(lab.client, topology.CLIENT_V4, topology.CLIENT_V6) as clients,
    ):
        clients.ask(SCRIPTED, query(name))
        wait_learned(lab.client, address, port=PORT)
        with inside(lab.client, lambda: socket.create_connection((address, PORT), 5)) as pull:
            generator = lab.generator([(address, PORT)], rate=200)
            begin = time.monotonic()
            lives = []
            while time.monotonic() < begin + 2 * LIFE:
                assert pull.recv(4096)
                clients.ask(SCRIPTED, query(name))
                lives.append(leases(lab.client)[address, PORT].expires)
                time.sleep(0.1)
            report = generator.stop()
            assert report.total.attempted > 200
            assert report.total.connected == report.total.attempted
            assert sum(later > sooner for sooner, later in pairwise(lives)) >= 2  # extended
            # The control: nobody asks any more, the kernel lets the lease run out by itself.
            wait_until(lambda: not leases(lab.client), 2 * LIFE, "the end of the lease")
            found = connect_all(lab.client, [(address, PORT)])
            assert found[address, PORT].outcome == "ECONNREFUSED"
            for _ in range(10):  # but what was established goes on
                assert pull.recv(4096)


def test_a_lease_outlives_the_daemon_and_is_read_back(
    lab: Lab, daemon: Daemon, clients: Clients
) -> None:
    lab.dns.set("kept.wild.example", "10.78.22.1")
    clients.ask(topology.DNS_V4, query("kept.wild.example"))
    wait_learned(lab.client, "10.78.22.1")
    before = leases(lab.client)["10.78.22.1", 443]
    daemon.kill()
    daemon.start()
    after = leases(lab.client)["10.78.22.1", 443]
    assert after.name == before.name
    assert before.expires - 60 < after.expires <= before.expires

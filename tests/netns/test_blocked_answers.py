"""Blocked answers: to a container, a registry that is not allowed does not exist.

What may be refused so are the API hosts of catalogued registries that serve nothing else. All other
answers come through octet for octet, and nobody but a container that asks for itself is told so.
"""

from __future__ import annotations

import itertools
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import pytest
from dnslib import CNAME, EDNS0, QTYPE, RR, DNSRecord

from ramnet.lab import topology
from ramnet.lab.forge import Datagram, packet
from ramnet.lab.lab import Lab
from ramnet.lab.process import wait_until
from ramnet.lab.ramnet import Daemon
from ramnet.lab.sandbox import Sandbox
from tests.netns.dnsworld import (
    CONFIG,
    LEARN_SECONDS,
    Heard,
    Saying,
    Script,
    addr,
    inside,
    patched,
    query,
    reply,
    socket_in,
    status,
)
from tests.netns.localdns import local_resolver
from tests.netns.support import remove_rules

SERVER, SERVER6 = "203.0.113.54", "2001:db8::54"
ADDRESS, ADDRESS6 = "198.51.100.77", "2001:db8::77"
ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
REFUSED = ("quay.io", "ghcr.io", ECR, "QuAy.Io", "registry-1.docker.io", "mcr.microsoft.com")
ALLOWED = ("gcr.io", "us.gcr.io")
LEFT_ALONE = (
    *("registry.unknown.example", "example.org", "x.quay.io", "quay.io.example.org"),
    *("auth.docker.io", "hub.docker.com", "production.cloudflare.docker.com", "cdn.quay.io"),
    *("pkg-containers.githubusercontent.com", "gitlab.com", "storage.googleapis.com"),
    "api.ecr.eu-west-1.amazonaws.com",
)
EDE, BLOCKED = 15, 15  # the EDNS option and its code (RFC 8914)
NXDOMAIN = 3
IPV4 = ((SERVER, "A"),)
EVERY_WAY = ((SERVER, "A"), (SERVER, "AAAA"), (SERVER6, "A"), (SERVER6, "AAAA"))


def policy(containers: str = "catalog") -> str:
    """Allow Google's registry only; ``containers`` is the mode of that class."""
    return f"""
version = 1
organization = "acme"
[[registry]]
address = "gcr.io"
[[registry]]
address = "us.gcr.io"
[enforcement]
containers = "{containers}"
on_deny = "reject"
"""


@dataclass(slots=True)
class House:
    """A lab with two containers, and a server that says the same about every name."""

    lab: Lab
    container: Sandbox
    other: Sandbox
    script: Script
    said: dict[bytes, bytes]
    _idents: Iterator[int] = field(default_factory=lambda: itertools.count(1000))

    @property
    def client(self) -> Sandbox:
        return self.lab.client

    @contextmanager
    def daemon(self, text: str, patch: str = "") -> Iterator[Daemon]:
        try:
            with patched(self.lab, patch, text, CONFIG) as daemon:
                yield daemon
        finally:
            remove_rules(self.client)

    def ask(
        self,
        sandbox: Sandbox,
        name: str,
        *,
        edns: bool = True,
        server: str = SERVER,
        qtype: str = "A",
    ) -> tuple[bytes, bytes]:
        """Ask; return what was heard, and what the server had said."""
        wire = query(name, qtype, ident=next(self._idents))
        if edns:
            asked = DNSRecord.parse(wire)
            asked.add_ar(EDNS0(udp_len=1232))
            wire = bytes(asked.pack())
        with socket_in(sandbox, "::" if ":" in server else "0.0.0.0", socket.SOCK_DGRAM) as sock:
            sock.settimeout(LEARN_SECONDS)
            sock.connect((server, 53))
            sock.sendall(wire)
            heard = sock.recv(4096)  # the kernel has checked the checksum
        return heard, self.said.get(wire, b"")

    def blocked(self, sandbox: Sandbox, name: str = "quay.io") -> bool:
        """Tell whether the sandbox hears that a name does not exist."""
        heard, _ = self.ask(sandbox, name)
        return bool(DNSRecord.parse(heard).header.rcode == NXDOMAIN)


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    said: dict[bytes, bytes] = {}

    def behave(heard: Heard) -> Saying:
        name = str(heard.record.q.qname).rstrip(".")
        edge = "Edge." + name
        records = [RR(name, QTYPE.CNAME, ttl=60, rdata=CNAME(edge))]
        records.append(addr(edge, ADDRESS6 if heard.qtype == "AAAA" else ADDRESS))
        opt = [EDNS0(udp_len=4096)] if heard.record.ar else []
        said[heard.wire] = reply(heard.wire, *records, additional=opt)
        return said[heard.wire]

    with Lab(registries=False) as lab:
        lab.client.set_resolvers(SERVER)
        found = []
        for number in (2, 3):
            made = lab.container()
            ip = ["ip", "-6", "address", "add", f"fd00:1::{number}/64", "dev", topology.UPLINK]
            made.run([*ip, "nodad"])
            found.append(made)
        lab.client.run(
            ["ip", "-6", "address", "add", "fd00:1::1/64", "dev", topology.BRIDGE, "nodad"]
        )
        for made in found:
            made.run(["ip", "-6", "route", "add", "default", "via", "fd00:1::1"])
        with Script(lab.world, SERVER, SERVER6, behave=behave) as script:
            yield House(lab, found[0], found[1], script, said)


@pytest.fixture(scope="module")
def catalog(house: House) -> Iterator[Daemon]:
    with house.daemon(policy()) as daemon:
        yield daemon


def test_without_ramnet_every_answer_is_the_truth(house: House) -> None:
    for name in (*REFUSED, *ALLOWED, *LEFT_ALONE):
        heard, said = house.ask(house.container, name)
        assert heard == said
        assert DNSRecord.parse(heard).header.rcode == 0


def test_containers_off_leaves_everything_alone(house: House) -> None:
    with house.daemon(policy("off")) as daemon:
        for name in REFUSED:
            heard, said = house.ask(house.container, name)
            assert heard == said
        assert status(daemon)["dns"]["blocked"] == 0
        assert status(daemon)["classes"]["containers"]["enforced"] == "off"
        # The control: the same daemon with the other policy.
        daemon.write_policy(policy())
        wait_until(lambda: house.blocked(house.container), LEARN_SECONDS, "the policy in force")


def test_it_ends_with_the_daemon(house: House) -> None:
    """Killed or stopped, nobody is there to change an answer; a hang lasts a heartbeat."""
    with house.daemon(policy()) as daemon:
        assert house.blocked(house.container)
        daemon.kill()
        assert not house.blocked(house.container)
        daemon.start()
        assert house.blocked(house.container)
        daemon.stop(signal.SIGTERM)
        assert not house.blocked(house.container)
        heard, said = house.ask(house.container, "quay.io")
        assert heard == said


def test_a_policy_that_changes_changes_the_answers(house: House) -> None:
    with house.daemon(policy()) as daemon:
        assert house.blocked(house.container)
        assert not house.blocked(house.container, "gcr.io")
        daemon.write_policy(policy().replace('"gcr.io"', '"quay.io"'))
        wait_until(
            lambda: house.blocked(house.container, "gcr.io"), LEARN_SECONDS, "the policy in force"
        )
        assert not house.blocked(house.container)


def test_a_lock_down_blocks_no_answers(house: House) -> None:
    """Without a policy nobody has said what containers may ask for."""
    with house.daemon("not a policy") as daemon:
        assert status(daemon)["state"] == "locked-down"
        assert not house.blocked(house.container)


# --- a container that is a resolver itself


@contextmanager
def published(house: House) -> Iterator[None]:
    """Publish the first container's resolver at the client's own address, as Docker does."""
    container = inside(house.container, _own_address)
    to = f"fib daddr type local meta l4proto {{ tcp, udp }} th dport 53 dnat to {container}:53"
    hook = "type nat hook"
    rules = f"""
    table ip published {{
        chain prerouting {{ {hook} prerouting priority dstnat; {to}; }}
        chain output {{ {hook} output priority -100; ip daddr != 127.0.0.0/8 {to}; }}
    }}
    """
    log = house.lab.directory / "published.log"
    house.client.run(["nft", "-f", "-"], input=rules)
    try:
        with local_resolver(house.container, log, container, SERVER):
            yield
    finally:
        house.client.run(["nft", "delete", "table", "ip", "published"])


def _own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((topology.BRIDGE_V4, 9))
        return str(sock.getsockname()[0])


@pytest.mark.parametrize("asker", ["world", "client"])
def test_a_container_that_serves_dns_to_others_hears_the_truth(house: House, asker: str) -> None:
    """What it hears goes into a cache that is not only its own."""
    with ExitStack() as stack:
        stack.enter_context(published(house))
        stack.enter_context(house.daemon(policy()))
        # The control: as long as nobody else asks it, it is a container like any other.
        assert house.blocked(house.container)
        sandbox = house.lab.world if asker == "world" else house.client
        heard, _ = house.ask(sandbox, "quay.io", server=topology.CLIENT_V4)
        assert DNSRecord.parse(heard).header.rcode == 0
        assert not house.blocked(house.container)
        assert house.blocked(house.other)  # the one beside it serves nobody


# --- what is said


@pytest.mark.parametrize(("server", "qtype"), EVERY_WAY)
@pytest.mark.parametrize("name", REFUSED)
def test_a_registry_that_is_not_allowed_does_not_exist(
    house: House, catalog: Daemon, name: str, server: str, qtype: str
) -> None:
    before = status(catalog)["dns"]["blocked"]
    heard, said = house.ask(house.container, name, server=server, qtype=qtype)
    told, truth = DNSRecord.parse(heard), DNSRecord.parse(said)
    assert told.header.rcode == NXDOMAIN
    assert (told.header.id, told.q) == (truth.header.id, truth.q)
    assert (told.header.qr, told.header.rd, told.header.ra) == (1, 1, 1)
    assert (told.header.aa, told.header.ad, told.header.tc) == (0, 0, 0)
    assert (told.rr, told.auth) == ([], [])
    (opt,) = told.ar
    (option,) = opt.rdata
    assert option.code == EDE
    assert int.from_bytes(option.data[:2], "big") == BLOCKED
    assert b"acme" in option.data[2:]
    assert status(catalog)["dns"]["blocked"] == before + 1


def test_whoever_asks_without_edns_hears_of_none(house: House, catalog: Daemon) -> None:
    assert catalog.running
    heard, said = house.ask(house.container, "quay.io", edns=False)
    told = DNSRecord.parse(heard)
    assert told.header.rcode == NXDOMAIN
    assert (told.rr, told.auth, told.ar) == ([], [], [])
    assert len(heard) < len(said)


@pytest.mark.parametrize("edns", [True, False], ids=["edns", "plain"])
@pytest.mark.parametrize("name", [*ALLOWED, *LEFT_ALONE])
def test_every_other_answer_comes_through_octet_for_octet(
    house: House, catalog: Daemon, name: str, *, edns: bool
) -> None:
    before = status(catalog)["dns"]["blocked"]
    for server, qtype in EVERY_WAY:
        heard, said = house.ask(house.container, name, edns=edns, server=server, qtype=qtype)
        assert heard == said
    assert status(catalog)["dns"]["blocked"] == before


def test_the_machines_own_look_ups_are_never_changed(house: House, catalog: Daemon) -> None:
    assert house.blocked(house.container)
    before = status(catalog)["dns"]["blocked"]
    for name in REFUSED:
        heard, said = house.ask(house.client, name)
        assert heard == said
    assert status(catalog)["dns"]["blocked"] == before


def test_the_changed_packet_is_whole(house: House, catalog: Daemon) -> None:
    """Lengths and checksums as the sender would have set them: compared with a packet made here.

    A receiver skips the check where the sending side vouches for the sum, so it is read raw.
    """
    assert catalog.running
    with raw_listener(house.container) as raw:
        heard, _ = house.ask(house.container, "quay.io")
        while True:
            whole = raw.recv(4096)
            if whole[28:] == heard:
                break
    target, port = socket.inet_ntoa(whole[16:20]), int.from_bytes(whole[22:24], "big")
    fresh = packet(Datagram(SERVER, 53, target, port, heard))
    assert int.from_bytes(whole[2:4], "big") == len(whole) == len(fresh)
    assert whole[20:] == fresh[20:]  # UDP, with its sum over the pseudo header


@contextmanager
def raw_listener(sandbox: Sandbox) -> Iterator[socket.socket]:
    def make() -> socket.socket:
        return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)

    with inside(sandbox, make) as raw:
        raw.settimeout(LEARN_SECONDS)
        yield raw

"""Blocked answers as real containers hear them, on the default bridge and on their own networks.

A registry that is not allowed does not exist for them; everything else does, and for the machine
and for whom a container serves, so does that registry.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from dnslib import EDNS0, DNSRecord

from ramnet.lab.dns import records
from ramnet.lab.lab import Lab
from ramnet.lab.ramnet import Daemon
from ramnet.lab.topology import CLIENT_V4, DNS_V4
from tests.docker.containers import container, network, nslookup, python, resolver
from tests.docker.support import pull
from tests.netns.dnsworld import inside
from tests.netns.localdns import local_resolver
from tests.netns.support import STRICT, policy, remove_rules, status

pytestmark = pytest.mark.docker

ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
REFUSED = ("quay.io", "ghcr.io", ECR)
LEFT_ALONE = {
    "registry-1.docker.io": "198.51.100.10",  # allowed
    "evil.example": "198.51.100.66",  # nobody has catalogued it
    "auth.docker.io": "198.51.100.13",
    "cdn.quay.io": "198.51.100.32",
    "gitlab.com": "198.51.100.141",
    "hub.docker.com": "198.51.100.142",
}
MORE = records({ECR: ["198.51.100.140"], **{n: [a] for n, a in list(LEFT_ALONE.items())[4:]}})
NXDOMAIN, EDE, BLOCKED = 3, 15, 15
CATALOG = policy("docker.io")
OFF = policy("docker.io", more='\n[enforcement]\ncontainers = "off"\n')
STUB, STUB_USER = "127.0.0.53", 971


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(engine=True, records=MORE) as made:
        assert pull(made, "busybox").worked
        yield made


@pytest.fixture(scope="module", params=["default-bridge", "network-of-its-own"])
def where(request: pytest.FixtureRequest, lab: Lab) -> Iterator[str]:
    """A running container that does nothing by itself."""
    with ExitStack() as stack:
        options = []
        if request.param != "default-bridge":
            options = ["--network", stack.enter_context(network(lab))]
        yield stack.enter_context(container(lab, *options))


@contextmanager
def enforcing(lab: Lab, text: str) -> Iterator[Daemon]:
    daemon = lab.daemon(text, config=STRICT)
    try:
        yield daemon
    finally:
        daemon.abandon()
        remove_rules(lab.client)


_CONNECT = """
import json, socket, sys
try:
    found = socket.getaddrinfo(sys.argv[1], 443, type=socket.SOCK_STREAM)
except socket.gaierror as err:
    print(json.dumps(["unknown", err.errno == socket.EAI_NONAME]))
else:
    try:
        socket.create_connection(found[0][4][:2], 5).close()
        said = "connected"
    except ConnectionRefusedError:
        said = "refused"
    print(json.dumps([said, found[0][4][0]]))
"""

_ASK = """
import base64, json, socket, sys
(server,) = [line.split()[1] for line in open("/etc/resolv.conf") if line.startswith("nameserver")]
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.settimeout(5)
    sock.connect((server, 53))
    sock.send(base64.b64decode(sys.argv[1]))
    print(json.dumps(base64.b64encode(sock.recv(4096)).decode()))
"""


def exists(lab: Lab, where: str, name: str) -> bool:
    """Tell whether a name leads anywhere, by busybox and by the C library alike.

    Where it leads to may be refused by address, also when answers are not changed any more.
    """
    said = nslookup(lab, where, name)
    found = python(lab, where, _CONNECT, name)
    assert found[0] in ("connected", "refused") or found == ["unknown", True]
    assert ("NXDOMAIN" in said) == (found[0] == "unknown"), (said, found)
    return bool(found[0] != "unknown")


def ask(lab: Lab, where: str, name: str) -> DNSRecord:
    """Ask with EDNS, as most resolvers do; return the answer."""
    record = DNSRecord.question(name)
    record.add_ar(EDNS0(udp_len=1232))
    heard = python(lab, where, _ASK, base64.b64encode(record.pack()).decode())
    return DNSRecord.parse(base64.b64decode(heard))


@pytest.mark.parametrize("name", REFUSED)
def test_a_registry_that_is_not_allowed_does_not_exist(lab: Lab, where: str, name: str) -> None:
    assert exists(lab, where, name)  # the control: without ramnet it does
    with enforcing(lab, CATALOG) as daemon:
        assert not exists(lab, where, name)
        assert status(daemon)["dns"]["blocked"] > 0
        assert status(daemon)["classes"]["containers"]["enforced"] == "catalog"
        daemon.kill()
        assert exists(lab, where, name)


def test_a_container_is_told_that_it_was_blocked(lab: Lab, where: str) -> None:
    assert ask(lab, where, "quay.io").header.rcode == 0
    with enforcing(lab, CATALOG):
        told = ask(lab, where, "quay.io")
        assert told.header.rcode == NXDOMAIN
        (option,) = told.ar[0].rdata
        assert (option.code, int.from_bytes(option.data[:2], "big")) == (EDE, BLOCKED)


def test_all_else_is_left_alone(lab: Lab, where: str) -> None:
    with enforcing(lab, CATALOG) as daemon:
        for name, address in LEFT_ALONE.items():
            assert address in nslookup(lab, where, name)
        assert status(daemon)["dns"]["blocked"] == 0


def test_containers_off(lab: Lab, where: str) -> None:
    with enforcing(lab, OFF) as daemon:
        for name in REFUSED:
            assert exists(lab, where, name)
        assert status(daemon)["dns"]["blocked"] == 0


def test_the_engine_itself_hears_the_truth(lab: Lab) -> None:
    with enforcing(lab, CATALOG) as daemon:
        said = pull(lab, "quay.io/acme/app")
        assert said.refused  # by the address that it was told
        assert status(daemon)["dns"]["blocked"] == 0


def test_a_container_behind_the_engines_own_query_hears_the_truth(lab: Lab) -> None:
    """With a resolver on loopback the engine asks for its containers: that query is its own."""
    log = lab.directory / "stub.log"
    with ExitStack() as stack:
        stack.enter_context(local_resolver(lab.client, log, STUB, DNS_V4, user=STUB_USER))
        lab.client.set_resolvers(STUB)
        stack.callback(lab.client.set_resolvers, DNS_V4)
        stack.enter_context(enforcing(lab, CATALOG))
        inner = stack.enter_context(container(lab, "--network", stack.enter_context(network(lab))))
        assert exists(lab, inner, "quay.io")
        assert "quay.io from 127.0.0.1" in log.read_text(encoding="utf-8")
        # The control: the same container, asking for itself.
        assert "NXDOMAIN" in nslookup(lab, inner, "quay.io", DNS_V4)


def test_a_container_that_serves_dns_to_others_hears_the_truth(lab: Lab) -> None:
    with enforcing(lab, CATALOG), resolver(lab, DNS_V4) as server, container(lab) as client:
        # The control: as long as nobody has asked it, it is a container like any other.
        assert "NXDOMAIN" in nslookup(lab, server, "quay.io", DNS_V4)
        for asker in (lab.world, lab.client):
            heard = inside(asker, lambda: DNSRecord.question("quay.io").send(CLIENT_V4, timeout=5))
            assert DNSRecord.parse(heard).header.rcode == 0, asker.name
        assert "NXDOMAIN" not in nslookup(lab, server, "quay.io", DNS_V4)
        assert "NXDOMAIN" in nslookup(lab, client, "quay.io", DNS_V4)

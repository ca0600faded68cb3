"""UDP of engines, and of containers under ``strict``: what it opens, and what an answer is.

To conntrack a packet is an answer as soon as the other side has sent first. So anybody could open
the way to himself by sending to port after port: only ports that are asked on purpose count.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from ramnet.lab.sandbox import Sandbox
from ramnet.lab.topology import (
    BRIDGE_PREFIX_V4,
    CLIENT_V4,
    CLIENT_V6,
    DNS_V4,
    UNTRUSTED_DNS_V4,
    UPLINK,
    WORLD_V4,
)
from ramnet.lab.world import EVIL
from tests.docker.paths import arrived, destination
from tests.netns.dnsworld import patched, replaced, socket_in
from tests.netns.macvlan import ip_in
from tests.netns.places import Place, machine, outcomes
from tests.netns.scoped import PRECISE
from tests.netns.scopeworld import House, a_house, configured, program, send
from tests.netns.support import CORP_REGISTRY, Ramnet, policy, status, wait_leases

pytestmark = pytest.mark.netns

LOGS, LOGS_PORT = ("203.0.113.90", "2001:db8::90"), 5140
# A swarm's engines gossip on this one, each with any other (Docker's documentation).
GOSSIP, ASKS = 7946, 40123
POLICY = policy(
    CORP_REGISTRY, more="".join(destination(place, 443, LOGS_PORT, GOSSIP) for place in LOGS)
)
# What the far side sends to before the engine, or a container, sends from one of them.
SWEPT = range(40_000, 40_200)
LATE_SECONDS = 0.3

# Answers who asks at one of these ports.
_SERVE = """
import selectors, socket, sys
waiting = selectors.DefaultSelector()
for port in map(int, sys.argv[1:]):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("", port))
    waiting.register(sock, selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, _ in waiting.select():
        data, who = key.fileobj.recvfrom(100)
        try:
            key.fileobj.sendto(b"an answer", who)
        except PermissionError:
            pass
"""
_SEND_FROM = """
import errno, json, socket, sys
own, address, port = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
with socket.socket(family, socket.SOCK_DGRAM) as sock:
    sock.bind(("", own))
    try:
        sock.sendto(b"a datagram", (address, port))
        said = "sent"
    except OSError as err:
        said = errno.errorcode[err.errno]
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with a_house() as made:
        yield made


@pytest.fixture
def lab(house: House) -> object:
    """The lab of the daemons that the fixture ``ramnet`` makes."""
    return house.lab


@pytest.fixture(params=PRECISE)
def rung(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture
def group(house: House) -> Path:
    made = house.group("engine")
    made.mkdir(parents=True)
    return made


def send_from(place: Place, own: int, address: str, port: int = 443) -> str:
    """Send a datagram from a port: "sent", or the name of the errno."""
    return str(place(_SEND_FROM, str(own), address, str(port)))


@contextmanager
def server(sandbox: Sandbox, log: Path, *ports: int, cgroup: Path | None = None) -> Iterator[None]:
    """Have a program answer by UDP."""
    argv = ["python3", "-I", "-S", "-c", _SERVE, *map(str, ports)]
    process = sandbox.popen(argv, log=log, cgroup=cgroup)
    try:
        process.wait_for_line("ready")
        yield
    finally:
        process.kill()


def ask(sandbox: Sandbox, address: str, port: int, seconds: float = 2.0) -> str:
    """Ask by UDP, and return what is heard; nothing when nothing is."""
    own = "::" if ":" in address else "0.0.0.0"
    with closing(socket_in(sandbox, own, socket.SOCK_DGRAM)) as sock:
        sock.settimeout(seconds)
        sock.sendto(b"a question", (address, port))
        try:
            return sock.recv(100).decode()
        except TimeoutError:
            return ""


@contextmanager
def sweeping(world: Sandbox, address: str, victim: str) -> Iterator[socket.socket]:
    """Send first from port 443 of the far side, to many ports; yield the socket that did."""
    with closing(socket_in(world, address, socket.SOCK_DGRAM, 443)) as far:
        for port in SWEPT:
            far.sendto(b"first", (victim, port))
        yield far


def heard(far: socket.socket, seconds: float) -> bytes:
    """Return the next datagram, empty when none comes; what ICMP says of others does not count."""
    far.settimeout(seconds)
    try:
        return far.recv(100)
    except TimeoutError:
        return b""


# --- the engine


def test_udp_of_an_engine(house: House, ramnet: Ramnet, group: Path, rung: str) -> None:
    inside, outside = program(house.lab.client, group), machine(house.lab.client, 0)
    lab = house.lab
    refused = [(UNTRUSTED_DNS_V4, 53), *((place, port) for place in EVIL for port in (53, 443, 9))]
    # A destination is open on its ports, but not for QUIC.
    refused += [(place, port) for place in LOGS for port in (53, 80, 443)]
    allowed = [(place, LOGS_PORT) for place in LOGS]
    places = {place for place, _ in refused} - set(LOGS)
    with ExitStack() as stack:
        control = stack.enter_context(lab.capture(everything=True))
        assert set(send(inside, [*refused, *allowed]).values()) == {"sent"}
        assert arrived(control, *places, *LOGS).keys() == {*places, *LOGS}
    daemon = ramnet(POLICY, config=configured(rung, group))
    wait_leases(daemon, 1)
    with lab.capture(everything=True) as capture:
        assert set(send(inside, refused).values()) == {"EPERM"}
        assert arrived(capture, *places, *LOGS) == {}
        assert set(send(inside, allowed).values()) == {"sent"}
        assert arrived(capture, *LOGS).keys() == set(LOGS)
        assert set(send(outside, refused).values()) == {"sent"}
        # By name, so by the trusted resolver, over UDP.
        assert outcomes(inside, [("registry.corp.example", 5000)]) == {"reached"}
        assert arrived(capture, DNS_V4)


def test_an_engine_answers_on_the_ports_of_destinations_alone(
    house: House, ramnet: Ramnet, group: Path, rung: str
) -> None:
    lab, other = house.lab, 5353
    inside = program(lab.client, group)
    with server(lab.client, lab.directory / f"served-{rung}", GOSSIP, other, cgroup=group):
        assert [ask(lab.world, CLIENT_V4, port) for port in (GOSSIP, other)] == ["an answer"] * 2
        daemon = ramnet(policy(CORP_REGISTRY), config=configured(rung, group))
        for port in (GOSSIP, other):
            assert ask(lab.world, CLIENT_V4, port, LATE_SECONDS) == ""
        daemon.stop()
        ramnet(POLICY, config=configured(rung, group))
        assert ask(lab.world, CLIENT_V4, GOSSIP) == "an answer"
        assert ask(lab.world, CLIENT_V4, other, LATE_SECONDS) == ""
        # Who was not asked begins nothing, wherever it sends from.
        assert send(inside, [(WORLD_V4, ASKS)]) == {(WORLD_V4, ASKS): "EPERM"}
    assert send_from(inside, GOSSIP, WORLD_V4, ASKS) == "EPERM"


@pytest.mark.parametrize("family", [4, 6])
def test_a_far_side_that_sends_first_opens_nothing(
    house: House, ramnet: Ramnet, group: Path, rung: str, family: int
) -> None:
    address = next(one for one in EVIL if ip_address(one).version == family)
    victim = CLIENT_V4 if family == 4 else CLIENT_V6
    client, world = house.lab.client, house.lab.world
    inside = program(client, group)
    ramnet(POLICY, config=configured(rung, group))
    with sweeping(world, address, victim) as far:
        assert send_from(inside, ASKS, address) == "EPERM"
        assert heard(far, LATE_SECONDS) == b""
        # Control: an answer from any port would have let it through.
        wide = "meta l4proto udp ct direction reply accept"
        with replaced(client, "engine", "ct direction reply", wide):
            assert send_from(inside, ASKS, address) == "sent"
            assert heard(far, 2.0) == b"a datagram"


# --- containers under ``strict``

STRICT = policy(CORP_REGISTRY, more='\n[enforcement]\ncontainers = "strict"\n')
PUBLISHED, SERVED = 8125, 5353
NAT = """
table ip published {{
  chain p {{
    type nat hook prerouting priority -100
    udp dport {} dnat to {}:{}
  }}
}}
"""
# Without the table of the uplinks: what is not NATed would have to pass that as well.
NO_EGRESS = "import ramnet.core.edge\nramnet.core.edge.compile_egress = lambda *_: None\n"


@pytest.fixture(scope="module")
def container(house: House) -> Iterator[tuple[Sandbox, str]]:
    """A container that answers on two ports, one of them published; and its address.

    The far side knows the way to it, as a machine on the same network may.
    """
    lab = house.lab
    made = lab.container()
    shown = made.run(["ip", "-4", "-o", "address", "show", "dev", UPLINK]).stdout
    address = shown.partition("inet ")[2].partition("/")[0]
    ip_in(lab.world, f"route add {BRIDGE_PREFIX_V4} via {CLIENT_V4}")
    lab.client.run(["nft", "-f", "-"], input=NAT.format(PUBLISHED, address, PUBLISHED))
    with server(made, lab.directory / "contained", PUBLISHED, SERVED):
        yield made, address


@pytest.mark.usefixtures("ramnet")  # which removes the table at the end
def test_a_container_answers_on_its_published_ports_alone(
    house: House, container: tuple[Sandbox, str], group: Path
) -> None:
    (inner, address), lab = container, house.lab
    ways = [(CLIENT_V4, PUBLISHED), (address, SERVED)]
    assert [ask(lab.world, *way) for way in ways] == ["an answer"] * 2, "control"
    with patched(lab, NO_EGRESS, STRICT, configured("cgroup", group)) as daemon:
        assert status(daemon)["classes"]["containers"]["enforced"] == "strict"
        assert ask(lab.world, CLIENT_V4, PUBLISHED) == "an answer"
        assert ask(lab.world, address, SERVED, LATE_SECONDS) == ""
        with sweeping(lab.world, EVIL[0], address) as far:
            assert send_from(machine(inner, 0), ASKS, EVIL[0]) in ("sent", "ECONNREFUSED")
            assert heard(far, LATE_SECONDS) == b""
            wide = "meta l4proto udp ct direction reply accept"
            with replaced(lab.client, "contained", "ct direction reply", wide):
                assert send_from(machine(inner, 0), ASKS, EVIL[0]) == "sent"
                assert heard(far, 2.0) == b"a datagram"
                assert ask(lab.world, address, SERVED) == "an answer"

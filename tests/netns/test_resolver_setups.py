"""Mode ``hold`` with the ways in which machines are set up to ask for names.

In each the machine's own look-ups are held and learned, so that a connect right behind the answer
succeeds with its first SYN; and what a container hears from the same resolver opens nothing.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import count

import pytest

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
    inside,
    learned,
    patched,
    policy,
    query,
    reply,
    socket_in,
    status,
    wait_learned,
)
from tests.netns.forgery import TEACHES_WHAT_IS_FORWARDED
from tests.netns.localdns import local_resolver
from tests.netns.support import attempt, remove_rules, wait_status

UPSTREAM, UPSTREAM6, OTHER = "203.0.113.54", "2001:db8::54", "203.0.113.55"
STUB, WSL = "127.0.0.53", "10.255.255.254"
RESOLVED = "/run/systemd/resolve/resolv.conf"
RESOLVER_USER, OTHER_USER = 971, 972
POLICY = policy("*.wild.example")
OWNERS_SECONDS = 6.0  # ramnet looks every 2 s who answers on this machine


@dataclass(slots=True)
class House:
    """A lab, a container on its bridge, and a server that says the truth about every name."""

    lab: Lab
    container: Sandbox
    container_address: str
    script: Script
    truth: dict[str, str]
    _numbers: Iterator[int] = field(default_factory=count)

    @property
    def client(self) -> Sandbox:
        return self.lab.client

    def fresh(self) -> tuple[str, str]:
        """Return a name that nobody has used, and the address that it leads to from now on."""
        number = next(self._numbers)
        name, address = f"n{number}.wild.example", f"198.51.100.{number % 254 + 1}"
        assert number < 254, "every address is to be new"
        self.truth[name] = address
        return name, address

    @contextmanager
    def daemon(self, patch: str = "") -> Iterator[Daemon]:
        try:
            with patched(self.lab, patch, POLICY, CONFIG) as daemon:
                yield daemon
        finally:
            remove_rules(self.client)

    def look_up(self, server: str, name: str, protocol: str, own: str = "") -> str:
        """Ask as a program of the client does, and return the address that is in the answer."""
        return ask(self.client, server, name, protocol, own)


def ask(sandbox: Sandbox, server: str, name: str, protocol: str, own: str = "") -> str:
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    unspecified = "::" if ":" in server else "0.0.0.0"
    with socket_in(sandbox, own or unspecified, kind) as sock:
        sock.settimeout(LEARN_SECONDS)
        sock.connect((server, 53))
        wire = query(name)
        sock.sendall(wire if protocol == "udp" else len(wire).to_bytes(2, "big") + wire)
        said = sock.recv(4096)
        return socket.inet_ntoa(said[-4:])  # the only record is an A


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    truth: dict[str, str] = {}

    def behave(heard: Heard) -> Saying:
        if heard.name in truth and heard.qtype == "A":
            return reply(heard.wire, addr(heard.name, truth[heard.name]))
        return reply(heard.wire)

    with Lab() as lab:
        lab.client.run(["ip", "address", "add", f"{WSL}/32", "dev", "lo"])
        container = lab.container()
        address = inside(container, lambda: _own_address(topology.BRIDGE_V4))
        with Script(lab.world, UPSTREAM, UPSTREAM6, OTHER, behave=behave) as script:
            yield House(lab, container, address, script, truth)


def _own_address(towards: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((towards, 9))
        return str(sock.getsockname()[0])


# --- the set-ups


Arrange = Callable[[House], AbstractContextManager[object]]


@dataclass(frozen=True, slots=True)
class Setup:
    """How names are asked for: the lines of resolv.conf, and what else has to be there."""

    servers: tuple[str, ...]
    arrange: Arrange = lambda _: nullcontext()


def resolver_at(address: str, user: int = 0, drop_to: str = "root") -> Arrange:
    def arrange(house: House) -> AbstractContextManager[object]:
        log = house.lab.directory / f"resolver-{time.monotonic_ns()}.log"
        return local_resolver(house.client, log, address, UPSTREAM, user=user, drop_to=drop_to)

    return arrange


@contextmanager
def systemd_resolved(house: House) -> Iterator[None]:
    """A stub that answers, and the file in which resolved says whom it asks itself."""
    house.client.write(RESOLVED, f"nameserver {UPSTREAM}\n")
    try:
        with resolver_at(STUB, RESOLVER_USER)(house):
            yield
    finally:
        house.client.path(RESOLVED).unlink()


@contextmanager
def published(house: House) -> Iterator[None]:
    """Publish a resolver in a container at the client's own address, by the rules of Docker."""
    log = house.lab.directory / f"published-{time.monotonic_ns()}.log"
    to = f"dnat to {house.container_address}:53"
    for_us = "fib daddr type local"
    house.client.run(
        ["nft", "-f", "-"],
        input=f"""
        table ip published {{
            chain prerouting {{
                type nat hook prerouting priority dstnat
                {for_us} meta l4proto {{ tcp, udp }} th dport 53 {to}
            }}
            chain output {{
                type nat hook output priority -100
                ip daddr != 127.0.0.0/8 {for_us} meta l4proto {{ tcp, udp }} th dport 53 {to}
            }}
        }}
        """,
    )
    try:
        with local_resolver(house.container, log, house.container_address, UPSTREAM):
            yield
    finally:
        house.client.run(["nft", "delete", "table", "ip", "published"])


SETUPS = {
    "resolv.conf": Setup((UPSTREAM,)),
    "resolv.conf-ipv6": Setup((UPSTREAM6,)),
    "resolv.conf-both": Setup((UPSTREAM6, UPSTREAM)),
    "systemd-resolved": Setup((STUB,), systemd_resolved),
    "wsl": Setup((WSL,), resolver_at(WSL)),
    "resolver-on-lo": Setup(("127.0.0.1",), resolver_at("127.0.0.1", RESOLVER_USER)),
    "resolver-on-lo-ipv6": Setup(("::1",), resolver_at("::1", RESOLVER_USER)),
    "resolver-that-gives-root-up": Setup((STUB,), resolver_at(STUB, drop_to="nobody")),
    "published": Setup((topology.CLIENT_V4,), published),
}


@dataclass(frozen=True, slots=True)
class Running:
    """A set-up with a daemon that has found its resolvers."""

    house: House
    setup: Setup
    daemon: Daemon

    @property
    def server(self) -> str:
        return self.setup.servers[0]


@contextmanager
def running(house: House, name: str, patch: str = "") -> Iterator[Running]:
    setup = SETUPS[name]
    with ExitStack() as stack:
        stack.enter_context(setup.arrange(house))
        house.client.set_resolvers(*setup.servers)
        yield Running(house, setup, stack.enter_context(house.daemon(patch)))


# --- systemd-resolved


def test_what_resolved_asks_itself_is_learned_as_well(house: House) -> None:
    """nss-resolve asks resolved by D-Bus: only its upstream's answers are there to learn from."""
    with running(house, "systemd-resolved"):
        name, address = house.fresh()
        assert house.look_up(UPSTREAM, name, "udp", topology.CLIENT_V4) == address
        assert learned(house.client, address)
        # Not from a server that resolved does not name.
        name, address = house.fresh()
        assert house.look_up(OTHER, name, "udp", topology.CLIENT_V4) == address
        house.look_up(STUB, *house.fresh()[:1], "udp")
        assert not learned(house.client, address)
        # Until it does.
        house.client.write(RESOLVED, f"nameserver {OTHER}\n")
        wait_resolver(house, OTHER)
        assert house.look_up(OTHER, name, "udp", topology.CLIENT_V4) == address
        assert learned(house.client, address)


def wait_resolver(house: House, address: str) -> None:
    listing = ["nft", "list", "set", "inet", "ramnet", "resolvers4"]
    deadline = time.monotonic() + OWNERS_SECONDS
    while address not in house.client.run(listing).stdout:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_upstreams_of_resolved_count_only_behind_its_stub(house: House) -> None:
    house.client.write(RESOLVED, f"nameserver {OTHER}\n")
    try:
        with running(house, "resolv.conf"):
            name, address = house.fresh()
            assert house.look_up(OTHER, name, "udp") == address
            house.look_up(UPSTREAM, *house.fresh()[:1], "udp")
            assert not learned(house.client, address)
    finally:
        house.client.path(RESOLVED).unlink()


# --- a resolver on this machine comes and goes


def owners(daemon: Daemon) -> list[int] | None:
    (found,) = status(daemon)["dns"]["resolvers"]
    said: list[int] | None = found["owners"]
    return said


def test_a_resolver_that_starts_after_ramnet(house: House) -> None:
    house.client.set_resolvers(WSL)
    with house.daemon() as daemon:
        assert owners(daemon) == []
        with resolver_at(WSL, RESOLVER_USER)(house):
            name, address = house.fresh()
            assert house.look_up(WSL, name, "udp") == address
            assert learned(house.client, address)
            wait_status(
                daemon,
                lambda said: said["dns"]["resolvers"][0]["owners"] == [RESOLVER_USER],
                "the owner of the resolver",
                OWNERS_SECONDS,
            )


def test_a_resolver_that_is_replaced_by_one_of_another_user(house: House) -> None:
    """Names must go on being resolved: soon, and by what ramnet finds out by itself."""
    house.client.set_resolvers(WSL)
    with ExitStack() as stack:
        first = stack.enter_context(ExitStack())
        first.enter_context(resolver_at(WSL, RESOLVER_USER)(house))
        daemon = stack.enter_context(house.daemon())
        assert owners(daemon) == [RESOLVER_USER]
        first.close()
        stack.enter_context(resolver_at(WSL, OTHER_USER)(house))
        deadline = time.monotonic() + OWNERS_SECONDS
        while True:
            name, address = house.fresh()
            try:
                assert ask_soon(house.client, WSL, name) == address
                break
            except TimeoutError:
                assert time.monotonic() < deadline
        assert learned(house.client, address)


def ask_soon(sandbox: Sandbox, server: str, name: str) -> str:
    with socket_in(sandbox, "0.0.0.0", socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.5)
        sock.connect((server, 53))
        sock.sendall(query(name))
        return socket.inet_ntoa(sock.recv(4096)[-4:])


# --- a published resolver


def test_a_published_resolver_is_known_by_where_its_answers_come_in(house: House) -> None:
    with running(house, "published") as made:
        (found,) = status(made.daemon)["dns"]["resolvers"]
        bridge = inside(house.client, lambda: socket.if_nametoindex(topology.BRIDGE))
        assert (found["interface"], found["answers_by"]) == (1, bridge)


def test_a_resolver_that_is_published_after_ramnet_has_started(house: House) -> None:
    """The rules of NAT change without a word; ramnet has to look by itself."""
    house.client.set_resolvers(topology.CLIENT_V4)
    with house.daemon() as daemon, ExitStack() as stack:
        time.sleep(1)  # what is looked at behind the start has been
        stack.enter_context(published(house))
        bridge = inside(house.client, lambda: socket.if_nametoindex(topology.BRIDGE))
        wait_status(
            daemon,
            lambda said: said["dns"]["resolvers"][0]["answers_by"] == bridge,
            "the bridge by which answers come in",
            OWNERS_SECONDS,
        )
        name, address = house.fresh()
        assert house.look_up(topology.CLIENT_V4, name, "udp") == address
        assert learned(house.client, address)


# --- with the defence taken out of the code


def test_without_the_defence_what_a_container_hears_opens_a_way(house: House) -> None:
    with running(house, "resolv.conf", TEACHES_WHAT_IS_FORWARDED):
        name, address = house.fresh()
        assert ask(house.container, UPSTREAM, name, "udp") == address
        wait_learned(house.client, address)


# --- every set-up


@pytest.fixture(scope="module", params=SETUPS)
def made(request: pytest.FixtureRequest, house: House) -> Iterator[Running]:
    with running(house, request.param) as found:
        yield found


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_a_look_up_is_held_until_it_is_learned(made: Running, protocol: str) -> None:
    before = status(made.daemon)["dns"]["hold"]
    name, address = made.house.fresh()
    assert made.house.look_up(made.server, name, protocol) == address
    assert learned(made.house.client, address)  # at once: the answer came behind the update
    after = status(made.daemon)["dns"]["hold"]
    assert after["held"] > before["held"]
    assert after["released_late"] == before["released_late"]


def test_a_fresh_address_is_reached_by_the_first_syn(made: Running) -> None:
    found = [made.house.fresh() for _ in range(8)]
    with made.house.lab.capture() as capture:
        said = attempt(made.house.client, *((name, 443) for name, _ in found))
        assert said == {(address, 443): "connected" for _, address in found}
        assert len(capture.to(address for _, address in found)) == len(found)
    assert status(made.daemon)["held_first_syn"] == 0


def test_what_a_container_hears_opens_nothing(made: Running) -> None:
    name, address = made.house.fresh()
    heard = ask(made.house.container, UPSTREAM, name, "udp")
    assert heard == address
    assert made.house.look_up(made.server, *made.house.fresh()[:1], "udp")  # all before is judged
    assert not learned(made.house.client, address)
    assert set(attempt(made.house.client, (address, 443)).values()) == {"refused"}
    # The control: the machine itself asks for the same name.
    assert made.house.look_up(made.server, name, "udp") == address
    assert set(attempt(made.house.client, (address, 443)).values()) == {"connected"}

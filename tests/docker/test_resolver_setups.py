"""Mode ``hold`` with a real engine: in each set-up its own look-ups are held and learned.

A pull from a registry that nobody has asked for before succeeds with the first SYN, whether the
engine asks a server outside, one on this machine, or one in a container that it has published.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import count

import pytest

from ramnet.lab.dns import records
from ramnet.lab.lab import Lab
from ramnet.lab.ramnet import Daemon
from ramnet.lab.topology import CLIENT_V4, DNS_V4, DNS_V6
from tests.docker.containers import container, network, nslookup, resolver
from tests.docker.support import pull
from tests.netns.dnsworld import learned, wait_learned
from tests.netns.localdns import local_resolver
from tests.netns.support import STRICT, attempt, policy, remove_rules, status, wait_status

pytestmark = pytest.mark.docker

# Each name has an address of its own, and one of IPv6: the engine asks for both side by side.
NAMES = {f"r{n}.wild.example": (f"198.51.100.{n}", f"2001:db8::{n}") for n in range(150, 220)}
POLICY = policy("*.wild.example", "docker.io")
STUB, WSL, STUB_USER = "127.0.0.53", "10.255.255.254", 971
RESOLVED = "/run/systemd/resolve/resolv.conf"
NOTICE_SECONDS = 10.0

Arrange = Callable[[Lab], AbstractContextManager[object]]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    table = records({name: list(addresses) for name, addresses in NAMES.items()})
    with Lab(engine=True, records=table, certificate_names=["*.wild.example"]) as made:
        made.client.run(["ip", "address", "add", f"{WSL}/32", "dev", "lo"])
        assert pull(made, "busybox").worked
        yield made


@pytest.fixture(scope="module")
def fresh() -> Iterator[str]:
    """Names that nobody has asked for."""
    return iter(NAMES)


def stub(address: str, user: int) -> Arrange:
    numbers = count()

    def arrange(lab: Lab) -> AbstractContextManager[object]:
        log = lab.directory / f"stub-{address}-{next(numbers)}.log"
        return local_resolver(lab.client, log, address, DNS_V4, user=user)

    return arrange


@contextmanager
def systemd_resolved(lab: Lab) -> Iterator[None]:
    lab.client.write(RESOLVED, f"nameserver {DNS_V4}\n")
    try:
        with stub(STUB, STUB_USER)(lab):
            yield
    finally:
        lab.client.path(RESOLVED).unlink()


SETUPS: dict[str, tuple[tuple[str, ...], Arrange]] = {
    "resolv.conf": ((DNS_V4, DNS_V6), lambda _: nullcontext()),
    "systemd-resolved": ((STUB,), systemd_resolved),
    "wsl": ((WSL,), stub(WSL, 0)),
    "published": ((CLIENT_V4,), lambda lab: resolver(lab, DNS_V4)),
    # Docker redirects no loopback address: its proxy answers there, a socket of root.
    "published-on-loopback": (("127.0.0.1",), lambda lab: resolver(lab, DNS_V4)),
}


@contextmanager
def resolving(lab: Lab, setup: str) -> Iterator[None]:
    servers, arrange = SETUPS[setup]
    lab.client.set_resolvers(*servers)
    # dockerd reads resolv.conf anew every 5 s only. Its containers end with it.
    lab.engine.stop()
    lab.engine.start()
    try:
        with arrange(lab):
            yield
    finally:
        lab.client.set_resolvers(DNS_V4, DNS_V6)


@contextmanager
def enforcing(lab: Lab) -> Iterator[Daemon]:
    daemon = lab.daemon(POLICY, config=STRICT)
    try:
        yield daemon
    finally:
        daemon.abandon()
        remove_rules(lab.client)


def test_embedded_dns_with_a_resolver_on_loopback(lab: Lab, fresh: Iterator[str]) -> None:
    """The engine asks for the container from the machine itself: so it teaches."""
    with resolving(lab, "systemd-resolved"), enforcing(lab), network(lab) as net:
        name = next(fresh)
        with container(lab, "--network", net) as inner:
            assert NAMES[name][0] in nslookup(lab, inner, name)
        assert learned(lab.client, NAMES[name][0])


def test_embedded_dns_with_a_resolver_outside(lab: Lab, fresh: Iterator[str]) -> None:
    """The query leaves from the container's own network: it is forwarded, and teaches nothing."""
    with resolving(lab, "resolv.conf"), enforcing(lab), network(lab) as net:
        name, other = next(fresh), next(fresh)
        with container(lab, "--network", net) as inner:
            assert NAMES[name][0] in nslookup(lab, inner, name)
        attempt(lab.client, (other, 443))
        wait_learned(lab.client, NAMES[other][0])
        assert not learned(lab.client, NAMES[name][0])


def test_a_resolver_that_is_published_while_ramnet_runs(lab: Lab, fresh: Iterator[str]) -> None:
    lab.client.set_resolvers(CLIENT_V4)
    try:
        with enforcing(lab) as daemon:
            time.sleep(1)  # what is looked at behind the start has been
            with resolver(lab, DNS_V4):
                wait_status(
                    daemon,
                    lambda said: said["dns"]["resolvers"][0]["answers_by"] != 1,
                    "the bridge by which answers come in",
                    NOTICE_SECONDS,
                )
                name = next(fresh)
                said = attempt(lab.client, (name, 443))
                assert said == {(address, 443): "connected" for address in NAMES[name]}
    finally:
        lab.client.set_resolvers(DNS_V4, DNS_V6)


# --- every set-up


@pytest.fixture(scope="module", params=SETUPS)
def daemon(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Daemon]:
    with resolving(lab, request.param), enforcing(lab) as made:
        yield made


def test_a_pull_from_a_registry_that_nobody_has_asked_for(
    lab: Lab, daemon: Daemon, fresh: Iterator[str]
) -> None:
    before = status(daemon)
    for _ in range(3):
        name = next(fresh)
        with lab.capture() as capture:
            assert (said := pull(lab, f"{name}/acme/app")).worked, said.everything
            syns = capture.to(NAMES[name])
            # Each connection took one SYN: none was lost, none came before its time.
            assert len(syns) == len({(syn.src, syn.sport) for syn in syns}) > 0
    after = status(daemon)
    assert after["refused"] == before["refused"]
    assert after["held_first_syn"] == 0
    assert after["dns"]["hold"]["held"] > before["dns"]["hold"]["held"]
    assert after["dns"]["hold"]["released_late"] == before["dns"]["hold"]["released_late"]


def test_both_addresses_are_open_when_the_answers_are_there(
    lab: Lab, daemon: Daemon, fresh: Iterator[str]
) -> None:
    assert daemon.running
    name = next(fresh)
    said = attempt(lab.client, (name, 443))
    assert said == {(address, 443): "connected" for address in NAMES[name]}


def test_what_a_container_hears_opens_nothing(
    lab: Lab, daemon: Daemon, fresh: Iterator[str]
) -> None:
    name, other = next(fresh), next(fresh)
    with container(lab) as inner:
        assert NAMES[name][0] in nslookup(lab, inner, name, DNS_V4)
    attempt(lab.client, (other, 443))
    wait_learned(lab.client, NAMES[other][0])  # what came before has been judged
    assert not learned(lab.client, NAMES[name][0])
    assert set(attempt(lab.client, (NAMES[name][0], 443)).values()) == {"refused"}
    # The control: the engine asks for the same name.
    assert pull(lab, f"{name}/acme/app").worked
    assert status(daemon)["state"] == "enforcing"

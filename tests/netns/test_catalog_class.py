"""Mode ``catalog`` by its addresses, without an engine: what is refused, since when, until when.

The same rules judge forwarded containers and the programs of the machine; a lab with only a bridge
shows them sooner than one with an engine.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

import pytest

from ramnet.lab import topology
from ramnet.lab.dns import Record, records
from ramnet.lab.lab import Lab
from ramnet.lab.process import wait_until
from ramnet.lab.programs import PYTHON_PATH
from ramnet.lab.sandbox import Sandbox
from ramnet.lab.world import CORP, EVIL, GHCR, HUB, QUAY
from tests.netns.places import Place, engine, machine, outcomes, reach
from tests.netns.scoped import (
    DENY_SECONDS,
    PRECISE,
    UNLISTED,
    Enforced,
    denied,
    enforcing,
    wait_denied,
    wait_not_denied,
)
from tests.netns.support import CORP_REGISTRY, policy, put_policy, status

pytestmark = pytest.mark.netns

SHARED_HOST = ("198.51.100.165", "2001:db8::165")  # gcr.io: the catalogue says "shared"
TOGETHER = ("198.51.100.166", "2001:db8::166")  # a refused registry and an allowed one
BLOB, AUTH = ("198.51.100.32",), ("198.51.100.13",)
MOVED = ("198.51.100.180", "2001:db8::180")
TABLE = records(
    {
        "gcr.io": list(SHARED_HOST),
        "registry.hub.docker.com": list(TOGETHER),
        "together.example": list(TOGETHER),
        "sub.wild.example": list(TOGETHER),
    }
)
# Leases that run out while a test waits, but not before a daemon has started.
SHORT_TTL = 2
BRIEF = "[limits]\nlease_min_seconds = 1\nlease_grace_seconds = 6\n"
OBSERVE = '[dns]\nmode = "observe"\n'
TOGETHER_REGISTRY = "together.example"
POLICY = policy(CORP_REGISTRY, TOGETHER_REGISTRY)
REFUSED = [(address, 443) for address in UNLISTED]
# Beside what is refused: other ports of it, addresses that serve others or an allowed registry as
# well, what a pull needs beside the API, and what nobody has catalogued.
FREE = [
    *((address, port) for address in (*QUAY, *GHCR) for port in (80, 5000, 8443)),
    *((address, 443) for address in (*SHARED_HOST, *TOGETHER, *BLOB, *AUTH, *CORP, *EVIL)),
    *((address, 80) for address in EVIL),
]


@dataclass(frozen=True, slots=True)
class House:
    """A lab with one container on a bridge of the client, with both families."""

    lab: Lab
    inner: Sandbox
    container: Place
    machine: Place
    engine: Place

    @property
    def everyone(self) -> dict[str, Place]:
        """Who is no engine."""
        return {"container": self.container, "machine": self.machine}


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with Lab(engine_cgroup=True, records=TABLE) as lab:
        inner = lab.container()
        add = ["ip", "-6", "address", "add"]
        lab.client.run([*add, "fd00:1::1/64", "dev", topology.BRIDGE, "nodad"])
        inner.run([*add, "fd00:1::2/64", "dev", topology.UPLINK, "nodad"])
        inner.run(["ip", "-6", "route", "add", "default", "via", "fd00:1::1"])
        yield House(lab, inner, machine(inner), machine(lab.client), engine(lab))


@pytest.fixture(scope="module")
def control(house: House) -> dict[str, set[str]]:
    """What everyone reaches without ramnet; the far side saw all of it."""
    with house.lab.capture() as capture:
        found = {who: outcomes(at, [*REFUSED, *FREE]) for who, at in house.everyone.items()}
        found["engine"] = outcomes(house.engine, [*REFUSED, *FREE])
        found["names"] = outcomes(house.container, [("quay.io", 443), ("gcr.io", 443)])
        assert len(capture.to(UNLISTED, ports=[443])) >= 3 * len(REFUSED)
    return found


def test_without_ramnet_everything_is_reached(control: dict[str, set[str]]) -> None:
    assert set().union(*control.values()) == {"reached"}


# --- whom it is for


@pytest.mark.parametrize("rung", ["uid", "netns"])
def test_where_engines_cannot_be_told_apart_all_are_judged_alike(house: House, rung: str) -> None:
    """The default of ``weak``: nobody is refused what is not catalogued."""
    with enforcing(house.lab, rung, POLICY) as made:
        wait_denied(house.lab.client, *UNLISTED)
        for place in (house.container, house.machine, house.engine):
            assert outcomes(place, REFUSED) == {"refused"}
            assert outcomes(place, FREE) == {"reached"}
        said = status(made.daemon)
        assert said["state"] == "degraded"
        assert said["classes"]["engine"]["enforced"] == "catalog"
        assert made.leaked() == 0


CLASSES = {
    "both": ("", "", {"container": "refused", "machine": "refused"}),
    "containers-off": ("off", "", {"container": "reached", "machine": "refused"}),
    "host-off": ("", "off", {"container": "refused", "machine": "reached"}),
    "neither": ("off", "off", {"container": "reached", "machine": "reached"}),
}


@pytest.mark.parametrize("case", CLASSES)
def test_each_class_is_switched_by_itself(house: House, case: str) -> None:
    containers, host, expected = CLASSES[case]
    more = f'\n[enforcement]\ncontainers = "{containers}"\n' if containers else ""
    scope = f'host = "{host}"\n' if host else ""
    text = policy(CORP_REGISTRY, TOGETHER_REGISTRY, more=more)
    with enforcing(house.lab, "cgroup", text, scope) as made:
        if "refused" in expected.values():
            wait_denied(house.lab.client, *UNLISTED)
        for who, place in house.everyone.items():
            assert outcomes(place, REFUSED) == {expected[who]}, who
            assert outcomes(place, FREE) == {"reached"}, who
        said = status(made.daemon)["classes"]
        assert said["containers"]["enforced"] == (containers or "catalog")
        assert said["host"]["enforced"] == (host or "catalog")
        assert outcomes(house.engine, REFUSED) == {"refused"}


def test_mode_observe_refuses_by_address_alone(house: House) -> None:
    with enforcing(house.lab, "cgroup", POLICY, OBSERVE) as made:
        assert status(made.daemon)["dns"]["mode"] == "observe"
        wait_denied(house.lab.client, *UNLISTED)
        for place in house.everyone.values():
            asked = [("quay.io", 443), ("gcr.io", 443)]
            assert reach(place, asked) == {asked[0]: {"refused"}, asked[1]: {"reached"}}
        assert made.leaked() == 0


# --- since when, and until when


def test_an_address_leaves_when_the_registry_moves(house: House) -> None:
    """It is refused for as long as a client may still use what DNS said of it."""
    dns, client = house.lab.dns, house.lab.client
    former, moved = dns.table["quay.pool.example"], [(one, 443) for one in MOVED]
    dns.update({"quay.pool.example": Record(QUAY, ttl=SHORT_TTL)})
    try:
        with enforcing(house.lab, "cgroup", POLICY, BRIEF) as made:
            wait_denied(client, *QUAY)
            dns.update({"quay.pool.example": Record(MOVED, ttl=SHORT_TTL)})
            # A start looks names up at once; by itself the daemon does it every half minute.
            made.daemon.stop()
            made.daemon.start()
            wait_denied(client, *MOVED)
            assert all(denied(client, one) for one in QUAY)
            wait_not_denied(client, *QUAY)
            for place in house.everyone.values():
                assert outcomes(place, moved) == {"refused"}
                assert outcomes(place, [(one, 443) for one in QUAY]) == {"reached"}
    finally:
        dns.update({"quay.pool.example": former})


def test_a_registry_in_the_same_place_as_a_refused_one(house: House) -> None:
    """Whoever is allowed wins, from the moment on that the policy says so."""
    targets = [(address, 443) for address in TOGETHER]

    def everyone_gets(outcome: str) -> bool:
        return all(outcomes(at, targets) == {outcome} for at in house.everyone.values())

    with enforcing(house.lab, "cgroup", policy(CORP_REGISTRY)) as made:
        wait_denied(house.lab.client, *TOGETHER)
        assert everyone_gets("refused")
        put_policy(made.daemon, POLICY)
        wait_until(lambda: everyone_gets("reached"), DENY_SECONDS, "the registry that is allowed")
        put_policy(made.daemon, policy(CORP_REGISTRY))
        wait_until(lambda: everyone_gets("refused"), DENY_SECONDS, "the one that is not")


def test_an_engine_learns_a_name_in_the_same_place_as_a_refused_one(house: House) -> None:
    """By a wildcard, so nobody knows of it before it is asked for."""
    with enforcing(house.lab, "cgroup", policy(CORP_REGISTRY, "*.wild.example")):
        wait_denied(house.lab.client, *TOGETHER)
        assert outcomes(house.engine, [(one, 443) for one in TOGETHER]) == {"refused"}
        assert outcomes(house.engine, [("sub.wild.example", 443)]) == {"reached"}


def test_a_registry_that_becomes_allowed(house: House) -> None:
    targets = [(address, 443) for address in QUAY]
    with enforcing(house.lab, "cgroup", POLICY) as made:
        wait_denied(house.lab.client, *UNLISTED)
        put_policy(made.daemon, policy(CORP_REGISTRY, "quay.io"))
        wait_not_denied(house.lab.client, *QUAY)
        for place in house.everyone.values():
            assert outcomes(place, [("quay.io", 443), *targets]) == {"reached"}
            assert outcomes(place, [(GHCR[0], 443)]) == {"refused"}
        put_policy(made.daemon, POLICY)
        wait_denied(house.lab.client, *QUAY)
        for place in house.everyone.values():
            assert outcomes(place, targets) == {"refused"}


def test_it_stays_refused_when_the_daemon_is_killed_and_starts_again(house: House) -> None:
    with enforcing(house.lab, "cgroup", POLICY) as made:
        wait_denied(house.lab.client, *UNLISTED)
        with house.lab.generator(REFUSED[:2]) as attempts:
            made.daemon.kill()
            for place in house.everyone.values():
                assert outcomes(place, REFUSED) == {"refused"}
            made.daemon.start()
            for place in house.everyone.values():
                assert outcomes(place, REFUSED) == {"refused"}
        assert attempts.report.total.attempted > 0
        assert attempts.report.total.connected == 0
        assert made.leaked() == 0


def test_an_address_that_is_no_servers_is_never_refused(house: House) -> None:
    """A zone can say anything of itself: that harms nobody on this machine."""
    dns, client = house.lab.dns, house.lab.client
    former = dns.table["quay.pool.example"]
    odd = ("127.0.0.1", "0.0.0.0", "169.254.169.254", "224.0.0.1", "::1", "fe80::1", "ff02::1")
    dns.update({"quay.pool.example": Record((*odd, *MOVED))})
    try:
        with enforcing(house.lab, "cgroup", POLICY):
            wait_denied(client, *MOVED)
            assert [one for one in odd if denied(client, one)] == []
    finally:
        dns.update({"quay.pool.example": former})


PORTAL = ("203.0.113.99", "2001:db8::99")
ELSEWHERE = ("198.51.100.181", "2001:db8::181")
INSIDE = ("10.9.0.1", "172.20.0.1", "192.168.7.7", "100.64.0.9", "fd12::9")


def test_the_address_of_a_portal_that_answers_for_everyone_is_not_refused(house: House) -> None:
    """It is no registry's: whoever is caught there has to reach it, to be let out."""
    dns, client = house.lab.dns, house.lab.client
    portal, hub = ([(address, 443) for address in places] for places in (PORTAL, HUB))
    former = dict(dns.table)
    dns.update({"quay.pool.example": Record((*PORTAL, *MOVED))})
    try:
        with enforcing(house.lab, "cgroup", POLICY) as made:
            # One registry alone may be anywhere.
            wait_denied(client, *PORTAL, *GHCR, *HUB)
            for place in house.everyone.values():
                assert outcomes(place, portal) == {"refused"}
            # Now another one as well. What is its alone, and the first one's, shows who is known.
            dns.update({"ghcr.io": Record((*PORTAL, *ELSEWHERE))})
            made.daemon.stop()  # a start looks names up at once
            made.daemon.start()
            wait_denied(client, *MOVED, *ELSEWHERE, *HUB)
            wait_not_denied(client, *PORTAL)
            for place in house.everyone.values():
                assert outcomes(place, portal) == {"reached"}
                assert outcomes(place, hub) == {"refused"}
            # Nobody is let through by name for that, and no engine at all.
            assert outcomes(house.container, [("quay.io", 443), ("ghcr.io", 443)]) == {"unknown"}
            assert outcomes(house.engine, portal) == {"refused"}
    finally:
        dns.update(former)


def test_two_names_of_one_registry_may_lead_to_the_same_place(house: House) -> None:
    dns, client = house.lab.dns, house.lab.client
    former = dict(dns.table)
    names = ("registry-1.docker.io", "registry.hub.docker.com")
    dns.update(dict.fromkeys(names, Record(MOVED)))
    try:
        with enforcing(house.lab, "cgroup", POLICY):
            wait_denied(client, *MOVED)
    finally:
        dns.update(former)


def test_private_addresses_are_not_refused(house: House) -> None:
    """A public registry is at none of them: somebody answers for it who serves other names too."""
    dns, client = house.lab.dns, house.lab.client
    former = dict(dns.table)
    dns.update({"quay.pool.example": Record((*INSIDE, *MOVED))})
    try:
        with enforcing(house.lab, "cgroup", POLICY):
            wait_denied(client, *MOVED)
            assert [one for one in INSIDE if denied(client, one)] == []
    finally:
        dns.update(former)


# --- connections that begin in unusual ways

V6_ONLY, V4_ONLY = ("destination options", "routing header"), ("mapped",)
KINDS = ("tcp", "mptcp", "fast open", "ecn", "raw", "fragments", "udp", *V6_ONLY, *V4_ONLY)
# Each kind goes to an address of its own of the registry: so one capture tells which arrived.
ODD = [
    *((kind, f"198.51.100.{n}", 443) for n, kind in enumerate(KINDS, 200) if kind not in V6_ONLY),
    *((kind, f"2001:db8::{n}", 443) for n, kind in enumerate(KINDS, 200) if kind not in V4_ONLY),
]


def arrived(house: House, sandbox: Sandbox) -> Counter[str]:
    """Begin every connection from a sandbox, as root; count the packets at the far side."""
    argv = [sys.executable, "-m", "tests.docker.attempts"]
    with house.lab.capture(everything=True) as capture:
        sandbox.run(argv, input=json.dumps(ODD), env={"PYTHONPATH": str(PYTHON_PATH)})
        frames = [frame.data for frame in capture.frames()]
    targets = {address: ip_address(address).packed for _, address, _ in ODD}
    # Behind the Ethernet header: the target's place in a header of IPv4, and of IPv6.
    return Counter(
        address
        for data in frames
        for address, packed in targets.items()
        if packed in (data[30:34], data[38:54])
    )


def test_however_a_connection_begins(house: House) -> None:
    dns, client = house.lab.dns, house.lab.client
    addresses = [address for _, address, _ in ODD]
    former = dns.table["quay.pool.example"]
    dns.update({"quay.pool.example": Record(tuple(dict.fromkeys(addresses)))})
    try:
        for sandbox in (house.inner, client):
            found = arrived(house, sandbox)
            assert [one for one in ODD if not found[one[1]]] == [], sandbox.name
        for rung in PRECISE:
            with enforcing(house.lab, rung, POLICY):
                wait_denied(client, *addresses)
                for sandbox in (house.inner, client):
                    found = arrived(house, sandbox)
                    assert [one for one in ODD if found[one[1]]] == [], (sandbox.name, rung)
    finally:
        dns.update({"quay.pool.example": former})


# --- what is refused, and what is not: one daemon for each rung, so these come last


@pytest.fixture(scope="module")
def enforced(
    request: pytest.FixtureRequest, house: House, control: dict[str, set[str]]
) -> Iterator[Enforced]:
    assert control
    with enforcing(house.lab, request.param, POLICY) as made:
        wait_denied(house.lab.client, *UNLISTED)
        yield made


on_rungs = pytest.mark.parametrize("enforced", PRECISE, indirect=True)


@on_rungs
@pytest.mark.parametrize("who", ["container", "machine"])
def test_the_addresses_of_a_registry_are_refused_on_its_port_alone(
    house: House, enforced: Enforced, who: str
) -> None:
    place = house.everyone[who]
    assert {t: said for t, said in reach(place, REFUSED).items() if said != {"refused"}} == {}
    assert {t: said for t, said in reach(place, FREE).items() if said != {"reached"}} == {}
    assert enforced.leaked() == 0


@on_rungs
def test_all_but_engines_are_told_that_a_name_does_not_exist(
    house: House, enforced: Enforced
) -> None:
    asked = [(name, 443) for name in ("quay.io", "gcr.io", "registry.hub.docker.com")]
    for place in house.everyone.values():
        assert outcomes(place, asked) == {"unknown"}
    # What an engine hears is for its rules to judge: this one leads to an allowed registry's place.
    truth = dict(zip(asked, ({"refused"}, {"refused"}, {"reached"}), strict=True))
    assert reach(house.engine, asked) == truth
    assert enforced.leaked() == 0


@on_rungs
def test_an_engine_is_judged_by_the_policy_instead(house: House, enforced: Enforced) -> None:
    assert enforced.daemon.running
    assert outcomes(house.engine, [(TOGETHER_REGISTRY, 443)]) == {"reached"}
    others = [target for target in FREE if target[0] not in (*TOGETHER, *CORP)]
    assert outcomes(house.engine, [*REFUSED, *others]) == {"refused"}

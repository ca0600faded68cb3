"""Why something is allowed or refused."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest

from ramnet.core.allow import ANY_PORT
from ramnet.core.config import Limits
from ramnet.core.explain import Explanation, Target, explain, parse_target, why_refused
from ramnet.core.leases import LeaseLimits, LeaseTable
from ramnet.core.policy import Policy
from ramnet.errors import NameFault, ReferenceFault
from tests.unit.core.support import allowed, host, ip, policy

DESTINATION = '[[destination]]\naddress = "git.example:9418"\n'


def leases(*learned: tuple[str, str, int]) -> LeaseTable:
    limits = Limits()
    table = LeaseTable(
        LeaseLimits(
            limits.lease_min_seconds,
            limits.lease_max_seconds,
            limits.lease_grace_seconds,
            limits.leases_per_name,
            limits.leases_total,
        )
    )
    for name, address, port in learned:
        table.learn(host(name), [ip(address)], 60, [port], 0.0)
    return table


def asked(
    text: str, found: Policy | None, held: LeaseTable | None = None, now: float = 0.0
) -> Explanation:
    return explain(parse_target(text), allowed(found), held, now)


# What is asked about


@pytest.mark.parametrize(
    ("text", "said", "shown"),
    [
        ("nginx", ("registry-1.docker.io", 443), "registry-1.docker.io"),
        ("nginx:1.27", ("registry-1.docker.io", 443), "registry-1.docker.io"),
        ("docker.io", ("registry-1.docker.io", 443), "registry-1.docker.io"),
        ("docker.io:443", ("registry-1.docker.io", 443), "registry-1.docker.io"),
        ("docker.io:5000", ("docker.io", 5000), "docker.io:5000"),
        ("Docker.io/me/app", ("docker.io", 443), "docker.io"),
        ("library/nginx", ("registry-1.docker.io", 443), "registry-1.docker.io"),
        ("quay.io", ("quay.io", 443), "quay.io"),
        ("QUAY.IO/org/app:v1", ("quay.io", 443), "quay.io"),
        ("r.example:5000/app", ("r.example", 5000), "r.example:5000"),
        ("registry:5000", ("registry", 5000), "registry:5000"),
        ("localhost", ("localhost", 443), "localhost"),
        ("localhost:5000/app", ("localhost", 5000), "localhost:5000"),
        ("10.0.0.1", (IPv4Address("10.0.0.1"), 443), "10.0.0.1"),
        ("10.0.0.1:5000", (IPv4Address("10.0.0.1"), 5000), "10.0.0.1:5000"),
        ("2001:db8::1", (IPv6Address("2001:db8::1"), 443), "2001:db8::1"),
        ("[2001:db8::1]", (IPv6Address("2001:db8::1"), 443), "2001:db8::1"),
        ("[2001:db8::1]:5000", (IPv6Address("2001:db8::1"), 5000), "[2001:db8::1]:5000"),
        ("[2001:db8::1]:5000/app", (IPv6Address("2001:db8::1"), 5000), "[2001:db8::1]:5000"),
        ("  quay.io\n", ("quay.io", 443), "quay.io"),
    ],
)
def test_targets(text: str, said: tuple[object, int], shown: str) -> None:
    target = parse_target(text)
    assert (target.host or target.address, target.port) == said
    assert (target.host is None) != (target.address is None)
    assert target.shown == shown
    assert target.text == text.strip()


@pytest.mark.parametrize(
    "text",
    ["*.example.com", "localhost:*", "r.example:99999", "a..example", "[::1", "x.example:²", "%.a"],
)
def test_what_is_no_host(text: str) -> None:
    with pytest.raises(NameFault) as caught:
        parse_target(text)
    assert caught.value.hint


@pytest.mark.parametrize("text", ["", "   ", "https://quay.io/x", "UPPER", "a/B", "x" * 2000])
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises((ReferenceFault, NameFault)) as caught:
        parse_target(text)
    assert caught.value.hint


@pytest.mark.parametrize("text", ["]10.0.0.1[", "[10.0.0.1", "[[2001:db8::1]]", "fe80::1%eth0"])
def test_brackets_and_zones_are_not_passed_over(text: str) -> None:
    """The policy refuses these spellings; what is no address there is none here."""
    with pytest.raises(NameFault):
        parse_target(text)


# Hosts


def test_a_host_of_the_policy() -> None:
    found = asked("r.example:5000", policy("r.example:5000"))
    assert (found.allowed, found.registry) == (True, "r.example:5000")
    assert found.reason == "policy: registry.address"


def test_an_image_of_docker_hub() -> None:
    found = asked("nginx", policy("docker.io"))
    assert (found.allowed, found.registry) == (True, "docker.io")
    assert found.reason == "catalogue: api host of docker.io"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("quay.io", "no registry of the policy covers it"),
        ("r.example", "the policy allows it on port 5000, 5001 only"),
        ("r.example:8443", "the policy allows it on port 5000, 5001 only"),
        ("quay.io:9000", "no registry of the policy covers it"),
        ("localhost:5001", "the policy allows it on port 5000 only"),
    ],
)
def test_a_host_that_is_refused(text: str, reason: str) -> None:
    found = asked(text, policy("r.example:5000", "r.example:5001", "localhost:5000"))
    assert (found.allowed, found.reason) == (False, reason)


def test_a_destination_allows_its_port() -> None:
    said = asked("git.example:9418", policy("r.example", more=DESTINATION))
    assert (said.allowed, said.reason) == (True, "policy: destination.address")
    assert said.registry == "git.example:9418"


def test_nothing_is_allowed_without_a_policy() -> None:
    assert asked("quay.io", None).reason == "no registry of the policy covers it"


def test_localhost_is_allowed_by_its_networks() -> None:
    found = asked("localhost:5000", policy("localhost:*"))
    assert (found.allowed, found.registry) == (True, "localhost:*")
    assert not asked("localhost:5000", policy("r.example")).allowed


def test_the_leases_of_a_host_are_those_of_its_port() -> None:
    held = leases(("r.example", "198.51.100.1", 5000), ("r.example", "198.51.100.1", 5001))
    found = asked("r.example:5001", policy("r.example:5000", "r.example:5001"), held)
    (lease,) = found.leases
    assert (str(lease.ip), lease.port, lease.remaining) == ("198.51.100.1", 5001, 360)


def test_a_lease_for_any_port_is_one_of_every_port() -> None:
    held = leases(("any.example", "198.51.100.1", ANY_PORT), ("any.example", "198.51.100.2", 5000))
    found = asked("any.example:8443", policy("any.example:*"), held)
    assert found.allowed
    assert [(str(lease.ip), lease.port) for lease in found.leases] == [("198.51.100.1", ANY_PORT)]
    by_address = asked("198.51.100.1:8443", policy("any.example:*"), held)
    assert (by_address.allowed, by_address.registry) == (True, "any.example:*")
    assert by_address.reason == "DNS: any.example led to it"


# Addresses


def test_an_address_in_a_network_of_the_policy() -> None:
    found = policy("r.example:5000", more='networks = ["10.0.0.0/8"]\n')
    yes = asked("10.1.2.3:5000", found)
    assert (yes.allowed, yes.registry, yes.reason) == (
        True,
        "r.example:5000",
        "policy: registry.networks",
    )
    no = asked("10.1.2.3", found)
    assert (no.allowed, no.reason) == (False, "the policy allows it on port 5000 only")


def test_an_address_that_a_name_led_to() -> None:
    held = leases(("a.example", "198.51.100.1", 5000))
    found = asked("198.51.100.1:5000", policy("*.example:5000"), held)
    assert (found.allowed, found.registry) == (True, "*.example:5000")
    assert found.reason == "DNS: a.example led to it"
    assert [lease.names for lease in found.leases] == [("a.example",)]


def test_a_lease_is_put_down_to_the_registry_that_covers_its_port() -> None:
    held = leases(("r.example", "198.51.100.1", 5001))
    found = asked("198.51.100.1:5001", policy("r.example:5000", "r.example:5001"), held)
    assert found.registry == "r.example:5001"


def test_an_address_that_is_held_for_another_port() -> None:
    held = leases(("r.example", "198.51.100.1", 5000), ("r.example", "198.51.100.1", 5001))
    found = asked("198.51.100.1", policy("r.example:5000", "r.example:5001"), held)
    assert not found.allowed
    assert found.reason == "the address is allowed on port 5000, 5001 only"


def test_an_address_whose_lease_has_run_out() -> None:
    held = leases(("r.example", "198.51.100.1", 443))
    assert asked("198.51.100.1", policy("r.example"), held, 359.0).allowed
    found = asked("198.51.100.1", policy("r.example"), held, 360.0)
    assert (found.allowed, found.reason) == (
        False,
        "no network of the policy holds it and no allowed name led to it",
    )


def test_an_address_without_a_daemon_to_ask() -> None:
    found = asked("198.51.100.1", policy("r.example"), None)
    assert found.reason == "no network of the policy holds it (DNS was not asked)"


def test_an_ipv4_mapped_address_is_judged_as_what_leaves_on_the_wire() -> None:
    found = policy("r.example", more='networks = ["10.0.0.0/8"]\n')
    assert asked("::ffff:10.0.0.1", found).allowed


def test_an_explanation_without_a_registry_is_a_refusal() -> None:
    target = Target("x", None, ip("192.0.2.1"), 443)
    assert not Explanation(target, "no").allowed
    assert Explanation(target, "yes", "r.example").allowed


@pytest.mark.parametrize(
    ("name", "port", "says"),
    [
        ("quay.io", 443, "the policy of acme does not list it"),
        ("r.example", 22, "the policy of acme allows the name, but not on port 22"),
        ("r.example", 443, "no trusted resolver said that it leads to this address"),
        (None, 443, "no name that the policy of acme allows led to it"),
    ],
)
def test_why_a_connection_was_refused(name: str | None, port: int, says: str) -> None:
    found = allowed(policy("r.example"))
    assert says in why_refused(found, "acme", host(name) if name else None, port)


def test_why_everything_is_refused_without_a_policy() -> None:
    assert "no valid policy" in why_refused(allowed(None), None, host("r.example"), 443)

"""From a policy to what it allows, to whom, and to what the catalogue refuses."""

from __future__ import annotations

from datetime import date, timedelta
from ipaddress import ip_network

import pytest

from ramnet.core.allow import (
    ANY_PORT,
    NOBODY,
    REGISTRY_PORTS,
    Grant,
    Registries,
    deny_list,
)
from ramnet.core.catalog import Role
from ramnet.core.names import parse_pattern
from tests.unit.core.support import CATALOG, TODAY, allowed, host, ip, policy


def destination(address: str, *ports: int) -> str:
    """An entry of a policy for something that is not a registry."""
    listed = f"ports = {list(ports)}\n" if ports else ""
    return f'[[destination]]\naddress = "{address}"\n{listed}'


# Registries


def test_nothing_is_allowed_without_a_policy() -> None:
    nothing = allowed(None)
    assert len(nothing.names) == 0
    assert (nothing.networks, nothing.exact, nothing.registries) == ((), (), ())
    assert nothing.ports == REGISTRY_PORTS, "the usual ports are judged all the same"


@pytest.mark.parametrize("name", ["docker.io", "index.docker.io", "registry-1.docker.io"])
def test_docker_hub_is_expanded_to_the_hosts_it_uses(name: str) -> None:
    found = allowed(policy(name))
    for used in ("registry-1.docker.io", "auth.docker.io", "production.cloudflare.docker.com"):
        assert found.ports_of(host(used)) == {443}
    for other in ("docker.com", "evil.docker.io", "r2.cloudflarestorage.com", "quay.io"):
        assert found.ports_of(host(other)) == frozenset()
    assert "registry-1.docker.io" in found.exact
    assert found.registries == (name,)
    (grant,) = found.names.find(host("auth.docker.io"))
    assert grant == Grant(frozenset({443}), name, "catalogue: auth host of docker.io")


def test_every_host_of_every_catalogued_registry_is_allowed_on_its_ports() -> None:
    for entry in CATALOG:
        found = allowed(policy(entry.key))
        for item in entry.hosts_for():
            if not item.pattern.wildcard:
                assert found.ports_of(item.pattern.name) >= item.ports
        doubtful = {item.pattern for item in entry.hosts} - {i.pattern for i in entry.hosts_for()}
        for pattern in doubtful - {parse_pattern(entry.key)}:
            assert found.ports_of(pattern.name) == frozenset(), pattern


def test_hosts_of_a_region_are_allowed_where_the_entry_names_it() -> None:
    bucket = "docker-images-prod.s3.dualstack.{}.amazonaws.com"
    plain = allowed(policy("docker.io"))
    assert plain.ports_of(host(bucket.format("us-east-1"))) == {443}
    assert plain.ports_of(host(bucket.format("eu-west-1"))) == frozenset()
    found = allowed(policy("docker.io", more='regions = ["eu-west-1", "us-west1"]\n'))
    assert found.ports_of(host(bucket.format("us-east-1"))) == {443}
    assert found.ports_of(host(bucket.format("us-west1"))) == frozenset(), "not a region of AWS"
    (grant,) = found.names.find(host(bucket.format("eu-west-1")))
    via = "catalogue: blob host of docker.io, region eu-west-1"
    assert grant == Grant(frozenset({443}), "docker.io", via)


def test_unverified_hosts_are_allowed_where_the_entry_takes_them() -> None:
    name = host("api.ecr-public.us-east-1.amazonaws.com")
    assert allowed(policy("public.ecr.aws")).ports_of(name) == frozenset()
    found = allowed(policy("public.ecr.aws", more="unverified_hosts = true\n"))
    (grant,) = found.names.find(name)
    via = "catalogue: auth host of public.ecr.aws, not verified"
    assert grant == Grant(frozenset({443}), "public.ecr.aws", via)


def test_what_a_policy_names_itself_needs_no_verification() -> None:
    name = "registry.replicated.com"
    (grant,) = allowed(policy(name)).names.find(host(name))
    assert grant == Grant(frozenset({443}), name, "policy: registry.address")
    (grant,) = allowed(policy(name, more="unverified_hosts = true\n")).names.find(host(name))
    assert grant.via == f"catalogue: api host of {name}, not verified"


def test_a_port_of_its_own_brings_no_hosts_of_the_catalogue() -> None:
    found = allowed(policy("docker.io:8443", more='regions = ["eu-west-1"]\n'))
    assert len(found.names) == 1


@pytest.mark.parametrize(
    ("address", "ports"),
    [
        ("registry.corp.example", {443}),
        ("registry.corp.example:5000", {5000}),
        ("registry.corp.example:443", {443}),
        ("registry.corp.example:8443", {8443}),
        ("registry.corp.example:*", {ANY_PORT}),
    ],
)
def test_ports_of_an_address(address: str, ports: set[int]) -> None:
    assert allowed(policy(address)).ports_of(host("registry.corp.example")) == ports


def test_any_port_adds_none_to_those_where_registries_are_expected() -> None:
    found = allowed(policy("any.example:*", "other.example:8443"))
    assert found.ports == {80, 443, 5000, 8443}
    assert found.ports_of(host("any.example")) == {ANY_PORT}
    assert found.ports_of(host("other.example")) == {8443}


@pytest.mark.parametrize(
    ("address", "ports"),
    [("quay.io:443", {443}), ("quay.io:8443", {8443}), ("quay.io:*", {ANY_PORT, 443})],
)
def test_a_port_with_a_catalogued_registry_means_that_port(address: str, ports: set[int]) -> None:
    assert allowed(policy(address)).ports_of(host("quay.io")) == ports


def test_ports_of_several_entries_of_one_name_add_up() -> None:
    found = allowed(policy("r.example:5000", "r.example:5001", "*.example:8443"))
    assert found.ports_of(host("r.example")) == {5000, 5001, 8443}
    assert found.exact == ("r.example",), "asked for once, a wildcard not at all"


@pytest.mark.parametrize(
    ("address", "ports"),
    [
        ("r.example", {443}),
        ("r.example:5000", {443, 5000}),
        ("r.example:*", {ANY_PORT}),
        ("localhost:5001", {443, 5001}),
    ],
)
def test_extra_hosts_serve_https_or_the_registrys_own_port(address: str, ports: set[int]) -> None:
    more = 'extra_hosts = ["blobs.example", "*.mirror.example"]\n'
    found = allowed(policy(address, more=more))
    assert found.ports_of(host("blobs.example")) == ports
    assert found.ports_of(host("a.mirror.example")) == ports
    assert found.ports_of(host("mirror.example")) == frozenset()
    assert "blobs.example" in found.exact
    (grant,) = found.names.find(host("blobs.example"))
    assert grant.via == "policy: registry.extra_hosts"


def test_localhost_is_the_loopback_networks_and_no_name_to_resolve() -> None:
    found = allowed(policy("localhost:5000"))
    assert found.exact == ()
    assert found.ports_of(host("localhost")) == frozenset()
    for address in ("127.0.0.1", "127.9.9.9", "::1"):
        (grant,) = found.grants_for(ip(address))
        assert grant.ports == frozenset({5000})
    assert list(found.grants_for(ip("::2"))) == []
    assert list(found.grants_for(ip("128.0.0.1"))) == []


@pytest.mark.parametrize("text", ["10.0.0.1", "2001:db8::1"])
def test_an_ip_literal_is_its_own_network(text: str) -> None:
    address = f"[{text}]:5000" if ":" in text else f"{text}:5000"
    found = allowed(policy(address))
    assert found.networks == (
        (ip_network(text), Grant(frozenset({5000}), address, "policy: registry.address")),
    )
    assert len(found.names) == 0


def test_networks_are_of_their_own_family() -> None:
    found = allowed(policy("r.example", more='networks = ["0.0.0.0/1", "2000::/3"]\n'))
    assert [grant.via for grant in found.grants_for(ip("1.2.3.4"))] == ["policy: registry.networks"]
    assert len(list(found.grants_for(ip("2001:db8::1")))) == 1
    assert list(found.grants_for(ip("200.0.0.1"))) == []


def test_an_expired_entry_counts_for_nothing() -> None:
    more = f'expires = {TODAY}\nnetworks = ["10.0.0.0/8"]\nextra_hosts = ["x.example"]\n'
    found = policy("old.example:8443", more=more)
    assert allowed(found, TODAY).ports_of(host("old.example")) == {8443}
    after = allowed(found, TODAY + timedelta(days=1))
    assert after == allowed(policy(), date.max) or (
        (after.networks, after.exact, after.registries, len(after.names)) == ((), (), (), 0)
    )
    assert after.ports == REGISTRY_PORTS


# Destinations


@pytest.mark.parametrize(
    ("address", "ports", "expected", "udp"),
    [
        ("git.example", (), {443}, set()),
        ("git.example:9418", (), {9418}, {9418}),
        ("git.example", (22, 443), {22, 443}, {22}),
        ("logs.example", (80, 443, 5000, 4317), {80, 443, 5000, 4317}, {4317}),
        ("git.example:*", (), {ANY_PORT}, set()),
    ],
)
def test_ports_of_a_destination(
    address: str, ports: tuple[int, ...], expected: set[int], udp: set[int]
) -> None:
    found = allowed(policy("r.example", more=destination(address, *ports)))
    name = host(address.partition(":")[0])
    assert found.ports_of(name) == expected
    assert found.udp_ports == udp, "nowhere where a registry may be: QUIC"
    assert found.ports == REGISTRY_PORTS, "a destination is no registry"
    assert found.registries == ("r.example",)
    assert found.exact == ("r.example", name), "to be looked up as well"
    (grant,) = found.names.find(name)
    meant = None if ANY_PORT in expected else frozenset(expected)
    assert grant == Grant(meant, address, "policy: destination.address", destination=True)


def test_udp_is_not_opened_on_a_port_that_any_registry_has() -> None:
    more = destination("logs.example", 4317, 8443)
    assert allowed(policy(more=more)).udp_ports == {4317, 8443}
    assert allowed(policy("r.example:8443", more=more)).udp_ports == {4317}


def test_a_destination_is_not_expanded_by_the_catalogue() -> None:
    found = allowed(policy(more=destination("docker.io")))
    assert found.ports_of(host("docker.io")) == {443}
    assert found.ports_of(host("auth.docker.io")) == frozenset()


def test_destinations_by_wildcard_and_address() -> None:
    more = destination("*.git.example") + destination("10.0.0.9", 2377) + destination("localhost:*")
    found = allowed(policy(more=more))
    assert found.ports_of(host("a.git.example")) == {443}
    assert found.exact == ()
    (swarm,) = found.grants_for(ip("10.0.0.9"))
    assert swarm == Grant(
        frozenset({2377}), "10.0.0.9", "policy: destination.address", destination=True
    )
    for address in ("127.0.0.1", "::1"):
        (local,) = found.grants_for(ip(address))
        assert (local.ports, local.destination) == (None, True)


def test_destinations_count_without_any_registry_and_never_without_a_policy() -> None:
    assert allowed(policy(more=destination("git.example"))).exact == ("git.example",)
    assert (allowed(None).exact, allowed(None).udp_ports) == ((), frozenset())


def test_of_a_name_that_is_both_containers_may_reach_the_registry() -> None:
    found = allowed(policy("both.example:5000", more=destination("both.example", 22)))
    assert found.ports_of(host("both.example")) == {22, 5000}
    assert Registries(found).ports_of(host("both.example")) == {5000}
    only = allowed(policy("*.w.example:*", more=destination("git.example")))
    assert Registries(only).ports_of(host("git.example")) == frozenset()
    assert Registries(only).ports_of(host("a.w.example")) == {ANY_PORT}


# What the catalogue refuses


def test_refused_are_the_hosts_that_are_a_registrys_own_by_name_and_by_address() -> None:
    denied = deny_list(allowed(policy("registry.corp.example")), CATALOG)
    assert denied.ports_of(host("quay.io")) == {443}
    assert denied.ports_of(host("registry-1.docker.io")) == {443}
    for spared in ("auth.docker.io", "registry.gitlab.com", "example.com", "cdn01.quay.io"):
        assert denied.ports_of(host(spared)) == frozenset(), spared
    known = {
        item.pattern.name: item
        for entry in CATALOG
        for item in entry.with_role(Role.API)
        if not item.pattern.wildcard
    }
    assert denied.hosts
    for name, ports in denied.hosts.items():
        item = known[name]
        assert (item.role, item.registry_only, item.shared) == (Role.API, True, False)
        assert ports == item.ports


def test_what_the_policy_names_is_not_refused() -> None:
    everything = set(deny_list(allowed(policy("r.example")), CATALOG).hosts)
    found = set(deny_list(allowed(policy("docker.io", "*.io")), CATALOG).hosts)
    assert not {name for name in found if name.endswith(".io")}
    assert found <= everything
    one = set(deny_list(allowed(policy("quay.io")), CATALOG).hosts)
    assert everything - one == {"quay.io"}


def test_a_destination_is_no_allowed_registry() -> None:
    """Engines may reach it; the others are judged by the catalogue as if it were not there."""
    found = allowed(policy("r.example", more=destination("quay.io")))
    assert deny_list(found, CATALOG).ports_of(host("quay.io")) == {443}


def test_nobody_is_refused_where_nothing_is_judged_by_the_catalogue() -> None:
    assert NOBODY.ports_of(host("quay.io")) == frozenset()

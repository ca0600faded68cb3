"""What DNS says of the names of a policy, and which of it is told."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from ramnet.core.allow import allow_list
from ramnet.core.dnsremarks import (
    Place,
    Said,
    askable,
    hosts_file,
    places,
    remarks,
    targets,
    wire_name,
)
from ramnet.core.names import HostName
from ramnet.core.policy import Policy, parse_policy
from tests.unit.core.support import CATALOG, TODAY

NAME = HostName("registry.corp.example")
GOOD = ip_address("198.51.100.1")


def policy(text: str) -> Policy:
    head = 'version = 1\norganization = "acme"\n'
    return parse_policy(head + text, source="policy.toml", ramnet_version="99")


PLAIN = policy('[[registry]]\naddress = "registry.corp.example"\nnetworks = ["10.0.0.0/8"]\n')


def told(said: Said, name: HostName = NAME) -> list[str]:
    allowed = allow_list(PLAIN, CATALOG, TODAY)
    return [f"{item.text} / {item.hint}" for item in remarks(name, said, allowed, CATALOG)]


@pytest.mark.parametrize(
    ("said", "part"),
    [
        (Said(exists=False), "no such name / correct the name"),
        (Said(), "it has no address in DNS"),
        (Said(chain=(HostName("gone.example"),)), "an alias of gone.example, which has no address"),
        (Said(addresses=(ip_address("127.0.0.1"),)), "DNS leads to 127.0.0.1, which no DNS answer"),
        (
            Said(addresses=tuple(ip_address(f"169.254.0.{number}") for number in range(6))),
            "169.254.0.0, 169.254.0.1, 169.254.0.2, 169.254.0.3 and 2 more",
        ),
        (
            Said(addresses=(GOOD,), chain=(HostName("quay.io"),)),
            "alias of quay.io, a host of Quay",
        ),
        (Said(local=(GOOD,)), "/etc/hosts leads to 198.51.100.1"),
        (Said(local=(GOOD,), error="no answer"), 'networks = ["198.51.100.1"]'),
        (Said(local=(GOOD,), addresses=(GOOD,), error="no answer"), "/etc/hosts leads to"),
    ],
)
def test_what_is_told(said: Said, part: str) -> None:
    (line,) = told(said)
    assert part in line


@pytest.mark.parametrize(
    "said",
    [
        Said(addresses=(GOOD,)),
        Said(addresses=(GOOD, ip_address("127.0.0.1"))),
        Said(addresses=(ip_address("10.0.0.1"),)),
        Said(addresses=(GOOD,), chain=(HostName("d1.cloudfront.net"), HostName("x.example"))),
        # A blob host is nothing that anybody would have listed instead.
        Said(addresses=(GOOD,), chain=(HostName("cdn.quay.io"),)),
        Said(local=(GOOD,), addresses=(GOOD,)),
        Said(local=(ip_address("10.1.2.3"),)),
        Said(error="no answer"),
        Said(exists=False, error="no answer"),
    ],
)
def test_what_is_in_order(said: Said) -> None:
    assert told(said) == []


def test_a_host_of_a_registry_may_be_an_alias_of_another_of_it() -> None:
    said = Said(addresses=(GOOD,), chain=(HostName("quay.io"),))
    assert told(said, HostName("cdn.quay.io")) == []


def test_the_places_of_a_policy() -> None:
    found = places(
        policy(
            """
            [[registry]]
            address = "docker.io"
            [[registry]]
            address = "*.wild.example"
            extra_hosts = ["*.wide.example", "blob.example"]
            [[registry]]
            address = "10.0.0.1:5000"
            [[registry]]
            address = "localhost:*"
            [[registry]]
            address = "registry:5000"
            [[registry]]
            address = "past.example"
            expires = 2020-01-01
            [[registry]]
            address = "last.example:*"
            expires = 2026-03-01
            """
        ),
        TODAY,
    )
    assert [(place.key, place.name) for place in found] == [
        ("registry[0].address", "registry-1.docker.io"),
        ("registry[1].extra_hosts[1]", "blob.example"),
        ("registry[6].address", "last.example"),
    ]


def test_what_can_be_asked_and_by_which_name() -> None:
    assert askable(NAME)
    assert not askable(HostName("localhost"))
    assert not askable(HostName("registry"))
    assert wire_name(HostName("docker.io")) == "registry-1.docker.io"
    assert wire_name(NAME) == NAME


def test_an_entry_that_is_only_the_target_of_another() -> None:
    found = [
        Place("registry[0].address", NAME),
        Place("registry[1].address", HostName("b.example")),
    ]
    found.append(Place("registry[2].address", HostName("c.example")))
    said = {NAME: Said(addresses=(GOOD,), chain=(HostName("x.example"), HostName("b.example")))}
    ((place, remark),) = targets(found, said)
    assert place.name == "b.example"
    assert remark.text == "registry.corp.example, which is listed as well, is an alias of it"
    assert list(targets(found, {})) == []


def test_a_hosts_file() -> None:
    data = (
        b"# comment\n127.0.0.1 localhost\n198.51.100.1\tRegistry.corp.example other # x.example\n"
        b"2001:db8::1 registry.corp.example.\n198.51.100.1 registry.corp.example\n"
        b"nonsense registry.corp.example\n198.51.100.9\n\xff\n198.51.100.7 a..b x.example\n"
    )
    wanted = [NAME, HostName("x.example"), HostName("y.example")]
    assert hosts_file(data, wanted) == {
        NAME: (GOOD, ip_address("2001:db8::1")),
        HostName("x.example"): (ip_address("198.51.100.7"),),
    }

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest

from ramnet.core.advice import Advice, Host, Kind, advise, catalogued
from ramnet.core.names import parse_address
from tests.unit.core.support import CATALOG, host, policy

HUB_EU = host("docker-images-prod.s3.dualstack.eu-west-1.amazonaws.com")
V4, V6 = IPv4Address("10.0.0.1"), IPv6Address("2001:db8::1")
BLOBS = host("blobs.corp.example")


@pytest.mark.parametrize(
    ("advice", "command", "toml"),
    [
        (
            Advice(Kind.REGISTRY, "quay.io"),
            "ramnet policy add quay.io",
            '[[registry]]\naddress = "quay.io"\n',
        ),
        (
            Advice(Kind.EXTRA_HOST, "localhost:*", "a.example"),
            "ramnet policy add 'localhost:*' --extra-host a.example",
            'extra_hosts = ["a.example"]\n',
        ),
        (
            Advice(Kind.NETWORK, "corp.example", "10.0.0.1"),
            "ramnet policy add corp.example --network 10.0.0.1",
            'networks = ["10.0.0.1"]\n',
        ),
        (
            Advice(Kind.REGION, "docker.io", "eu-west-1"),
            "ramnet policy add docker.io --region eu-west-1",
            'regions = ["eu-west-1"]\n',
        ),
        (
            Advice(Kind.UNVERIFIED, "dhi.io"),
            "ramnet policy add dhi.io --unverified-hosts",
            "unverified_hosts = true\n",
        ),
    ],
)
def test_advice_as_a_command_and_as_a_line(advice: Advice, command: str, toml: str) -> None:
    assert advice.command == command
    assert advice.toml(None) == toml
    assert advice.report(None) == {
        "kind": str(advice.kind),
        "address": advice.address,
        "value": advice.value or None,
        "toml": toml,
        "command": command,
    }


@pytest.mark.parametrize(
    ("kind", "value", "line"),
    [
        (Kind.EXTRA_HOST, "b.example", 'extra_hosts = ["a.example", "b.example"]\n'),
        (Kind.EXTRA_HOST, "a.example", 'extra_hosts = ["a.example"]\n'),
        (Kind.NETWORK, "10.0.0.1", 'networks = ["10.1.0.0/16", "10.0.0.1"]\n'),
        (Kind.REGION, "eu-west-1", 'regions = ["us-west-2", "eu-west-1"]\n'),
    ],
)
def test_the_line_keeps_what_the_entry_has(kind: Kind, value: str, line: str) -> None:
    more = 'extra_hosts = ["a.example"]\nnetworks = ["10.1.0.0/16"]\nregions = ["us-west-2"]\n'
    found = policy("docker.io", more=more)
    assert Advice(kind, "docker.io", value).toml(found) == line


@pytest.mark.parametrize(
    ("whose", "asked", "port", "wanted"),
    [
        ("corp.example", BLOBS, 443, Advice(Kind.EXTRA_HOST, "corp.example", BLOBS)),
        ("corp.example:5000", BLOBS, 443, Advice(Kind.EXTRA_HOST, "corp.example:5000", BLOBS)),
        ("corp.example:5000", BLOBS, 5000, Advice(Kind.EXTRA_HOST, "corp.example:5000", BLOBS)),
        ("corp.example:*", BLOBS, 8080, Advice(Kind.EXTRA_HOST, "corp.example:*", BLOBS)),
        ("corp.example", BLOBS, 80, Advice(Kind.REGISTRY, f"{BLOBS}:80")),
        ("corp.example", host("localhost"), 443, Advice(Kind.REGISTRY, "localhost")),
        ("corp.example", V4, 443, Advice(Kind.NETWORK, "corp.example", "10.0.0.1")),
        ("corp.example", V6, 5000, Advice(Kind.REGISTRY, "[2001:db8::1]:5000")),
        ("corp.example:5000", V4, 443, Advice(Kind.REGISTRY, "10.0.0.1")),
        ("docker.io", HUB_EU, 443, Advice(Kind.REGION, "docker.io", "eu-west-1")),
        ("dhi.io", BLOBS, 443, Advice(Kind.EXTRA_HOST, "dhi.io", BLOBS)),
        ("quay.io", HUB_EU, 443, Advice(Kind.EXTRA_HOST, "quay.io", HUB_EU)),
        ("10.0.0.9:5000", BLOBS, 443, Advice(Kind.EXTRA_HOST, "10.0.0.9:5000", BLOBS)),
    ],
)
def test_what_allows_a_companion(whose: str, asked: Host, port: int, wanted: Advice) -> None:
    assert advise(asked, port, whose, policy(whose), CATALOG) == wanted


def test_the_registry_itself_comes_first() -> None:
    wanted = Advice(Kind.REGISTRY, "quay.io")
    assert advise(host("cdn.quay.io"), 443, "quay.io", policy("docker.io"), CATALOG) == wanted
    assert advise(host("cdn.quay.io"), 443, "quay.io", None, CATALOG) == wanted


def test_every_advice_on_the_catalogue_allows_what_it_is_about() -> None:
    """Whatever host of the catalogue is refused: with the line that is advised, it is not."""
    asked = 0
    for entry in CATALOG:
        plain = policy(entry.key)
        for found in (*entry.hosts, *(item.at("eu-west-1") for item in entry.regional)):
            if found is None or found.pattern.wildcard or not (found.optional or found.region):
                continue
            advice = advise(found.pattern.name, 443, entry.key, plain, CATALOG)
            if found.region and advice.kind is Kind.REGION:
                asked += 1
                more = policy(entry.key, more=advice.toml(plain))
                following = advise(found.pattern.name, 443, entry.key, more, CATALOG)
                assert following.kind in (Kind.UNVERIFIED, Kind.EXTRA_HOST)
            elif found.optional:
                asked += 1
                assert advice == Advice(Kind.UNVERIFIED, entry.key)
    assert asked > 5


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("docker.io", "docker.io"),
        ("index.docker.io:443", "docker.io"),
        ("docker.io:5000", None),
        ("10.0.0.1", None),
        ("corp.example", None),
    ],
)
def test_the_catalogue_speaks_of_https(address: str, key: str | None) -> None:
    found = catalogued(parse_address(address), CATALOG)
    assert (found.key if found is not None else None) == key

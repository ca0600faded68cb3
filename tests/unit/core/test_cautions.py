"""What is valid in a policy and probably not meant."""

from __future__ import annotations

import time
from datetime import date

import pytest

from ramnet import __version__
from ramnet.core.caution import Caution, Kind
from ramnet.core.cautions import MAX_CAUTIONS, MAX_TOLD, KeptCautions, cautions
from ramnet.core.policy import Policy, parse_policy
from ramnet.core.suffixes import load_suffixes
from tests.unit.core.support import CATALOG, TODAY, policy

HUB = 'address = "docker.io"'


def entries(*tables: str, more: str = "") -> Policy:
    """A policy with these registries, each the lines of a table."""
    listed = "".join(f"[[registry]]\n{table}\n" for table in tables)
    text = f'version = 1\norganization = "acme"\n{listed}{more}'
    return parse_policy(text, source="policy.toml", ramnet_version=__version__)


def found(
    read: Policy, *, today: date = TODAY, ignored: tuple[Kind, ...] = ()
) -> tuple[Caution, ...]:
    return cautions(read, CATALOG, load_suffixes(), today, ignored)


def told(read: Policy) -> list[tuple[str, str]]:
    """The kinds, each with the place that it is at."""
    return [(str(item.kind), str(item).partition(": ")[0]) for item in found(read)]


def kinds(*addresses: str) -> list[str]:
    """The kinds for a policy with these registries and Docker Hub."""
    return [kind for kind, _ in told(policy("docker.io", *addresses))]


# Docker Hub


@pytest.mark.parametrize(
    "address",
    ["docker.io", "docker.io:443", "docker.io:*", "index.docker.io", "registry-1.docker.io"],
)
def test_docker_hub_is_listed_by_any_of_its_names(address: str) -> None:
    assert found(policy(address)) == ()


@pytest.mark.parametrize("addresses", [(), ("quay.io",), ("registry.corp.example",)])
def test_docker_hub_is_missing(addresses: tuple[str, ...]) -> None:
    (item,) = found(policy(*addresses))
    assert item.kind is Kind.DOCKER_HUB_MISSING
    assert item.finding.path == ("registry",)
    assert "`ramnet policy add docker.io`" in item.finding.hint


def test_docker_hub_is_missing_where_its_entry_has_expired_or_is_on_another_port() -> None:
    expired = found(entries(f"{HUB}\nexpires = 2026-02-28"))
    assert [item.kind for item in expired] == [Kind.DOCKER_HUB_MISSING, Kind.EXPIRED]
    other = [item.kind for item in found(policy("docker.io:5000"))]
    assert other == [Kind.DOCKER_HUB_MISSING, Kind.PORT]


# Strangers


@pytest.mark.parametrize(
    ("pattern", "kind", "words"),
    [
        ("*.com", "wide-wildcard", "anybody can register a name below com"),
        ("*.co.uk", "wide-wildcard", "anybody can register a name below co.uk"),
        ("*.amazonaws.com", "wide-wildcard", "covers s3.amazonaws.com"),
        ("*.core.windows.net", "wide-wildcard", "covers web.core.windows.net"),
        ("*.s3.amazonaws.com", "tenant-chosen", "in front of s3.amazonaws.com"),
        ("*.blob.core.windows.net", "tenant-chosen", "in front of blob.core.windows.net"),
        ("*.cloudfront.net", "tenant-chosen", "in front of cloudfront.net"),
        ("*.r2.cloudflarestorage.com", "tenant-chosen", "in front of r2.cloudflarestorage.com"),
        ("*.jfrog.io", "tenant-chosen", "of every customer, not only yours"),
        ("*.azurecr.io", "tenant-chosen", "Azure Container Registry of every customer"),
        ("*.dkr.ecr.eu-west-1.amazonaws.com", "tenant-chosen", "Amazon ECR of every customer"),
        ("s3.eu-west-1.amazonaws.com", "tenant-chosen", "by their path"),
        ("s3-us-west-2.amazonaws.com", "tenant-chosen", "by their path"),
        ("storage.googleapis.com", "tenant-chosen", "by their path"),
    ],
)
@pytest.mark.parametrize(
    ("lines", "place"),
    [
        ('[[registry]]\naddress = "{}"\n', "registry[1].address"),
        (
            '[[registry]]\naddress = "r.example"\nextra_hosts = ["{}"]\n',
            "registry[1].extra_hosts[0]",
        ),
        ('[[destination]]\naddress = "{}"\n', "destination[0].address"),
    ],
)
def test_a_name_that_admits_strangers(
    pattern: str, kind: str, words: str, lines: str, place: str
) -> None:
    items = found(entries(HUB, more=lines.replace("{}", pattern)))
    item = next(item for item in items if item.kind == kind)
    assert str(item).startswith(f"{place}: ")
    assert words in item.finding.message
    assert item.finding.hint


@pytest.mark.parametrize(
    "address",
    [
        "*.corp.example",
        "*.registry.corp.com",
        "*.internal",
        "*.corp",
        "*.home.arpa",
        "*.ocir.io",
        "*.gcr.io",
        "mirror.s3.amazonaws.com",
        "s3.corp.example",
        "123456789012.dkr.ecr.eu-west-1.amazonaws.com",
        "acme.jfrog.io",
        "registry.corp.example:5000",
        "localhost:*",
        "10.0.0.1:5000",
        "[2001:db8::1]:5000",
        "quay.io",
        "ghcr.io",
        "us-west1-docker.pkg.dev",
    ],
)
def test_what_is_good_as_it_is(address: str) -> None:
    assert kinds(address) == []


# Of no use


@pytest.mark.parametrize(
    ("address", "title", "hint"),
    [
        ("cdn01.quay.io", "Quay (blob)", 'list "quay.io", which brings all its hosts'),
        ("*.data.mcr.microsoft.com", "(blob)", 'list "mcr.microsoft.com", which brings'),
        ("eastus.data.mcr.microsoft.com", "(blob)", 'list "mcr.microsoft.com", which brings'),
        ("gitlab.com", "(auth)", 'list "registry.gitlab.com", which brings'),
        ("sso.redhat.com", "(auth)", 'list "registry.redhat.io" with unverified_hosts = true'),
        (
            "prod-registry-k8s-io-eu-west-1.s3.dualstack.eu-west-1.amazonaws.com",
            "(blob)",
            'list "registry.k8s.io" with regions = ["eu-west-1"]',
        ),
        (
            "api.ecr.eu-west-1.amazonaws.com",
            "Amazon ECR (auth)",
            '"*.dkr.ecr.eu-west-1.amazonaws.com", with your account in the place of *',
        ),
    ],
)
def test_an_entry_that_is_only_a_companion_of_a_registry(
    address: str, title: str, hint: str
) -> None:
    (item,) = found(policy("docker.io", address))
    assert item.kind is Kind.COMPANION
    assert title in item.finding.message
    assert hint in item.finding.hint


@pytest.mark.parametrize(
    ("registry", "companion"),
    [
        ("docker.io", "auth.docker.io"),
        ("quay.io", "cdn01.quay.io"),
        ("mcr.microsoft.com", "*.data.mcr.microsoft.com"),
        ("123456789012.dkr.ecr.eu-west-1.amazonaws.com", "api.ecr.eu-west-1.amazonaws.com"),
    ],
)
def test_a_companion_of_a_registry_that_is_listed(registry: str, companion: str) -> None:
    for order in ((registry, companion), (companion, registry)):
        (item,) = found(policy("docker.io", *(one for one in order if one != "docker.io")))
        assert item.kind is Kind.KNOWN
        assert f"{companion} comes with {registry}" in item.finding.message


def test_several_companions_of_a_registry_that_is_listed() -> None:
    assert kinds("auth.docker.io", "login.docker.com") == ["already-known", "already-known"]


@pytest.mark.parametrize(
    ("registry", "companion", "command"),
    [
        ("registry.redhat.io", "sso.redhat.com", "--unverified-hosts"),
        (
            "docker.io",
            "docker-images-prod.s3.dualstack.eu-west-1.amazonaws.com",
            "--region eu-west-1",
        ),
    ],
)
def test_a_companion_that_its_registry_has_to_ask_for(
    registry: str, companion: str, command: str
) -> None:
    listed = dict.fromkeys(("docker.io", registry, companion))
    (item,) = (each for each in found(policy(*listed)) if each.kind is not Kind.REGION)
    assert item.kind is Kind.COMPANION
    assert f"`ramnet policy add {registry} {command}`" in item.finding.hint


@pytest.mark.parametrize(
    ("address", "lacks"),
    [("*.quay.io", "quay.io"), ("*.ghcr.io", "ghcr.io")],
)
def test_a_wildcard_over_part_of_a_registry(address: str, lacks: str) -> None:
    (item,) = found(policy("docker.io", address))
    assert item.kind is Kind.PARTIAL
    assert f"does not cover {lacks}" in item.finding.message
    assert f'list "{lacks}"' in item.finding.hint
    assert kinds(address, lacks) == [], "the registry is there as well"


def test_a_wildcard_over_docker_hub_is_not_docker_hub() -> None:
    assert [item.kind for item in found(policy("*.docker.io"))] == [
        Kind.DOCKER_HUB_MISSING,
        Kind.PARTIAL,
    ]


@pytest.mark.parametrize(
    "address", ["e1.a.akamaiedge.net", "lb-1.eu-west-1.elb.amazonaws.com", "x.map.fastly.net"]
)
def test_the_target_of_a_cname(address: str) -> None:
    assert kinds(address) == ["cname-target"]


@pytest.mark.parametrize("address", ["docker.io:5000", "quay.io:80", "ghcr.io:8443"])
def test_a_known_registry_on_another_port(address: str) -> None:
    (item,) = found(policy("docker.io", address))
    assert item.kind is Kind.PORT
    assert item.finding.hint == f'write "{address.partition(":")[0]}"'


def test_a_name_of_a_known_family_on_another_port() -> None:
    assert kinds("registry.corp.docker.com:5000") == []


def test_an_expired_entry_is_told_and_nothing_else_of_it() -> None:
    read = entries(HUB, 'address = "*.com"\nextra_hosts = ["*.net"]\nexpires = 2026-02-28')
    (item,) = found(read)
    assert (item.kind, item.finding.path) == (Kind.EXPIRED, ("registry", 1, "expires"))
    assert "expired with 2026-02-28" in item.finding.message
    assert [each.kind for each in found(read, today=date(2026, 2, 28))] == [Kind.WIDE, Kind.WIDE]


@pytest.mark.parametrize(
    ("entry", "again"),
    [
        ('address = "quay.io"', "cdn01.quay.io"),
        ('address = "mcr.microsoft.com"', "eastus.data.mcr.microsoft.com"),
        ('address = "registry.redhat.io"\nunverified_hosts = true', "sso.redhat.com"),
    ],
)
def test_an_extra_host_that_comes_with_the_registry(entry: str, again: str) -> None:
    read = entries(HUB, f'{entry}\nextra_hosts = ["blobs.example", "{again}"]')
    assert told(read) == [("already-known", "registry[1].extra_hosts[1]")]
    more = entries(HUB, f'{entry}\nextra_hosts = ["{again}"]'.replace('"\n', ':*"\n', 1))
    assert told(more) == [], "on any port they are more than what the catalogue gives"


def test_a_destination_that_is_a_registry() -> None:
    more = '[[destination]]\naddress = "quay.io"\n[[destination]]\naddress = "10.0.0.1"\n'
    more += '[[destination]]\naddress = "github.com"\n'
    assert told(entries(HUB, more=more)) == [("companion-only", "destination[0].address")]


# Regions and what is not verified


def test_a_registry_whose_hosts_lack_a_region() -> None:
    (item,) = found(policy("docker.io", "registry.k8s.io"))
    assert (item.kind, item.finding.path) == (Kind.REGION, ("registry", 1, "address"))
    assert "an AWS region such as eu-west-1" in item.finding.hint


@pytest.mark.parametrize("more", ['regions = ["eu-west-1"]', 'extra_hosts = ["blobs.example"]'])
def test_a_registry_that_has_its_region_or_its_hosts(more: str) -> None:
    assert told(entries(HUB, f'address = "registry.k8s.io"\n{more}')) == []


@pytest.mark.parametrize(
    ("entry", "place"),
    [
        ('address = "r.example"\nregions = ["eu-west-1"]', "registry[1].regions[0]"),
        ('address = "quay.io"\nregions = ["eu-west-1"]', "registry[1].regions[0]"),
        (
            'address = "registry.k8s.io"\nregions = ["eu-west-1", "westeurope"]',
            "registry[1].regions[1]",
        ),
        ('address = "r.example"\nunverified_hosts = true', "registry[1].unverified_hosts"),
        ('address = "quay.io"\nunverified_hosts = true', "registry[1].unverified_hosts"),
    ],
)
def test_a_key_without_effect(entry: str, place: str) -> None:
    assert told(entries(HUB, entry)) == [("no-effect", place)]


# All of them


def test_what_is_ignored_is_left_out_before_it_is_counted() -> None:
    wide = [f"*.{letter}.example" for letter in "ab"]
    read = policy("*.com", *wide, *(f"docker.io:{port}" for port in range(1, MAX_CAUTIONS + 1)))
    assert len(found(read)) == MAX_CAUTIONS + 1
    left = found(read, ignored=(Kind.PORT, Kind.DOCKER_HUB_MISSING))
    assert [item.kind for item in left] == [Kind.WIDE]


def test_there_are_no_more_than_anybody_reads() -> None:
    exactly = policy("docker.io", *(f"docker.io:{port}" for port in range(1, MAX_CAUTIONS + 1)))
    assert len(found(exactly)) == MAX_CAUTIONS
    more = policy(*(f"docker.io:{port}" for port in range(1, MAX_CAUTIONS + 1)))
    last = found(more)[-1]
    assert last.finding.path == ()
    assert str(last) == f"there are more than {MAX_CAUTIONS} of these (mend these first)"


def test_a_caution_without_a_hint_is_only_its_message() -> None:
    item = found(policy())[0]
    bare = Caution(item.kind, type(item.finding)(("registry", 0), "odd"))
    assert str(bare) == "registry[0]: odd"


def test_a_long_policy_costs_little() -> None:
    read = policy("docker.io", *(f"r{number}.corp.example" for number in range(20_000)))
    load_suffixes()
    start = time.process_time()
    assert found(read) == ()
    assert time.process_time() - start < 2.0  # some 0.15 s; a tracer multiplies it


# Kept for status


def test_the_cautions_of_the_policy_in_force_are_looked_for_once_a_day() -> None:
    kept = KeptCautions(CATALOG)
    assert kept.of(None, TODAY) == ()
    read = entries(HUB, 'address = "quay.io"\nexpires = 2026-03-01')
    first = kept.of(read, TODAY)
    assert first == ()
    assert kept.of(read, TODAY) is first
    (line,) = kept.of(read, date(2026, 3, 2))
    assert line.startswith("policy: registry[1].expires: quay.io expired with 2026-03-01")
    assert kept.of(policy("docker.io"), date(2026, 3, 2)) == ()
    assert kept.of(None, date(2026, 3, 2)) == ()


def test_status_gets_the_first_of_them() -> None:
    many = policy("docker.io", *(f"docker.io:{port}" for port in range(1, MAX_TOLD + 2)))
    lines = KeptCautions(CATALOG).of(many, TODAY)
    assert len(lines) == MAX_TOLD + 1
    assert lines[-1] == "policy: there are more: `ramnet policy validate` shows them"

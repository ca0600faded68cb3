from __future__ import annotations

import time
from importlib import resources

import pytest

from ramnet.core.catalog import (
    HTTPS,
    Catalog,
    CatalogEntry,
    Role,
    Source,
    load_catalog,
    parse_catalog,
)
from ramnet.core.names import parse_pattern
from ramnet.errors import PolicyError

HOST = 'name = "r.example", role = "api", source = "V", registry_only = true, shared = false'


def document(
    *, key: str = "r.example", head: str = "", hosts: str = f"{{ {HOST} }}", tail: str = ""
) -> str:
    return f"""
version = 1
[[registry]]
key = "{key}"
title = "R"
sources = {{ V = "its manual" }}
{head}
hosts = [{hosts}]
{tail}
"""


def lookup(catalog: Catalog, text: str) -> CatalogEntry | None:
    return catalog.lookup(parse_pattern(text))


def names(entry: CatalogEntry | None, role: Role | None = None) -> set[str]:
    assert entry is not None
    return {str(host.pattern) for host in entry.hosts if role in (None, host.role)}


# --- the shipped data


def test_the_catalogue_is_loaded_once_and_fast() -> None:
    assert load_catalog() is load_catalog()
    text = resources.files("ramnet.data").joinpath("registries.toml").read_text("utf-8")
    took = []
    for _ in range(5):
        start = time.process_time()
        parse_catalog(text, source="registries.toml")
        took.append(time.process_time() - start)
    assert min(took) < 0.1  # some 3 ms; a tracer and busy neighbours multiply it


@pytest.mark.parametrize(
    "address",
    [
        "docker.io",
        "index.docker.io",
        "registry-1.docker.io",
        "registry.hub.docker.com",
        "hub.docker.com",
    ],
)
def test_docker_hub_is_found_by_all_its_names_and_brings_all_its_hosts(address: str) -> None:
    entry = lookup(load_catalog(), address)
    assert entry is not None
    assert entry.key == "docker.io"
    assert entry.title == "Docker Hub"
    assert names(entry, Role.API) == {
        "registry-1.docker.io",
        "index.docker.io",
        "registry.hub.docker.com",
        "hub.docker.com",
    }
    assert names(entry, Role.AUTH) == {
        "auth.docker.io",
        "login.docker.com",
        "auth.docker.com",
        "cdn.auth0.com",
    }
    assert names(entry, Role.BLOB) == {
        "production.cloudflare.docker.com",
        "production.cloudfront.docker.com",
        "docker-images-prod.6aa30f8b08e16409b46e0173d6de2f56.r2.cloudflarestorage.com",
        "docker-images-prod.s3.dualstack.us-east-1.amazonaws.com",
    }
    assert {host.pattern for host in entry.with_role(Role.API)} == {
        parse_pattern(name) for name in names(entry, Role.API)
    }


@pytest.mark.parametrize(
    ("address", "hosts"),
    [
        ("ghcr.io", {"ghcr.io", "pkg-containers.githubusercontent.com"}),
        ("gcr.io", {"gcr.io"}),
        ("eu.gcr.io", {"eu.gcr.io"}),
        ("europe-west1-docker.pkg.dev", {"europe-west1-docker.pkg.dev"}),
        ("mcr.microsoft.com", {"mcr.microsoft.com", "*.data.mcr.microsoft.com"}),
        ("mcr.azure.cn", {"mcr.azure.cn", "*.data.mcr.azure.cn"}),
        (
            "quay.io",
            {
                "quay.io",
                "cdn.quay.io",
                *(f"cdn0{number}.quay.io" for number in range(1, 7)),
                "quayio-production-s3.s3.amazonaws.com",
            },
        ),
    ],
)
def test_registries_bring_their_companions(address: str, hosts: set[str]) -> None:
    assert names(lookup(load_catalog(), address)) == hosts


@pytest.mark.parametrize(
    "address",
    [
        "123456789012.dkr.ecr.eu-west-1.amazonaws.com",
        "123456789012.dkr-ecr.eu-west-1.on.aws",
        "123456789012.dkr-ecr-fips.eu-west-1.on.aws",
    ],
)
def test_ecr_takes_account_and_region_from_the_address(address: str) -> None:
    entry = lookup(load_catalog(), address)
    assert entry is not None
    assert entry.key == "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
    assert address in {entry.key, *entry.aliases}
    assert names(entry, Role.BLOB) == {
        "prod-eu-west-1-starport-layer-bucket.s3.eu-west-1.amazonaws.com",
        "prod-eu-west-1-starport-layer-bucket.s3.amazonaws.com",
    }
    assert names(entry, Role.API) == {
        "123456789012.dkr.ecr.eu-west-1.amazonaws.com",
        "123456789012.dkr-ecr.eu-west-1.on.aws",
        "123456789012.dkr-ecr-fips.eu-west-1.on.aws",
    }
    assert "api.ecr.eu-west-1.amazonaws.com" in names(entry, Role.AUTH)


def test_a_wildcard_stands_for_every_account_of_a_region() -> None:
    entry = lookup(load_catalog(), "*.dkr.ecr.eu-west-1.amazonaws.com")
    assert names(entry, Role.API) == {
        "*.dkr.ecr.eu-west-1.amazonaws.com",
        "*.dkr-ecr.eu-west-1.on.aws",
        "*.dkr-ecr-fips.eu-west-1.on.aws",
    }
    blobs = names(entry, Role.BLOB)
    assert "prod-eu-west-1-starport-layer-bucket.s3.eu-west-1.amazonaws.com" in blobs


@pytest.mark.parametrize(
    "address",
    [
        "registry.corp.example",
        "auth.docker.io",  # a companion, not a name of the registry
        "a.docker.io",
        "*.docker.io",
        "*.pkg.dev",  # wider than the registry: other products live there
        "us-npm.pkg.dev",
        "docker.pkg.dev",
        "a.b.dkr.ecr.eu-west-1.amazonaws.com",
        "dkr.ecr.eu-west-1.amazonaws.com",
        "*.ecr.eu-west-1.amazonaws.com",
        "1.dkr.ecr.eu_west_1.amazonaws.com",
        f"1.dkr.ecr.{'a' * 33}.amazonaws.com",
        "1.dkr.ecr.eu-west-1.amazonaws.com.evil.test",
    ],
)
def test_what_the_catalogue_does_not_know_gives_none(address: str) -> None:
    assert lookup(load_catalog(), address) is None


def test_no_wildcard_of_the_data_covers_a_label_that_a_tenant_can_choose() -> None:
    wildcards = {
        host.name
        for template in load_catalog().templates
        for host in template.hosts
        if host.name.startswith("*")
    }
    assert wildcards == {"*.data.mcr.microsoft.com", "*.data.mcr.azure.cn"}


def test_every_host_is_cited_and_only_api_hosts_with_their_own_addresses_are_unshared() -> None:
    for template in load_catalog().templates:
        for host in template.hosts:
            assert host.cite, host.name
            assert host.shared or host.role is Role.API, host.name
            assert not (host.registry_only and host.role is Role.AUTH), host.name
            assert host.ports == {443}, host.name


def test_iteration_gives_the_registries_without_placeholders_once() -> None:
    catalog = load_catalog()
    keys = [entry.key for entry in catalog]
    fixed = [template.key for template in catalog.templates if template.is_fixed]
    assert keys == fixed
    assert len(catalog) == len(keys) + 2  # ECR and pkg.dev


# --- the reader


def test_a_small_catalogue() -> None:
    catalog = parse_catalog(
        document(
            head='aliases = ["hub.example"]',
            hosts=f"{{ {HOST} }}, {{ {HOST.replace('r.ex', '*.ex')}, ports = [80, 443] }}",
        ),
        source="x.toml",
    )
    entry = lookup(catalog, "hub.example")
    assert entry is not None
    first, second = entry.hosts
    assert (first.source, first.cite, first.ports) == (Source.VENDOR, "its manual", HTTPS)
    assert (first.registry_only, first.shared) == (True, False)
    assert (str(second.pattern), second.ports) == ("*.example", frozenset({80, 443}))


def test_a_placeholder_must_have_one_value_throughout() -> None:
    catalog = parse_catalog(
        document(key="x-{a}.{a}.example", hosts=f"{{ {HOST.replace('r.', '{a}.')} }}"),
        source="x.toml",
    )
    assert names(lookup(catalog, "x-one.one.example")) == {"one.example"}
    assert lookup(catalog, "x-one.two.example") is None


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("version = ", "", "not TOML"),
        ("", "version", "is missing"),
        ("", "registry", "is missing"),
        (document().replace("version = 1", "version = 2"), "version", "2 is unknown"),
        (document().replace("version = 1", "version = true"), "version", "found true or false"),
        (document().replace("version = 1", "version = 1\nextra = 1"), "extra", "not a known key"),
        ("version = 1\nregistry = [1]", "registry[0]", "expected a table, found an integer"),
        ("version = 1\nregistry = 1.5", "registry", "expected a list, found a float"),
        (document(head="color = 1"), "registry[0].color", "not a known key"),
        (document().replace('title = "R"', ""), "registry[0].title", "is missing"),
        (document().replace('"R"', "5"), "registry[0].title", "expected a string"),
        (document(head="aliases = [1]"), "registry[0].aliases", "a list of strings"),
        (document(key="R.example"), "registry[0].key", "canonical"),
        (document(key="*"), "registry[0].key", "misplaced *"),
        (document(key="{a}{b}.example"), "registry[0].key", "two placeholders"),
        (document(key="{a.example"), "registry[0].key", "'{'"),
        (
            document(key="{a}.example", head='aliases = ["b.example"]'),
            "registry[0].aliases",
            "other placeholders",
        ),
        (
            document(head='aliases = ["{a}.example"]'),
            "registry[0].aliases",
            "the key does not have: 'a'",
        ),
        (
            document() + document().replace("version = 1", ""),
            "registry[1].key",
            "already names registry[0]",
        ),
        (document(hosts=""), "registry[0].hosts", "no host has the role api"),
        (
            document(hosts=f"{{ {HOST.replace('api', 'blob')} }}"),
            "registry[0].hosts",
            "no host has the role api",
        ),
        (document(hosts="1"), "registry[0].hosts[0]", "expected a table"),
        (
            document(hosts=f"{{ {HOST.replace('api', 'cdn')} }}"),
            "registry[0].hosts[0].role",
            "'cdn' is not known",
        ),
        (
            document(hosts=f"{{ {HOST.replace('V', 'U')} }}"),
            "registry[0].hosts[0].source",
            "'U' is not known",
        ),
        (
            document(hosts=f"{{ {HOST.replace('V', 'M')} }}"),
            "registry[0].hosts[0].source",
            "nothing is cited for M",
        ),
        (
            document(hosts=f"{{ {HOST.replace('true', '1')} }}"),
            "registry[0].hosts[0].registry_only",
            "expected true or false",
        ),
        (
            document(hosts=f"{{ {HOST.replace(', shared = false', '')} }}"),
            "registry[0].hosts[0].shared",
            "is missing",
        ),
        (
            document(hosts=f"{{ {HOST}, port = 80 }}"),
            "registry[0].hosts[0].port",
            "not a known key",
        ),
        (
            document(hosts=f"{{ {HOST}, ports = [] }}"),
            "registry[0].hosts[0].ports",
            "different ports",
        ),
        (
            document(hosts=f'{{ {HOST}, ports = ["443"] }}'),
            "registry[0].hosts[0].ports",
            "different ports",
        ),
        (
            document(hosts=f"{{ {HOST}, ports = [70000] }}"),
            "registry[0].hosts[0].ports",
            "70000 does not exist",
        ),
        (
            document(hosts=f"{{ {HOST.replace('r.', 'r..')} }}"),
            "registry[0].hosts[0].name",
            "empty label",
        ),
        (
            document(hosts=f"{{ {HOST.replace('r.', '{a}.')} }}"),
            "registry[0].hosts[0].name",
            "the key does not have: 'a'",
        ),
        # fillings that would not be host names are found when the file is read, not when asked
        (
            document(key="{a}.example", hosts=f"{{ {HOST.replace('r.', 'x-{a}.')} }}"),
            "registry[0].hosts[0].name",
            "misplaced *",
        ),
        (
            document(key="x-{a}.example", hosts=f"{{ {HOST.replace('r.', '{a}-{a}.')} }}"),
            "registry[0].hosts[0].name",
            "too long",
        ),
    ],
)
def test_faults_of_the_file_say_where_and_what(text: str, place: str, message: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_catalog(text, source="x.toml")
    assert "x.toml" in str(caught.value)
    faults = [fault for fault in caught.value.faults if fault.place == place]
    assert any(message in fault.message for fault in faults), caught.value.faults
    assert all(fault.hint for fault in caught.value.faults)


def test_all_faults_are_reported_at_once() -> None:
    text = document(head="color = 1", hosts=f"{{ {HOST.replace('api', 'cdn')}, port = 80 }}")
    with pytest.raises(PolicyError) as caught:
        parse_catalog(text, source="x.toml")
    assert [fault.place for fault in caught.value.faults] == [
        "registry[0].color",
        "registry[0].hosts[0].role",
        "registry[0].hosts[0].port",
        "registry[0].hosts",
    ]

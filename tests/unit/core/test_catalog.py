from __future__ import annotations

import time
from importlib import resources

import pytest

from ramnet.core.catalog import (
    Catalog,
    CatalogEntry,
    Role,
    load_catalog,
    parse_catalog,
)
from ramnet.core.names import parse_host, parse_pattern
from ramnet.core.placeholders import placeholders


def lookup(catalog: Catalog, text: str) -> CatalogEntry | None:
    return catalog.lookup(parse_pattern(text))


def names(entry: CatalogEntry | None, role: Role | None = None) -> set[str]:
    assert entry is not None
    return {str(host.pattern) for host in entry.hosts if role in (None, host.role)}


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
    assert (entry.region_kinds, entry.needs_regions) == (("region",), False)
    assert {host.pattern for host in entry.with_role(Role.API)} == {
        parse_pattern(name) for name in names(entry, Role.API)
    }


@pytest.mark.parametrize(
    ("address", "hosts"),
    [
        ("ghcr.io", {"ghcr.io", "pkg-containers.githubusercontent.com"}),
        ("gcr.io", {"gcr.io", "storage.googleapis.com"}),
        ("eu.gcr.io", {"eu.gcr.io", "storage.googleapis.com"}),
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
            assert not (host.registry_only and host.role is Role.AUTH) or host.name == "ghcr.io"
            assert host.shared or host.role is Role.API or host.name == "ghcr.io", host.name
            assert host.ports == ({80} if "oss-" in host.name else {443}), host.name


def test_one_host_is_the_same_for_each_registry_that_uses_it() -> None:
    facts: dict[str, tuple[bool, bool, frozenset[int]]] = {}
    for template in load_catalog().templates:
        for host in template.hosts:
            said = (host.registry_only, host.shared, host.ports)
            assert facts.setdefault(host.name, said) == said, host.name


def test_iteration_gives_the_registries_without_placeholders_once() -> None:
    catalog = load_catalog()
    keys = [entry.key for entry in catalog]
    fixed = [template.key for template in catalog.templates if template.is_fixed]
    assert keys == fixed
    variable = {template.key for template in catalog.templates if not template.is_fixed}
    assert len(catalog) == len(keys) + len(variable)
    assert {"{account}.dkr.ecr.{region}.amazonaws.com", "{registry}.azurecr.io"} <= variable


# --- which hosts are in force


def in_force(address: str, *regions: str, unverified: bool = False) -> set[str]:
    entry = lookup(load_catalog(), address)
    assert entry is not None
    return {str(host.pattern) for host in entry.hosts_for(regions, unverified=unverified)}


def test_hosts_of_a_region_are_in_force_where_it_is_named() -> None:
    plain = {"registry.k8s.io", "cdn.registry.k8s.io"}
    assert in_force("registry.k8s.io") == plain
    assert in_force("registry.k8s.io", "us-west1", "us-west1") == {
        *plain,
        "us-west1-docker.pkg.dev",
    }
    assert in_force("registry.k8s.io", "us-east-1") == {
        *plain,
        "prod-registry-k8s-io-us-east-1.s3.dualstack.us-east-1.amazonaws.com",
    }
    assert in_force("registry.k8s.io", "westeurope") == plain, "Azure has nothing of it"


def test_a_region_that_is_a_default_adds_nothing() -> None:
    assert in_force("docker.io", "us-east-1") == in_force("docker.io")
    more = in_force("docker.io", "eu-west-1", "eu-west-2") - in_force("docker.io")
    bucket = "docker-images-prod.s3.dualstack.{}.amazonaws.com"
    assert more == {bucket.format("eu-west-1"), bucket.format("eu-west-2")}


def test_a_regional_host_takes_the_rest_from_the_address() -> None:
    entry = lookup(load_catalog(), "acme.azurecr.io")
    assert entry is not None
    assert (entry.region_kinds, entry.needs_regions) == (("azure",), True)
    assert in_force("acme.azurecr.io", "westeurope") == {
        "acme.azurecr.io",
        "acme.westeurope.geo.azurecr.io",
        "acme.westeurope.data.azurecr.io",
    }
    assert in_force("*.azurecr.io") == {"*.azurecr.io"}
    assert "blob.core.windows.net" in entry.note


def test_unverified_hosts_are_in_force_where_they_are_asked_for() -> None:
    assert "storage.googleapis.com" not in in_force("registry.gitlab.com")
    more = in_force("registry.gitlab.com", unverified=True) - in_force("registry.gitlab.com")
    assert more == {"storage.googleapis.com"}


# --- whose a host is


def owners(name: str) -> list[tuple[str, Role, str, bool]]:
    found = load_catalog().owners_of(parse_host(name))
    return [(owner.entry.key, owner.host.role, owner.region, owner.optional) for owner in found]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("auth.docker.io", [("docker.io", Role.AUTH, "", False)]),
        ("de.icr.io", [("de.icr.io", Role.API, "", True)]),
        ("a.b.data.mcr.microsoft.com", [("mcr.microsoft.com", Role.BLOB, "", False)]),
        ("data.mcr.microsoft.com", []),
        ("evil.auth.docker.io", []),
        ("xx.icr.io", []),
        ("acme.blob.core.windows.net", []),
        (
            "ghcr.io",  # its own first
            [("ghcr.io", Role.API, "", False), ("lscr.io", Role.AUTH, "", False)],
        ),
        (
            "pkg-containers.githubusercontent.com",
            [("ghcr.io", Role.BLOB, "", False), ("lscr.io", Role.BLOB, "", True)],
        ),
        (
            "docker-images-prod.s3.dualstack.us-east-1.amazonaws.com",
            [("docker.io", Role.BLOB, "", False)],
        ),
        (
            "docker-images-prod.s3.dualstack.eu-west-1.amazonaws.com",
            [("docker.io", Role.BLOB, "eu-west-1", False)],
        ),
        ("docker-images-prod.s3.dualstack.us-west1.amazonaws.com", []),
        (
            "us-west1-docker.pkg.dev",
            [
                ("us-west1-docker.pkg.dev", Role.API, "", False),
                ("registry.k8s.io", Role.BLOB, "us-west1", False),
            ],
        ),
        ("prod-registry-k8s-io-us-east-1.s3.dualstack.us-east-2.amazonaws.com", []),
        (
            "acme.westeurope.data.azurecr.io",
            [
                ("acme.westeurope.geo.azurecr.io", Role.BLOB, "", False),
                ("acme.azurecr.io", Role.BLOB, "westeurope", False),
            ],
        ),
        # what the host does not tell stays open
        (
            "api.ecr.eu-west-1.amazonaws.com",
            [("*.dkr.ecr.eu-west-1.amazonaws.com", Role.AUTH, "", False)],
        ),
        (
            "jfrog-prod-use1-shared-virginia-main.s3.amazonaws.com",
            [("*.jfrog.io", Role.BLOB, "", False)],
        ),
    ],
)
def test_the_registries_that_a_host_belongs_to(
    name: str, expected: list[tuple[str, Role, str, bool]]
) -> None:
    assert owners(name) == expected


def test_every_host_of_every_registry_leads_back_to_it() -> None:
    catalog = load_catalog()
    values = {"region": "eu-west-1", "location": "us-west1", "azure": "westeurope"}
    for template in catalog.templates:
        filled = {name: values.get(name, "acme") for name in placeholders(template.key)}
        entry = template.fill(filled)
        for host in entry.hosts_for(values.values(), unverified=True):
            name = parse_host(str(host.pattern).replace("*", "any"))
            assert entry.host_of(name) == host
            keys = [owner.entry.key for owner in catalog.owners_of(name)]
            assert entry.key in keys or any(key.startswith("*.") for key in keys), name


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("registry-1.docker.io", "docker.io"),
        ("hub.docker.com", None),  # a web site as well
        ("auth.docker.io", None),
        ("ghcr.io", "ghcr.io"),  # though it is also where clients of lscr.io get tokens
        ("codeberg.org", None),
        ("acme.azurecr.io", "acme.azurecr.io"),
        ("acme.jfrog.io", None),
        ("registry.replicated.com", None),  # nobody verified it
        ("storage.googleapis.com", None),
    ],
)
def test_what_catalog_mode_may_refuse(name: str, key: str | None) -> None:
    found = load_catalog().registry_of(parse_host(name))
    assert (found.key if found else None) == key

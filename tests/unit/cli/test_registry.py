"""``ramnet registry``: list, show, and whose a host is."""

from __future__ import annotations

import json

import pytest

from ramnet.cli.registry import show
from ramnet.core.catalog import load_catalog
from tests.unit.cli.conftest import Run

KEYS = {"key", "title", "aliases", "note", "default_regions", "hosts", "match"}
HOST_KEYS = {
    "name",
    "role",
    "ports",
    "source",
    "cite",
    "registry_only",
    "shared",
    "optional",
    "regional",
}
BUCKET = "docker-images-prod.s3.dualstack.eu-west-1.amazonaws.com"


def test_all_registries_are_listed(ramnet: Run) -> None:
    said = ramnet("registry", "list")
    assert said.code == 0
    head, *lines = said.out.splitlines()
    assert head.split() == ["registry", "title", "hosts"]
    keys = [line.split()[0] for line in lines]
    assert keys == [template.key for template in load_catalog().templates]
    (k8s,) = (line for line in lines if "registry.k8s.io" in line)
    assert k8s.split(maxsplit=1)[1] == f"{'Kubernetes':<43}  4 (2 by region)"
    assert any(line.endswith("4 (1 not verified)") for line in lines if "public.ecr" in line)


def test_the_keys_of_the_json_form(ramnet: Run) -> None:
    for arguments in (("list",), ("list", "--host", "quay.io"), ("show", "quay.io")):
        said = ramnet("registry", *arguments, "--json")
        report = json.loads(said.out)
        assert (said.code, report["schema"]) == (0, 1)
        for item in report["registries"]:
            assert item.keys() == KEYS
            assert all(host.keys() == HOST_KEYS for host in item["hosts"])


def test_a_host_is_searched_for(ramnet: Run) -> None:
    said = ramnet("registry", "list", "--host", "pkg-containers.githubusercontent.com")
    assert (said.code, said.out.splitlines()) == (
        0,
        [
            "pkg-containers.githubusercontent.com belongs to",
            "  ghcr.io  GitHub Container Registry  blob",
            "  lscr.io  LinuxServer.io             blob  with unverified_hosts = true",
        ],
    )
    said = ramnet("registry", "list", "--host", BUCKET, "--json")
    (item,) = json.loads(said.out)["registries"]
    assert (item["key"], item["match"]["region"]) == ("docker.io", "eu-west-1")


@pytest.mark.parametrize("verb", [("list", "--host"), ("show",)])
def test_a_host_that_nobody_knows(ramnet: Run, verb: tuple[str, ...]) -> None:
    said = ramnet("registry", *verb, "cdn.corp.example")
    assert (said.code, said.out) == (1, "")
    assert "'cdn.corp.example' belongs to no registry" in said.err
    assert "ramnet doctor" in said.err
    said = ramnet("registry", *verb, "cdn.corp.example", "--json")
    assert (said.code, json.loads(said.out)) == (1, {"schema": 1, "registries": []})


def test_a_registry_is_shown_with_its_hosts(ramnet: Run) -> None:
    said = ramnet("registry", "show", "ghcr.io")
    title, head, api, blob, cite, *rest = said.out.splitlines()
    assert (said.code, title) == (0, "GitHub Container Registry: ghcr.io")
    assert head.split()[:4] == ["role", "host", "port", "source"]
    assert api.split() == ["api", "ghcr.io", "443", "M", "yes", "no", "always"]
    host = "pkg-containers.githubusercontent.com"
    assert blob.split() == ["blob", host, "443", "M", "yes", "yes", "always"]
    for word in ("port", "source", "registry only", "shared", "in force"):
        place = head.index(word)
        assert api[place - 2 : place] == blob[place - 2 : place] == "  ", word
    assert cite.startswith("  M: measured, or third-party code: hosts contacted by Trivy")
    assert rest == ["", "ghcr.io belongs as well to", "  lscr.io  LinuxServer.io  auth"]


def test_what_a_policy_must_say_for_a_host_is_shown(ramnet: Run) -> None:
    lines = ramnet("registry", "show", "docker.io").out.splitlines()
    assert any("also named" in line and "index.docker.io" in line for line in lines)
    assert any("note" in line and "regions" in line for line in lines)
    (bucket,) = (line for line in lines if "{region}" in line)
    assert bucket.endswith("with regions: an AWS region such as eu-west-1")
    lines = ramnet("registry", "show", "public.ecr.aws").out.splitlines()
    (token,) = (line for line in lines if "443" in line and "api.ecr-public" in line)
    assert token.endswith("with unverified_hosts = true")


def test_the_name_in_the_policy_is_always_in_force(ramnet: Run) -> None:
    lines = ramnet("registry", "show", "registry.replicated.com").out.splitlines()
    (host,) = (line for line in lines if line.startswith("  api"))
    assert host.split()[-1] == "always"


def test_a_redirect_shows_its_registry(ramnet: Run) -> None:
    lines = ramnet("registry", "show", BUCKET).out.splitlines()
    assert lines[:4] == [
        f"{BUCKET} belongs to",
        '  docker.io  Docker Hub  blob  with regions = ["eu-west-1"]',
        "",
        "Docker Hub: docker.io",
    ]


def test_a_host_of_several_registries_lists_them(ramnet: Run) -> None:
    lines = ramnet("registry", "show", "cdn.quay.io").out.splitlines()
    assert lines[0] == "cdn.quay.io belongs to"
    assert [line.split()[0] for line in lines[1:]] == [
        "quay.io",
        "registry.redhat.io",
        "registry.access.redhat.com",
        "registry.connect.redhat.com",
    ]


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("nginx:1.27", "Docker Hub: docker.io"),
        ("123456789012.dkr.ecr.eu-west-1.amazonaws.com/app", "Amazon ECR: 123456789012.dkr"),
        ("*.dkr.ecr.eu-west-1.amazonaws.com", "Amazon ECR: *.dkr.ecr.eu-west-1.amazonaws.com"),
        ("{registry}.azurecr.io", "Azure Container Registry: {registry}.azurecr.io"),
        ("acme.azurecr.io", "Azure Container Registry: acme.azurecr.io"),
    ],
)
def test_ways_to_name_a_registry(ramnet: Run, name: str, title: str) -> None:
    said = ramnet("registry", "show", name)
    assert said.code == 0
    assert said.out.startswith(title)


@pytest.mark.parametrize("name", ["", "192.0.2.1", "a..b", "*.", "\x1b[31m", "x" * 9000, "a/UP"])
def test_what_is_no_name_is_told_with_a_hint(ramnet: Run, name: str) -> None:
    said = ramnet("registry", "show", name)
    assert (said.code, said.out) == (1, "")
    assert "hint: " in said.err
    assert "\x1b" not in said.err


def test_names_are_completed() -> None:
    (argument,) = (param for param in show.params if param.name == "name")
    given = argument.shell_complete(show.make_context("show", ["x"]), "docker")
    assert [item.value for item in given] == ["docker.io", "docker.elastic.co"]

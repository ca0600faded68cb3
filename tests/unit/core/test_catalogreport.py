"""What `ramnet registry` tells, as values."""

from __future__ import annotations

import pytest

from ramnet.core.catalog import load_catalog
from ramnet.core.catalogreport import fixed_names, found_report, host_asked, search, template_report
from ramnet.errors import NameFault, RamnetError

CATALOG = load_catalog()
REGIONAL = "docker-images-prod.s3.dualstack.{region}.amazonaws.com"


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("nginx", "registry-1.docker.io"),
        ("quay.io/org/app:1", "quay.io"),
        ("quay.io", "quay.io"),
        ("CDN02.quay.io:443", "cdn02.quay.io"),
    ],
)
def test_an_image_means_the_host_of_its_registry(text: str, host: str) -> None:
    assert host_asked(text) == host


def test_an_address_is_not_in_the_catalogue() -> None:
    with pytest.raises(NameFault, match="knows hosts by name") as caught:
        host_asked("192.0.2.1")
    assert "ramnet explain 192.0.2.1" in caught.value.hint


@pytest.mark.parametrize("text", ["", "*.", "a..b", "quay.io/UPPER"])
def test_what_is_no_name_is_told(text: str) -> None:
    with pytest.raises(RamnetError):
        search(text, CATALOG)


def test_a_host_of_a_region_is_told_with_what_it_needs() -> None:
    name = REGIONAL.replace("{region}", "eu-west-1")
    (report,) = found_report(search(name, CATALOG))
    assert report["key"] == "docker.io"
    assert report["match"] == {
        "name": name,
        "role": "blob",
        "region": "eu-west-1",
        "optional": False,
    }
    hosts = {host["name"]: host for host in report["hosts"]}
    assert hosts[REGIONAL]["regional"] == "region"
    assert hosts["auth.docker.io"]["regional"] is None


def test_a_registry_comes_before_those_that_only_contact_it() -> None:
    first, second = found_report(search("ghcr.io", CATALOG))
    assert (first["key"], first["match"]["role"]) == ("ghcr.io", "api")
    assert (second["key"], second["match"]["role"]) == ("lscr.io", "auth")
    (hub,) = found_report(search("docker.io", CATALOG))
    assert hub["key"] == "docker.io"


def test_a_registry_that_is_named_by_what_is_no_host_of_it() -> None:
    (ecr,) = found_report(search("*.dkr.ecr.eu-west-1.amazonaws.com", CATALOG))
    assert (ecr["key"], ecr["match"]) == ("*.dkr.ecr.eu-west-1.amazonaws.com", None)
    assert found_report(search("*.docker.io", CATALOG)) == []
    assert found_report(search("r.example", CATALOG)) == []


def test_the_report_of_a_template_keeps_its_placeholders() -> None:
    (template,) = (item for item in CATALOG.templates if item.key == "{registry}.azurecr.io")
    report = template_report(template)
    assert report["aliases"] == report["default_regions"] == []
    assert [(host["name"], host["role"], host["regional"]) for host in report["hosts"]] == [
        ("{registry}.azurecr.io", "api", None),
        ("{registry}.{azure}.geo.azurecr.io", "api", "azure"),
        ("{registry}.{azure}.data.azurecr.io", "blob", "azure"),
    ]
    (public,) = (item for item in CATALOG.templates if item.key == "public.ecr.aws")
    auth = template_report(public)["hosts"][1]
    assert auth == {
        "name": "api.ecr-public.us-east-1.amazonaws.com",
        "role": "auth",
        "ports": [443],
        "source": "U",
        "cite": "where a push gets its token",
        "registry_only": False,
        "shared": True,
        "optional": True,
        "regional": None,
    }


def test_the_names_that_can_be_completed() -> None:
    names = set(fixed_names(CATALOG))
    assert {"docker.io", "index.docker.io", "de.icr.io"} <= names
    assert not any("{" in name for name in names)

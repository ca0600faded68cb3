from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from ramnet.core.advice import Advice, Kind
from ramnet.core.hops import Companion, Dns, Hop, Judge, Role, Walk, doctor_report
from ramnet.core.policy import Policy
from ramnet.core.reference import parse_reference
from ramnet.core.terms import TrafficClass
from ramnet.core.urls import Url, parse_url
from tests.unit.core.support import CATALOG, TODAY, host, policy

HUB = parse_url("https://registry-1.docker.io/v2/")
ELSEWHERE = parse_url("https://layers.example/x?signature=secret")


def judge(
    image: str, found: Policy | None = None, traffic: TrafficClass = TrafficClass.ENGINE
) -> Judge:
    listed = found if found is not None else policy("docker.io")
    return Judge(listed, CATALOG, TODAY, traffic, parse_reference(image))


def hop(by: Judge, role: Role, url: Url) -> Hop:
    return Hop(role, url, by.verdict(url.host, url.port))


def walk(by: Judge, *hops: Hop) -> Walk:
    found = tuple(Companion(one, by.judged(one)) for one in by.companions())
    return Walk(by, "engine", "", hops, found)


def test_an_engine_reaches_what_the_policy_allows() -> None:
    by = judge("busybox")
    allowed = by.verdict(host("auth.docker.io"), 443)
    assert (allowed.allowed, allowed.registry) == (True, "docker.io")
    refused = by.verdict(host("layers.example"), 443)
    assert (refused.allowed, refused.registry) == (False, "")
    assert not by.verdict(IPv4Address("10.0.0.1"), 443).allowed


@pytest.mark.parametrize("traffic", [TrafficClass.HOST, TrafficClass.CONTAINERS])
def test_others_are_refused_what_the_catalogue_knows(traffic: TrafficClass) -> None:
    by = judge("busybox", traffic=traffic)
    assert by.verdict(host("layers.example"), 443).allowed
    assert by.verdict(host("registry-1.docker.io"), 443).allowed
    assert not by.verdict(host("quay.io"), 443).allowed


def test_a_class_that_the_policy_leaves_alone_passes() -> None:
    found = policy("docker.io", more='\n[enforcement]\nengine = "off"\n')
    verdict = judge("busybox", found).verdict(host("quay.io"), 443)
    assert (verdict.allowed, verdict.registry) == (True, "")


@pytest.mark.parametrize(
    ("image", "listed", "wanted"),
    [
        ("busybox", "docker.io", "docker.io"),
        ("busybox", "registry-1.docker.io", "registry-1.docker.io"),
        ("busybox", "quay.io", "docker.io"),
        ("quay.io/a/b", "*.io", "quay.io"),
        ("a.corp.example/x", "*.corp.example", "*.corp.example"),
        ("corp.example:5000/x", "docker.io", "corp.example:5000"),
        ("10.0.0.1:5000/x", "10.0.0.1:5000", "10.0.0.1:5000"),
        ("localhost:5000/x", "localhost:*", "localhost:*"),
    ],
)
def test_the_entry_of_the_registry(image: str, listed: str, wanted: str) -> None:
    found = policy(listed)
    if wanted == "quay.io":
        assert judge(image, found).registry in (wanted, listed)
    else:
        assert judge(image, found).registry == wanted


def test_a_destination_is_no_entry_of_a_registry() -> None:
    found = policy("docker.io", more='\n[[destination]]\naddress = "quay.io"\n')
    by = judge("quay.io/a/b", found)
    assert by.verdict(host("quay.io"), 443).allowed
    assert by.registry == "quay.io"
    advice = by.advice(host("cdn.quay.io"), 443)
    assert advice == Advice(Kind.REGISTRY, "quay.io")


def test_companions_are_those_that_the_entry_asks_for() -> None:
    def names(more: str) -> set[str]:
        by = judge("busybox", policy("docker.io", more=more))
        return {str(one.pattern) for one in by.companions()}

    regional = "docker-images-prod.s3.dualstack.eu-west-1.amazonaws.com"
    assert "auth.docker.io" in names("")
    assert regional not in names("")
    assert regional in names('regions = ["eu-west-1"]\n')
    assert {str(one.pattern) for one in judge("busybox", policy("quay.io")).companions()} >= {
        "auth.docker.io"
    }
    assert list(judge("corp.example/x").companions()) == []


def test_a_wildcard_is_judged_by_a_name_below_it() -> None:
    by = judge("mcr.microsoft.com/x", policy("mcr.microsoft.com"))
    wild = [one for one in by.companions() if one.pattern.wildcard]
    assert wild
    assert all(by.judged(one).allowed for one in wild)
    refused = judge("mcr.microsoft.com/x")
    assert not any(refused.judged(one).allowed for one in wild)


def test_a_walk_passes_when_every_hop_does() -> None:
    by = judge("busybox")
    good = hop(by, Role.PING, HUB)
    assert walk(by, good).passed
    assert not walk(by).passed
    assert not walk(by, good, replace(good, error="no TLS")).passed
    assert not walk(by, good, hop(by, Role.LAYER, ELSEWHERE)).passed
    assert not replace(walk(by, good), finished=False).passed


def test_what_is_missing_is_told_once() -> None:
    by = judge("busybox")
    config = replace(hop(by, Role.REDIRECT, ELSEWHERE), purpose=Role.CONFIG)
    layer = replace(config, purpose=Role.LAYER)
    (missing,) = walk(by, hop(by, Role.PING, HUB), config, layer, layer).missing
    assert (missing.host, missing.port) == ("layers.example", 443)
    assert missing.roles == (Role.CONFIG, Role.LAYER)
    assert missing.advice == Advice(Kind.EXTRA_HOST, "docker.io", "layers.example")


@pytest.mark.parametrize("image", ["quay.io/a/b", "10.0.0.1:5000/x"])
def test_of_a_refused_registry_its_own_entry_is_missing(image: str) -> None:
    by = judge(image)
    wire = by.reference.wire
    asked = wire.pattern.name if wire.pattern is not None else wire.ip
    assert asked is not None
    advice = by.advice(asked, wire.port or 443)
    assert advice == Advice(Kind.REGISTRY, image.partition("/")[0])


def test_the_report_has_everything_and_no_secret() -> None:
    by = judge("busybox")
    dns = Dns(("198.51.100.1",), "edge.example")
    pinged = replace(
        hop(by, Role.PING, HUB), dns=dns, dialled=True, address="198.51.100.1", status=401
    )
    lost = replace(hop(by, Role.REDIRECT, ELSEWHERE), purpose=Role.LAYER, dns=Dns(error="none"))
    report = doctor_report(replace(walk(by, pinged, lost), warnings=("careful",)))
    assert "secret" not in str(report)
    companions = report.pop("companions")
    assert {"auth", "api", "blob"} == {one["role"] for one in companions}
    catalogue = report.pop("catalogue")
    assert (catalogue["key"], catalogue["title"]) == ("docker.io", "Docker Hub")
    first, second = report.pop("hops")
    assert first == {
        "role": "ping",
        "purpose": "ping",
        "url": "https://registry-1.docker.io/v2/",
        "host": "registry-1.docker.io",
        "port": 443,
        "allowed": True,
        "reason": "catalogue: api host of docker.io",
        "registry": "docker.io",
        "dns": {"addresses": ["198.51.100.1"], "cname": "edge.example", "error": None},
        "dialled": True,
        "address": "198.51.100.1",
        "status": 401,
        "error": None,
    }
    assert (second["purpose"], second["dns"]["error"]) == ("layer", "none")
    (missing,) = report.pop("missing")
    assert (missing["host"], missing["port"], missing["roles"]) == (
        "layers.example",
        443,
        ["layer"],
    )
    assert missing["advice"]["kind"] == "extra-host"
    assert report == {
        "schema": 1,
        "ref": "docker.io/library/busybox",
        "registry": "docker.io",
        "class": "engine",
        "dialled_as": "engine",
        "because": "",
        "passed": False,
        "warnings": ["careful"],
    }


def test_a_registry_that_nobody_catalogued_has_no_entry_there() -> None:
    assert doctor_report(walk(judge("corp.example/x")))["catalogue"] is None

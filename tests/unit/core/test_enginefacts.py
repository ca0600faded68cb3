"""Facts on their way from the helper to the daemon."""

from __future__ import annotations

import dataclasses
import json
from ipaddress import ip_network
from typing import Any, get_args

import pytest

from ramnet.core.enginefacts import (
    Api,
    ContainerDns,
    Desktop,
    DockerProxy,
    Endpoint,
    Engine,
    EngineName,
    Fact,
    FoundProxy,
    Insecure,
    Mirror,
    Named,
    Proxy,
    RootlessSetup,
    Snapshotter,
    Unit,
    Unreadable,
    Userland,
    pack,
    unpack,
)
from ramnet.core.names import parse_address

FACTS: list[Fact] = [
    Userland(enabled=False, path=None, source="f"),
    Userland(None, "/usr/bin/docker-proxy", "f"),
    FoundProxy("/opt/x", "docker.service"),
    Snapshotter("f"),
    Unreadable("f", "broken"),
    Engine(EngineName.DOCKERD, 7, 0, None, own=None, rootless=""),
    Engine(EngineName.PODMAN, 8, 1000, "a.slice/b", own=True, rootless="its user"),
    DockerProxy(9, "a"),
    Unit("docker.service", EngineName.DOCKERD, "", "f"),
    RootlessSetup("/home/u/.config", 1000),
    Desktop("a socket"),
    ContainerDns(("192.0.2.1", "2001:db8::1"), "f"),
]
ENDPOINTS = [
    Endpoint(parse_address(text), 8080)
    for text in ("proxy.example:8080", "*.example.com", "192.0.2.1", "[2001:db8::1]:443")
] + [Endpoint(None, 443)]


def test_every_kind_of_fact_is_tried_here_or_below() -> None:
    assert {type(fact) for fact in FACTS} | {Proxy, Mirror, Named, Insecure, Api} == set(
        get_args(Fact)
    )


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: type(fact).__name__)
def test_a_fact_comes_back_as_it_was(fact: Fact) -> None:
    assert unpack(json.loads(json.dumps(pack([fact])))) == (fact,)


@pytest.mark.parametrize("kind", [Proxy, Mirror, Named, Insecure, Api])
@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=str)
def test_endpoints_come_back_as_they_were(kind: type[Fact], endpoint: Endpoint) -> None:
    given: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        text = str(field.type)
        if "Endpoint" in text:
            given[field.name] = endpoint
        elif "bool" in text:
            given[field.name] = True
        elif "Network" in text:
            given[field.name] = ip_network("10.0.0.0/8")
        elif "tuple" in text:
            given[field.name] = ()
        else:
            given[field.name] = "text"
    fact = kind(**given)
    assert unpack(json.loads(json.dumps(pack([fact])))) == (fact,)


@pytest.mark.parametrize(
    "packed", [[["Nonsense", {}]], [["Unit", {}]], [["Unit", []]], [["Engine"]], ["x"]]
)
def test_what_is_no_fact_is_refused(packed: list[list[object]]) -> None:
    with pytest.raises((ValueError, KeyError)):
        unpack(packed)

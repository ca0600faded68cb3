"""The entries of a policy and the catalogue's knowledge behind a verdict."""

from __future__ import annotations

from datetime import date

import pytest

from ramnet.core import explainpolicy
from ramnet.core.explain import parse_target
from ramnet.core.explainpolicy import Background, Bearing, Rulebook, Standing, background
from ramnet.core.names import HostName
from ramnet.core.policy import Policy
from tests.unit.core.support import CATALOG, TODAY, allowed, host, policy

ENTRIES = """\
nickname = "Docker Hub"
[[registry]]
address = "quay.io"
expires = 2026-02-28
[[registry]]
address = "me.azurecr.io"
extra_hosts = ["*.blob.core.windows.net"]
[[registry]]
address = "r.example:5000"
networks = ["10.0.0.0/8"]
expires = 2026-03-01
[[registry]]
address = "localhost:*"
[[destination]]
address = "git.example:9418"
"""
POLICY = policy("docker.io", more=ENTRIES)


def behind(
    text: str, found: Policy | None = POLICY, names: tuple[HostName, ...] = (), today: date = TODAY
) -> Background:
    book = Rulebook(found, allowed(found, today), CATALOG, today)
    return background(parse_target(text), names, book)


def short(item: Bearing) -> tuple[str, int, str, str]:
    return item.table, item.number, str(item.pattern), str(item.standing)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nginx", [("registry", 1, "registry-1.docker.io", "allows")]),
        ("quay.io/a/b", [("registry", 2, "quay.io", "expired")]),
        ("cdn01.quay.io", [("registry", 2, "cdn01.quay.io", "expired")]),
        ("x.blob.core.windows.net", [("registry", 3, "*.blob.core.windows.net", "allows")]),
        ("r.example:5000", [("registry", 4, "r.example", "allows")]),
        ("r.example", [("registry", 4, "r.example", "other-port")]),
        ("10.1.2.3:5000", [("registry", 4, "10.0.0.0/8", "allows")]),
        ("10.1.2.3", [("registry", 4, "10.0.0.0/8", "other-port")]),
        (
            "localhost:5001",
            [("registry", 5, "127.0.0.0/8", "allows"), ("registry", 5, "::1/128", "allows")],
        ),
        ("git.example:9418", [("destination", 1, "git.example", "allows")]),
        ("ghcr.io", []),
        ("192.0.2.1", []),
    ],
)
def test_the_entries_that_bear_on_a_target(
    text: str, expected: list[tuple[str, int, str, str]]
) -> None:
    assert [short(item) for item in behind(text).bearings] == expected


def test_an_entry_bears_until_its_last_day_has_ended() -> None:
    (item,) = behind("r.example:5000", today=date(2026, 3, 1)).bearings
    assert item.standing is Standing.ALLOWS
    (item,) = behind("r.example:5000", today=date(2026, 3, 2)).bearings
    assert item.standing is Standing.EXPIRED


def test_an_address_is_covered_by_the_names_that_led_to_it() -> None:
    (item,) = behind("198.51.100.1", names=(host("a.example"), host("quay.io"))).bearings
    assert (short(item)[1:], item.name) == ((2, "quay.io", "expired"), "quay.io")


def test_only_a_wildcard_admits_more() -> None:
    (wide,) = behind("x.blob.core.windows.net").bearings
    assert wide.admits == (
        "*.blob.core.windows.net admits every name below blob.core.windows.net, whoever has it"
    )
    assert not any(item.admits for item in behind("nginx").bearings)
    assert not any(item.admits for item in behind("10.1.2.3").bearings)


def test_a_pattern_that_an_entry_has_twice_is_told_once() -> None:
    found = policy("r.example:*", more='extra_hosts = ["r.example"]\n')
    assert [short(item)[2] for item in behind("r.example", found).bearings] == ["r.example"]


def test_no_more_is_told_than_a_person_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    found = policy(*(f"r.example:{port}" for port in range(5000, 5100)))
    assert len(behind("r.example", found).bearings) == explainpolicy.MAX_BEARINGS
    monkeypatch.setattr(explainpolicy, "MAX_EXPIRED", 0)
    assert behind("quay.io").bearings == ()


def test_without_a_policy_only_the_catalogue_tells() -> None:
    found = behind("quay.io", None)
    assert found.bearings == ()
    assert [owner.entry.key for owner in found.owners] == ["quay.io"]
    assert found.advice is not None
    assert found.advice.command == "ramnet policy add quay.io"


def test_companions_are_what_the_registry_contacts_besides() -> None:
    found = {str(item.pattern): item.allowed for item in behind("nginx").companions}
    assert found["auth.docker.io"] is True
    assert found["registry-1.docker.io"] is True
    assert not any(item.allowed for item in behind("quay.io").companions)
    assert behind("r.example:5000").companions == ()
    assert behind("10.1.2.3").companions == ()


def test_a_companion_by_a_wildcard_is_judged_by_a_name_below_it() -> None:
    found = behind("mcr.microsoft.com", policy("mcr.microsoft.com")).companions
    wide = [item for item in found if item.pattern.wildcard]
    assert wide
    assert all(item.allowed for item in wide)


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("nginx", None),
        ("quay.io", "ramnet policy add quay.io"),
        ("cdn01.quay.io", "ramnet policy add quay.io"),
        ("r.example", "ramnet policy add r.example"),
        ("r.example:5001", "ramnet policy add r.example:5001"),
        ("quay.io:8443", "ramnet policy add quay.io:8443"),
        ("unknown.example/a", "ramnet policy add unknown.example"),
        ("192.0.2.1", None),
        # Whose account it is, the host does not tell.
        ("api.ecr.eu-west-1.amazonaws.com", None),
    ],
)
def test_what_would_allow_it(text: str, command: str | None) -> None:
    advice = behind(text).advice
    assert (advice.command if advice is not None else None) == command


def test_a_host_of_another_region_wants_that_region() -> None:
    advice = behind("docker-images-prod.s3.dualstack.eu-west-1.amazonaws.com").advice
    assert advice is not None
    assert advice.command == "ramnet policy add docker.io --region eu-west-1"

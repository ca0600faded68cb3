"""What one policy changes against another, as people and tools are told."""

from __future__ import annotations

import pytest

from ramnet.core.policy import Policy, parse_policy
from ramnet.core.policydiff import policy_diff

BEFORE = """
version = 1
organization = "acme"

[[registry]]
address = "docker.io"
nickname = "Hub"

[[registry]]
address = "r.example:5000"
extra_hosts = ["a.example", "b.example"]
expires = 2027-01-31

[[destination]]
address = "github.com"
ports = [443, 22]

[[destination]]
address = "twice.example"

[[destination]]
address = "twice.example"
ports = [1]
"""


def read(text: str) -> Policy:
    return parse_policy(text, source="p.toml", ramnet_version="0.1")


def diff(before: str, after: str) -> list[str]:
    return [str(change) for change in policy_diff(read(before), read(after))]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"acme"', '"ACME"', ['~ setting organization: from "acme" to "ACME"']),
        ('nickname = "Hub"', "", ['~ registry docker.io: nickname "Hub" -> none']),
        ('"Hub"', '"hub"', ['~ registry docker.io: nickname "Hub" -> "hub"']),
        (
            'nickname = "Hub"',
            "unverified_hosts = true",
            ['~ registry docker.io: nickname "Hub" -> none; unverified_hosts true'],
        ),
        (
            '"a.example", "b.example"',
            '"c.example", "b.example"',
            ["~ registry r.example:5000: extra_hosts +c.example -a.example"],
        ),
        (
            '"a.example", "b.example"',
            '"b.example", "a.example"',
            ["~ registry r.example:5000: extra_hosts in another order"],
        ),
        (
            "2027-01-31",
            "2028-01-31",
            ['~ registry r.example:5000: expires "2027-01-31" -> "2028-01-31"'],
        ),
        ("443, 22", "22, 443, 22", []),
        ("443, 22", "22", ["~ destination github.com: ports -443"]),
        ("ports = [1]", "ports = [2]", ["~ destination twice.example: 2 entries, now 2"]),
    ],
)
def test_what_is_told_of_a_change(old: str, new: str, told: list[str]) -> None:
    assert diff(BEFORE, BEFORE.replace(old, new, 1)) == told


def test_what_comes_and_goes() -> None:
    more = '[[registry]]\naddress = "quay.io"\nregions = ["eu-west-1"]\nreason = "asked"\n'
    more += '[[registry]]\naddress = "q.example"\n'
    added = diff(BEFORE, BEFORE + more)
    assert added == [
        '+ registry quay.io: regions +eu-west-1; reason "asked"',
        "+ registry q.example",
    ]
    assert diff(BEFORE + more, BEFORE) == ["- registry quay.io", "- registry q.example"]
    twice = '[[destination]]\naddress = "x.example"\n' * 2
    assert diff(BEFORE, BEFORE + twice) == ["+ destination x.example"]


def test_a_long_value_is_cut() -> None:
    hosts = ", ".join(f'"h{number}.example"' for number in range(100))
    (told,) = diff(BEFORE, BEFORE.replace('"a.example"', hosts))
    assert told.endswith("...")
    assert len(told) < 300


def test_a_change_as_json() -> None:
    (change,) = policy_diff(read(BEFORE), read(BEFORE.replace('"Hub"', '"hub"')))
    assert change.plain == {
        "kind": "registry",
        "change": "updated",
        "name": "docker.io",
        "details": ['nickname "Hub" -> "hub"'],
    }

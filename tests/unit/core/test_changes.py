"""What a new policy changes is recorded entry by entry."""

from __future__ import annotations

import pytest

from ramnet import __version__
from ramnet.core.activity import NameFrom, Verdict
from ramnet.core.changes import MAX_CHANGES, policy_changes
from ramnet.core.policy import Policy, parse_policy

NOON = 1_800_000_000.0
BEFORE = """
version = 1
organization = "acme"

[[registry]]
address = "docker.io"

[[registry]]
address = "r.example:5000"
extra_hosts = ["a.example", "b.example"]

[[destination]]
address = "github.com"
ports = [443, 22]
"""


def read(text: str) -> Policy:
    return parse_policy(text, source="p.toml", ramnet_version=__version__)


def changes(before: str | None, after: str) -> list[tuple[str, str]]:
    old = read(before) if before is not None else None
    found = policy_changes(old, read(after), "/etc/p.toml", "sha256:0", NOON)
    for record in found:
        assert (record.verdict, record.first) == (Verdict.POLICY, NOON)
        assert (record.file, record.digest) == ("/etc/p.toml", "sha256:0")
        assert record.name_from is (NameFrom.POLICY if record.name else None)
    return [(record.name, record.why) for record in found]


def test_at_the_start_it_is_said_what_is_in_force() -> None:
    assert changes(None, BEFORE) == [("", "read at the start: 2 registries, mode enforce")]


def test_what_was_added() -> None:
    after = BEFORE + '[[registry]]\naddress = "quay.io"\n[[destination]]\naddress = "e.example"\n'
    assert changes(BEFORE, after) == [
        ("quay.io", "registry added"),
        ("e.example", "destination added"),
    ]
    assert changes(after, BEFORE) == [
        ("quay.io", "registry removed"),
        ("e.example", "destination removed"),
    ]


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ('"docker.io"', '"docker.io"\nexpires = 2027-01-31', ("docker.io", "registry updated")),
        ('"b.example"', '"c.example"', ("r.example:5000", "registry updated")),
        ("[443, 22]", "[443]", ("github.com", "destination updated")),
    ],
)
def test_what_was_updated(old: str, new: str, what: tuple[str, str]) -> None:
    assert changes(BEFORE, BEFORE.replace(old, new)) == [what]


def test_another_port_is_another_registry() -> None:
    assert changes(BEFORE, BEFORE.replace(":5000", ":5001")) == [
        ("r.example:5001", "registry added"),
        ("r.example:5000", "registry removed"),
    ]


@pytest.mark.parametrize(
    "after",
    [
        BEFORE,
        BEFORE.replace("docker.io", "DOCKER.io"),
        BEFORE.replace("[443, 22]", "[22, 443]"),
        BEFORE + '\n[enforcement]\nmode = "enforce"\n',
        BEFORE + "\n# a comment\n",
    ],
)
def test_what_is_written_otherwise_is_no_change(after: str) -> None:
    assert changes(BEFORE, after) == []


def test_the_order_of_entries_is_no_change() -> None:
    head, first, second = BEFORE.partition("[[destination]]")[0].split("[[registry]]")
    rest = BEFORE.partition("[[destination]]")[2]
    moved = f"{head}[[registry]]{second}[[registry]]{first}[[destination]]{rest}"
    assert changes(BEFORE, moved) == []


def test_settings_come_with_what_they_were() -> None:
    after = BEFORE.replace('"acme"', '"Acme"')
    after += '[enforcement]\nmode = "audit"\nengine = "catalog"\n[support]\ncontact = "it@acme"\n'
    assert set(changes(BEFORE, after)) == {
        ("", 'organization changed from "acme" to "Acme"'),
        ("", 'enforcement.mode changed from "enforce" to "audit"'),
        ("", 'enforcement.engine changed from "strict" to "catalog"'),
        ("", 'support.contact changed from null to "it@acme"'),
    }
    assert ("", 'support.contact changed from "it@acme" to null') in changes(after, BEFORE)


def test_a_destination_may_be_listed_twice() -> None:
    again = BEFORE + '[[destination]]\naddress = "github.com"\nports = [80]\n'
    assert changes(BEFORE, again) == [("github.com", "destination updated")]
    assert changes(again, again) == []


def test_many_changes_are_told_as_a_number() -> None:
    more = "".join(f'[[registry]]\naddress = "r{n}.example"\n' for n in range(MAX_CHANGES + 50))
    found = changes(BEFORE, BEFORE + more + '[enforcement]\nmode = "audit"\n')
    assert len(found) == MAX_CHANGES + 1
    assert found[0] == ("", 'enforcement.mode changed from "enforce" to "audit"')
    assert found[-1] == ("", "51 more changes")

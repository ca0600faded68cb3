"""Suggestions: TOML that makes a policy allow what was refused, and nothing that it allows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ramnet import __version__
from ramnet.core.activity import NameFrom, Record, Verdict
from ramnet.core.names import HostName
from ramnet.core.policy import Policy, initial_policy_text, parse_policy
from ramnet.core.suggest import MAX_ENTRIES, suggest
from ramnet.core.terms import TrafficClass
from tests.unit.core.support import CATALOG, TODAY, allowed

NOON = 1_800_000_000.0
FIRST = initial_policy_text("acme")
NOTHING = "# Nothing was refused that this policy does not allow by now.\n"


def read(text: str) -> Policy:
    return parse_policy(text, source="p.toml", ramnet_version=__version__)


def denied(name: str, port: int | None = 443, *, count: int = 1) -> Record:
    return Record(
        Verdict.WOULD_DENY,
        NOON,
        NOON,
        TrafficClass.ENGINE,
        name=name,
        name_from=NameFrom.SNI if name else None,
        address="198.51.100.7",
        port=port,
        protocol="tcp",
        why="the policy does not allow it",
        count=count,
    )


def both(*records: Record, policy: str = FIRST) -> tuple[str, Policy]:
    """The suggestion, and the policy with it."""
    text = suggest(records, read(policy), CATALOG, TODAY)
    return text, read(f"{policy}\n{text}")


def registries(policy: Policy) -> list[str]:
    return [str(entry.address) for entry in policy.registry]


def test_a_catalogued_host_becomes_its_registry() -> None:
    text, policy = both(denied("quay.io"), denied("quay.io", count=2))
    assert registries(policy) == ["docker.io", "quay.io"]
    assert "# 3 times by engine\n[[registry]]" in text
    assert policy.registry[1].nickname
    assert suggest([denied("quay.io")], policy, CATALOG, TODAY) == NOTHING


def test_hosts_of_one_registry_make_one_entry() -> None:
    _, policy = both(denied("mcr.microsoft.com"), denied("ghcr.io"), denied("ghcr.io", 443))
    assert registries(policy) == ["docker.io", "ghcr.io", "mcr.microsoft.com"]


def test_a_registry_of_an_account() -> None:
    name = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
    _, policy = both(denied(name))
    assert registries(policy)[1:] == [name]


def test_an_unknown_name_with_its_port() -> None:
    _, policy = both(denied("r.corp.example"), denied("r.corp.example", 5000), denied("localhost"))
    assert registries(policy)[1:] == ["localhost", "r.corp.example", "r.corp.example:5000"]
    assert allowed(policy).ports_of(HostName("r.corp.example")) == {443, 5000}


@pytest.mark.parametrize("name", ["registry-1.docker.io", "auth.docker.io", "REGISTRY-1.docker.io"])
def test_what_the_policy_allows_is_left_out(name: str) -> None:
    assert both(denied(name))[0] == NOTHING


def test_containers_are_allowed_registries_only() -> None:
    policy = FIRST + '[[destination]]\naddress = "git.example"\n'
    engine = denied("git.example")
    container = replace(engine, traffic=TrafficClass.CONTAINERS)
    assert both(engine, policy=policy)[0] == NOTHING
    assert registries(both(container, policy=policy)[1])[1:] == ["git.example"]


def test_a_blocked_answer_has_no_port() -> None:
    record = replace(denied("quay.io", None), address="", protocol="dns")
    assert registries(both(record)[1]) == ["docker.io", "quay.io"]
    known = replace(record, name="registry-1.docker.io")
    assert both(known)[0] == NOTHING


def test_an_address_without_a_name_is_a_comment() -> None:
    text, policy = both(denied("", 5000, count=4))
    assert registries(policy) == ["docker.io"]
    assert "# 198.51.100.7:5000  4 times by engine\n" in text
    listed = FIRST + '[[registry]]\naddress = "r.example:5000"\nnetworks = ["198.51.100.0/24"]\n'
    assert both(denied("", 5000), policy=listed)[0] == NOTHING
    six = replace(denied("", 5000), address="2001:db8::1")
    assert "# [2001:db8::1]:5000  once by engine\n" in both(six)[0]


def test_udp_is_a_comment() -> None:
    text, policy = both(replace(denied("time.example", 123), protocol="udp"))
    assert registries(policy) == ["docker.io"]
    assert "# time.example:123  once by engine" in text


def test_a_name_that_was_only_heard_says_so() -> None:
    heard = replace(denied("a.example"), name_from=NameFrom.DNS)
    assert "the name was only heard in DNS" in both(heard)[0]
    assert "only heard" not in both(heard, denied("a.example"))[0], "the client said it too"


def test_an_expired_entry_is_not_listed_twice() -> None:
    policy = FIRST + '[[registry]]\naddress = "quay.io"\nexpires = 2020-01-31\n'
    text, after = both(denied("quay.io"), policy=policy)
    assert registries(after) == ["docker.io", "quay.io"]
    assert "# quay.io was asked for once by engine; it is listed above and has expired" in text


@pytest.mark.parametrize(
    "record",
    [
        replace(denied("quay.io"), verdict=Verdict.FAILED),
        replace(denied("quay.io"), verdict=Verdict.POLICY),
        replace(denied("quay.io"), count=0, left_out=5),
        replace(denied(""), address="nowhere"),
        replace(denied('x"]\n[enforcement'), address=""),
        replace(denied(""), address=""),
    ],
)
def test_what_asks_for_nothing(record: Record) -> None:
    assert both(record)[0] == NOTHING


def test_what_was_asked_for_most_comes_first_and_all_is_bounded() -> None:
    records = [denied(f"r{n}.example", count=n + 1) for n in range(MAX_ENTRIES + 20)]
    _, policy = both(*records)
    found = registries(policy)[1:]
    assert len(found) == MAX_ENTRIES
    assert found[0] == f"r{MAX_ENTRIES + 19}.example"


def test_classes_are_told() -> None:
    host = replace(denied("a.example"), traffic=TrafficClass.HOST)
    text, _ = both(host, denied("a.example"), replace(host, traffic=None))
    assert "# 3 times by engine, host, unknown\n" in text

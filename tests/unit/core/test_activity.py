"""Records, their JSON form, and the ledger that decides what is written."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from ramnet.core.activity import (
    BURST,
    MAX_TEXT,
    PER_SECOND,
    TELL_SECONDS,
    WINDOW_SECONDS,
    Ledger,
    NameFrom,
    Record,
    Seen,
    Verdict,
    journal_fields,
    plain_record,
    record_of,
    seen_of,
)
from ramnet.core.terms import TrafficClass

NOON = 1_800_000_000.0
ENGINE = Record(
    Verdict.DENIED,
    NOON,
    NOON,
    TrafficClass.ENGINE,
    uid=0,
    source="192.0.2.10",
    cgroup="ramnetengines.slice",
    name="quay.io",
    name_from=NameFrom.SNI,
    address="198.51.100.7",
    port=443,
    protocol="tcp",
    why="the policy does not allow it",
)
CONTAINER = Record(
    Verdict.WOULD_DENY,
    NOON,
    NOON + 5,
    TrafficClass.CONTAINERS,
    source="172.17.0.2",
    interface="docker0",
    address="2001:db8::7",
    port=5000,
    protocol="tcp",
    why="a registry",
    count=3,
)
POLICY = Record(
    Verdict.POLICY,
    NOON,
    NOON,
    name="ghcr.io",
    name_from=NameFrom.POLICY,
    why="registry added",
    file="/etc/ramnet/policy.toml",
    digest="sha256:00",
)
KEYS = {
    *("schema", "time", "last", "verdict", "class", "uid", "source", "interface", "cgroup"),
    *("name", "name_from", "heard", "address", "port", "protocol", "why", "count"),
    *("file", "digest", "left_out"),
}


def _odd(*values: object) -> tuple[object, ...]:
    return values


# The JSON form


@pytest.mark.parametrize("record", [ENGINE, CONTAINER, POLICY])
def test_a_record_comes_back_from_its_json(record: Record) -> None:
    plain = plain_record(record)
    assert set(plain) == KEYS
    assert record_of(json.loads(json.dumps(plain))) == record


def test_the_values_of_json() -> None:
    plain = plain_record(ENGINE)
    assert plain["schema"] == 1
    assert plain["time"] == plain["last"] == "2027-01-15T08:00:00.000+00:00"
    assert (plain["verdict"], plain["class"], plain["name_from"]) == ("denied", "engine", "sni")
    assert (plain["heard"], plain["count"], plain["left_out"]) == (False, 1, 0)
    blank = plain_record(Record(Verdict.FAILED, NOON, NOON))
    assert (blank["class"], blank["uid"], blank["name"], blank["port"]) == (None,) * 4


def test_a_name_that_was_only_heard_says_so() -> None:
    heard = replace(ENGINE, name_from=NameFrom.DNS)
    assert plain_record(heard)["heard"] is True
    assert "heard" in heard.what
    assert "heard" not in ENGINE.what


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("schema", odd) for odd in _odd(2, None, "1")),
        *(("verdict", odd) for odd in _odd("allowed", None, 1, [], {})),
        *(("class", odd) for odd in _odd("engines", 1, [])),
        *(("name_from", odd) for odd in _odd("mouth", 7)),
        *(("time", odd) for odd in _odd("noon", None, 5, "2027-01-15T08:00:00", "9" * 99)),
        *(("count", odd) for odd in _odd(-1, None, "1", 1.5, 2**60)),
        ("count", True),
        ("left_out", -1),
    ],
)
def test_what_is_no_record(key: str, value: object) -> None:
    assert record_of(plain_record(ENGINE)) is not None
    assert record_of({**plain_record(ENGINE), key: value}) is None


@pytest.mark.parametrize("plain", [None, [], "x", 1, {}])
def test_what_is_no_object_is_no_record(plain: object) -> None:
    assert record_of(plain) is None


def test_what_does_not_matter_is_made_good() -> None:
    odd = {**plain_record(ENGINE), "port": 70_000, "uid": -1, "why": "x" * 9_999, "name": 5}
    found = record_of({**odd, "unknown": 1})
    assert found is not None
    assert (found.port, found.uid, found.name) == (None, None, "")
    assert len(found.why) == MAX_TEXT


def test_a_record_in_words() -> None:
    assert ENGINE.sentence == (
        "denied engine quay.io:443 at 198.51.100.7 by ramnetengines.slice, uid 0:"
        " the policy does not allow it"
    )
    assert CONTAINER.sentence == (
        "would-deny containers [2001:db8::7]:5000 by 172.17.0.2 on docker0: a registry (3 times)"
    )
    assert POLICY.sentence == "policy ghcr.io: registry added"


def test_the_fields_of_the_journal() -> None:
    fields = journal_fields(ENGINE)
    assert fields["MESSAGE"] == ENGINE.sentence
    assert fields["SYSLOG_IDENTIFIER"] == "ramnet"
    assert (fields["RAMNET_VERDICT"], fields["RAMNET_CLASS"]) == ("denied", "engine")
    assert (fields["RAMNET_NAME"], fields["RAMNET_PORT"]) == ("quay.io", "443")
    assert "RAMNET_DIGEST" not in fields
    assert all(name.replace("_", "").isupper() for name in fields)


# What the responder tells

SEEN: dict[str, Any] = {
    "name": "Quay.io",
    "from": "sni",
    "address": "198.51.100.7",
    "port": 443,
    "source": "::ffff:10.0.0.5",
    "source_port": 40_000,
}


def test_what_the_notice_saw() -> None:
    address, source = IPv4Address("198.51.100.7"), IPv4Address("10.0.0.5")
    assert seen_of(SEEN) == Seen("quay.io", NameFrom.SNI, address, 443, source, 40_000)
    found = seen_of({**SEEN, "name": "", "from": "host", "address": "2001:db8::1"})
    assert found is not None
    assert (found.name, found.address) == ("", IPv6Address("2001:db8::1"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("name", odd) for odd in _odd("a b", "x" * 999, 5, ["a"], "1.2.3.4", "a\nb", "\x1b[2J")),
        *(("from", odd) for odd in _odd("dns", "lease", "policy", None, 3, "")),
        *(("address", odd) for odd in _odd("quay.io", 5, None, "", "198.51.100.7%eth0")),
        *(("port", odd) for odd in _odd(0, 65_536, -1, "443", None, 1.0)),
        ("port", True),
        ("source", "nobody"),
        ("source_port", None),
    ],
)
def test_what_the_notice_cannot_have_seen(key: str, value: object) -> None:
    assert seen_of({**SEEN, key: value}) is None


@pytest.mark.parametrize("plain", [None, [], "x", {}, 5])
def test_what_is_no_object_was_not_seen(plain: object) -> None:
    assert seen_of(plain) is None


# The ledger


def test_the_first_is_written_at_once_and_the_rest_counted() -> None:
    ledger = Ledger()
    assert ledger.add(ENGINE, 0.0) == ENGINE
    for second in range(1, 60):
        again = replace(ENGINE, first=NOON + second, last=NOON + second)
        assert ledger.add(again, float(second)) is None
    assert ledger.due(WINDOW_SECONDS - 0.1) == []
    (told,) = ledger.due(WINDOW_SECONDS)
    assert told == replace(ENGINE, first=NOON + 1, last=NOON + 59, count=59)
    assert (ledger.due(500.0), len(ledger)) == ([], 0)
    assert ledger.add(ENGINE, 501.0) == ENGINE, "a new window"


def test_a_window_that_nobody_closed_is_closed_by_the_next() -> None:
    ledger = Ledger()
    ledger.add(ENGINE, 0.0)
    ledger.add(ENGINE, 1.0)
    assert ledger.add(ENGINE, 100.0) == replace(ENGINE, count=2)


@pytest.mark.parametrize(
    "other",
    [
        replace(ENGINE, verdict=Verdict.WOULD_DENY),
        replace(ENGINE, traffic=TrafficClass.HOST),
        replace(ENGINE, uid=1),
        replace(ENGINE, source="192.0.2.11"),
        replace(ENGINE, name="ghcr.io"),
        replace(ENGINE, address="198.51.100.8"),
        replace(ENGINE, port=80),
        replace(ENGINE, why="something else"),
        replace(ENGINE, digest="sha256:11"),
    ],
)
def test_what_is_not_the_same(other: Record) -> None:
    ledger = Ledger()
    assert ledger.add(ENGINE, 0.0) == ENGINE
    assert ledger.add(other, 0.0) == other


def flood(ledger: Ledger, count: int, now: float, like: Record = ENGINE) -> list[Record]:
    added = (ledger.add(replace(like, address=f"a{now}-{n}"), now) for n in range(count))
    return [record for record in added if record is not None]


def test_a_flood_is_cut_and_its_number_recorded() -> None:
    ledger = Ledger()
    assert len(flood(ledger, 1_000, 0.0)) == BURST
    (told,) = ledger.due(0.1)
    assert (told.left_out, told.count) == (1_000 - BURST, 0)
    assert (told.verdict, told.traffic) == (Verdict.DENIED, TrafficClass.ENGINE)
    assert "700 more were left out" in told.why
    assert len(flood(ledger, 1_000, 10.0)) == 10 * PER_SECOND
    assert [one for one in ledger.due(TELL_SECONDS) if one.left_out] == []
    (again,) = (one for one in ledger.due(TELL_SECONDS + 0.2) if one.left_out)
    assert again.left_out == 1_000 - 10 * PER_SECOND


def test_a_flood_hides_nothing_of_another_class_or_verdict() -> None:
    ledger = Ledger()
    flood(ledger, 1_000, 0.0, CONTAINER)
    assert ledger.add(CONTAINER, 0.0) is None
    assert ledger.add(ENGINE, 0.0) == ENGINE
    assert ledger.add(POLICY, 0.0) == POLICY
    assert ledger.add(replace(CONTAINER, verdict=Verdict.DENIED), 0.0) is not None


def test_windows_are_bounded_by_what_was_written() -> None:
    ledger = Ledger()
    for second in range(200):
        flood(ledger, 100, float(second))
        ledger.due(float(second))
    assert len(ledger) <= BURST + (WINDOW_SECONDS + 1) * PER_SECOND


def test_nothing_is_lost_at_the_end() -> None:
    ledger = Ledger()
    told = flood(ledger, 500, 0.0)
    told += [one for one in (ledger.add(CONTAINER, 0.0), ledger.add(CONTAINER, 1.0)) if one]
    told += ledger.close()
    assert sum(record.count + record.left_out for record in told) == 500 + 2 * CONTAINER.count
    assert (ledger.close(), len(ledger)) == ([], 0)

"""Records, ledger, pairing and suggestions against input of any kind."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ramnet.core.activity import (
    MAX_TEXT,
    REFUSALS,
    Ledger,
    NameFrom,
    Record,
    RefusalCopy,
    Seen,
    Verdict,
    journal_fields,
    plain_record,
    record_of,
    seen_of,
)
from ramnet.core.heard import HeardNames
from ramnet.core.pairing import Pairing, answered, refused
from ramnet.core.policy import initial_policy_text, parse_policy
from ramnet.core.suggest import suggest
from ramnet.core.terms import TrafficClass
from ramnet.host.journal import datagram
from tests.unit.core.support import CATALOG, CLIENT, SERVER, TODAY, ip, reply, udp

TEXT = st.text(max_size=MAX_TEXT)
# Whole milliseconds, which is what a record keeps.
TIMES = st.integers(0, 4_000_000_000_000).map(lambda n: n / 1_000)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(
    ["", "quay.io", "a.example", "registry-1.docker.io", "a b", "*.x", "1.2.3.4", '"', "x\n[y]"]
)
RECORDS = st.builds(
    Record,
    verdict=st.sampled_from(Verdict),
    first=TIMES,
    last=TIMES,
    traffic=st.none() | st.sampled_from(TrafficClass),
    uid=st.none() | st.integers(0, 2**32 - 1),
    source=TEXT,
    interface=TEXT,
    cgroup=TEXT,
    name=TEXT,
    name_from=st.none() | st.sampled_from(NameFrom),
    address=TEXT,
    port=st.none() | st.integers(0, 65_535),
    protocol=TEXT,
    why=TEXT,
    count=st.integers(0, 2**53),
    file=TEXT,
    digest=TEXT,
    left_out=st.integers(0, 2**53),
)
# Few different ones, so that they meet.
FEW = st.builds(
    Record,
    verdict=st.sampled_from(Verdict),
    first=st.just(1.0),
    last=st.just(1.0),
    traffic=st.sampled_from(TrafficClass),
    name=NAMES,
    address=st.sampled_from(["", "198.51.100.7", "2001:db8::7", "x"]),
    port=st.none() | st.sampled_from([80, 443, 5000]),
    protocol=st.sampled_from(["tcp", "udp", "dns", ""]),
    count=st.integers(1, 5),
)


@given(RECORDS)
def test_a_record_comes_back_from_json_as_it_was(record: Record) -> None:
    found = record_of(json.loads(json.dumps(plain_record(record))))
    assert found == record


@given(RECORDS, st.sampled_from(sorted(plain_record(Record(Verdict.DENIED, 0, 0)))), VALUES)
def test_a_record_with_anything_in_it_is_read_or_is_none(
    record: Record, key: str, value: Any
) -> None:
    found = record_of({**plain_record(record), key: value})
    assert found is None or record_of(plain_record(found)) == found


@given(VALUES)
def test_any_value_is_a_record_or_none(value: Any) -> None:
    assert record_of(value) is None


@given(st.dictionaries(st.sampled_from(["name", "from", "address", "port", "source"]), VALUES))
def test_the_responder_may_say_anything(more: dict[str, Any]) -> None:
    plain = {"name": "quay.io", "from": "sni", "address": "192.0.2.9", "port": 443}
    plain |= {"source": "10.0.0.5", "source_port": 40_000}
    found = seen_of({**plain, **more})
    if found is not None:
        assert len(found.name) <= 253
        assert found.name.isascii()
        assert found.name == "" or found.name.isprintable()


@given(RECORDS)
def test_no_text_of_a_record_begins_a_field_of_the_journal(record: Record) -> None:
    fields = journal_fields(record)
    data, names = datagram(fields), []
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, _ = line.partition(b"=")
        if not equals:
            rest = rest[8 + int.from_bytes(rest[:8], "little") + 1 :]
        names.append(name.decode())
        data = rest
    assert names == list(fields)


@given(st.lists(st.tuples(FEW, st.floats(0, 40)), max_size=60))
def test_the_ledger_loses_nothing(told: list[tuple[Record, float]]) -> None:
    ledger = Ledger()
    written: list[Record] = []
    now = 0.0
    for record, later in told:
        now += later
        added = ledger.add(record, now)
        written += [added] if added is not None else []
        written += ledger.due(now)
    written += ledger.close()
    wanted: Counter[Verdict] = Counter()
    found: Counter[Verdict] = Counter()
    for record, _ in told:
        wanted[record.verdict] += record.count
    for record in written:
        found[record.verdict] += record.count + record.left_out
    assert found == wanted


ENDS = st.tuples(st.just(CLIENT), st.integers(1, 3), st.just(SERVER), st.integers(1, 2))


@given(st.lists(st.tuples(ENDS, st.booleans(), st.floats(0, 1)), max_size=40))
def test_pairing_gives_every_refusal_once_and_nothing_else(
    steps: list[tuple[tuple[Any, int, Any, int], bool, float]],
) -> None:
    pairing = Pairing()
    found: list[Record] = []
    refusals = 0
    now = 0.0
    for ends, refusal, later in steps:
        now += later
        if refusal:
            refusals += 1
            given_back = pairing.refusal(Record(Verdict.DENIED, now, now), ends, now)
        else:
            seen = Seen("a.example", NameFrom.SNI, ends[2], ends[3], ends[0], ends[1])
            given_back = pairing.seen(seen, now)
        found += [given_back] if given_back is not None else []
        found += pairing.due(now)
    found += pairing.close()
    assert sum(record.count for record in found) == refusals


@given(st.binary(max_size=200))
def test_a_copy_of_any_bytes_is_a_record(packet: bytes) -> None:
    copy = RefusalCopy(Verdict.DENIED, TrafficClass.HOST, packet)
    record, _ = refused(copy, 1.0)
    assert record_of(plain_record(record)) == record
    assert answered("a.example", packet, 1.0, Verdict.DENIED, forwarded=True).count == 1


@given(st.lists(st.binary(max_size=120), max_size=20), st.binary(max_size=60), st.integers(0, 80))
def test_no_answer_hides_another(packets: list[bytes], tail: bytes, cut: int) -> None:
    good = udp(SERVER, 53, CLIENT, 40_000, reply("a.example", "198.51.100.7"))
    heard = HeardNames()
    for packet in packets:
        heard.heard(packet)
    heard.heard(good)
    heard.heard(good[:cut] + tail)
    assert "a.example" in heard.names_of(ip("198.51.100.7"))


POLICIES = st.lists(
    st.sampled_from(["quay.io", "a.example", "localhost:*", "198.51.100.7", "*.example"]),
    unique=True,
)


@given(st.lists(FEW, max_size=12), POLICIES)
def test_a_suggestion_can_be_appended_and_then_there_is_none(
    records: list[Record], listed: list[str]
) -> None:
    text = initial_policy_text("acme")
    text += "".join(f'[[registry]]\naddress = "{address}"\n' for address in listed)

    def read(toml: str) -> Any:
        return parse_policy(toml, source="p.toml", ramnet_version="1")

    suggested = suggest(records, read(text), CATALOG, TODAY)
    whole = read(text + suggested)
    again = suggest(records, whole, CATALOG, TODAY)
    assert "[[registry]]\n" not in again
    kept = [
        replace(record, verdict=Verdict.DENIED) for record in records if record.verdict in REFUSALS
    ]
    assert suggest(kept, read(text), CATALOG, TODAY) == suggested

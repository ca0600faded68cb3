"""From what the daemon tells to what is in the store."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from ramnet.core.activity import Addr, NameFrom, Record, RefusalCopy, Seen, Verdict
from ramnet.core.pairing import PAIR_SECONDS
from ramnet.core.terms import TrafficClass
from ramnet.host import recorder as module
from ramnet.host.activity import Reader, store_path
from ramnet.host.journal import Journal
from ramnet.host.recorder import MAX_WAITING, Recorder
from tests.unit.core.support import CLIENT, SERVER, policy, reply, syn, udp

TARGET = IPv4Address("198.51.100.7")
OTHER = IPv4Address("198.51.100.8")


class Clock:
    """Seconds of CLOCK_MONOTONIC as the test wants them."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_800_000_000.0 + self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


class World:
    """A recorder and what it said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told: list[str] = []
        self.known: dict[Addr, tuple[str, NameFrom]] = {}
        self.recorder = Recorder(
            str(folder), self.told.append, self.names, journal=Journal(str(folder / "none"))
        )

    def names(self, address: Addr, _port: int | None) -> Iterator[tuple[str, NameFrom]]:
        if address in self.known:
            yield self.known[address]

    def records(self) -> list[Record]:
        self.recorder.flush()
        with Reader(str(self.folder)) as reader:
            return list(reader.read())


@pytest.fixture
def world(tmp_path: Path, clock: Clock) -> Iterator[World]:
    assert clock.now
    made = World(tmp_path)
    yield made
    made.recorder.close()


def copy(
    target: Addr = TARGET,
    traffic: TrafficClass = TrafficClass.ENGINE,
    *,
    verdict: Verdict = Verdict.DENIED,
    source_port: int = 40_000,
) -> RefusalCopy:
    return RefusalCopy(verdict, traffic, syn(CLIENT, target, source_port=source_port), 0, 0)


def saw(name: str = "quay.io", source_port: int = 40_000) -> Seen:
    return Seen(name, NameFrom.SNI, TARGET, 443, CLIENT, source_port)


def test_a_refusal_is_recorded_with_who_what_and_why(world: World) -> None:
    world.recorder.cgroup = "ramnetengines.slice"
    world.recorder.refused(copy())
    (record,) = world.records()
    assert (record.verdict, record.traffic, record.uid) == (Verdict.DENIED, "engine", 0)
    assert (record.address, record.port, record.name) == (str(TARGET), 443, "")
    assert record.cgroup == "ramnetengines.slice"
    assert record.why == "the policy does not allow it"


def test_only_engines_are_in_the_engines_cgroup(world: World) -> None:
    world.recorder.cgroup = "ramnetengines.slice"
    world.recorder.refused(copy(traffic=TrafficClass.HOST))
    assert world.records()[0].cgroup == ""


def test_the_name_of_the_notice_wins(world: World) -> None:
    world.recorder.noticed = True
    world.known[TARGET] = "lease.example", NameFrom.LEASE
    world.recorder.refused(copy())
    assert world.records() == [], "it waits for the name"
    world.recorder.seen(saw())
    (record,) = world.records()
    assert (record.name, record.name_from) == ("quay.io", NameFrom.SNI)


def test_a_lease_wins_over_what_was_heard(world: World) -> None:
    world.recorder.heard(udp(SERVER, 53, CLIENT, 4_000, reply("h.example", str(TARGET))))
    world.known[TARGET] = "lease.example", NameFrom.LEASE
    world.recorder.refused(copy())
    (record,) = world.records()
    assert (record.name, record.name_from) == ("lease.example", NameFrom.LEASE)


def test_else_it_is_what_was_heard(world: World) -> None:
    world.recorder.heard(udp(SERVER, 53, CLIENT, 4_000, reply("h.example", str(TARGET))))
    world.recorder.refused(copy())
    (record,) = world.records()
    assert (record.name, record.name_from) == ("h.example", NameFrom.DNS)


def test_a_notice_that_saw_nothing_holds_no_record_back_for_long(
    world: World, clock: Clock
) -> None:
    world.recorder.noticed = True
    world.recorder.refused(copy())
    assert world.records() == []
    clock.now += PAIR_SECONDS
    (record,) = world.records()
    assert record.name == ""


@pytest.mark.parametrize(
    "refusal",
    [copy(traffic=TrafficClass.CONTAINERS), copy(verdict=Verdict.WOULD_DENY)],
)
def test_what_no_notice_sees_does_not_wait(world: World, refusal: RefusalCopy) -> None:
    world.recorder.noticed = True
    world.recorder.refused(refusal)
    assert len(world.records()) == 1


def test_what_the_notice_saw_alone_is_no_record(world: World, clock: Clock) -> None:
    world.recorder.noticed = True
    world.recorder.seen(saw("liar.example"))
    clock.now += 100
    assert world.records() == []


def test_the_same_is_counted(world: World, clock: Clock) -> None:
    for number in range(50):
        world.recorder.refused(copy(source_port=40_000 + number))
    assert [record.count for record in world.records()] == [1]
    clock.now += 61
    assert [record.count for record in world.records()] == [1, 49]


def test_a_changed_answer(world: World) -> None:
    packet = udp(SERVER, 53, CLIENT, 4_000, reply("quay.io", str(TARGET)))
    world.recorder.blocked("quay.io", packet, forwarded=True)
    (record,) = world.records()
    assert (record.verdict, record.traffic, record.name) == ("denied", "containers", "quay.io")
    assert record.why == "the policy does not allow it; answered that there is no such name"


def test_failed_is_kept_apart_from_denied(world: World) -> None:
    world.recorder.failed("r.example", "no resolver answered")
    (record,) = world.records()
    assert (record.verdict, record.name, record.why) == (
        Verdict.FAILED,
        "r.example",
        "no resolver answered",
    )


def test_policies(world: World) -> None:
    old, new = policy("docker.io"), policy("docker.io", "quay.io")
    world.recorder.policy_changed(None, old, "/etc/p.toml", "sha256:1")
    world.recorder.policy_changed(old, new, "/etc/p.toml", "sha256:2")
    world.recorder.policy_rejected("/etc/p.toml", "line 1: bad")
    world.recorder.policy_tried("/etc/p.toml", "the policy before is back")
    found = world.records()
    assert [(one.name, one.digest) for one in found] == [
        ("", "sha256:1"),
        ("quay.io", "sha256:2"),
        ("", ""),
        ("", ""),
    ]
    assert {one.verdict for one in found} == {Verdict.POLICY}
    assert {one.file for one in found} == {"/etc/p.toml"}
    assert found[2].why == "not valid, what was in force stays: line 1: bad"
    assert found[3].why == "the policy before is back"


def test_reasons_are_the_callers(tmp_path: Path) -> None:
    asked: list[object] = []

    def why(*about: object) -> str:
        asked.append(about)
        return "because"

    made = Recorder(str(tmp_path), print, why=why, journal=Journal(str(tmp_path / "none")))
    made.refused(copy())
    made.close()
    with Reader(str(tmp_path)) as reader:
        assert [record.why for record in reader.read()] == ["because"]
    assert asked == [(TrafficClass.ENGINE, "", TARGET, 443)]


def test_what_does_not_fit_is_counted(world: World) -> None:
    for number in range(MAX_WAITING + 5):
        world.recorder.refused(copy(source_port=number % 60_000))
    assert [record.left_out for record in world.records()] == [0, 5]


def test_a_disk_that_cannot_be_written_is_told_once(world: World, clock: Clock) -> None:
    folder = store_path(str(world.folder)).parent
    folder.write_text("in the way")
    for number in range(3):
        world.recorder.failed(f"n{number}.example", "x")
        world.recorder.flush()
    assert len(world.told) == 1
    assert "cannot be written" in world.told[0]
    assert "cannot be written" in world.recorder.problem
    folder.unlink()
    clock.now += 1
    world.recorder.failed("after.example", "x")
    found = world.records()
    assert [(record.name, record.left_out) for record in found] == [("", 3), ("after.example", 0)]
    assert found[0].why.startswith("3 could not be written: ")
    assert (world.recorder.problem, len(world.told)) == ("", 2)
    world.recorder.failed("later.example", "x")
    assert [record.left_out for record in world.records()] == [3, 0, 0]


def test_nothing_is_lost_at_the_end(world: World) -> None:
    world.recorder.noticed = True
    for number in range(3):
        world.recorder.refused(copy(source_port=40_000 + number))
    world.recorder.close()
    with Reader(str(world.folder)) as reader:
        assert sum(record.count for record in reader.read()) == 3


def test_it_is_told_from_many_threads(tmp_path: Path) -> None:
    made = World(tmp_path)
    done = threading.Event()

    def flush() -> None:
        while not done.is_set():
            made.recorder.flush()

    def tell(start: int) -> None:
        packet = udp(SERVER, 53, CLIENT, 4_000, reply("h.example", str(TARGET)))
        for number in range(200):
            made.recorder.heard(packet)
            made.recorder.refused(copy(OTHER, source_port=start + number))
            made.recorder.failed(f"n{start + number}.example", "x")

    flusher = threading.Thread(target=flush)
    tellers = [threading.Thread(target=tell, args=(1_000 * n,)) for n in range(1, 5)]
    for thread in (flusher, *tellers):
        thread.start()
    for thread in tellers:
        thread.join()
    done.set()
    flusher.join()
    made.recorder.close()
    with Reader(str(tmp_path)) as reader:
        found = list(reader.read())
    counted = [record.count + record.left_out for record in found]
    denied = [one for one, record in zip(counted, found, strict=True) if record.verdict == "denied"]
    assert (sum(denied), sum(counted)) == (800, 1_600)

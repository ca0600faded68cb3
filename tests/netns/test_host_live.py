"""The live probe: right rules pass, and each way of being wrong is told in words."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from ramnet.core.scope import PROBE_PORT, PROBED, engines_set
from ramnet.errors import HostError
from ramnet.host import live as module
from ramnet.host.bpf import mark_sockets
from ramnet.host.cgroups import Groups, mount_point
from ramnet.host.elements import Elements
from ramnet.host.live import live_probe, send_probe
from ramnet.host.nft import Nft
from ramnet.host.scratch import in_scratch_netns
from tests.netns.groups import attach, own_group

T = TypeVar("T")

REPOSITORY = Path(__file__).resolve().parents[2]
TABLE = "lively"
MARK = 0x0200_0000

BY_GROUP = f"socket cgroupv2 level 2 @{engines_set(2)}"
BY_MARK = f"meta mark and {MARK} == {MARK}"
STOP = f"ip daddr 127.0.0.1 udp dport {PROBE_PORT} counter name {PROBED} drop"


@pytest.fixture
def engine() -> Iterator[Path]:
    """An engine's cgroup, at level 2."""
    with own_group() as top:
        (top / "engine").mkdir()
        yield top / "engine"


def rules(match: str, stop: str = STOP) -> str:
    """What the ruleset has of the live probe, written by hand."""
    return (
        f"table inet {TABLE} {{\ncounter {PROBED} {{ }}\n"
        f"set {engines_set(2)} {{ type cgroupsv2; }}\nset {engines_set(3)} {{ type cgroupsv2; }}\n"
        f"chain engine {{ {stop}\n}}\n"
        f"chain output {{ type filter hook output priority -160; {match} goto engine\n}}\n}}\n"
    )


def on_kernel(text: str, work: Callable[[Elements], T], *, lo: bool = True) -> T:
    """Do it with these rules loaded, in a namespace of its own."""

    def body() -> T:
        if lo:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        Nft().apply(text)
        elements = Elements(TABLE)
        try:
            return work(elements)
        finally:
            elements.close()

    return in_scratch_netns(body)


def fed(elements: Elements, engine: Path) -> Elements:
    elements.feed_groups(2, [engine.stat().st_ino])
    return elements


def probed(text: str, engine: Path, *, probing: Path | None = None) -> str:
    """What the probe says of these rules, with the engine's id in its set."""
    return on_kernel(text, lambda elements: live_probe(fed(elements, engine), probing or engine))


# Rules that are right


def test_rules_by_cgroup_are_proven(engine: Path) -> None:
    assert probed(rules(BY_GROUP), engine) == ""
    assert list(engine.glob("*/")) == [], "no group is left"


def test_rules_by_mark_are_proven(engine: Path) -> None:
    mark_sockets(engine, MARK)
    assert probed(rules(BY_MARK), engine) == ""


@pytest.mark.parametrize("match", ["", f"meta skuid {os.geteuid()}"])
def test_where_ramnet_is_of_the_class_there_is_no_outside(match: str) -> None:
    assert on_kernel(rules(match), lambda elements: live_probe(elements, None)) == ""


def test_an_id_that_is_fed_makes_the_rule_match(engine: Path) -> None:
    """And a group that is made anew has to be fed anew: the old id is silent."""
    groups = Groups([str(engine.relative_to(mount_point()))])

    def work(elements: Elements) -> None:
        (old,) = groups.ensure()
        assert "do not take a socket" in live_probe(elements, engine)
        elements.feed_groups(old.level, [old.ident])
        assert live_probe(elements, engine) == ""
        engine.rmdir()
        (new,) = groups.ensure()
        assert "do not take a socket" in live_probe(elements, engine)
        elements.feed_groups(new.level, [new.ident], [old.ident])
        assert live_probe(elements, engine) == ""
        assert elements.groups(new.level) == {new.ident}
        elements.feed_groups(new.level, [], [new.ident])
        assert "do not take a socket" in live_probe(elements, engine)

    try:
        on_kernel(rules(BY_GROUP), work)
    finally:
        groups.close()


def test_somebody_of_the_class_who_knocks_all_the_time_is_no_trouble(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a log driver that a user pointed at the port: the count is not only the probe's."""

    def busy(cgroup: Path | None) -> bool:
        real(engine)
        return real(cgroup)

    real = send_probe
    monkeypatch.setattr(module, "send_probe", busy)
    assert probed(rules(BY_GROUP), engine) == ""
    # Nor does it hide that a group is not known.
    with own_group() as unknown:
        said = probed(rules(BY_GROUP), engine, probing=unknown)
    assert said == "the rules counted the datagram of an engine's socket, but did not stop it"


# Rules that are wrong


def test_a_socket_that_is_not_taken_for_an_engines(engine: Path) -> None:
    expected = f"the rules do not take a socket made in cgroup {engine} for an engine's"
    assert probed(rules(BY_MARK), engine) == expected
    assert probed(rules(f"socket cgroupv2 level 3 @{engines_set(2)}"), engine) == expected
    assert probed(rules(f"socket cgroupv2 level 2 @{engines_set(3)}"), engine) == expected


def test_a_socket_of_our_own_that_is_not_taken_for_an_engines() -> None:
    match = f"meta skuid {os.geteuid() + 1}"
    said = on_kernel(rules(match), lambda elements: live_probe(elements, None))
    assert said == "the rules do not take a socket of ramnet itself for an engine's"


@pytest.mark.parametrize("match", ["", "socket transparent 0-1"])
def test_everybody_is_taken_for_an_engine(engine: Path, match: str) -> None:
    said = probed(rules(match), engine)
    assert said.startswith("the rules take a socket of ramnet itself, made in cgroup ")
    assert said.endswith(", for an engine's")


@pytest.mark.parametrize("match", [BY_GROUP, BY_MARK])
def test_ramnet_itself_runs_in_an_engines_cgroup(engine: Path, match: str) -> None:
    mark_sockets(engine, MARK)
    code = (
        "import pathlib, sys\n"
        "from ramnet.host.elements import Elements\n"
        "from ramnet.host.live import live_probe\n"
        "place = pathlib.Path(sys.argv[1])\n"
        "(place / 'cgroup.procs').write_text('0')\n"
        f"print(live_probe(Elements({TABLE!r}), place))\n"
    )

    def work(elements: Elements) -> str:
        fed(elements, engine)
        return subprocess.run(
            [sys.executable, "-c", code, str(engine)],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    said = on_kernel(rules(match), work)
    assert said == f"ramnet itself runs in an engine's cgroup, {engine}: start it in another one"


def test_a_datagram_that_is_counted_and_not_stopped(engine: Path) -> None:
    said = probed(rules(BY_GROUP, STOP.replace("drop", "accept")), engine)
    assert said == "the rules counted the datagram of an engine's socket, but did not stop it"


def test_other_rules_that_come_before_ours(engine: Path) -> None:
    other = "chain before { type filter hook output priority -170; udp dport 7261 drop; }"
    said = probed(rules(BY_GROUP) + f"table inet other {{ {other}\n}}\n", engine)
    assert said.startswith("other rules refused the datagram of a socket made in cgroup ")
    assert said.endswith(" before ours saw it")


def test_a_table_or_counter_that_is_not_there(engine: Path) -> None:
    expected = f"the table or its counter '{PROBED}' is not there"
    assert on_kernel("", lambda elements: live_probe(elements, engine)) == expected
    without = f"table inet {TABLE} {{ counter other {{ }}\n}}\n"
    assert on_kernel(without, lambda elements: live_probe(elements, engine)) == expected


# What cannot be tried


@pytest.mark.parametrize("inside", [True, False])
def test_lo_is_down(engine: Path, inside: bool) -> None:
    place = engine if inside else None
    said = on_kernel(rules(BY_GROUP), lambda elements: live_probe(elements, place), lo=False)
    assert said.startswith("the live probe could not be sent: sending: Network is unreachable")
    assert "it needs lo up" in said


def test_the_group_is_not_there_or_takes_no_other(engine: Path) -> None:
    (engine / "cgroup.max.descendants").write_text("0", encoding="ascii")
    for place in (engine, engine / "nothing"):
        said = on_kernel(rules(BY_GROUP), partial(live_probe, cgroup=place))
        assert said.startswith(f"a cgroup below {place} cannot be made: ")


def test_the_group_takes_no_process(engine: Path) -> None:
    """In a part of the tree that is threaded a new group is not valid until it is threaded too."""
    (engine / "cgroup.type").write_text("threaded", encoding="ascii")
    said = probed(rules(BY_GROUP), engine)
    assert said.startswith("the live probe could not be sent: joining the cgroup: ")
    assert "cgroup.type" in said
    assert list(engine.glob("*/")) == []


def test_the_group_is_frozen(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHILD_SECONDS", 1.0)
    (engine / "cgroup.freeze").write_text("1", encoding="ascii")
    assert "its process took longer than 1 s" in probed(rules(BY_GROUP), engine)
    assert list(engine.glob("*/")) == []


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("#!/nowhere/at/all\n", "starting "),
        ("#!/bin/sh\nexit 3\n", "its process ended with 3"),
        ("#!/bin/sh\necho one >&2; echo two >&2\n", "could not be sent: two"),
    ],
)
def test_the_sender_cannot_run(
    engine: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str, words: str
) -> None:
    broken = tmp_path / "python"
    broken.write_text(program, encoding="ascii")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    assert words in probed(rules(BY_GROUP), engine)
    assert list(engine.glob("*/")) == []


# One datagram


def sent(cgroup: Path | None, _elements: Elements) -> bool:
    return send_probe(cgroup)


def test_what_a_rule_refuses_is_told_from_what_is_sent(engine: Path) -> None:
    def work(elements: Elements) -> list[bool]:
        fed(elements, engine)
        return [send_probe(engine), send_probe(None)]

    assert on_kernel(rules(BY_GROUP), work) == [True, False]
    assert on_kernel(rules(""), work) == [True, True]
    assert on_kernel("", lambda _elements: [send_probe(engine), send_probe(None)]) == [False, False]


def test_a_datagram_that_could_not_be_tried(engine: Path) -> None:
    for place in (engine, None):
        with pytest.raises(HostError, match="Network is unreachable") as caught:
            on_kernel("", partial(sent, place), lo=False)
        assert "it needs lo up" in caught.value.hint


def test_a_socket_that_may_not_be_made_is_not_one_that_was_refused(engine: Path) -> None:
    """EPERM of socket(2), such as by a BPF program of somebody else, says nothing about rules."""
    refuse = bytes((0xB4, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0))
    attach(engine, refuse, "refuse_all")
    with pytest.raises(HostError, match="making a socket: Operation not permitted"):
        on_kernel("", partial(sent, engine))

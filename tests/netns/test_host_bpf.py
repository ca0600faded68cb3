"""Sockets marked by BPF, as the sockets themselves and as rules see them."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ramnet.core.marker import marker_program, program_name
from ramnet.core.ruleset import Chain, Counter, Hook, Rule, Table, render_create
from ramnet.errors import HostError
from ramnet.host import bpf as module
from ramnet.host.bpf import Attached, mark_sockets, marks, unmark_sockets
from ramnet.host.elements import Elements
from ramnet.host.nft import Nft
from ramnet.host.scratch import in_scratch_netns
from tests.netns.groups import attach, own_group, program_in, run_in

REPOSITORY = Path(__file__).resolve().parents[2]
MARK, OTHER, FOREIGN = 0x0200_0000, 0x0400_0000, 0x1

READ_MARK = """
with socket.socket(socket.AF_INET6 if "6" in sys.argv else socket.AF_INET) as made:
    if "set" in sys.argv:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0x10)
    print(made.getsockopt(socket.SOL_SOCKET, socket.SO_MARK))
"""


@pytest.fixture
def group() -> Iterator[Path]:
    with own_group() as place:
        yield place


def mark_in(place: Path, *how: str) -> int:
    """The mark of a socket that is made in a cgroup."""
    return int(run_in(place, READ_MARK, *how))


def store(mark: int) -> bytes:
    """``sk->mark = mark; return 1``: what others may do, and ours must not."""
    return b"".join(
        (
            struct.pack("=BBhi", 0xB4, 0x02, 0, mark),
            struct.pack("=BBhi", 0x63, 0x21, 16, 0),
            struct.pack("=BBhi", 0xB4, 0x00, 0, 1),
            struct.pack("=BBhi", 0x95, 0x00, 0, 0),
        )
    )


def names(place: Path) -> list[str]:
    return [item.name for item in marks(place)]


# Who is marked


@pytest.mark.parametrize("family", ["4", "6"])
def test_a_socket_made_inside_is_marked_and_one_outside_is_not(group: Path, family: str) -> None:
    below, beside = group / "in/deeper", group / "beside"
    below.mkdir(parents=True)
    beside.mkdir()
    assert mark_in(below, family) == 0
    assert mark_sockets(group / "in", MARK)
    assert mark_in(group / "in", family) == MARK
    assert mark_in(below, family) == MARK
    (group / "in/later").mkdir()
    assert mark_in(group / "in/later", family) == MARK
    assert mark_in(beside, family) == 0
    assert mark_in(group, family) == 0
    assert unmark_sockets(group / "in") == 1
    assert mark_in(below, family) == 0


def test_only_sockets_made_later_are_marked(group: Path) -> None:
    code = "made = socket.socket()\nprint(flush=True)\nsys.stdin.readline()\n"
    code += "print(made.getsockopt(1, 36), socket.socket().getsockopt(1, 36))\n"
    argv = program_in(group, code)
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        program.stdout.readline()
        mark_sockets(group, MARK)
        said, _ = program.communicate("\n", timeout=10)
    assert said.split() == ["0", str(MARK)]


@pytest.mark.parametrize("mark", [1, MARK, 1 << 31, 0xFFFF_FFFF])
def test_every_bit_of_a_mark(group: Path, mark: int) -> None:
    mark_sockets(group, mark)
    assert mark_in(group) & 0xFFFF_FFFF == mark


def test_a_mark_that_a_socket_has_is_kept(group: Path) -> None:
    """The kernel runs what is attached below first: ours, above, adds its bit."""
    (group / "below").mkdir()
    attach(group / "below", store(FOREIGN), "foreign")
    assert mark_in(group / "below") == FOREIGN
    mark_sockets(group, MARK)
    assert mark_in(group / "below") == MARK | FOREIGN


def test_a_program_may_still_set_a_mark_of_its_own(group: Path) -> None:
    """Which takes CAP_NET_ADMIN, and takes our bit away: rules by mark are no bar to root."""
    mark_sockets(group, MARK)
    assert mark_in(group, "set") == 0x10


# What is attached


def test_what_is_so_already_is_left_alone(group: Path) -> None:
    assert mark_sockets(group, MARK)
    (before,) = marks(group)
    assert before == Attached(before.ident, program_name(MARK), before.tag, MARK)
    assert not mark_sockets(group, MARK)
    assert marks(group) == (before,)


def test_another_mark_takes_the_place_of_the_old_one(group: Path) -> None:
    mark_sockets(group, MARK)
    assert mark_sockets(group, OTHER)
    assert [item.mark for item in marks(group)] == [OTHER]
    assert mark_in(group) == OTHER


def test_no_socket_is_made_unmarked_while_marks_are_exchanged(group: Path) -> None:
    mark_sockets(group, MARK)
    code = """
import select
unmarked = made = 0
print(flush=True)
while not select.select([0], [], [], 0)[0]:
    for _ in range(50):
        with socket.socket() as one:
            made += 1
            unmarked += not one.getsockopt(1, 36)
print(made, unmarked)
"""
    argv = program_in(group, code)
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        program.stdout.readline()
        for _ in range(200):
            assert mark_sockets(group, OTHER)
            assert mark_sockets(group, MARK)
        said, _ = program.communicate("\n", timeout=10)
    made, unmarked = map(int, said.split())
    assert made > 1000
    assert unmarked == 0


def test_a_program_of_ours_that_does_something_else_is_exchanged(group: Path) -> None:
    """An older version had another one by that name, and two may be left by a crash."""
    attach(group, store(MARK), program_name(MARK))
    (old,) = marks(group)
    assert mark_sockets(group, MARK)
    (new,) = marks(group)
    assert new.name == old.name
    assert new.tag != old.tag
    attach(group, marker_program(MARK), program_name(MARK))
    assert len(marks(group)) == 2
    assert not mark_sockets(group, MARK)
    assert marks(group) == (new,)


def test_the_programs_of_others_stay(group: Path) -> None:
    """Even one that does what ours does, by another name."""
    attach(group, store(FOREIGN), "foreign")
    mark_sockets(group, MARK)
    attach(group, marker_program(MARK), "like_ours")
    everything = ["foreign", program_name(MARK), "like_ours"]
    assert sorted(names(group)) == sorted(everything)
    mark_sockets(group, OTHER)
    assert {"foreign", "like_ours", program_name(OTHER)} == set(names(group))
    assert [item.mark for item in marks(group) if item.name in ("foreign", "like_ours")] == [
        None
    ] * 2
    assert unmark_sockets(group) == 1
    assert sorted(names(group)) == ["foreign", "like_ours"]
    assert unmark_sockets(group) == 0
    assert sorted(names(group)) == ["foreign", "like_ours"]


def test_what_is_attached_above_is_not_of_the_group_itself(group: Path) -> None:
    (group / "below").mkdir()
    mark_sockets(group, MARK)
    assert marks(group / "below") == ()
    assert unmark_sockets(group / "below") == 0
    assert mark_in(group / "below") == MARK


def test_a_program_that_goes_meanwhile_is_left_out(
    group: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(command: int, attr: bytes) -> tuple[int, bytes]:
        if command == module.BPF_PROG_GET_FD_BY_ID:
            attr = struct.pack("=I", 0xFFFF_FFF0)  # nobody's
        return real(command, attr)

    mark_sockets(group, MARK)
    real = module._bpf  # noqa: SLF001
    monkeypatch.setattr(module, "_bpf", late)
    assert marks(group) == ()


def test_the_mark_outlives_the_process_that_attached_it(group: Path) -> None:
    code = "import sys, pathlib; from ramnet.host.bpf import mark_sockets\n"
    code += "print(mark_sockets(pathlib.Path(sys.argv[1]), int(sys.argv[2])))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(group), str(MARK)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "True"
    assert mark_in(group) == MARK
    assert not mark_sockets(group, MARK)
    assert unmark_sockets(group) == 1


def test_a_group_made_anew_has_no_program(group: Path) -> None:
    place = group / "engine"
    place.mkdir()
    mark_sockets(place, MARK)
    place.rmdir()
    place.mkdir()
    assert marks(place) == ()
    assert mark_sockets(place, MARK)


def test_no_descriptor_is_left(group: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names
    for mark in (MARK, OTHER):
        mark_sockets(group, mark)
        mark_sockets(group, mark)
    unmark_sockets(group)
    assert len(set(os.listdir("/proc/self/fd")) - before) == 0  # noqa: PTH208


# What rules see, and what they would not

CONNECT = """
with socket.socket() as plain:
    plain.bind(("127.0.0.1", 0))
    with socket.socket() as client:
        try:
            client.connect(plain.getsockname())
        except ConnectionRefusedError:
            pass
"""
# What becomes of a socket by its family, type and protocol; "made" when nothing refuses it.
MAKE = """
import errno
try:
    socket.socket(*map(int, sys.argv[1:])).close()
    print("made")
except OSError as err:
    print(errno.errorcode[err.errno])
"""
IPPROTO_MPTCP = 262  # socket.IPPROTO_MPTCP is not in every build
ORDINARY = [
    (socket.SOCK_STREAM, 0),
    (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    (socket.SOCK_DGRAM, 0),
    (socket.SOCK_RAW, socket.IPPROTO_ICMP),
    (socket.SOCK_RAW, socket.IPPROTO_RAW),
    # The protocol of a raw socket is a number of the user's: only that of MPTCP is refused.
    (socket.SOCK_RAW, IPPROTO_MPTCP & 0xFF),
]


def made_in(place: Path, family: int, kind: int, protocol: int) -> str:
    return run_in(place, MAKE, str(family), str(kind), str(protocol)).strip()


def test_a_syn_carries_the_mark(group: Path) -> None:
    matches = {"marked": f"meta mark and {MARK} == {MARK}", "bare": ""}
    rules = tuple(
        Rule(f"tcp flags & (fin|syn|rst|ack) == syn {match} counter name {name} return")
        for name, match in matches.items()
    )
    chain = Chain("out", rules, Hook.OUTPUT, -160)

    def work() -> dict[str, int]:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        Nft().apply(render_create(Table("t", tuple(map(Counter, matches)), (), (chain,))))
        elements = Elements("t")
        try:
            run_in(group, CONNECT)
            return elements.counters()
        finally:
            elements.close()

    mark_sockets(group, MARK)
    assert in_scratch_netns(work) == {"marked": 1, "bare": 0}


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_socket_of_multipath_tcp_is_not_made_inside(group: Path, family: int) -> None:
    """The kernel makes the sockets of its subflows itself, past the program, without a mark."""
    below, beside = group / "in/deeper", group / "beside"
    below.mkdir(parents=True)
    beside.mkdir()
    wanted = (family, socket.SOCK_STREAM, IPPROTO_MPTCP)
    assert made_in(below, *wanted) == "made", "control"
    mark_sockets(group / "in", MARK)
    assert made_in(group / "in", *wanted) == "EPERM"
    assert made_in(below, *wanted) == "EPERM"
    assert made_in(beside, *wanted) == "made"
    for kind, protocol in ORDINARY:
        assert made_in(below, family, kind, protocol) == "made", (kind, protocol)
    unmark_sockets(group / "in")
    assert made_in(below, *wanted) == "made"


# Errors


def test_a_group_that_is_not_there_is_told(group: Path) -> None:
    for call in (lambda place: mark_sockets(place, MARK), unmark_sockets, marks):
        with pytest.raises(HostError, match="nothing cannot be opened: No such file") as caught:
            call(group / "nothing")
        assert "ramnet makes the cgroups" in caught.value.hint


def test_a_group_that_goes_away_while_it_is_looked_at_is_told(
    group: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is open then, and bpf(2) says ENOENT. A daemon must not end of that."""
    place = group / "engine"

    def late(command: int, attr: bytes) -> tuple[int, bytes]:
        if place.exists():
            place.rmdir()
        return real(command, attr)

    real = module._bpf  # noqa: SLF001
    monkeypatch.setattr(module, "_bpf", late)
    for call in (lambda place: mark_sockets(place, MARK), unmark_sockets, marks):
        place.mkdir()
        with pytest.raises(HostError, match="engine went away while it was looked at") as caught:
            call(place)
        assert "looked at again, within a second" in caught.value.hint


def test_a_directory_that_is_no_group_is_told(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"bpf\(BPF_PROG_QUERY\): Bad file descriptor"):
        mark_sockets(tmp_path, MARK)


def test_a_program_that_lets_no_other_join_is_told(group: Path) -> None:
    attach(group, store(FOREIGN), "alone", flags=0)
    (group / "below").mkdir()
    for place in (group, group / "below"):
        with pytest.raises(HostError, match=r"bpf\(BPF_PROG_ATTACH\): Operation not perm") as got:
            mark_sockets(place, MARK)
        assert "BPF_F_ALLOW_MULTI" in got.value.hint
    assert names(group) == ["alone"]


def test_more_programs_than_the_kernel_takes_are_told(group: Path) -> None:
    with ExitStack() as stack:
        opened = stack.enter_context(module._opened(group))  # noqa: SLF001
        for number in range(64):
            loaded = module._loaded(store(FOREIGN), f"p{number}")  # noqa: SLF001
            module._attach(opened, stack.enter_context(loaded))  # noqa: SLF001
    with pytest.raises(HostError, match=r"bpf\(BPF_PROG_ATTACH\): Argument list too long") as got:
        mark_sockets(group, MARK)
    assert "64 programs" in got.value.hint
    assert len(marks(group)) == 64
    assert unmark_sockets(group) == 0


def test_without_the_right_to_it_the_reason_is_told(group: Path) -> None:
    code = (
        "import sys, pathlib; from ramnet.errors import HostError; from ramnet.host.bpf import *\n"
    )
    code += "try:\n    mark_sockets(pathlib.Path(sys.argv[1]), 1)\n"
    code += "except HostError as err:\n    print(err.message, '/', err.hint)"
    drop = "-net_admin,-sys_admin,-bpf,-perfmon"
    setpriv = ["setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}"]
    done = subprocess.run(
        [*setpriv, sys.executable, "-c", code, str(group)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert "bpf(BPF_PROG_LOAD): Operation not permitted / it needs root with CAP_BPF" in done.stdout


def test_a_program_that_the_kernel_does_not_believe_is_told() -> None:
    exit_without_result = struct.pack("=BBhi", 0x95, 0, 0, 0)
    loaded = module._loaded(exit_without_result, "wrong")  # noqa: SLF001
    with pytest.raises(HostError, match=r"bpf\(BPF_PROG_LOAD\): Permission denied"), loaded:
        pytest.fail("it was loaded")


def test_an_unknown_machine_is_told(group: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = os.uname_result(("Linux", "here", "6.1", "#1", "pdp11"))
    monkeypatch.setattr(os, "uname", lambda: machine)
    with pytest.raises(HostError, match=r"the number of bpf\(2\) on pdp11 is not known") as caught:
        mark_sockets(group, MARK)
    assert "[scope] mode" in caught.value.hint

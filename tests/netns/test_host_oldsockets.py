"""Sockets that were there before are marked as well, each keeping the bits that it had."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ramnet.host.oldsockets import mark_existing
from tests.netns.groups import own_group, program_in

pytestmark = pytest.mark.netns

MARK = 0x0200_0000

# TCP, UDP and IPv6, one with a mark already, one that is not IP; told again after a line of input.
_HOLDER = """
import json
made = [
    socket.socket(socket.AF_INET, socket.SOCK_STREAM),
    socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
]
made[2].setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0x11)
print("ready", flush=True)
sys.stdin.readline()
print(json.dumps([one.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) for one in made]))
"""


@contextmanager
def holder(place: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        program_in(place, _HOLDER), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process


def marks_of(process: subprocess.Popen[str]) -> list[int]:
    out, _ = process.communicate("go\n", timeout=30)
    marks = json.loads(out)
    assert isinstance(marks, list)
    return marks


def test_sockets_that_were_made_before_are_marked_and_keep_their_bits() -> None:
    with own_group() as group:
        below = group / "child"
        below.mkdir()
        with holder(below) as process:
            assert mark_existing(group, MARK) == 3
            assert mark_existing(group, MARK) == 3, "again: nothing changes"
            assert marks_of(process) == [MARK, MARK, MARK | 0x11, 0]


def test_sockets_of_other_groups_are_left_alone() -> None:
    with own_group() as group, own_group() as other, holder(other) as process:
        assert mark_existing(group, MARK) == 0
        assert marks_of(process) == [0, 0, 0x11, 0]


def test_a_group_that_is_gone_has_none(tmp_path: Path) -> None:
    assert mark_existing(tmp_path / "gone", MARK) == 0

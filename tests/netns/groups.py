"""Cgroups of a test's own, and programs that run in them or are attached to them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from ramnet.host import bpf
from ramnet.host.cgroups import mount_point
from ramnet.lab.janitor import PREFIX

_NUMBERS = count(1)
# A program that has just ended keeps its group busy for a moment.
REMOVE_SECONDS = 5.0

_JOIN = """
import os, socket, sys, time
place = sys.argv.pop(1)
with open(place + "/cgroup.procs", "w") as procs:
    procs.write("0")
"""


@contextmanager
def own_group() -> Iterator[Path]:
    """Make a cgroup at level 1 of the v2 hierarchy, and remove it with all that is below it."""
    place = mount_point() / f"{PREFIX}{os.getpid()}-{next(_NUMBERS)}"
    place.mkdir()
    try:
        yield place
    finally:
        remove(place)


def remove(place: Path) -> None:
    """Remove a cgroup and those below it as soon as nobody is in them."""
    end = time.monotonic() + REMOVE_SECONDS
    while place.exists():
        for directory, _, _ in os.walk(place, topdown=False):
            with suppress(OSError):
                Path(directory).rmdir()
        assert time.monotonic() < end, f"{place} cannot be removed"
        time.sleep(0.002)


def program_in(place: Path, code: str, *args: str) -> list[str]:
    """The command line of a Python program that runs in a cgroup."""
    return [sys.executable, "-I", "-S", "-c", _JOIN + code, str(place), *args]


def run_in(place: Path, code: str, *args: str) -> str:
    """Run a Python program in a cgroup; it has os, socket, sys and time."""
    argv = program_in(place, code, *args)
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=30).stdout


def attach(place: Path, code: bytes, name: str, flags: int = bpf.BPF_F_ALLOW_MULTI) -> None:
    """Attach a program that is somebody else's to the making of sockets."""
    with bpf._opened(place) as group, bpf._loaded(code, name) as program:  # noqa: SLF001
        bpf._attach(group, program, flags)  # noqa: SLF001

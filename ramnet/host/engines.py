"""The container engines that run on this machine, by a look at every process (proc(5))."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ramnet.core.enginefacts import Desktop, DockerProxy, Engine, EngineName, Fact, Unreadable
from ramnet.errors import HostError
from ramnet.host.files import read_limited

# Engines on one machine, those in containers included: a cluster of kind has some ten. Whoever may
# start programs can give them the name of an engine; that must not fill memory or a report.
MAX_ENGINES = 64
# Command line and environment are what a process was started with: at most a quarter of its stack.
MAX_BYTES = 2 * 1024 * 1024

_NAMES = {str(name): name for name in EngineName}
_DOCKER_PROXY = "docker-proxy"
_ROOTLESSKIT = "rootlesskit"
# What Docker Desktop runs in its own machine and in each distribution that it integrates with.
_DESKTOP = ("docker-desktop-", "com.docker.", "vpnkit-")
_DELETED = " (deleted)"


@dataclass(frozen=True, slots=True)
class Running:
    """An engine with its arguments and its environment, both empty where they do not concern us.

    They concern us for one that has root's rights in our network namespace. ``files`` tells whether
    paths mean to it what they mean to us: those of anybody else may be paths of devices.
    """

    engine: Engine
    words: tuple[str, ...]
    environ: bytes
    files: bool


def look(proc: Path) -> tuple[list[Running], list[Fact]]:
    """Return the engines that run, and what else of interest does; takes some milliseconds."""
    found: list[Running] = []
    others: list[Fact] = []
    more = 0
    for pid in _pids(proc):
        place = proc / str(pid)
        name = _name(place)
        if name in _NAMES and len(found) < MAX_ENGINES:
            found += _running(place, pid, _NAMES[name])
        elif name in _NAMES:
            more += 1
        elif name == _DOCKER_PROXY and len(others) < MAX_ENGINES:
            others.append(DockerProxy(pid, _cgroup(place)))
        elif name.startswith(_DESKTOP) and len(others) < MAX_ENGINES:
            others.append(Desktop(f"the process {name}"))
    if more:
        why = f"{more} more processes bear the name of an engine than the {MAX_ENGINES} looked at"
        others.append(Unreadable("engines", why))
    return found, others


def _pids(proc: Path) -> list[int]:
    """Return all processes, root's first: those are not pushed out by anybody else's."""
    found = []
    try:
        for entry in os.scandir(proc):
            if entry.name.isdecimal():
                with suppress(OSError):  # ended meanwhile
                    found.append((entry.stat().st_uid, int(entry.name)))
    except OSError:
        return []
    return [pid for _, pid in sorted(found)]


def _program(place: Path) -> str:
    """Return the name of the file that a process was started from; OSError where it has none.

    Threads of the kernel have none, and what has ended.
    """
    path = os.readlink(place / "exe")  # noqa: PTH115 - faster by far
    return path.removesuffix(_DELETED).rpartition("/")[2]


def _name(place: Path) -> str:
    """Return the program that a process runs, by its file or by its own word; empty for none."""
    try:
        program = _program(place)
        if program in _NAMES or program == _DOCKER_PROXY or program.startswith(_DESKTOP):
            return program
        # Started by an interpreter, or by an emulator of another processor.
        return (place / "comm").read_text("utf-8", "replace").rstrip("\n")
    except OSError:
        return ""


def _running(place: Path, pid: int, name: EngineName) -> list[Running]:
    """Return what is known of one engine; nothing when it is none, or has ended meanwhile."""
    words = tuple(_read(place / "cmdline").decode("utf-8", "replace").split("\0")[:-1])
    if name is EngineName.PODMAN and ("system", "service") not in pairwise(words):
        return []  # a client: it pulls as whoever runs it
    uid, parent = _status(place)
    if uid is None:
        return []
    rootless = _rootless(place, uid, parent)
    own = _same_namespace(place, "net")
    engine = Engine(name, pid, uid, _cgroup(place), own, rootless)
    if rootless or own is False:
        return [Running(engine, (), b"", files=False)]
    files = _same_namespace(place, "mnt") or _as_first(place, "mnt")
    return [Running(engine, words, _read(place / "environ"), files)]


def _rootless(place: Path, uid: int, parent: int) -> str:
    """Say by what an engine is known to be rootless; empty when it is not."""
    with suppress(OSError):
        if _program(place.parent / str(parent)) == _ROOTLESSKIT:
            return "started by rootlesskit"
    if _same_namespace(place, "user") is False:
        return "in a user namespace of its own"
    return "" if uid == 0 else "not run by root"


def _status(place: Path) -> tuple[int | None, int]:
    """Return the effective user and the parent of a process; no user when it has ended."""
    fields: dict[str, list[str]] = {}
    for line in _read(place / "status").decode("ascii", "replace").splitlines():
        key, _, value = line.partition(":")
        fields[key] = value.split()
    try:
        return int(fields["Uid"][1]), int(fields["PPid"][0])
    except KeyError:
        return None, 0


def _cgroup(place: Path) -> str | None:
    """Return the cgroup v2 path of a process without the leading slash, see cgroups(7)."""
    for line in _read(place / "cgroup").decode("utf-8", "replace").splitlines():
        if line.startswith("0::/"):
            return line.removeprefix("0::/").removesuffix(_DELETED)
    return None


def _same_namespace(place: Path, kind: str) -> bool | None:
    """Tell whether a process shares our namespace of a kind; None when that cannot be seen."""
    return _same(Path("/proc/thread-self/ns", kind), place / "ns" / kind)


def _as_first(place: Path, kind: str) -> bool:
    """Tell whether a process shares the namespace of the machine's first one.

    A service that systemd confines sees the same files, in a namespace of its own.
    """
    return _same(place.parent / "1/ns" / kind, place / "ns" / kind) is True


def _same(one: Path, other: Path) -> bool | None:
    try:
        ours, theirs = one.stat(), other.stat()
    except OSError:
        return None
    return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)


def _read(path: Path) -> bytes:
    try:
        return read_limited(str(path), MAX_BYTES)
    except HostError:
        return b""

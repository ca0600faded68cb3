"""Cgroups of the v2 hierarchy: where they are, what the kernel calls them, when that changes.

A rule holds a cgroup by its id. A group that is removed and made again has another one, and the old
id matches nothing, without a word: so the places are watched (inotify(7)), and the ids read again.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import struct
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from ramnet.core.scope import Group
from ramnet.errors import HostError
from ramnet.host import helper

# nft reads the path of a cgroup from here, wherever the v2 hierarchy is mounted.
NFT_ROOT = "/sys/fs/cgroup"

# sys/inotify.h: an entry came, went or was renamed; the directory itself went.
IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE = 0x40, 0x80, 0x100, 0x200
IN_DELETE_SELF, IN_MOVE_SELF, IN_ONLYDIR = 0x400, 0x800, 0x0100_0000
IN_UNMOUNT, IN_Q_OVERFLOW = 0x2000, 0x4000
_ENTRIES = IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE
_ITSELF = IN_DELETE_SELF | IN_MOVE_SELF
_EVENT = struct.Struct("=iIII")  # watch, mask, cookie, length of the name
# Some two hundred events of ordinary names; what does not fit is read next.
_READ_BYTES = 8192

# A group may go away under our hands while it is looked at. More often than this in a row, somebody
# else removes it on purpose.
ATTEMPTS = 5

PROBE_PREFIX = "ramnet-probe-"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# A process that has just ended keeps its cgroup busy until the kernel has let go of it.
REMOVE_SECONDS = 2.0
_RETRY_SECONDS = 0.005

_READ_ONLY_HINT = (
    "ramnet makes its cgroups itself: it needs root and a writable cgroup v2 hierarchy"
    " (a container, or ProtectControlGroups= of a service, makes it read-only)"
)


def mount_point() -> Path:
    """Return where the cgroup v2 hierarchy is mounted; ``HostError`` when it is not.

    That is ``/sys/fs/cgroup``, or ``/sys/fs/cgroup/unified`` beside the controllers of v1.
    """
    lines = Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines()
    for mount in mounts_of(lines):
        if (mount / "cgroup.controllers").exists():  # and nothing else is mounted over it
            return mount
    raise HostError("no cgroup v2 hierarchy is mounted", hint=f"mount -t cgroup2 none {NFT_ROOT}")


def mounts_of(lines: Iterable[str]) -> list[Path]:
    """Find the mounts of the whole cgroup v2 hierarchy in mountinfo (proc(5)), nft's own first.

    A mount of a part of it, as containers have, does not count: levels differ there.
    """
    found = []
    for line in lines:
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        if right.split(" ", 1)[0] == "cgroup2" and fields[3] == "/":
            found.append(Path(_unescaped(fields[4])))
    return sorted(found, key=lambda mount: not mount.is_relative_to(NFT_ROOT))


def _unescaped(text: str) -> str:
    """Undo the escapes of mountinfo: three octal digits after a backslash."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


class Groups:
    """The configured cgroups, made where they are missing, and watched."""

    def __init__(self, paths: Iterable[str]) -> None:
        """``paths`` are below the mount. Raises ``HostError`` when nothing can be watched."""
        self._paths = tuple(paths)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._watched: dict[int, frozenset[str]] = {}
        self._inotify = int(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        if self._inotify < 0:
            raise self._error("inotify_init1")

    def _error(self, call: str) -> HostError:
        return HostError(
            f"{call}: {os.strerror(ctypes.get_errno())}",
            hint="more may be had by fs.inotify.max_user_instances and max_user_watches (sysctl)",
        )

    def fileno(self) -> int:
        """Return a descriptor that is readable once something about the groups has changed."""
        return self._inotify

    def close(self) -> None:
        """Stop watching. The groups stay."""
        os.close(self._inotify)

    def ensure(self) -> tuple[Group, ...]:
        """Make the groups that are missing, watch all of them, and return them in their order.

        What changes after they were looked at makes ``fileno`` readable, and so may what this call
        itself makes. Raises ``HostError`` when there is no hierarchy or a group cannot be made.
        """
        mount = mount_point()
        for _ in range(ATTEMPTS):
            # One that goes away between two of the steps: look again.
            with contextlib.suppress(FileNotFoundError):
                return self._ensured(mount)
        raise HostError(
            f"the cgroups {', '.join(self._paths)} below {mount} go away again and again",
            hint="something on this machine removes them: find it, or configure other cgroups",
        )

    def _ensured(self, mount: Path) -> tuple[Group, ...]:
        for path in self._paths:
            _make(mount / path)
        self._watch(mount)
        # Only now: whatever happens to a group after it was watched is told.
        return tuple(_group(mount, path) for path in self._paths)

    def _watch(self, mount: Path) -> None:
        """Watch every directory on the way to a group for what happens to the next one."""
        wanted: dict[Path, set[str]] = {}
        for path in self._paths:
            place = mount
            for part in Path(path).parts:
                wanted.setdefault(place, set()).add(part)
                place /= part
        watched = {}
        for place, names in wanted.items():
            mask = _ENTRIES | _ITSELF | IN_ONLYDIR
            number = self._libc.inotify_add_watch(self._inotify, os.fsencode(place), mask)
            if number < 0:
                if not place.is_dir():
                    raise FileNotFoundError(place)
                raise self._error(f"inotify_add_watch {place}")
            watched[number] = frozenset(names)
        for number in self._watched.keys() - watched.keys():
            self._libc.inotify_rm_watch(self._inotify, number)  # gone with its directory, mostly
        self._watched = watched

    def drain(self) -> bool:
        """Read what has come; tell whether it concerns one of the groups or what is above it."""
        concerned = False
        while True:
            try:
                data = os.read(self._inotify, _READ_BYTES)
            except BlockingIOError:
                return concerned
            concerned |= any(self._concerns(*event) for event in _events(data))

    def _concerns(self, number: int, mask: int, name: str) -> bool:
        if mask & IN_Q_OVERFLOW:
            return True
        names = self._watched.get(number)
        if names is None:  # of a directory that is no longer the one at its path
            return False
        return bool(mask & (_ITSELF | IN_UNMOUNT)) or name in names


def _events(data: bytes) -> Iterator[tuple[int, int, str]]:
    """Yield watch, mask and name of each event of inotify(7)."""
    offset = 0
    while offset + _EVENT.size <= len(data):
        number, mask, _cookie, length = _EVENT.unpack_from(data, offset)
        offset += _EVENT.size
        yield number, mask, os.fsdecode(data[offset : offset + length].rstrip(b"\0"))
        offset += length


def _make(place: Path) -> None:
    try:
        place.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError:  # removed again before the next part of it was made
        raise
    except PermissionError as err:  # the root of the hierarchy is 0555
        if not helper.configured():
            raise _unmade(place, err) from err
        helper.make_groups()
    except OSError as err:
        raise _unmade(place, err) from err


def _unmade(place: Path, error: OSError) -> HostError:
    what = f"the cgroup {place} cannot be made: {error.strerror}"
    return HostError(what, hint=_READ_ONLY_HINT)


def make_groups(paths: Iterable[str]) -> None:
    """Make the cgroups at these paths below the mount, where they are missing. ``HostError``."""
    mount = mount_point()
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # the caller looks again
            _make(mount / path)


def _group(mount: Path, path: str) -> Group:
    # kernfs: on a 64-bit kernel the inode number is the cgroup's id, which rules compare.
    ident = (mount / path).stat().st_ino
    return Group(path, len(Path(path).parts), ident, os.path.relpath(mount / path, NFT_ROOT))


@contextlib.contextmanager
def temporary_group(parent: Path) -> Iterator[Path]:
    """Make ``ramnet-probe-<pid>-...`` below a cgroup, and remove it with all that is in it.

    What a process that was killed has left there goes too. Raises ``HostError`` when it cannot be
    made, or not be removed in time.
    """
    _sweep(parent)
    place, lock = _made_and_locked(parent)
    try:
        yield place
    finally:
        try:
            _remove(place)
        finally:
            os.close(lock)


def _made_and_locked(parent: Path) -> tuple[Path, int]:
    """Make a group and lock it (flock(2)), which says that its maker lives; the lock ends with it.

    A number of a process would not do: it means another one in another PID namespace, such as that
    of another WSL distribution, and the cgroups are the same.
    """
    for _ in range(ATTEMPTS):
        try:
            place = Path(tempfile.mkdtemp(prefix=f"{PROBE_PREFIX}{os.getpid()}-", dir=parent))
        except OSError as err:
            raise HostError(
                f"a cgroup below {parent} cannot be made: {err.strerror}", hint=_READ_ONLY_HINT
            ) from err
        # Somebody who sweeps may take it for a left one until it is locked.
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(place, _DIRECTORY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if place.exists():
                return place, lock
            os.close(lock)
    raise HostError(
        f"the cgroups that ramnet makes below {parent} go away again and again",
        hint="something on this machine removes them: find it",
    )


def _sweep(parent: Path) -> None:
    """Remove the groups of probes whose process is gone."""
    found: list[Path] = []
    with contextlib.suppress(OSError):  # the parent itself may go meanwhile; its maker tells
        found = list(parent.glob(f"{PROBE_PREFIX}*"))
    for place in found:
        with contextlib.suppress(OSError):  # gone meanwhile, locked by its maker, or busy
            lock = os.open(place, _DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _rmdirs(place)
            finally:
                os.close(lock)


def _remove(place: Path) -> None:
    end = time.monotonic() + REMOVE_SECONDS
    while True:
        try:
            return _rmdirs(place)
        except OSError as err:
            if time.monotonic() > end:
                raise HostError(
                    f"the cgroup {place} cannot be removed: {err.strerror}",
                    hint=f"see who is in it: `cat {place}/cgroup.procs`, then `rmdir {place}`",
                ) from err
        time.sleep(_RETRY_SECONDS)


def _rmdirs(place: Path) -> None:
    """Remove a cgroup and those below it, innermost first; gone already is as good."""
    for directory, _, _ in os.walk(place, topdown=False):
        with contextlib.suppress(FileNotFoundError):
            Path(directory).rmdir()

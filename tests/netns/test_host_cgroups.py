"""Cgroups made, named by their ids and watched, on the machine's own v2 hierarchy."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ramnet.core.scope import Group
from ramnet.errors import HostError
from ramnet.host import cgroups as module
from ramnet.host.cgroups import PROBE_PREFIX, Groups, mount_point, temporary_group
from ramnet.host.elements import Elements
from ramnet.host.nft import Nft
from ramnet.host.scratch import in_scratch_netns
from tests.netns.groups import own_group, program_in, remove

REPOSITORY = Path(__file__).resolve().parents[2]
WAKE_SECONDS = 0.1


@pytest.fixture
def top() -> Iterator[Path]:
    with own_group() as place:
        yield place


@pytest.fixture
def made(top: Path) -> Iterator[Groups]:
    """Groups two and three levels down, which are there and have been looked at."""
    groups = Groups([f"{top.name}/a", f"{top.name}/deep/b"])
    groups.ensure()
    groups.drain()
    yield groups
    groups.close()


def wakes(groups: Groups) -> bool:
    """Whether something happens soon that concerns the groups."""
    readable, _, _ = select.select([groups], [], [], WAKE_SECONDS)
    return bool(readable) and groups.drain()


# Where the hierarchy is


def test_the_mount_is_read_from_the_kernel() -> None:
    assert (mount_point() / "cgroup.controllers").exists()


def test_a_mount_that_is_hidden_by_another_does_not_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = mount_point()
    monkeypatch.setattr(module, "mounts_of", lambda _lines: [tmp_path, real])
    assert mount_point() == real
    monkeypatch.setattr(module, "mounts_of", lambda _lines: [tmp_path])
    with pytest.raises(HostError, match="no cgroup v2 hierarchy is mounted") as caught:
        mount_point()
    assert "mount -t cgroup2" in caught.value.hint


def elsewhere(prepare: str, code: str, *, user: bool = False, pid: bool = False) -> str:
    """Run Python code in a mount (or another) namespace, after a shell has prepared it."""
    begin = "import os\nfrom ramnet.errors import HostError\nfrom ramnet.host.cgroups import *\n"
    attempt = f"try:\n    {code}\nexcept HostError as err:\n    print(err.message, '/', err.hint)\n"
    kinds = ["-U", "-r"] if user else ["-m", "-p", "-f", "--mount-proc"] if pid else ["-m"]
    argv = ["unshare", *kinds, "sh", "-c", f'{prepare} && exec "$@"', "sh"]
    argv += [sys.executable, "-c", begin + attempt]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        argv, env=environment, check=True, capture_output=True, text=True, timeout=30
    ).stdout


def test_without_a_hierarchy_the_reason_and_a_hint_are_told() -> None:
    said = elsewhere(f"umount -l {mount_point()}", "Groups(['x.slice']).ensure()")
    assert "no cgroup v2 hierarchy is mounted / mount -t cgroup2" in said


# Making and naming


def test_what_is_missing_is_made_and_named(top: Path) -> None:
    paths = [f"{top.name}/one", top.name, f"{top.name}/two/three"]
    groups = Groups(paths)
    try:
        found = groups.ensure()
        assert groups.ensure() == found, "what is there stays as it is"
    finally:
        groups.close()
    prefix = os.path.relpath(mount_point(), "/sys/fs/cgroup")
    for group, path, level in zip(found, paths, (2, 1, 3), strict=True):
        place = os.path.normpath(f"{prefix}/{path}")
        assert group == Group(path, level, (mount_point() / path).stat().st_ino, place)


def test_the_id_and_the_place_are_those_that_nft_means(made: Groups) -> None:
    """nft looks a path up by itself: what it puts into a set is our id."""
    (two, three) = made.ensure()

    def work() -> list[frozenset[int]]:
        Nft().apply(
            f'table inet t {{ set engines2 {{ type cgroupsv2; elements = {{ "{two.place}" }}; }}\n'
            f'set engines3 {{ type cgroupsv2; elements = {{ "{three.place}" }}; }}\n}}\n'
        )
        elements = Elements("t")
        try:
            return [elements.groups(level) for level in (2, 3)]
        finally:
            elements.close()

    assert in_scratch_netns(work) == [frozenset({two.ident}), frozenset({three.ident})]


@pytest.mark.parametrize("path", ["cgroup.procs", "cgroup.procs/x"])
def test_a_group_that_cannot_be_made_is_told(top: Path, path: str) -> None:
    groups = Groups([f"{top.name}/{path}"])
    try:
        with pytest.raises(HostError, match=f"the cgroup .*{path} cannot be made") as caught:
            groups.ensure()
        assert "ProtectControlGroups=" in caught.value.hint
    finally:
        groups.close()


def test_a_hierarchy_that_is_read_only_is_told() -> None:
    mount = mount_point()
    said = elsewhere(
        f"mount -o remount,ro,bind {mount}", "Groups(['ramnet-lab-read-only']).ensure()"
    )
    assert "cannot be made: Read-only file system / ramnet makes its cgroups itself" in said
    assert not (mount / "ramnet-lab-read-only").exists()


def test_a_group_that_somebody_always_removes_is_told(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def removing(groups: Groups, mount: Path) -> None:
        tries.append(mount)
        (top / "a").rmdir()
        real(groups, mount)

    real = Groups._watch  # noqa: SLF001
    monkeypatch.setattr(Groups, "_watch", removing)
    groups = Groups([f"{top.name}/a"])
    try:
        with pytest.raises(HostError, match="go away again and again") as caught:
            groups.ensure()
    finally:
        groups.close()
    assert len(tries) == module.ATTEMPTS
    assert "something on this machine removes them" in caught.value.hint


def test_a_group_that_goes_away_once_is_made_again(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def removing(groups: Groups, mount: Path) -> None:
        monkeypatch.setattr(Groups, "_watch", real)
        remove(top / "deep")
        groups._watch(mount)  # noqa: SLF001

    real = Groups._watch  # noqa: SLF001
    monkeypatch.setattr(Groups, "_watch", removing)
    groups = Groups([f"{top.name}/deep/b"])
    try:
        (group,) = groups.ensure()
    finally:
        groups.close()
    assert group.ident == (top / "deep/b").stat().st_ino


def test_one_that_goes_away_while_it_is_made_is_made_again(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def removed(place: Path, *_arguments: object, **_options: object) -> None:
        monkeypatch.setattr(Path, "mkdir", real)
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(place))

    real = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", removed)
    groups = Groups([f"{top.name}/a"])
    try:
        (group,) = groups.ensure()
    finally:
        groups.close()
    assert group.ident == (top / "a").stat().st_ino


# Watching


def test_nothing_happens_while_nothing_happens(made: Groups) -> None:
    assert not wakes(made)
    made.ensure()
    assert not wakes(made)


def test_a_group_that_was_made_anew_wakes_and_has_another_id(made: Groups, top: Path) -> None:
    (before, other) = made.ensure()
    (top / "a").rmdir()
    assert wakes(made)
    (after, same) = made.ensure()
    assert after.ident != before.ident
    assert after.ident == (top / "a").stat().st_ino
    assert same == other
    made.drain()
    (top / "a").rmdir()
    (top / "a").mkdir()
    assert wakes(made), "both at once, as a restarted service does it"
    assert made.ensure()[0].ident not in (before.ident, after.ident)


def test_one_that_somebody_else_makes_again_wakes(made: Groups, top: Path) -> None:
    (top / "a").rmdir()
    assert wakes(made)
    assert not wakes(made)
    (top / "a").mkdir()
    assert wakes(made)


def test_an_ancestor_that_goes_away_wakes_and_is_watched_again(made: Groups, top: Path) -> None:
    for _ in range(3):
        before = made.ensure()
        made.drain()
        (top / "deep/b").rmdir()
        assert wakes(made)
        (top / "deep").rmdir()
        assert wakes(made)
        after = made.ensure()
        assert after[0] == before[0]
        assert after[1].ident != before[1].ident


def test_the_topmost_one_goes_away_and_comes_back(made: Groups, top: Path) -> None:
    remove(top)
    assert wakes(made)
    made.ensure()
    made.drain()
    (top / "deep/b").rmdir()
    assert wakes(made)


def test_what_happens_to_others_does_not_concern_us(made: Groups, top: Path) -> None:
    for stranger in (top / "other", top / "deep/other", top / "a/below"):
        stranger.mkdir()
        stranger.rmdir()
    with own_group():
        pass
    assert select.select([made], [], [], WAKE_SECONDS)[0], "it is seen"
    assert not made.drain()


def test_more_than_the_kernel_keeps_concerns_us(made: Groups, top: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text(encoding="ascii"))
    stranger = top / "other"
    for _ in range(limit // 2 + 1):
        stranger.mkdir()
        stranger.rmdir()
    assert made.drain()
    assert not made.drain()


def test_what_is_left_of_a_directory_that_is_gone_does_not_concern_us(
    made: Groups, top: Path
) -> None:
    """Somebody holds it open, so that its watch outlives it."""
    held = os.open(top / "deep", os.O_RDONLY)
    try:
        remove(top / "deep")
        made.ensure()
        made.drain()
    finally:
        os.close(held)
    assert not wakes(made)


def test_what_concerns_us_is_not_lost_in_what_does_not(made: Groups, top: Path) -> None:
    (top / "a").rmdir()
    for _ in range(500):
        (top / "other").mkdir()
        (top / "other").rmdir()
    assert made.drain()


def test_no_watch_is_left_of_directories_that_are_gone(made: Groups, top: Path) -> None:
    def watches() -> int:
        info = Path(f"/proc/self/fdinfo/{made.fileno()}").read_text(encoding="ascii")
        return info.count("inotify wd:")

    before = watches()
    held = []
    try:
        for _ in range(5):
            held.append(os.open(top / "deep", os.O_RDONLY))
            remove(top / "deep")
            made.ensure()
        assert watches() == before == 3, "the mount, the top and the one below it"
    finally:
        for descriptor in held:
            os.close(descriptor)


def test_the_descriptor_is_closed_with_the_groups(top: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names
    groups = Groups([top.name])
    groups.ensure()
    groups.close()
    assert len(set(os.listdir("/proc/self/fd")) - before) == 0  # noqa: PTH208


def test_without_a_descriptor_the_reason_is_told() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        with pytest.raises(HostError, match="inotify_init1: Too many open files") as caught:
            Groups(["a"])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "max_user_instances" in caught.value.hint


def test_without_a_watch_the_reason_is_told(top: Path) -> None:
    said = elsewhere(
        "echo 0 >/proc/sys/user/max_inotify_watches", f"Groups(['{top.name}']).ensure()", user=True
    )
    assert f"inotify_add_watch {mount_point()}: No space left on device / more may" in said


# A group for a moment


def test_a_group_that_goes_while_it_is_looked_into_is_told_as_such(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was there a moment ago: what Python's glob makes of that is no error of the daemon's."""
    place = top / "short-lived"
    place.mkdir()
    whole = os.scandir

    def gone(path: Path) -> object:
        if str(path) == str(place):
            place.rmdir()
        return whole(path)

    monkeypatch.setattr(os, "scandir", gone)
    with pytest.raises(HostError, match="cannot be made"), temporary_group(place):
        pass


def test_a_temporary_group_is_gone_afterwards_with_all_that_is_in_it(top: Path) -> None:
    with temporary_group(top) as place:
        assert place.parent == top
        assert place.name.startswith(f"{PROBE_PREFIX}{os.getpid()}-")
        (place / "below").mkdir()
    assert not place.exists()
    with pytest.raises(KeyboardInterrupt), temporary_group(top) as place:
        raise KeyboardInterrupt
    assert not place.exists()


def test_it_is_removed_when_its_last_process_has_ended(top: Path) -> None:
    with temporary_group(top) as place:
        sleeper = subprocess.Popen(program_in(place, "print(1, flush=True)\ntime.sleep(0.3)"))
        try:
            wait_for(lambda: (place / "cgroup.procs").read_text(encoding="ascii") != "")
        finally:
            begin = time.monotonic()
    sleeper.wait()
    assert not place.exists()
    assert time.monotonic() - begin > 0.1


def test_one_that_cannot_be_removed_is_told(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMOVE_SECONDS", 0.05)
    temporary = temporary_group(top)
    place = temporary.__enter__()
    sleeper = subprocess.Popen(program_in(place, "time.sleep(60)"))
    wait_for(lambda: (place / "cgroup.procs").read_text(encoding="ascii") != "")
    with pytest.raises(HostError, match="cannot be removed: Device or resource busy") as caught:
        temporary.__exit__(None, None, None)
    sleeper.kill()
    sleeper.wait()
    assert f"cat {place}/cgroup.procs" in caught.value.hint


def test_one_that_cannot_be_made_is_told(top: Path) -> None:
    (top / "cgroup.max.descendants").write_text("0", encoding="ascii")
    temporary = temporary_group(top)
    with (
        pytest.raises(HostError, match=f"below {top} cannot be made: Resource") as caught,
        temporary,
    ):
        pytest.fail("there is no group")
    assert caught.value.hint


def test_what_a_killed_process_has_left_goes_and_what_is_in_use_stays(top: Path) -> None:
    """In use is what is locked, whoever did it: process numbers differ between PID namespaces."""
    left = [top / f"{PROBE_PREFIX}{name}" for name in (os.getpid(), 2**22, "x")]
    for place in left:
        (place / "inner/most").mkdir(parents=True)
    with temporary_group(top) as place:
        assert not any(old.exists() for old in left)
        with temporary_group(top) as another:
            assert place.exists()
            assert another.exists()
            elsewhere(f"test -d {place}", f"temporary_group(Path('{top}')).__enter__()", pid=True)
            assert place.exists()
            assert another.exists()


def test_one_that_a_killed_process_was_using_goes(top: Path) -> None:
    elsewhere("true", f"kept = temporary_group(Path('{top}')); kept.__enter__(); os._exit(0)")
    (left,) = top.glob(f"{PROBE_PREFIX}*")
    with temporary_group(top):
        assert not left.exists()


def sweeping(top: Path, times: int, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Have somebody else take the next groups for left ones, before they can be locked."""
    swept: list[Path] = []

    def late(descriptor: int, operation: int) -> None:
        if len(swept) < times and not operation & fcntl.LOCK_NB:
            swept.extend(top.glob(f"{PROBE_PREFIX}*"))
            remove(swept[-1])
        real(descriptor, operation)

    real = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", late)
    return swept


def test_one_that_is_swept_before_it_is_locked_is_made_again(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names
    swept = sweeping(top, 2, monkeypatch)
    with temporary_group(top) as place:
        assert place.exists()
        assert len(swept) == 2
    assert len(set(os.listdir("/proc/self/fd")) - before) == 0  # noqa: PTH208


def test_one_that_is_swept_before_it_is_opened_is_made_again(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swept(*, prefix: str, dir: Path) -> str:  # noqa: A002 - as its callers name it
        monkeypatch.setattr(tempfile, "mkdtemp", real)
        made = real(prefix=prefix, dir=dir)
        remove(Path(made))
        return made

    real = tempfile.mkdtemp
    monkeypatch.setattr(tempfile, "mkdtemp", swept)
    with temporary_group(top) as place:
        assert place.exists()


def test_one_that_is_always_swept_is_told(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swept = sweeping(top, 100, monkeypatch)
    temporary = temporary_group(top)
    with pytest.raises(HostError, match="go away again and again") as caught, temporary:
        pytest.fail("there is no group")
    assert len(swept) == module.ATTEMPTS
    assert "something on this machine removes them" in caught.value.hint


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)

"""sd_notify(3) and what a manager keeps, with a socket in the place of the service manager."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from ramnet.host.notify import SEND_SECONDS, FdStore, notify

ROOT = Path(__file__).resolve().parents[3]


def test_without_a_service_manager_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")


@pytest.mark.parametrize(
    "address", ["", "relative", "vsock:2:1", "/nowhere/at/all", "/" + "x" * 200]
)
def test_an_address_that_leads_nowhere(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not notify("READY=1")


@pytest.mark.parametrize("abstract", [False, True])
def test_the_state_arrives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, abstract: bool) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{path}" if abstract else path)
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{path}" if abstract else path)
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count
        assert notify("READY=1\nSTATUS=enforcing")
        assert manager.recv(100) == b"READY=1\nSTATUS=enforcing"
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_manager_that_reads_nothing_does_not_stop_the_caller(manager: socket.socket) -> None:
    begin = time.monotonic()
    sent = 0
    while notify("WATCHDOG=1"):
        sent += 1
        assert sent < 100_000, "the kernel takes them all: nothing was shown"
    assert time.monotonic() - begin < SEND_SECONDS + 10
    assert manager.recv(100) == b"WATCHDOG=1"
    assert notify("READY=1"), "there is room again"


# --- descriptors


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    path = tmp_path / "manager"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(path))
        listening.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        yield listening


def heard(manager: socket.socket) -> tuple[str, list[int]]:
    """One message: its text, and the files (by inode) of the descriptors that came with it."""
    data, descriptors, _, _ = socket.recv_fds(manager, 1000, 8)
    inodes = [os.fstat(descriptor).st_ino for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    return data.decode(), inodes


def nothing_more(manager: socket.socket) -> bool:
    manager.settimeout(0)
    try:
        manager.recv(1000)
    except BlockingIOError:
        return True
    finally:
        manager.settimeout(5)
    return False


def test_a_descriptor_is_kept_in_the_place_of_the_one_before(manager: socket.socket) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as kept:
        FdStore().keep("Queue-1", kept.fileno())
        assert heard(manager) == ("FDSTOREREMOVE=1\nFDNAME=Queue-1", [])
        inode = os.fstat(kept.fileno()).st_ino
        assert heard(manager) == ("FDSTORE=1\nFDPOLL=0\nFDNAME=Queue-1", [inode])
    assert nothing_more(manager)


def test_without_a_manager_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        monkeypatch.delenv(name, raising=False)
    store = FdStore()
    assert store.take("Queue-1") is None
    store.keep("Queue-1", 0)
    store.forget("Queue-1")
    store.settle()


# What a service finds that was started with some files from descriptor 3 on. `sh` gives way to it,
# so that its number is the one in LISTEN_PID.
_SERVICE = """
import json, os, sys
from ramnet.host.notify import FdStore

def file(descriptor):
    try:
        return os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
    except OSError:
        return None

store = FdStore()
said = {"left": sorted(name for name in os.environ if name.startswith("LISTEN_"))}
said["inherited"] = [number for number in (3, 4, 5) if file(number) and os.get_inheritable(number)]
said["taken"] = {name: file(store.take(name)) for name in json.loads(sys.argv[1])}
said["passed"] = [file(number) for number in store.passed("notice")]
said["twice"] = [name for name in said["taken"] if store.take(name) is not None]
store.settle()
said["open"] = [file(number) for number in (3, 4, 5)]
print(json.dumps(said))
"""


def service(tmp_path: Path, *take: str, pid: str = "$$", **environment: str) -> dict[str, Any]:
    """Start a service to which three files, named one, two and three, were passed."""
    files = [tmp_path / name for name in ("one", "two", "three")]
    for file in files:
        file.write_bytes(b"")
    passed = " ".join(f"{number}<'{file}'" for number, file in enumerate(files, 3))
    shell = ["/bin/sh", "-c", f'export LISTEN_PID="{pid}"; exec "$@" {passed}', "sh"]
    done = subprocess.run(
        [*shell, sys.executable, "-c", _SERVICE, json.dumps(take)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    assert found["left"] == [], "the environment is for nobody else"
    assert found["twice"] == []
    return found


THREE: Mapping[str, str] = {"LISTEN_FDS": "3", "LISTEN_FDNAMES": "a:b:c"}


def test_what_was_kept_is_there_once(tmp_path: Path, manager: socket.socket) -> None:
    said = service(tmp_path, "a", "c", "d", **THREE)
    assert said["taken"] == {"a": "one", "c": "three", "d": None}
    assert said["inherited"] == []
    # What nobody took is closed here, and there.
    assert said["open"] == ["one", None, "three"]
    assert heard(manager) == ("FDSTOREREMOVE=1\nFDNAME=b", [])
    assert nothing_more(manager)


@pytest.mark.parametrize("pid", ["1", "", "0", "nonsense", "$PPID", "$$0"])
def test_what_was_passed_to_somebody_else_is_left_alone(tmp_path: Path, pid: str) -> None:
    said = service(tmp_path, "a", "b", "c", pid=pid, **THREE)
    assert said["taken"] == {"a": None, "b": None, "c": None}
    assert said["open"] == ["one", "two", "three"]


@pytest.mark.parametrize("count", ["", "0", "-1", "nonsense", "3.0", "9" * 5000, "\u00b3"])
def test_a_count_that_is_none(tmp_path: Path, count: str) -> None:
    said = service(tmp_path, "a", LISTEN_FDS=count, LISTEN_FDNAMES="a:b:c")
    assert said["taken"] == {"a": None}


@pytest.mark.parametrize("count", ["4", "1000", "18446744073709551615"])
def test_fewer_than_was_said(tmp_path: Path, count: str) -> None:
    said = service(tmp_path, "a", "b", "c", LISTEN_FDS=count, LISTEN_FDNAMES="a:b:c")
    assert said["taken"] == {"a": "one", "b": "two", "c": "three"}


def test_of_two_with_one_name_the_first_is_taken(tmp_path: Path) -> None:
    said = service(tmp_path, "a", LISTEN_FDS="3", LISTEN_FDNAMES="a:a:b")
    assert said["taken"] == {"a": "one"}
    assert said["open"] == ["one", None, None]


@pytest.mark.parametrize("names", ["", "a", ":b"])
def test_what_has_no_name_is_closed(tmp_path: Path, names: str) -> None:
    said = service(tmp_path, *filter(None, names.split(":")), LISTEN_FDS="3", LISTEN_FDNAMES=names)
    wanted = {"": [None, None, None], "a": ["one", None, None], ":b": [None, "two", None]}[names]
    assert said["open"] == wanted


def test_sockets_of_a_socket_unit_stay_open(tmp_path: Path, manager: socket.socket) -> None:
    """All of one name, whoever else has them; they are nothing that the manager keeps for us."""
    said = service(tmp_path, "notice", LISTEN_FDS="3", LISTEN_FDNAMES="notice:a:notice")
    assert said["passed"] == ["one", "three"]
    assert said["taken"] == {"notice": None}
    assert said["open"] == ["one", None, "three"]
    assert heard(manager) == ("FDSTOREREMOVE=1\nFDNAME=a", [])
    assert nothing_more(manager)

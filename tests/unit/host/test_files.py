"""Followed files, and reading what may be anything but a policy."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from ramnet.core.config import Config, ScopeMode
from ramnet.core.textfile import MAX_FILE_BYTES
from ramnet.errors import HostError, PolicyError
from ramnet.host.files import FollowedFile, read_config, read_limited, read_policy

NOBODY = 65534
POLICY = 'version = 1\norganization = "acme"\n'


def settle(file: FollowedFile) -> bool:
    """Look twice, as the daemon does: was the file seen to have changed?"""
    return [file.changed(), file.changed()] == [False, True]


# Following


def write(path: Path) -> None:
    path.write_text("three\n")


def rename(path: Path) -> None:
    new = path.with_suffix(".new")
    new.write_text("two\n")
    new.rename(path)


def same_size(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def remove(path: Path) -> None:
    path.unlink()


def link(path: Path) -> None:
    other = path.with_name("other")
    other.write_text("one\n")
    path.unlink()
    path.symlink_to(other)


@pytest.mark.parametrize("change", [write, rename, same_size, remove, link])
def test_every_kind_of_change_is_told_once(tmp_path: Path, change: Callable[[Path], None]) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("one\n")
    file = FollowedFile(str(path))
    assert not any(file.changed() for _ in range(3))
    change(path)
    assert settle(file)
    assert not any(file.changed() for _ in range(3))


def test_a_file_or_folder_that_appears_later(tmp_path: Path) -> None:
    path = tmp_path / "etc" / "policy.toml"
    file = FollowedFile(str(path))
    assert not file.changed()
    path.parent.mkdir()
    assert not any(file.changed() for _ in range(2))
    path.write_text("one\n")
    assert settle(file)


def test_the_target_of_a_symlink_is_followed(tmp_path: Path) -> None:
    first, second, path = (tmp_path / name for name in ("first", "second", "policy.toml"))
    first.write_text("one\n")
    second.write_text("one\n")
    path.symlink_to(first)
    file = FollowedFile(str(path))
    first.write_text("other\n")
    assert settle(file)
    replaced = tmp_path / "new"
    replaced.symlink_to(second)
    replaced.rename(path)
    assert settle(file)


def test_a_file_is_not_read_while_it_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("")
    file = FollowedFile(str(path))
    for step in range(1, 4):
        path.write_text("x" * step)
        assert not file.changed()
    assert file.changed()


def test_a_change_that_was_taken_back_at_once_is_still_one(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("one\n")
    file = FollowedFile(str(path))
    path.rename(tmp_path / "aside")
    assert not file.changed()
    (tmp_path / "aside").rename(path)
    assert not file.changed()
    assert file.changed(), "the inode's change time tells"


# Reading


def test_a_file_of_exactly_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10)
    assert read_limited(str(path), 10) == b"x" * 10
    with pytest.raises(HostError, match="larger than 9 bytes"):
        read_limited(str(path), 9)


def test_an_empty_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    assert read_limited(str(path), 10) == b""


def nothing(_path: Path) -> None:
    pass


def loop(path: Path) -> None:
    path.symlink_to(path)


def listener(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (nothing, "does not exist"),
        (Path.mkdir, "cannot be read|not a regular file"),
        (os.mkfifo, "not a regular file"),
        (listener, "cannot be read"),
        (loop, "cannot be read"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (lambda path: path.symlink_to("/dev/null"), "not a regular file"),
    ],
    ids=["nothing", "directory", "pipe", "socket", "loop", "zero", "null"],
)
def test_what_is_no_regular_file(tmp_path: Path, make: Callable[[Path], None], says: str) -> None:
    path = tmp_path / "policy.toml"
    make(path)
    with pytest.raises(HostError, match=says) as caught:
        read_limited(str(path), 100)
    assert str(path) in caught.value.message


def test_a_pipe_that_somebody_holds_open_does_not_hang(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        with pytest.raises(HostError, match="not a regular file"):
            read_limited(str(path), 100)
    finally:
        os.close(writer)


def test_a_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(POLICY)
    path.chmod(0)
    me = os.geteuid()
    if me == 0:  # who may read everything
        os.seteuid(NOBODY)
    try:
        with pytest.raises(HostError, match="Permission denied"):
            read_limited(str(path), 100)
    finally:
        os.seteuid(me)


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, os.mkfifo, nothing])
def test_no_descriptor_is_left_open(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "policy.toml"
    make(path)
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names only
    for _ in range(3):
        try:
            read_limited(str(path), 0)
        except HostError:
            continue
    assert len(set(os.listdir("/proc/self/fd")) - before) <= 0  # noqa: PTH208


# Policies and configurations


def test_a_policy(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(POLICY)
    assert read_policy(str(path)).organization == "acme"


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"\x7fELF\x02\x01", b"version = ["])
def test_a_policy_that_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "policy.toml"
    path.write_bytes(content)
    with pytest.raises(PolicyError):
        read_policy(str(path))


def test_a_huge_policy(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(HostError, match="larger than"):
        read_policy(str(path))


def test_a_configuration_that_does_not_exist_has_no_settings(tmp_path: Path) -> None:
    assert read_config(str(tmp_path / "ramnet.toml")) == Config()


def test_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "ramnet.toml"
    path.write_text('[scope]\nmode = "netns"\n')
    assert read_config(str(path)).scope.mode is ScopeMode.NETNS
    path.write_text('[scope]\nmode = "other"\n')
    with pytest.raises(PolicyError):
        read_config(str(path))


def test_a_configuration_that_is_there_but_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    """Settings that somebody made must not be passed over."""
    path = tmp_path / "ramnet.toml"
    path.symlink_to(tmp_path / "gone")
    with pytest.raises(HostError, match="does not exist"):
        read_config(str(path))

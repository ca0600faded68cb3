"""Entries for the journal, sent to a socket of the same kind."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramnet.host.journal import MAX_DATAGRAM, Journal, datagram


def parsed(data: bytes) -> dict[str, bytes]:
    """Read an entry as journald does."""
    found = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (size,) = struct.unpack_from("<Q", rest)
            value, rest = rest[8 : 8 + size], rest[8 + size :]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        found[name.decode()] = value
        data = rest
    return found


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "socket"))
        server.settimeout(5)
        yield server


def path(tmp_path: Path) -> str:
    return str(tmp_path / "socket")


@pytest.mark.parametrize(
    "text",
    ["plain", "", "a=b", "größe", "two\nlines", "MESSAGE=x\nPRIORITY=0", "\n", "end\n", "\udcff\n"],
)
def test_any_text_stays_in_its_field(text: str) -> None:
    found = parsed(datagram({"RAMNET_WHY": text, "MESSAGE": "m"}))
    assert list(found) == ["RAMNET_WHY", "MESSAGE"]
    assert found["MESSAGE"] == b"m"
    assert found["RAMNET_WHY"] == text.encode("utf-8", "backslashreplace")


def test_an_entry_arrives(tmp_path: Path, journald: socket.socket) -> None:
    journal = Journal(path(tmp_path))
    assert journal.send({"MESSAGE": "hello\nworld", "PRIORITY": "5"})
    assert parsed(journald.recv(MAX_DATAGRAM)) == {"MESSAGE": b"hello\nworld", "PRIORITY": b"5"}
    journal.close()
    journal.close()


def test_where_there_is_no_journal_nothing_happens(tmp_path: Path) -> None:
    journal = Journal(path(tmp_path))
    assert not journal.send({"MESSAGE": "x"})
    assert journal.lost == 0
    journal.close()


def test_a_journal_that_restarts_is_found_again(tmp_path: Path) -> None:
    journal = Journal(path(tmp_path))
    for _ in range(2):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
            server.bind(path(tmp_path))
            server.settimeout(5)
            assert journal.send({"MESSAGE": "x"})
            assert server.recv(100) == b"MESSAGE=x\n"
        assert not journal.send({"MESSAGE": "nobody listens"})
        Path(path(tmp_path)).unlink()
    journal.close()


def test_a_journal_that_does_not_read_is_not_waited_for(
    tmp_path: Path,
    journald: socket.socket,
) -> None:
    journal = Journal(path(tmp_path))
    sent = 0
    while journal.send({"MESSAGE": f"{sent:01000}"}):
        sent += 1
    assert journal.lost == 1
    journald.recv(2_000)
    assert journal.send({"MESSAGE": "there is room again"})
    journal.close()


@pytest.mark.usefixtures("journald")
def test_what_is_too_large_is_not_sent(tmp_path: Path) -> None:
    journal = Journal(path(tmp_path))
    assert not journal.send({"MESSAGE": "x" * MAX_DATAGRAM})
    assert journal.lost == 1
    journal.close()

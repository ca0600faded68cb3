"""The control socket: who may ask what, and what strange clients get."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ramnet.errors import ControlError, HostError, NameFault
from ramnet.host import control
from ramnet.host.control import MAX_REQUEST, SOCKET_NAME, ControlServer, ask

NOBODY = 65534


async def answers(request: Any) -> dict[str, Any]:
    if request["verb"] == "fail":
        raise NameFault("no such name", hint="write another")
    return {"verb": request["verb"], "size": len(request)}


@contextlib.asynccontextmanager
async def serving(
    folder: Path, handler: Callable[[Any], Awaitable[dict[str, Any]]] = answers, clients: int = 4
) -> AsyncIterator[ControlServer]:
    server = ControlServer(
        str(folder),
        handler,
        root_only=frozenset({"off"}),
        clients=clients,
        in_turn=frozenset({"explain"}),
    )
    await server.start()
    try:
        yield server
    finally:
        await server.close()


def say(folder: Path, data: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(folder / SOCKET_NAME))
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as stream:
            return stream.readline()


def said(folder: Path, data: bytes) -> Awaitable[bytes]:
    """What the server says to a client that writes this and then nothing more."""
    return asyncio.to_thread(say, folder, data)


@pytest.fixture
def complaints(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What asyncio logs: an exception that nobody caught."""
    found: list[str] = []
    with caplog.at_level(logging.WARNING, logger="asyncio"):
        yield found
        found += [record.getMessage() for record in caplog.records]
    assert found == []


# Asking


def ask_in_thread(folder: Path, verb: str, **arguments: Any) -> Awaitable[dict[str, Any]]:
    return asyncio.to_thread(ask, str(folder), verb, **arguments)


def test_a_question_and_its_answer(tmp_path: Path) -> None:
    async def story() -> None:
        async with serving(tmp_path):
            assert await ask_in_thread(tmp_path, "status") == {"verb": "status", "size": 1}
            found = await ask_in_thread(tmp_path, "explain", target="a\u2028b\n")
            assert found == {"verb": "explain", "size": 2}

    asyncio.run(story())


def test_an_error_of_the_handler_arrives_with_its_hint(tmp_path: Path) -> None:
    async def story() -> None:
        async with serving(tmp_path):
            with pytest.raises(ControlError, match="no such name") as caught:
                await ask_in_thread(tmp_path, "fail")
            assert caught.value.hint == "write another"

    asyncio.run(story())


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ask(str(tmp_path), "status")
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(tmp_path / SOCKET_NAME))
    with pytest.raises(ConnectionRefusedError):
        ask(str(tmp_path), "status")


@pytest.mark.parametrize("folder", ["/etc/passwd", "/" + "x" * 200])
def test_a_folder_that_is_none_is_an_error_of_ours(folder: str) -> None:
    with pytest.raises(ControlError, match="does not answer"):
        ask(folder, "status")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"hello\n",
        b"[]\n",
        b'"ok"\n',
        b"17\n",
        b"{}\n",
        b'{"ok": false}\n',
        b'{"ok": true}\n',
        b'{"ok": true, "result": 3}\n',
        b"[" * 100_000 + b"\n",
        b"\xff\xfe\n",
    ],
)
def test_whoever_else_listens_there_gives_an_error_of_ours(tmp_path: Path, line: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / SOCKET_NAME))
        server.listen()

        def serve() -> None:
            client, _ = server.accept()
            with client:
                client.recv(1000)
                client.sendall(line)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with pytest.raises(ControlError):
                ask(str(tmp_path), "status")
        finally:
            thread.join()


def test_a_daemon_that_hangs_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "ASK_SECONDS", 0.05)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / SOCKET_NAME))
        server.listen()
        with pytest.raises(ControlError, match="does not answer") as caught:
            ask(str(tmp_path), "status")
        assert caught.value.hint == "see its log"


# Who may ask


_AS_NOBODY = """
import os, socket, sys
os.setgroups([])
os.setresgid(*[int(sys.argv[1])] * 3)
os.setresuid(*[int(sys.argv[1])] * 3)
with socket.socket(socket.AF_UNIX) as client:
    client.connect("control.sock")
    client.sendall(sys.stdin.buffer.read())
    sys.stdout.buffer.write(client.makefile("rb").readline())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")
def test_the_kernel_says_who_asks(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    argv = [sys.executable, "-I", "-S", "-c", _AS_NOBODY]

    def ask_as(uid: int, verb: str) -> dict[str, Any]:
        request = json.dumps({"verb": verb}).encode() + b"\n"
        done = subprocess.run(
            [*argv, str(uid)], cwd=tmp_path, input=request, capture_output=True, check=True
        )
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    async def story() -> None:
        async with serving(tmp_path):
            refused = await asyncio.to_thread(ask_as, NOBODY, "off")
            assert refused == {"ok": False, "error": "only root may ask for 'off'", "hint": ""}
            assert (await asyncio.to_thread(ask_as, NOBODY, "status"))["ok"]
            assert (await asyncio.to_thread(ask_as, 0, "off"))["ok"]

    asyncio.run(story())


# Strange clients


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"hello\n",
        b"17\n",
        b"null\n",
        b"[]\n",
        b'"verb"\n',
        b"{}\n",
        b'{"verb": ["off"]}\n',
        b'{"verb": {}}\n',
        b"\xff\xfe\x00\n",
        b"[" * (MAX_REQUEST - 10) + b"\n",
    ],
)
def test_what_is_no_request_gets_an_error_and_no_trace(
    tmp_path: Path, complaints: list[str], line: bytes
) -> None:
    async def story() -> None:
        async with serving(tmp_path):
            answer = json.loads(await said(tmp_path, line))
            assert answer == {
                "ok": False,
                "error": "the request is not understood",
                "hint": "",
            }
            assert (await ask_in_thread(tmp_path, "status"))["verb"] == "status"

    asyncio.run(story())
    assert complaints == []


def test_a_request_beyond_the_limit_is_refused(tmp_path: Path, complaints: list[str]) -> None:
    async def story() -> None:
        async with serving(tmp_path):
            with contextlib.suppress(ConnectionError):  # hung up on while it still writes
                answer = json.loads(await said(tmp_path, b"x" * (4 * MAX_REQUEST)))
                assert answer["error"] == "the request is not understood"
            assert (await ask_in_thread(tmp_path, "status"))["verb"] == "status"

    asyncio.run(story())
    assert complaints == []


def test_a_client_that_says_nothing_loses_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, complaints: list[str]
) -> None:
    monkeypatch.setattr(control, "CLIENT_SECONDS", 0.05)

    async def story() -> None:
        async with serving(tmp_path):
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / SOCKET_NAME))
            assert await reader.read() == b""
            writer.close()

    asyncio.run(story())
    assert complaints == []


def test_too_many_clients_are_told_and_root_is_let_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uids = [NOBODY, NOBODY, NOBODY, 0, NOBODY]
    monkeypatch.setattr(control, "_peer_uid", lambda _writer: uids.pop(0))

    async def story() -> None:
        async with serving(tmp_path, clients=2):
            path = str(tmp_path / SOCKET_NAME)
            waiting = [await asyncio.open_unix_connection(path) for _ in range(2)]
            third = json.loads(await said(tmp_path, b'{"verb": "status"}\n'))
            assert (third["error"], third["hint"]) == ("too many clients", "try again")
            root = json.loads(await said(tmp_path, b'{"verb": "off"}\n'))
            assert root["ok"]
            for reader, writer in waiting:
                writer.close()
                await reader.read()
            assert json.loads(await said(tmp_path, b'{"verb": "status"}\n'))["ok"]

    asyncio.run(story())


class Slow:
    """Answers ``explain`` when it is let go, and counts how many are at work."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.at_work = asyncio.Semaphore(0)
        self.busy = self.most = 0

    async def answer(self, request: Any) -> dict[str, Any]:
        if request["verb"] == "status":
            return {}
        self.busy += 1
        self.most = max(self.most, self.busy)
        self.at_work.release()
        try:
            await self.go.wait()
            if request["target"] == "bad":
                raise NameFault("no such name", hint="")
            return {}
        finally:
            self.busy -= 1


EXPLAIN = b'{"verb": "explain", "target": "quay.io"}\n'
STATUS = b'{"verb": "status"}\n'


async def fine(folder: Path, line: bytes) -> bool:
    return bool(json.loads(await said(folder, line))["ok"])


@pytest.mark.parametrize(("uid", "most"), [(NOBODY, 1), (0, 3)])
def test_what_costs_much_is_done_for_one_at_a_time_but_for_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid: int, most: int
) -> None:
    monkeypatch.setattr(control, "_peer_uid", lambda _writer: uid)

    async def story() -> None:
        slow = Slow()
        bad = EXPLAIN.replace(b"quay.io", b"bad")  # who fails ends its turn as well
        async with serving(tmp_path, slow.answer), asyncio.TaskGroup() as group:
            asked = [group.create_task(fine(tmp_path, line)) for line in (bad, EXPLAIN, bad)]
            for _ in range(most):
                await slow.at_work.acquire()
            assert await fine(tmp_path, STATUS)
            slow.go.set()
            assert await asyncio.gather(*asked) == [False, True, False]
        assert slow.most == most

    asyncio.run(story())


def test_whose_turn_does_not_come_is_told_and_root_does_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "CLIENT_SECONDS", 0.2)
    uids = [NOBODY, NOBODY, 0, NOBODY]
    monkeypatch.setattr(control, "_peer_uid", lambda _writer: uids.pop(0))

    async def story() -> None:
        slow = Slow()
        async with serving(tmp_path, slow.answer), asyncio.TaskGroup() as group:
            first = group.create_task(fine(tmp_path, EXPLAIN))
            await slow.at_work.acquire()
            late = json.loads(await said(tmp_path, EXPLAIN))
            busy = "too many others ask for 'explain'"
            assert (late["error"], late["hint"]) == (busy, "try again")
            root = group.create_task(fine(tmp_path, EXPLAIN))
            await slow.at_work.acquire()
            slow.go.set()
            assert await first
            assert await root
            assert await fine(tmp_path, EXPLAIN)

    asyncio.run(story())


def test_a_client_that_does_not_read_does_not_hold_others_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, complaints: list[str]
) -> None:
    monkeypatch.setattr(control, "CLIENT_SECONDS", 0.2)

    async def much(request: Any) -> dict[str, Any]:
        return {"much": "x" * 8_000_000} if request["verb"] == "much" else {"little": 1}

    async def story() -> None:
        async with serving(tmp_path, much):
            _, writer = await asyncio.open_unix_connection(str(tmp_path / SOCKET_NAME), limit=1)
            writer.write(b'{"verb": "much"}\n')
            await writer.drain()
            assert await ask_in_thread(tmp_path, "status") == {"little": 1}
            whole = await ask_in_thread(tmp_path, "much")
            assert len(whole["much"]) == 8_000_000
            writer.transport.abort()

    asyncio.run(story())
    assert complaints == []


# The socket's file


def test_a_socket_that_a_daemon_left_is_replaced_and_removed_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "ramnet"
    folder.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(folder / SOCKET_NAME))

    async def story() -> None:
        async with serving(folder) as server:
            assert server.path.stat().st_mode & 0o777 == 0o666, "anyone may ask for the status"
            assert (await ask_in_thread(folder, "status"))["verb"] == "status"
        assert not server.path.exists()

    asyncio.run(story())


def test_the_folder_is_made_and_others_may_enter_it(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "ramnet"

    async def story() -> None:
        before = os.umask(0o022)
        try:
            async with serving(folder):
                assert folder.stat().st_mode & 0o777 == 0o755
        finally:
            os.umask(before)

    asyncio.run(story())


def test_what_is_no_socket_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / SOCKET_NAME).write_text("somebody's")

    async def story() -> None:
        with pytest.raises(HostError, match="is in the way and is not a socket"):
            async with serving(tmp_path):
                raise AssertionError

    asyncio.run(story())
    assert (tmp_path / SOCKET_NAME).read_text() == "somebody's"


@pytest.mark.parametrize("name", ["a file", "x" * 150])
def test_a_folder_that_cannot_be_used_is_told_with_the_reason(tmp_path: Path, name: str) -> None:
    (tmp_path / "a file").touch()

    async def story() -> None:
        with pytest.raises(HostError, match="control socket ") as caught:
            async with serving(tmp_path / name):
                raise AssertionError
        assert "--runtime-dir" in caught.value.hint
        assert not caught.value.message.endswith(": None")

    asyncio.run(story())


def test_closing_what_never_listened(tmp_path: Path) -> None:
    server = ControlServer(str(tmp_path), answers, root_only=frozenset(), clients=1)
    asyncio.run(server.close())

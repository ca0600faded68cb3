"""The command line against a ramnet that stands by, which answers with words of its own."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramnet.errors import HostError
from ramnet.host.control import SOCKET_NAME, ControlServer, ask
from ramnet.standby import Standby
from tests.unit.cli.conftest import Answer, Run


@pytest.fixture
def standing_by(tmp_path: Path) -> Iterator[Path]:
    """Serve what a ramnet that stands by answers; return its runtime directory."""
    loop = asyncio.new_event_loop()
    answer = Standby(str(tmp_path))._answer  # noqa: SLF001 - without the lock it waits for
    server = ControlServer(str(tmp_path), answer, root_only=frozenset({"off"}), clients=4)
    loop.run_until_complete(server.start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield tmp_path
    asyncio.run_coroutine_threadsafe(server.close(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_status_is_good(ramnet: Run, standing_by: Path) -> None:
    said = ramnet("status", "--json", "--runtime-dir", str(standing_by))
    found = json.loads(said.out)
    assert (said.code, found["state"], found["pid"]) == (0, "standby", os.getpid())
    assert ramnet("status", "--runtime-dir", str(standing_by)).code == 0


@pytest.mark.parametrize(
    "arguments", [("off",), ("explain", "quay.io"), ("why", "quay.io")], ids=lambda given: given[0]
)
def test_what_only_the_one_that_enforces_can_do(
    ramnet: Run,
    standing_by: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    more = ("--config", str(tmp_path / "none.toml")) if arguments[0] == "off" else ()
    said = ramnet(*arguments, "--runtime-dir", str(standing_by), *more)
    assert (said.code, said.out) == (1, "")
    verb = arguments[0].replace("why", "explain")
    assert f"this ramnet stands by and cannot answer '{verb}'" in said.err
    assert f"hint: run `ramnet {verb}` where that one runs" in said.err


def test_it_does_not_take_the_socket_of_one_that_is_alive(
    tmp_path: Path, daemon: dict[str, Answer]
) -> None:
    daemon["status"] = {"state": "enforcing"}
    with pytest.raises(HostError) as caught:
        asyncio.run(Standby(str(tmp_path)).wait())
    assert f"a ramnet that is alive answers in {tmp_path} already" in caught.value.message
    assert ask(str(tmp_path), "status") == {"state": "enforcing"}


def test_the_socket_of_the_dead_is_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / SOCKET_NAME
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert path.is_socket()
    lock = object()
    monkeypatch.setattr("ramnet.standby.NflogReader", lambda _group: lock)
    assert asyncio.run(Standby(str(tmp_path)).wait()) is lock
    assert not path.exists()

"""The command line in this process, and a daemon that says what it is told to say."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ramnet.cli.main import main
from ramnet.errors import RamnetError
from ramnet.host.control import ControlServer


@dataclass(frozen=True, slots=True)
class Said:
    """What one call of the program left."""

    code: int
    out: str
    err: str


Run = Callable[..., Said]
Answer = dict[str, Any] | RamnetError


@pytest.fixture
def ramnet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run ``ramnet`` with these arguments; whatever it does, it exits and shows no traceback."""
    monkeypatch.delenv("RAMNET_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> Said:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        code = caught.value.code
        assert isinstance(code, int)
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return Said(code, said.out, said.err)

    return run


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[dict[str, Answer]]:
    """Serve on the control socket of ``tmp_path``: fill in the answer for each verb."""
    answers: dict[str, Answer] = {}
    loop = asyncio.new_event_loop()

    async def handle(request: Any) -> dict[str, Any]:
        answer = answers[request["verb"]]
        if isinstance(answer, RamnetError):
            raise answer
        return answer

    server = ControlServer(str(tmp_path), handle, root_only=frozenset(), clients=4)
    loop.run_until_complete(server.start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield answers
    asyncio.run_coroutine_threadsafe(server.close(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()

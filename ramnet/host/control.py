"""The control socket: one JSON object a line, in and out, over a unix stream socket.

Anyone may read; only root may change anything. Who asks is told by the kernel (SO_PEERCRED).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from ramnet.errors import ControlError, HostError, RamnetError

SOCKET_NAME = "control.sock"
# A request is a verb and a name; an answer may list every registry of a long policy.
MAX_REQUEST = 8 * 1024
MAX_ANSWER = 64 * 1024 * 1024
# A client that says nothing, or reads nothing, gives its place to another. So does one that waits
# for its turn.
CLIENT_SECONDS = 5.0
ASK_SECONDS = 10.0

Request = Mapping[str, Any]
Handler = Callable[[Request], Awaitable[dict[str, Any]]]


class ControlServer:
    """Serves requests until closed; verbs in ``root_only`` are refused to anyone but uid 0.

    Verbs in ``in_turn`` cost so much that all others than uid 0 get one answer at a time.
    """

    def __init__(
        self,
        runtime_dir: str,
        handler: Handler,
        *,
        root_only: frozenset[str],
        clients: int,
        in_turn: frozenset[str] = frozenset(),
    ) -> None:
        self.path = Path(runtime_dir) / SOCKET_NAME
        self._handler = handler
        self._root_only = root_only
        self._clients = clients
        self._in_turn = in_turn
        self._turn = asyncio.Lock()
        self._active = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. The lock against a second daemon is held by then: an old socket is nobody's."""
        try:
            self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            if self.path.exists() and not self.path.is_socket():
                raise HostError(f"{self.path} is in the way and is not a socket")
            self.path.unlink(missing_ok=True)
            self._server = await asyncio.start_unix_server(
                self._serve, self.path, limit=MAX_REQUEST
            )
            self.path.chmod(0o666)  # anyone may ask for the status
        except OSError as err:
            raise HostError(
                f"control socket {self.path}: {err.strerror or err}",
                hint="--runtime-dir names a directory that root can write to",
            ) from err

    async def close(self) -> None:
        """Stop listening and remove the socket."""
        if self._server is not None:
            self._server.close()
            with contextlib.suppress(OSError):
                self.path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._active += 1
        try:
            uid = _peer_uid(writer)
            if self._active > self._clients and uid != 0:  # nobody can keep root out
                answer = _failure(ControlError("too many clients", hint="try again"))
            else:
                answer = await self._answer(await _request(reader), uid)
            writer.write(json.dumps(answer).encode() + b"\n")
            async with asyncio.timeout(CLIENT_SECONDS):
                await writer.drain()
        except (OSError, TimeoutError):
            pass
        finally:
            self._active -= 1
            writer.close()

    async def _answer(self, line: bytes, uid: int) -> dict[str, Any]:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):  # RecursionError: nested too deep
            request = None
        verb = request.get("verb") if isinstance(request, dict) else None
        if not isinstance(request, dict) or not isinstance(verb, str):
            return _failure(ControlError("the request is not understood"))
        if verb in self._root_only and uid != 0:
            return _failure(ControlError(f"only root may ask for '{verb}'"))
        try:
            async with self._turn_of(verb, uid):
                return {"ok": True, "result": await self._handler(request)}
        except RamnetError as err:
            return _failure(err)

    @contextlib.asynccontextmanager
    async def _turn_of(self, verb: str, uid: int) -> AsyncIterator[None]:
        if verb not in self._in_turn or uid == 0:  # nobody can keep root out
            yield
            return
        try:
            async with asyncio.timeout(CLIENT_SECONDS):
                await self._turn.acquire()
        except TimeoutError:
            busy = f"too many others ask for '{verb}'"
            raise ControlError(busy, hint="try again") from None
        try:
            yield
        finally:
            self._turn.release()


async def _request(reader: asyncio.StreamReader) -> bytes:
    """Read one line; one beyond the limit is no request."""
    async with asyncio.timeout(CLIENT_SECONDS):
        try:
            return await reader.readline()
        except ValueError:
            return b""


def _failure(error: RamnetError) -> dict[str, Any]:
    return {"ok": False, "error": error.message, "hint": error.hint}


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    raw = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("=iII", raw)[1])


def ask(
    runtime_dir: str, verb: str, *, seconds: float = ASK_SECONDS, **arguments: Any
) -> dict[str, Any]:
    """Ask the daemon and return its answer.

    Raises ``FileNotFoundError`` or ``ConnectionRefusedError`` when no daemon listens, and
    ``ControlError`` when it refuses or does not answer.
    """
    path = Path(runtime_dir) / SOCKET_NAME
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(seconds)
        try:
            client.connect(str(path))
            # Who has too many clients answers and closes without reading what is asked.
            with contextlib.suppress(BrokenPipeError):
                client.sendall(json.dumps({"verb": verb, **arguments}).encode() + b"\n")
            with client.makefile("rb") as stream:
                line = stream.readline(MAX_ANSWER)
            answer = json.loads(line)
            result = answer["result"] if answer["ok"] else answer["error"]
        except (FileNotFoundError, ConnectionRefusedError):
            raise
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as err:
            raise ControlError(
                f"the daemon does not answer on {path}: {err}", hint="see its log"
            ) from err
    if not answer["ok"]:
        raise ControlError(str(result), hint=str(answer.get("hint", "")))
    if not isinstance(result, dict):
        raise ControlError(f"the daemon does not answer on {path}", hint="see its log")
    return result

"""The daemon's side of the notice: the listening sockets, and whether the responder lives.

Whoever serves them has no privilege (``host/responder.py``). The sockets stay open here as long as
refused connections are redirected to them: nobody else can take the port.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ramnet.core.activity import Seen, seen_of
from ramnet.errors import HostError
from ramnet.host.notify import NOTICE_SOCKETS, FdStore
from ramnet.host.responder import sorted_sockets

SOCKET_NAME: Final = "notice.sock"
PING_SECONDS: Final = 0.3
# As many refused clients may wait as Linux lets wait at all (somaxconn).
BACKLOG: Final = 4096
# A responder that does not answer for so long is asked over a new connection, and one that was
# started here is started anew: those whom it has accepted would wait for it.
SILENT_SECONDS: Final = 3.0
# Counted in pings: a clock that jumps when a machine wakes up is not silence.
_SILENT_PINGS: Final = round(SILENT_SECONDS / PING_SECONDS)
# How long it may take until it answers first, as ramnet-notice.service has it.
START_SECONDS: Final = 90.0
RETRY_SECONDS: Final = 0.2
# One that ends again and again is started at most so seldom, until it has run for so long.
MOST_RETRY_SECONDS: Final = 30.0
GOOD_SECONDS: Final = 10.0
MAX_LINE: Final = 8 * 1024
_PORT_TRIES: Final = 16
_CAP_SETGID, _CAP_SETUID = 6, 7


class Notice:
    """Has a responder run, and calls ``beat`` while it answers, about every 300 ms.

    ``port`` is where both families listen; None where no notice can be given, ``because`` says why.
    ``answers`` tells whether the responder did when it was last asked. ``seen`` gets what a client
    wanted, ``log`` one line for a person.
    """

    def __init__(
        self,
        store: FdStore,
        runtime_dir: str,
        *,
        beat: Callable[[], None],
        seen: Callable[[Seen], None],
        log: Callable[[str], None],
    ) -> None:
        self._beat, self._seen, self._log = beat, seen, log
        self._message = {"organization": "", "contact": ""}
        self._changed = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._has_to_answer = 0.0  # from when on
        self._path = Path(runtime_dir) / SOCKET_NAME
        self._listening: tuple[socket.socket, ...] = ()
        self._control: socket.socket | None = None
        self.port: int | None = None
        self.because = ""
        self.answers = False
        passed = store.passed(NOTICE_SOCKETS)
        self._spawns = not passed
        try:
            if passed:
                # The store's own stay as they are: there may be another Notice after this one.
                self._take(tuple(map(os.dup, passed)))
            else:
                self._make()
        except (OSError, HostError) as err:
            self.because = err.message if isinstance(err, HostError) else str(err)
            self.close()

    @property
    def families(self) -> tuple[int, ...]:
        """The versions of IP whose clients can be led here: loopback may lack IPv6."""
        versions = {socket.AF_INET: 4, socket.AF_INET6: 6}
        return tuple(
            versions[sock.family] for sock in self._listening if _is_local(sock.getsockname()[0])
        )

    def say(self, organization: str, contact: str) -> None:
        """Have the message name this organisation and contact from now on; both may be empty."""
        self._message = {"organization": organization, "contact": contact}
        self._changed.set()

    async def run(self) -> None:
        """Keep the responder and the beats going until cancelled."""
        if self.port is None:
            return
        async with asyncio.TaskGroup() as tasks:
            if self._spawns:
                tasks.create_task(self._keep_running())
            tasks.create_task(self._keep_talking())

    def close(self) -> None:
        """End the responder that was started here and close the sockets.

        Only where nobody is redirected any more: the port is free for others then.
        """
        self._end()
        made = self._spawns and self._control is not None
        for sock in (*self._listening, *([self._control] if self._control else [])):
            sock.close()
        if made:
            with contextlib.suppress(OSError):
                self._path.unlink()
        self._listening, self._control, self.port = (), None, None

    # --- the sockets

    def _take(self, descriptors: tuple[int, ...]) -> None:
        """Use the sockets of ramnet-notice.socket."""
        self._listening, self._control = sorted_sockets(descriptors)
        ports = {sock.getsockname()[1] for sock in self._listening}
        if self._control is None or len(ports) != 1 or not self._is_listening():
            raise HostError("the sockets that systemd passes are not those of ramnet-notice.socket")
        self._path = Path(self._control.getsockname())
        self.port = ports.pop()

    def _make(self) -> None:
        if not _may_change_user():
            raise HostError(
                "no sockets of ramnet-notice.socket, and no right to give a responder its own user"
            )
        self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        self._control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._control.bind(str(self._path))
        self._path.chmod(0o600)  # nobody can connect before it listens
        self._control.listen()
        for _ in range(_PORT_TRIES):
            if self._listen():
                return
        raise HostError("no port that is free with IPv4 and IPv6")

    def _listen(self) -> bool:
        """Listen at a free port with both families; False where one of them has it taken."""
        first = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        port = first.getsockname()[1]
        try:
            second = socket.create_server(("::1", port), family=socket.AF_INET6, backlog=BACKLOG)
        except OSError as err:
            if err.errno == errno.EADDRINUSE:
                first.close()
                return False
            self._listening = (first,)  # a machine without IPv6
        else:
            self._listening = (first, second)
        self.port = port
        return True

    def _is_listening(self) -> bool:
        """Whether the sockets still hold their port: somebody may have shut one down."""
        return all(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) for sock in self._listening
        )

    # --- the responder

    async def _keep_running(self) -> None:
        pause, loop = RETRY_SECONDS, asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                ended = await self._run_responder()
            except OSError as err:
                ended = str(err)
            if loop.time() - began > GOOD_SECONDS:
                pause = RETRY_SECONDS
            self._log(f"the responder of the notice has ended ({ended}); again in {pause:g} s")
            await asyncio.sleep(pause)
            pause = min(2 * pause, MOST_RETRY_SECONDS)

    async def _run_responder(self) -> str:
        if self._control is None:
            return "no sockets"
        descriptors = tuple(sock.fileno() for sock in (*self._listening, self._control))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-sP", "-m", "ramnet", "notice", "--spawned", ",".join(map(str, descriptors))),
            stdin=asyncio.subprocess.PIPE,  # ends with this process, and the responder with it
            stdout=asyncio.subprocess.DEVNULL,
            pass_fds=descriptors,
            start_new_session=True,
        )
        self._process = process
        self._has_to_answer = asyncio.get_running_loop().time() + START_SECONDS
        try:
            return f"status {await process.wait()}"
        finally:
            self._end()
            await process.wait()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                process.kill()

    # --- talking to it

    async def _keep_talking(self) -> None:
        while True:
            try:
                async with asyncio.timeout(SILENT_SECONDS):
                    reader, writer = await asyncio.open_unix_connection(self._path, limit=MAX_LINE)
            except (OSError, TimeoutError):
                await asyncio.sleep(RETRY_SECONDS)
                continue
            try:
                if await self._talk(reader, writer):
                    self._end_silent()
            except (OSError, ValueError, EOFError):
                pass
            finally:
                self.answers = False
                writer.close()
            await asyncio.sleep(RETRY_SECONDS)

    def _end_silent(self) -> None:
        if self._process is not None and asyncio.get_running_loop().time() >= self._has_to_answer:
            self._log(f"the notice's responder was silent for {SILENT_SECONDS:g} s: it is ended")
            self._end()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Ask again and again over one connection until it ends; True where nothing comes back."""
        loop, number, answered, silent = asyncio.get_running_loop(), 0, 0, 0
        due = loop.time()
        self._changed.set()
        line = b""
        while True:
            if self._changed.is_set():
                self._changed.clear()
                writer.write(json.dumps(self._message, ensure_ascii=False).encode() + b"\n")
            if loop.time() >= due:
                self.answers = answered == number
                if silent >= _SILENT_PINGS:
                    return True
                number, due, silent = number + 1, loop.time() + PING_SECONDS, silent + 1
                writer.write(json.dumps({"ping": number}).encode() + b"\n")
            try:
                async with asyncio.timeout_at(due):
                    line = await reader.readline()
            except TimeoutError:
                continue
            if not line.endswith(b"\n"):
                return False
            told = json.loads(line)
            if not isinstance(told, dict):
                return False
            if "pong" in told:
                silent, self._has_to_answer = 0, 0.0
            if self._is_fresh(told, number):
                answered = number
                self._beat()
            elif (seen := seen_of(told.get("seen"))) is not None:
                self._seen(seen)

    def _is_fresh(self, told: dict[str, Any], number: int) -> bool:
        """Whether this answers the last question, and is of one who serves these sockets."""
        ours = sorted(os.fstat(sock.fileno()).st_ino for sock in self._listening)
        return told.get("pong") == number and told.get("sockets") == ours and self._is_listening()


def _is_local(address: str) -> bool:
    """Whether an address is one of this machine; a socket may listen at one that is not."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((address, 0))
    except OSError:
        return False
    return True


def _may_change_user() -> bool:
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            held = int(value, 16)
            return bool(held >> _CAP_SETUID & 1 and held >> _CAP_SETGID & 1)
    return False

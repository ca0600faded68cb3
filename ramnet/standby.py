"""Standing by: another ramnet enforces in this network namespace, until it is gone.

All WSL2 distributions share one network namespace. The lock that each of them sees is the group of
packet copies (NFLOG), which the kernel gives to one owner in a namespace.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path
from typing import Any

from ramnet import __version__
from ramnet.core.report import standby_report
from ramnet.core.terms import NFLOG_GROUP
from ramnet.errors import ControlError, HostError, OccupiedError
from ramnet.host.control import SOCKET_NAME, ControlServer
from ramnet.host.nflog import NflogReader
from ramnet.host.notify import notify

# Between two tries: an enforcer that died leaves its rules, but nobody follows DNS meanwhile.
TRY_SECONDS = 0.5
CLIENTS = 32  # as many as the daemon itself serves by default


class Standby:
    """Answers on the control socket while it waits for the lock."""

    def __init__(self, runtime_dir: str) -> None:
        self._runtime_dir = runtime_dir
        self._stop = asyncio.Event()

    async def wait(self) -> NflogReader | None:
        """Wait until nobody enforces, and return the lock; None when told to stop before.

        Raises ``HostError``, also where the other one answers on the same control socket.
        """
        loop = asyncio.get_running_loop()
        if _answers(Path(self._runtime_dir, SOCKET_NAME)):
            raise HostError(
                f"a ramnet that is alive answers in {self._runtime_dir} already",
                hint="`ramnet status` tells what it does; one of them is enough on a machine",
            )
        control = ControlServer(
            self._runtime_dir, self._answer, root_only=frozenset({"off"}), clients=CLIENTS
        )
        await control.start()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        notify("READY=1\nSTATUS=standby")
        try:
            return await self._lock()
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
            await control.close()

    async def _lock(self) -> NflogReader | None:
        while not self._stop.is_set():
            notify("WATCHDOG=1")
            try:
                return NflogReader(NFLOG_GROUP)
            except OccupiedError:
                pass
            try:
                async with asyncio.timeout(TRY_SECONDS):
                    await self._stop.wait()
            except TimeoutError:
                continue
        return None

    async def _answer(self, request: Any) -> dict[str, Any]:
        verb = str(request["verb"])
        if verb == "status":
            return standby_report(__version__, os.getpid(), os.uname().release)
        raise ControlError(
            f"this ramnet stands by and cannot answer '{verb}': another one enforces in this"
            " network namespace",
            hint=f"run `ramnet {verb}` where that one runs (on WSL2, in another distribution)",
        )


def _answers(path: Path) -> bool:
    """Whether somebody listens on a control socket; what is left of the dead is in nobody's way."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as knocking:
        knocking.settimeout(0)
        try:
            knocking.connect(str(path))
        except BlockingIOError:  # so many knock at once
            return True
        except OSError:
            return False
    return True

"""The helper: does for the daemon what needs more rights, see ``host/helper.py``.

It reads nothing that comes from outside this machine. Its verbs are few, and none takes a path, a
mark or a program: what they act on is what the configuration names.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any

from ramnet.core.config import Config
from ramnet.core.enginefacts import pack
from ramnet.errors import ControlError
from ramnet.host.cgroups import make_groups, mount_point
from ramnet.host.control import ControlServer
from ramnet.host.engineconf import engine_facts
from ramnet.host.notify import notify
from ramnet.host.probe import probe
from ramnet.host.scoping import mark_groups, remove_marks
from ramnet.host.sockets import holders_of

# One daemon asks; another one that starts while it ends.
CLIENTS = 8
# An address and port have some sockets, one for each thread of a resolver at most.
MAX_SOCKETS = 512


class Helping:
    """Serves one configuration, in a directory that only root may enter."""

    def __init__(self, config: Config, runtime_dir: str) -> None:
        self._config = config
        self._runtime_dir = runtime_dir
        self._busy = asyncio.Lock()
        self._verbs: dict[str, Callable[[Any], dict[str, Any]]] = {
            "kernel": _kernel,
            "groups": self._groups,
            "mark": self._mark,
            "unmark": self._unmark,
            "holders": _holders,
            "facts": _facts,
        }

    async def run(self) -> None:
        """Serve until told to stop. Raises ``HostError`` where the socket cannot be made."""
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        server = ControlServer(
            self._runtime_dir, self._answer, root_only=frozenset(self._verbs), clients=CLIENTS
        )
        await server.start()
        try:
            notify("READY=1")
            await stop.wait()
        finally:
            await server.close()

    async def _answer(self, request: Any) -> dict[str, Any]:
        verb = self._verbs.get(str(request["verb"]))
        if verb is None:
            raise ControlError(f"the helper does not know '{request['verb']}'")
        async with self._busy:
            return await asyncio.to_thread(verb, request)

    def _groups(self, _request: Any) -> dict[str, Any]:
        make_groups(self._config.scope.cgroups)
        return {}

    def _mark(self, _request: Any) -> dict[str, Any]:
        mount, scope = mount_point(), self._config.scope
        places = [mount / path for path in scope.cgroups]
        return {"fresh": mark_groups(places, self._config.mark.engine)}

    def _unmark(self, _request: Any) -> dict[str, Any]:
        return {"removed": remove_marks(self._config.scope.cgroups)}


def _kernel(_request: Any) -> dict[str, Any]:
    found = probe().values()
    return {"features": [[str(item.feature), item.present, item.evidence] for item in found]}


def _holders(request: Any) -> dict[str, Any]:
    inodes = request.get("inodes")
    if not isinstance(inodes, list) or not all(isinstance(inode, str) for inode in inodes):
        raise ControlError("'holders' takes a list of inodes")
    return {"users": sorted(holders_of(frozenset(inodes[:MAX_SOCKETS])))}


def _facts(_request: Any) -> dict[str, Any]:
    return {"facts": pack(engine_facts())}

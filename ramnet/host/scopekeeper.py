"""Feeds what tells engines apart as it changes, and proves it by live probes.

Two loops: feeding must not wait for a probe, whose process takes seconds to give up in a group that
is frozen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from ramnet.core.events import Level, ScopeProbed
from ramnet.errors import HostError
from ramnet.host.elements import Elements
from ramnet.host.scoping import Scoping

# What changes without an event of inotify (a foreign flush or detach) is found so soon.
LOOK_SECONDS = 1.0
# The live probe: so often while engines are not told apart, and so often at least, since a rule of
# somebody else may take marks away without a word.
PROBE_AGAIN_SECONDS = 5.0
PROBE_EVERY_SECONDS = 30.0
# A group that was made anew under a probe makes it fail, and so does a machine too busy to start
# its process in time: only the second failure in a row is told.
PROBES = 2


class ScopeKeeper:
    """Follows one scope. ``report`` takes what the probe says, ``tell`` a line for the operator.

    ``table_is_ours`` says whether our table is what was loaded: without it nothing is told apart
    either, but that is no reason to judge everybody.
    """

    def __init__(
        self,
        scoping: Scoping,
        elements: Elements,
        report: Callable[[ScopeProbed], None],
        tell: Callable[[Level, str], None],
        table_is_ours: Callable[[], bool],
    ) -> None:
        self._scoping = scoping
        self._elements = elements
        self._report = report
        self._tell = tell
        self._table_is_ours = table_is_ours
        self._changed = asyncio.Event()
        self._unproven = asyncio.Event()
        self._unfed = ""  # why the groups could not be fed
        self._problem = ""

    def doubt(self) -> None:
        """Ask for a probe: what was loaded proves nothing yet."""
        self._unproven.set()

    async def run(self) -> None:
        """Follow until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._feed_on())
            group.create_task(self._prove_on())

    async def _feed_on(self) -> None:
        """Feed when something changes, and once a second besides."""
        descriptor = self._scoping.fileno()
        if descriptor is None:
            return
        loop = asyncio.get_running_loop()
        loop.add_reader(descriptor, self._note)
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self._changed.wait()
                self._changed.clear()
                self._feed()
        finally:
            loop.remove_reader(descriptor)

    def _note(self) -> None:
        if self._scoping.changed():
            self._changed.set()

    def _feed(self) -> None:
        before = self._scoping.groups
        try:
            fed = self._scoping.feed(self._elements)
        except HostError as err:
            if self._table_is_ours():
                self._unfed = err.message
                self._say(err.message)
            return
        if fed or self._unfed:
            self._unfed = ""
            self._unproven.set()
        if fed and self._scoping.groups == before:
            why = "another program changed what tells engines apart; put back"
            self._tell(Level.WARNING, why)
        elif fed:
            self._tell(Level.INFO, "a cgroup of the engines was made anew, and is known")

    async def _prove_on(self) -> None:
        """Probe when something has changed, now and then, and every few seconds while it fails."""
        while True:
            again = PROBE_AGAIN_SECONDS if self._problem else PROBE_EVERY_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout(again):
                    await self._unproven.wait()
            await self.prove()

    async def prove(self) -> None:
        """See whether engines are told apart, by sending a packet as one."""
        problem = ""
        for _ in range(PROBES):
            self._unproven.clear()
            problem = await asyncio.to_thread(self._scoping.probe)
            if not problem:
                break
            self._table_is_ours()  # else it is put back before the next one
        self._say(self._unfed or problem)

    def _say(self, problem: str) -> None:
        self._problem = problem
        self._report(ScopeProbed(problem))

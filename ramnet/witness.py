"""What people are told of refusals: the notice at their prompt, and the record of it all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from ramnet.core.activity import Seen
from ramnet.core.kernel import Evidence
from ramnet.core.policy import Policy
from ramnet.core.refusal import Refusal
from ramnet.core.report import Notice as NoticeReport
from ramnet.core.terms import REFUSALS_GROUP
from ramnet.errors import HostError
from ramnet.host.elements import Elements
from ramnet.host.nflog import RefusalReader
from ramnet.host.notice import Notice
from ramnet.host.notify import FdStore
from ramnet.host.recorder import FLUSH_SECONDS, Recorder

# What the notice says in the place of an organisation.
NO_POLICY = "ramnet without a valid policy"


class Witness:
    """Owns the notice, the copies of refused packets and the recorder.

    None of them decides anything: where one is missing, refusals go on, and ``status`` says so.
    """

    def __init__(
        self,
        store: FdStore,
        runtime_dir: str,
        nat: Evidence | None,
        elements: Elements,
        recorder: Recorder,
        log: Callable[[str], None],
    ) -> None:
        """``nat`` is whether this kernel can redirect; ``elements`` are those of our table."""
        self.recorder = recorder
        self.problem = ""
        self._elements = elements
        self._leads = False
        self._answered = 0
        self._notice: Notice | None = None
        self._without = nat.evidence if nat is not None else "the kernel was not asked"
        if nat is not None and nat.present:
            self._notice = Notice(store, runtime_dir, beat=self._beat, seen=self._seen, log=log)
        self._copies: RefusalReader | None = None
        try:
            self._copies = RefusalReader(REFUSALS_GROUP)
        except HostError as err:
            self.problem = f"refused connections are not recorded: {err.message}"

    @property
    def port(self) -> int | None:
        """Where the responder listens; None where refusals get no notice."""
        return self._notice.port if self._notice is not None else None

    @property
    def families(self) -> tuple[int, ...]:
        """The versions of IP whose clients can be led to the responder."""
        return self._notice.families if self._notice is not None else ()

    @property
    def notice(self) -> NoticeReport:
        """What ``status`` says of the notice."""
        because = self._without
        if self._notice is not None:
            because = self._notice.because
            if not because and not self._notice.answers:
                because = "the responder does not answer"
        return NoticeReport(self.port, self._answered, because)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is wrong with the record."""
        lost = self._copies.lost if self._copies is not None else 0
        missed = f"{lost} bursts of refusals were not recorded" if lost else ""
        return tuple(filter(None, (self.problem, self.recorder.problem, missed)))

    def policy(self, policy: Policy | None, refusal: Refusal) -> None:
        """Speak for another policy from now on."""
        self._leads = refusal.notices
        self.recorder.noticed = refusal.notices
        if self._notice is not None and policy is not None:
            self._notice.say(policy.organization, policy.support.contact or "")
        elif self._notice is not None:
            self._notice.say(NO_POLICY, "")

    async def run(self) -> None:
        """Work until cancelled."""
        loop = asyncio.get_running_loop()
        if self._copies is not None:
            loop.add_reader(self._copies.fileno(), self._read)
        try:
            async with asyncio.TaskGroup() as group:
                if self._notice is not None:
                    group.create_task(self._notice.run())
                group.create_task(self._record())
        finally:
            if self._copies is not None:
                loop.remove_reader(self._copies.fileno())

    def close(self) -> None:
        """Write what is left, end the responder. The rules fall back to a plain refusal."""
        if self._copies is not None:
            self._copies.close()
        if self._notice is not None:
            if self._leads:
                with suppress(HostError):  # there is no table any more
                    self._elements.forget_notice()
            self._notice.close()
        self.recorder.close()

    async def _record(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await asyncio.to_thread(self.recorder.flush)

    def _read(self) -> None:
        if self._copies is not None:
            for copy in self._copies.read():
                self.recorder.refused(copy)

    def _beat(self) -> None:
        if self._leads:
            with suppress(HostError):  # the table is gone; the daemon sees to it
                self._elements.refresh_notice()

    def _seen(self, seen: Seen) -> None:
        self._answered += 1
        self.recorder.seen(seen)

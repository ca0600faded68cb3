"""``ramnet demo``: the lab with a real Docker engine, brought up, shown and taken down again.

Nothing is touched but the lab, whose namespaces have no way out.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from ramnet.errors import LabError
from ramnet.lab.dns import records
from ramnet.lab.janitor import CLEAN_SECONDS
from ramnet.lab.lab import Lab
from ramnet.lab.process import POLL_SECONDS
from ramnet.lab.programs import require_all
from ramnet.lab.screen import Check, Screen
from ramnet.lab.story import MIRROR, MIRROR_ADDRESSES, Count, Story


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a whole demo gave."""

    checks: tuple[Check, ...]
    enforced: Count  # through the kill -9
    control: Count  # the same without ramnet
    not_shown: tuple[str, ...]
    seconds: float

    @property
    def failed(self) -> tuple[Check, ...]:
        """The expectations that did not hold."""
        return tuple(check for check in self.checks if not check.held)

    def report(self) -> dict[str, Any]:
        """Return it as a JSON value (``schema: 1``)."""
        return {
            "schema": 1,
            "held": not self.failed,
            "seconds": round(self.seconds, 1),
            "enforced": asdict(self.enforced),
            "control": asdict(self.control),
            "checks": [asdict(check) for check in self.checks],
            "not_shown": list(self.not_shown),
        }


def run(screen: Screen) -> Outcome:
    """Run the demo and take everything down again, however it ends.

    Raises ``LabError`` when a part of the lab fails, which says nothing about ramnet.
    """
    require_all(["nft"])
    begin = time.monotonic()
    lab = Lab(
        engine=True,
        records=records({MIRROR: MIRROR_ADDRESSES}),
        certificate_names=["*.mirror.example"],
    )
    try:
        screen.step("A lab: one machine with Docker; behind a wire, DNS and registries")
        screen.say(
            "in namespaces of its own: no packet leaves this machine, nothing else is touched"
        )
        with screen.doing("namespaces, dockerd, dnsmasq, docker-registry"):
            lab.__enter__()
        story = Story(lab, screen)
        story.tell(time.monotonic() - begin)
        screen.step("Everything is taken down")
    finally:
        # Not a `with`: a signal between the entry and the block would pass it by.
        lab.__exit__(None, None, None)
        _wait_gone(lab)
    screen.say("nothing is left behind: no process, mount, cgroup or file of the lab")
    seconds = time.monotonic() - begin
    outcome = Outcome(
        tuple(screen.checks), story.enforced, story.control, tuple(story.not_shown), seconds
    )
    _summarise(screen, outcome)
    return outcome


def _wait_gone(lab: Lab) -> None:
    """Wait until nothing of the lab is left; it is so already unless a second signal came."""
    deadline = time.monotonic() + CLEAN_SECONDS
    while left := lab.leftovers():
        if time.monotonic() > deadline:
            raise LabError("the demo left something behind", hint="\n".join(left))
        time.sleep(POLL_SECONDS)


def _summarise(screen: Screen, outcome: Outcome) -> None:
    enforced, control = outcome.enforced, outcome.control
    total, failed = len(outcome.checks), outcome.failed
    held = total - len(failed)
    screen.heading(f"{held} of {total} expectations held, in {outcome.seconds:.0f} s")
    screen.say(
        f"with ramnet, kill -9 included: {enforced.tried} SYNs tried, {enforced.seen} leaked"
    )
    screen.say(f"without it, the control: {control.tried} SYNs tried, {control.seen} seen")
    for check in failed:
        screen.say(f"NOT held: {check.step}: {check.expected}: {check.seen}", style="bold red")

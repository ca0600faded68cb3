"""A policy on trial: it is undone by itself unless somebody confirms it in time.

The old policy is back whenever nobody can tell that the new one is wanted: past the deadline, and
after a reboot, which may well be how somebody got out of what it did.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any, Final

from ramnet.errors import HostError

SCHEMA: Final = 1
#: Time to look whether pulls work, and to type a word.
MIN_SECONDS: Final = 5
#: Who has not confirmed in a day is not there to.
MAX_SECONDS: Final = 86_400
#: Two paths, three digests and some numbers: a path has at most 4,096 octets.
MAX_STATE: Final = 64 * 1024
#: Behind the name of a policy: what a trial puts back. No other command writes there.
BEFORE_TRIAL: Final = ".before-trial"


@dataclass(frozen=True, slots=True)
class Trial:
    """What a trial is about.

    ``policy`` and ``backup`` are paths, ``digest`` and ``before`` the digests of the files' octets
    on trial and before it. ``until`` is in seconds since the boot that ``boot`` names, the time of
    sleep included: nobody sets that clock. ``deadline`` is the same in seconds since the epoch, for
    people.
    """

    policy: str
    digest: str
    backup: str
    before: str
    boot: str
    until: float
    deadline: float

    def left(self, now: float) -> int:
        """Return the whole seconds that are left."""
        return max(0, math.ceil(self.until - now))


class Outcome(StrEnum):
    """What is to be done about a trial."""

    WAIT = "wait"
    RESTORE = "restore"
    DROP = "drop"


def judge(trial: Trial, current: str | None, boot: str, now: float) -> tuple[Outcome, str]:
    """Say what is to be done, and why.

    ``current`` is the digest of the policy file, None where it cannot be read; ``now`` is in
    seconds since the boot that ``boot`` names.
    """
    over = ""
    if boot != trial.boot:
        over = "the machine was started again before anybody confirmed it"
    elif now >= trial.until:
        over = "nobody confirmed it in time"
    if current == trial.digest:
        return (Outcome.RESTORE, over) if over else (Outcome.WAIT, "")
    if current in (trial.before, None):  # not put in place yet, or not any more
        return (Outcome.DROP, "the policy on trial is not in place") if over else (Outcome.WAIT, "")
    return Outcome.DROP, "the policy was changed by somebody else meanwhile"


def write_trial(trial: Trial) -> bytes:
    """Write what ``read_trial`` reads."""
    return json.dumps({"schema": SCHEMA, **asdict(trial)}, indent=2).encode() + b"\n"


def read_trial(data: bytes) -> Trial:
    """Read a trial that was kept. Raises ``HostError`` for anything else."""
    try:
        found: Any = json.loads(data)
    except (ValueError, RecursionError) as err:
        raise HostError("what was kept of a policy on trial is no JSON") from err
    names = {item.name for item in fields(Trial)}
    if (
        not isinstance(found, dict)
        or found.pop("schema", None) != SCHEMA
        or found.keys() != names
        or not all(_fits(name, found[name]) for name in names)
        or not is_path(found["policy"])
        or found["backup"] != found["policy"] + BEFORE_TRIAL
    ):
        raise HostError("what was kept is no trial of a policy that this version knows")
    return Trial(**found)


def is_path(text: str) -> bool:
    """Tell whether a text is a whole path, and one that can be given to the kernel."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return text.startswith("/") and "\0" not in text


def _fits(name: str, value: object) -> bool:
    if name in ("until", "deadline"):
        return type(value) in (int, float) and abs(float(str(value))) < math.inf
    return isinstance(value, str)

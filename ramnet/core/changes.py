"""What a new policy changes: a record for each registry and destination, and for the settings."""

from __future__ import annotations

from typing import Final

from ramnet.core.activity import MAX_TEXT, NameFrom, Record, Verdict
from ramnet.core.policy import Policy
from ramnet.core.policydiff import Change, Kind, policy_diff

#: Records of one change; a policy of a million entries that is exchanged whole is told as a number.
MAX_CHANGES: Final = 200


def policy_changes(
    old: Policy | None, new: Policy, path: str, digest: str, time: float
) -> list[Record]:
    """List what changed from ``old``; without one, only say what is in force.

    Entries are told apart by their address and compared as parsed: neither order nor spelling
    makes a difference.
    """

    def record(name: str, why: str) -> Record:
        return Record(
            Verdict.POLICY,
            time,
            time,
            name=name,
            name_from=NameFrom.POLICY if name else None,
            why=why[:MAX_TEXT],
            file=path,
            digest=digest,
        )

    if old is None:
        mode = new.enforcement.mode
        return [record("", f"read at the start: {len(new.registry)} registries, mode {mode}")]
    found: list[Record] = []
    more = 0
    for change in policy_diff(old, new):
        if len(found) < MAX_CHANGES:
            found.append(record(*_told(change)))
        else:
            more += 1
    if more:
        found.append(record("", f"{more} more changes"))
    return found


def _told(change: Change) -> tuple[str, str]:
    """Give the address of an entry, or nothing, and what became of it."""
    if change.kind is Kind.SETTING:
        return "", f"{change.name} changed {change.details[0]}"
    return change.name, f"{change.kind} {change.what}"

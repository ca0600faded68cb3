"""What a new policy changes: a record for each registry and destination, and for the settings."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final, TypeVar

from ramnet.core.activity import MAX_TEXT, NameFrom, Record, Verdict
from ramnet.core.policy import DestinationEntry, Policy, RegistryEntry, canonical_policy

#: Records of one change; a policy of a million entries that is exchanged whole is told as a number.
MAX_CHANGES: Final = 200

E = TypeVar("E", RegistryEntry, DestinationEntry)


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
    for name, why in _changes(old, new):
        if len(found) < MAX_CHANGES:
            found.append(record(name, why))
        else:
            more += 1
    if more:
        found.append(record("", f"{more} more changes"))
    return found


def _changes(old: Policy, new: Policy) -> Iterator[tuple[str, str]]:
    """Yield the address of an entry, or nothing, and what became of it; the settings first."""
    before, after = _settings(old), _settings(new)
    for key in (*before, *(key for key in after if key not in before)):
        if before.get(key) != after.get(key):
            was, now = (json.dumps(item.get(key), ensure_ascii=False) for item in (before, after))
            yield "", f"{key} changed from {was} to {now}"
    yield from _entries("registry", old.registry, new.registry)
    yield from _entries("destination", _sorted(old), _sorted(new))


def _settings(policy: Policy) -> dict[str, object]:
    """Return all of a policy but its entries, each value by its key."""
    bare = canonical_policy(policy.model_copy(update={"registry": (), "destination": ()}))
    found: dict[str, object] = {}
    for key, value in bare.items():
        if isinstance(value, dict):
            found |= {f"{key}.{inner}": item for inner, item in value.items()}
        else:
            found[key] = value
    return found


def _sorted(policy: Policy) -> tuple[DestinationEntry, ...]:
    """Return the destinations with their ports in one order."""
    return tuple(
        replace(entry, ports=tuple(sorted(set(entry.ports)))) for entry in policy.destination
    )


def _entries(kind: str, old: Iterable[E], new: Iterable[E]) -> Iterator[tuple[str, str]]:
    before, after = _by_address(old), _by_address(new)
    for address, entries in after.items():
        was = before.get(address)
        if was is None:
            yield str(address), f"{kind} added"
        elif was != entries:
            yield str(address), f"{kind} updated"
    for address in before:
        if address not in after:
            yield str(address), f"{kind} removed"


def _by_address(entries: Iterable[E]) -> Mapping[Hashable, list[E]]:
    found: dict[Hashable, list[E]] = {}
    for entry in entries:  # a destination may be listed twice
        found.setdefault(entry.address, []).append(entry)
    return found

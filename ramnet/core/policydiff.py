"""What one policy changes against another: entries, told apart by their address, and settings."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any, Final, TypeVar

from ramnet.core.policy import DestinationEntry, Policy, RegistryEntry, canonical_policy

#: Changes that are shown one by one; a policy of a million entries may be exchanged whole.
MAX_SHOWN: Final = 200
#: Characters of one value in a line.
_MAX_VALUE: Final = 200

E = TypeVar("E", RegistryEntry, DestinationEntry)


class Kind(StrEnum):
    """What is changed."""

    SETTING = "setting"
    REGISTRY = "registry"
    DESTINATION = "destination"


class What(StrEnum):
    """What became of it; a setting only ever is updated."""

    ADDED = "added"
    UPDATED = "updated"
    REMOVED = "removed"


_SIGNS: Final = {What.ADDED: "+", What.UPDATED: "~", What.REMOVED: "-"}


@dataclass(frozen=True, slots=True)
class Change:
    """One change; ``name`` is an address or the key of a setting, ``details`` a part each."""

    kind: Kind
    what: What
    name: str
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        told = f": {'; '.join(self.details)}" if self.details else ""
        return f"{_SIGNS[self.what]} {self.kind} {self.name}{told}"

    @property
    def plain(self) -> dict[str, Any]:
        """The change as JSON values."""
        return {
            "kind": str(self.kind),
            "change": str(self.what),
            "name": self.name,
            "details": list(self.details),
        }


def policy_diff(old: Policy, new: Policy) -> Iterator[Change]:
    """Yield what changes from ``old`` to ``new``, the settings first.

    Entries are compared as parsed: neither order nor spelling makes a difference.
    """
    before, after = _settings(old), _settings(new)
    for key in (*before, *(key for key in after if key not in before)):
        if before.get(key) != after.get(key):
            was, now = (json.dumps(item.get(key), ensure_ascii=False) for item in (before, after))
            yield Change(Kind.SETTING, What.UPDATED, key, (f"from {was} to {now}",))
    yield from _entries(Kind.REGISTRY, old.registry, new.registry)
    yield from _entries(Kind.DESTINATION, _sorted(old), _sorted(new))


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


def _entries(kind: Kind, old: Iterable[E], new: Iterable[E]) -> Iterator[Change]:
    before, after = _by_address(old), _by_address(new)
    for address, entries in after.items():
        was = before.get(address)
        if was is None:
            told = _keys(None, entries[0]) if len(entries) == 1 else ()
            yield Change(kind, What.ADDED, str(address), told)
        elif was != entries:
            one = len(was) == len(entries) == 1
            told = (
                _keys(was[0], entries[0]) if one else (f"{len(was)} entries, now {len(entries)}",)
            )
            yield Change(kind, What.UPDATED, str(address), told)
    for address in before:
        if address not in after:
            yield Change(kind, What.REMOVED, str(address))


def _by_address(entries: Iterable[E]) -> Mapping[Hashable, list[E]]:
    found: dict[Hashable, list[E]] = {}
    for entry in entries:  # a destination may be listed twice
        found.setdefault(entry.address, []).append(entry)
    return found


def _keys(old: E | None, new: E) -> tuple[str, ...]:
    """Say in which keys an entry differs from what it was."""
    return tuple(
        _key(field.name, getattr(old, field.name, None), getattr(new, field.name))
        for field in fields(new)
        if field.name != "address"
        and (getattr(old, field.name, None) or None) != (getattr(new, field.name) or None)
    )


def _key(key: str, was: object, now: object) -> str:
    if isinstance(now, tuple):
        before = was if isinstance(was, tuple) else ()
        parts = [f"+{item}" for item in now if item not in before]
        parts += [f"-{item}" for item in before if item not in now]
        told = " ".join(parts) or "in another order"
    else:
        told = _value(now) if was in (None, False) else f"{_value(was)} -> {_value(now)}"
    return f"{key} {told if len(told) <= _MAX_VALUE else told[:_MAX_VALUE] + '...'}"


def _value(value: object) -> str:
    if value is None:
        return "none"
    return json.dumps(value, ensure_ascii=False, default=str)

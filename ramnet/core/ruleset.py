"""A ruleset as data, and its one renderer: nft's own language, one transaction.

libnftables' JSON cannot say everything (``socket cgroupv2 level N`` comes back without its level
and is refused on input), so text is what is loaded; the kernel's listing judges its meaning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum


class Family(StrEnum):
    """The families of tables in use: one table for all of IP, one for single devices."""

    INET = "inet"
    NETDEV = "netdev"


class Hook(StrEnum):
    """The netfilter hooks that a base chain may sit at; egress is a device's, in family netdev."""

    PREROUTING = "prerouting"
    INPUT = "input"
    FORWARD = "forward"
    OUTPUT = "output"
    POSTROUTING = "postrouting"
    EGRESS = "egress"


@dataclass(frozen=True, slots=True)
class Set:
    """A named set: ``kind`` is its key type, ``elements`` are in nft's language.

    ``learned`` sets are filled while the table is in use; the others are derived with it.
    """

    name: str
    kind: str
    flags: tuple[str, ...] = ()
    size: int | None = None
    timeout: str | None = None
    elements: tuple[str, ...] = ()
    learned: bool = False


@dataclass(frozen=True, slots=True)
class Counter:
    """A named counter."""

    name: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: its matches and statements in nft's language, and a comment for the reader."""

    text: str
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain; with a hook it is a base chain of type ``kind`` and policy accept.

    A ``learned`` chain gets its rules after it is loaded, and keeps them. ``device`` is the name of
    the one device at whose egress it sits.
    """

    name: str
    rules: tuple[Rule, ...]
    hook: Hook | None = None
    priority: int = 0
    kind: str = "filter"
    learned: bool = False
    device: str | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A whole table."""

    name: str
    counters: tuple[Counter, ...] = ()
    sets: tuple[Set, ...] = ()
    chains: tuple[Chain, ...] = ()
    flags: tuple[str, ...] = ()
    family: Family = Family.INET

    @property
    def hooks(self) -> frozenset[tuple[str, str | None]]:
        """The base chains, by name and device."""
        return frozenset((item.name, item.device) for item in self.chains if item.hook is not None)


def render_update(
    old: Table, new: Table, drop: Iterable[tuple[str, str]], *, forget: bool = False
) -> str:
    """Render the transaction that turns ``old``, as loaded, into ``new``.

    The ``learned`` sets and the counters stay as they are in the kernel, with whatever came into
    them since: only ``drop``, pairs of set and element in nft's language, goes. With ``forget`` the
    learned sets are made anew as well. Other sets stay where both tables have the same. An element
    that has just run out cannot be deleted, so each is added before.
    """
    name = f"{new.family} {new.name}"
    there = {item.name: item for item in old.sets}
    kept = {
        item.name
        for item in new.sets
        if item.name in there and (not forget if item.learned else item == there[item.name])
    }
    lines = [f"flush chain {name} {chain.name}" for chain in old.chains if not chain.learned]
    staying = {chain.name for chain in new.chains}
    lines += [f"delete chain {name} {c.name}" for c in old.chains if c.name not in staying]
    lines += [f"delete set {name} {item.name}" for item in old.sets if item.name not in kept]
    for set_name, element in drop:
        lines.append(f"add element {name} {set_name} {{ {element} }}")
        lines.append(f"delete element {name} {set_name} {{ {element} }}")
    made = replace(new, counters=(), sets=tuple(item for item in new.sets if item.name not in kept))
    return "\n".join(lines) + "\n" + render_create(made)


# nft reads a line at a time; one element a line keeps its messages short when one is wrong.
_JOIN = ",\n      "


def render_replace(table: Table) -> str:
    """Render the transaction that puts ``table`` in the place of whatever bears its name.

    The first line makes sure that the delete finds a table.
    """
    return render_remove(table.name, table.family) + render_create(table)


def render_create(table: Table) -> str:
    """Render a table that does not exist yet."""
    return "\n".join(_table(table)) + "\n"


def render_remove(name: str, family: Family = Family.INET) -> str:
    """Render the transaction that removes the table, whether it exists or not."""
    return f"table {family} {name}\ndelete table {family} {name}\n"


def _table(table: Table) -> Iterator[str]:
    yield f"table {table.family} {table.name} {{"
    if table.flags:
        yield f"  flags {','.join(table.flags)};"
    for counter in table.counters:
        yield f"  counter {counter.name} {{ }}"
    for item in table.sets:
        yield from _set(item)
    for chain in _callees_first(table.chains):
        yield from _chain(chain)
    yield "}"


def _callees_first(chains: tuple[Chain, ...]) -> Iterator[Chain]:
    """Yield plain chains before base chains: a jump must name a chain that is already there."""
    yield from (chain for chain in chains if chain.hook is None)
    yield from (chain for chain in chains if chain.hook is not None)


def _set(item: Set) -> Iterator[str]:
    yield f"  set {item.name} {{"
    yield f"    type {item.kind};"
    if item.flags:
        yield f"    flags {','.join(item.flags)};"
    if item.size is not None:
        yield f"    size {item.size};"
    if item.timeout is not None:
        yield f"    timeout {item.timeout};"
    if item.elements:
        yield f"    elements = {{ {_JOIN.join(item.elements)} }}"
    yield "  }"


def _chain(chain: Chain) -> Iterator[str]:
    yield f"  chain {chain.name} {{"
    if chain.hook is not None:
        device = "" if chain.device is None else f' device "{chain.device}"'
        head = f"type {chain.kind} hook {chain.hook}{device} priority {chain.priority}"
        yield f"    {head}; policy accept;"
    for rule in chain.rules:
        comment = f' comment "{rule.comment}"' if rule.comment else ""
        yield f"    {rule.text}{comment}"
    yield "  }"

"""The locked ruleset: what holds from power-on until the daemon has loaded its own.

It is the table that stands where no policy is valid, as text for ``nft -f``: it is loaded at boot
without Python. Its first lines are for who loads it, ``systemd/ramnet-lock``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date

from ramnet.core.allow import allow_list
from ramnet.core.catalog import Catalog
from ramnet.core.compiler import compile_table
from ramnet.core.config import ScopeMode
from ramnet.core.policy import ClassMode
from ramnet.core.refusal import Refusal
from ramnet.core.ruleset import render_create
from ramnet.core.scope import classes_for, engines_set
from ramnet.core.terms import Settings

_TITLE = "# ramnet locked ruleset 1"
# A file that was cut off may still be a valid one, of less.
_END = "# end"
_AUDIT = "# audit"


@dataclass(frozen=True, slots=True)
class Locked:
    """What the head of a locked ruleset says: the scope, the bit of its mark, whether it refuses.

    With ``audit`` it does not: the policy that it was written under refuses nobody.
    """

    scope: ScopeMode
    mark: int
    audit: bool = False


def render_locked(
    settings: Settings, catalog: Catalog, today: date, *, mount: str, audit: bool = False
) -> str:
    """Render the locked ruleset.

    It fails where our table is there already (``create``): it never takes the place of one that is
    in force. ``mount`` is where the cgroup v2 hierarchy is mounted: rules name the engines' cgroups
    by their paths, so they have to be made below it first. Rules in force may know a cgroup that is
    gone: what is behind ``again`` makes them know the one that has its path now. With ``audit`` the
    table is the same, and lets everything pass.
    """
    scope = settings.scope
    allowed = allow_list(None, catalog, today)
    classes, refusal = classes_for(None, scope), Refusal(audit=audit)
    # Nobody is led to a notice before the daemon is there, and the kernel may know no NAT by then.
    plain = replace(settings, notice=None)
    table = compile_table(allowed, (), (), plain, classes, refusal=refusal)
    name = f"{table.family} {table.name}"
    lines = [_TITLE, f"# scope {scope.mode}", f"# mark {scope.mark:#010x}"]
    if audit:
        lines.append(_AUDIT)
    if scope.groups:
        lines.append(f"# mount {mount}")
    for group in scope.groups:
        lines.append(f"# group {mount}/{group.path}")
        if scope.mode is ScopeMode.CGROUP:
            place = f'{engines_set(group.level)} {{ "{group.place}" }}'
            lines.append(f"# again add element {name} {place}")
    lines += [f"create table {name}", render_create(table).rstrip("\n"), _END]
    return "\n".join(lines) + "\n"


def refuses_nothing(settings: Settings) -> bool:
    """Whether the locked ruleset leaves engines alone, for want of a scope that tells them."""
    return classes_for(None, settings.scope).engine is ClassMode.OFF


def read_locked(text: str) -> Locked | None:
    """Read the head of a locked ruleset; None where it is none, or not a whole one."""
    lines = text.splitlines()
    if not lines or lines[0] != _TITLE or lines[-1] != _END:
        return None
    if "\0" in text:  # a block of it was lost
        return None
    said = dict(line.removeprefix("# ").partition(" ")[::2] for line in lines[1:3])
    try:
        scope, mark = ScopeMode(said["scope"]), int(said["mark"], 16)
    except (KeyError, ValueError):
        return None
    return Locked(scope, mark, _AUDIT in lines)

"""Carries out what the engine wants of the kernel: tables, leases, and who is an engine.

One owner, the daemon's event loop; the threads of mode ``hold`` have sockets of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

from ramnet.core.events import LoadEgress, LoadTable, WriteLeases
from ramnet.core.ruleset import Family, Table, render_remove, render_replace, render_update
from ramnet.core.terms import COMPAT_CHAINS, TABLE, Rung
from ramnet.errors import HostError
from ramnet.host.elements import Elements, Identity
from ramnet.host.hold import Holder
from ramnet.host.leasing import Books
from ramnet.host.nft import Nft
from ramnet.host.scoping import Scoping, remove_marks

# How long set updates in line may take before a policy change gives up and is tried again.
FLUSH_SECONDS = 2.0


class Loading:
    """Owns our table in the kernel, for one rung of DNS and one scope."""

    def __init__(self, rung: Rung, scoping: Scoping) -> None:
        self.holder: Holder | None = None
        self._rung = rung
        self._scoping = scoping
        self._nft = Nft()
        self.elements = Elements(TABLE)
        self._edge = Elements(TABLE, Family.NETDEV)
        self.books = Books()
        self._identity: Identity | None = None
        self._edge_identity: Identity | None = None
        self._edge_table: Table | None = None

    def close(self) -> None:
        """Close the sockets; the tables stay."""
        self.elements.close()
        self._edge.close()

    @property
    def tampered(self) -> bool:
        """Whether our table is not the one that was loaded. Raises ``HostError``."""
        return self.elements.identity() != self._identity

    @property
    def edge_tampered(self) -> bool:
        """Whether the table of the uplinks is not the one that was loaded.

        Also where the kernel has taken the chain of a device away with it. Raises ``HostError``.
        """
        return self._edge.identity() != self._edge_identity

    def load_egress(self, command: LoadEgress) -> None:
        """Put the table of the uplinks in place, or see that there is none.

        The caller holds the lock of the learner: what is learned after the table was compiled has
        to be written after it was loaded. Raises ``HostError``; then what was there stays.
        """
        before, table = self._edge_table, command.table
        there = self._edge.identity()
        if before is not None and table is not None and there == self._edge_identity:
            if before.hooks == table.hooks:
                self._nft.apply(render_update(before, table, (), forget=not command.keep))
            else:
                self._apply_at_hooks(render_replace(table))
        elif table is not None:
            self._apply_at_hooks(render_replace(table))
        elif there is not None:
            self._apply_at_hooks(render_remove(TABLE, Family.NETDEV))
        self.books.at_the_edge = frozenset(command.books if table is not None else ())
        self._edge_table, self._edge_identity = table, self._edge.identity()

    def _apply_at_hooks(self, text: str) -> None:
        """Make a chain come or go at a hook; the kernel drops what is queued, wherever that is."""
        if self.holder is None:
            self._nft.apply(text)
            return
        self.holder.let_go(self.elements)
        try:
            self._nft.apply(text)
        finally:
            self.holder.hold_again(self.elements)

    def load(self, command: LoadTable) -> None:
        """Put a table in place, or change the one that is there. Raises ``HostError``."""
        if command.before is None:
            self._replace(command.table)
        else:
            self._update(command.before, command)

    def _replace(self, table: Table) -> None:
        """Put the whole table in place, with every lease in it."""
        if self.holder is None:
            self._replace_now(table)
            return
        # The kernel drops what is queued when a base chain goes: nothing is to be by then.
        self.holder.let_go(self.elements)
        try:
            with self.holder.replacing():
                self._replace_now(table)
            self.holder.table_is_back()
        finally:
            self.holder.hold_again(self.elements)

    def _replace_now(self, table: Table) -> None:
        self._scoping.prepare()
        self._nft.apply(render_replace(table))
        if self._rung is Rung.COMPAT:
            for chain, queue in COMPAT_CHAINS.items():
                self.elements.append_queue_rule(chain, queue)
        self._scoping.feed(self.elements)
        self._scoping.settle()
        self._identity = self.elements.identity()

    def _update(self, before: Table, command: LoadTable) -> None:
        """Change the rules around the learned sets.

        What was learned under the policy before is written first, so that the transaction can take
        away what is not allowed any more.
        """
        if self.holder is not None and not self.holder.flush(FLUSH_SECONDS):
            raise HostError("set updates in line are stuck")
        text = render_update(before, command.table, command.drop)
        if before.hooks == command.table.hooks:
            self._nft.apply(text)
        else:
            self._apply_at_hooks(text)
        self._identity = self.elements.identity()

    def write(self, command: WriteLeases) -> None:
        """Write leases, or have them written. Raises ``HostError``."""
        if self.holder is not None:
            self.holder.write(command)
            return
        self.books.write(command, self.elements, self._edge)


@dataclass(frozen=True, slots=True)
class Removed:
    """Whether there was anything of ours, and why a mark may be left on engines' sockets."""

    found: bool
    problem: str = ""


def remove_all(cgroups: tuple[str, ...]) -> Removed:
    """Remove our tables from this network namespace, then our marks from these cgroups.

    A mark means nothing without the table, and a kernel that cannot be asked for one has none.
    Raises ``HostError`` where a table cannot be removed.
    """
    found = False
    for family in (Family.NETDEV, Family.INET):
        elements = Elements(TABLE, family)
        try:
            there = elements.identity() is not None
        finally:
            elements.close()
        if there:
            Nft().apply(render_remove(TABLE, family))
            found = True
    try:
        return Removed(bool(remove_marks(cgroups)) or found)
    except HostError as err:
        return Removed(found, f"marks on new sockets of engines may be left: {err.message}")

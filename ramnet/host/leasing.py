"""Writes leases to the host sets of every table that has them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from ramnet.core.events import WriteLeases
from ramnet.core.leases import Key
from ramnet.core.terms import Book, Held
from ramnet.errors import HostError
from ramnet.host.elements import Element, Elements


@dataclass(slots=True)
class Books:
    """Which books the table of the uplinks has as well; read by any thread, set by one."""

    at_the_edge: frozenset[Book] = frozenset()

    def write(self, command: WriteLeases, elements: Elements, edge: Elements) -> None:
        """Write to the table of all of IP, and to that of the uplinks if it has the book.

        Raises ``HostError`` where the first refuses. The second may have gone with a device: it is
        looked at once a second, and put back with every lease.
        """
        add = [_element(item) for item in command.add]
        drop = [_bare(key) for key in command.drop]
        elements.write(command.book, add, drop)
        if command.book in self.at_the_edge:
            with suppress(HostError):
                edge.write(command.book, add, drop)


def _element(item: Held) -> Element:
    return Element(item.address, item.port, item.seconds, item.name)


def _bare(key: Key) -> Element:
    return Element(*key)

"""Find what was said about a host name among up to millions of patterns.

Two dictionaries, one of exact names and one of wildcard suffixes: a look-up costs one probe for
the name and one for each of its suffixes that has as many labels as some wildcard, however many
patterns there are. Names are compared by labels; ``*.example.com`` never meets ``badexample.com``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

from ramnet.core.names import HostName, HostPattern

T = TypeVar("T")


class Matcher(Generic[T]):
    """An immutable map from host patterns to values; one pattern may carry several values."""

    __slots__ = ("_exact", "_probed", "_size", "_suffixes")

    def __init__(self, items: Iterable[tuple[HostPattern, T]]) -> None:
        exact: dict[str, tuple[T, ...]] = {}
        suffixes: dict[str, tuple[T, ...]] = {}
        # Values of patterns that came more than once, gathered aside: growing the tuple in place
        # would cost the square of the number of repeats.
        repeats: dict[HostPattern, list[T]] = {}
        size = 0
        for pattern, value in items:
            size += 1
            table = suffixes if pattern.wildcard else exact
            if pattern.name in table:
                repeats.setdefault(pattern, []).append(value)
            else:
                table[pattern.name] = (value,)
        for pattern, more in repeats.items():
            table = suffixes if pattern.wildcard else exact
            table[pattern.name] += tuple(more)
        self._exact = exact
        self._suffixes = suffixes
        self._size = size
        # Whether a wildcard of 1, 2, 3... labels exists, up to the deepest: other suffixes are not
        # even cut out, and a name of 127 labels costs no more than an ordinary one.
        depths = {name.count(".") + 1 for name in suffixes}
        self._probed = tuple(n in depths for n in range(1, max(depths, default=0) + 1))

    def find(self, name: HostName) -> tuple[T, ...]:
        """Return the values of every pattern that covers ``name``, the most specific first.

        The exact name comes first, then the wildcards from the longest to the shortest; values of
        the same pattern keep the order in which they were given.
        """
        found: tuple[T, ...] = ()
        suffixes = self._suffixes
        end = len(name)
        for probed in self._probed:
            end = name.rfind(".", 0, end)
            if end < 0:
                break
            if probed:
                values = suffixes.get(name[end + 1 :])
                if values is not None:
                    found = values + found
        values = self._exact.get(name)
        return found if values is None else values + found

    def __len__(self) -> int:
        """Return how many items were given, repeats included."""
        return self._size

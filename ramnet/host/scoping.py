"""Keeps the rules' idea of an engine true: cgroup ids in the sets, marks on the sockets, probed.

A cgroup that is removed and made again has another id, and no program of ours: so both are put back
as soon as inotify tells, and looked at once a second besides. After each time a live probe shows
whether engines are told apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ramnet.core.config import ScopeMode
from ramnet.core.scope import Group
from ramnet.core.terms import TABLE
from ramnet.errors import HostError
from ramnet.host import helper
from ramnet.host.bpf import mark_sockets, unmark_sockets
from ramnet.host.cgroups import ATTEMPTS, NFT_ROOT, Groups, mount_point
from ramnet.host.elements import Elements
from ramnet.host.live import live_probe
from ramnet.host.oldsockets import mark_existing


class Scoping:
    """Owns what tells engines apart, for one scope. Not safe for threads, but for ``probe``."""

    def __init__(self, mode: ScopeMode, paths: tuple[str, ...], mark: int) -> None:
        """Make the cgroups ``paths`` where the mode has a use for them. Raises ``HostError``."""
        self._mode = mode
        self._paths = paths
        self._mark = mark
        self._groups: Groups | None = None
        self.groups: tuple[Group, ...] = ()
        if mode.precise:
            self._groups = Groups(paths)
            self.groups = self._groups.ensure()

    def close(self) -> None:
        """Stop watching; what was put in place stays."""
        if self._groups is not None:
            self._groups.close()

    def fileno(self) -> int | None:
        """Return a descriptor that becomes readable when a group changes; None without groups."""
        return self._groups.fileno() if self._groups is not None else None

    def changed(self) -> bool:
        """Read what made ``fileno`` readable; tell whether it concerns a group."""
        return self._groups is not None and self._groups.drain()

    def prepare(self) -> None:
        """Have the groups there, which rules name by their paths, and marked, before the rules.

        Raises ``HostError``.
        """
        if self._groups is None:
            return
        self.groups = self._groups.ensure()
        if self._mode is ScopeMode.MARK:
            self._mark_all()

    def settle(self) -> None:
        """Take away what an earlier configuration left: marks that nothing looks for any more."""
        if self._mode is not ScopeMode.MARK:
            with suppress(HostError):  # a kernel without cgroup-BPF has none
                remove_marks(self._paths)

    def _mark_all(self) -> bool:
        if helper.configured():
            return helper.mark()
        return mark_groups(map(self._place, self.groups), self._mark)

    def feed(self, elements: Elements) -> bool:
        """Make the kernel know the groups as they are now; tell whether it did not.

        Raises ``HostError``.
        """
        if self._groups is None:
            return False
        for _ in range(ATTEMPTS):
            with suppress(HostError):  # a group that went away in between
                return self._feed_once(self._groups, elements)
        return self._feed_once(self._groups, elements)

    def _feed_once(self, groups: Groups, elements: Elements) -> bool:
        self.groups = groups.ensure()
        if self._mode is ScopeMode.MARK:
            return self._mark_all()
        fed = [self._feed_level(elements, level) for level in self._levels()]
        return any(fed)

    def _levels(self) -> set[int]:
        return {group.level for group in self.groups}

    def _feed_level(self, elements: Elements, level: int) -> bool:
        there = elements.groups(level)
        wanted = {group.ident for group in self.groups if group.level == level}
        if there == wanted:
            return False
        elements.feed_groups(level, wanted - there, there - wanted)
        return True

    def _place(self, group: Group) -> Path:
        return Path(NFT_ROOT, group.place)

    def probe(self) -> str:
        """Return what the live probe finds wrong, in words; nothing where engines are told apart.

        Takes some 30 ms for each group, and a connection of its own: for any thread.
        """
        elements = Elements(TABLE)
        try:
            places: list[Path | None] = [self._place(group) for group in self.groups]
            found = (live_probe(elements, place) for place in places or [None])
            return next((problem for problem in found if problem), "")
        except HostError as err:
            return err.message
        finally:
            elements.close()


def mark_groups(places: Iterable[Path], mark: int) -> bool:
    """Mark the sockets of these groups, those that are there too; False when all were."""
    fresh = 0
    for place in places:
        if mark_sockets(place, mark):
            # At once: should the next group be gone, this one will not be fresh any more.
            mark_existing(place, mark)
            fresh += 1
    return bool(fresh)


def remove_marks(paths: tuple[str, ...]) -> int:
    """Take our programs from the cgroups and return how many there were. ``HostError``."""
    if helper.configured():
        return helper.unmark()
    try:
        mount = mount_point()
    except HostError:  # without a hierarchy there is nothing to mark by
        return 0
    places = (mount / path for path in paths)
    return sum(unmark_sockets(place) for place in places if place.is_dir())

"""The daemon's netfilter sockets, which the service manager keeps while it restarts.

Packets that wait for a verdict are dropped when their queue is closed; so they wait for the next
daemon instead. It also keeps another ramnet from stepping in between.
"""

from __future__ import annotations

import time
from typing import TypeVar

from ramnet.errors import HostError, OccupiedError
from ramnet.host.nflog import NflogReader
from ramnet.host.notify import FdStore
from ramnet.host.queue import NfQueue

S = TypeVar("S", NflogReader, NfQueue)

# The manager closes what it is told to forget a little later, and so does the kernel with what a
# process leaves that was killed.
FREE_SECONDS = 2.0
_TRY_SECONDS = 0.02


def kept_group(store: FdStore, number: int) -> NflogReader:
    """Take the group of copies over that was kept, or bind it.

    Raises ``OccupiedError`` where another program has the number, ``HostError`` for the rest.
    """
    found, forgotten = _kept(store, NflogReader, number)
    if found is not None:
        return found
    try:
        return NflogReader(number)
    except OccupiedError:  # by what was kept, perhaps, of a version with other names
        if not (store.settle() or forgotten):
            raise
    return _patiently(NflogReader, number)


def kept_queue(store: FdStore, number: int) -> NfQueue:
    """Take a queue over that was kept, or bind it. Raises ``HostError``.

    The caller has the lock: whoever has the number is on his way out, or is no ramnet.
    """
    found, _ = _kept(store, NfQueue, number)
    if found is not None:
        return found
    try:
        return _patiently(NfQueue, number)
    except OccupiedError as err:  # not by a ramnet, which would have the lock
        raise HostError(
            err.message, hint="see who has it: `cat /proc/net/netfilter/nfnetlink_queue`"
        ) from err


def keep(store: FdStore, owner: NflogReader | NfQueue) -> None:
    """Have a socket kept for the next start."""
    store.keep(_name(type(owner), owner.number), owner.fileno())


def _kept(store: FdStore, kind: type[S], number: int) -> tuple[S | None, bool]:
    """Return what was kept, if it can be used, and whether it had to be forgotten."""
    name = _name(kind, number)
    descriptor = store.take(name)
    if descriptor is None:
        return None, False
    try:
        return kind(number, descriptor), False
    except HostError:  # of another network namespace, or of another version
        # What the manager still has may be bound to the number.
        store.forget(name)
        return None, True


def _patiently(kind: type[S], number: int) -> S:
    end = time.monotonic() + FREE_SECONDS
    while True:
        try:
            return kind(number)
        except OccupiedError:
            if time.monotonic() > end:
                raise
        time.sleep(_TRY_SECONDS)


def _name(kind: type[NflogReader | NfQueue], number: int) -> str:
    return f"{kind.__name__}-{number}"

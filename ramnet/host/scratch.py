"""A thread with a network namespace of its own, for work that must touch nothing real.

libnftables and netlink sockets speak to the namespace of the thread that opened them, so no child
process is needed; the namespace goes away with the thread.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import TypeVar

from ramnet.errors import HostError

T = TypeVar("T")

CLONE_NEWNET = 0x40000000


def in_scratch_netns(work: Callable[[], T]) -> T:
    """Run ``work`` in a new, empty network namespace and return what it returns.

    Raises ``HostError`` when no namespace can be made, and whatever ``work`` raises.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            _unshare_network()
            results.append(work())
        except BaseException as err:  # noqa: BLE001 - handed to the caller's thread, below
            errors.append(err)

    thread = threading.Thread(target=body, name="scratch-netns")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _unshare_network() -> None:
    # os.unshare came with Python 3.12; this project runs on 3.11 too.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise HostError(
            f"unshare(CLONE_NEWNET): {os.strerror(code)}",
            hint="a scratch network namespace needs root and CONFIG_NET_NS",
        )

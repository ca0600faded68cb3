"""Marks the sockets that processes of a cgroup had before the BPF program was attached to it.

The program sees sockets only when they are made. Those that are there already are fetched from
their processes (pidfd_getfd(2), kernel 5.6) and marked the same way: the bit is added to theirs.
"""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# The same on every architecture (asm-generic/unistd.h).
_PIDFD_GETFD = 438
_INET = (socket.AF_INET, socket.AF_INET6)


def mark_existing(cgroup: Path, mark: int) -> int:
    """Add ``mark`` to every IP socket of the processes in ``cgroup`` and below; return how many.

    What ends meanwhile is left out, and so is what the kernel does not hand out.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    marked = 0
    for pid in _processes(cgroup):
        with suppress(OSError):
            pidfd = os.pidfd_open(pid)
            try:
                for number in _sockets(pid):
                    marked += _mark(int(libc.syscall(_PIDFD_GETFD, pidfd, number, 0)), mark)
            finally:
                os.close(pidfd)
    return marked


def _processes(cgroup: Path) -> Iterator[int]:
    for directory, _, _ in os.walk(cgroup):
        with suppress(OSError):
            yield from map(int, Path(directory, "cgroup.procs").read_text("ascii").split())


def _sockets(pid: int) -> Iterator[int]:
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            if str(entry.readlink()).startswith("socket:"):
                yield int(entry.name)


def _mark(descriptor: int, mark: int) -> bool:
    """Add the bits to a socket, and let go of our copy of it."""
    if descriptor < 0:
        return False
    with socket.socket(fileno=descriptor) as found, suppress(OSError):
        if found.family not in _INET:
            return False
        before = found.getsockopt(socket.SOL_SOCKET, socket.SO_MARK)
        if before & mark != mark:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, before | mark)
        return True
    return False

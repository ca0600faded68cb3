"""Runs a walk in a process of its own: in the engines' cgroup where it goes as they would.

The walk may hang where nothing can interrupt it (the C library's resolver); its process is killed
then, and what it told until then is kept.
"""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, TypeVar

from ramnet.core.config import ScopeMode
from ramnet.errors import HostError
from ramnet.host.cgroups import mount_point, temporary_group

T = TypeVar("T")

# Thirty layers at two requests each come in far less; a person waits no longer.
WALK_SECONDS: Final = 120.0
_END_SECONDS: Final = 2.0
_PR_SET_PDEATHSIG: Final = 1


class WalkTooLong(HostError):
    """The walk was not done in time."""


def engines_group(paths: Sequence[str], mode: ScopeMode) -> tuple[Path | None, str]:
    """Return the first cgroup whose processes count as engines, or None and why there is none."""
    if os.geteuid() != 0:
        return None, "only root can go as an engine"
    if mode not in (ScopeMode.AUTO, ScopeMode.CGROUP, ScopeMode.MARK):
        return None, f"by scope {mode} an engine is not told by its cgroup"
    try:
        group = mount_point() / paths[0]
    except HostError as err:
        return None, err.message
    if not group.is_dir():
        return None, f"there is no cgroup {paths[0]}: no engine was put into it yet"
    return group, ""


def walking(
    steps: Callable[[], Iterator[T]], group: Path | None, *, seconds: float | None = None
) -> Iterator[T]:
    """Yield what ``steps`` yields, in a child process; ``group`` is the cgroup to be below.

    Raises ``HostError`` when it cannot go there or ends by itself, ``WalkTooLong`` in the end.
    """
    seconds = WALK_SECONDS if seconds is None else seconds
    end = time.monotonic() + seconds
    context = multiprocessing.get_context("fork")
    with ExitStack() as stack:
        place = stack.enter_context(temporary_group(group)) if group is not None else None
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(steps, place, theirs, seconds), daemon=True)
        stack.callback(ours.close)
        child.start()
        theirs.close()
        try:
            while True:
                if not ours.poll(max(0.0, end - time.monotonic())):
                    raise WalkTooLong(f"the walk took more than {seconds:.0f} s")
                try:
                    kind, value = ours.recv()
                except EOFError as err:
                    raise HostError("the walk ended by itself") from err
                if kind == "end":
                    break
                if kind == "error":
                    raise HostError(value[0], hint=value[1])
                yield value
        finally:
            child.join(0 if child.is_alive() and time.monotonic() > end else _END_SECONDS)
            child.kill()
            child.join()
            child.close()


def _bounded(seconds: float) -> None:
    """Have the kernel end this process with its parent, or when nobody else did in time."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(math.ceil(seconds + _END_SECONDS))
    zero = ctypes.c_ulong(0)
    number = ctypes.c_ulong(signal.SIGKILL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, zero, zero, zero)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:  # it has died before that
        os._exit(1)


def _child(
    steps: Callable[[], Iterator[T]], place: Path | None, out: Connection, seconds: float
) -> None:
    _bounded(seconds)
    try:
        if place is not None:
            (place / "cgroup.procs").write_text("0", encoding="ascii")
        for step in steps():
            out.send(("step", step))
        out.send(("end", None))
    except HostError as err:
        out.send(("error", (err.message, err.hint)))
    except OSError as err:
        out.send(("error", (f"the cgroup {place} cannot be entered: {err.strerror}", "")))

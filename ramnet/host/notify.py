"""sd_notify(3): tell the service manager of readiness and state, and have it keep descriptors."""

from __future__ import annotations

import os
import socket
from itertools import chain, repeat

# A manager that does not read must not stop the daemon's loop.
SEND_SECONDS = 1.0
# sd_listen_fds(3): the first descriptor that a service manager passes.
_FIRST = 3
# Those of the largest number of 64 bits.
_DIGITS = 20
# FileDescriptorName= of ramnet-notice.socket.
NOTICE_SOCKETS = "notice"
_FDSTORE = "FDSTORE=1\nFDPOLL=0\nFDNAME="


def notify(state: str, descriptors: tuple[int, ...] = ()) -> bool:
    """Send ``state`` (``READY=1``, ``STATUS=...``) to the service manager, if there is one.

    Returns whether something was sent. A manager that cannot be reached is no error: it will
    notice by itself.
    """
    sender = manager()
    if sender is None:
        return False
    with sender:
        try:
            if descriptors:
                socket.send_fds(sender, [state.encode()], list(descriptors))
            else:
                sender.send(state.encode())
        except OSError:
            return False
    return True


def manager() -> socket.socket | None:
    """Connect to the service manager; None where there is none or it cannot be reached."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return None
    if address.startswith("@"):  # the abstract namespace
        address = "\0" + address[1:]
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    sender.settimeout(SEND_SECONDS)
    try:
        sender.connect(address)
    except OSError:
        sender.close()
        return None
    return sender


def _number(text: str) -> int:
    """Read a count out of the environment; 0 where it is none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _DIGITS else 0


class FdStore:
    """Descriptors that the service manager keeps while this program restarts.

    What it has kept is there under its name, for ``take``, once; what is not taken is closed and
    forgotten by ``settle``. Sockets of a socket unit are ``passed``, and never closed here.
    Without a service manager there is nothing.
    """

    def __init__(self) -> None:
        """Take over what was passed (sd_listen_fds(3)); the environment is for nobody else."""
        self._kept: dict[str, int] = {}
        self._passed: dict[str, tuple[int, ...]] = {NOTICE_SOCKETS: ()}
        pid = os.environ.pop("LISTEN_PID", "")
        count = os.environ.pop("LISTEN_FDS", "")
        names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
        if pid != str(os.getpid()):
            return
        descriptors = range(_FIRST, _FIRST + _number(count))
        for descriptor, name in zip(descriptors, chain(names, repeat("")), strict=False):
            try:
                os.set_inheritable(descriptor, False)  # noqa: FBT003 - the only way to say it
            except OSError:  # there are fewer than was said
                return
            if name in self._passed:
                self._passed[name] += (descriptor,)
            elif name in self._kept:
                os.close(descriptor)
            else:
                self._kept[name] = descriptor

    def take(self, name: str) -> int | None:
        """Give away the descriptor of this name; None where none was kept."""
        return self._kept.pop(name, None)

    def passed(self, name: str) -> tuple[int, ...]:
        """Return the descriptors of a socket unit, which stay open; none where there is none."""
        return self._passed[name]

    def keep(self, name: str, descriptor: int) -> None:
        """Have a descriptor kept under a name, in the place of the one before.

        Not polled: the manager would let go of a netlink socket whose buffer was full once.
        """
        self.forget(name)
        notify(f"{_FDSTORE}{name}", (descriptor,))

    def settle(self) -> bool:
        """Let go of what nobody took; tell whether there was something."""
        there = bool(self._kept)
        for name, descriptor in self._kept.items():
            self.forget(name)
            os.close(descriptor)
        self._kept.clear()
        return there

    def forget(self, name: str) -> None:
        """Have the manager close what it keeps under a name; it does so a little later."""
        notify(f"FDSTOREREMOVE=1\nFDNAME={name}")

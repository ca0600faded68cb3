"""Files that change under us: the policy, resolv.conf.

A file is followed by its stat, not by inotify: the answer is the same for a rewrite in place, an
atomic rename, a symlink that is pointed elsewhere, a bind mount put over it or a directory that
appears later, and a look costs microseconds.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from ramnet import __version__
from ramnet.core.config import Config, parse_config
from ramnet.core.policy import Policy, parse_policy
from ramnet.core.textfile import MAX_FILE_BYTES
from ramnet.errors import HostError

# How often a followed file is looked at. A change is read once it has stood still for one period,
# so that an editor that writes in two steps is not read half-way.
POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class _Seen:
    device: int
    inode: int
    size: int
    modified: int
    changed: int


class FollowedFile:
    """One file by its path, followed through renames and symlinks."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._last = self._settled = self._look()

    def _look(self) -> _Seen | None:
        try:
            found = Path(self.path).stat()
        except OSError:
            return None
        return _Seen(
            found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
        )

    def changed(self) -> bool:
        """Tell, once, that the file is not what it was and has stood still since the last call."""
        now = self._look()
        still = now == self._last
        self._last = now
        if not still or now == self._settled:
            return False
        self._settled = now
        return True


def read_limited(path: str, limit: int) -> bytes:
    """Read a regular file of at most ``limit`` bytes.

    Raises ``HostError`` for anything else, with the reason and a hint.
    """
    try:
        # Not blocking: a named pipe in the place of a policy must not hang the daemon.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            # Before fdopen, which refuses a directory and leaves the descriptor open.
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise HostError(f"{path} is not a regular file")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                data = file.read(limit + 1)
        finally:
            os.close(descriptor)
    except FileNotFoundError as err:
        raise HostError(f"{path} does not exist") from err
    except OSError as err:
        raise HostError(f"{path} cannot be read: {err.strerror}") from err
    if len(data) > limit:
        raise HostError(f"{path} is larger than {limit} bytes")
    return data


def read_config(path: str) -> Config:
    """Read ramnet.toml; one that does not exist is one without settings.

    Raises ``HostError`` or ``PolicyError``.
    """
    if not os.path.lexists(path):
        return Config()
    return parse_config(read_limited(path, MAX_FILE_BYTES), source=path)


def read_policy(path: str) -> Policy:
    """Read a policy file; raises ``HostError`` or ``PolicyError``."""
    text = read_limited(path, MAX_FILE_BYTES)
    return parse_policy(text, source=path, ramnet_version=__version__)

"""Files that change under us: the policy, resolv.conf.

A file is followed by its stat, not by inotify: the answer is the same for a rewrite in place, an
atomic rename, a symlink that is pointed elsewhere, a bind mount put over it or a directory that
appears later, and a look costs microseconds.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
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


def file_mark(path: str) -> _Seen | None:
    """Return what is another value whenever the file is not what it was; None where there is none.

    A change within the few milliseconds of one tick of the file system's clock may be missed.
    """
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return _Seen(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class FollowedFile:
    """One file by its path, followed through renames and symlinks."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._last = self._settled = file_mark(self.path)

    def changed(self) -> bool:
        """Tell, once, that the file is not what it was and has stood still since the last call."""
        now = file_mark(self.path)
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
    return read_owned(path, limit)[0]


def read_owned(path: str, limit: int) -> tuple[bytes, int]:
    """Read as ``read_limited`` does; return whose file (uid) these very bytes are from as well."""
    try:
        # Not blocking: a named pipe in the place of a policy must not hang the daemon.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            # Before fdopen, which refuses a directory and leaves the descriptor open.
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
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
    return data, found.st_uid


def replace_file(path: Path, data: bytes, *, like: Path | None = None, follow: bool = True) -> None:
    """Replace a file in one step, with the mode and owner that it had, or that ``like`` has.

    A link stays one, and what it leads to is replaced; unless ``follow``, the link itself is: it
    may be somebody else's. A new file is readable for all. A power cut leaves what was there, or
    this. Raises ``OSError``.
    """
    path = path.resolve() if follow else path.parent.resolve() / path.name
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as beside:
            beside.write(data)
            beside.flush()
            try:
                was = (like or path).stat()
                os.fchown(descriptor, was.st_uid, was.st_gid)
                os.fchmod(descriptor, was.st_mode & 0o777)  # no set-ID bits
            except FileNotFoundError:
                os.fchmod(descriptor, 0o644)
            os.fsync(descriptor)
        Path(name).rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
    _sync_directory(path.parent)


def put_back(kept: Path, path: Path) -> None:
    """Have ``kept``, a file in the same folder, take the place of ``path``. Raises ``OSError``."""
    kept.rename(path)
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_config(path: str) -> Config:
    """Read ramnet.toml; one that does not exist is one without settings.

    Raises ``HostError`` or ``PolicyError``.
    """
    if not os.path.lexists(path):
        return Config()
    return parse_config(read_limited(path, MAX_FILE_BYTES), source=path)


def read_policy(path: str) -> Policy:
    """Read a policy file; raises ``HostError`` or ``PolicyError``."""
    return read_policy_text(path)[0]


def read_policy_text(path: str) -> tuple[Policy, bytes]:
    """Read a policy file, and give its text as well; raises ``HostError`` or ``PolicyError``."""
    text = read_limited(path, MAX_FILE_BYTES)
    return parse_policy(text, source=path, ramnet_version=__version__), text

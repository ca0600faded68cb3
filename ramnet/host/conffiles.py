"""Reading the settings of other programs: whatever is there, it is read in bounds or told.

Every file is read at most to ``MAX_BYTES``, and only if it is a regular one. What is missing says
nothing; what cannot be read is a fact as well (``Unreadable``).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ramnet.core.enginefacts import Fact, Unreadable, printable
from ramnet.errors import HostError
from ramnet.host.files import read_limited

# A daemon.json of a thousand registries has 50 kB.
MAX_BYTES = 256 * 1024
# Files of one folder that are read: drop-ins, registries, homes.
MAX_FILES = 64


def text_of(path: Path, source: str) -> bytes | Unreadable | None:
    """Read a file; None when there is none, or one that stands for none (/dev/null)."""
    try:
        mode = path.stat().st_mode  # before it is opened: opening a device may do something
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as err:  # ValueError: a setting names a path that is none
        return Unreadable(source, f"it cannot be read: {getattr(err, 'strerror', 'no such path')}")
    if stat.S_ISCHR(mode):
        return None
    if not stat.S_ISREG(mode):
        return Unreadable(source, "it is not a regular file")
    try:
        return read_limited(str(path), MAX_BYTES)
    except HostError as err:
        return Unreadable(source, err.message.removeprefix(f"{path} "))


def facts_of(
    root: Path, path: str, parse: Callable[[bytes, str], Iterable[Fact]]
) -> Iterator[Fact]:
    """Yield what ``parse`` makes of a file below ``root``; nothing where there is none."""
    source = f"/{printable(path)}"
    data = text_of(root / path, source)
    if isinstance(data, bytes):
        yield from parse(data, source)
    elif data is not None:
        yield data


def names_in(root: Path, folder: str, ending: str = "") -> tuple[list[str], list[Unreadable]]:
    """List what a folder holds, sorted, with a word about what is left out."""
    try:
        entries = os.listdir(root / folder)  # noqa: PTH208 - names are wanted, not paths
    except (OSError, ValueError):  # missing, mostly; it is no folder of settings in any case
        return [], []
    names = sorted(name for name in entries if name.endswith(ending))
    if len(names) <= MAX_FILES:
        return names, []
    why = f"of its {len(names)} files only the first {MAX_FILES} are read"
    return names[:MAX_FILES], [Unreadable(f"/{folder}", why)]

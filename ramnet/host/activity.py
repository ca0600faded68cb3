"""The store of the record: JSON lines in a few files below the state directory.

The newest is ``activity.jsonl``; when it is full it becomes ``activity.jsonl.1`` and so on, and the
oldest is dropped. Lines are appended by one write each time and never changed, so whoever reads
needs no lock. Nothing is synced: a power cut may cost the last seconds, and at most cuts the last
line off, which is then passed over.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO, Final, Self

from ramnet.core.activity import Record, plain_record, record_of
from ramnet.errors import HostError

FOLDER: Final = "activity"
FILE: Final = "activity.jsonl"
#: About 10,000 records a file, so about 50,000 in all, in 20 MiB.
FILE_BYTES: Final = 4 * 1024 * 1024
#: Files besides the newest.
OLD_FILES: Final = 4
#: A line that is longer is not one of ours; a record has well below 4 kB.
MAX_LINE: Final = 64 * 1024
_TAIL: Final = 1


def store_path(state_dir: str) -> Path:
    """Return the newest file of the store."""
    return Path(state_dir) / FOLDER / FILE


class Store:
    """Appends records; owns the files. One writer: the daemon that enforces."""

    def __init__(self, state_dir: str, file_bytes: int = FILE_BYTES) -> None:
        self._path = store_path(state_dir)
        self._limit = file_bytes

    def append(self, records: Iterable[Record]) -> None:
        """Write records; raises ``HostError``, and then some of them may be missing."""
        data = b"".join(_line(record) for record in records)
        if not data:
            return
        try:
            self._append(data)
        except OSError as err:
            raise HostError(f"{self._path} cannot be written: {err.strerror}") from err

    def _append(self, data: bytes) -> None:
        # Opened each time, a few times a second at most: whoever removed the folder, or the disk
        # that was full or read-only, then makes no difference afterwards.
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            size = self._path.stat().st_size
            if size and size + len(data) > self._limit:
                self._rotate()
        descriptor = self._open()
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, _TAIL, size - _TAIL) != b"\n":
                data = b"\n" + data  # the line before was cut off: it ends here
            while data:
                data = data[os.write(descriptor, data) :]
        finally:
            os.close(descriptor)

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(self._path, flags, 0o600)

    def _rotate(self) -> None:
        for number in range(OLD_FILES, 0, -1):
            with suppress(FileNotFoundError):
                _numbered(self._path, number - 1).replace(_numbered(self._path, number))


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}") if number else path


def _line(record: Record) -> bytes:
    text = json.dumps(plain_record(record), ensure_ascii=True, separators=(",", ":"))
    return text.encode() + b"\n"


def _record(line: bytes) -> Record | None:
    """Read one line; None for one that was cut off or is not ours."""
    if len(line) > MAX_LINE:
        return None
    try:
        return record_of(json.loads(line))
    except (ValueError, RecursionError):
        return None


class Reader:
    """Reads the store from the oldest record on, and then what is added, over rotations.

    Raises ``PermissionError`` where the store may not be read, ``HostError`` for other failures.
    A store that is not there has nothing in it.
    """

    def __init__(self, state_dir: str) -> None:
        self._path = store_path(state_dir)
        # The files that are still to be read to their end, the newest last.
        self._files: list[BinaryIO] = []
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def read(self) -> Iterator[Record]:
        """Yield what is there and was not read before; the last line only when it is whole."""
        try:
            self._files += self._newer()
            while self._files:
                yield from self._lines(self._files[0])
                if len(self._files) == 1:
                    return
                self._files.pop(0).close()
                self._rest = b""
        except PermissionError:
            raise
        except OSError as err:
            raise HostError(f"{self._path} cannot be read: {err.strerror}") from err

    def _lines(self, file: BinaryIO) -> Iterator[Record]:
        while chunk := file.read(MAX_LINE):
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            if len(self._rest) > MAX_LINE:
                self._rest = self._rest[:1]  # no line of ours; what is left of it is none either
            for line in lines:
                found = _record(line) if line else None
                if found is not None:
                    yield found

    def _newer(self) -> list[BinaryIO]:
        """Open the files that are newer than the one being read, the oldest first.

        Opened from the newest on: a rotation meanwhile shows one twice, and hides none.
        """
        own = {_identity(file) for file in self._files}
        found: dict[tuple[int, int], BinaryIO] = {}
        with ExitStack() as failed:
            for number in range(OLD_FILES + 1):
                with suppress(FileNotFoundError):
                    file = failed.enter_context(_numbered(self._path, number).open("rb"))
                    if _identity(file) in own:  # it and all older ones were read
                        file.close()
                        break
                    if found.setdefault(_identity(file), file) is not file:
                        file.close()
            failed.pop_all()
        return [*found.values()][::-1]


def _identity(file: BinaryIO) -> tuple[int, int]:
    seen = os.fstat(file.fileno())
    return seen.st_dev, seen.st_ino

"""Records for journald, by its native protocol: fields that ``journalctl`` can select by.

One datagram a record: ``NAME=value`` lines, or for a value of several lines the name, its length in
64 bits and the value (systemd.io/JOURNAL_NATIVE_PROTOCOL), so that no value can begin a field.
Where there is no journal, nothing is sent; one that does not keep up loses records, never time.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from typing import Final

SOCKET: Final = "/run/systemd/journal/socket"
#: The kernel's own limit is above 200 kB; a record has well below 4.
MAX_DATAGRAM: Final = 64 * 1024
_LENGTH: Final = struct.Struct("<Q")


def datagram(fields: Mapping[str, str]) -> bytes:
    """Pack the fields of one entry; names are of capitals, digits and underscores."""
    parts: list[bytes] = []
    for name, value in fields.items():
        data = value.encode("utf-8", "backslashreplace")
        if b"\n" in data:
            parts += [name.encode(), b"\n", _LENGTH.pack(len(data)), data, b"\n"]
        else:
            parts += [name.encode(), b"=", data, b"\n"]
    return b"".join(parts)


class Journal:
    """A socket to journald, opened when it is first needed and again when it restarted."""

    def __init__(self, path: str = SOCKET) -> None:
        self.lost = 0
        self._path = path
        self._socket: socket.socket | None = None

    def send(self, fields: Mapping[str, str]) -> bool:
        """Send one entry; tell whether it went out."""
        data = datagram(fields)
        if len(data) > MAX_DATAGRAM:
            self.lost += 1
            return False
        try:
            if self._socket is None:
                kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
                self._socket = socket.socket(socket.AF_UNIX, kind)
            # Not connected: the address is looked up each time, and a restart goes unnoticed.
            self._socket.sendto(data, self._path)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):  # no journal here
            return False
        except OSError:  # its buffer is full, or it may not be reached
            self.lost += 1
            return False
        return True

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

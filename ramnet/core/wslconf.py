r"""``/etc/wsl.conf`` as WSL's own init reads it, and edits of it that leave the rest as it is.

The grammar is that of the parser that Microsoft publishes (microsoft/WSL, ``configfile.cpp``). It
is not that of an INI file elsewhere, and differs in what matters here:

- Names of sections and keys are letters and digits, compared without case. There is no space inside
  the brackets, and ``#`` is the only comment.
- The first of several keys of one name counts, whichever ``[boot]`` it stands below, even when its
  value is no good.
- The first line that is not understood ends the reading: nothing behind it counts. So does a
  byte order mark, which makes the whole file count for nothing.
- A value may hold quotes, and ``\\``, ``\"``, ``\b``, ``\n``, ``\t``; after a backslash it goes on
  in the next line.

Bytes go in and come out: whatever is not edited stays octet for octet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

COMMAND: Final = "boot.command"
SYSTEMD: Final = "boot.systemd"

BOM: Final = b"\xef\xbb\xbf"
_SPACE: Final = b" \t"
_NEWLINE: Final = 0x0A
_RETURN: Final = 0x0D
_ESCAPES: Final = {ord("\\"): b"\\", ord('"'): b'"', ord("b"): b"\b", ord("n"): b"\n"} | {
    ord("t"): b"\t"
}
# By WSL's ParseBool; anything else is told as a fault, and the default stays.
_TRUTH: Final = {"1": True, "true": True, "0": False, "false": False}

MARKER: Final = b"# The next line is ramnet's: `ramnet wsl uninstall` takes it away."


@dataclass(frozen=True, slots=True)
class Setting:
    """One ``key = value`` that WSL reads.

    ``name`` is ``section.key`` in lower case; ``data[start:end]`` is all of its lines with the line
    end of the last; ``line`` counts from 1.
    """

    name: str
    value: bytes
    line: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Section:
    """A header. ``start`` is where its line begins, ``end`` where the next one does."""

    name: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Stop:
    """The line at which WSL gives the file up."""

    line: int
    start: int
    why: str


@dataclass(frozen=True, slots=True)
class WslConf:
    """A file, and what WSL makes of it."""

    data: bytes
    settings: tuple[Setting, ...]
    sections: tuple[Section, ...]
    stop: Stop | None

    def first(self, name: str) -> Setting | None:
        """Return the setting that counts."""
        return next((item for item in self.settings if item.name == name), None)

    def flag(self, name: str) -> bool | None:
        """Return what a setting of yes or no says; None where it says nothing that WSL knows."""
        found = self.first(name)
        return _TRUTH.get(found.value.decode("utf-8", "replace").lower()) if found else None

    @property
    def newline(self) -> bytes:
        """The line end of the file: that of its first line."""
        end = self.data.find(b"\n")
        return b"\r\n" if end > 0 and self.data[end - 1] == _RETURN else b"\n"

    @property
    def warnings(self) -> tuple[str, ...]:
        """What of this file does not do what it seems to say."""
        found = []
        if self.data.startswith(BOM):
            found.append("it begins with a byte order mark: WSL reads nothing of it")
        elif self.stop is not None:
            found.append(f"WSL stops reading at line {self.stop.line}: {self.stop.why}")
        if b"\r\n" in self.data:
            found.append("it has Windows line ends: WSL up to 2.3 reads nothing of such a file")
        for name in (COMMAND, SYSTEMD):
            lines = [item.line for item in self.settings if item.name == name]
            if len(lines) > 1:
                more = ", ".join(map(str, lines[1:]))
                found.append(f"{name} is there more than once: line {lines[0]} counts, not {more}")
        flag = self.first(SYSTEMD)
        if flag is not None and self.flag(SYSTEMD) is None:
            found.append(f"line {flag.line}: {SYSTEMD} is neither true nor false: WSL ignores it")
        return tuple(found)


class _Fault(Exception):
    """A line that WSL does not understand."""


class _Reader:
    """Walks through a file once, forwards."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._line = 1
        self._section = ""
        self.settings: list[Setting] = []
        self.sections: list[Section] = []

    def read(self) -> Stop | None:
        """Read all; return where it had to stop."""
        while self._at < len(self._data):
            start, line = self._at, self._line
            try:
                self._read_line(start, line)
            except _Fault as fault:
                return Stop(line, start, str(fault))
        return None

    def _peek(self) -> int:
        """Return the next octet; -1 at the end."""
        return self._data[self._at] if self._at < len(self._data) else -1

    def _skip_space(self) -> None:
        while self._at < len(self._data) and self._data[self._at] in _SPACE:
            self._at += 1

    def _end_line(self) -> None:
        """Go on behind the line end, over a comment."""
        end = self._data.find(b"\n", self._at)
        self._at = len(self._data) if end < 0 else end + 1
        self._line += 1

    def _read_line(self, start: int, line: int) -> None:
        self._skip_space()
        char = self._peek()
        if char in (-1, _NEWLINE, _RETURN, ord("#")):
            self._end_line()
        elif char == ord("["):
            self._at += 1
            self._section = self._name("a section")
            if self._peek() != ord("]"):
                raise _Fault("']' is expected")
            self._at += 1
            self._end_of_header()
            self.sections.append(Section(self._section, start, self._at))
        else:
            key = self._name("a key")
            self._skip_space()
            if self._peek() != ord("="):
                raise _Fault("'=' is expected")
            self._at += 1
            self._skip_space()
            value = self._value()
            self._end_line()
            name = f"{self._section}.{key}" if self._section else key
            self.settings.append(Setting(name, value, line, start, self._at))

    def _name(self, what: str) -> str:
        begin = self._at
        while self._data[self._at : self._at + 1].isalnum():  # of bytes: ASCII only
            self._at += 1
        name = self._data[begin : self._at].decode("ascii")
        if not name[:1].isalpha():
            raise _Fault(f"{what} is expected, of letters and digits")
        return name.lower()

    def _end_of_header(self) -> None:
        self._skip_space()
        if self._peek() not in (-1, _NEWLINE, _RETURN, ord("#")):
            raise _Fault("nothing is expected behind ']'")
        self._end_line()

    def _value(self) -> bytes:
        """Read a value up to its line end or comment, without the spaces behind it."""
        value = bytearray()
        kept = 0  # without trailing spaces that stand outside of quotes
        quoted = False
        while (char := self._peek()) not in (-1, _NEWLINE, _RETURN):
            if char == ord("#") and not quoted:
                break
            self._at += 1
            if char == ord('"'):
                quoted = not quoted
            elif char == ord("\\"):
                value += self._escape()
            else:
                value.append(char)
            if char not in _SPACE:
                kept = len(value)
        if quoted:
            raise _Fault("a quote is not closed")
        return bytes(value[:kept])

    def _escape(self) -> bytes:
        char = self._peek()
        if char == -1:
            raise _Fault("a backslash at the end of the file")
        self._at += 1
        if char == _NEWLINE:
            self._line += 1
            return b""
        if char not in _ESCAPES:
            raise _Fault('a backslash before something else than \\ " b n t or the line end')
        return _ESCAPES[char]


def parse(data: bytes) -> WslConf:
    """Read a file as WSL does. Any bytes give a value."""
    reader = _Reader(data)
    stop = reader.read()
    return WslConf(data, tuple(reader.settings), tuple(reader.sections), stop)


def _quoted(value: bytes) -> bytes:
    """Write a value so that it is read back as it is; it holds no carriage return."""
    if not value or value.strip(_SPACE) != value or any(char in value for char in b'"\\#\n\b'):
        escaped = value.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
        return b'"' + escaped.replace(b"\n", b"\\n").replace(b"\b", b"\\b") + b'"'
    return value


def set_command(data: bytes, command: str) -> bytes:
    """Return the file with ``command`` as its ``[boot] command``, in the place of another.

    A byte order mark goes: with it nothing would count. Where WSL gives the file up, the new line
    comes before that place.
    """
    conf = parse(data.removeprefix(BOM))
    wanted = command.encode()
    there = conf.first(COMMAND)
    if there is not None and there.value == wanted:
        return conf.data
    lines = MARKER + conf.newline + b"command = " + _quoted(wanted) + conf.newline
    if there is not None:
        return conf.data[: there.start] + lines + conf.data[there.end :]
    section = next((item for item in conf.sections if item.name == "boot"), None)
    if section is not None:
        head = _ended(conf.data[: section.end], conf.newline)
        return head + lines + conf.data[section.end :]
    lines = b"[boot]" + conf.newline + lines
    place = _before_stop(conf)
    return _ended(conf.data[:place], conf.newline) + lines + conf.data[place:]


def _before_stop(conf: WslConf) -> int:
    """Return the last place where a new section is read and takes no keys of another."""
    if conf.stop is None:
        return len(conf.data)
    if conf.data[conf.stop.start :].lstrip(_SPACE).startswith(b"["):
        return conf.stop.start
    return conf.sections[-1].start if conf.sections else 0


def unset_command(data: bytes, command: str, earlier: bytes | None) -> bytes:
    """Take ``command`` out again; ``earlier`` is the text of the line that it had replaced.

    Of what ``set_command`` has added nothing stays. A file that names another command stays as it
    is: that one counts, and is not ours.
    """
    conf = parse(data)
    there = conf.first(COMMAND)
    if there is None or there.value != command.encode():
        return data
    head, tail = data[: there.start], data[there.end :]
    marker = MARKER + conf.newline
    marked = head.endswith(marker)
    head = head.removesuffix(marker)
    if earlier is not None:
        return head + earlier + tail
    rest = tail.lstrip()
    if marked and (not rest or rest.startswith(b"[")):  # nothing else is in the section
        head = head.removesuffix(b"[boot]" + conf.newline)
    return head + tail


def _ended(data: bytes, newline: bytes) -> bytes:
    """Return lines to which another may be added."""
    if data and not data.endswith(b"\n"):
        data += newline
    return data + newline if data.endswith(b"\\\n") else data  # a value that goes on

"""Reading a TOML or JSON file that a person wrote, and saying where it is wrong.

Policy and configuration share this: text becomes tables, pydantic models judge the tables, and
whatever is wrong becomes :class:`ramnet.errors.Fault` values, all at once, each with the path of
the key, its line and a hint. Lines are looked up only when there is a fault, so a good file of a
million entries does not pay for them.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from enum import StrEnum
from typing import Any, TypeAlias, TypeVar

from pydantic import BaseModel, BeforeValidator, PlainValidator, ValidationError
from pydantic_core import PydanticCustomError

from ramnet.errors import Fault, PolicyError

MAX_FILE_BYTES = 128 * 1024 * 1024
"""A million entries of about 130 bytes each; a file beyond that is a mistake, not a policy."""
MAX_FAULTS = 1000
"""Faults reported for one file: more than anybody mends in one go, and the error stays small."""
_SHOWN = 60  # characters of a faulty value that a message repeats
_BARE_TOML_KEY = re.compile(r"[A-Za-z0-9_-]+")

KeyPath: TypeAlias = tuple[str | int, ...]
"""The keys and list indices (from 0) that lead to a value: ``("registry", 1, "address")``."""
KnownKeys: TypeAlias = Mapping[tuple[str, ...], Collection[str]]
"""For each table of a file, by its path without list indices, the keys that it may hold."""

_Model = TypeVar("_Model", bound=BaseModel)
_Choice = TypeVar("_Choice", bound=StrEnum)


class Format(StrEnum):
    """How a file is written."""

    TOML = "toml"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong at a key, before its line is known; ``first`` is the place it repeats."""

    path: KeyPath
    message: str
    hint: str = ""
    first: KeyPath | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """A file that parsed: its tables without ``x-*`` keys, and its text to find lines in."""

    source: str
    format: Format
    text: str
    data: dict[str, Any]
    findings: tuple[Finding, ...] = ()

    def lines(self, paths: Iterable[KeyPath]) -> dict[KeyPath, int]:
        """Find the line of each key, from 1; of one that is missing, that of its table."""
        asked = set(paths)
        found = _lines(self.text, self.format, {p[:n] for p in asked for n in range(1, len(p) + 1)})
        lines = {path: _nearest(found, path) for path in asked}
        return {path: line for path, line in lines.items() if line is not None}

    def faults(self, findings: Iterable[Finding]) -> tuple[Fault, ...]:
        """Give every finding its place and line, in the order of the file.

        A key that is missing gets the line of the table it is missing from. At most
        ``MAX_FAULTS`` are kept; one more then says how many were left out.
        """
        found = list(findings)
        kept = found[:MAX_FAULTS]
        lines = self.lines(path for item in kept for path in (item.path, item.first) if path)
        faults = [
            Fault(
                place=place(item.path),
                line=lines.get(item.path),
                message=item.message + _first_seen(lines, item.first),
                hint=item.hint,
            )
            for item in kept
        ]
        faults.sort(key=lambda fault: fault.line or 0)
        if len(found) > len(kept):
            more = len(found) - len(kept)
            faults.append(Fault("", None, f"and {more} more faults", "mend these first"))
        return tuple(faults)


def read_document(text: str | bytes, *, source: str) -> Document:
    """Parse a file's content; its format follows the suffix of ``source`` (.json, else TOML).

    A byte order mark is dropped and both line endings are read. Raises PolicyError when the
    content is too large, not UTF-8, not well formed, or not a table.
    """
    if len(text) > MAX_FILE_BYTES:
        limit = f"the limit is {MAX_FILE_BYTES // 1024 // 1024} MiB"
        raise PolicyError(source, [Fault("", None, "the file is too large", limit)])
    text = _decode(text, source) if isinstance(text, bytes) else text.removeprefix("\ufeff")
    kind = Format.JSON if source.lower().endswith(".json") else Format.TOML
    data: Any = {}
    repeated = False

    def table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal repeated
        made = dict(pairs)
        repeated = repeated or len(made) != len(pairs)
        return made

    try:
        if kind is Format.TOML:
            data = tomllib.loads(text)
        elif text.strip():
            data = json.loads(text, object_pairs_hook=table)
    except (ValueError, RecursionError) as error:
        raise PolicyError(source, [_malformed(error, kind, text)]) from error
    if not isinstance(data, dict):
        shown = f"the file holds {kind_of(data)}, not a table of keys"
        raise PolicyError(source, [Fault("", 1, shown, "start with { and end with }")])
    if "x-" in text or "\\" in text:  # spelled out or by an escape: most files skip the walk
        _drop_extensions(data)
    return Document(source, kind, text, data, tuple(_repeats(text)) if repeated else ())


def validate(
    document: Document,
    model: type[_Model],
    known: KnownKeys,
    check: Callable[[_Model | None, dict[str, Any]], Iterable[Finding]] | None = None,
) -> _Model:
    """Judge a document with a model, and with ``check`` for rules that span several keys.

    ``check`` gets the model, or None when it has faults, and the raw tables, which may then hold
    values of any type: so its faults are told together with the model's. Raises PolicyError
    with every fault.
    """
    findings = list(document.findings)
    made: _Model | None = None
    try:
        made = model.model_validate(document.data)
    except ValidationError as error:
        findings += _findings(error, known)
    if check and len(findings) < MAX_FAULTS:
        findings += check(made, document.data)
    if findings or made is None:
        raise PolicyError(document.source, document.faults(findings))
    return made


# Rules for one value. Each refuses a value with `refuse`, which carries the hint to the fault.


def refuse(message: str, hint: str = "") -> PydanticCustomError:
    """Make the error that a rule raises to refuse a value."""
    return PydanticCustomError("refused", "{message}", {"message": message, "hint": hint})


def expect_text(value: object) -> str:
    """Let a string through; raises when the value is anything else."""
    if not isinstance(value, str):
        raise refuse(f"must be a string, not {kind_of(value)}", "put it in quotes")
    return value


def choice(enum: type[_Choice]) -> BeforeValidator:
    """Make the rule of a key that takes one of the words of ``enum``."""
    words = [str(member) for member in enum]

    def rule(value: object) -> _Choice:
        text = expect_text(value)
        if text not in words:
            raise refuse(f"{shown(text)} is not one of {', '.join(words)}", _meant(text, words))
        return enum(text)

    # Not a PlainValidator: pydantic then cannot write the value as JSON without a warning.
    return BeforeValidator(rule)


def whole(least: int, most: int) -> PlainValidator:
    """Make the rule of a key that takes a whole number; a boolean is not a number."""

    def rule(value: object) -> int:
        if type(value) is not int:
            raise refuse(f"must be a whole number, not {kind_of(value)}", f"{least} to {most}")
        if not least <= value <= most:
            raise refuse(f"must be from {least} to {most}")
        return value

    return PlainValidator(rule)


def line_of_text(most: int) -> PlainValidator:
    """Make the rule of a key that takes one line of 1 to ``most`` printable characters."""

    def rule(value: object) -> str:
        text = expect_text(value)
        if not text.strip():
            raise refuse("must not be empty")
        if len(text) > most:
            raise refuse(f"is {len(text)} characters long; the limit is {most}")
        if not text.isprintable():
            bad = next(char for char in text if not char.isprintable())
            raise refuse(f"holds {bad!a}, which is not printable", "write one plain line")
        if text != text.strip():
            raise refuse("begins or ends with a space")
        return text

    return PlainValidator(rule)


def kind_of(value: object) -> str:
    """Name the type of a parsed value as its author would."""
    if isinstance(value, bool):
        return "a boolean"
    kinds: tuple[tuple[type, str], ...] = (
        (str, "a string"),
        (int, "a number"),
        (float, "a number with a fraction"),
        (list, "a list"),
        (dict, "a table"),
        (datetime, "a date with a time"),
        (date, "a date"),
        (time, "a time"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), "null")


def shown(text: str) -> str:
    """Quote a value for a message: ASCII only, and short."""
    return ascii(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def place(path: KeyPath) -> str:
    """Write a key path as in ``registry[1].address``; list indices count from 0."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            key = part if _BARE_TOML_KEY.fullmatch(part) else shown(part)
            text += f".{key}" if text else key
    return text


def _decode(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"byte 0x{data[error.start]:02x} is not UTF-8"
        fault = Fault("", line, message, "save the file as UTF-8")
        raise PolicyError(source, [fault]) from error


def _malformed(error: Exception, kind: Format, text: str) -> Fault:
    if isinstance(error, RecursionError):
        return Fault("", None, "the file is nested too deeply", "a policy needs three levels")
    hint = f"the file is read as {kind.upper()}"
    if isinstance(error, json.JSONDecodeError):
        message = f"not valid JSON: {error.msg} (column {error.colno})"
        return Fault("", error.lineno, message, hint)
    if isinstance(error, tomllib.TOMLDecodeError):
        if text.lstrip().startswith("{"):
            hint += "; give JSON a name that ends in .json"
        # Python 3.11 to 3.13 tell the line only in the text of the message.
        told = re.search(r"\(at line (\d+), column \d+\)$", str(error))
        line = int(told[1]) if told else text.count("\n") + 1
        return Fault("", line, f"not valid TOML: {error}", hint)
    return Fault("", None, "a number or a date in the file is out of range", hint)


def _drop_extensions(data: dict[str, Any]) -> None:
    """Remove the keys that start with ``x-`` from every table, in place."""
    todo: list[Any] = [data]  # a stack of our own: the parsers may nest deeper than recursion can
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            for key in [key for key in item if key.startswith("x-")]:
                del item[key]
            item = item.values()
        todo.extend([part for part in item if isinstance(part, dict | list)])


def _findings(error: ValidationError, known: KnownKeys) -> Iterator[Finding]:
    """Say pydantic's errors in our own words."""
    for item in error.errors(include_url=False):
        path = item["loc"]
        match item["type"]:
            case "refused":
                yield Finding(path, item["ctx"]["message"], item["ctx"]["hint"])
            case "missing":
                yield Finding(path, "is missing", f"add {place(path[-1:])} = ...")
            case "extra_forbidden" | "unexpected_keyword_argument":
                yield Finding(path, "unknown key", _known_hint(path, known))
            case "tuple_type":
                generic = tuple(part for part in path if isinstance(part, str))
                hint = f"write [[{place(path)}]]" if generic in known else "write [...]"
                yield Finding(path, f"must be a list, not {kind_of(item['input'])}", hint)
            case _:  # what is left of pydantic's own: a table is expected
                yield Finding(path, f"must be a table, not {kind_of(item['input'])}")


def _known_hint(path: KeyPath, known: KnownKeys) -> str:
    table = tuple(part for part in path[:-1] if isinstance(part, str))
    key = str(path[-1])
    elsewhere = [".".join(name) for name, keys in known.items() if key in keys]
    if elsewhere:
        tables = " or ".join(f"[{name}]" if name else "the top of the file" for name in elsewhere)
        return f"it belongs in {tables}"
    return _meant(key, known[table]) or f"known keys here: {', '.join(known[table])}"


def _meant(text: str, words: Collection[str]) -> str:
    close = difflib.get_close_matches(text[:_SHOWN].lower(), words, n=1)
    return f"did you mean {close[0]}?" if close else ""


def tables_of(text: str, key: str) -> list[tuple[int, int]]:
    """Give where each ``[[key]]`` of a TOML text begins and ends, by whole lines.

    A table ends where the next one begins: comments above that one are inside. The text must be
    valid; there is nothing where the list is written in another way.
    """
    starts: list[tuple[int, int | None]] = []  # of each header its offset, and which table it is of
    for path, start in _toml_places(text):
        if len(path) == 1 and text[start] == "[":
            starts.append((start, None))
        elif len(path) == len((key, 0)) and starts and start == starts[-1][0] and path[0] == key:
            starts[-1] = start, path[1] if isinstance(path[1], int) else None
    lines = [(text.rfind("\n", 0, start) + 1, table) for start, table in starts]
    found: list[tuple[int, int]] = []
    for index, (line, table) in enumerate(lines):
        end = lines[index + 1][0] if index + 1 < len(lines) else len(text)
        if table is not None and table == len(found):
            found.append((line, end))
        elif table is not None and table == len(found) - 1 and found[-1][1] == line:
            found[-1] = found[-1][0], end  # a table inside it, with a header of its own
    return found


# Lines. The text was parsed before: this only follows its structure, and checks nothing.

_GAP = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*+")
_KEY = re.compile(
    r"""[ \t]*(?:(?P<bare>[A-Za-z0-9_-]+)|(?P<quoted>"(?:[^"\\]|\\.)*+"|'[^']*'))\s*(?P<dot>\.?)"""
)
_SCALAR = re.compile(
    r'"""(?:[^\\]|\\.)*?""""{0,2}'
    r"|'''.*?''''{0,2}"
    r'|"(?:[^"\\]|\\.)*+"'
    r"|'[^']*'"
    r"|[^\s,\]}#]+(?:[ ]\d\d:[^\s,\]}#]+)?",  # the second half: a date, a space and a time
    re.DOTALL,
)
_Walk: TypeAlias = Generator[tuple[KeyPath, int], None, int]


def _lines(text: str, kind: Format, wanted: set[KeyPath]) -> dict[KeyPath, int]:
    """Find the line, from 1, on which each wanted key or list item first appears."""
    lines: dict[KeyPath, int] = {}
    missing = set(wanted)
    line, counted = 1, 0
    for path, start in _toml_places(text) if kind is Format.TOML else _value_places(text, 0, ()):
        if path in missing:
            line += text.count("\n", counted, start)
            counted = start
            lines[path] = line
            missing.discard(path)
            if not missing:
                break
    return lines


def _nearest(lines: Mapping[KeyPath, int], path: KeyPath) -> int | None:
    return next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), None)


def _first_seen(lines: Mapping[KeyPath, int], first: KeyPath | None) -> str:
    if first is None:
        return ""
    line = lines.get(first)
    return f" {place(first)}" + (f", line {line}" if line else "")


def _repeats(text: str) -> Iterator[Finding]:
    """Find keys that a JSON object holds twice; TOML's own parser refuses them."""
    seen: set[KeyPath] = set()
    told: set[KeyPath] = set()
    for path, _ in _value_places(text, 0, ()):
        extension = any(isinstance(part, str) and part.startswith("x-") for part in path)
        below = any(path[:n] in told for n in range(1, len(path) + 1))
        if path in seen and not extension and not below:
            told.add(path)
            yield Finding(path, "is given more than once in its table", "keep one of them")
        seen.add(path)


def _toml_places(text: str) -> Iterator[tuple[KeyPath, int]]:
    lists: dict[KeyPath, int] = {}  # arrays of tables: the index of the last table
    table: KeyPath = ()
    position = _after(_GAP, text, 0)
    while position < len(text):
        start = position
        if text[position] == "[":
            brackets = 2 if text.startswith("[[", position) else 1
            keys, position = _keys(text, position + brackets)
            table = ()
            for depth, key in enumerate(keys, 1):
                table += (key,)
                yield table, start
                if depth == len(keys) and brackets == len("[["):
                    lists[table] = lists.get(table, -1) + 1
                if table in lists:
                    table += (lists[table],)
                    yield table, start
            position += brackets
        else:
            keys, position = _keys(text, position)
            for depth in range(1, len(keys) + 1):
                yield table + keys[:depth], start
            position = yield from _value_places(text, position + 1, table + keys)
        position = _after(_GAP, text, position)


def _value_places(text: str, position: int, path: KeyPath) -> _Walk:
    """Walk one value, of TOML or JSON (where the grammars differ they do not clash here).

    Yields the path and offset of each key and list item inside; returns the offset behind.
    """
    inside: list[tuple[KeyPath, bool]] = []  # the open tables and lists; is it a list?
    counts: list[int] = []  # items seen in each of them
    while True:
        position = _after(_GAP, text, position)
        char = text[position : position + 1]
        if char in ("]", "}"):
            inside.pop()
            counts.pop()
            position += 1
        elif char == ",":
            position += 1
        else:
            if inside:
                holder, is_list = inside[-1]
                start = position
                if is_list:
                    path = (*holder, counts[-1])
                    counts[-1] += 1
                    yield path, start
                else:
                    keys, position = _keys(text, position)
                    for depth in range(1, len(keys) + 1):
                        yield holder + keys[:depth], start
                    path = holder + keys
                    position = _after(_GAP, text, position + 1)
            char = text[position : position + 1]
            if char and char in "[{":
                inside.append((path, char == "["))
                counts.append(0)
                position += 1
            else:
                position = _after(_SCALAR, text, position)
        if not inside or position >= len(text):
            return position


def _keys(text: str, position: int) -> tuple[tuple[str, ...], int]:
    """Read a dotted key; give its parts and the offset behind it and its spaces."""
    parts: list[str] = []
    while found := _KEY.match(text, position):
        position = found.end()
        quoted = found["quoted"]
        parts.append(_unquote(quoted) if quoted else found["bare"])
        if not found["dot"]:
            return tuple(parts), position
    return tuple(parts), len(text)


def _unquote(token: str) -> str:
    if "\\" not in token or token.startswith("'"):
        return token[1:-1]
    try:
        return str(json.loads(token))  # the escapes that TOML shares with JSON, and JSON's own
    except ValueError:
        return str(tomllib.loads(f"key = {token}")["key"])


def _after(pattern: re.Pattern[str], text: str, position: int) -> int:
    found = pattern.match(text, position)
    return found.end() if found else len(text)

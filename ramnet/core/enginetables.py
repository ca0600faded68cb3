"""Reading files of other programs: tables that may hold anything, and are judged key by key.

Unlike :mod:`ramnet.core.textfile`, which is about our own files: nothing here is refused, and no
word of the text is repeated, which may hold passwords.
"""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any, TypeAlias

from ramnet.core.enginefacts import Unreadable
from ramnet.core.textfile import kind_of

# Items of one list of a file: more than anybody configures, and a report stays readable.
MAX_ITEMS = 64

Table: TypeAlias = dict[str, Any]


def read_json(data: bytes) -> Table | str:
    """Parse a JSON object; a text says why it is none."""
    try:
        found = json.loads(data.decode("utf-8-sig"))
    except json.JSONDecodeError as err:
        return f"it is not valid JSON (line {err.lineno})"
    except (ValueError, RecursionError):
        return "it is not valid JSON"
    return found if isinstance(found, dict) else f"it holds {kind_of(found)}, not a table"


def read_toml(data: bytes) -> Table | str:
    """Parse TOML; a text says why it is none."""
    try:
        return tomllib.loads(data.decode("utf-8-sig").replace("\r\n", "\n"))
    except tomllib.TOMLDecodeError as err:
        told = re.search(r"\(at (line \d+), column \d+\)$", str(err))  # no attribute before 3.14
        return f"it is not valid TOML{f' ({told[1]})' if told else ''}"
    except (ValueError, RecursionError):
        return "it is not valid TOML"


def text_at(table: Table, key: str, source: str, faults: list[Unreadable]) -> str:
    """Return the string at ``key``, or an empty one; note in ``faults`` what is no string."""
    value = table.get(key)
    if isinstance(value, str | None):
        return value or ""
    faults.append(Unreadable(source, f"{key} is {kind_of(value)}, not a string"))
    return ""


def texts_at(table: Table, key: str, source: str, faults: list[Unreadable]) -> list[str]:
    """Return the strings of the list at ``key``; note in ``faults`` what is none."""
    value = table.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        faults.append(Unreadable(source, f"{key} is {kind_of(value)}, not a list"))
        return []
    if len(value) > MAX_ITEMS:
        faults.append(Unreadable(source, f"of {key} only the first {MAX_ITEMS} items are read"))
    texts = [item for item in value[:MAX_ITEMS] if isinstance(item, str) and item]
    if len(texts) < min(len(value), MAX_ITEMS):
        faults.append(Unreadable(source, f"{key} holds something that is no string, or empty"))
    return texts


def table_of(value: object) -> Table:
    """Return ``value`` if it is a table, else an empty one."""
    return value if isinstance(value, dict) else {}


def tables_in(value: object) -> dict[str, Table]:
    """Return the tables among the values of a table."""
    return {key: item for key, item in table_of(value).items() if isinstance(item, dict)}


def list_of_tables(value: object) -> list[Table]:
    """Return the tables of a list."""
    items = value if isinstance(value, list) else []
    return [item for item in items if isinstance(item, dict)][:MAX_ITEMS]

"""Which registries the tools of a person name: Docker's config.json, a Dockerfile's frontend.

Any bytes give facts; what does not parse is a fact as well (``Unreadable``), without a word of the
text: config.json holds passwords.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Final

from ramnet.core.enginefacts import Fact, Named, Unreadable, endpoint
from ramnet.core.enginetables import MAX_ITEMS, read_json, table_of
from ramnet.core.reference import parse_reference
from ramnet.core.textfile import kind_of
from ramnet.errors import ReferenceFault

LOGIN: Final = "login"
HELPER: Final = "credential helper"
FRONTEND: Final = "frontend"

_LOGINS: Final = {"auths": LOGIN, "credHelpers": HELPER}
# buildkit, frontend/dockerfile/parser/directives.go.
_DIRECTIVE: Final = re.compile(rb"([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+?)\s*$")
_DIRECTIVES: Final = (b"syntax", b"escape", b"check")
_SYNTAX: Final = b"syntax"


def docker_config(data: bytes, source: str) -> Iterator[Fact]:
    """Yield the registries of which a config.json or an auth.json (containers-auth.json(5)) knows.

    Each once: those that were logged in to, and those with a credential helper of their own.
    """
    table = read_json(data)
    if isinstance(table, str):
        yield Unreadable(source, table)
        return
    for key, why in _LOGINS.items():
        value = table.get(key)
        if not isinstance(value, dict | None):
            yield Unreadable(source, f"{key} is {kind_of(value)}, not a table")
        names = list(table_of(value))
        if len(names) > MAX_ITEMS:
            yield Unreadable(source, f"of {key} only the first {MAX_ITEMS} items are read")
        # Keys are hosts, or URLs: https://index.docker.io/v1/ is Docker Hub.
        places = dict.fromkeys(endpoint(name, "https") for name in names[:MAX_ITEMS])
        yield from (Named(where, why, source) for where in places)


def dockerfile(data: bytes, source: str) -> Iterator[Fact]:
    """Yield the registry of the frontend that a Dockerfile asks for (``# syntax=``), if it does."""
    image = _frontend(data)
    if image is None:
        return
    try:
        domain = parse_reference(image.decode("utf-8", "replace")).domain
    except ReferenceFault:
        yield Unreadable(source, "the syntax that it asks for is no image reference")
        return
    yield Named(endpoint(domain, "https"), FRONTEND, source)


def _frontend(data: bytes) -> bytes | None:
    """Read the image of the frontend as ``DetectSyntax`` of BuildKit does."""
    text = data.removeprefix(codecs.BOM_UTF8)
    if text.startswith(b"#!"):
        text = text.partition(b"\n")[2]
    for comment in (b"#", b"//"):
        found = _directive(text, comment)
        if found is not None:
            return found
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        return None
    image = table_of(table).get(_SYNTAX.decode())
    return image.encode("utf-8", "replace") if isinstance(image, str) else None


def _directive(text: bytes, comment: bytes) -> bytes | None:
    """Read the first word of ``syntax=``; directives end at the first line that is none."""
    seen: set[bytes] = set()
    for line in text.split(b"\n"):
        found = _DIRECTIVE.match(line.removeprefix(comment).lstrip())
        if not line.startswith(comment) or found is None:
            return None
        name = found[1].lower()
        if name not in _DIRECTIVES or name in seen:
            return None
        if name == _SYNTAX:
            return found[2].partition(b" ")[0]
        seen.add(name)
    return None

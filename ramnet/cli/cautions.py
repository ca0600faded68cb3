"""What a policy is warned of, with the lines of its file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from ramnet.core.catalog import load_catalog
from ramnet.core.caution import Kind
from ramnet.core.cautions import cautions
from ramnet.core.policy import Policy
from ramnet.core.suffixes import load_suffixes
from ramnet.core.textfile import place, read_document
from ramnet.host.clock import today


def cautions_of(
    policy: Policy, text: bytes, source: str, ignored: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """Look a policy through, and give what is told as JSON values; ``text`` is its file."""
    kinds = frozenset(map(Kind, ignored))
    found = cautions(policy, load_catalog(), load_suffixes(), today(), kinds)
    if not found:
        return []
    lines = read_document(text, source=source).lines(item.finding.path for item in found)
    return [
        {
            "kind": str(item.kind),
            "place": place(item.finding.path),
            "line": lines.get(item.finding.path),
            "message": item.finding.message,
            "hint": item.finding.hint,
        }
        for item in found
    ]


def in_words(warning: dict[str, Any]) -> str:
    """Write one of them in a line."""
    line = f"line {warning['line']}: " if warning["line"] is not None else ""
    where = f"{warning['place']}: " if warning["place"] else ""
    return f"{line}{where}{warning['message']} ({warning['hint']}) [{warning['kind']}]"


def print_cautions(warnings: Iterable[dict[str, Any]]) -> None:
    """Write them to stderr, a line each."""
    for warning in warnings:
        click.echo(f"warning: {in_words(warning)}", err=True)

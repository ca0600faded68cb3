"""``ramnet registry``: what the catalogue knows of registries and their hosts."""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import CompletionItem

from ramnet.cli.exits import DENIED, OK, json_option, print_json
from ramnet.core.catalog import Catalog, load_catalog
from ramnet.core.catalogreport import (
    fixed_names,
    found_report,
    host_asked,
    owner_report,
    search,
    template_report,
)
from ramnet.core.enginefacts import printable
from ramnet.core.placeholders import CLOUDS
from ramnet.errors import NameFault

_Report = dict[str, Any]
_SOURCES = {
    "V": "vendor's document",
    "S": "source code",
    "T": "issue thread",
    "M": "measured, or third-party code",
    "U": "not verified",
}


@click.group()
def registry() -> None:
    """Show the registries whose hosts are known, and whose a host is."""


@registry.command("list")
@click.option("--host", metavar="HOST", help="Only registries that this host belongs to.")
@json_option
def list_(host: str | None, as_json: bool) -> int:
    """List the registries of the catalogue. Exit code 1 where --host belongs to none."""
    catalog = load_catalog()
    if host is None:
        found = [template_report(template) for template in catalog.templates]
    else:
        found = [owner_report(owner) for owner in catalog.owners_of(host_asked(host))]
    if as_json:
        print_json({"schema": 1, "registries": found})
        return OK if found else DENIED
    if host is None:
        rows = [(item["key"], item["title"], _counted(item)) for item in found]
        _columns([("registry", "title", "hosts"), *rows])
    else:
        _owners(host, found)
    return OK


def _known(
    ctx: click.Context,  # noqa: ARG001 - as click has it
    param: click.Parameter,  # noqa: ARG001
    incomplete: str,
) -> list[CompletionItem]:
    return [
        CompletionItem(name) for name in fixed_names(load_catalog()) if name.startswith(incomplete)
    ]


@registry.command()
@click.argument("name", shell_complete=_known)
@json_option
def show(name: str, as_json: bool) -> int:
    """Show the hosts of a registry, or whose the host NAME is. Exit code 1 where nobody knows it.

    NAME is a registry's address, an image, a host such as one that a pull was redirected to, or
    what `ramnet registry list` has in its first column.
    """
    found, named = _found(name, load_catalog())
    if as_json:
        print_json({"schema": 1, "registries": found})
        return OK if found else DENIED
    if not named:
        _owners(name, found)
        if len(found) > 1:
            return OK
        click.echo()
    first, *others = found
    _registry(first)
    if named and others:
        click.echo(f"\n{printable(name)} belongs as well to")
        _columns([(item["key"], item["title"], _part(item["match"])) for item in others])
    return OK


def _found(name: str, catalog: Catalog) -> tuple[list[_Report], bool]:
    """Look ``name`` up; with whether it is what a policy may call the first one found."""
    for template in catalog.templates:
        if template.key == name and not template.is_fixed:
            return [template_report(template)], True
    found = search(name, catalog)
    return found_report(found), found.named is not None


def _owners(host: str, found: list[_Report]) -> None:
    if not found:
        raise NameFault(
            f"'{printable(host)}' belongs to no registry of the catalogue",
            hint="`ramnet doctor REF` finds the hosts that a pull needs",
        )
    click.echo(f"{printable(host)} belongs to")
    _columns([(item["key"], item["title"], _part(item["match"])) for item in found])


def _registry(item: _Report) -> None:
    click.echo(f"{item['title']}: {item['key']}")
    if item["aliases"]:
        click.echo(f"  also named  {', '.join(item['aliases'])}")
    if item["note"]:
        click.echo(f"  note        {item['note']}")
    hosts = item["hosts"]
    rows = [
        (
            host["role"],
            host["name"],
            ",".join(map(str, host["ports"])),
            host["source"],
            "yes" if host["registry_only"] else "no",
            "yes" if host["shared"] else "no",
            _condition(host, named=host["name"] in (item["key"], *item["aliases"])) or "always",
        )
        for host in hosts
    ]
    head = ("role", "host", "port", "source", "registry only", "shared", "in force")
    _columns([head, *rows])
    for source, cite in dict.fromkeys((host["source"], host["cite"]) for host in hosts):
        click.echo(f"  {source}: {_SOURCES[source]}: {cite}")


def _counted(item: _Report) -> str:
    """Say how many hosts a registry has, and how many of them are not always in force."""
    hosts = item["hosts"]
    regional = sum(host["regional"] is not None for host in hosts)
    optional = sum(host["optional"] for host in hosts)
    more = [f"{regional} by region"] if regional else []
    more += [f"{optional} not verified"] if optional else []
    return f"{len(hosts)}" + (f" ({', '.join(more)})" if more else "")


def _part(match: _Report) -> str:
    """Say what a host is to a registry, and what a policy has to say for it."""
    region = f'with regions = ["{match["region"]}"]' if match["region"] else ""
    optional = "with unverified_hosts = true" if match["optional"] else ""
    return "  ".join(filter(None, (match["role"], region, optional)))


def _condition(host: _Report, *, named: bool) -> str:
    """Say when a host is in force; what a policy names itself (``named``) is so always."""
    kind, optional = host["regional"], host["optional"] and not named
    region = f"with regions: {CLOUDS[kind]}" if kind else ""
    return ", ".join(filter(None, (region, "with unverified_hosts = true" if optional else "")))


def _columns(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(f"  {'  '.join(cells)}".rstrip())

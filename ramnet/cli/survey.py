"""``ramnet doctor`` without a reference: every registry that this machine is set up to use."""

from __future__ import annotations

from typing import Any

import click

from ramnet.cli.exits import DENIED, OK, print_json
from ramnet.core.catalog import load_catalog
from ramnet.core.configured import Survey
from ramnet.core.enginefacts import printable
from ramnet.core.policy import Policy, policy_digest
from ramnet.errors import ControlError
from ramnet.host.asking import ask_names
from ramnet.host.clock import today
from ramnet.host.configured import configured_facts, dockerfiles_of, homes_of
from ramnet.host.control import ask
from ramnet.host.files import read_policy


def survey(
    *,
    policy_path: str,
    runtime_dir: str,
    dockerfile: str | None,
    home: str | None,
    as_json: bool,
) -> int:
    """Judge what is configured by the policy file, and print it; returns the exit code."""
    policy = read_policy(policy_path)
    facts = configured_facts(homes_of(home), dockerfiles_of(dockerfile))
    found = Survey(facts, policy, load_catalog(), today())
    found.answer(ask_names(found.names))
    report = found.report() | {"policy": policy_path, "in_force": _in_force(policy, runtime_dir)}
    if as_json:
        print_json(report)
    else:
        _show(report)
    return OK if found.passed else DENIED


def _in_force(policy: Policy, runtime_dir: str) -> bool | None:
    """Tell whether the daemon enforces just this policy; None where no daemon says."""
    try:
        status = ask(runtime_dir, "status")
    except (OSError, ControlError):
        return None
    return bool(status.get("policy", {}).get("digest") == policy_digest(policy))


def _show(report: dict[str, Any]) -> None:
    if report["registries"]:
        _table(report["registries"])
    else:
        click.echo("no registry is configured here")
    for item in report["registries"]:
        if item["advice"] is not None:
            entry = item["advice"]["toml"].strip().replace("\n", ", ")
            click.echo(f"{printable(item['registry'])} ({item['source']}): denied")
            click.echo(f"  in the policy: {entry}")
            click.echo(f"  or run: {item['advice']['command']}")
        for remark in item["remarks"]:
            click.echo(f"{printable(item['registry'])} ({item['source']}): {remark['text']}")
            click.echo(f"  do: {remark['hint']}")
    for note in dict.fromkeys(item["note"] for item in report["registries"] if item["note"]):
        click.echo(f"note: {note}")
    for item in report["entries"]:
        click.echo(f"policy, {item['place']} ({item['host']}): {item['text']}")
        click.echo(f"  do: {item['hint']}")
    for item in report["unreadable"]:
        click.echo(f"{item['source']}: {item['why']}: what it names was not judged")
    for line in _last(report):
        click.echo(line)


def _table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console  # noqa: PLC0415 - only where something is drawn
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table("source", "registry", "for", "verdict", "why")
    for item in rows:
        cells = (item["source"], item["registry"], ", ".join(item["roles"]))
        verdict = str(item["verdict"])
        why = f"{item['reason']} ({item['entry']})" if item["entry"] else item["reason"]
        shown = verdict if verdict == "allowed" else verdict.upper()
        table.add_row(*(Text(printable(cell)) for cell in cells), shown, Text(why))
    Console(highlight=False).print(table)


def _last(report: dict[str, Any]) -> list[str]:
    """Say what the verdicts rest on, and what they do not cover."""
    said = []
    dns = report["dns"]
    if report["left_out"]:
        said.append(f"{report['left_out']} more are not shown and were not judged")
    if dns["failed"]:
        said.append(f"DNS: no answer about {dns['failed']} names: {dns['error']}")
    if dns["not_asked"]:
        said.append(f"DNS: not asked for {dns['not_asked']} more names of the policy")
    if report["audit"]:
        said.append(f"{report['policy']} only audits: what is denied here passes, and is recorded")
    if report["in_force"] is None:
        said.append(f"judged by {report['policy']} alone: no daemon is running")
    elif not report["in_force"]:
        said.append(f"judged by {report['policy']}; the daemon enforces another policy")
    return said

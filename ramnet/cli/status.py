"""``ramnet status``: what is enforced right now."""

from __future__ import annotations

from typing import Any

import click

from ramnet.cli.exits import (
    DEGRADED,
    NOT_RUNNING,
    OK,
    json_option,
    print_json,
    runtime_dir_option,
)
from ramnet.host.control import ask

_GOOD = ("enforcing", "auditing", "standby")


@click.command()
@json_option
@runtime_dir_option
def status(as_json: bool, runtime_dir: str) -> int:
    """Show what is enforced, and what is not.

    Exit code: 0 enforcing or standing by, 3 not running, 4 degraded or locked down.
    """
    try:
        report = ask(runtime_dir, "status")
    except (FileNotFoundError, ConnectionRefusedError):
        return _not_running(as_json, runtime_dir)
    if as_json:
        print_json(report)
    elif report["state"] == "standby":
        click.echo(f"state      standby: {report['because']}")
        click.echo("hint: its `ramnet status` tells what is enforced; this one takes over from it")
    else:
        _show(report)
    return OK if report["state"] in _GOOD else DEGRADED


def _not_running(as_json: bool, runtime_dir: str) -> int:
    reason = f"no daemon answers in {runtime_dir}"
    if as_json:
        print_json({"schema": 1, "state": "off", "running": False, "warnings": [reason]})
    else:
        click.echo(f"ramnet: not running: {reason}", err=True)
        click.echo(
            "hint: a daemon that stopped leaves its rules in force; `ramnet off` removes them",
            err=True,
        )
    return NOT_RUNNING


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console  # noqa: PLC0415 - only where something is drawn
    from rich.table import Table  # noqa: PLC0415

    console = Console(highlight=False, soft_wrap=True, markup=False)
    policy, dns, scope = report["policy"], report["dns"], report["scope"]
    console.print(f"state      {report['state']}", markup=False)
    console.print(f"policy     {policy['organization'] or 'none'}  {policy['digest'] or ''}")
    console.print(f"registries {', '.join(policy['registries']) or 'none'}", markup=False)
    ports = scope["ports"]
    judged = "all ports" if ports == "all" else f"TCP ports {', '.join(map(str, ports))}"
    console.print(f"scope      {scope['mode']} ({judged}): {scope['because']}")
    servers = ", ".join(dns["servers"])
    console.print(f"dns        {dns['mode']}, resolvers {servers} ({dns['trust']})", markup=False)
    console.print(f"refusals   {_refusals(report['refusal'])}")
    counts = ("leases", "denied", "refused")
    console.print("    ".join(f"{name:<10} {report[name]}" for name in counts))
    table = Table("class", "wanted", "enforced", "because", box=None, pad_edge=False)
    for name, item in report["classes"].items():
        table.add_row(name, item["wanted"], item["enforced"], item["because"])
    console.print(table)
    for title, lines in (
        ("not covered", report["not_covered"]),
        ("warnings", report["warnings"]),
    ):
        if lines:
            console.print(f"{title}:")
        for line in lines:
            console.print(f"  - {line}", markup=False)


def _refusals(refusal: dict[str, Any]) -> str:
    if refusal["mode"] == "audit":
        return "none: the policy only watches (`ramnet activity --verdict would-deny`)"
    how = ", ".join(f"{name} {one}" for name, one in refusal["on_deny"].items())
    return f"{how}; {refusal['notice']['answered']} got a notice"

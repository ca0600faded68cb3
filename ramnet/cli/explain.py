"""``ramnet explain`` (alias ``why``): allowed or not, and why."""

from __future__ import annotations

from typing import Any

import click

from ramnet.cli.exits import (
    DENIED,
    OK,
    json_option,
    policy_option,
    print_json,
    runtime_dir_option,
)
from ramnet.core.allow import allow_list
from ramnet.core.catalog import load_catalog
from ramnet.core.explain import explain as explain_target
from ramnet.core.explain import parse_target
from ramnet.core.report import explain_report
from ramnet.host.clock import today
from ramnet.host.control import ask
from ramnet.host.files import read_policy


@click.command()
@click.argument("target", metavar="REF|HOST|IP")
@policy_option
@json_option
@runtime_dir_option
def explain(target: str, policy_path: str, as_json: bool, runtime_dir: str) -> int:
    """Explain whether an image, host or address is allowed, and why.

    Asks the daemon; without one, judges by the policy file alone and says so. Exit code: 0
    allowed, 1 denied.
    """
    parse_target(target)  # a malformed target is told without a daemon
    try:
        report = ask(runtime_dir, "explain", target=target)
    except (FileNotFoundError, ConnectionRefusedError):
        report = _by_policy(target, policy_path)
    if as_json:
        print_json(report)
    else:
        _show(report)
    return OK if report["allowed"] else DENIED


def _by_policy(target: str, policy_path: str) -> dict[str, Any]:
    allowed = allow_list(read_policy(policy_path), load_catalog(), today())
    found = explain_target(parse_target(target), allowed, None, 0.0)
    return explain_report(found, source="policy")


def _show(report: dict[str, Any]) -> None:
    verdict = "allowed" if report["allowed"] else "denied"
    click.echo(f"{report['target']}: {verdict}")
    click.echo(f"  host      {report['host']} port {report['port']}")
    click.echo(f"  reason    {report['reason']}")
    if report["registry"]:
        click.echo(f"  registry  {report['registry']}")
    for lease in report["leases"]:
        names = ", ".join(lease["names"])
        click.echo(
            f"  lease     {lease['address']} port {lease['port']},"
            f" {lease['seconds']} s left, from {names}"
        )
    if report["source"] == "policy":
        click.echo("  source    the policy file alone: no daemon is running")

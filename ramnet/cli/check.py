"""``ramnet check``: what this kernel can do, how engines are set up, and what that means."""

from __future__ import annotations

from typing import Any

import click

from ramnet.cli.exits import (
    OK,
    UNSUPPORTED,
    config_option,
    json_option,
    policy_option,
    print_json,
    require_root,
)
from ramnet.core.allow import AllowList, allow_list
from ramnet.core.catalog import load_catalog
from ramnet.core.engineconf import Finding, Kind
from ramnet.core.kernel import NEEDS
from ramnet.core.modes import choose
from ramnet.errors import HostError, PolicyError, UnsupportedKernel
from ramnet.host.clock import today
from ramnet.host.engineconf import engine_findings
from ramnet.host.files import read_config, read_policy


@click.command()
@config_option
@policy_option
@json_option
def check(config_path: str, policy_path: str, as_json: bool) -> int:
    """Probe the kernel in a scratch network namespace and say what can be enforced.

    Also reads how the container engines of this machine are set up, and says what of that changes
    what can be enforced; with the policy, if there is one, what it lists of that.

    Exit code 3 when `ramnet run` would refuse to start. Nothing real is touched.
    """
    require_root("ramnet check")
    from ramnet.host.kernel import look_at_kernel  # noqa: PLC0415 - needs libnftables

    config = read_config(config_path)
    kernel = look_at_kernel()
    problem = hint = ""
    mode = None
    try:
        modes = choose(config, kernel.decision, kernel.evidence, kernel.release)
        rungs = {"scope": str(modes.scope), "dns": str(modes.dns), "rung": str(modes.rung)}
        mode = modes.scope
    except UnsupportedKernel as err:
        problem, hint, rungs = err.message, err.hint, {}
    found = engine_findings(config, _allowed(policy_path), mode=mode)
    report = {
        "schema": 1,
        "kernel": kernel.release.text if kernel.release is not None else None,
        "supported": kernel.decision.supported,
        "can_run": not problem,
        "problem": problem or None,
        "hint": hint or None,
        "modes": rungs,
        "features": [
            {
                "feature": str(feature),
                "present": kernel.evidence[feature].present,
                "required": need.required,
                "evidence": kernel.evidence[feature].evidence,
                "option": need.option,
                "cost_if_absent": need.cost,
                "remedy": need.remedy,
            }
            for feature, need in NEEDS.items()
        ],
        "not_covered": _listed(found, Kind.NOT_COVERED),
        "warnings": _listed(found, Kind.WARNING),
    }
    if as_json:
        print_json(report)
    else:
        _show(report)
    return UNSUPPORTED if problem else OK


def _allowed(policy_path: str) -> AllowList | None:
    """Return what the policy allows; None without a valid one (see `ramnet policy validate`)."""
    try:
        return allow_list(read_policy(policy_path), load_catalog(), today())
    except (HostError, PolicyError):
        return None


def _listed(found: tuple[Finding, ...], kind: Kind) -> list[dict[str, str]]:
    return [
        {"subject": item.subject, "text": item.text, "hint": item.hint}
        for item in found
        if item.kind is kind
    ]


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console  # noqa: PLC0415 - only where something is drawn
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console(highlight=False)
    console.print(f"kernel {report['kernel']}", markup=False)
    table = Table("feature", "needed", "works", "evidence, or what is missing and what to do")
    for item in report["features"]:
        works = "yes" if item["present"] else "NO"
        detail = item["evidence"]
        if not item["present"]:
            detail = (
                f"{item['cost_if_absent']} (needs {item['option']}).\n"
                f"Do: {item['remedy']}.\nSeen: {detail}"
            )
        needed = "required" if item["required"] else "better"
        table.add_row(item["feature"], needed, works, Text(detail))
    console.print(table)
    if report["can_run"]:
        rungs = ", ".join(f"{name} {mode}" for name, mode in report["modes"].items())
        console.print(f"ramnet can run here: {rungs}", markup=False)
    else:
        console.print(f"ramnet cannot run: {report['problem']}", markup=False)
        console.print(f"hint: {report['hint']}", markup=False)
    for title, key in (("not covered", "not_covered"), ("warnings", "warnings")):
        if report[key]:
            console.print(f"{title}:")
        for item in report[key]:
            console.print(f"  - {item['subject']}: {item['text']}", markup=False)
            console.print(f"    do: {item['hint']}", markup=False)

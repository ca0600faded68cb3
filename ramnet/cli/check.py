"""``ramnet check``: what this kernel can do, and what that means."""

from __future__ import annotations

from typing import Any

import click

from ramnet.cli.exits import OK, UNSUPPORTED, config_option, json_option, print_json, require_root
from ramnet.core.kernel import NEEDS
from ramnet.core.modes import choose
from ramnet.errors import UnsupportedKernel
from ramnet.host.files import read_config


@click.command()
@config_option
@json_option
def check(config_path: str, as_json: bool) -> int:
    """Probe the kernel in a scratch network namespace and say what can be enforced.

    Exit code 3 when `ramnet run` would refuse to start. Nothing real is touched.
    """
    require_root("ramnet check")
    from ramnet.daemon import look_at_kernel  # noqa: PLC0415 - needs libnftables

    config = read_config(config_path)
    kernel = look_at_kernel()
    problem = hint = ""
    try:
        modes = choose(config, kernel.decision, kernel.evidence)
        rungs = {"scope": str(modes.scope), "dns": str(modes.dns), "rung": str(modes.rung)}
    except UnsupportedKernel as err:
        problem, hint, rungs = err.message, err.hint, {}
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
    }
    if as_json:
        print_json(report)
    else:
        _show(report)
    return UNSUPPORTED if problem else OK


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

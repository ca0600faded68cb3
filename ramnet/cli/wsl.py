"""``ramnet wsl``: how a WSL2 distribution starts ramnet, and what of WSL2 concerns it."""

from __future__ import annotations

import difflib
from typing import Any

import click

from ramnet.cli.exits import (
    DEGRADED,
    OK,
    UNSUPPORTED,
    config_option,
    json_option,
    print_json,
    require_root,
    runtime_dir_option,
)
from ramnet.errors import ControlError, HostError, UnsupportedKernel
from ramnet.host import wsl as host

_SHARED = (
    "all distributions of WSL2 share one network: the first ramnet enforces its policy for the"
    " engines of all, others stand by. Which run is not seen from here: `wsl --list --running`"
)
_IN_FORCE = (
    "rules are in force until the distributions end (`wsl --shutdown`); `ramnet off` removes them"
)


@click.group()
def wsl() -> None:
    """Start ramnet with this WSL2 distribution, and say what of WSL2 concerns it."""


@wsl.command()
@click.option(
    "--engine-command",
    metavar="COMMAND",
    help='Starts the engines where there is no systemd: "service docker start". It is run in the'
    " engines' cgroup, and only with rules in force.",
)
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
@json_option
def install(engine_command: str | None, dry_run: bool, as_json: bool) -> int:
    """Have ramnet started with this distribution.

    With systemd its units are enabled; without it the `[boot] command` of /etc/wsl.conf is set. A
    command that is there already is kept, and run after ours. A copy of the file stays beside it.
    """
    return _do("install", host.plan_install, engine_command, dry_run=dry_run, as_json=as_json)


@wsl.command()
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
@json_option
def uninstall(dry_run: bool, as_json: bool) -> int:
    """Undo `ramnet wsl install`: /etc/wsl.conf is what it was.

    Neither a daemon that runs nor the rules are touched.
    """
    return _do("uninstall", host.plan_uninstall, dry_run=dry_run, as_json=as_json)


def _do(verb: str, planned: Any, *arguments: Any, dry_run: bool, as_json: bool) -> int:
    require_root(f"ramnet wsl {verb}")
    host.require_wsl2(host.ROOT)
    plan: host.Plan = planned(host.ROOT, *arguments)
    if not dry_run:
        host.carry_out(plan, host.ROOT)
    notes = [*plan.notes]
    if verb == "uninstall" and _rules_in_force():
        notes.append(_IN_FORCE)
    report = {
        "schema": 1,
        "verb": verb,
        "done": not dry_run,
        "start": str(plan.start),
        "changed": [f"/{change.path}" for change in plan.changes],
        "programs": [" ".join(argv) for argv in plan.programs],
        "notes": notes,
    }
    if as_json:
        print_json(report)
    else:
        _tell(plan, notes, dry_run=dry_run)
    return OK


def _tell(plan: host.Plan, notes: list[str], *, dry_run: bool) -> None:
    would = "would " if dry_run else ""
    for change in plan.changes:
        verb = "remove" if change.after is None else "write"
        click.echo(f"ramnet: {would}{verb} /{change.path}")
        if change.path == host.CONF:
            click.echo(_difference(change), nl=False)
    for argv in plan.programs:
        click.echo(f"ramnet: {would}run `{' '.join(argv)}`")
    if not plan.changes and not plan.programs:
        click.echo("ramnet: nothing to do")
    for note in notes:
        click.echo(f"ramnet: {note}")


def _difference(change: host.Change) -> str:
    before, after = (
        (text or b"").decode("utf-8", "replace").replace("\r\n", "\n").splitlines()
        for text in (change.before, change.after)
    )
    lines = difflib.unified_diff(before, after, "before", "after", lineterm="")
    return "".join(f"  {line}\n" for line in lines)


@wsl.command()
@json_option
@config_option
@runtime_dir_option
def status(as_json: bool, config_path: str, runtime_dir: str) -> int:
    """Show who starts ramnet here, and what of WSL2 changes what can be enforced.

    Exit code: 0 started with the distribution, 3 not WSL2, 4 nobody starts it.
    """
    try:
        found = host.require_wsl2(host.ROOT)
    except UnsupportedKernel as err:
        if not as_json:
            raise
        print_json({"schema": 1, "wsl2": False, "because": err.message})
        return UNSUPPORTED
    report = _report(found, config_path, runtime_dir)
    if as_json:
        print_json(report)
    else:
        _show(report)
    return DEGRADED if report["start"] == host.Start.NOBODY else OK


def _report(found: host.Found, config_path: str, runtime_dir: str) -> dict[str, Any]:
    boot = host.look(host.ROOT)
    daemon = _daemon_state(runtime_dir)
    network, dns = host.networking(host.ROOT), host.tunnelled(host.ROOT)
    return {
        "schema": 1,
        "wsl2": True,
        "because": found.evidence,
        "kernel": found.release,
        "start": str(boot.start),
        "systemd": {"configured": boot.systemd, "running": boot.running},
        "hook": {
            "installed": boot.hook,
            "ran": boot.ran or None,
            "engine_command": boot.engine_command or None,
            "earlier_command": boot.earlier_command or None,
        },
        "daemon": daemon,
        "rules_in_force": _rules_in_force(),
        "networking": {"mode": network.value, "because": network.because},
        "dns_tunnelling": {"used": dns.value, "because": dns.because},
        "distributions": {"because": _SHARED, "engines_elsewhere": _elsewhere(config_path)},
        "docker_desktop": _docker_desktop(config_path),
        "warnings": [*boot.warnings, *(_strange(config_path) if daemon == "standby" else ())],
    }


def _daemon_state(runtime_dir: str) -> str | None:
    from ramnet.host.control import ask  # noqa: PLC0415 - only here

    try:
        return str(ask(runtime_dir, "status")["state"])
    except (OSError, ControlError):
        return None


def _rules_in_force() -> bool | None:
    """Look for our table; None for who may not look."""
    from ramnet.core.terms import TABLE  # noqa: PLC0415
    from ramnet.host.elements import Elements  # noqa: PLC0415

    try:
        elements = Elements(TABLE)
        try:
            return elements.identity() is not None
        finally:
            elements.close()
    except HostError:
        return None


def _elsewhere(config_path: str) -> int | None:
    from ramnet.host.cgroups import mount_point  # noqa: PLC0415
    from ramnet.host.files import read_config  # noqa: PLC0415

    try:
        groups = read_config(config_path).scope.cgroups
        return host.engines_elsewhere(mount_point() / path for path in groups)
    except HostError:
        return None


def _strange(config_path: str) -> list[str]:
    """Say which engines of this distribution the rules of another one do not know."""
    from ramnet.host.files import read_config  # noqa: PLC0415

    try:
        groups = host.strange_groups(read_config(config_path).scope.cgroups)
    except HostError as err:
        return [f"whether the rules in force know the engines here cannot be seen: {err.message}"]
    return [
        f"the rules in force, of another distribution, do not know the cgroup {group}: engines in"
        " it are not judged; give all of them the same [scope] cgroups"
        for group in groups
    ]


def _docker_desktop(config_path: str) -> dict[str, Any]:
    """Say whether Docker Desktop is there: nothing of what its engine does is ours to judge."""
    from ramnet.host.engineconf import engine_findings  # noqa: PLC0415
    from ramnet.host.files import read_config  # noqa: PLC0415

    config = read_config(config_path)
    findings = engine_findings(config, None, root=host.ROOT)
    seen = next((item for item in findings if item.subject == "Docker Desktop"), None)
    if seen is None:
        return {"found": False, "covered": None, "because": "no sign of it"}
    return {"found": True, "covered": False, "because": f"{seen.text}; {seen.hint}"}


def _show(report: dict[str, Any]) -> None:
    hook, systemd = report["hook"], report["systemd"]
    click.echo(f"WSL2           {report['because']}")
    click.echo(f"started by     {report['start']}")
    said = {True: "yes", False: "no", None: "not said"}
    click.echo(
        f"systemd        runs: {said[systemd['running']]}, in wsl.conf: "
        f"{said[systemd['configured']]}"
    )
    if hook["installed"]:
        click.echo(f"hook           ran: {hook['ran'] or 'not since the start'}")
        click.echo(f"engines by     {hook['engine_command'] or 'nobody'}")
        if hook["earlier_command"]:
            click.echo(f"then           {hook['earlier_command']}")
    click.echo(f"daemon         {report['daemon'] or 'does not run'}")
    rules = {True: "in force", False: "none", None: "not seen: it takes root to look"}
    click.echo(f"rules          {rules[report['rules_in_force']]}")
    network, dns = report["networking"], report["dns_tunnelling"]
    click.echo(f"networking     {network['mode'] or 'not known'}: {network['because']}")
    click.echo(f"DNS tunnelling {dns['used']}: {dns['because']}")
    others = report["distributions"]
    click.echo(f"others         {others['because']}")
    if others["engines_elsewhere"]:
        count = others["engines_elsewhere"]
        click.echo(f"               {count} processes of theirs are in the engines' cgroups")
    desktop = report["docker_desktop"]
    if desktop["found"]:
        click.echo(f"not covered    Docker Desktop: {desktop['because']}")
    for warning in report["warnings"]:
        click.echo(f"warning        {warning}")

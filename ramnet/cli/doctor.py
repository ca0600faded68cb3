"""``ramnet doctor``: walk a pull as a client would, and say what stands in its way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import click
from click.core import ParameterSource

from ramnet.cli.exits import (
    DENIED,
    OK,
    config_option,
    json_option,
    policy_option,
    print_json,
    runtime_dir_option,
)
from ramnet.core.advice import Kind
from ramnet.core.catalog import load_catalog
from ramnet.core.config import ScopeMode
from ramnet.core.enginefacts import printable
from ramnet.core.hops import Companion, Hop, Judge, Missing, Walk, doctor_report
from ramnet.core.manifests import platform_of
from ramnet.core.policy import policy_digest
from ramnet.core.reference import parse_reference
from ramnet.core.terms import TrafficClass
from ramnet.errors import ControlError
from ramnet.host.clock import today
from ramnet.host.control import ask
from ramnet.host.files import read_config, read_policy

# Characters of a line: sixteen IPv6 addresses have 650.
_WIDEST = 1000


@click.command()
@click.argument("ref", required=False)
@click.option(
    "--as",
    "traffic",
    type=click.Choice([str(item) for item in TrafficClass]),
    default=str(TrafficClass.ENGINE),
    show_default=True,
    help="Who pulls. As an engine only root can go; containers are judged, and nothing is dialled.",
)
@click.option("--credentials", is_flag=True, help="Log in as Docker's config.json says.")
@click.option("--dockerfile", help="Without REF: the Dockerfile whose `# syntax=` is judged.")
@click.option("--home", help="Without REF: a home whose Docker settings are read as well.")
@policy_option
@config_option
@json_option
@runtime_dir_option
@click.pass_context
def doctor(ctx: click.Context, /, ref: str | None, **options: Any) -> int:
    """Walk the pull of REF and judge each hop; without REF, judge what this machine is set up for.

    A hop that the policy refuses is not dialled: what DNS and the catalogue know of it is told, and
    what to add to the policy. Exit code: 0 nothing is in the way, 1 something is.
    """
    if ref is None:
        from ramnet.cli.survey import survey  # noqa: PLC0415 - only where it is asked for

        return survey(
            policy_path=options["policy_path"],
            runtime_dir=options["runtime_dir"],
            dockerfile=options["dockerfile"],
            home=options["home"],
            as_json=options["as_json"],
        )
    reference = parse_reference(ref)
    daemon = _Daemon.asked(options["runtime_dir"])
    path = options["policy_path"]
    if ctx.get_parameter_source("policy_path") is ParameterSource.DEFAULT:
        path = daemon.policy_path or path
    policy = read_policy(path)
    traffic = TrafficClass(options["traffic"])
    judge = Judge(policy, load_catalog(), today(), traffic, reference)
    daemon.compare(policy_digest(policy), path)
    walk = _walk(judge, daemon, options["config_path"], credentials=options["credentials"])
    if options["as_json"]:
        print_json(doctor_report(walk))
    else:
        _show(walk)
    return OK if walk.passed else DENIED


@dataclass(slots=True)
class _Daemon:
    """What the daemon says of itself, as far as it matters here; warnings for what it does not."""

    mode: ScopeMode = ScopeMode.AUTO
    groups: tuple[str, ...] = ()
    policy_path: str = ""
    digest: str = ""
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def asked(cls, runtime_dir: str) -> _Daemon:
        try:
            said = ask(runtime_dir, "status")
        except (FileNotFoundError, ConnectionRefusedError):
            return cls(warnings=["no daemon is running: judged by the policy file alone"])
        except ControlError as err:
            return cls(warnings=[f"judged by the policy file alone: {err.message}"])
        found = cls(policy_path=said["policy"].get("path") or "")
        found.digest = said["policy"]["digest"] or ""
        if (mode := said["scope"]["mode"]) is not None:
            found.mode = ScopeMode(mode)
            found.groups = tuple(group["path"] for group in said["scope"]["groups"])
        if said["state"] != "enforcing":
            found.warnings.append(
                f"the daemon's state is {said['state']}: what is refused here may pass there"
            )
        return found

    def compare(self, digest: str, path: str) -> None:
        """Note where the daemon has another policy than the one that judges here."""
        if self.digest and self.digest != digest:
            self.warnings.append(f"the daemon enforces another policy than {path}")


def _walk(judge: Judge, daemon: _Daemon, config_path: str, *, credentials: bool) -> Walk:
    # What only a walk needs: TLS, HTTP and a process of its own.
    from ramnet.host.dial import trust, unverified  # noqa: PLC0415
    from ramnet.host.dockerauth import credentials_for, docker_config  # noqa: PLC0415
    from ramnet.host.engineconf import engine_facts  # noqa: PLC0415
    from ramnet.host.walk import Walker, companions, judged_only  # noqa: PLC0415
    from ramnet.host.walking import WalkTooLong, engines_group, walking  # noqa: PLC0415

    warnings = list(daemon.warnings)
    reference = judge.reference
    insecure = unverified(reference.wire, engine_facts())
    # Before the walk: a helper is no engine, and must not count as one.
    who = credentials_for(reference.domain, docker_config()) if credentials else None
    if credentials and who is None:
        warnings.append(f"Docker has kept no login for {reference.domain}: walked without one")
    dialled_as, because, group = "caller", "", None
    if judge.traffic is TrafficClass.CONTAINERS:
        dialled_as, because = "", "containers are judged, and nothing is dialled"
    elif judge.traffic is TrafficClass.ENGINE:
        paths = daemon.groups or read_config(config_path).scope.cgroups
        group, because = engines_group(paths, daemon.mode)
        dialled_as = "engine" if group is not None else "caller"
    walker = Walker(
        judge,
        platform_of(os.uname().machine),
        trust(reference.domain, insecure=insecure),
        who,
        insecure=insecure,
    )

    def steps() -> Iterator[Hop | Companion]:
        yield from walker.hops() if dialled_as else judged_only(judge)
        yield from companions(judge)

    found: list[Hop | Companion] = []
    finished = True
    try:
        for item in walking(steps, group):
            found += (item,)  # what was told before it took too long counts
    except WalkTooLong as err:
        finished = False
        warnings.append(err.message)
    return Walk(
        judge,
        dialled_as,
        because,
        tuple(item for item in found if isinstance(item, Hop)),
        tuple(item for item in found if isinstance(item, Companion)),
        tuple(warnings),
        finished=finished,
    )


def _show(walk: Walk) -> None:
    judge = walk.judge
    how = f"dialled as {walk.dialled_as}" if walk.dialled_as else "not dialled"
    because = f": {walk.because}" if walk.because else ""
    _line(f"{judge.reference}, pulled by {judge.traffic} ({how}{because})")
    for hop in walk.hops:
        _show_hop(hop)
    if (known := judge.entry) is not None:
        click.echo(f"\nthe catalogue on {known.title} ({known.key}):")
        for item in walk.companions:
            verdict = "allowed" if item.verdict.allowed else "refused"
            dns = f"  (DNS: {item.dns.error})" if item.dns.error else ""
            _line(f"  {item.host.role!s:<5} {verdict}  {item.host.pattern}{dns}")
        if known.note:
            _line(f"  note: {known.note}")
    for missing in walk.missing:
        _show_missing(missing, judge)
    for warning in walk.warnings:
        _line(f"warning: {warning}")
    if walk.passed:
        click.echo("\nnothing is in the way")
    elif walk.missing:
        click.echo("\nthe policy is in the way")
    else:
        click.echo("\nthe pull fails, and not because of the policy")


def _line(text: str) -> None:
    """Print one line, in which names and words of servers may stand."""
    click.echo(printable(text, _WIDEST))


def _show_hop(hop: Hop) -> None:
    verdict = "allowed" if hop.verdict.allowed else "refused"
    status = f"  {hop.status}" if hop.status is not None else ""
    what = f"{hop.role} ({hop.purpose})" if hop.purpose not in (None, hop.role) else str(hop.role)
    _line(f"  {what:<19} {verdict}{status}  {hop.url}")
    shown = ", ".join(hop.dns.addresses) or hop.dns.error or "no address"
    alias = f"{hop.dns.cname}: " if hop.dns.cname else ""
    answered = f"; {hop.address} answered" if hop.status is not None else ""
    _line(f"      dns: {alias}{shown}{answered}")
    _line(f"      {hop.verdict.reason}")
    if hop.error:
        _line(f"      failed: {hop.error}")


def _show_missing(missing: Missing, judge: Judge) -> None:
    advice = missing.advice
    roles = ", ".join(missing.roles)
    click.echo(f"\nmissing: {missing.host} port {missing.port} ({roles}); to allow it:")
    click.echo(f"  {advice.command}")
    where = "in the policy" if advice.kind is Kind.REGISTRY else f"at {advice.address}"
    for number, line in enumerate(advice.toml(judge.policy).splitlines()):
        click.echo(f"  {'or ' + where + ': ' if not number else ''}{line}")

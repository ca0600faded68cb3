"""``ramnet policy``: check, show and begin policy files, and what the record asks for."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ramnet.cli import policyapply, policyedit, policytest
from ramnet.cli.activity import since_option, unreadable
from ramnet.cli.cautions import cautions_of, in_words, print_cautions
from ramnet.cli.exits import (
    DENIED,
    OK,
    POLICY_PATH,
    json_option,
    policy_option,
    print_error,
    print_json,
    state_dir_option,
)
from ramnet.core.catalog import load_catalog
from ramnet.core.caution import Kind
from ramnet.core.policy import (
    canonical_policy,
    initial_policy_text,
    policy_digest,
)
from ramnet.core.suggest import suggest as suggested
from ramnet.errors import HostError, PolicyError
from ramnet.host.activity import Reader
from ramnet.host.clock import today
from ramnet.host.files import read_policy, read_policy_text

# Of the stable JSON form; this version acts on every key of a policy.
_NOTHING: tuple[str, ...] = ()

_FILE = click.argument("file", default=POLICY_PATH)


@click.group()
def policy() -> None:
    """Check, show and begin policy files; suggest what they lack."""


@policy.command()
@_FILE
@click.option("--strict", is_flag=True, help="Exit with 1 where there is a warning.")
@click.option(
    "--ignore",
    "ignored",
    type=click.Choice([str(kind) for kind in Kind]),
    metavar="KIND",
    multiple=True,
    help="Warnings of this kind are meant so; may be given several times.",
)
@json_option
def validate(file: str, strict: bool, ignored: tuple[str, ...], as_json: bool) -> int:
    """Check FILE; every fault is told, with its place and a hint. Exit code 1 when invalid.

    What is valid and probably not meant is a warning: a wildcard that admits strangers, an entry
    without any effect.
    """
    try:
        found, text = read_policy_text(file)
    except PolicyError as err:
        if not as_json:
            print_error(err)
            return DENIED
        faults = [
            {"place": f.place, "line": f.line, "message": f.message, "hint": f.hint}
            for f in err.faults
        ]
        print_json({"schema": 1, "valid": False, "source": file, "faults": faults})
        return DENIED
    warnings = cautions_of(found, text, file, ignored)
    if as_json:
        report = {"schema": 1, "valid": True, "source": file, "faults": [], "warnings": warnings}
        print_json({**report, "digest": policy_digest(found), "not_yet_in_force": _NOTHING})
    else:
        click.echo(f"{file}: valid, {len(found.registry)} registries, {policy_digest(found)}")
        print_cautions(warnings)
    return DENIED if strict and warnings else OK


@policy.command()
@_FILE
@json_option
def show(file: str, as_json: bool) -> int:
    """Show what FILE says, with defaults spelled out."""
    found, text = read_policy_text(file)
    plain = canonical_policy(found)
    warnings = cautions_of(found, text, file)
    if as_json:
        report = {"schema": 1, "source": file, "digest": policy_digest(found)}
        report["warnings"] = warnings
        print_json({**report, "policy": plain, "not_yet_in_force": _NOTHING})
        return OK
    click.echo(f"organization  {found.organization}")
    click.echo(f"digest        {policy_digest(found)}")
    for entry in found.registry:
        nickname = f"  ({entry.nickname})" if entry.nickname else ""
        until = f"  until {entry.expires}" if entry.expires else ""
        click.echo(f"registry      {entry.address}{nickname}{until}")
        for extra in entry.extra_hosts:
            click.echo(f"  extra host  {extra}")
        for network in entry.networks:
            click.echo(f"  network     {network}")
        for region in entry.regions:
            click.echo(f"  region      {region}")
        if entry.unverified_hosts:
            click.echo("  unverified hosts as well")
    for destination in found.destination:
        click.echo(f"destination   {destination.address}")
    for key, value in plain["enforcement"].items():
        click.echo(f"enforcement   {key} = {value}")
    for warning in warnings:
        click.echo(f"warning       {in_words(warning)}")
    return OK


@policy.command()
@click.option("--organization", required=True, help="The name that refusals will show.")
@click.option("--output", default="-", show_default=True, help="Where to write; - is stdout.")
def init(organization: str, output: str) -> int:
    """Write a first policy, with comments. An existing file is never overwritten."""
    text = initial_policy_text(organization)
    if output == "-":
        sys.stdout.write(text)
        return OK
    try:
        with Path(output).open("x", encoding="utf-8") as target:
            target.write(text)
    except FileExistsError as err:
        raise HostError(f"{output} exists already", hint="choose another --output") from err
    except OSError as err:
        raise HostError(f"{output} cannot be written: {err.strerror}") from err
    click.echo(f"wrote {output}")
    return OK


@policy.command()
@since_option("7d")
@policy_option
@state_dir_option
def suggest(since: float, policy_path: str, state_dir: str) -> int:
    """Print the entries that would allow what was refused, as TOML to append to the policy.

    What the policy allows by now is left out.
    """
    found = read_policy(policy_path)
    try:
        with Reader(state_dir) as reader:
            records = (record for record in reader.read() if record.last >= since)
            text = suggested(records, found, load_catalog(), today())
    except PermissionError as err:
        raise unreadable("ramnet policy suggest") from err
    sys.stdout.write(text)
    return OK


for _verb in (
    policyedit.add,
    policyedit.remove,
    policyapply.apply,
    policyapply.confirm,
    policytest.test,
):
    policy.add_command(_verb)

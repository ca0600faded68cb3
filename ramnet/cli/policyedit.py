"""``ramnet policy add`` and ``remove``: change one entry, and leave the rest as it is written."""

from __future__ import annotations

from typing import Any

import click

from ramnet import __version__
from ramnet.cli.exits import (
    DENIED,
    OK,
    json_option,
    policy_option,
    print_json,
    runtime_dir_option,
    state_dir_option,
)
from ramnet.cli.policyapply import Step, current, refuse_during_trial, tell_installed, wait_in_force
from ramnet.core.names import parse_pattern
from ramnet.core.policyedit import (
    Edited,
    add_registry,
    entry_of,
    registry_address,
    remove_extra_hosts,
    remove_registry,
)
from ramnet.errors import HostError
from ramnet.host.clock import today

_TARGET = click.argument("target", metavar="REF|HOST")


@click.command()
@_TARGET
@click.option("--nickname", metavar="TEXT", help="What people call it.")
@click.option(
    "--extra-host",
    "extra_hosts",
    multiple=True,
    metavar="HOST",
    help="A companion host that the catalogue does not know.",
)
@click.option(
    "--network", "networks", multiple=True, metavar="NET", help="Addresses reached without DNS."
)
@click.option(
    "--region", "regions", multiple=True, metavar="NAME", help="A region whose hosts are wanted."
)
@click.option("--unverified-hosts", is_flag=True, help="Allow hosts that nobody has verified.")
@click.option("--expires", metavar="DATE", help="The last day on which it counts.")
@click.option("--reason", metavar="TEXT", help="Why, for the next reader.")
@policy_option
@json_option
@runtime_dir_option
@state_dir_option
def add(
    target: str, policy_path: str, as_json: bool, runtime_dir: str, state_dir: str, **options: Any
) -> int:
    """List the registry of an image, or a host, in the policy; of one that is listed, add to it.

    Comments and order of the file stay. What is given replaces what the entry had, and lists grow.
    """
    # The names of the options are those of the keys; what was not given is none of them.
    given = {key: value for key, value in options.items() if value not in (None, (), False)}
    wanted = entry_of(registry_address(target), given)
    data = _read(policy_path)
    edited = add_registry(data, wanted, today(), source=policy_path, ramnet_version=__version__)
    return _done(edited, data, policy_path, (runtime_dir, state_dir), as_json=as_json)


@click.command()
@_TARGET
@click.option(
    "--extra-host",
    "extra_hosts",
    multiple=True,
    metavar="HOST",
    help="Remove only this companion host of it.",
)
@policy_option
@json_option
@runtime_dir_option
@state_dir_option
def remove(
    target: str,
    extra_hosts: tuple[str, ...],
    policy_path: str,
    as_json: bool,
    runtime_dir: str,
    state_dir: str,
) -> int:
    """Take the registry of an image, or a host, out of the policy."""
    address = registry_address(target)
    data = _read(policy_path)
    if extra_hosts:
        hosts = [parse_pattern(host) for host in extra_hosts]
        edited = remove_extra_hosts(
            data, address, hosts, source=policy_path, ramnet_version=__version__
        )
    else:
        edited = remove_registry(data, address, source=policy_path, ramnet_version=__version__)
    return _done(edited, data, policy_path, (runtime_dir, state_dir), as_json=as_json)


def _read(path: str) -> bytes:
    data = current(path)
    if data is None:
        hint = "`ramnet policy init` writes a first one"
        raise HostError(f"{path} does not exist", hint=hint)
    return data


def _done(edited: Edited, data: bytes, path: str, dirs: tuple[str, str], *, as_json: bool) -> int:
    """Put the edited text in place, and tell what was changed."""
    step = Step(path, data, edited.before, edited.text.encode(), edited.after)
    kept: str | None = None
    in_force: bool | None = None
    if edited.changed:
        refuse_during_trial(*dirs, path)
        kept = step.install()
        in_force = wait_in_force(dirs[0], step)
    if as_json:
        state = {"installed": edited.changed, "backup": kept, "in_force": in_force}
        print_json({"schema": 1, **step.plain, **state})
    else:
        step.tell()
        if edited.changed:
            tell_installed(step, kept, in_force)
    return DENIED if in_force is False else OK

"""``ramnet lock``: no engine reaches anything until the daemon is there."""

from __future__ import annotations

import click

from ramnet.cli.exits import config_option, require_root, state_dir_option


@click.command()
@config_option
@state_dir_option
@click.option(
    "--write-only",
    is_flag=True,
    help="Only write the file that is loaded at boot; load nothing now.",
)
def lock(config_path: str, state_dir: str, write_only: bool) -> None:
    """Refuse engines everything until `ramnet run` is ready; rules in force stay as they are.

    It is for the time between power-on and the daemon. Exit code 3 means that this kernel or
    configuration cannot be enforced; `ramnet check` tells why.
    """
    require_root("ramnet lock")
    from ramnet.host import lockdown  # noqa: PLC0415 - needs libnftables
    from ramnet.host.files import read_config  # noqa: PLC0415

    said = lockdown.lock(read_config(config_path), state_dir, load=not write_only)
    click.echo(f"ramnet: {said}")

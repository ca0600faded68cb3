"""``ramnet off``: stop enforcing."""

from __future__ import annotations

import click

from ramnet.cli.exits import OK, require_root, runtime_dir_option
from ramnet.host.control import ask


@click.command()
@runtime_dir_option
def off(runtime_dir: str) -> int:
    """Remove the rules from this network namespace and stop the daemon, if one runs.

    Stopping the daemon alone keeps the rules: this is the only way to remove them.
    """
    require_root("ramnet off")
    try:
        ask(runtime_dir, "off")
    except (FileNotFoundError, ConnectionRefusedError):
        from ramnet.daemon import remove_table_without_daemon  # noqa: PLC0415 - needs libnftables

        found = remove_table_without_daemon()
        state = "the rules were removed" if found else "there were no rules to remove"
        click.echo(f"ramnet: {state}; no daemon was running")
        return OK
    click.echo("ramnet: the rules were removed and the daemon stops; nothing is enforced")
    return OK

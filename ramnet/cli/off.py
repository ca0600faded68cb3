"""``ramnet off``: stop enforcing."""

from __future__ import annotations

import click

from ramnet.cli.exits import OK, config_option, require_root, runtime_dir_option
from ramnet.host.control import ask


@click.command()
@config_option
@runtime_dir_option
def off(config_path: str, runtime_dir: str) -> int:
    """Remove the rules and marks from this machine and stop the daemon, if one runs.

    Stopping the daemon alone keeps the rules: this is the only way to remove them.
    """
    require_root("ramnet off")
    try:
        ask(runtime_dir, "off")
    except (FileNotFoundError, ConnectionRefusedError):
        from ramnet.daemon import remove_all_without_daemon  # noqa: PLC0415 - needs libnftables

        found = remove_all_without_daemon(config_path)
        state = "the rules were removed" if found else "there were no rules to remove"
        click.echo(f"ramnet: {state}; no daemon was running")
        return OK
    click.echo("ramnet: the rules were removed and the daemon stops; nothing is enforced")
    return OK

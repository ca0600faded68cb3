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
        removed = ask(runtime_dir, "off")
    except (FileNotFoundError, ConnectionRefusedError):
        from ramnet.daemon import remove_all_without_daemon  # noqa: PLC0415 - needs libnftables

        left = remove_all_without_daemon(config_path)
        state = "the rules were removed" if left.found else "there were no rules to remove"
        _tell(f"{state}; no daemon was running", left.problem)
        return OK
    said = "the rules were removed and the daemon stops; nothing is enforced"
    _tell(said, removed["problem"] or "")
    return OK


def _tell(said: str, problem: str) -> None:
    click.echo(f"ramnet: {said}")
    if problem:
        click.echo(f"ramnet: {problem}", err=True)

"""``ramnet run``: the daemon in the foreground."""

from __future__ import annotations

import asyncio

import click

from ramnet.cli.exits import (
    STATE_DIR,
    config_option,
    policy_option,
    require_root,
    runtime_dir_option,
)


@click.command()
@policy_option
@config_option
@runtime_dir_option
@click.option(
    "--state-dir",
    default=STATE_DIR,
    show_default=True,
    help="Accepted for later versions; this one keeps no state outside the kernel.",
)
def run(policy_path: str, config_path: str, runtime_dir: str, state_dir: str) -> None:
    """Enforce the policy until told to stop; the rules stay when the daemon stops.

    Ready is said by sd_notify and by the line `ramnet: ready: state=...` on stderr. Exit code 3
    means that this kernel or configuration cannot be enforced; `ramnet check` tells why.
    """
    del state_dir
    require_root("ramnet run")
    from ramnet.daemon import Daemon, Options  # noqa: PLC0415 - other verbs start faster without

    async def enforce() -> None:
        await Daemon(Options(policy_path, config_path, runtime_dir)).run()

    asyncio.run(enforce())

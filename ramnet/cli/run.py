"""``ramnet run``: the daemon in the foreground."""

from __future__ import annotations

import asyncio

import click

from ramnet.cli.exits import (
    config_option,
    policy_option,
    require_root,
    runtime_dir_option,
    state_dir_option,
)


@click.command()
@policy_option
@config_option
@runtime_dir_option
@state_dir_option
@click.option(
    "--standby",
    is_flag=True,
    help="Where another ramnet enforces in this network namespace, wait and take over from it.",
)
def run(
    policy_path: str, config_path: str, runtime_dir: str, state_dir: str, standby: bool
) -> None:
    """Enforce the policy until told to stop; the rules stay when the daemon stops.

    Ready is said by sd_notify and by the line `ramnet: ready: state=...` on stderr. Exit code 3
    means that this kernel or configuration cannot be enforced; `ramnet check` tells why.
    """
    require_root("ramnet run")
    # Other verbs start faster without.
    from ramnet.daemon import Daemon, Options  # noqa: PLC0415
    from ramnet.errors import OccupiedError  # noqa: PLC0415
    from ramnet.host.nflog import NflogReader  # noqa: PLC0415
    from ramnet.host.notify import FdStore  # noqa: PLC0415
    from ramnet.standby import Standby  # noqa: PLC0415

    options = Options(policy_path, config_path, runtime_dir, state_dir)
    store = FdStore()

    async def enforce() -> None:
        lock: NflogReader | None = None
        while True:
            try:
                daemon = Daemon(options, store, lock)
            except OccupiedError:
                if not standby:
                    raise
            else:
                return await daemon.run()
            lock = await Standby(runtime_dir).wait()
            if lock is None:
                return None

    asyncio.run(enforce())

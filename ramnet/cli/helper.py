"""``ramnet helper``: does for the daemon what needs more rights; a service, not for people."""

from __future__ import annotations

import asyncio

import click

from ramnet.cli.exits import config_option, require_root


@click.command(hidden=True)
@config_option
@click.option("--runtime-dir", required=True, help="Where its socket is; for root alone.")
def helper(config_path: str, runtime_dir: str) -> None:
    """Serve the daemon whose $RAMNET_HELPER names the same directory, until told to stop."""
    require_root("ramnet helper")
    from ramnet.host.files import read_config  # noqa: PLC0415 - other verbs start faster without
    from ramnet.host.helping import Helping  # noqa: PLC0415

    async def serve() -> None:
        await Helping(read_config(config_path), runtime_dir).run()

    asyncio.run(serve())

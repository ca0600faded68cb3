"""``ramnet notice``: tells refused clients why; a service, not for people."""

from __future__ import annotations

import click


@click.command(hidden=True)
@click.option(
    "--spawned",
    metavar="FD,...",
    help="The daemon started this: its sockets. It ends with its input, and gives up root.",
)
def notice(spawned: str | None) -> None:
    """Answer on the sockets that systemd passes (ramnet-notice.socket), without any right."""
    from ramnet.errors import HostError  # noqa: PLC0415 - other verbs start faster without
    from ramnet.host.confine import confine, drop_user  # noqa: PLC0415
    from ramnet.host.notify import NOTICE_SOCKETS, FdStore, manager  # noqa: PLC0415
    from ramnet.host.responder import DESCRIPTORS, Responder, sorted_sockets  # noqa: PLC0415

    if spawned is None:
        descriptors = FdStore().passed(NOTICE_SOCKETS)
    else:
        descriptors = tuple(int(word) for word in spawned.split(",") if word.isdecimal())
    listening, control = sorted_sockets(descriptors)
    if control is None or not listening:
        raise HostError(
            "ramnet notice has no sockets to answer on", hint="start it by ramnet-notice.socket"
        )
    if spawned is None:
        responder = Responder(listening, control, manager=manager())
    else:
        responder = Responder(listening, control, life=0)
        drop_user()
    without = confine(DESCRIPTORS)
    if without is not None:
        click.echo(f"ramnet: notice: runs without a filter of system calls: {without}", err=True)
    responder.serve()

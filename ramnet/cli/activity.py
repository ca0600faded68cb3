"""``ramnet activity``: what was refused, failed or changed."""

from __future__ import annotations

import json
import re
import time
from collections import deque
from collections.abc import Callable, Iterable
from datetime import datetime

import click

from ramnet.cli.exits import OK, F, NeedsRoot, json_option, print_json, state_dir_option
from ramnet.core.activity import SCHEMA, Record, Verdict, plain_record
from ramnet.host.activity import Reader

# How often `--follow` looks for more; records are written four times a second.
FOLLOW_SECONDS = 0.25
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_COLUMNS = "{:<19}  {:<10}  {:<10}  {:<28}  {:<40}  {}"


def _seconds(
    ctx: click.Context,
    param: click.Parameter,
    value: str | None,
) -> float | None:
    """Read a time in the past, as seconds since the epoch."""
    if value is None:
        return None
    span = re.fullmatch(r"(\d{1,9})([smhd])", value, re.ASCII)
    if span:
        return time.time() - int(span[1]) * _UNITS[span[2]]
    try:
        return datetime.fromisoformat(value).astimezone().timestamp()
    except (ValueError, OverflowError) as err:
        hint = "write 30s, 5m, 1h or 7d, or a time such as 2027-01-31T12:00"
        raise click.BadParameter(f"'{value}' is not a time; {hint}", ctx, param) from err


def since_option(default: str | None) -> Callable[[F], F]:
    """Add ``--since``."""
    return click.option(
        "--since",
        default=default,
        show_default=default is not None,
        callback=_seconds,
        metavar="TIME",
        help="Only what is newer: 30s, 5m, 1h, 7d, or an ISO time.",
    )


@click.command()
@since_option(None)
@click.option("--last", type=click.IntRange(min=1), help="Only the last so many.")
@click.option(
    "--verdict",
    "verdicts",
    multiple=True,
    type=click.Choice([str(verdict) for verdict in Verdict]),
    help="Only these; may be given several times.",
)
@click.option("--follow", is_flag=True, help="Go on with what is added, until interrupted.")
@json_option
@state_dir_option
def activity(
    since: float | None,
    last: int | None,
    verdicts: tuple[str, ...],
    follow: bool,
    as_json: bool,
    state_dir: str,
) -> int:
    """Show what was refused or failed, and how the policy changed.

    With --follow, --json prints one object a line.
    """
    wanted = frozenset(verdicts) or frozenset(map(str, Verdict))

    def chosen(records: Iterable[Record]) -> Iterable[Record]:
        return (
            record
            for record in records
            if record.verdict in wanted and (since is None or record.last >= since)
        )

    try:
        with Reader(state_dir) as reader:
            there = deque(chosen(reader.read()), maxlen=last)
            _show_all(there, as_json=as_json, follow=follow)
            while follow:
                time.sleep(FOLLOW_SECONDS)
                for record in chosen(reader.read()):
                    _show(record, as_json=as_json)
    except PermissionError as err:
        raise unreadable("ramnet activity") from err
    return OK


def unreadable(verb: str) -> NeedsRoot:
    """Make the error for a record that may not be read."""
    return NeedsRoot(f"the record is for root alone: {verb} needs root", hint=f"try `sudo {verb}`")


def _show_all(records: Iterable[Record], *, as_json: bool, follow: bool) -> None:
    if as_json and not follow:
        print_json({"schema": SCHEMA, "records": [plain_record(record) for record in records]})
        return
    if not as_json:
        click.echo(_COLUMNS.format("time", "verdict", "class", "who", "what", "why"))
    for record in records:
        _show(record, as_json=as_json)


def _show(record: Record, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(plain_record(record), separators=(",", ":")))
        return
    at = datetime.fromtimestamp(record.last).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    times = f" ({record.count} times)" if record.count > 1 else ""
    line = _COLUMNS.format(
        at,
        record.verdict,
        record.traffic or "",
        record.who,
        record.what,
        f"{record.why}{times}",
    )
    # A name may have come from anybody: what would move the cursor is shown, not sent.
    click.echo("".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in line))

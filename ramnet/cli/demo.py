"""``ramnet demo``: see it work, on a real Docker engine, in namespaces of its own."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click

from ramnet.cli.exits import DENIED, OK, json_option, print_json, require_root

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command()
@json_option
def demo(*, as_json: bool) -> int:
    """Show on a real Docker engine what is allowed and what is refused.

    Everything runs in network namespaces of its own, takes about half a minute and is taken down
    again, also on Ctrl-C. Exit code 1 when something that is promised did not hold. With --json the
    progress goes to stderr.
    """
    require_root("ramnet demo")
    from ramnet.lab.demo import run  # noqa: PLC0415 - other verbs start faster without
    from ramnet.lab.screen import Screen  # noqa: PLC0415

    screen = Screen(sys.stderr if as_json else sys.stdout)
    with _ended_by_signals():
        outcome = run(screen)
    if as_json:
        print_json(outcome.report())
    return DENIED if outcome.failed else OK


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let the first signal end the demo by an exception; the clean-up that follows is let be."""

    def ignore(_number: int, _frame: FrameType | None) -> None:
        """Not SIG_IGN, which programs that are started would inherit."""

    def stop(number: int, _frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, ignore)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)  # as a shell tells it

    before = {
        number: signal.signal(number, stop)
        for number in _SIGNALS
        # What nohup asks for stays so.
        if not (number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN)
    }
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        click.echo("ramnet: interrupted; the demo was taken down, nothing is left behind", err=True)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

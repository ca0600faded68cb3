"""``ramnet policy apply`` and ``confirm``: put a policy in place, for good or on trial."""

from __future__ import annotations

import contextlib
import os
import re
import select
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import click

from ramnet import __version__
from ramnet.cli.cautions import cautions_of, print_cautions
from ramnet.cli.exits import (
    DENIED,
    NOT_RUNNING,
    OK,
    json_option,
    policy_option,
    print_error,
    print_json,
    require_root,
    runtime_dir_option,
    state_dir_option,
)
from ramnet.core.policy import Policy, parse_policy, policy_digest
from ramnet.core.policydiff import MAX_SHOWN, Change, policy_diff
from ramnet.core.textfile import MAX_FILE_BYTES
from ramnet.core.trial import BEFORE_TRIAL, MAX_SECONDS, MIN_SECONDS
from ramnet.errors import ControlError, HostError, PolicyError, RamnetError
from ramnet.host.control import ask
from ramnet.host.files import read_limited
from ramnet.host.trial import STATE_FILE, digest_of, install, keep_before, pending_trial

# A policy of a million entries takes the daemon seconds; what takes longer has gone wrong.
IN_FORCE_SECONDS = 15.0
_LOOK_SECONDS = 0.2
# How often the terminal looks whether the trial is over.
_ASK_SECONDS = 1.0
_UNITS = {"s": 1, "m": 60, "h": 3600}
_GONE = (FileNotFoundError, ConnectionRefusedError)


@dataclass(frozen=True, slots=True)
class Step:
    """From one policy file to the next; ``old`` is None where there is no valid one."""

    path: str
    before: bytes | None
    old: Policy | None
    data: bytes
    new: Policy

    def changes(self) -> tuple[list[Change], int]:
        """Return what changes, as much of it as is shown, and the number of other changes."""
        if self.old is None:
            return [], 0
        found = policy_diff(self.old, self.new)
        return list(islice(found, MAX_SHOWN)), sum(1 for _ in found)

    def tell(self) -> None:
        """Print what changes, and what the new policy is warned of."""
        self._tell_changes()
        print_cautions(self.warnings())

    def _tell_changes(self) -> None:
        if self.old is None:
            count = len(self.new.registry)
            click.echo(f"{self.path}: there was no valid policy; {count} registries now")
            return
        changes, more = self.changes()
        for change in changes:
            click.echo(str(change))
        if more:
            click.echo(f"... and {more} more changes")
        if not changes:
            click.echo(f"{self.path}: says the same as before")

    def warnings(self) -> list[dict[str, Any]]:
        """Return what the new policy is warned of and the old one was not."""
        found = cautions_of(self.new, self.data, self.path)
        if self.old is None or self.before is None or not found:
            return found
        known = cautions_of(self.old, self.before, self.path)
        before = {(item["kind"], item["message"]) for item in known}
        return [item for item in found if (item["kind"], item["message"]) not in before]

    @property
    def plain(self) -> dict[str, Any]:
        """The change as JSON values; ``changes`` is None where there was no valid policy."""
        changes, more = self.changes()
        return {
            "policy": self.path,
            "digest": policy_digest(self.new),
            "changes": [change.plain for change in changes] if self.old is not None else None,
            "more_changes": more,
            "warnings": self.warnings(),
        }

    def install(self) -> str | None:
        """Replace the file, unless somebody else just has; return where the old one is kept."""
        if current(self.path) != self.before:
            raise HostError(f"{self.path} was changed by somebody else", hint="try again")
        kept = None if self.before is None else str(keep_before(self.path, self.before))
        install(self.path, self.data)
        return kept


def current(path: str) -> bytes | None:
    """Return what a policy file holds; None where there is none."""
    return read_limited(path, MAX_FILE_BYTES) if os.path.lexists(path) else None


def _seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    span = re.fullmatch(r"(\d{1,6})([smh])", value, re.ASCII)
    seconds = int(span[1]) * _UNITS[span[2]] if span else 0
    if not MIN_SECONDS <= seconds <= MAX_SECONDS:
        most = timedelta(seconds=MAX_SECONDS) // timedelta(hours=1)
        hint = f"write a time from {MIN_SECONDS}s to {most}h, such as 60s or 5m"
        raise click.BadParameter(f"'{value}' is not such a time; {hint}", ctx, param)
    return seconds


@click.command()
@click.argument("file")
@click.option(
    "--confirm",
    "seconds",
    metavar="TIME",
    callback=_seconds,
    help="Undo it after 60s, 5m, 1h, unless it is confirmed.",
)
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@policy_option
@json_option
@runtime_dir_option
@state_dir_option
def apply(
    file: str,
    seconds: int | None,
    dry_run: bool,
    policy_path: str,
    as_json: bool,
    runtime_dir: str,
    state_dir: str,
) -> int:
    """Put FILE in the place of the policy: checked, shown, in one step; the old one is kept.

    With --confirm the daemon puts the old one back by itself unless it is confirmed in time: by
    Enter on a terminal, or by `ramnet policy confirm`. A reboot undoes it as well.
    """
    step = _step(file, policy_path)
    if not as_json:
        step.tell()
    same = step.data == step.before
    if same or dry_run:
        if as_json:
            _print(step, file, installed=False)
        else:
            click.echo("nothing was changed" + (": it is there already" if same else ""))
        return OK
    refuse_during_trial(runtime_dir, state_dir, step.path)
    if seconds is not None:
        return _try(step, file, seconds, runtime_dir, as_json=as_json)
    kept = step.install()
    in_force = wait_in_force(runtime_dir, step)
    if as_json:
        _print(step, file, backup=kept, in_force=in_force)
    else:
        tell_installed(step, kept, in_force)
    return DENIED if in_force is False else OK


def _print(step: Step, file: str, *, installed: bool = True, **state: object) -> None:
    more = {"backup": None, "in_force": None, "trial": None, **state}
    print_json({"schema": 1, "file": file, **step.plain, "installed": installed, **more})


def _step(file: str, policy_path: str) -> Step:
    data = read_limited(file, MAX_FILE_BYTES)
    new = parse_policy(data, source=file, ramnet_version=__version__)
    kinds = [path.lower().endswith(".json") for path in (file, policy_path)]
    if kinds[0] != kinds[1]:
        raise HostError(
            f"{file} and {policy_path} are not of one format",
            hint="the name says the format: JSON where it ends in .json, else TOML",
        )
    before = current(policy_path)
    old = None
    if before is not None:
        try:
            old = parse_policy(before, source=policy_path, ramnet_version=__version__)
        except PolicyError:
            old = None
    return Step(policy_path, before, old, data, new)


def refuse_during_trial(runtime_dir: str, state_dir: str, path: str) -> None:
    """A change would end the trial of another policy: then nobody could undo that one."""
    try:
        found = ask(runtime_dir, "status")["policy"]
    except _GONE:
        if pending_trial(path, state_dir):
            raise HostError(
                "the policy is on trial, and no daemon is running to undo it",
                hint=f"start it (`systemctl start ramnet`), or remove {state_dir}/{STATE_FILE}",
            ) from None
        return
    except ControlError as err:
        raise ControlError(
            f"nothing was changed, as the policy may be on trial: {err.message}",
            hint="try again; `ramnet status` tells whether it is",
        ) from err
    if found.get("trial") and _same(found["path"], path):
        raise HostError(
            f"the policy is on trial for {found['trial']['seconds_left']} s more",
            hint="`ramnet policy confirm` keeps it; else wait until it is undone",
        )


def _same(one: str, other: str) -> bool:
    return Path(one).resolve() == Path(other).resolve()


def wait_in_force(runtime_dir: str, step: Step) -> bool | None:
    """Wait until the daemon has taken a policy up; None where none follows this file."""
    wanted = policy_digest(step.new)
    end = time.monotonic() + IN_FORCE_SECONDS
    while True:
        try:
            found = ask(runtime_dir, "status")["policy"]
        except (*_GONE, ControlError, PermissionError):
            return None
        if not found.get("path") or not _same(found["path"], step.path):
            return None
        if found["digest"] == wanted:
            return True
        if time.monotonic() > end:
            return False
        time.sleep(_LOOK_SECONDS)


def tell_installed(step: Step, kept: str | None, in_force: bool | None) -> None:
    """Print what became of it."""
    before = f"; the one before is {kept}" if kept else ""
    said = {
        True: "in force",
        False: "installed, but not in force: `ramnet status` tells why",
        None: "installed; no daemon follows it here",
    }[in_force]
    click.echo(f"{step.path}: {said}{before}")


def _try(step: Step, file: str, seconds: int, runtime_dir: str, *, as_json: bool) -> int:
    require_root("ramnet policy apply --confirm")
    if step.old is None or step.before is None:
        raise HostError(
            f"{step.path}: there is no valid policy to go back to", hint="leave out --confirm"
        )
    try:
        ask(runtime_dir, "status")
    except _GONE:
        print_error(
            RamnetError(
                "no daemon is running, and only a daemon can undo a policy by itself",
                hint="start it (`systemctl start ramnet`), or leave out --confirm",
            )
        )
        return NOT_RUNNING
    keep_before(step.path, step.before, BEFORE_TRIAL)
    trial = ask(
        runtime_dir,
        "trial",
        policy=str(Path(step.path).resolve()),
        digest=digest_of(step.data),
        before=digest_of(step.before),
        span=seconds,
    )["trial"]
    try:
        kept = step.install()
    except RamnetError:
        with contextlib.suppress(*_GONE, ControlError):  # it may have lapsed
            ask(runtime_dir, "revert")
        raise
    _require_trial(step, step.before, runtime_dir)
    in_force = wait_in_force(runtime_dir, step)
    if as_json:
        _print(step, file, backup=kept, in_force=in_force, trial=trial)
        return DENIED if in_force is False else OK
    tell_installed(step, kept, in_force)
    if sys.stdin.isatty() and sys.stdout.isatty():
        return _wait_for_enter(step, runtime_dir, seconds)
    click.echo(f"it is undone in {seconds} s, unless `ramnet policy confirm` keeps it")
    return DENIED if in_force is False else OK


def _require_trial(step: Step, before: bytes, runtime_dir: str) -> None:
    """Undo it here where the daemon would not: on a slow disk the trial may be over by now."""
    why = "the trial was over before the policy was in place"
    try:
        trial = ask(runtime_dir, "status")["policy"].get("trial")
    except (*_GONE, ControlError) as err:
        trial, why = None, f"the daemon does not answer any more ({err})"
    if trial and trial["digest"] == digest_of(step.data):
        return
    if current(step.path) == step.data:
        install(step.path, before)
    back = current(step.path) == before
    left = "the one before is back" if back else "what somebody else wrote meanwhile stays"
    raise HostError(f"{why}: {left}", hint="try again, and with more time")


def _wait_for_enter(step: Step, runtime_dir: str, seconds: int) -> int:
    click.echo(f"Press Enter to keep it. It is undone in {seconds} s; Ctrl-C undoes it now.")
    try:
        while True:
            ready, _, _ = select.select([sys.stdin], [], [], _ASK_SECONDS)
            if ready:
                line = os.read(sys.stdin.fileno(), 1024)
                if line.strip() == b"" and line:
                    return _confirmed(runtime_dir)
                if not line:  # the terminal is gone; the daemon is not
                    return DENIED
            elif not ask(runtime_dir, "status")["policy"].get("trial"):
                kept = current(step.path) == step.data
                click.echo("it was confirmed" if kept else "it was undone: the one before is back")
                return OK if kept else DENIED
    except KeyboardInterrupt:
        ask(runtime_dir, "revert")
        click.echo("\nit was undone: the one before is back")
        return DENIED


def _confirmed(runtime_dir: str) -> int:
    ask(runtime_dir, "confirm")
    click.echo("confirmed: the policy stays")
    return OK


@click.command()
@runtime_dir_option
def confirm(runtime_dir: str) -> int:
    """Keep the policy that `ramnet policy apply --confirm` put on trial."""
    require_root("ramnet policy confirm")
    try:
        return _confirmed(runtime_dir)
    except _GONE:
        print_error(
            RamnetError(
                "no daemon is running, and it is the daemon who keeps the trial",
                hint="start it in time (`systemctl start ramnet`), and confirm then",
            )
        )
        return NOT_RUNNING

"""Exit codes, what is common to the verbs, and how errors look."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from ramnet.errors import RamnetError, UnsupportedKernel

OK = 0
DENIED = 1
USAGE = 2
UNSUPPORTED = 3
NOT_RUNNING = 3
DEGRADED = 4
NEEDS_ROOT = 77

POLICY_PATH = "/etc/ramnet/policy.toml"
CONFIG_PATH = "/etc/ramnet/ramnet.toml"
RUNTIME_DIR = "/run/ramnet"
STATE_DIR = "/var/lib/ramnet"

F = TypeVar("F", bound=Callable[..., Any])


class NeedsRoot(RamnetError):
    """The verb needs root."""


def exit_code_of(error: RamnetError) -> int:
    """Return the exit code that stands for an error."""
    if isinstance(error, NeedsRoot):
        return NEEDS_ROOT
    if isinstance(error, UnsupportedKernel):
        return UNSUPPORTED
    return DENIED


def print_error(error: RamnetError) -> None:
    """Write an error and its hint to stderr."""
    click.echo(f"ramnet: {error.message}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)


def print_json(value: object) -> None:
    """Write a JSON document to stdout."""
    # A path that is not UTF-8 holds lone surrogates; they are written as JSON escapes.
    text = json.dumps(value, indent=2, ensure_ascii=False)
    click.echo(re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text))


def require_root(what: str) -> None:
    """Refuse to go on as anybody but root."""
    if os.geteuid() != 0:
        raise NeedsRoot(f"{what} needs root", hint=f"try `sudo {what}`")


def json_option(function: F) -> F:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON (schema 1).")(function)


def runtime_dir_option(function: F) -> F:
    """Add ``--runtime-dir``."""
    return click.option(
        "--runtime-dir",
        envvar="RAMNET_RUNTIME_DIR",
        default=RUNTIME_DIR,
        show_default=True,
        help="Where the daemon's control socket is.",
    )(function)


def policy_option(function: F) -> F:
    """Add ``--policy``."""
    return click.option(
        "--policy",
        "policy_path",
        default=POLICY_PATH,
        show_default=True,
        help="The policy file (TOML, or JSON when its name ends in .json).",
    )(function)


def config_option(function: F) -> F:
    """Add ``--config``."""
    return click.option(
        "--config",
        "config_path",
        default=CONFIG_PATH,
        show_default=True,
        help="The machine's own settings.",
    )(function)


def state_dir_option(function: F) -> F:
    """Add ``--state-dir``."""
    return click.option(
        "--state-dir",
        envvar="RAMNET_STATE_DIR",
        default=STATE_DIR,
        show_default=True,
        help="Where the record and the locked ruleset for the next boot are kept.",
    )(function)

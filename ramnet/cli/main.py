"""The entry point: verbs, and the one place where an error becomes an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from ramnet import __version__
from ramnet.cli.check import check
from ramnet.cli.demo import demo
from ramnet.cli.exits import exit_code_of, print_error
from ramnet.cli.explain import explain
from ramnet.cli.helper import helper
from ramnet.cli.lock import lock
from ramnet.cli.off import off
from ramnet.cli.policy import policy
from ramnet.cli.run import run
from ramnet.cli.status import status
from ramnet.cli.wsl import wsl
from ramnet.errors import RamnetError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Enforce an organisation's list of allowed container registries on this machine."""


@cli.command()
def version() -> None:
    """Print the version."""
    click.echo(f"ramnet {__version__}")


for _verb in (check, run, helper, lock, status, explain, policy, off, wsl, demo):
    cli.add_command(_verb)
cli.add_command(explain, name="why")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    0 good · 1 denied or failed · 2 usage · 3 unsupported kernel or not running · 4 degraded or
    locked down · 77 needs root.
    """
    try:
        code = cli.main(arguments, prog_name="ramnet", standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as err:
        err.show()
        sys.exit(err.exit_code)
    except RamnetError as err:
        print_error(err)
        sys.exit(exit_code_of(err))
    sys.exit(code if isinstance(code, int) else 0)

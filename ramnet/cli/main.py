"""The entry point: verbs, and the one place where an error becomes an exit code."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import click

from ramnet import __version__
from ramnet.cli.exits import exit_code_of, print_error
from ramnet.errors import RamnetError

# Each lies in a file of its name. Only the one that is asked for is imported: `status` starts in
# half the time without what `check` needs.
VERBS = (
    "activity",
    "check",
    "demo",
    "doctor",
    "explain",
    "helper",
    "lock",
    "notice",
    "off",
    "policy",
    "registry",
    "run",
    "status",
    "wsl",
)
ALIASES = {"why": "explain"}


class Verbs(click.Group):
    """The verbs, each imported when it is first asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - as click has it
        """Give the names of all verbs, sorted."""
        return sorted({*self.commands, *VERBS, *ALIASES})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Give a verb by its name; None where there is none."""
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in VERBS:
            return super().get_command(ctx, name)
        found: click.Command = getattr(importlib.import_module(f"ramnet.cli.{name}"), name)
        return found


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Enforce an organisation's list of allowed container registries on this machine."""


@cli.command()
def version() -> None:
    """Print the version."""
    click.echo(f"ramnet {__version__}")


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

"""``python -m ramnet``: the same program as the ``ramnet`` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; Ctrl-C is no error, not even while modules are being imported."""
    try:
        from ramnet.cli.main import main as run  # noqa: PLC0415 - see above

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()

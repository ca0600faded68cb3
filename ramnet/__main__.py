"""``python -m ramnet``: the same program as the ``ramnet`` command."""

from __future__ import annotations

from ramnet.cli.main import main

if __name__ == "__main__":
    main()

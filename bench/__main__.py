"""``python -m bench``: measure everything, print one JSON document. What it needs: README.md."""

from __future__ import annotations

import json
import os
import platform

from bench import dns, enforcing, matching, refusing


def main() -> None:
    """Run every benchmark."""
    machine = {"cores": os.cpu_count(), "kernel": os.uname().release}
    figures = {
        "machine": {**machine, "python": platform.python_version()},
        "matching": matching.run(),
        "enforcing": enforcing.run(),
        "refusing": refusing.run(),
        "dns": dns.run(),
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()

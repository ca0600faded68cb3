"""What the record of a daemon says, and waiting for what it is to say."""

from __future__ import annotations

import json
from typing import Any

from ramnet.lab.process import wait_until
from ramnet.lab.ramnet import Daemon

RECORD_SECONDS = 5.0  # written four times a second; a refusal waits for its name before that


def activity(daemon: Daemon, *options: str) -> list[dict[str, Any]]:
    place = ("--state-dir", str(daemon.state_dir))
    done = daemon.cli("activity", "--json", *options, *place, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)["records"]
    return found


def wait_record(daemon: Daemon, **wanted: object) -> dict[str, Any]:
    """Return the first record with these values."""
    found: list[dict[str, Any]] = []

    def there() -> bool:
        found[:] = [one for one in activity(daemon) if wanted.items() <= one.items()]
        return bool(found)

    wait_until(there, RECORD_SECONDS, f"a record of {wanted}", hint=str(activity(daemon)))
    return found[0]

"""The calendar and the boot; leases are measured on CLOCK_MONOTONIC (``time.monotonic``)."""

from __future__ import annotations

import time
from datetime import date, datetime
from pathlib import Path


def today() -> date:
    """Return today's date where the machine is: policies name days, not instants."""
    return datetime.now().astimezone().date()


def boot_id() -> str:
    """Return what names this boot of the machine (random(4)); empty where the kernel tells none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def since_boot() -> float:
    """Return the seconds since the boot; the time that the machine slept counts as well."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)

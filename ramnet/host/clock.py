"""The calendar; leases are measured on CLOCK_MONOTONIC (``time.monotonic``) instead."""

from __future__ import annotations

from datetime import date, datetime


def today() -> date:
    """Return today's date where the machine is: policies name days, not instants."""
    return datetime.now().astimezone().date()

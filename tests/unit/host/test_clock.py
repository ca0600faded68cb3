from __future__ import annotations

import time
from datetime import datetime

import pytest

from ramnet.host.clock import today


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "UTC+12"])
def test_the_day_is_the_one_where_the_machine_is(
    monkeypatch: pytest.MonkeyPatch, zone: str
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        local = time.localtime
        before, day, after = local()[:3], today(), local()[:3]
    finally:
        monkeypatch.undo()
        time.tzset()
    assert before <= (day.year, day.month, day.day) <= after
    assert not isinstance(day, datetime)

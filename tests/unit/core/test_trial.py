"""When a policy on trial is undone, and what is kept of it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramnet.core.trial import BEFORE_TRIAL, Outcome, Trial, judge, read_trial, write_trial
from ramnet.errors import HostError

TRIAL = Trial(
    policy="/etc/ramnet/policy.toml",
    digest="sha256:new",
    backup="/etc/ramnet/policy.toml.before-trial",
    before="sha256:old",
    boot="one",
    until=100.0,
    deadline=1_800_000_000.0,
)
WAIT, RESTORE, DROP = Outcome.WAIT, Outcome.RESTORE, Outcome.DROP


@pytest.mark.parametrize(
    ("current", "boot", "now", "outcome", "why"),
    [
        ("sha256:new", "one", 99.9, WAIT, ""),
        ("sha256:new", "one", 100.0, RESTORE, "in time"),
        ("sha256:new", "one", 1e9, RESTORE, "in time"),
        ("sha256:new", "two", 1.0, RESTORE, "started again"),
        ("sha256:new", "", 1.0, RESTORE, "started again"),
        # Not put in place yet: whoever installs it may be slow, or gone.
        ("sha256:old", "one", 99.9, WAIT, ""),
        ("sha256:old", "one", 100.0, DROP, "not in place"),
        ("sha256:old", "two", 1.0, DROP, "not in place"),
        (None, "one", 99.9, WAIT, ""),
        (None, "one", 100.0, DROP, "not in place"),
        # Somebody knows better.
        ("sha256:other", "one", 1.0, DROP, "somebody else"),
        ("sha256:other", "two", 1.0, DROP, "somebody else"),
        ("sha256:other", "one", 100.0, DROP, "somebody else"),
    ],
)
def test_what_is_done(
    current: str | None, boot: str, now: float, outcome: Outcome, why: str
) -> None:
    found, told = judge(TRIAL, current, boot, now)
    assert found is outcome
    assert why in told
    assert bool(told) is bool(why)


@pytest.mark.parametrize(("now", "left"), [(0.0, 100), (99.1, 1), (100.0, 0), (500.0, 0)])
def test_the_time_that_is_left(now: float, left: int) -> None:
    assert TRIAL.left(now) == left


def test_what_is_kept_is_read_back() -> None:
    odd = '/a "b"\n\udcff'
    for trial in (TRIAL, replace(TRIAL, policy=odd, backup=odd + BEFORE_TRIAL, until=5)):
        assert read_trial(write_trial(trial)) == trial


KEPT = {"schema": 1, **asdict(TRIAL)}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        *(
            json.dumps(value).encode()
            for value in (
                {**KEPT, "schema": 2},
                {**KEPT, "more": 1},
                {key: value for key, value in KEPT.items() if key != "boot"},
                {**KEPT, "boot": 1},
                {**KEPT, "until": "1"},
                {**KEPT, "until": True},
                {**KEPT, "until": float("nan")},
                {**KEPT, "deadline": float("inf")},
                {**KEPT, "deadline": None},
                {**KEPT, "backup": "/etc/passwd"},
                {**KEPT, "backup": "/etc/ramnet/policy.toml.before"},
                *(
                    {**KEPT, "policy": path, "backup": path + BEFORE_TRIAL}
                    for path in ("", "policy.toml", "/a\0b", "/a\ud800")
                ),
            )
        ),
    ],
)
def test_what_is_no_trial(data: bytes) -> None:
    with pytest.raises(HostError):
        read_trial(data)


@given(st.binary(max_size=300))
def test_any_octets_are_a_trial_or_an_error(data: bytes) -> None:
    with pytest.raises(HostError):
        read_trial(data)

"""A policy on trial is undone whoever dies meanwhile: a real daemon, and real connections."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable

import pytest

from ramnet.core.trial import BEFORE_TRIAL
from ramnet.host.trial import STATE_FILE
from ramnet.lab.lab import Lab
from ramnet.lab.process import wait_until
from ramnet.lab.programs import PYTHON_PATH
from ramnet.lab.ramnet import Daemon
from tests.netns.support import (
    ALLOWED,
    CORP_REGISTRY,
    DUAL_REGISTRY,
    Ramnet,
    attempt,
    policy,
    status,
    wait_leases,
    wait_status,
)

pytestmark = pytest.mark.netns

OLD = policy(CORP_REGISTRY, DUAL_REGISTRY)
NEW = policy(DUAL_REGISTRY)
CORP_TARGET = ALLOWED[0]
SPAN = 6  # seconds of a trial that is to end
TICKS = 3.0  # seconds in which the daemon has seen that it is over


class Trial:
    """A daemon with the old policy, and the command line beside it."""

    def __init__(self, lab: Lab, daemon: Daemon) -> None:
        self.lab = lab
        self.daemon = daemon
        self.new = daemon.policy_file.with_name("new.toml")
        self.new.write_text(NEW, encoding="utf-8")

    def apply(self, seconds: int) -> float:
        """Put the new policy on trial; return when it will be over."""
        begin = time.monotonic()
        said = self.daemon.cli(
            *("policy", "apply", str(self.new), "--policy", str(self.daemon.policy_file)),
            *("--confirm", f"{seconds}s"),
        )
        assert said.returncode == 0, said.stderr
        assert f"- registry {CORP_REGISTRY}" in said.stdout
        assert "in force" in said.stdout
        assert attempt(self.lab.client, CORP_TARGET) == {CORP_TARGET: "refused"}
        return begin + seconds

    @property
    def text(self) -> str:
        return self.daemon.policy_file.read_text(encoding="utf-8")

    @property
    def kept(self) -> bool:
        return (self.daemon.state_dir / STATE_FILE).exists()

    def wait_undone(self, seconds: float) -> None:
        wait_until(lambda: self.text == OLD, seconds, "the old policy")
        wait_status(self.daemon, lambda said: said["policy"]["trial"] is None, "no trial", seconds)
        wait_status(self.daemon, lambda said: len(said["policy"]["registries"]) == 2, "both")
        wait_leases(self.daemon, len(ALLOWED))
        assert attempt(self.lab.client, CORP_TARGET) == {CORP_TARGET: "connected"}
        assert not self.kept

    def later(self, seconds: float = 0.0) -> None:
        """Have what is kept be over so many seconds from now: no test waits for a minute."""
        file = self.daemon.state_dir / STATE_FILE
        found = json.loads(file.read_text("utf-8"))
        found["until"] = time.clock_gettime(time.CLOCK_BOOTTIME) + seconds
        file.write_text(json.dumps(found), encoding="utf-8")


@pytest.fixture
def trial(lab: Lab, ramnet: Ramnet) -> Trial:
    daemon = ramnet(OLD)
    wait_leases(daemon, len(ALLOWED))
    return Trial(lab, daemon)


def test_what_nobody_confirms_is_undone(trial: Trial) -> None:
    over = trial.apply(SPAN)
    said = status(trial.daemon)
    assert 0 < said["policy"]["trial"]["seconds_left"] <= SPAN
    assert any("is on trial" in line for line in said["warnings"])
    while time.monotonic() < over - 0.5:  # not a moment too soon
        assert trial.text == NEW
        time.sleep(0.1)
    trial.wait_undone(TICKS)
    assert "the policy before is back: nobody confirmed it in time" in trial.daemon.log
    record = trial.daemon.cli("activity", "--verdict", "policy", "--state-dir", _state(trial))
    assert "the policy before is back" in record.stdout


def _state(trial: Trial) -> str:
    return str(trial.daemon.state_dir)


def test_what_is_confirmed_stays(trial: Trial) -> None:
    trial.apply(SPAN)
    assert trial.daemon.cli("policy", "confirm").returncode == 0
    assert not trial.kept
    time.sleep(SPAN + TICKS)
    assert trial.text == NEW
    assert attempt(trial.lab.client, CORP_TARGET) == {CORP_TARGET: "refused"}
    trial.daemon.kill()
    trial.daemon.start()
    assert (trial.text, trial.daemon.cli("policy", "confirm").returncode) == (NEW, 1)


def test_the_daemon_is_killed_and_starts_before_the_end(trial: Trial) -> None:
    over = trial.apply(2 * SPAN)
    trial.daemon.kill()
    trial.daemon.start()
    assert trial.text == NEW
    assert status(trial.daemon)["policy"]["trial"] is not None
    trial.wait_undone(over - time.monotonic() + TICKS)


def test_the_daemon_is_killed_and_starts_after_the_end(trial: Trial) -> None:
    """What was on trial is never in force again, not even for a moment."""
    trial.apply(60)
    trial.daemon.kill()
    trial.later()
    assert trial.text == NEW  # nobody is there to undo it
    trial.daemon.start()
    assert trial.text == OLD
    record = trial.daemon.cli(
        "activity", "--verdict", "policy", "--json", "--state-dir", _state(trial)
    )
    assert "read at the start: 1 registries" not in record.stdout
    trial.wait_undone(TICKS)


def test_after_a_reboot_it_is_undone_at_once(trial: Trial) -> None:
    trial.apply(3600)
    trial.daemon.kill()
    file = trial.daemon.state_dir / STATE_FILE
    found = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps({**found, "boot": "another"}), encoding="utf-8")
    trial.daemon.start()
    assert trial.text == OLD
    assert "the machine was started again" in trial.daemon.log
    trial.wait_undone(TICKS)


@pytest.mark.parametrize("stage", ["backup", "promised", "installed"])
def test_the_command_line_is_killed(trial: Trial, stage: str) -> None:
    """At any moment the file is the old or the new one, and in the end it is the old one."""
    backup = trial.daemon.policy_file.with_name(trial.daemon.policy_file.name + BEFORE_TRIAL)
    stages: dict[str, Callable[[], bool]] = {
        "backup": backup.exists,
        "promised": lambda: trial.kept,
        "installed": lambda: trial.text == NEW,
    }
    argv = [sys.executable, "-m", "ramnet", "policy", "apply", str(trial.new)]
    argv += ["--policy", str(trial.daemon.policy_file), "--confirm", "5s"]
    argv += ["--runtime-dir", str(trial.daemon.runtime_dir)]
    process = trial.lab.client.popen(
        argv, log=trial.new.with_suffix(".log"), env={"PYTHONPATH": str(PYTHON_PATH)}
    )
    end = time.monotonic() + 30
    while not stages[stage]() and time.monotonic() < end:
        pass  # the moment is short
    process.kill()
    text = trial.text
    assert text in (OLD, NEW)
    # Either nothing was promised and nothing done, or what was done is promised to be undone.
    assert trial.kept or text == OLD
    if stage != "backup":
        assert trial.kept
    trial.wait_undone(5 + TICKS)


def test_a_daemon_that_hangs_undoes_it_when_it_goes_on(trial: Trial) -> None:
    trial.apply(SPAN)
    os.kill(trial.daemon.pid, signal.SIGSTOP)
    time.sleep(SPAN)
    assert trial.text == NEW
    os.kill(trial.daemon.pid, signal.SIGCONT)
    trial.wait_undone(TICKS)


def test_a_change_by_hand_ends_the_trial(trial: Trial) -> None:
    trial.apply(SPAN)
    other = policy(CORP_REGISTRY)
    trial.daemon.write_policy(other)
    wait_status(trial.daemon, lambda said: said["policy"]["trial"] is None, "no trial")
    assert "changed by somebody else" in trial.daemon.log
    time.sleep(SPAN)
    assert trial.text == other
    assert not trial.kept
    assert attempt(trial.lab.client, CORP_TARGET) == {CORP_TARGET: "connected"}


def test_an_entry_is_added_and_in_force(trial: Trial) -> None:
    trial.daemon.write_policy(NEW)
    wait_status(trial.daemon, lambda said: len(said["policy"]["registries"]) == 1, "one")
    edit = (f"{CORP_REGISTRY}/acme/app:1", "--policy", str(trial.daemon.policy_file))
    said = trial.daemon.cli("policy", "add", *edit)
    assert said.returncode == 0, said.stderr
    assert "in force" in said.stdout
    wait_leases(trial.daemon, len(ALLOWED))
    assert attempt(trial.lab.client, CORP_TARGET) == {CORP_TARGET: "connected"}
    assert trial.daemon.cli("policy", "remove", *edit).returncode == 0
    assert attempt(trial.lab.client, CORP_TARGET) == {CORP_TARGET: "refused"}
    assert trial.text == NEW

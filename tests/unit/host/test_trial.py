"""A policy on trial, with real files; time and boot are what the test says."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ramnet.core.trial import BEFORE_TRIAL, judge
from ramnet.errors import ControlError, HostError
from ramnet.host import trial as module
from ramnet.host.clock import boot_id, since_boot
from ramnet.host.files import file_mark
from ramnet.host.trial import (
    STATE_FILE,
    Trials,
    backup_of,
    digest_of,
    install,
    keep_before,
    pending_trial,
)

NOBODY = 65534
OLD, NEW, OTHER = b"old\n", b"new\n", b"other\n"


class World:
    """A policy file, a state directory, and daemons one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.policy = folder / "etc" / "policy.toml"
        self.state = folder / "state"
        self.policy.parent.mkdir()
        self.state.mkdir()
        self.policy.write_bytes(OLD)
        self.now, self.boot = 1000.0, "one"
        self.told: list[str] = []
        self.trials = self.daemon()

    def daemon(self) -> Trials:
        return Trials(str(self.policy), str(self.state), self.told.append)

    def request(self, **other: object) -> dict[str, Any]:
        asked = {"policy": str(self.policy), "digest": digest_of(NEW), "before": digest_of(OLD)}
        return {"verb": "trial", **asked, "span": 60, **other}

    @property
    def backup(self) -> Path:
        return backup_of(str(self.policy), BEFORE_TRIAL)

    def keep(self) -> None:
        keep_before(str(self.policy), OLD, BEFORE_TRIAL)

    def apply(self) -> None:
        """What the command line does."""
        self.keep()
        self.trials.begin(self.request())
        install(str(self.policy), NEW)

    @property
    def kept(self) -> bool:
        return (self.state / STATE_FILE).exists()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made: list[World] = []
    monkeypatch.setattr(module, "boot_id", lambda: made[0].boot if made else "one")
    monkeypatch.setattr(module, "since_boot", lambda: made[0].now)
    made.append(World(tmp_path))
    return made[0]


def test_nothing_is_pending_at_first(world: World) -> None:
    world.trials.check()
    assert world.trials.plain is None
    assert (world.policy.read_bytes(), world.told) == (OLD, [])


def test_a_trial_that_nobody_confirms_is_undone(world: World) -> None:
    world.apply()
    told = world.trials.plain
    assert told is not None
    assert (told["digest"], told["seconds_left"]) == (digest_of(NEW), 60)
    world.now += 59.5
    world.trials.check()
    assert world.policy.read_bytes() == NEW
    assert world.told == []
    world.now += 0.5
    world.trials.check()
    assert world.policy.read_bytes() == OLD
    assert world.told == ["the policy before is back: nobody confirmed it in time"]
    assert (world.trials.plain, world.kept) == (None, False)
    world.trials.check()
    assert len(world.told) == 1


def test_a_trial_that_is_confirmed_stays(world: World) -> None:
    world.apply()
    assert world.trials.confirm() == {"confirmed": digest_of(NEW)}
    world.now += 1000
    for trials in (world.trials, world.daemon()):
        trials.check()
        assert world.policy.read_bytes() == NEW
    assert (world.told, world.kept) == ([], False)
    assert world.backup.read_bytes() == OLD
    with pytest.raises(ControlError, match="no policy is on trial"):
        world.trials.confirm()


def test_the_next_daemon_goes_on_with_it(world: World) -> None:
    world.apply()
    trials = world.daemon()
    trials.check()
    assert world.policy.read_bytes() == NEW
    world.now += 60
    trials = world.daemon()
    trials.check()
    assert world.policy.read_bytes() == OLD


def test_a_reboot_undoes_it(world: World) -> None:
    world.apply()
    world.boot, world.now = "two", 5.0
    world.daemon().check()
    assert world.policy.read_bytes() == OLD
    assert "started again" in world.told[0]


def test_it_can_be_undone_at_once(world: World) -> None:
    world.apply()
    assert world.trials.revert() == {"restored": True}
    assert world.policy.read_bytes() == OLD
    with pytest.raises(ControlError):
        world.trials.revert()


def test_what_was_never_put_in_place_is_not_undone(world: World) -> None:
    world.keep()
    world.trials.begin(world.request())
    world.trials.check()
    with pytest.raises(ControlError, match="not the one that is in place"):
        world.trials.confirm()
    assert world.trials.revert() == {"restored": False}
    assert (world.policy.read_bytes(), world.kept) == (OLD, False)
    world.trials.begin(world.request())
    world.now += 60
    world.trials.check()
    assert (world.policy.read_bytes(), world.kept) == (OLD, False)
    assert "not in place" in world.told[-1]


def rewrite(world: World) -> None:
    world.policy.write_bytes(OTHER)


def replace(world: World) -> None:
    beside = world.policy.with_suffix(".new")
    beside.write_bytes(OTHER)
    beside.rename(world.policy)


def point_elsewhere(world: World) -> None:
    other = world.folder / "other"
    other.write_bytes(OTHER)
    world.policy.unlink()
    world.policy.symlink_to(other)


@pytest.mark.parametrize("change", [rewrite, replace, point_elsewhere])
@pytest.mark.parametrize("late", [False, True])
def test_what_somebody_else_changed_is_left_alone(
    world: World, change: Callable[[World], None], late: bool
) -> None:
    world.apply()
    world.trials.check()
    change(world)
    world.now += 60 if late else 1
    world.trials.check()
    assert world.policy.read_bytes() == OTHER
    (told,) = world.told
    assert told.startswith("the trial of a policy has ended, and nothing is put back: ")
    assert told.endswith("the policy was changed by somebody else meanwhile")
    assert not world.kept


def test_a_change_that_keeps_the_looks_of_the_file_is_not_lost(world: World) -> None:
    """The mark of a file may miss a change; before anything is overwritten it is read again."""
    world.apply()
    world.trials.check()
    mark = file_mark(str(world.policy))
    world.policy.write_bytes(b"alt\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "file_mark", lambda _path: mark)
        world.now += 60
        world.trials.check()
    assert world.policy.read_bytes() == b"alt\n"


def test_a_policy_that_is_gone_is_not_made_again(world: World) -> None:
    world.apply()
    world.policy.unlink()
    world.trials.check()
    assert world.kept
    world.now += 60
    world.trials.check()
    assert not world.policy.exists()
    assert not world.kept


@pytest.mark.parametrize("spoil", [lambda p: p.write_bytes(OTHER), Path.unlink])
def test_without_what_was_kept_the_new_one_stays(
    world: World, spoil: Callable[[Path], object]
) -> None:
    world.apply()
    spoil(world.backup)
    world.now += 60
    world.trials.check()
    assert world.policy.read_bytes() == NEW
    assert "is not what was kept" in world.trials.problem
    assert world.told == [world.trials.problem]
    assert not world.kept


def test_what_cannot_be_put_back_is_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system that has become read-only."""
    world.apply()
    world.now += 60

    def fails(_kept: Path, _path: Path) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(module, "put_back", fails)
        world.trials.check()
        world.trials.check()
        with pytest.raises(HostError, match="Read-only"):
            world.trials.revert()
    assert world.told == [f"{world.policy} cannot be put back: Read-only file system"]
    assert world.trials.problem == world.told[0]
    world.trials.check()
    assert world.policy.read_bytes() == OLD
    assert world.trials.problem == ""


def test_a_crash_between_the_two_steps_of_undoing(world: World) -> None:
    """The file is back and the trial is still kept."""
    world.apply()
    world.backup.rename(world.policy)
    world.now += 60
    world.daemon().check()
    assert (world.policy.read_bytes(), world.kept) == (OLD, False)


def test_a_state_that_cannot_be_removed_ends_nothing(world: World) -> None:
    world.apply()
    state = world.state / STATE_FILE
    state.unlink()
    state.mkdir()  # unlink(2) refuses it
    with pytest.raises(HostError, match="cannot be removed"):
        world.trials.confirm()
    assert world.trials.plain is not None
    rewrite(world)
    world.trials.check()
    world.trials.check()
    assert len(world.told) == 1
    assert "cannot be removed" in world.trials.problem


@pytest.mark.parametrize(
    "other",
    [
        {"span": 4},
        {"span": 86_401},
        {"span": True},
        {"span": "60"},
        {"digest": None},
        {"policy": 5},
        {"before": []},
        {"policy": "/etc/other.toml"},
        {"policy": "/a\0b"},
        {"policy": "/a\ud800"},
        {"before": digest_of(OTHER)},
    ],
)
def test_what_cannot_be_promised(world: World, other: dict[str, object]) -> None:
    world.keep()
    with pytest.raises(ControlError):
        world.trials.begin(world.request(**other))
    assert not world.kept


def test_nothing_is_promised_without_the_file_before(world: World) -> None:
    with pytest.raises(ControlError, match="changed by somebody else"):
        world.trials.begin(world.request())


def test_one_trial_at_a_time(world: World) -> None:
    world.apply()
    with pytest.raises(ControlError, match="another policy is on trial"):
        world.trials.begin(world.request())


def test_nothing_is_promised_where_the_state_cannot_be_kept(world: World) -> None:
    world.keep()
    (world.state / STATE_FILE).mkdir()
    with pytest.raises(HostError, match="cannot be written"):
        world.trials.begin(world.request())
    assert world.trials.plain is None


def test_nothing_is_promised_in_a_folder_that_cannot_be_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the unit of a version before this one leaves it; root may write anywhere else."""
    world.keep()
    monkeypatch.setattr(os, "access", lambda _path, mode: mode != os.W_OK)
    with pytest.raises(ControlError, match="could not put the old policy back") as caught:
        world.trials.begin(world.request())
    assert "ReadWritePaths=" in caught.value.hint


@pytest.mark.parametrize("data", [b"", b"{}", b"x" * 100_000])
def test_what_was_kept_and_cannot_be_read_is_told(world: World, data: bytes) -> None:
    (world.state / STATE_FILE).write_bytes(data)
    trials = world.daemon()
    trials.check()
    assert trials.plain is None
    assert "nothing will be put back" in trials.problem
    assert world.told == [trials.problem]
    world.trials = trials
    world.apply()
    assert trials.problem == ""


@pytest.mark.parametrize(
    "other",
    [
        {"backup": "/etc/passwd"},
        {"backup": "/etc/ramnet/a\0b"},
        {"policy": "/etc/\ud800", "backup": "/etc/\ud800.before-trial"},
    ],
)
def test_what_somebody_spoiled_is_told(world: World, other: dict[str, str]) -> None:
    world.apply()
    state = world.state / STATE_FILE
    state.write_text(json.dumps({**json.loads(state.read_text()), "backup": "", **other}))
    world.now += 60
    trials = world.daemon()
    trials.check()
    assert "no trial of a policy" in trials.problem
    assert (world.told, world.policy.read_bytes()) == ([trials.problem], NEW)


def test_what_another_command_keeps_is_not_what_is_put_back(world: World) -> None:
    world.apply()
    keep_before(str(world.policy), OTHER)
    world.now += 60
    world.trials.check()
    assert world.policy.read_bytes() == OLD


def test_what_comes_into_place_while_the_trial_ends_is_undone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the file and the end: a command line could still see the trial."""
    world.keep()
    world.trials.begin(world.request())
    world.now += 60

    def slow(*arguments: Any) -> Any:
        found = judge(*arguments)
        install(str(world.policy), NEW)
        return found

    monkeypatch.setattr(module, "judge", slow)
    world.trials.check()
    assert (world.policy.read_bytes(), world.kept) == (OLD, False)
    assert world.told == ["the policy before is back: it was put in place too late"]


def test_who_has_no_daemon_to_ask_sees_what_is_kept(world: World) -> None:
    def pending(policy: Path) -> bool:
        return pending_trial(str(policy), str(world.state)) is not None

    assert not pending(world.policy)
    world.apply()
    assert pending(world.policy)
    world.now += 60  # the next daemon will undo it
    assert pending(world.policy)
    other = world.folder / "policy.toml"
    other.write_bytes(NEW)
    assert not pending(other)
    rewrite(world)
    assert not pending(world.policy)


@pytest.mark.parametrize("leads_to", ["victim", "nowhere", "victim hard"])
def test_a_link_where_the_file_before_is_kept_is_not_followed(world: World, leads_to: str) -> None:
    """Of somebody who may write in that folder, and wants root to write elsewhere."""
    victim = world.folder / "victim"
    victim.write_bytes(OTHER)
    victim.chmod(0o600)
    world.policy.chmod(0o4644)
    backup = backup_of(str(world.policy))
    if leads_to == "victim hard":
        backup.hardlink_to(victim)
    else:
        backup.symlink_to(world.folder / leads_to)
    keep_before(str(world.policy), OLD)
    assert (backup.is_symlink(), backup.read_bytes()) == (False, OLD)
    assert stat.S_IMODE(backup.stat().st_mode) == 0o644
    assert (victim.read_bytes(), stat.S_IMODE(victim.stat().st_mode)) == (OTHER, 0o600)
    assert not (world.folder / "nowhere").exists()


def test_a_trial_of_another_policy_is_not_ours(world: World) -> None:
    world.apply()
    other = world.folder / "policy.toml"
    other.write_bytes(OLD)
    trials = Trials(str(other), str(world.state), world.told.append)
    world.now += 60
    trials.check()
    assert (trials.plain, world.policy.read_bytes()) == (None, NEW)


def test_the_file_keeps_its_owner_and_mode_through_all_of_it(world: World) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    os.chown(world.policy, NOBODY, NOBODY)
    world.policy.chmod(0o640)

    def looks(path: Path) -> tuple[int, int, int]:
        found = path.stat()
        return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)

    world.apply()
    assert looks(world.policy) == looks(world.backup) == (NOBODY, NOBODY, 0o640)
    world.trials.revert()
    assert looks(world.policy) == (NOBODY, NOBODY, 0o640)


def test_a_link_stays_a_link(world: World) -> None:
    """What is replaced and kept is what it leads to."""
    real = world.folder / "real.toml"
    world.policy.rename(real)
    world.policy.symlink_to(real)
    world.apply()
    assert (world.policy.is_symlink(), real.read_bytes()) == (True, NEW)
    assert backup_of(str(world.policy)) == world.folder / "real.toml.before"
    assert world.backup == world.folder / "real.toml.before-trial"
    world.trials.revert()
    assert (world.policy.is_symlink(), real.read_bytes()) == (True, OLD)


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match="cannot be written"):
        install(str(tmp_path / "file" / "policy.toml"), NEW)


def test_the_clocks_are_those_of_the_machine() -> None:
    assert len(boot_id()) == 36
    assert boot_id() == boot_id()
    uptime = float(Path("/proc/uptime").read_text("ascii").split()[0])
    assert since_boot() == pytest.approx(uptime, abs=5)

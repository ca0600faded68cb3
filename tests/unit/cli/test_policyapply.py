"""``ramnet policy apply``, ``confirm``, ``add`` and ``remove``, with and without a daemon."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ramnet.cli import policyapply
from ramnet.core.policy import policy_digest
from ramnet.core.trial import BEFORE_TRIAL
from ramnet.errors import ControlError, HostError, PolicyError, RamnetError
from ramnet.host import trial as trial_module
from ramnet.host.control import ControlServer
from ramnet.host.files import read_policy
from ramnet.host.trial import Trials, digest_of, install, keep_before
from tests.unit.cli.conftest import Run

ROOT = Path(__file__).resolve().parents[3]
HEAD = '# of acme\nversion = 1\norganization = "acme"\n'
OLD = HEAD + '\n[[registry]]\naddress = "docker.io"\n'
NEW = OLD + '\n[[registry]]\naddress = "quay.io"\n'

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


class Place:
    """A policy, another one to apply, and perhaps a daemon that follows the first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.policy = folder / "policy.toml"
        self.new = folder / "new.toml"
        self.policy.write_text(OLD)
        self.new.write_text(NEW)
        (folder / "state").mkdir()
        self.trials = Trials(str(self.policy), str(folder / "state"), self.told)
        self.lines: list[str] = []
        self.takes_up = True
        self.busy = False

    def told(self, line: str) -> None:
        self.lines.append(line)

    def status(self) -> dict[str, Any]:
        digest = None
        if self.takes_up:
            try:
                digest = policy_digest(read_policy(str(self.policy)))
            except (HostError, PolicyError):
                digest = None
        found = {"path": str(self.policy), "digest": digest, "trial": self.trials.plain}
        return {"schema": 1, "policy": found}

    async def handle(self, request: Any) -> dict[str, Any]:
        if self.busy:
            raise ControlError("too many clients")
        self.trials.check()
        verbs: dict[str, Callable[[], dict[str, Any]]] = {
            "status": self.status,
            "trial": lambda: self.trials.begin(request),
            "confirm": self.trials.confirm,
            "revert": self.trials.revert,
        }
        return verbs[request["verb"]]()

    def arguments(self, *verb: str) -> tuple[str, ...]:
        state = ("--state-dir", str(self.folder / "state"))
        policy = () if verb[0] == "confirm" else ("--policy", str(self.policy), *state)
        return ("policy", *verb, "--runtime-dir", str(self.folder / "run"), *policy)

    @property
    def backup(self) -> Path:
        return self.folder / "policy.toml.before"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def daemon(place: Place) -> Iterator[None]:
    """The part of a daemon that has to do with policies, on a real control socket."""
    loop = asyncio.new_event_loop()
    root = frozenset({"trial", "confirm", "revert"})
    server = ControlServer(str(place.folder / "run"), place.handle, root_only=root, clients=4)
    loop.run_until_complete(server.start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield
    asyncio.run_coroutine_threadsafe(server.close(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


# apply


def test_a_policy_is_put_in_place_and_the_old_one_kept(ramnet: Run, place: Place) -> None:
    place.policy.chmod(0o640)
    said = ramnet(*place.arguments("apply", str(place.new)))
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines() == [
        "+ registry quay.io",
        f"{place.policy}: installed; no daemon follows it here; the one before is {place.backup}",
    ]
    assert (place.policy.read_text(), place.backup.read_text()) == (NEW, OLD)
    assert stat.S_IMODE(place.policy.stat().st_mode) == 0o640
    assert stat.S_IMODE(place.backup.stat().st_mode) == 0o640
    assert sorted(path.name for path in place.folder.iterdir() if path.is_file()) == [
        "new.toml",
        "policy.toml",
        "policy.toml.before",
    ]


@pytest.mark.usefixtures("daemon")
def test_it_is_said_when_it_is_in_force(ramnet: Run, place: Place) -> None:
    said = ramnet(*place.arguments("apply", str(place.new), "--json"))
    found = json.loads(said.out)
    assert said.code == 0
    assert found == {
        "schema": 1,
        "file": str(place.new),
        "policy": str(place.policy),
        "digest": policy_digest(read_policy(str(place.new))),
        "changes": [
            {"kind": "registry", "change": "added", "name": "quay.io", "details": []},
        ],
        "more_changes": 0,
        "warnings": [],
        "installed": True,
        "backup": str(place.backup),
        "in_force": True,
        "trial": None,
    }


@pytest.mark.usefixtures("daemon")
def test_one_that_does_not_come_into_force_has_failed(
    ramnet: Run, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policyapply, "IN_FORCE_SECONDS", 0.3)
    place.takes_up = False
    said = ramnet(*place.arguments("apply", str(place.new)))
    assert said.code == 1
    assert "not in force" in said.out


def test_a_dry_run_only_shows(ramnet: Run, place: Place) -> None:
    said = ramnet(*place.arguments("apply", str(place.new), "--dry-run"))
    assert (said.code, said.out) == (0, "+ registry quay.io\nnothing was changed\n")
    shown = ramnet(*place.arguments("apply", str(place.new), "--dry-run", "--json"))
    assert json.loads(shown.out)["installed"] is False
    assert place.policy.read_text() == OLD
    assert not place.backup.exists()


def test_what_is_there_already_is_not_written_again(ramnet: Run, place: Place) -> None:
    place.new.write_text(OLD)
    said = ramnet(*place.arguments("apply", str(place.new)))
    assert said.code == 0
    assert "it is there already" in said.out
    assert not place.backup.exists()


def test_a_change_of_comments_is_one_of_the_file_alone(ramnet: Run, place: Place) -> None:
    place.new.write_text(OLD + "# more\n")
    said = ramnet(*place.arguments("apply", str(place.new)))
    assert "says the same as before" in said.out
    assert place.policy.read_text() == OLD + "# more\n"


def test_a_long_change_is_cut(ramnet: Run, place: Place) -> None:
    more = "".join(f'[[registry]]\naddress = "r{number}.example"\n' for number in range(300))
    place.new.write_text(OLD + more)
    said = ramnet(*place.arguments("apply", str(place.new)))
    assert len(said.out.splitlines()) == 202
    assert "100 more" in said.out


def test_a_policy_with_faults_is_not_put_in_place(ramnet: Run, place: Place) -> None:
    place.new.write_text("version = 2\n")
    said = ramnet(*place.arguments("apply", str(place.new)))
    assert (said.code, said.out) == (1, "")
    assert "version" in said.err
    assert place.policy.read_text() == OLD


@pytest.mark.parametrize("old", [None, "version = 2\n"])
def test_where_there_was_no_valid_policy(ramnet: Run, place: Place, old: str | None) -> None:
    place.policy.unlink()
    if old is not None:
        place.policy.write_text(old)
    said = ramnet(*place.arguments("apply", str(place.new)))
    assert said.code == 0
    assert "there was no valid policy; 2 registries now" in said.out
    assert place.policy.read_text() == NEW
    assert place.backup.exists() is (old is not None)


def test_the_formats_have_to_fit(ramnet: Run, place: Place) -> None:
    place.new = place.new.rename(place.folder / "new.json")
    place.new.write_text('{"version": 1, "organization": "acme"}')
    said = ramnet(*place.arguments("apply", str(place.new)))
    assert said.code == 1
    assert "not of one format" in said.err
    assert place.policy.read_text() == OLD


@pytest.mark.parametrize("name", ["gone.toml", "."])
def test_a_file_that_cannot_be_read(ramnet: Run, place: Place, name: str) -> None:
    said = ramnet(*place.arguments("apply", str(place.folder / name)))
    assert (said.code, said.out) == (1, "")


# --confirm


@pytest.mark.parametrize("span", ["60", "4s", "25h", "1d", "-5s", "soon", ""])
def test_a_time_that_is_none(ramnet: Run, place: Place, span: str) -> None:
    said = ramnet(*place.arguments("apply", str(place.new), "--confirm", span))
    assert said.code == 2
    assert "5s to 24h" in said.err


@needs_root
def test_without_a_daemon_nothing_is_tried(ramnet: Run, place: Place) -> None:
    said = ramnet(*place.arguments("apply", str(place.new), "--confirm", "60s"))
    assert said.code == 3
    assert "no daemon is running" in said.err
    assert "leave out --confirm" in said.err
    assert (place.policy.read_text(), place.backup.exists()) == (OLD, False)
    assert ramnet(*place.arguments("confirm")).code == 3


@needs_root
@pytest.mark.usefixtures("daemon")
def test_a_trial_is_kept_by_confirming_it(ramnet: Run, place: Place) -> None:
    said = ramnet(*place.arguments("apply", str(place.new), "--confirm", "60s"))
    assert said.code == 0
    assert said.out.splitlines()[-1] == (
        "it is undone in 60 s, unless `ramnet policy confirm` keeps it"
    )
    assert place.policy.read_text() == NEW
    # Another change would take away what is to be put back.
    other = ramnet(*place.arguments("apply", str(place.backup), "--confirm", "60s"))
    assert other.code == 1
    assert "on trial" in other.err
    assert ramnet(*place.arguments("add", "a.example")).code == 1
    assert ramnet(*place.arguments("confirm")).out == "confirmed: the policy stays\n"
    assert place.trials.plain is None
    again = ramnet(*place.arguments("confirm"))
    assert again.code == 1
    assert "no policy is on trial" in again.err


@needs_root
@pytest.mark.usefixtures("daemon")
def test_a_trial_as_json(ramnet: Run, place: Place) -> None:
    said = ramnet(*place.arguments("apply", str(place.new), "--confirm", "1m", "--json"))
    found = json.loads(said.out)
    assert (found["installed"], found["in_force"]) == (True, True)
    assert set(found["trial"]) == {"digest", "deadline", "seconds_left"}
    assert found["trial"]["seconds_left"] == 60


@needs_root
@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize("old", [None, "version = 2\n"])
def test_nothing_is_tried_without_something_to_go_back_to(
    ramnet: Run, place: Place, old: str | None
) -> None:
    place.policy.unlink()
    if old is not None:
        place.policy.write_text(old)
    said = ramnet(*place.arguments("apply", str(place.new), "--confirm", "60s"))
    assert said.code == 1
    assert "no valid policy to go back to" in said.err


@needs_root
@pytest.mark.usefixtures("daemon")
def test_what_cannot_be_installed_leaves_no_trial(
    ramnet: Run, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_path: str, _data: bytes) -> None:
        raise RamnetError("no space left")

    monkeypatch.setattr(policyapply, "install", fails)
    said = ramnet(*place.arguments("apply", str(place.new), "--confirm", "60s"))
    assert said.code == 1
    assert "no space left" in said.err
    assert place.trials.plain is None
    assert place.policy.read_text() == OLD


@needs_root
@pytest.mark.usefixtures("daemon")
def test_a_trial_that_is_over_too_early_leaves_the_old_policy(
    ramnet: Run, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that hangs for longer than the trial lasts."""

    def late(path: str, data: bytes) -> None:
        if data == NEW.encode():
            monkeypatch.setattr(trial_module, "since_boot", lambda: time.monotonic() + 1e6)
            place.trials.check()
        install(path, data)

    monkeypatch.setattr(policyapply, "install", late)
    said = ramnet(*place.arguments("apply", str(place.new), "--confirm", "5s"))
    assert said.code == 1
    assert "the trial was over before the policy was in place: the one before is back" in said.err
    assert place.policy.read_text() == OLD


@needs_root
@pytest.mark.usefixtures("daemon")
def test_a_failure_is_told_though_the_trial_is_over(
    ramnet: Run, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_path: str, _data: bytes) -> None:
        place.trials.revert()
        raise RamnetError("no space left")

    monkeypatch.setattr(policyapply, "install", fails)
    said = ramnet(*place.arguments("apply", str(place.new), "--confirm", "60s"))
    assert (said.code, place.policy.read_text()) == (1, OLD)
    assert "no space left" in said.err


@needs_root
@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize(
    ("written", "left"), [("", "the one before is back"), ("# theirs\n", "somebody else wrote")]
)
def test_a_daemon_that_falls_silent_leaves_no_policy_unwatched(
    ramnet: Run, place: Place, monkeypatch: pytest.MonkeyPatch, written: str, left: str
) -> None:
    def then_silent(path: str, data: bytes) -> None:
        install(path, data)
        place.busy = True
        if written:
            place.policy.write_text(NEW + written)

    monkeypatch.setattr(policyapply, "install", then_silent)
    said = ramnet(*place.arguments("apply", str(place.new), "--confirm", "60s"))
    assert said.code == 1
    assert "the daemon does not answer any more (too many clients)" in said.err
    assert left in said.err
    assert place.policy.read_text() == (NEW + written if written else OLD)


CHANGES = [("apply", "{new}"), ("add", "quay.io"), ("remove", "docker.io")]


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize("change", CHANGES)
def test_nothing_is_changed_while_the_daemon_cannot_tell_of_a_trial(
    ramnet: Run, place: Place, change: tuple[str, str]
) -> None:
    place.busy = True
    said = ramnet(*place.arguments(change[0], change[1].format(new=place.new)))
    assert said.code == 1
    assert "nothing was changed, as the policy may be on trial: too many clients" in said.err
    assert "ramnet status" in said.err
    assert (place.policy.read_text(), place.backup.exists()) == (OLD, False)


@pytest.mark.parametrize("change", CHANGES)
def test_a_trial_lasts_while_no_daemon_runs(
    ramnet: Run, place: Place, change: tuple[str, str]
) -> None:
    before = OLD + "# before\n"
    place.policy.write_text(before)
    keep_before(str(place.policy), before.encode(), BEFORE_TRIAL)
    digests = {"digest": digest_of(OLD.encode()), "before": digest_of(before.encode())}
    place.trials.begin({"policy": str(place.policy), **digests, "span": 60})
    install(str(place.policy), OLD.encode())
    arguments = place.arguments(change[0], change[1].format(new=place.new))
    said = ramnet(*arguments)
    assert said.code == 1
    assert "on trial, and no daemon is running" in said.err
    assert f"remove {place.folder}/state/trial.json" in said.err
    assert (place.policy.read_text(), place.backup.exists()) == (OLD, False)
    (place.folder / "state" / "trial.json").unlink()
    assert ramnet(*arguments).code == 0


class Terminal:
    """`policy apply --confirm` on a terminal of its own."""

    def __init__(self, place: Place, span: str) -> None:
        self.end, inside = pty.openpty()
        # Ctrl-C comes to those whose terminal it is.
        argv = ["setsid", "--ctty", sys.executable, "-m", "ramnet"]
        argv += place.arguments("apply", str(place.new), "--confirm", span)
        self.process = subprocess.Popen(argv, stdin=inside, stdout=inside, stderr=inside, cwd=ROOT)
        os.close(inside)
        self.said = b""

    def read_until(self, what: bytes) -> None:
        end = time.monotonic() + 30
        while what not in self.said and time.monotonic() < end:
            self.said += os.read(self.end, 4096)
        assert what in self.said

    def wait(self) -> int:
        code = self.process.wait(30)
        os.close(self.end)
        return code

    def hang_up(self) -> int:
        os.close(self.end)
        return self.process.wait(30)


@needs_root
@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize(
    ("keys", "said", "code", "left"),
    [
        (b"\n", b"the policy stays", 0, NEW),
        (b"\x03", b"the one before is back", 1, OLD),
    ],
)
def test_on_a_terminal(place: Place, keys: bytes, said: bytes, code: int, left: str) -> None:
    terminal = Terminal(place, "60s")
    terminal.read_until(b"Press Enter")
    assert place.policy.read_text() == NEW
    os.write(terminal.end, keys)
    terminal.read_until(said)
    assert (terminal.wait(), place.policy.read_text()) == (code, left)
    assert place.trials.plain is None


@needs_root
@pytest.mark.usefixtures("daemon")
def test_a_terminal_that_nobody_answers_on(place: Place) -> None:
    terminal = Terminal(place, "5s")
    terminal.read_until(b"Press Enter")
    os.write(terminal.end, b"what?\n")  # is no Enter
    terminal.read_until(b"it was undone")
    assert (terminal.wait(), place.policy.read_text()) == (1, OLD)


@needs_root
@pytest.mark.usefixtures("daemon")
def test_a_terminal_that_sees_it_confirmed_elsewhere(place: Place) -> None:
    terminal = Terminal(place, "60s")
    terminal.read_until(b"Press Enter")
    place.trials.confirm()
    terminal.read_until(b"it was confirmed")
    assert (terminal.wait(), place.policy.read_text()) == (0, NEW)


@needs_root
@pytest.mark.usefixtures("daemon")
def test_a_terminal_that_is_closed_confirms_nothing(place: Place) -> None:
    terminal = Terminal(place, "60s")
    terminal.read_until(b"Press Enter")
    assert terminal.hang_up() != 0
    assert place.trials.plain is not None


# add and remove


def test_a_registry_is_added_and_removed_again(ramnet: Run, place: Place) -> None:
    said = ramnet(*place.arguments("add", "quay.io/acme/app:1", "--nickname", "Quay"))
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines()[0] == '+ registry quay.io: nickname "Quay"'
    expected = NEW + 'nickname = "Quay"\n'
    assert (place.policy.read_text(), place.backup.read_text()) == (expected, OLD)
    said = ramnet(*place.arguments("remove", "quay.io"))
    assert said.out.splitlines()[0] == "- registry quay.io"
    assert place.policy.read_text() == OLD


def test_every_option_of_add(ramnet: Run, place: Place) -> None:
    hosts = ("--extra-host", "a.example", "--extra-host", "*.b.example", "--network", "10.0.0.1")
    options = ("--region", "eu-west-1", "--unverified-hosts", "--expires", "2999-01-31")
    said = ramnet(*place.arguments("add", "r.example:5000", "--reason", "asked", *hosts, *options))
    assert said.code == 0
    (entry,) = (e for e in read_policy(str(place.policy)).registry if e.reason == "asked")
    assert [str(item) for item in entry.extra_hosts] == ["a.example", "*.b.example"]
    assert [str(item) for item in entry.networks] == ["10.0.0.1/32"]
    assert (entry.regions, entry.unverified_hosts) == (("eu-west-1",), True)
    assert str(entry.expires) == "2999-01-31"
    gone = ramnet(*place.arguments("remove", "r.example:5000", "--extra-host", "A.example"))
    assert gone.out.splitlines()[0] == "~ registry r.example:5000: extra_hosts -a.example"


def test_what_an_entry_is_warned_of_is_told_once(ramnet: Run, place: Place) -> None:
    said = ramnet(*place.arguments("add", "*.amazonaws.com"))
    assert said.code == 0
    assert said.err.startswith("warning: line ")
    assert "*.amazonaws.com" in said.err
    assert ramnet(*place.arguments("add", "quay.io")).err == ""  # known by then


def test_what_is_listed_already_changes_nothing(ramnet: Run, place: Place) -> None:
    said = ramnet(*place.arguments("add", "nginx"))
    assert (said.code, said.out) == (0, f"{place.policy}: says the same as before\n")
    assert not place.backup.exists()


@pytest.mark.usefixtures("daemon")
def test_an_edit_as_json(ramnet: Run, place: Place) -> None:
    found = json.loads(ramnet(*place.arguments("add", "quay.io", "--json")).out)
    assert set(found) == {
        "schema",
        "policy",
        "digest",
        "changes",
        "more_changes",
        "warnings",
        "installed",
        "backup",
        "in_force",
    }
    assert (found["installed"], found["in_force"]) == (True, True)
    again = json.loads(ramnet(*place.arguments("add", "quay.io", "--json")).out)
    assert (again["installed"], again["changes"]) == (False, [])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("add", "https://quay.io"), "is a URL"),
        (("add", "quay.io", "--network", "all"), "networks[0]"),
        (("add", "quay.io", "--expires", "soon"), "expires"),
        (("add", "quay.io", "--region", "the moon"), "regions[0]"),
        (("add", "quay.io", "--extra-host", "a b"), "extra_hosts[0]"),
        (("remove", "quay.io"), "does not list quay.io"),
        (("remove", "docker.io", "--extra-host", "x.io"), "no extra host"),
        (("remove", "docker.io", "--extra-host", "://"), "contains a path"),
    ],
)
def test_what_cannot_be_done_is_told(
    ramnet: Run, place: Place, arguments: tuple[str, ...], said: str
) -> None:
    found = ramnet(*place.arguments(*arguments))
    assert (found.code, found.out) == (1, "")
    assert said in found.err
    assert place.policy.read_text() == OLD


def test_a_policy_that_is_not_there_is_not_begun(ramnet: Run, place: Place) -> None:
    place.policy.unlink()
    said = ramnet(*place.arguments("add", "quay.io"))
    assert said.code == 1
    assert "policy init" in said.err


def test_a_change_of_somebody_else_is_not_lost(
    ramnet: Run, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between reading the file and replacing it."""
    seen = policyapply.current

    def later(path: str) -> bytes | None:
        data = seen(path)
        place.policy.write_text(OLD + "# theirs\n")
        return data

    monkeypatch.setattr(policyapply, "current", later)
    said = ramnet(*place.arguments("apply", str(place.new)))
    assert said.code == 1
    assert "changed by somebody else" in said.err
    assert place.policy.read_text() == OLD + "# theirs\n"


@needs_root
def test_a_file_that_one_may_not_write_is_told(place: Place) -> None:
    """As anybody: the folder is root's."""
    place.folder.chmod(0o755)
    code = (
        "import os, sys\n"
        "from ramnet.host.trial import install\n"
        "from ramnet.errors import HostError\n"
        "os.setuid(65534)\n"
        "try: install(sys.argv[1], b'x')\n"
        "except HostError as err: print(err.message, '|', err.hint)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(place.policy)],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert "cannot be written: Permission denied | " in done.stdout
    assert "sudo" in done.stdout

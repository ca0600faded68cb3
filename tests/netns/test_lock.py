"""The locked ruleset in a real kernel: loaded by ``ramnet lock``, by nft alone, and under a daemon.

A program in the engine's cgroup (or of the engine's user) stands for the engine. The capture at the
far side is the judge, and sees what it sends before there are rules.
"""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from ramnet.core.lockdown import read_locked
from ramnet.host.cgroups import NFT_ROOT
from ramnet.host.lockdown import FILE_NAME
from ramnet.lab.lab import Lab
from ramnet.lab.process import wait_until
from ramnet.lab.programs import PYTHON_PATH
from ramnet.lab.ramnet import Daemon
from ramnet.lab.world import EVIL
from tests.netns.groups import remove
from tests.netns.places import Place, machine, outcomes, reach
from tests.netns.scoped import config
from tests.netns.scopeworld import House, a_house, configured, marked, program, renew
from tests.netns.support import (
    ALLOWED,
    CORP_REGISTRY,
    DUAL_REGISTRY,
    REFUSED,
    STATE_SECONDS,
    STRICT,
    policy,
    remove_rules,
    status,
    syns_to,
    table,
    wait_leases,
    wait_status,
)

pytestmark = pytest.mark.netns

POLICY = policy(CORP_REGISTRY, DUAL_REGISTRY)
SCRIPT = PYTHON_PATH / "systemd/ramnet-lock"
ALL = [*ALLOWED, *REFUSED]
OPEN = {target: {"reached"} for target in ALL}
CLOSED = {target: {"refused"} for target in ALL}
ENGINE_USER = 4242
RATE = 300.0
LOST = 256  # a part of a disk's block
RUNGS = ("cgroup", "uid", "netns", "mark")


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with a_house() as made:
        yield made


@pytest.fixture
def lab(house: House) -> object:
    """The lab of the daemons that the fixture ``ramnet`` makes."""
    return house.lab


@pytest.fixture(autouse=True)
def _no_rules(house: House) -> Iterator[None]:
    yield
    remove_rules(house.lab.client)


@dataclass(frozen=True, slots=True)
class Machine:
    """The client on one rung: its configuration, its state directory, and who is an engine there.

    ``daemon`` was not started.
    """

    house: House
    rung: str
    daemon: Daemon

    @property
    def lab(self) -> Lab:
        return self.house.lab

    @property
    def file(self) -> Path:
        return self.daemon.state_dir / FILE_NAME

    @property
    def engine(self) -> Place:
        if self.rung == "uid":
            return machine(self.lab.client, ENGINE_USER)
        if self.rung == "netns":
            return self.others
        return program(self.lab.client, self.lab.engine_cgroup)

    @property
    def others(self) -> Place:
        return machine(self.lab.client)

    def lock(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run ``ramnet lock``."""
        where = ["--config", str(self.daemon.config_file)]
        return self.daemon.cli("lock", *where, "--state-dir", str(self.daemon.state_dir), *args)

    def script(
        self, ramnet: str = "/bin/false", *, before: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run ``systemd/ramnet-lock``; ``before`` is done first, with mounts of its own."""
        environment = {"RAMNET_STATE_DIR": str(self.daemon.state_dir), "RAMNET": ramnet}
        argv = [str(SCRIPT), "--config", str(self.daemon.config_file)]
        if before:
            shell = f"{before}\nexec {shlex.join(argv)}"
            argv = ["unshare", "--mount", "/bin/sh", "-ec", shell]
        return self.lab.client.run(argv, env=environment, check=False)

    def real(self) -> str:
        """Return a program that is this ramnet, as an installed one is a single file."""
        file = self.daemon.state_dir.parent / "ramnet"
        code = f"cd / && PYTHONPATH={PYTHON_PATH} exec {sys.executable} -m ramnet"
        file.write_text(f'#!/bin/sh\n{code} "$@"\n', encoding="utf-8")
        file.chmod(0o755)
        return str(file)

    def locked(self) -> None:
        """An engine gets nothing out, and nobody else notices."""
        with self.lab.capture() as capture:
            assert reach(self.engine, ALL) == CLOSED
            assert syns_to(capture, ALL) == []
        if self.rung != "netns":
            assert reach(self.others, ALL) == OPEN

    def rules(self) -> str:
        """The table with its handles, and without what it has counted."""
        argv = ["nft", "-s", "-a", "list", "table", "inet", "ramnet"]
        return self.lab.client.run(argv, check=False).stdout

    def set_scope(self, rung: str, more: str = "") -> None:
        self.daemon.config_file.write_text(config(self.lab, rung, more), encoding="utf-8")


def wait_open(place: Machine) -> None:
    """Wait until an engine reaches what the policy allows: a lease counts before it is written."""
    wait_leases(place.daemon, len(ALLOWED))
    wait_until(
        lambda: outcomes(place.engine, ALLOWED) == {"reached"}, STATE_SECONDS, "what is allowed"
    )


def on(house: House, rung: str) -> Machine:
    text = {
        "uid": config(house.lab, "uid", f'uids = [{ENGINE_USER}]\nweak = "strict"\n'),
        "netns": STRICT,
    }.get(rung, config(house.lab, rung))
    house.lab.engine_cgroup.mkdir(parents=True, exist_ok=True)
    return Machine(house, rung, house.lab.daemon(POLICY, config=text, start=False))


@pytest.fixture(params=RUNGS)
def place(house: House, request: pytest.FixtureRequest) -> Iterator[Machine]:
    made = on(house, request.param)
    yield made
    made.daemon.abandon()
    if made.rung == "mark":  # with its cgroup goes the mark
        remove(house.lab.engine_cgroup)


cgroup_only = pytest.mark.parametrize("place", ["cgroup"], indirect=True)
several = pytest.mark.parametrize("place", ["cgroup", "netns"], indirect=True)
precise = pytest.mark.parametrize("place", ["cgroup", "mark"], indirect=True)


# --- ramnet lock


def test_without_a_daemon_an_engine_gets_nothing_out(place: Machine) -> None:
    with place.lab.capture() as capture:
        assert reach(place.engine, ALL) == OPEN
        assert len(syns_to(capture, ALL)) >= len(ALL), "the control"
    said = place.lock()
    assert (said.returncode, said.stderr) == (0, "")
    assert "engines are locked" in said.stdout
    place.locked()
    # Once more is no matter.
    before = place.rules()
    again = place.lock()
    assert (again.returncode, again.stdout) == (0, "ramnet: rules are in force\n")
    assert place.rules() == before
    place.locked()


@several
def test_what_is_kept_for_the_next_boot(place: Machine) -> None:
    assert place.lock("--write-only").stdout == "ramnet: the locked ruleset was written\n"
    assert table(place.lab.client) == "", "it was to load nothing"
    kept = place.file.stat()
    assert stat.S_IMODE(kept.st_mode) == 0o644
    found = read_locked(place.file.read_text(encoding="utf-8"))
    assert found is not None
    assert found.scope == place.rung
    assert place.lock("--write-only").stdout == "ramnet: nothing has changed\n"
    assert place.file.stat().st_ino == kept.st_ino
    assert os.listdir(place.daemon.state_dir) == [FILE_NAME]  # noqa: PTH208 - names


def test_where_nobody_is_told_apart_it_does_not_claim_to_lock(house: House) -> None:
    place = on(house, "uid")
    place.set_scope("uid", f"uids = [{ENGINE_USER}]\n")
    said = place.lock()
    assert said.returncode == 0
    assert said.stdout.startswith("ramnet: nobody is refused anything: ")
    assert reach(place.engine, ALL) == OPEN


# --- systemd/ramnet-lock


def test_nft_alone_locks_what_it_can(place: Machine) -> None:
    """The interpreter is not there: as where a package is broken, or /opt is not mounted."""
    assert place.lock("--write-only").returncode == 0
    done = place.script()
    if place.rung == "mark":
        # The rules are there, but nobody has a mark: that is no lock, and engines may not start.
        assert done.returncode != 0
        done = place.script(place.real())
        assert marked(place.lab.engine_cgroup)
    assert (done.returncode, done.stderr) == (0, "")
    place.locked()
    before = place.rules()
    assert (place.script().returncode == 0) is (place.rung != "mark")
    assert place.script(place.real()).returncode == 0
    assert place.rules() == before
    place.locked()


@cgroup_only
def test_a_broken_configuration_keeps_nobody_from_being_locked(place: Machine) -> None:
    assert place.lock("--write-only").returncode == 0
    place.daemon.config_file.write_text("[scope\n", encoding="utf-8")
    assert place.script(place.real()).returncode == 0
    place.locked()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut": lambda whole: whole[: len(whole) // 2],
    "last line cut": lambda whole: whole[:-3],
    "zeroed": lambda whole: bytes(len(whole)),
    "head zeroed": lambda whole: bytes(64) + whole[64:],
    "tail zeroed": lambda whole: whole[:-64] + bytes(64),
    "other version": lambda whole: whole.replace(b"ruleset 1", b"ruleset 9", 1),
    "unknown chain": lambda whole: whole.replace(b"goto engine", b"goto nobody"),
}


@cgroup_only
def test_a_damaged_file_is_no_lock(place: Machine) -> None:
    assert place.lock("--write-only").returncode == 0
    whole = place.file.read_bytes()
    for damage, damaged in DAMAGES.items():
        place.file.write_bytes(damaged(whole))
        assert place.script().returncode != 0, damage
        assert table(place.lab.client) == "", damage
    place.file.unlink()
    assert place.script().returncode != 0
    assert table(place.lab.client) == ""


@cgroup_only
@pytest.mark.parametrize("damage", ["missing", "cut", "unknown chain"])
def test_the_interpreter_makes_good_what_was_damaged(place: Machine, damage: str) -> None:
    if damage != "missing":
        assert place.lock("--write-only").returncode == 0
        place.file.write_bytes(DAMAGES[damage](place.file.read_bytes()))
    done = place.script(place.real())
    assert done.returncode == 0, done.stderr
    place.locked()
    remove_rules(place.lab.client)
    assert place.script().returncode == 0
    place.locked()


@cgroup_only
def test_a_block_that_was_lost_anywhere_in_the_file_is_no_lock(place: Machine) -> None:
    assert place.lock("--write-only").returncode == 0
    whole = place.file.read_bytes()
    for at in range(0, len(whole), LOST):
        place.file.write_bytes(whole[:at] + bytes(LOST) + whole[at + LOST :])
        assert place.script().returncode != 0, at
        assert table(place.lab.client) == "", at


@cgroup_only
def test_no_part_of_the_file_is_loaded(place: Machine) -> None:
    """Without its last line each part that ends behind a chain might be a valid ruleset."""
    assert place.lock("--write-only").returncode == 0
    whole = place.file.read_text(encoding="utf-8")
    ends = [index for index, char in enumerate(whole) if char == "\n"]
    for end in [*ends[:-1:4], *ends[-4:-1]]:
        place.file.write_text(whole[:end], encoding="utf-8")
        assert place.script().returncode != 0, whole[:end][-40:]
        assert table(place.lab.client) == ""


# Another cgroup v2 root than the one for which the file was written. Both have the path of the
# group, once it is made: as a directory of a tmpfs, and as a cgroup of another level.
_HYBRID = f"""
mount -t tmpfs none {NFT_ROOT}
mkdir {NFT_ROOT}/unified
mount -t cgroup2 none {NFT_ROOT}/unified
"""
_UNIFIED = f"mount -t cgroup2 none {NFT_ROOT}"
_NONE = f"mount -t tmpfs none {NFT_ROOT}"


@cgroup_only
@pytest.mark.parametrize("layout", ["none", "other"])
def test_a_file_of_another_cgroup_layout_is_no_lock(place: Machine, layout: str) -> None:
    """As after a boot with another command line: nft would load rules that match nobody."""
    assert place.lock("--write-only").returncode == 0
    hybrid = f"# mount {NFT_ROOT}/unified\n" in place.file.read_text(encoding="utf-8")
    before = _NONE if layout == "none" else _UNIFIED if hybrid else _HYBRID
    assert place.script(before=before).returncode != 0
    assert table(place.lab.client) == ""
    assert not (place.lab.engine_cgroup.parents[1] / "unified").exists()
    if layout == "other":  # and the interpreter knows where it is
        done = place.script(place.real(), before=before)
        assert done.returncode == 0, done.stderr
        place.locked()


@cgroup_only
def test_many_at_once(place: Machine) -> None:
    """The lock's own unit and several engines begin at the same time."""
    assert place.lock("--write-only").returncode == 0
    for _ in range(3):
        with ThreadPoolExecutor(8) as pool:
            done = list(pool.map(lambda _: place.script(), range(8)))
        assert [one.returncode for one in done] == [0] * 8
        assert place.rules().count("table inet ramnet") == 1
        remove_rules(place.lab.client)


@cgroup_only
def test_a_table_without_rules_is_none_in_force(place: Machine) -> None:
    """Somebody flushed it: its chains are there, and let everything pass."""
    assert place.lock().returncode == 0
    place.lab.client.run(["nft", "flush", "table", "inet", "ramnet"])
    assert reach(place.engine, ALL) == OPEN
    assert place.script().returncode != 0
    said = place.lock()
    assert said.returncode != 0 or "engines are locked" in said.stdout
    # The daemon puts it right.
    place.daemon.start()
    wait_leases(place.daemon, len(ALLOWED))
    assert outcomes(place.engine, REFUSED) == {"refused"}


@pytest.mark.parametrize("place", ["cgroup"], indirect=True)
@pytest.mark.parametrize(
    "foreign", ["table inet ramnet {}", "table inet ramnet { chain output { accept; }; }"]
)
def test_a_table_of_our_name_that_is_not_ours(place: Machine, foreign: str) -> None:
    place.lab.client.run(["nft", foreign])
    assert place.lock("--write-only").returncode == 0
    for _ in range(2):
        assert place.script().returncode != 0
        said = place.lock()
        assert said.returncode != 0 or "engines are locked" in said.stdout


# --- a daemon beside it


@precise
def test_nothing_of_a_daemon_is_replaced(place: Machine) -> None:
    place.daemon.start()
    wait_leases(place.daemon, len(ALLOWED))
    before = place.rules()
    known = status(place.daemon)
    for done in (place.script(place.real()), place.lock(), place.script(place.real())):
        assert (done.returncode, done.stderr) == (0, "")
    assert outcomes(place.engine, ALLOWED) == {"reached"}
    assert outcomes(place.engine, REFUSED) == {"refused"}
    said = status(place.daemon)
    assert (said["leases"], said["repairs"]) == (known["leases"], 0)
    assert said["scope"]["problem"] is None
    assert without_times(place.rules()) == without_times(before)


def without_times(rules: str) -> list[str]:
    """A listing without the lines of elements, which say when they expire."""
    return [line for line in rules.splitlines() if "expires" not in line]


@cgroup_only
def test_what_a_daemon_knows_is_not_taken_from_it(place: Machine) -> None:
    """The configuration was changed, the daemon not started again yet: its engines stay judged."""
    place.daemon.start()
    wait_leases(place.daemon, len(ALLOWED))
    other = place.house.group("other")
    place.daemon.config_file.write_text(configured("cgroup", other), encoding="utf-8")
    group = place.lab.engine_cgroup
    with (
        place.lab.capture() as capture,
        place.lab.generator([(EVIL[0], 443)], rate=RATE, cgroup=group) as generator,
    ):
        for _ in range(2):
            generator.wait_attempts(100)
            assert place.lock().returncode == 0
            assert place.script(place.real()).returncode == 0
        generator.wait_attempts(100)
        assert capture.to(EVIL) == ()
    assert generator.report.total.attempted > 300


@cgroup_only
def test_what_is_kept_of_another_scope_is_no_reason_to_fail(place: Machine) -> None:
    """The disk was full when the scope changed. The rules of a daemon are in force all the same."""
    assert place.lock("--write-only").returncode == 0
    kept = place.file.read_bytes()
    place.daemon.config_file.write_text(STRICT, encoding="utf-8")
    place.daemon.start()
    wait_leases(place.daemon, len(ALLOWED))
    place.file.write_bytes(kept)
    before = without_times(place.rules())
    for done in (place.script(place.real()), place.lock()):
        assert done.returncode == 0, done.stderr
    assert without_times(place.rules()) == before


@precise
@pytest.mark.parametrize("by", ["script", "verb"])
def test_an_engine_whose_cgroup_was_made_anew_is_known_again(place: Machine, by: str) -> None:
    """The daemon is gone: as when it cannot start, and an engine's slice was stopped meanwhile."""
    place.daemon.start()
    wait_open(place)
    place.daemon.kill()
    assert outcomes(place.engine, REFUSED) == {"refused"}
    renew(place.lab.engine_cgroup)
    assert outcomes(place.engine, REFUSED) == {"reached"}, "the control"
    done = place.lock() if by == "verb" else place.script(place.real())
    assert done.returncode == 0, done.stderr
    with place.lab.capture() as capture:
        assert outcomes(place.engine, REFUSED) == {"refused"}
        # What the daemon had learned is still open.
        assert outcomes(place.engine, ALLOWED) == {"reached"}
        assert syns_to(capture, REFUSED) == []


@cgroup_only
def test_nft_alone_knows_a_cgroup_that_was_made_anew(place: Machine) -> None:
    assert place.lock().returncode == 0
    renew(place.lab.engine_cgroup)
    assert reach(place.engine, ALL) == OPEN, "the control"
    assert place.script().returncode == 0
    place.locked()
    remove(place.lab.engine_cgroup)
    assert place.script().returncode == 0, "it makes the cgroup where there is none"
    place.locked()


@pytest.mark.parametrize("place", ["cgroup", "mark", "netns"], indirect=True)
def test_a_daemon_takes_a_locked_machine_over_without_a_gap(place: Machine) -> None:
    """From the lock to what the policy allows, under connection attempts of the engine."""
    assert place.lock("--write-only").returncode == 0
    assert place.script(place.real()).returncode == 0
    group = place.lab.engine_cgroup if place.rung != "netns" else None
    with (
        place.lab.capture() as capture,
        place.lab.generator(REFUSED, rate=RATE, cgroup=group) as generator,
    ):
        place.daemon.start()
        wait_open(place)
        generator.wait_attempts(200)
        place.daemon.kill()
        assert place.script(place.real()).returncode == 0
        generator.wait_attempts(100)
        place.daemon.start()
        generator.wait_attempts(100)
        assert syns_to(capture, REFUSED) == []
        assert capture.to(EVIL) == ()
    assert generator.report.total.connected == 0
    assert generator.report.total.refused > 400
    wait_status(place.daemon, lambda said: said["state"] == "enforcing", "enforcing")


@cgroup_only
def test_a_daemon_that_starts_at_the_same_moment(place: Machine) -> None:
    """Whoever is first: in the end it is the daemon's table, and nobody took it away."""
    assert place.lock("--write-only").returncode == 0
    for _ in range(2):
        place.daemon.start(wait=False)
        ramnet = place.real()
        codes = []
        while not place.daemon.log.count("ready"):
            codes.append(place.script(ramnet).returncode)
        place.daemon.wait_ready()
        assert codes == [0] * len(codes)
        wait_open(place)
        assert outcomes(place.engine, REFUSED) == {"refused"}
        assert status(place.daemon)["repairs"] == 0
        place.daemon.kill()
        remove_rules(place.lab.client)


# --- what a daemon keeps for the next boot


@several
def test_a_daemon_keeps_the_ruleset_for_the_next_boot(place: Machine) -> None:
    place.daemon.start()
    first = place.file.stat()
    assert os.listdir(place.daemon.state_dir) == [FILE_NAME]  # noqa: PTH208 - names
    wait_leases(place.daemon, len(ALLOWED))
    assert place.daemon.stop() == 0
    place.daemon.start()
    again = place.file.stat()
    assert (again.st_ino, again.st_mtime_ns) == (first.st_ino, first.st_mtime_ns), "it is the same"
    assert place.lock("--write-only").stdout == "ramnet: nothing has changed\n"
    assert place.daemon.stop() == 0
    # The machine comes up again, and the daemon does not.
    remove_rules(place.lab.client)
    assert place.script(place.real()).returncode == 0
    place.locked()


@cgroup_only
def test_another_scope_is_another_file(place: Machine) -> None:
    place.daemon.start()
    first = place.file.stat()
    assert place.daemon.stop() == 0
    place.daemon.config_file.write_text(STRICT, encoding="utf-8")
    place.daemon.start()
    assert place.file.stat().st_ino != first.st_ino, "put in its place, not written over"
    found = read_locked(place.file.read_text(encoding="utf-8"))
    assert found is not None
    assert found.scope == "netns"


def unwritable(place: Machine, how: str) -> None:
    """Make the state directory one that takes nothing; the sandbox's mounts end with it."""
    where = str(place.daemon.state_dir)
    if how == "full":
        place.lab.client.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", where])
        shell = 'cat /dev/zero >"$1/filler" 2>/dev/null || :'
        place.lab.client.run(["/bin/sh", "-c", shell, "sh", where])
    elif how == "read-only":
        place.lab.client.run(["mount", "--bind", where, where])
        place.lab.client.run(["mount", "-o", "remount,ro,bind", where])
    else:
        place.daemon.state_dir.rmdir()
        place.daemon.state_dir.write_text("in the way", encoding="utf-8")


@cgroup_only
@pytest.mark.parametrize("how", ["full", "read-only", "a file"])
def test_a_state_directory_that_takes_nothing_is_only_a_warning(place: Machine, how: str) -> None:
    unwritable(place, how)
    said = place.lock()
    assert said.returncode == 0
    assert f"{place.file} cannot be written" in said.stdout
    place.locked()
    place.daemon.start()
    assert "the next boot will compile the locked ruleset anew" in place.daemon.log
    wait_open(place)
    assert outcomes(place.engine, REFUSED) == {"refused"}
    assert status(place.daemon)["state"] == "enforcing"
    if how != "a file":
        left = place.lab.client.run(["ls", "-A", str(place.daemon.state_dir)]).stdout.split()
        assert set(left) - {"activity"} == ({"filler"} if how == "full" else set())


@cgroup_only
def test_a_full_disk_leaves_the_file_that_was_there(place: Machine) -> None:
    where = str(place.daemon.state_dir)
    place.lab.client.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", where])
    assert place.lock("--write-only").returncode == 0
    shell = 'cat /dev/zero >"$1/filler" 2>/dev/null || :'
    place.lab.client.run(["/bin/sh", "-c", shell, "sh", where])
    before = place.lab.client.run(["cat", str(place.file)]).stdout
    place.daemon.config_file.write_text(STRICT, encoding="utf-8")
    assert place.lock("--write-only").returncode == 1
    assert place.lab.client.run(["cat", str(place.file)]).stdout == before
    assert place.lab.client.run(["ls", "-A", where]).stdout.split() == ["filler", FILE_NAME]


@cgroup_only
def test_a_writer_that_is_killed_leaves_a_whole_file(place: Machine) -> None:
    """The one before or the new one, whenever it happens."""
    configs = (config(place.lab, "cgroup"), STRICT)
    texts = []
    for text in configs:
        place.daemon.config_file.write_text(text, encoding="utf-8")
        assert place.lock("--write-only").returncode == 0
        texts.append(place.file.read_text(encoding="utf-8"))
    argv = [place.real(), "lock", "--write-only", "--config", str(place.daemon.config_file)]
    argv += ["--state-dir", str(place.daemon.state_dir)]
    log = place.daemon.state_dir.parent / "writers.log"
    for _ in range(6):
        there = texts.index(place.file.read_text(encoding="utf-8"))
        place.daemon.config_file.write_text(configs[1 - there], encoding="utf-8")
        before = place.file.stat().st_ino
        process = place.lab.client.popen(argv, log=log)
        # While it writes, as nearly as that can be met.
        wait_until(partial(written, place, before), 20, "it writes")
        process.kill()
        assert place.file.read_text(encoding="utf-8") in texts
        for left in place.daemon.state_dir.iterdir():
            if left != place.file:
                left.unlink()


def written(place: Machine, before: int) -> bool:
    """Whether a writer has begun: its file is beside the one that was there, or in its place."""
    names = set(os.listdir(place.daemon.state_dir))  # noqa: PTH208 - names
    return place.file.stat().st_ino != before or names > {FILE_NAME}

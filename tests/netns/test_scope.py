"""Who is an engine, kept true by the running daemon: cgroups made anew, tampering, its own life.

A program in a cgroup of the test's stands for the engine, another one outside for everybody else;
the capture at the far side is the judge.
"""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from ramnet.core.config import ScopeMode
from ramnet.host.bpf import mark_sockets, marks, unmark_sockets
from ramnet.host.cgroups import mount_point
from ramnet.host.scopekeeper import PROBE_AGAIN_SECONDS
from ramnet.host.scoping import Scoping
from ramnet.lab.generator import Generator
from ramnet.lab.process import wait_until
from ramnet.lab.ramnet import Daemon
from ramnet.lab.sandbox import Sandbox
from ramnet.lab.world import CHAIN, CORP, EVIL, QUAY
from tests.netns.dnsworld import patched
from tests.netns.groups import attach, program_in
from tests.netns.places import Place, machine, outcomes, reach
from tests.netns.scoped import PRECISE, wait_denied
from tests.netns.scopeworld import (
    ALLOW_ALL,
    REPAIR_SECONDS,
    House,
    a_house,
    configured,
    flush,
    foreign_table,
    hung_at_rest,
    marked,
    mptcp,
    program,
    recognised,
    renew,
    wait_problem,
    wait_recognised,
    wait_well,
)
from tests.netns.support import (
    ALLOWED,
    CORP_REGISTRY,
    DUAL_REGISTRY,
    Ramnet,
    Target,
    policy,
    put_policy,
    remove_rules,
    status,
    syns_to,
    table,
    wait_leases,
    wait_repairs,
)

pytestmark = pytest.mark.netns

POLICY = policy(CORP_REGISTRY, DUAL_REGISTRY)
ANOTHER_POLICY = policy(CORP_REGISTRY, DUAL_REGISTRY, "quay.io")
# Nobody has catalogued these: an engine is refused them, and any other program is not.
REFUSED: list[Target] = [(address, port) for address in EVIL for port in (443, 8443)]
ENGINE = {target: {"refused"} for target in REFUSED} | {target: {"reached"} for target in ALLOWED}
OUTSIDE: list[Target] = [(address, 443) for address in CHAIN]
# From the moment that a cgroup is there again. The best of a few: the machine may be busy.
SOON = 0.1
TRIES = 3
RATE = 300.0
PHASE = 90
MARK = 0x0200_0000
RENEWALS = 50


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with a_house() as made:
        yield made


@pytest.fixture
def lab(house: House) -> object:
    """The lab of the daemons that the fixture ``ramnet`` makes."""
    return house.lab


@pytest.fixture(params=PRECISE)
def rung(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


def engine(house: House, group: Path) -> Place:
    return program(house.lab.client, group)


def others(house: House) -> Place:
    return machine(house.lab.client, 0)


def judged(house: House, *groups: Path) -> None:
    """A program in each of these cgroups is refused what the policy does not list."""
    with house.lab.capture() as capture:
        for group in groups:
            said = reach(engine(house, group), [*REFUSED, *ALLOWED])
            assert said == ENGINE, group
        assert syns_to(capture, REFUSED) == []


def not_judged(house: House, *groups: Path) -> None:
    for group in groups:
        assert outcomes(engine(house, group), REFUSED) == {"reached"}, group


def test_control_without_ramnet_all_of_it_gets_through(house: House) -> None:
    group = house.group("engine")
    group.mkdir(parents=True)
    not_judged(house, group)
    assert outcomes(others(house), REFUSED) == {"reached"}


# --- cgroups that are made anew


def test_a_group_that_is_made_anew_is_known_at_once(
    house: House, ramnet: Ramnet, rung: str
) -> None:
    group = house.group("engine")
    daemon = ramnet(POLICY, config=configured(rung, group))
    wait_leases(daemon, len(ALLOWED))
    judged(house, group)
    assert outcomes(others(house), REFUSED) == {"reached"}
    took = []
    for _ in range(TRIES):
        renew(group)
        took.append(wait_recognised(house, rung, group))
        assert outcomes(engine(house, group), REFUSED[:1]) == {"refused"}
    assert min(took) < SOON, took
    # Control: what is not fed is not judged.
    with hung_at_rest(house, daemon):
        renew(group)
        not_judged(house, group)
    wait_recognised(house, rung, group)
    judged(house, group)
    wait_well(daemon, 3 * PROBE_AGAIN_SECONDS)
    (said,) = status(daemon)["scope"]["groups"]
    assert said["id"] == group.stat().st_ino


def test_several_groups_at_several_depths(house: House, ramnet: Ramnet, rung: str) -> None:
    one, two, deep = house.group(), house.group(), house.group("a/b/c")
    daemon = ramnet(POLICY, config=configured(rung, one, two, deep))
    wait_leases(daemon, len(ALLOWED))
    assert {item["path"] for item in status(daemon)["scope"]["groups"]} == {
        str(group.relative_to(mount_point())) for group in (one, two, deep)
    }
    below = one / "docker.service"
    below.mkdir()
    judged(house, one, two, deep, below)
    assert outcomes(engine(house, deep.parent), REFUSED) == {"reached"}
    below.rmdir()
    with hung_at_rest(house, daemon):
        renew(two)
        renew(deep, deep.parent.parent)
        not_judged(house, two, deep)
        assert outcomes(engine(house, one), REFUSED) == {"refused"}
    wait_recognised(house, rung, one, two, deep)
    judged(house, one, two, deep)
    # While it runs as well, from the top down to nothing.
    took = []
    for _ in range(TRIES):
        renew(deep, deep.parent.parent)
        took.append(wait_recognised(house, rung, one, two, deep))
    assert min(took) < SOON, took
    judged(house, deep)


def test_a_group_and_the_table_that_go_together_come_back_together(
    house: House, ramnet: Ramnet, rung: str
) -> None:
    """The table names groups by their paths: one that is gone would be a table that is refused."""
    group = house.group("engine")
    daemon = ramnet(POLICY, config=configured(rung, group))
    with hung_at_rest(house, daemon):
        group.rmdir()
        group.parent.rmdir()
        house.lab.client.run(["nft", "flush", "ruleset"])
    begin = time.monotonic()
    wait_until(lambda: table(house.lab.client) != "", 10.0, "the table")
    wait_recognised(house, rung, group)
    assert time.monotonic() - begin < REPAIR_SECONDS
    assert outcomes(engine(house, group), REFUSED) == {"refused"}


def test_a_group_that_goes_and_comes_at_any_moment_is_survived(
    house: House, ramnet: Ramnet, rung: str
) -> None:
    """Also between two steps of the daemon, which are some 100 us apart."""
    group = house.group("engine")
    daemon = ramnet(POLICY, config=configured(rung, group))
    wait_leases(daemon, len(ALLOWED))
    chance = random.Random(4)
    for _ in range(RENEWALS):
        renew(group)
        # While the daemon, which has just been told, makes and marks it itself.
        time.sleep(chance.uniform(0, 0.01))
        with suppress(OSError):  # busy, or gone
            group.rmdir()
        time.sleep(chance.uniform(0, 0.02))
        group.mkdir(exist_ok=True)
        assert daemon.running, daemon.log
    wait_recognised(house, rung, group)
    wait_well(daemon, PROBE_AGAIN_SECONDS + REPAIR_SECONDS)
    judged(house, group)
    assert "Traceback" not in daemon.log


def test_sockets_of_a_group_are_marked_though_the_next_group_goes_away(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the marking of one group has done is not forgotten when it is tried again."""
    one, two = house.group("one"), house.group("two")
    paths = tuple(str(group.relative_to(mount_point())) for group in (one, two))
    scoping = Scoping(ScopeMode.MARK, paths, MARK)
    code = "made = socket.socket()\nprint(flush=True)\nsys.stdin.readline()\n"
    code += "print(made.getsockopt(socket.SOL_SOCKET, socket.SO_MARK))"
    gone: list[Path] = []

    def late(place: Path, mark: int) -> bool:
        if place == two and not gone:
            two.rmdir()
            gone.append(two)
        return mark_sockets(place, mark)

    monkeypatch.setattr("ramnet.host.scoping.mark_sockets", late)
    try:
        with subprocess.Popen(
            program_in(one, code), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as old:
            assert old.stdout is not None
            old.stdout.readline()
            assert scoping.feed(house.elements)
            said, _ = old.communicate("\n", timeout=10)
    finally:
        scoping.close()
    assert gone == [two]
    assert int(said) == MARK
    assert marked(one)
    assert marked(two)


def test_whoever_makes_rules_finds_the_groups_there(house: House, rung: str) -> None:
    group = house.group("engine")
    scoping = Scoping(ScopeMode(rung), (str(group.relative_to(mount_point())),), MARK)
    try:
        renew(group)
        group.rmdir()
        scoping.prepare()
        assert scoping.groups[0].ident == group.stat().st_ino
        assert marked(group) == (rung == "mark")
    finally:
        scoping.close()


# --- tampering

Tampering = Callable[[House, Path], object]


def _delete(house: House, group: Path) -> None:
    """Delete one element, which nft names by the path of the cgroup."""
    place = group.relative_to("/sys/fs/cgroup")
    house.lab.client.run(["nft", f'delete element inet ramnet engines3 {{ "{place}" }}'])


TAMPERING: dict[str, tuple[str, Tampering]] = {
    "flush the set": ("cgroup", flush),
    "delete an element": ("cgroup", _delete),
    "detach the program": ("mark", lambda _house, group: unmark_sockets(group)),
}


@pytest.mark.parametrize("how", TAMPERING)
def test_what_somebody_else_takes_away_is_put_back(house: House, ramnet: Ramnet, how: str) -> None:
    rung, tamper = TAMPERING[how]
    group = house.group("engine")
    daemon = ramnet(POLICY, config=configured(rung, group))
    wait_leases(daemon, len(ALLOWED))
    with hung_at_rest(house, daemon):
        tamper(house, group)
        not_judged(house, group)
    wait_recognised(house, rung, group)
    judged(house, group)
    # Nothing tells of it, but the look once a second.
    tamper(house, group)
    assert wait_recognised(house, rung, group) < REPAIR_SECONDS
    assert outcomes(engine(house, group), REFUSED) == {"refused"}
    wait_well(daemon, 3 * PROBE_AGAIN_SECONDS)
    assert "another program changed what tells engines apart" in daemon.log


# --- the live probe fails

JUDGED: list[Target] = [(EVIL[0], 443), (EVIL[1], 80)]
CATALOGUED: list[Target] = [(QUAY[0], 443)]
QUICK = """
import ramnet.host.scopekeeper, ramnet.host.live
ramnet.host.scopekeeper.PROBE_AGAIN_SECONDS = 1.0
ramnet.host.live.CHILD_SECONDS = 2.0
"""


@contextmanager
def _foreign(house: House, _daemon: Daemon, _group: Path) -> Iterator[None]:
    with foreign_table(house):
        yield


@contextmanager
def _frozen(_house: House, _daemon: Daemon, group: Path) -> Iterator[None]:
    (group / "cgroup.freeze").write_text("1", encoding="ascii")
    try:
        yield
    finally:
        (group / "cgroup.freeze").write_text("0", encoding="ascii")


@contextmanager
def _in_the_group(_house: House, daemon: Daemon, group: Path) -> Iterator[None]:
    before = Path(f"/proc/{daemon.pid}/cgroup").read_text(encoding="utf-8")
    home = next(line[4:] for line in before.splitlines() if line.startswith("0::/"))
    (group / "cgroup.procs").write_text(str(daemon.pid), encoding="ascii")
    try:
        yield
    finally:
        (mount_point() / home / "cgroup.procs").write_text(str(daemon.pid), encoding="ascii")


BLIND = {
    "weak strict, other rules": ("strict", _foreign, "other rules refused the datagram"),
    "weak refuse, ramnet inside": ("refuse", _in_the_group, "ramnet itself runs in an engine's"),
    "weak catalog, a frozen group": ("catalog", _frozen, "its process took longer than"),
}


@pytest.mark.usefixtures("ramnet")  # which removes the table at the end
@pytest.mark.parametrize("case", BLIND)
def test_while_engines_are_not_told_apart_anybody_may_be_one(house: House, case: str) -> None:
    weak, trouble, words = BLIND[case]
    spared = weak == "catalog"
    group = house.group("engine")
    config = configured("cgroup", group, more=f'weak = "{weak}"\nhost = "off"\n')
    # One of them at its real pace.
    patch = QUICK if weak != "strict" else ""
    again = PROBE_AGAIN_SECONDS if weak == "strict" else 3.0
    with patched(house.lab, patch, POLICY, config) as daemon:
        wait_leases(daemon, len(ALLOWED))
        wait_denied(house.lab.client, *QUAY)
        assert status(daemon)["state"] == "enforcing"
        assert outcomes(others(house), [*JUDGED, *CATALOGUED]) == {"reached"}, "control"
        with trouble(house, daemon, group):
            flush(house, group)
            said = wait_problem(daemon, words)
            assert said["state"] == "degraded"
            # Who is left alone stays so, where all that is known is the catalogue.
            assert said["classes"]["host"]["enforced"] == ("off" if spared else "strict")
            assert any(words in warning for warning in said["warnings"])
            wait_denied(house.lab.client, *QUAY)
            found = outcomes(others(house), JUDGED)
            expected = {"reached"} if spared else {"refused"}
            assert found == expected
            assert outcomes(others(house), CATALOGUED) == expected
            assert outcomes(others(house), ALLOWED) == {"reached"}
            assert outcomes(others(house), [(EVIL[0], 8443)]) == {"reached"}, "no registry's port"
            if trouble is not _frozen:
                assert outcomes(engine(house, group), REFUSED) == {"refused"}
        wait_well(daemon, again + REPAIR_SECONDS)
        assert outcomes(others(house), [*JUDGED, *CATALOGUED]) == {"reached"}
        judged(house, group)
        _, _, log = daemon.log.partition("engines are not told apart: ")
        assert words in log
        assert "engines are told apart again" in log


@pytest.mark.usefixtures("ramnet")
def test_a_group_is_known_at_once_while_another_one_is_frozen(house: House) -> None:
    """The probe waits for a frozen group for seconds; what is fed meanwhile must not."""
    frozen, other = house.group("frozen"), house.group("other")
    config = configured("cgroup", frozen, other)
    with patched(house.lab, QUICK, POLICY, config) as daemon, _frozen(house, daemon, frozen):
        flush(house, frozen)
        wait_recognised(house, "cgroup", frozen, other)
        renew(other)
        assert wait_recognised(house, "cgroup", frozen, other, seconds=20.0) < 1.0


@pytest.mark.usefixtures("ramnet")
@pytest.mark.parametrize("rung", ["uid", "netns"])
def test_a_weak_scope_that_failed_is_tried_again_as_well(house: House, rung: str) -> None:
    config = configured(rung, house.group("engine"), more='weak = "strict"\n')
    with ExitStack() as stack:
        with foreign_table(house):
            daemon = stack.enter_context(patched(house.lab, QUICK, POLICY, config))
            wait_problem(daemon, "other rules refused the datagram of a socket of ramnet itself")
        wait_well(daemon, REPAIR_SECONDS)


# --- the life of the daemon


def lost(generator: Generator, targets: list[Target]) -> dict[Target, int]:
    """Attempts that did not connect."""
    counts = generator.report.targets
    return {one: counts[one].attempted - counts[one].connected for one in targets}


def test_nothing_leaks_and_nobody_else_is_refused_through_its_whole_life(
    house: House, ramnet: Ramnet, rung: str
) -> None:
    group = house.group("engine")
    group.mkdir(parents=True)
    targets = [*ALLOWED, *REFUSED]
    # With this a mistake about who is an engine would be felt outside.
    config = configured(rung, group, more='weak = "strict"\n')
    daemon = ramnet(POLICY, config=config, start=False)
    lab = house.lab
    with lab.capture() as capture:
        with (
            lab.generator(targets, rate=RATE, cgroup=group) as inside,
            lab.generator(OUTSIDE, rate=RATE / 3) as outside,
        ):
            inside.wait_attempts(PHASE)
            daemon.start(wait=False)
            daemon.wait_ready()
            ready = time.time()
            for end in (signal.SIGTERM, signal.SIGKILL):
                inside.wait_attempts(PHASE)
                daemon.stop(end)
                inside.wait_attempts(PHASE)
                assert recognised(house, rung, group), "what was put in place stays"
                daemon.start()
            with hung_at_rest(house, daemon):
                inside.wait_attempts(PHASE)
            put_policy(daemon, ANOTHER_POLICY)
            inside.wait_attempts(PHASE)
            empty = "table inet ramnet\ndelete table inet ramnet\n"
            with hung_at_rest(house, daemon):
                before = inside.report.total.attempted
                gone = time.time()
                lab.client.run(["nft", "-f", "-"], input=empty)
                inside.wait_attempts(PHASE)
            wait_repairs(daemon, 1)
            wait_well(daemon, 3 * PROBE_AGAIN_SECONDS)
            back = time.time()
            inside.wait_attempts(PHASE)
        report = inside.stop()
        passed = syns_to(capture, REFUSED)
    assert report.total.attempted > before
    assert any(syn.time < ready for syn in passed), "control: before the first ruleset"
    assert any(gone < syn.time < back for syn in passed), "control: without the table"
    leaked = [syn for syn in passed if syn.time > ready and not gone < syn.time < back]
    assert leaked == []
    assert lost(outside, OUTSIDE) == dict.fromkeys(OUTSIDE, 0)


@pytest.mark.parametrize("running", [True, False], ids=["with a daemon", "without a daemon"])
def test_off_takes_the_table_and_our_programs_and_leaves_those_of_others(
    house: House, ramnet: Ramnet, rung: str, running: bool
) -> None:
    groups = [house.group("engine"), house.group()]
    for group in groups:
        group.mkdir(parents=True)
        attach(group, ALLOW_ALL, "somebody_else")
    daemon = ramnet(POLICY, config=configured(rung, *groups))
    assert [marked(group) for group in groups] == [rung == "mark"] * 2
    assert outcomes(engine(house, groups[0]), REFUSED) == {"refused"}
    if not running:
        daemon.kill()
        assert [marked(group) for group in groups] == [rung == "mark"] * 2
    off = daemon.cli("off", "--config", str(daemon.config_file))
    assert off.returncode == 0, off.stderr
    assert table(house.lab.client) == ""
    for group in groups:
        assert [item.name for item in marks(group)] == ["somebody_else"]
    not_judged(house, groups[0])


NO_BPF = "import ramnet.host.bpf\nramnet.host.bpf.NUMBERS.clear()\n"


@pytest.mark.usefixtures("ramnet")
@pytest.mark.parametrize("running", [True, False], ids=["with a daemon", "without a daemon"])
def test_off_is_the_end_of_the_table_even_where_marks_cannot_be_removed(
    house: House, running: bool
) -> None:
    group = house.group("engine")
    with patched(house.lab, NO_BPF, POLICY, configured("cgroup", group)) as daemon:
        wait_leases(daemon, len(ALLOWED))
        if not running:
            daemon.kill()
        off = daemon.cli("off", "--config", str(daemon.config_file))
        assert off.returncode == 0, off.stderr
        assert "the rules were removed" in off.stdout
        assert "marks on new sockets of engines may be left: the number of bpf(2)" in off.stderr
        if running:
            assert daemon.wait() == 0, daemon.log
        assert table(house.lab.client) == ""
        not_judged(house, group)


def test_off_says_nothing_of_marks_where_none_is_left(house: House, ramnet: Ramnet) -> None:
    daemon = ramnet(POLICY, config=configured("mark", house.group("engine")))
    off = daemon.cli("off")
    assert (off.returncode, off.stderr) == (0, "")


def test_another_scope_takes_the_marks_away(house: House, ramnet: Ramnet) -> None:
    group = house.group("engine")
    daemon = ramnet(POLICY, config=configured("mark", group))
    wait_leases(daemon, len(ALLOWED))
    assert marked(group)
    with house.lab.capture() as capture:
        with house.lab.generator(REFUSED, rate=RATE, cgroup=group) as stream:
            daemon.stop()
            daemon.config_file.write_text(configured("cgroup", group), encoding="utf-8")
            daemon.start()
            stream.wait_attempts(PHASE)
        assert syns_to(capture, REFUSED) == []
    assert not marked(group)
    judged(house, group)


# --- which rung


def test_auto_takes_the_best_rung(house: House, ramnet: Ramnet) -> None:
    group = house.group("engine")
    daemon = ramnet(POLICY, config=configured("auto", group))
    said = status(daemon)["scope"]
    assert said["mode"] == "cgroup"
    assert said["because"] == "engines are told by the cgroup that their sockets were made in"
    assert outcomes(engine(house, group), REFUSED) == {"refused"}


HIERARCHY = {
    "not mounted": ("umount --lazy {}", "no cgroup v2 hierarchy is mounted"),
    "read-only": ("mount --options remount,bind,ro {}", "Read-only file system"),
}


@pytest.fixture(scope="module", params=HIERARCHY)
def hidden(house: House, request: pytest.FixtureRequest) -> tuple[Sandbox, str]:
    """A machine whose cgroup v2 hierarchy is of no use, and what is said of it."""
    command, words = HIERARCHY[request.param]
    sandbox = house.lab.sandbox(f"hierarchy-{request.param.replace(' ', '-')}")
    sandbox.run(["sh", "-c", command.format(mount_point())])
    return sandbox, words


def _made_in(sandbox: Sandbox, house: House, config: str) -> Daemon:
    number = len(list(house.lab.directory.glob("elsewhere-*")))
    folder = house.lab.directory / f"elsewhere-{number}"
    folder.mkdir()
    return Daemon(sandbox, folder, POLICY, config)


def test_without_its_cgroups_auto_falls_to_users(house: House, hidden: tuple[Sandbox, str]) -> None:
    sandbox, words = hidden
    daemon = _made_in(sandbox, house, configured("auto", house.group("engine")))
    try:
        daemon.start()
        said = status(daemon)
    finally:
        daemon.abandon()
        remove_rules(sandbox)
    assert (said["state"], said["scope"]["mode"]) == ("degraded", "uid")
    assert words in said["scope"]["because"]
    for rung in PRECISE:
        assert f"not '{rung}'" in said["scope"]["because"]
    assert said["scope"]["problem"] is None


def test_a_rung_that_cannot_be_is_refused(house: House, hidden: tuple[Sandbox, str]) -> None:
    sandbox, words = hidden
    asked = {
        "cgroup": ("", ["scope 'cgroup' is configured, but this kernel cannot do it", words]),
        "mark": ("", ["scope 'mark' is configured, but this kernel cannot do it", words]),
        "auto": ('weak = "refuse"', ["scope 'uid' cannot tell engines from other programs"]),
    }
    with ExitStack() as stack:
        daemons = {}
        for rung, (more, _) in asked.items():
            config = configured(rung, house.group("engine"), more=more)
            daemons[rung] = _made_in(sandbox, house, config)
            stack.callback(daemons[rung].abandon)
            daemons[rung].start(wait=False)
        for rung, (_, expected) in asked.items():
            assert daemons[rung].wait() == 3
            for text in (*expected, "hint: "):
                assert text in daemons[rung].log
            assert "Traceback" not in daemons[rung].log
    assert table(sandbox) == ""


# --- what each rung is judged by


def test_by_user_root_is_judged_and_another_is_not(house: House, ramnet: Ramnet) -> None:
    config = configured("uid", house.group("engine"), more='weak = "strict"\n')
    daemon = ramnet(POLICY, config=config)
    wait_leases(daemon, len(ALLOWED))
    root, user = machine(house.lab.client, 0), machine(house.lab.client)
    targets: list[Target] = [(address, 443) for address in EVIL]
    with house.lab.capture() as capture:
        assert outcomes(root, targets) == {"refused"}
        assert outcomes(root, ALLOWED) == {"reached"}
        assert syns_to(capture, targets) == []
    assert outcomes(user, targets) == {"reached"}


@pytest.mark.parametrize(("asked", "free"), [("cgroup", True), ("mark", False), ("uid", False)])
def test_multipath_tcp_is_judged_though_it_has_no_mark_and_no_user(
    house: House, ramnet: Ramnet, asked: str, free: bool
) -> None:
    """Only its cgroup tells whose it is: on the other rungs every one of them is an engine's."""
    group = house.group("engine")
    inside, outside = engine(house, group), machine(house.lab.client)
    group.mkdir(parents=True)
    assert (mptcp(inside, EVIL[0]), mptcp(outside, EVIL[0])) == ("reached", "reached"), "control"
    daemon = ramnet(POLICY, config=configured(asked, group, more='weak = "strict"\n'))
    wait_leases(daemon, len(ALLOWED))
    with house.lab.capture() as capture:
        assert mptcp(inside, EVIL[0]) == ("EPERM" if asked == "mark" else "refused")
        assert syns_to(capture, [(EVIL[0], 443)]) == []
        assert mptcp(outside, EVIL[0]) == ("reached" if free else "refused")
        assert mptcp(outside, CORP[0], 5000) == "reached"

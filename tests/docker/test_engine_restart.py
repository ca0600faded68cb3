"""No gap: whatever restarts, the engine or ramnet, nothing of the engine gets through meanwhile.

A program in the engine's cgroup connects all the time, to what is allowed and to what is not, and
another one outside. The judge is a capture at the far side.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ramnet.errors import LabError
from ramnet.lab.capture import Capture
from ramnet.lab.generator import Generator
from ramnet.lab.lab import Lab
from ramnet.lab.process import Process, wait_until
from ramnet.lab.ramnet import Daemon
from tests.coverage_table import Cover, Outcome, Section
from tests.docker.paths import arrived
from tests.docker.support import docker, pull
from tests.netns.support import (
    ALLOWED,
    CORP_REGISTRY,
    DUAL_REGISTRY,
    REFUSED,
    Ramnet,
    Target,
    hung,
    policy,
    put_policy,
    status,
    syns_to,
    wait_leases,
)

pytestmark = pytest.mark.docker

RUNGS = ("cgroup", "mark")
ENFORCED, SECTION = Outcome.ENFORCED, Section.ENGINE

RATE = 300.0
PHASE = 100  # attempts in each phase, some 10 to each target that is refused
# What nobody lists, for the program outside: the same ports, other addresses.
OUTSIDE: tuple[Target, ...] = (
    *(("203.0.113.230", port) for port in (443, 5000, 8443)),
    ("2001:db8::230", 443),
)
REFUSED_IMAGE, ALLOWED_IMAGE = "evil.example/acme/app", f"{CORP_REGISTRY}/acme/app"
# From the moment that a cgroup is there until the rules know it.
REFEED_SECONDS = 0.1
END_SECONDS = 5.0
EARLY = ("203.0.113.240", "2001:db8::240")

_EARLY_SOCKETS = """
import socket, sys
stream = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
stream6 = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
print("ready", flush=True)
sys.stdin.read()
for sock, place in ((stream, sys.argv[1]), (stream6, sys.argv[2])):
    try:
        sock.settimeout(3)
        sock.connect((place, 443))
    except OSError as err:
        print(err, flush=True)
try:
    datagram.sendto(b"a line of a log", (sys.argv[1], 514))
except OSError as err:
    print(err, flush=True)
print("done", flush=True)
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(engine=True, engine_cgroup=True) as made:
        yield made
        (made.engine_cgroup / "nested").mkdir()
    assert made.leftovers() == []


@pytest.fixture(params=RUNGS)
def rung(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture
def ramnet(lab: Lab, rung: str) -> Iterator[Ramnet]:
    """Make daemons on the rung. `ramnet off` ends them: it takes the marks of sockets along."""
    config = f'[scope]\nmode = "{rung}"\ncgroups = ["{lab.engine_group}"]\n'
    factory = Ramnet(lab, [], config)
    yield factory
    for daemon in factory.made:
        assert daemon.cli("off").returncode == 0
        daemon.abandon()


@contextmanager
def stream(lab: Lab) -> Iterator[tuple[Generator, Generator]]:
    """Connect from inside the engine's cgroup and from outside, until the end."""
    with (
        lab.generator([*ALLOWED, *REFUSED], rate=RATE, cgroup=lab.engine_cgroup) as inside,
        lab.generator(OUTSIDE, rate=RATE / 4) as outside,
    ):
        yield inside, outside


def lost(generator: Generator, targets: tuple[Target, ...]) -> dict[Target, int]:
    """Attempts that were decided otherwise than by a connection."""
    counts = generator.report.targets
    return {one: counts[one].refused + counts[one].timeout + counts[one].error for one in targets}


def early_sockets(lab: Lab, folder: Path) -> Process:
    """Start a program of the engine that makes its sockets now and uses them when told."""
    argv = ["python3", "-I", "-S", "-c", _EARLY_SOCKETS, *EARLY]
    process = lab.client.popen(argv, log=folder / "early", feed=True, cgroup=lab.engine_cgroup)
    process.wait_for_line("ready")
    return process


def use(process: Process) -> None:
    process.close_stdin()
    process.wait_for_line("done")


def check_pulls(lab: Lab, capture: Capture) -> None:
    """The engine itself: what is allowed works, what is not does not get out."""
    assert pull(lab, REFUSED_IMAGE).refused
    assert pull(lab, ALLOWED_IMAGE).worked
    assert syns_to(capture, REFUSED) == []


def test_the_engine_and_what_it_starts_have_a_cgroup_of_their_own(lab: Lab) -> None:
    """As on a machine where it has a slice: containers are elsewhere, on whatever network."""
    assert pull(lab, "busybox").worked
    options = ("run", "--detach", "--name=published", "--publish=5055:80", "busybox", "sleep", "60")
    assert docker(lab, *options).worked
    group = lab.engine_cgroup
    inside, moved = _programs(group), _programs(group.parent / "proxies")
    assert {"dockerd", "containerd"} <= inside
    assert "docker-proxy" not in inside
    assert moved == {"docker-proxy"}
    assert docker(lab, "rm", "--force", "published").worked
    said = docker(lab, "run", "--rm", "--network=host", "busybox", "cat", "/proc/self/cgroup")
    assert f"::/{lab.name}/" in said.everything
    assert lab.engine_group not in said.everything


def _programs(group: Path) -> set[str]:
    pids = (group / "cgroup.procs").read_text(encoding="ascii").split()
    return {Path(f"/proc/{pid}/exe").readlink().name for pid in pids}


def test_a_lab_without_that_cgroup_says_so() -> None:
    with pytest.raises(LabError, match="no cgroup for its engine"):
        _ = Lab().engine_cgroup


def test_control_without_ramnet_all_of_it_gets_through(lab: Lab, tmp_path: Path) -> None:
    early = early_sockets(lab, tmp_path)
    with lab.capture(everything=True) as capture:
        use(early)
        assert arrived(capture, *EARLY).keys() == set(EARLY)
        with stream(lab) as (inside, outside):
            inside.wait_attempts(PHASE)
        assert lost(inside, (*ALLOWED, *REFUSED)) == dict.fromkeys((*ALLOWED, *REFUSED), 0)
        assert lost(outside, OUTSIDE) == dict.fromkeys(OUTSIDE, 0)
        assert {(str(syn.dst), syn.dport) for syn in syns_to(capture, REFUSED)} == set(REFUSED)
        assert pull(lab, REFUSED_IMAGE).worked


def test_an_engine_that_was_there_before(
    lab: Lab, ramnet: Ramnet, rung: str, tmp_path: Path, cover: Cover
) -> None:
    daemon = ramnet(policy(CORP_REGISTRY, DUAL_REGISTRY), start=False)
    early = early_sockets(lab, tmp_path)
    with lab.capture(everything=True) as capture:
        with stream(lab) as (inside, outside):
            inside.wait_attempts(PHASE)
            daemon.start()
            ready = time.time()
            wait_leases(daemon, len(ALLOWED))
            inside.wait_attempts(3 * PHASE)
        use(early)
        passed = syns_to(capture, REFUSED)
        assert passed, "control: before the first ruleset the attempts are seen"
        assert [syn for syn in passed if syn.time > ready] == []
        assert lost(outside, OUTSIDE) == dict.fromkeys(OUTSIDE, 0)
        said = pull(lab, REFUSED_IMAGE)
        assert said.refused, said
        came = arrived(capture, *EARLY)
    assert status(daemon)["scope"]["mode"] == rung
    cover(SECTION, "restart: the engine was started before ramnet", rung, ENFORCED)
    row = "restart: a socket that the engine made before ramnet's first start, used afterwards"
    assert came == {}
    cover(SECTION, row, rung, ENFORCED)


def restart_everything(daemon: Daemon, inside: Generator) -> None:
    """Take the daemon through its life, with a phase of the stream in each part of it."""
    for text in (
        policy(CORP_REGISTRY, DUAL_REGISTRY, "quay.io"),
        policy(CORP_REGISTRY, DUAL_REGISTRY),
    ):
        put_policy(daemon, text)
        inside.wait_attempts(PHASE)
    with hung(daemon):
        inside.wait_attempts(PHASE)
    for end in (daemon.stop, daemon.kill):
        end()
        inside.wait_attempts(PHASE)
        daemon.start()
        inside.wait_attempts(PHASE)


def test_ramnet_reloads_hangs_stops_is_killed_and_starts_again(
    lab: Lab, ramnet: Ramnet, rung: str, cover: Cover
) -> None:
    daemon = ramnet.enforcing()
    with lab.capture() as capture:
        with stream(lab) as (inside, outside):
            restart_everything(daemon, inside)
        assert syns_to(capture, REFUSED) == []
        check_pulls(lab, capture)
    assert all(inside.report.targets[one].attempted > PHASE / 4 for one in REFUSED)
    assert lost(inside, ALLOWED) == dict.fromkeys(ALLOWED, 0)
    assert lost(outside, OUTSIDE) == dict.fromkeys(OUTSIDE, 0)
    cover(
        SECTION, "restart: ramnet reloaded, hung, stopped, killed and started again", rung, ENFORCED
    )
    row = "any other process, while ramnet or the engine restarts"
    cover(Section.HOST, row, rung, Outcome.FREE)


def test_the_engine_restarts_in_other_cgroups(
    lab: Lab, ramnet: Ramnet, rung: str, cover: Cover
) -> None:
    daemon = ramnet.enforcing()
    group = lab.engine_cgroup
    below = group / rung
    below.mkdir()
    with lab.capture() as capture:
        with stream(lab) as (_, outside):
            lab.engine.stop()
            lab.engine.start(cgroup=below)
            check_pulls(lab, capture)
            lab.engine.stop()
        wait_until(lambda: removed(below), END_SECONDS, "the end of the cgroup")
        for dead in (False, True):
            replace(group, daemon, dead=dead)
            made = time.time()
            with lab.generator(REFUSED, rate=RATE, cgroup=group) as inside:
                inside.wait_attempts(PHASE)
            leaked = [syn.time - made for syn in syns_to(capture, REFUSED)]
            assert [late for late in leaked if late > REFEED_SECONDS] == []
    lab.engine.start()
    with lab.capture() as capture:
        check_pulls(lab, capture)
    assert lost(outside, OUTSIDE) == dict.fromkeys(OUTSIDE, 0)
    cover(SECTION, "restart: the engine, in a new cgroup below its own", rung, ENFORCED)
    cover(SECTION, "restart: the engine's cgroup removed and made again", rung, ENFORCED)


def removed(group: Path) -> bool:
    """Remove a cgroup, unless a process that has ended still holds it."""
    with contextlib.suppress(OSError):
        group.rmdir()
        return True
    return False


def replace(group: Path, daemon: Daemon, *, dead: bool) -> None:
    """Remove an empty cgroup and make it again, under a running daemon or behind its back."""
    before = group.stat().st_ino
    if dead:
        daemon.kill()
    wait_until(lambda: removed(group), END_SECONDS, "the end of the cgroup")
    group.mkdir(exist_ok=True)  # a daemon that runs makes it as well
    assert group.stat().st_ino != before
    if dead:
        daemon.start()

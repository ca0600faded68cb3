"""``ramnet doctor REF`` against servers that are dead, mute, broken or hostile.

Whatever comes back, the walk ends soon, with an error that says where, and nothing that a server
sent reaches the terminal as it is.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from ramnet.lab.lab import Lab
from ramnet.lab.pki import Pki
from ramnet.lab.process import Process, wait_until
from ramnet.lab.programs import PYTHON_PATH
from ramnet.lab.ramnet import Daemon
from ramnet.lab.split import SplitRegistries
from ramnet.lab.topology import DNS_V4, DNS_V6
from tests.netns import bad_server
from tests.netns.bad_server import MODES
from tests.netns.doctoring import ALIEN, BAD, DEAD, V6, Told, ask_doctor, doctored_lab
from tests.netns.support import Ramnet, policy, remove_rules

# Two runs, each with what it waits for a server that says nothing.
pytestmark = [pytest.mark.netns, pytest.mark.timeout(400)]

DENIED = 1
# The whole walk, not one of its steps, has an end.
SECONDS = 45.0
# What a terminal would act upon; a line feed is ours.
CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
MEBIBYTE = 1 << 20
WALKERS = 8


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[Lab, SplitRegistries]]:
    with doctored_lab() as made:
        yield made


@pytest.fixture(scope="module")
def lab(world: tuple[Lab, SplitRegistries]) -> Lab:
    return world[0]


@pytest.fixture(scope="module")
def servers(world: tuple[Lab, SplitRegistries]) -> SplitRegistries:
    return world[1]


@pytest.fixture
def ramnet(lab: Lab) -> Iterator[Ramnet]:
    factory = Ramnet(lab, [], f'[scope]\nmode = "cgroup"\ncgroups = ["{lab.engine_group}"]\n')
    yield factory
    for daemon in factory.made:
        daemon.abandon()
    remove_rules(lab.client)


@pytest.fixture(scope="module")
def bad(lab: Lab, servers: SplitRegistries) -> Iterator[None]:
    """One bad server for each mode, and one whose certificate nobody trusts."""
    folder = lab.directory / "bad"
    folder.mkdir()
    (folder / "alien").mkdir()
    pair = lab.pki.issue("bad", BAD.values())
    alien = Pki(folder / "alien").issue("alien", [ALIEN])
    started = []
    for host, mode, certificate in [
        *((host, mode, pair) for mode, host in BAD.items()),
        (ALIEN, "silence", alien),
    ]:
        [address] = servers.addresses(host)
        argv = [sys.executable, "-I", bad_server.__file__, address, mode]
        argv += [str(certificate.certificate), str(certificate.key)]
        started.append(lab.world.popen(argv, log=folder / f"{host}.log"))
    for server in started:
        server.wait_for_line(bad_server.READY)
    yield
    for server in started:
        server.kill()


def no_harm(told: Told) -> None:
    """What holds for each walk, however it went."""
    assert told.status == DENIED, told.out
    assert told.seconds < SECONDS
    assert "Traceback" not in told.err
    assert CONTROLS.search(told.out + told.err) is None
    assert len(told.out) < MEBIBYTE


@pytest.fixture(scope="module")
def walks(lab: Lab, bad: None) -> dict[str, tuple[Told, Told]]:  # noqa: ARG001 - it has to be there
    """A walk to each bad server, as JSON and as text: side by side, as they mostly wait."""

    daemons = {mode: lab.daemon(policy(BAD[mode]), start=False) for mode in MODES}

    def walk(mode: str, *, as_json: bool) -> Told:
        return ask_doctor(daemons[mode], f"{BAD[mode]}/acme/app", as_json=as_json)

    with ThreadPoolExecutor(WALKERS) as pool:
        plain = pool.map(partial(walk, as_json=True), MODES)
        shown = pool.map(partial(walk, as_json=False), MODES)
        return dict(zip(MODES, zip(plain, shown, strict=True), strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_a_bad_server_is_told_and_does_no_harm(
    walks: dict[str, tuple[Told, Told]], mode: str
) -> None:
    told, shown = walks[mode]
    no_harm(told)
    no_harm(shown)
    assert told.last["host"] == BAD[mode]
    assert told.last["dialled"]
    assert told.last["error"]
    # It is no question of the policy.
    assert told.missing == {}
    assert BAD[mode] in shown.out


def test_a_dead_server_is_told(ramnet: Ramnet) -> None:
    told = ask_doctor(ramnet(policy(DEAD), start=False), f"{DEAD}/acme/app")
    no_harm(told)
    assert "refused" in told.last["error"]
    assert told.last["address"] == "198.51.100.94"


@pytest.mark.usefixtures("bad")
def test_a_certificate_that_nobody_trusts_is_told(ramnet: Ramnet) -> None:
    told = ask_doctor(ramnet(policy(ALIEN), start=False), f"{ALIEN}/acme/app")
    no_harm(told)
    assert "certificate" in told.last["error"]
    assert told.last["status"] is None


def test_a_name_that_dns_does_not_know_is_told(ramnet: Ramnet) -> None:
    told = ask_doctor(ramnet(policy("nowhere.example"), start=False), "nowhere.example/acme/app")
    no_harm(told)
    assert told.last["dns"]["addresses"] == []
    assert told.last["dns"]["error"]
    assert not told.last["dialled"]


def test_without_any_dns_the_walk_still_ends(lab: Lab, ramnet: Ramnet) -> None:
    lab.client.set_resolvers("192.0.2.99")
    try:
        told = ask_doctor(ramnet(policy(V6.api), start=False), f"{V6.api}/acme/app")
    finally:
        lab.client.set_resolvers(DNS_V4, DNS_V6)
    no_harm(told)
    assert told.last["host"] == V6.api
    assert told.last["dns"]["error"]


def walking(lab: Lab, daemon: Daemon, host: str) -> Process:
    """Start a walk as the engine and return when something of it is in the engines' group."""
    argv = [sys.executable, "-m", "ramnet", "doctor", f"{host}/acme/app", "--as", "engine"]
    argv += ["--policy", str(daemon.policy_file), "--config", str(daemon.config_file)]
    argv += ["--runtime-dir", str(daemon.runtime_dir)]
    env = {"PYTHONPATH": str(PYTHON_PATH)}
    walk = lab.client.popen(argv, log=daemon.runtime_dir / "walk.log", env=env)
    wait_until(lambda: inside(lab), SECONDS, "the walk in the engines' group")
    return walk


def inside(lab: Lab) -> bool:
    """Tell whether any process is in the engines' group, or below it."""
    files = lab.engine_cgroup.rglob("cgroup.procs")
    return any(file.read_text(encoding="utf-8").strip() for file in files)


def test_the_walk_of_the_engine_runs_in_its_group(
    lab: Lab, servers: SplitRegistries, ramnet: Ramnet
) -> None:
    """While a mute server is waited for, whoever dials it is below the engines' group."""
    pair = lab.pki.issue("mute", [DEAD])
    [address] = servers.addresses(DEAD)
    argv = [sys.executable, "-I", bad_server.__file__, address, "mute"]
    argv += [str(pair.certificate), str(pair.key)]
    server = lab.world.popen(argv, log=lab.directory / "mute.log")
    server.wait_for_line(bad_server.READY)
    walk = walking(lab, ramnet(policy(DEAD)), DEAD)
    server.kill()
    assert walk.wait(SECONDS) == DENIED
    assert not inside(lab)
    assert [one for one in lab.engine_cgroup.iterdir() if one.is_dir()] == []


@pytest.mark.usefixtures("bad")
def test_after_a_killed_walk_the_next_one_passes(lab: Lab, ramnet: Ramnet) -> None:
    daemon = ramnet(policy(BAD["mute"], "docker.io"))
    walking(lab, daemon, BAD["mute"]).kill()
    wait_until(lambda: not inside(lab), SECONDS, "the end of the walk")
    told = ask_doctor(daemon, "busybox", "--as", "engine")
    assert told.status == 0, told.out
    assert told.report["dialled_as"] == "engine"

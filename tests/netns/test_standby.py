"""Several distributions in one network namespace: one ramnet enforces, the others stand by.

Each distribution has mounts, processes, a configuration and a policy of its own. When the one that
enforces is killed, another adopts its table, and nothing leaks meanwhile.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from ramnet.host.wsl import engines_elsewhere
from ramnet.lab.generator import Generator
from ramnet.lab.lab import Lab
from ramnet.lab.process import wait_until
from ramnet.lab.programs import PYTHON_PATH
from ramnet.lab.sandbox import Sandbox
from ramnet.lab.topology import DNS_V4, DNS_V6
from ramnet.lab.world import CORP, DUAL, EVIL
from tests.netns.distros import Distro, Standing, distro, standing
from tests.netns.places import Place, outcomes, reach
from tests.netns.scoped import config
from tests.netns.scopeworld import program
from tests.netns.support import (
    CORP_REGISTRY,
    DUAL_REGISTRY,
    Target,
    policy,
    remove_rules,
    status,
    syns_to,
    table,
    wait_leases,
    wait_status,
)

pytestmark = pytest.mark.netns

# The other looks every half second, and has then to load its own table: one second on an idle
# machine, where 2 s are promised. The rest is slack for one with other work.
ADOPT_SECONDS = 2.0 + 3.0
RATE = 200.0
OF_CORP: Target = (CORP[0], 5000)
OF_DUAL: Target = (DUAL[0], 443)
REFUSED: list[Target] = [(address, port) for address in EVIL for port in (443, 8443)]
MINE = {OF_CORP: {"reached"}, OF_DUAL: {"refused"}}
YOURS = {OF_CORP: {"refused"}, OF_DUAL: {"reached"}}
_numbers = count(1)


@dataclass(frozen=True, slots=True)
class House:
    """A lab, and a second distribution beside its client."""

    lab: Lab
    other: Distro

    def engine(self, place: Sandbox) -> Place:
        """A program in the engines' cgroup, as a process of one of the distributions."""
        return program(place, self.lab.engine_cgroup)

    def folder(self) -> Path:
        return self.lab.directory / f"standing-{next(_numbers)}"


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with Lab(engine_cgroup=True) as lab, distro(lab, "other", DNS_V4, DNS_V6) as other:
        yield House(lab, other)


@dataclass(frozen=True, slots=True)
class Two:
    """A daemon that enforces in the first distribution, and one that stands by in the other."""

    house: House
    first: Standing
    second: Standing


@pytest.fixture(params=["cgroup", "mark"])
def two(house: House, request: pytest.FixtureRequest) -> Iterator[Two]:
    text = config(house.lab, request.param)
    with ExitStack() as stack:
        stack.callback(remove_rules, house.lab.client)
        first, second = (
            stack.enter_context(standing(place, house.folder(), policy(registry), text))
            for place, registry in ((house.lab.client, CORP_REGISTRY), (house.other, DUAL_REGISTRY))
        )
        first.start()
        wait_leases(first, 1)
        second.start(wait=False)
        second.wait_state("standby")
        yield Two(house, first, second)


def rules(house: House) -> str:
    """The table as it is, without what it has counted."""
    argv = ["nft", "-s", "-a", "list", "table", "inet", "ramnet"]
    return house.lab.client.run(argv).stdout


def test_the_policy_of_the_first_holds_for_the_engines_of_both(two: Two) -> None:
    house = two.house
    before = rules(house)
    assert status(two.first)["policy"]["registries"] == [CORP_REGISTRY]
    with house.lab.capture() as capture:
        for place in (house.lab.client, house.other):
            engine = house.engine(place)
            assert reach(engine, MINE) == MINE
            assert outcomes(engine, REFUSED) == {"refused"}
        assert syns_to(capture, [*REFUSED, OF_DUAL]) == []
    # What stands by touches nothing, and claims nothing.
    said = status(two.second)
    assert said["state"] == "standby"
    assert said["policy"]["registries"] == []
    assert {item["enforced"] for item in said["classes"].values()} == {"unknown"}
    assert "another ramnet enforces its own policy" in said["because"]
    assert two.second.cli("status").returncode == 0
    assert two.second.cli("explain", "quay.io").returncode == 1
    assert two.second.cli("off").returncode == 1
    assert rules(house) == before
    assert two.first.running


def test_another_adopts_the_table_of_one_that_is_killed(two: Two) -> None:
    house = two.house
    log = house.lab.directory / f"counts-{next(_numbers)}"
    made = Generator(house.lab.client, log, REFUSED, rate=RATE, cgroup=house.lab.engine_cgroup)
    with house.lab.capture() as capture, made as generator:
        generator.wait_attempts(20)
        began = time.monotonic()
        two.first.kill()
        wait_until(lambda: "state=enforcing" in two.second.log, 10.0, "the other takes over")
        took = time.monotonic() - began
        generator.wait_attempts(100)
        report = generator.stop()
        assert syns_to(capture, REFUSED) == []
    assert report.total.refused == report.total.attempted
    said = f"taken over {took:.2f} s after the kill; {report.total.attempted} attempts, no SYN"
    sys.stdout.write(f"{said}\n")
    assert took < ADOPT_SECONDS
    wait_leases(two.second, 1)
    for place in (house.lab.client, house.other):
        assert reach(house.engine(place), YOURS) == YOURS
    assert status(two.second)["policy"]["registries"] == [DUAL_REGISTRY]
    # The first comes back, and finds its place taken.
    two.first.start(wait=False)
    two.first.wait_state("standby")
    assert reach(house.engine(house.other), YOURS) == YOURS


def test_one_that_stops_hands_over_and_off_ends_all_of_it(two: Two) -> None:
    assert two.first.stop() == 0
    two.second.wait_state("enforcing")
    wait_leases(two.second, 1)
    two.first.start(wait=False)
    two.first.wait_state("standby")
    # A stop while standing by is a clean one, and leaves the rules of the other alone.
    assert two.first.stop() == 0
    assert reach(two.house.engine(two.house.lab.client), YOURS) == YOURS
    assert two.second.cli("off").returncode == 0
    assert two.second.wait() == 0
    assert table(two.house.lab.client) == ""


def test_a_policy_that_is_changed_while_standing_by_is_the_one_that_is_adopted(two: Two) -> None:
    two.second.write_policy(policy(CORP_REGISTRY, DUAL_REGISTRY))
    two.first.kill()
    two.second.wait_state("enforcing")
    wait_status(two.second, lambda said: said["leases"] >= 2, "the look-ups")
    engine = two.house.engine(two.house.other)
    assert outcomes(engine, [OF_CORP, OF_DUAL]) == {"reached"}
    assert outcomes(engine, REFUSED) == {"refused"}


@pytest.mark.parametrize("rung", ["cgroup", "mark"])
def test_engines_in_a_cgroup_of_another_name_are_not_told_apart(house: House, rung: str) -> None:
    """All have to be told the same names: the rules know those of the first only. This is seen."""
    group = house.lab.engine_cgroup.with_name("elsewhere")
    group.mkdir(parents=True, exist_ok=True)
    names = [house.lab.engine_group, str(Path(house.lab.engine_group).with_name("elsewhere"))]
    place = program(house.other, group)
    text = config(house.lab, rung)
    with standing(house.lab.client, house.folder(), policy(CORP_REGISTRY), text) as first:
        first.start()
        try:
            assert outcomes(place, REFUSED) == {"reached"}
            assert asked(house.other, "strange_groups", *names) == [names[1]]
        finally:
            first.abandon()
            remove_rules(house.lab.client)


def asked(place: Sandbox, function: str, *paths: str) -> Any:
    """What a function about cgroups says in a distribution."""
    script = (
        "import json, sys; from ramnet.host import wsl;"
        "print(json.dumps(getattr(wsl, sys.argv[1])(sys.argv[2:])))"
    )
    argv = [sys.executable, "-c", script, function, *paths]
    return json.loads(place.run(argv, env={"PYTHONPATH": str(PYTHON_PATH)}).stdout)


def test_engines_of_another_distribution_are_seen_by_their_cgroup(house: House) -> None:
    group = house.lab.engine_cgroup
    group.mkdir(parents=True, exist_ok=True)

    def seen(place: Sandbox) -> int:
        return int(asked(place, "engines_elsewhere", str(group)))

    assert seen(house.lab.client) == 0
    log = house.lab.directory / f"sleeper-{next(_numbers)}"
    sleeper = house.other.popen(["sleep", "60"], log=log, cgroup=group)
    try:
        wait_until(lambda: seen(house.lab.client) == 1, 5.0, "the process of the other")
        assert seen(house.other) == 0
        assert engines_elsewhere([group]) == 0  # from outside of both all are seen
    finally:
        sleeper.kill()

"""A boot as WSL2 boots a distribution without systemd: the hook starts ramnet, then Docker.

Not WSL2 itself, but a Debian kernel with an init that does what WSL's does; see
``tests/vm/guest/wslinit``. The far side sees what leaves the machine from power-on.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ramnet.host.wsl import HOOK
from ramnet.lab.capture import Capture
from ramnet.lab.world import EVIL
from tests.vm.vm import Vm, VmError
from tests.vm.world import VmWorld

pytestmark = [pytest.mark.vm, pytest.mark.thorough, pytest.mark.timeout(900)]

INIT = "/mnt/code/tests/vm/guest/wslinit"
ALLOWED = "registry.corp.example:5000/acme/app"
REFUSED = "evil.example/acme/app"
START = "service docker start"
# What was in wsl.conf before: as soon as there is an engine it pulls, again and again.
PULLING = f"while :; do docker pull {REFUSED}; sleep 5; done"
LOG = "/var/log/ramnet.log"
START_SECONDS = 120.0  # ten times what it takes on an idle machine
ENGINE_SECONDS = 240.0
PULL_SECONDS = 120.0
# An emulated machine starts few programs a second, and there are fifty in the hook. The other one
# is for Python, which has to start and to probe the kernel.
HOOK_SECONDS, PYTHON_SECONDS = 20.0, 60.0


@dataclass(frozen=True, slots=True)
class Booted:
    """A machine that was started by the hook, and all that has left it since it was switched on."""

    vm: Vm
    capture: Capture
    control: int  # connections to the refused registry from the boot before, without the hook

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.vm.run("ramnet status --json", check=False).out)
        return found

    def wait_enforcing(self) -> None:
        state = 'ramnet status --json | grep -q \'"state": "enforcing"\''
        self.vm.wait_for(state, seconds=START_SECONDS)

    def pids(self, pattern: str) -> list[str]:
        return self.vm.run(f"pgrep {pattern}", check=False).out.split()

    def pulls(self, image: str) -> bool:
        return self.vm.run(f"docker pull {image}", seconds=PULL_SECONDS, check=False).status == 0


def wait_engine(vm: Vm) -> None:
    try:
        vm.wait_for("docker version", seconds=ENGINE_SECONDS)
    except VmError as err:
        logs = vm.run(f"tail -n 40 {LOG} /var/log/docker.log; ps -e -o pid,time,args", check=False)
        raise VmError(f"{err}\n{logs.out}") from err


@pytest.fixture(scope="module")
def booted(world: VmWorld, installed: Path) -> Iterator[Booted]:
    vm = world.machine(installed, init=INIT)
    with world.capture() as capture:
        # The control: a boot at which nobody starts ramnet.
        vm.power_on()
        world.trust(vm)
        vm.run(START)
        wait_engine(vm)
        done = vm.run(f"docker pull {REFUSED} && docker rmi {REFUSED}", seconds=PULL_SECONDS)
        assert not done.status
        control = len(capture.to(EVIL))
    vm.put("/etc/wsl.conf", f"[automount]\nenabled = false\n[boot]\ncommand = {PULLING}\n")
    said = vm.run(f"ramnet wsl install --engine-command '{START}'").out
    assert "in the engines' cgroup, as it names one" in said
    vm.run("service docker stop; sync", check=False)
    vm.power_off()
    with world.capture() as capture:
        vm.power_on()
        # Nothing else is asked of the machine meanwhile.
        vm.wait_for("test -s /run/hook.time", seconds=START_SECONDS)
        made = Booted(vm, capture, control)
        made.wait_enforcing()
        wait_engine(vm)
        yield made
    vm.power_off()


def test_the_hook_returns_at_once(booted: Booted) -> None:
    times = {}
    for name in ("bare", "hook"):
        before, after, status = booted.vm.get(f"/run/{name}.time").split()
        assert status == "0"
        times[name] = float(after) - float(before)
    scope = booted.status()["scope"]["mode"]
    sys.stdout.write(
        f"the hook took {times['hook']:.2f} s, a bare `sh -c :` {times['bare']:.2f} s,"
    )
    sys.stdout.write(f" scope {scope}\n")
    # Marks are nothing that nft could set: there Python has to.
    log, by_nft = booted.vm.get(LOG), scope == "cgroup"
    by_python = re.search("ramnet: (engines are locked|rules are in force)", log)
    assert (by_python is None) is by_nft, log
    assert times["hook"] < times["bare"] + (HOOK_SECONDS if by_nft else PYTHON_SECONDS), log


def test_docker_is_in_the_cgroup_of_engines(booted: Booted) -> None:
    for name in ("dockerd", "containerd"):
        [pid] = booted.pids(f"-x {name}")
        # Of the hierarchies of v1, which Docker's own script mounts where it can, none counts.
        groups = booted.vm.get(f"/proc/{pid}/cgroup").splitlines()
        assert groups[-1] == "0::/ramnetengines.slice"


def test_pulls_are_judged_and_nothing_has_left_since_power_on(booted: Booted) -> None:
    assert booted.control, "without ramnet the registry is reached"
    assert booted.pulls(ALLOWED)
    assert not booted.pulls(REFUSED)
    assert f"docker pull {REFUSED}" in booted.vm.get(LOG)  # as wsl.conf has asked for at the start
    assert booted.capture.to(EVIL) == ()
    assert booted.status()["state"] == "enforcing"


def test_a_container_runs(booted: Booted) -> None:
    run = "docker run --rm --security-opt apparmor=unconfined"
    done = booted.vm.run(f"{run} {ALLOWED} echo hello", seconds=PULL_SECONDS)
    assert done.out == "hello\n"


def test_status_says_how_it_was_started(booted: Booted) -> None:
    said = json.loads(booted.vm.run("ramnet wsl status --json").out)
    assert (said["start"], said["daemon"], said["rules_in_force"]) == ("hook", "enforcing", True)
    assert said["hook"]["engine_command"] == START
    assert said["hook"]["earlier_command"] == PULLING
    assert said["systemd"] == {"configured": None, "running": False}
    assert said["docker_desktop"]["found"] is False
    assert said["warnings"] == []


def test_a_second_run_of_the_hook_starts_nothing_twice(booted: Booted) -> None:
    before = [booted.pids(pattern) for pattern in ("-x dockerd", "-f '[r]amnet run'")]
    booted.vm.run(HOOK)
    booted.vm.wait_for(f"grep -q 'is supervised already' {LOG}", seconds=START_SECONDS)
    assert [booted.pids(pattern) for pattern in ("-x dockerd", "-f '[r]amnet run'")] == before
    assert [len(pids) for pids in before] == [1, 1]


def test_a_daemon_that_is_killed_is_started_again(booted: Booted) -> None:
    [first] = booted.pids("-f '[r]amnet run'")
    booted.vm.run(f"kill -9 {first}")
    assert not booted.pulls(REFUSED)  # nobody is there, and the rules are
    booted.vm.wait_for(f"grep -q 'ended with status 137' {LOG}", seconds=START_SECONDS)
    booted.wait_enforcing()
    [second] = booted.pids("-f '[r]amnet run'")
    assert second != first
    assert booted.pulls(ALLOWED)
    assert booted.capture.to(EVIL) == ()


def test_what_was_installed_is_taken_out_again(booted: Booted) -> None:
    said = booted.vm.run("ramnet wsl uninstall").out
    assert "rules are in force until the distributions end" in said
    conf = f"[automount]\nenabled = false\n[boot]\ncommand = {PULLING}\n"
    assert booted.vm.get("/etc/wsl.conf") == conf
    booted.vm.run(f"{HOOK} stop")
    assert not booted.pids("-f '[r]amnet run'")
    assert not booted.pulls(REFUSED)
    assert booted.capture.to(EVIL) == ()

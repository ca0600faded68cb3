"""The service on a real machine: installed, at work, in trouble, upgraded, removed.

One machine, in the order of this file; the far side is the judge of what gets through.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from ramnet.lab.world import CORP, EVIL, GHCR
from tests.vm.installing import (
    INSTALL_SECONDS,
    POLICY,
    POLICY_FILE,
    RAMNET,
    READY_SECONDS,
    another_checkout,
    install_on,
    shown,
    status,
    wait_enforcing,
)
from tests.vm.kernels import Kernel
from tests.vm.vm import Vm, VmError
from tests.vm.world import VmWorld

pytestmark = pytest.mark.timeout(900)

EXPOSURE, EXPOSURE_OF_NOTICE = 2.0, 0.6
NOTICE_SECONDS = 60.0
PULL_SECONDS = 90.0
# The image of a container needs no AppArmor here: its program that loads profiles is not installed.
RUN = "docker run --detach --security-opt apparmor=unconfined"
ALLOWED = "registry.corp.example:5000/acme/app"
REFUSED = ("evil.example/acme/app", "ghcr.io/acme/app")
NEWER, BROKEN = "/root/newer", "/root/broken"
NEW_VERSION = "9.9.9"
CHANGE = f"""sed -i 's/^__version__ = .*/__version__ = "{NEW_VERSION}"/' ramnet/__init__.py"""
WATCHDOG_SECONDS = 20.0
# What the kernel has no `socket cgroupv2` for is told by a mark.
WITHOUT_CGROUP = ("5.10",)

# What an uninstall must leave as it was: all but what runs and what engines and systemd write.
SNAPSHOT = r"""
cd / && find . -xdev \( -path ./proc -o -path ./sys -o -path ./dev -o -path ./run -o -path ./tmp \
    -o -path ./root -o -path ./mnt -o -path ./var/lib/docker -o -path ./var/lib/containerd \
    -o -path ./var/log -o -path ./var/lib/systemd -o -path ./var/tmp \) -prune \
    -o -type f -printf '%p %m %U %G %s\n' -o -printf '%p %m %U %G %l\n' | sort
"""

# In the engines' slice: who is to be refused, and who is to be reached, again and again.
STREAM = f"""\
import json, signal, socket, sys, time
done = False
def stop(*_):
    global done
    done = True
signal.signal(signal.SIGTERM, stop)
said = {{"refused": {{}}, "allowed": {{}}}}
while not done:
    for kind, address, port in ("refused", "{EVIL[0]}", 443), ("allowed", "{CORP[0]}", 5000):
        try:
            socket.create_connection((address, port), 5).close()
            word = "connected"
        except OSError as err:
            word = type(err).__name__
        said[kind][word] = said[kind].get(word, 0) + 1
    time.sleep(0.05)
json.dump(said, open("/root/stream.json", "w"))
"""


@dataclass
class Machine:
    """The machine, and what is remembered of it from one test to the next."""

    vm: Vm
    snapshot: str = ""
    release: str = ""
    engines: dict[str, str] = field(default_factory=dict)

    def pull(self, image: str) -> bool:
        """Pull an image that is not there; whether it could be."""
        self.vm.run(f"docker image rm --force {image}", check=False)
        done = self.vm.run(f"docker pull --quiet {image}", seconds=PULL_SECONDS, check=False)
        return done.status == 0

    def judged(self, world: VmWorld) -> None:
        """What is listed is pulled, and of all else not a packet gets through."""
        with world.capture() as capture:
            assert [image for image in REFUSED if self.pull(image)] == []
            assert self.pull(ALLOWED)
            assert not capture.to((*EVIL, *GHCR))
            assert capture.to(CORP)

    def exposure(self, unit: str) -> float:
        """Return what systemd makes of a unit, from 0 (left with nothing) to 10."""
        said = self.vm.run(f"systemd-analyze security --no-pager {unit}").out
        level = re.search(rf"Overall exposure level for {unit}: ([0-9.]+)", said)
        assert level is not None, said
        return float(level[1])

    def rights(self, unit: str) -> list[str]:
        """Return the capabilities and so on that the process of a unit has."""
        file = f"/proc/{shown(self.vm, unit, 'MainPID')}/status"
        return self.vm.run(f"grep -E '^(CapEff|Seccomp|NoNewPrivs):' {file}").out.split()

    def current(self) -> str:
        return self.vm.run("readlink /opt/ramnet/current").out.strip().removeprefix("releases/")

    def daemon(self) -> str:
        return shown(self.vm, "ramnet.service", "MainPID")

    def wait_other(self, pid: str, seconds: float, unit: str = "ramnet.service") -> None:
        """Wait until another process than this one is ready, of the daemon or of another unit."""
        # One at a time: in what order several are told depends on the version of systemd.
        main, state = (
            f"$(systemctl show --property={key} --value {unit})"
            for key in ("MainPID", "ActiveState")
        )
        self.vm.wait_for(
            f'set -- {main} {state}; [ "$1" != {pid} ] && [ "$1" != 0 ] && [ "$2" = active ]',
            seconds=seconds,
        )

    def pids(self) -> dict[str, str]:
        """Return who must not notice anything: engines, a container, its docker-proxy, the lock."""
        found = {
            unit: shown(self.vm, unit, "MainPID")
            for unit in ("docker.service", "containerd.service")
        }
        found["box"] = self.vm.run("docker inspect --format '{{.State.Pid}}' box").out
        found["proxy"] = self.vm.run("pgrep docker-proxy").out
        found["lock"] = shown(self.vm, "ramnet-lock.service", "ActiveEnterTimestampMonotonic")
        return found


@pytest.fixture(scope="module")
def machine(world: VmWorld) -> Iterator[Machine]:
    vm = world.machine()
    vm.power_on()
    vm.settle()
    world.trust(vm)
    vm.run("systemctl restart docker")  # which reads whom to trust when it starts
    yield Machine(vm)
    vm.power_off()


def test_without_ramnet_all_is_pulled(machine: Machine, world: VmWorld) -> None:
    with world.capture() as capture:
        assert machine.pull(REFUSED[0])
        assert capture.to(EVIL)
    # Its shim would keep containerd in the cgroup where it is.
    machine.vm.run(f"{RUN} --name early {REFUSED[0]} sleep 100000", seconds=90)
    machine.snapshot = machine.vm.run(SNAPSHOT).out


def test_install(machine: Machine, kernel: Kernel) -> None:
    vm = machine.vm
    said = install_on(vm)
    assert "NOT judged" not in said.err
    wait_enforcing(vm)
    found = status(vm)
    assert found["scope"]["mode"] == ("mark" if kernel.name in WITHOUT_CGROUP else "cgroup")
    assert found["classes"]["engine"]["enforced"] == "strict"
    assert found["dns"]["mode"] == "hold"
    assert "state " in said.out
    assert vm.run(f"{RAMNET} check").status == 0
    for engine in ("docker.service", "containerd.service"):
        assert shown(vm, engine, "ControlGroup") == f"/ramnetengines.slice/{engine}"
    machine.release = machine.current()


def test_the_running_daemon_is_left_with_little(machine: Machine) -> None:
    assert machine.exposure("ramnet.service") <= EXPOSURE
    held = machine.rights("ramnet.service")
    assert held == ["CapEff:", f"{1 << 12:016x}", "NoNewPrivs:", "1", "Seccomp:", "2"]


def test_a_refused_client_is_told_by_somebody_without_any_right(machine: Machine) -> None:
    vm, unit = machine.vm, "ramnet-notice.service"
    told = f"docker pull {REFUSED[0]} 2>&1 | grep registry-access-denied-by-acme"
    vm.wait_for(told, seconds=NOTICE_SECONDS)
    assert machine.exposure(unit) <= EXPOSURE_OF_NOTICE
    assert machine.rights(unit) == ["CapEff:", f"{0:016x}", "NoNewPrivs:", "1", "Seccomp:", "2"]
    pid = shown(vm, unit, "MainPID")
    assert vm.run(f"stat -c %u /proc/{pid}").out.strip() not in ("0", "65534")
    # One that hangs holds its clients: it is exchanged.
    vm.run(f"kill -STOP {pid}")
    machine.wait_other(pid, NOTICE_SECONDS, unit)
    vm.wait_for(told, seconds=NOTICE_SECONDS)


def test_what_the_policy_lists_is_pulled_and_nothing_else(machine: Machine, world: VmWorld) -> None:
    machine.judged(world)
    said = machine.vm.run(f"{RAMNET} explain {REFUSED[0]}", check=False)
    assert said.status == 1


def test_published_ports_are_reached_through_a_proxy_outside(machine: Machine) -> None:
    vm = machine.vm
    serve = "mkdir /w && echo here >/w/index.html && exec busybox httpd -f -p 80 -h /w"
    vm.run(f"{RUN} --name box --publish 8080:80 {ALLOWED} /bin/sh -c '{serve}'", seconds=90)
    vm.wait_for("docker inspect box | grep '\"Running\": true'", seconds=30)
    script = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8080/').read())"
    vm.wait_for(f'python3 -c "{script}" | grep here', seconds=30)
    groups = vm.run("for pid in $(pgrep docker-proxy); do grep ^0:: /proc/$pid/cgroup; done").out
    assert set(groups.split()) == {"0::/ramnetproxy.slice"}
    machine.engines = machine.pids()


def test_a_killed_daemon_leaves_its_rules_and_comes_back(machine: Machine, world: VmWorld) -> None:
    before = machine.daemon()
    with world.capture() as capture:
        machine.vm.run(f"kill -9 {before}")
        assert not machine.pull(REFUSED[0])
        assert not capture.to(EVIL)
    machine.wait_other(before, READY_SECONDS)
    wait_enforcing(machine.vm)
    assert shown(machine.vm, "ramnet.service", "NFileDescriptorStore") == "3"


@pytest.mark.thorough("6.1")
def test_a_hung_daemon_is_found_and_ended(machine: Machine) -> None:
    before = machine.daemon()
    machine.vm.run(f"kill -STOP {before}")
    machine.wait_other(before, WATCHDOG_SECONDS + READY_SECONDS)
    log = machine.vm.run("journalctl --unit ramnet.service --output cat --lines 200").out
    assert "Fatal Python error: Aborted" in log
    assert "in _read" in log  # where each of its threads was


@pytest.mark.thorough("6.1")
def test_an_upgrade_that_is_interrupted_leaves_the_old_daemon_at_work(machine: Machine) -> None:
    """In the worst moment: the new release is in use, the old daemon runs. The next one ends it."""
    vm, before = machine.vm, machine.daemon()
    another_checkout(vm, NEWER, CHANGE)
    interrupted = f"""
        setsid --fork sh -c 'echo $$ >/root/pid; exec {NEWER}/bootstrap install' >/root/log 2>&1
        until readlink /opt/ramnet/current | grep {NEW_VERSION}; do sleep 0.05; done
        pkill -KILL -g "$(cat /root/pid)"
    """
    vm.run(interrupted, seconds=INSTALL_SECONDS)
    assert machine.daemon() == before
    assert len(vm.run("ls /opt/ramnet/releases").out.split()) == 2


def test_upgrade_under_load(machine: Machine, world: VmWorld) -> None:
    """Neither is anything let through meanwhile, nor does anybody have to be restarted."""
    vm = machine.vm
    another_checkout(vm, NEWER, CHANGE)
    vm.put("/root/stream.py", STREAM)
    unit = "systemd-run --quiet --unit=stream --slice=ramnetengines.slice"
    with world.capture() as capture:
        vm.run(f"{unit} python3 /root/stream.py")
        before = machine.daemon()
        done = vm.run(
            f"RAMNET_READY_SECONDS=120 {NEWER}/bootstrap install", seconds=INSTALL_SECONDS
        )
        vm.run("systemctl stop stream")
        assert not capture.to(EVIL)
    assert machine.daemon() != before
    assert machine.current().startswith(f"{NEW_VERSION}-")
    assert vm.run("ls /opt/ramnet/releases").out.split() == [machine.current()], done
    assert machine.pids() == machine.engines
    said = json.loads(vm.get("/root/stream.json"))
    # To the notice, or refused while the daemon that vouches for it is exchanged.
    assert set(said["refused"]) <= {"connected", "ConnectionRefusedError"}, said
    assert set(said["allowed"]) == {"connected"}, said
    assert vm.get(POLICY_FILE) == POLICY


@pytest.mark.thorough("6.1")
def test_the_same_release_again_puts_right_what_is_missing(machine: Machine) -> None:
    vm = machine.vm
    before = machine.daemon()
    vm.run(f"rm {RAMNET} /etc/systemd/system/docker.service.d/10-ramnet.conf")
    vm.run(f"{NEWER}/bootstrap install", seconds=INSTALL_SECONDS)
    assert vm.run(f"{RAMNET} version").out == f"ramnet {NEW_VERSION}\n"
    assert machine.pids() == machine.engines
    # A drop-in was put back, so units were read anew, and the daemon with them.
    assert machine.daemon() != before
    before = machine.daemon()
    vm.run(f"{NEWER}/bootstrap install", seconds=INSTALL_SECONDS)
    assert machine.daemon() == before


@pytest.mark.thorough("6.1")
def test_a_release_that_does_not_start_is_taken_back(machine: Machine, world: VmWorld) -> None:
    vm = machine.vm
    another_checkout(vm, BROKEN, "echo 'raise RuntimeError(\"broken\")' >>ramnet/daemon.py")
    vm.put("/root/other.toml", POLICY.replace("acme", "other"))
    # The one before has as long: emulated, it takes more than 15 s.
    broken = f"RAMNET_READY_SECONDS=60 {BROKEN}/bootstrap install --policy /root/other.toml"
    with world.capture() as capture:
        said = vm.run(broken, seconds=INSTALL_SECONDS, check=False)
        assert not machine.pull(REFUSED[0])
        assert not capture.to(EVIL)
    assert said.status == 1
    assert "RuntimeError: broken" in said.err
    assert "the one before enforces again" in said.err
    assert machine.current().startswith(f"{NEW_VERSION}-")
    assert vm.run("ls /opt/ramnet/releases").out.split() == [machine.current()]
    assert vm.get(POLICY_FILE) == POLICY
    assert machine.pids() == machine.engines
    wait_enforcing(vm)


@pytest.mark.thorough("6.1")
def test_what_cannot_be_installed_changes_nothing(machine: Machine) -> None:
    vm = machine.vm
    before = machine.daemon()
    vm.put("/root/bad.toml", 'version = 1\norganization = "acme"\nregistries = []\n')
    install = f"{NEWER}/bootstrap install --policy"
    said = vm.run(f"{install} /root/bad.toml", seconds=INSTALL_SECONDS, check=False)
    assert (said.status, "registries" in said.err) == (1, True), said
    assert vm.get(POLICY_FILE) == POLICY
    assert machine.daemon() == before


def test_after_a_reboot_it_is_in_force(machine: Machine, world: VmWorld) -> None:
    vm = machine.vm
    with world.capture() as capture:
        vm.reboot()
        try:
            vm.settle()
        except VmError:
            sys.stdout.write(
                vm.run("journalctl --boot --output short-monotonic --lines 300", check=False).out
            )
            raise
        assert not capture.to((*EVIL, *GHCR))
    wait_enforcing(vm)
    machine.judged(world)


def test_uninstall_says_who_is_no_longer_judged(machine: Machine) -> None:
    machine.engines["docker.service"] = shown(machine.vm, "docker.service", "MainPID")
    said = machine.vm.run(f"{NEWER}/bootstrap uninstall --purge", seconds=120)
    assert "docker.service run on and are not judged" in said.err


def test_uninstall_leaves_no_rule_and_no_unit(machine: Machine) -> None:
    vm = machine.vm
    assert vm.run("nft list tables | grep ramnet", check=False).out == ""
    files = vm.run("systemctl list-unit-files --no-legend 'ramnet*'", check=False).out.splitlines()
    assert [line for line in files if not line.startswith("ramnet-vm-agent.")] == []


def test_uninstall_leaves_no_file(machine: Machine) -> None:
    vm = machine.vm
    assert vm.run("ls -d /run/ramnet /var/cache/ramnet-bootstrap", check=False).out == ""
    before, after = (set(text.splitlines()) for text in (machine.snapshot, vm.run(SNAPSHOT).out))
    assert sorted(before ^ after) == []


def test_after_an_uninstall_engines_run_on_and_pull_all(machine: Machine, world: VmWorld) -> None:
    assert shown(machine.vm, "docker.service", "MainPID") == machine.engines["docker.service"]
    with world.capture() as capture:
        assert machine.pull(REFUSED[0])
        assert capture.to(EVIL)


def test_after_an_uninstall_an_engine_starts_in_its_old_place(machine: Machine) -> None:
    machine.vm.run("systemctl restart docker")
    assert shown(machine.vm, "docker.service", "ControlGroup") == "/system.slice/docker.service"

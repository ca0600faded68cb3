"""The hook of WSL2 without systemd, as WSL runs it: ``/bin/sh -c`` of what /etc/wsl.conf says.

It is installed where it belongs, in a machine whose /opt and /var are its own.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ramnet.core.wslconf import COMMAND, parse
from ramnet.host.cgroups import mount_point
from ramnet.host.wsl import HOOK
from ramnet.lab.lab import Lab
from ramnet.lab.process import wait_until
from ramnet.lab.programs import PYTHON_PATH
from ramnet.lab.sandbox import Sandbox
from ramnet.lab.world import EVIL
from tests.netns.places import outcomes
from tests.netns.scoped import config
from tests.netns.scopeworld import program
from tests.netns.support import (
    ALLOWED,
    CORP_REGISTRY,
    DUAL_REGISTRY,
    Target,
    policy,
    remove_rules,
    syns_to,
    table,
)

pytestmark = pytest.mark.netns

SYSTEMD = Path(__file__).parents[2] / "systemd"
RELEASE = "/opt/ramnet/releases/one"
KERNEL = "5.15.167.4-microsoft-standard-WSL2"
READY_SECONDS = 40.0  # on a machine that does much else
REFUSED: list[Target] = [(address, 443) for address in EVIL]
LOG = "/var/log/ramnet.log"

_MOUNTS = """
set -e
for folder in opt var; do
    mkdir -p /run/.$folder/upper /run/.$folder/work
    mount -t overlay -o lowerdir=/$folder,upperdir=/run/.$folder/upper,workdir=/run/.$folder/work \
        lab /$folder
done
mkdir -p /opt/ramnet /var/log /run/WSL
echo "$1" >/run/osrelease
mount --bind /run/osrelease /proc/sys/kernel/osrelease
"""
# An engine: it writes down where it runs, and stays.
ENGINE = (
    "nft list tables >>/run/engine.tables; cat /proc/self/cgroup >>/run/engine.starts;"
    " setsid sleep 600 >/dev/null 2>&1 </dev/null &"
)
CRON = "cat /proc/self/cgroup >>/run/cron.starts"


@dataclass(frozen=True, slots=True)
class House:
    """A distribution without systemd, with ramnet installed."""

    lab: Lab

    @property
    def client(self) -> Sandbox:
        return self.lab.client

    def sh(self, script: str, *, check: bool = True) -> str:
        return self.client.run(["sh", "-c", script], check=check).stdout

    def ramnet(self, *args: str, check: bool = True) -> str:
        return self.client.run([f"{RELEASE}/venv/bin/ramnet", *args], check=check).stdout

    def boot(self) -> float:
        """Run what WSL runs, and return how many seconds it took."""
        found = parse(self.client.path("/etc/wsl.conf").read_bytes()).first(COMMAND)
        assert found is not None
        begin = time.monotonic()
        self.client.run(["/bin/sh", "-c", found.value.decode()])
        return time.monotonic() - begin

    def log(self) -> str:
        return self.sh(f"cat {LOG}", check=False)

    def leases(self) -> int:
        """How many addresses the daemon has opened."""
        said = self.client.run([f"{RELEASE}/venv/bin/ramnet", "status", "--json"], check=False)
        return int(json.loads(said.stdout).get("leases", 0))

    def wait_log(self, text: str, times: int = 1) -> None:
        wait_until(lambda: self.log().count(text) >= times, READY_SECONDS, f"log: {text}")

    def lines(self, file: str) -> list[str]:
        return self.sh(f"cat {file}", check=False).splitlines()

    def daemons(self) -> list[str]:
        return self.client.run(["pgrep", "-f", "ramnet run --standby"], check=False).stdout.split()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(engine_cgroup=True) as made:
        made.client.run(["sh", "-c", _MOUNTS, "mounts", KERNEL])
        yield made


@pytest.fixture
def house(lab: Lab) -> Iterator[House]:
    made = House(lab)
    client = lab.client
    made.sh(f"rm -rf /opt/ramnet/* /var/lib/ramnet {LOG} {LOG}.1 /run/ramnet /run/*.starts")
    made.sh("rm -rf /run/engine.tables /etc/wsl.conf* /etc/ramnet")
    for name in ("ramnet-boot", "ramnet-lock"):
        client.write(f"{RELEASE}/libexec/{name}", (SYSTEMD / name).read_text("utf-8"))
    run = f"#!/bin/sh\nexport PYTHONPATH={shlex.quote(str(PYTHON_PATH))}\n"
    client.write(f"{RELEASE}/venv/bin/ramnet", f'{run}exec {sys.executable} -m ramnet "$@"\n')
    made.sh(
        f"chmod +x {RELEASE}/libexec/* {RELEASE}/venv/bin/*; ln -s {RELEASE} /opt/ramnet/current"
    )
    client.write("/etc/ramnet/policy.toml", policy(CORP_REGISTRY, DUAL_REGISTRY))
    client.write("/etc/ramnet/ramnet.toml", config(lab, "cgroup"))
    client.write("/etc/wsl.conf", "[user]\ndefault=dev\n")
    yield made
    made.sh(f"{HOOK} stop", check=False)
    made.sh("pkill -f '^sleep 600' || true")
    remove_rules(client)


@pytest.mark.parametrize("rung", ["cgroup", "mark"])
def test_the_hook_starts_all_of_it_once(house: House, rung: str) -> None:
    """By ``mark``, as on WSL2 6.6: nft alone cannot attach marks, so the hook takes longer."""
    client, group = house.client, house.lab.engine_group
    client.write("/etc/ramnet/ramnet.toml", config(house.lab, rung))
    client.write("/etc/wsl.conf", f"[boot]\ncommand = {CRON}\n")
    house.ramnet("lock", "--write-only")  # as after an earlier run of the daemon
    house.ramnet("wsl", "install", "--engine-command", ENGINE)
    begin = time.monotonic()
    client.run(["/bin/sh", "-c", ":"])
    bare = time.monotonic() - begin
    took = house.boot()
    begin = time.monotonic()
    house.ramnet("version")
    python = time.monotonic() - begin
    said = f"the hook took {took:.2f} s, `sh -c :` {bare:.2f} s, `ramnet version` {python:.2f} s\n"
    sys.stdout.write(said)
    if rung == "cgroup":
        assert took < bare + 2 * python  # it waits for no Python, nor for the daemon
    assert table(client), "the locked ruleset is in force when the hook returns"
    house.wait_log("ramnet: ready: state=enforcing")
    assert house.lines("/run/engine.starts")[-1] == f"0::/{group}"
    assert "table inet ramnet" in house.lines("/run/engine.tables")
    assert house.lines("/run/cron.starts")[-1] != f"0::/{group}"
    wait_until(lambda: house.leases() >= len(ALLOWED), READY_SECONDS, "the look-ups")
    engine = program(client, mount_point() / group)
    with house.lab.capture() as capture:
        assert outcomes(engine, ALLOWED) == {"reached"}
        assert outcomes(engine, REFUSED) == {"refused"}
        assert syns_to(capture, REFUSED) == []
    said = json.loads(house.ramnet("wsl", "status", "--json"))
    assert (said["start"], said["daemon"], said["rules_in_force"]) == ("hook", "enforcing", True)
    assert said["hook"]["ran"]
    assert said["warnings"] == []
    # Once more, as when somebody runs it by hand.
    starts = len(house.lines("/run/engine.starts"))
    daemons = house.daemons()
    assert len(daemons) == 1
    house.boot()
    house.wait_log("the daemon is supervised already")
    time.sleep(1)
    assert house.daemons() == daemons
    assert len(house.lines("/run/engine.starts")) == starts
    assert len(house.lines("/run/cron.starts")) == starts


def test_a_daemon_that_is_killed_is_started_again(house: House) -> None:
    house.ramnet("wsl", "install")
    house.boot()
    house.wait_log("ramnet: ready: state=enforcing")
    [first] = house.daemons()
    house.sh(f"kill -9 {first}")
    house.wait_log("the daemon ended with status 137")
    house.wait_log("ramnet: ready: state=enforcing", 2)
    [second] = house.daemons()
    assert second != first
    # An upgrade has it started again by what is there now.
    house.sh(f"{HOOK} restart")
    house.wait_log("ramnet: ready: state=enforcing", 3)
    assert house.daemons() != [second]
    house.sh(f"{HOOK} stop")
    assert house.daemons() == []
    assert table(house.client), "the rules stay"
    house.sh(f"{HOOK} stop")  # there is nothing to stop any more
    assert "no daemon is supervised" in house.client.run([HOOK, "restart"]).stderr


def test_off_is_not_answered_by_another_start(house: House) -> None:
    house.ramnet("wsl", "install")
    house.boot()
    house.wait_log("ramnet: ready: state=enforcing")
    house.ramnet("off")
    house.wait_log("the daemon was told to stop")
    wait_until(lambda: house.daemons() == [], READY_SECONDS, "the end of the daemon")
    assert table(house.client) == ""


def test_no_engine_is_started_before_the_rules_are_in_force(house: House) -> None:
    house.ramnet("wsl", "install", "--engine-command", ENGINE)
    broken = f"{RELEASE}/venv/bin/ramnet"
    house.sh(f"mv {broken} {broken}.away")
    house.boot()
    house.wait_log("no engine is started before the rules are in force; next try")
    assert "the locked ruleset could not be loaded" in house.log()
    done = house.client.run([HOOK, "engine", "touch", "/run/engine.starts"], check=False)
    assert done.returncode != 0
    assert house.lines("/run/engine.starts") == []
    assert table(house.client) == ""
    # The cause is gone: no human hand is needed.
    house.sh(f"mv {broken}.away {broken}")
    wait_until(
        lambda: bool(house.lines("/run/engine.starts")), READY_SECONDS, "the start of the engine"
    )
    assert "table inet ramnet" in house.lines("/run/engine.tables")
    house.wait_log("ramnet: ready: state=enforcing")


def test_a_command_is_run_in_the_cgroup_of_engines(house: House) -> None:
    house.ramnet("lock")
    said = house.client.run([HOOK, "engine", "cat", "/proc/self/cgroup"]).stdout
    assert said.splitlines()[-1] == f"0::/{house.lab.engine_group}"
    assert house.client.run([HOOK, "engine"], check=False).returncode == 2
    assert house.client.run([HOOK, "no"], check=False).returncode == 2


def test_without_the_file_that_names_the_cgroup_an_engine_waits_for_the_daemon(
    house: House,
) -> None:
    house.ramnet("wsl", "install", "--engine-command", ENGINE)
    house.ramnet("lock")
    house.sh("rm /var/lib/ramnet/locked.nft")
    done = house.client.run([HOOK, "engine", "touch", "/run/engine.starts"], check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "locked.nft is missing" in done.stderr
    house.boot()
    wait_until(
        lambda: bool(house.lines("/run/engine.starts")), READY_SECONDS, "the start of the engine"
    )
    assert house.lines("/run/engine.starts")[-1] == f"0::/{house.lab.engine_group}"


def test_a_long_log_is_set_aside(house: House) -> None:
    house.ramnet("wsl", "install")
    house.sh(f"head -c 1100000 /dev/zero >{LOG}")
    house.boot()
    house.wait_log("ramnet: ready: state=enforcing")
    sizes = house.sh(f"wc -c <{LOG}; wc -c <{LOG}.1; stat -c %a {LOG}.1").split()
    assert int(sizes[0]) < 100_000
    assert int(sizes[1]) >= 1_100_000

"""Kernels that lack what those of WSL2 and Docker Desktop lack, judged by Docker's own pulls.

A kernel of Debian has everything as modules: one that may not be loaded stands for one that was
not built. In WSL2 5.15 that is nftables' queue; in WSL2 6.6 and in linuxkit it is the match of
cgroups; and WSL2 before 5.15.57 has hardly anything, like WSL2 6.6 where its modules are missing.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import pytest

from ramnet.lab.world import CORP, EVIL
from tests.vm.bare import PYTHON
from tests.vm.image import Image
from tests.vm.kernels import Kernel
from tests.vm.vm import BARE, Vm
from tests.vm.world import VmWorld

# With the making of the image, which the first test waits for.
pytestmark = pytest.mark.timeout(1200)

SECONDS = 240.0
POLICY = """\
version = 1
organization = "acme"

[[registry]]
address = "registry.corp.example"
"""
ALLOWED, REFUSED = "registry.corp.example/acme/app", "evil.example/acme/app"
RAMNET = f"{PYTHON} -m ramnet"
GROUP = "/sys/fs/cgroup/ramnetengines.slice"

# What systemd does in the other tests.
NETWORK = """
modprobe virtio_net
ip address add 192.0.2.2/24 dev eth0
ip address add 2001:db8:ffff::2/64 dev eth0 nodad
ip link set eth0 up
ip route add default via 192.0.2.1
ip route add default via 2001:db8:ffff::1 dev eth0
"""
START = f"""
mkdir -p /run/ramnet /var/lib/ramnet
{RAMNET} run >/run/ramnet.log 2>&1 &
echo $! >/run/ramnet.pid
until grep -q 'ramnet: ready' /run/ramnet.log; do
    kill -0 $! || {{ cat /run/ramnet.log >&2; exit 1; }}
    sleep 0.3
done
"""
ENGINE = f"""
sh -c 'echo 0 >{GROUP}/cgroup.procs && exec dockerd' >/run/dockerd.log 2>&1 &
until docker version >/dev/null 2>&1; do
    kill -0 $! || {{ cat /run/dockerd.log >&2; exit 1; }}
    sleep 0.3
done
"""
END = f"kill -KILL $(cat /run/ramnet.pid); {RAMNET} off"


@dataclass(frozen=True, slots=True)
class Column:
    """A kernel that has not these modules, and what is then missed, needed or not."""

    modules: tuple[str, ...]
    missing: frozenset[str]
    rung: str = "native"


WSL_5_15 = "WSL2 5.15"
NEWER = "WSL2 6.6, linuxkit 5.10 - 6.12"
OLD = "WSL2 before 5.15.57, or 6.6 without its modules"
COLUMNS = {
    WSL_5_15: Column(("nft_queue",), frozenset({"queue"}), "compat"),
    NEWER: Column(("nft_socket",), frozenset({"socket-cgroupv2"})),
    OLD: Column(
        (
            *("nft_ct", "nft_log", "nft_limit", "nft_reject", "nft_reject_inet", "nft_nat"),
            *("nft_chain_nat", "nft_redir", "nft_socket", "nft_queue", "nft_compat"),
        ),
        frozenset(
            {
                *("conntrack", "ct-mark", "ct-original", "reject", "log", "rate-limit", "queue"),
                *("compat-queue", "socket-cgroupv2", "nat-redirect"),
            }
        ),
    ),
}
# What a kernel has not, with all its modules.
EARLIER = {
    (5, 12): "table-owner",
    (5, 13): "socket-cgroupv2",
    (5, 16): "netdev-egress",
}


@dataclass(frozen=True, slots=True)
class Booted:
    """A machine of a column."""

    vm: Vm
    column: Column
    missing: frozenset[str]

    @property
    def scope(self) -> str:
        """How engines can be told there."""
        return "mark" if "socket-cgroupv2" in self.missing else "cgroup"

    def check(self) -> tuple[int, dict[str, Any]]:
        """Return what ``ramnet check`` says, and its exit status."""
        done = self.vm.run(f"{RAMNET} check --json", seconds=SECONDS, check=False)
        return done.status, json.loads(done.out)


@pytest.fixture
def booted(image: Image, kernel: Kernel, world: VmWorld, request: pytest.FixtureRequest) -> Booted:
    """A machine without the modules of the column that is the parameter."""
    column = COLUMNS[request.param]
    earlier = {name for version, name in EARLIER.items() if kernel.before(*version)}
    vm = world.machine(image, init=BARE, blacklist=column.modules)
    vm.power_on()
    vm.run(NETWORK)
    vm.put("/etc/ramnet/policy.toml", POLICY)
    world.trust(vm)
    return Booted(vm, column, column.missing | earlier)


def judge_features(said: dict[str, Any], missing: frozenset[str]) -> None:
    """Each missing feature is named with its option, its cost and what to do; and no other is."""
    absent = {item["feature"]: item for item in said["features"] if not item["present"]}
    assert absent.keys() == missing, absent
    for item in absent.values():
        assert item["option"]
        assert item["cost_if_absent"]
        assert item["remedy"]
        assert item["evidence"]


def pull(vm: Vm, image: str) -> str:
    """Pull an image; return why that failed, or nothing."""
    done = vm.run(f"docker pull {image}", seconds=SECONDS, check=False)
    return done.err if done.status else ""


@pytest.mark.parametrize("booted", [WSL_5_15, NEWER], indirect=True)
def test_engine_is_held_on_the_best_rung_that_is_left(booted: Booted, world: VmWorld) -> None:
    vm = booted.vm
    status, said = booted.check()
    judge_features(said, booted.missing)
    assert (status, said["can_run"], said["problem"]) == (0, True, None)
    rungs = {"scope": booted.scope, "dns": "hold", "rung": booted.column.rung}
    assert said["modes"] == rungs
    with world.capture() as capture:
        vm.run(START, seconds=SECONDS)
        vm.run(ENGINE, seconds=SECONDS)
        # An emulated machine may be too slow for the notice, and is refused all the same.
        words = "connection refused|registry-access-denied-by-acme"
        assert re.search(words, pull(vm, REFUSED))
        assert pull(vm, ALLOWED) == ""
        judge_status(json.loads(vm.run(f"{RAMNET} status --json", seconds=SECONDS).out), rungs)
        assert capture.to(EVIL) == ()
        assert capture.to(CORP)
        # The same pull passes without rules: nothing else was what refused it.
        vm.run(END, seconds=SECONDS)
        assert pull(vm, REFUSED) == ""
        assert capture.to(EVIL)


def judge_status(status: dict[str, Any], rungs: dict[str, str]) -> None:
    """What is enforced is what was announced; what the rung costs is said."""
    assert status["state"] == "enforcing"
    assert status["scope"]["mode"] == rungs["scope"]
    assert (status["dns"]["mode"], status["dns"]["rung"]) == (rungs["dns"], rungs["rung"])
    assert status["classes"]["engine"]["enforced"] == "strict"
    assert status["scope"]["ports"] == "all"
    assert ("cgroup-BPF" in status["scope"]["because"]) is (rungs["scope"] == "mark")


@pytest.mark.parametrize("booted", [OLD], indirect=True)
def test_kernel_that_cannot_enforce_is_refused(booted: Booted) -> None:
    """Before anything was loaded, and each reason says what to do."""
    status, said = booted.check()
    judge_features(said, booted.missing)
    assert (status, said["can_run"], said["modes"]) == (3, False, {})
    for name in ("conntrack", "reject", "log", "rate-limit"):
        assert f"{name}: " in said["problem"]
    assert "wsl --update" in said["problem"]
    done = booted.vm.run(f"{RAMNET} run", seconds=SECONDS, check=False)
    assert done.status == 3
    assert "cannot enforce" in done.err
    assert booted.vm.run("nft list tables").out == ""

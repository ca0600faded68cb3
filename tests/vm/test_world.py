"""The world of the other tests, without ramnet: what they see refused is allowed here.

And what they rely on: that a machine ends, and begins anew, in the ways that it says.
"""

from __future__ import annotations

import pytest

from ramnet.lab.world import CORP, EVIL
from tests.vm.kernels import Kernel
from tests.vm.vm import VmError
from tests.vm.world import VmWorld

# With the making of the image, which the first test waits for.
pytestmark = pytest.mark.timeout(1200)

LOST, KEPT = "/root/lost", "/root/kept"


def test_without_ramnet_docker_pulls_from_anywhere(world: VmWorld, kernel: Kernel) -> None:
    vm = world.machine()
    with world.capture() as capture:
        vm.power_on()
        assert vm.run("uname -r").out.startswith(kernel.release)
        vm.settle()
        assert vm.run("systemctl --failed --quiet").out == ""
        assert vm.run("cat /sys/fs/cgroup/cgroup.controllers").out.split()
        world.trust(vm)
        vm.run("docker pull evil.example/acme/app", seconds=120)
        vm.run("docker run --rm registry.corp.example/acme/app true", seconds=120)
    assert capture.to(EVIL)
    assert capture.to(CORP)

    first = vm.run("cat /proc/sys/kernel/random/boot_id").out
    with pytest.raises(VmError, match="no such thing"):
        vm.run("echo no such thing >&2; exit 3")
    vm.put(KEPT, "written\n", 0o600)
    vm.run("sync")
    vm.put(LOST, "not written\n")
    vm.reset()
    assert vm.run("cat /proc/sys/kernel/random/boot_id").out != first
    assert vm.get(KEPT) == "written\n"
    assert vm.run(f"cat {LOST}", check=False).out == ""

    disk = vm.shut_down()
    with pytest.raises(VmError, match="not running"):
        vm.run("true")
    again = world.machine(disk)
    again.power_on()
    assert again.get(KEPT) == "written\n"
    again.power_off()

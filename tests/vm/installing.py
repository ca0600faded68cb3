"""Installs ramnet on a machine of the tests, as a person would: from the checkout, by bootstrap."""

from __future__ import annotations

import json
from typing import Any

from tests.vm.agent import Done
from tests.vm.vm import Vm

CHECKOUT = "/mnt/code"
POLICY_FILE = "/etc/ramnet/policy.toml"
RAMNET = "/usr/local/bin/ramnet"
# Half a minute natively. What an emulated machine needs for it depends on who else is at work.
INSTALL_SECONDS = 400.0
READY_SECONDS = 120.0

POLICY = """\
version = 1
organization = "acme"

[support]
contact = "it@acme.example"

[[registry]]
address = "docker.io"

[[registry]]
address = "registry.corp.example:5000"
"""


def install_on(
    vm: Vm, policy: str = POLICY, *, checkout: str = CHECKOUT, check: bool = True
) -> Done:
    """Install ramnet with a policy, and have the engines that run restarted: they are judged."""
    vm.put("/root/policy.toml", policy)
    install = f"{checkout}/bootstrap install --policy /root/policy.toml --restart-engines=now"
    slow = f"RAMNET_READY_SECONDS={READY_SECONDS:.0f}"
    return vm.run(f"{slow} {install}", seconds=INSTALL_SECONDS, check=check)


def status(vm: Vm) -> dict[str, Any]:
    """Return what ``ramnet status`` says."""
    found: dict[str, Any] = json.loads(vm.run(f"{RAMNET} status --json", check=False).out)
    return found


def wait_enforcing(vm: Vm, seconds: float = READY_SECONDS) -> None:
    """Wait until ``status`` says so; ``VmError`` with what it says instead."""
    vm.wait_for(f"{RAMNET} status", seconds=seconds)


def shown(vm: Vm, unit: str, key: str) -> str:
    """Return one property of a unit."""
    return vm.run(f"systemctl show --property={key} --value {unit}").out.strip()


def another_checkout(vm: Vm, place: str, change: str) -> str:
    """Make a copy of the checkout, changed by a script that is run in it; return where it is."""
    vm.run(f"rm -rf {place} && cp -r {CHECKOUT} {place} && cd {place} && {change}")
    return place

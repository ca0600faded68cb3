"""What a change of this machine's own addresses does to the tables: no more than it has to.

Docker makes a bridge with every network. The sets that it does not concern, learned or of the
policy, stay as they are in the kernel, however long they are: making them anew would stop the
daemon, and with it DNS, for as long as that takes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from ramnet.lab.lab import Lab
from ramnet.lab.process import wait_until
from ramnet.lab.ramnet import Daemon
from ramnet.lab.sandbox import Sandbox
from ramnet.lab.topology import UPLINK
from ramnet.lab.world import CORP, GHCR, QUAY
from tests.netns.macvlan import ip_in, macvlan_child, reaches
from tests.netns.scoped import config, wait_denied, wait_not_denied
from tests.netns.support import (
    CORP_REGISTRY,
    DENIED,
    policy,
    put_policy,
    remove_rules,
    status,
    wait_status,
)

pytestmark = pytest.mark.netns

# Networks of a registry: what is long in a policy.
NETWORKS = '\nnetworks = ["10.77.0.0/24", "10.78.0.0/24", "2001:db8:77::/64"]\n'
POLICY = policy(CORP_REGISTRY, more=NETWORKS)
# Written by hand, so it is gone when its set is made anew; nothing is there.
WITNESS = "203.0.113.251"
ADDRESS = "192.0.2.77"
CHANGE_SECONDS = 5.0
# nft tells whole seconds; a renewed element would have all of its time again.
PASSED_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class KernelSet:
    """A set as the kernel has it: each one that is made has a handle of its own."""

    handle: int
    elements: dict[str, float]  # the seconds that are left to each; 0 where that has no end


def sets_of(sandbox: Sandbox, family: str) -> dict[str, KernelSet]:
    said = sandbox.run(["nft", "-j", "list", "table", family, "ramnet"]).stdout
    found = (part["set"] for part in json.loads(said)["nftables"] if "set" in part)
    return {
        one["name"]: KernelSet(one["handle"], dict(map(_element, one.get("elem", ()))))
        for one in found
    }


def _element(item: object) -> tuple[str, float]:
    if isinstance(item, dict) and "elem" in item:
        inner = item["elem"]
        return json.dumps(inner["val"]), float(inner.get("expires", 0))
    return json.dumps(item), 0.0


def handles(found: dict[str, KernelSet], *, without: str = "") -> dict[str, int]:
    return {name: one.handle for name, one in found.items() if name != without}


def older(before: dict[str, KernelSet], after: dict[str, KernelSet], seconds: float) -> bool:
    """Whether every element is there still, with that much less of its time left."""
    return all(
        set(before[name].elements) <= set(after[name].elements)
        and all(
            left == 0 or after[name].elements[key] <= left - seconds
            for key, left in before[name].elements.items()
        )
        for name in before
        if name.startswith(("allow", "heard", "deny"))
    )


def add_witness(sandbox: Sandbox, family: str) -> None:
    element = f"deny4 {{ {WITNESS} . 443 timeout 5m }}"
    sandbox.run(["nft", f"add element {family} ramnet {element}"])


def holds(sandbox: Sandbox, family: str, name: str, text: str) -> bool:
    return any(text in key for key in sets_of(sandbox, family)[name].elements)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(engine_cgroup=True) as made:
        yield made


@pytest.fixture(scope="module")
def child(lab: Lab) -> Sandbox:
    return macvlan_child(lab)


@pytest.fixture
def daemon(lab: Lab) -> Iterator[Daemon]:
    made = lab.daemon(POLICY, config=config(lab, "cgroup"))
    try:
        wait_denied(lab.client, *QUAY, *GHCR)
        wait_status(made, lambda said: said["denied"] == DENIED, "the catalogue's addresses")
        wait_status(made, lambda said: said["leases"] >= len(CORP), "leases")
        yield made
    finally:
        made.abandon()
        remove_rules(lab.client)


@pytest.fixture
def another_address(lab: Lab) -> Iterator[list[str]]:
    """Commands that give the machine another address; taken back at the end."""
    yield [f"address add {ADDRESS}/32 dev {UPLINK}"]
    lab.client.run(["ip", "address", "del", f"{ADDRESS}/32", "dev", UPLINK], check=False)


@pytest.fixture
def another_bridge(lab: Lab) -> Iterator[list[str]]:
    """Commands that make a network of Docker's; taken back at the end."""
    yield ["link add br-new type bridge", "address add 172.31.0.1/24 dev br-new"]
    ip_in(lab.client, "link delete br-new")


@pytest.mark.usefixtures("daemon")
def test_what_was_learned_at_the_edge_outlives_a_change_of_addresses(
    lab: Lab, child: Sandbox, another_address: list[str]
) -> None:
    client = lab.client
    add_witness(client, "netdev")
    before = sets_of(client, "netdev")
    assert not reaches(child, QUAY[0], 443)
    time.sleep(PASSED_SECONDS)
    ip_in(client, *another_address)
    wait_until(lambda: holds(client, "netdev", "local4", ADDRESS), CHANGE_SECONDS, "the address")
    after = sets_of(client, "netdev")
    assert handles(after, without="local4") == handles(before, without="local4")
    assert after["local4"].handle != before["local4"].handle, "control"
    assert older(before, after, PASSED_SECONDS)
    assert holds(client, "netdev", "deny4", WITNESS)
    assert not reaches(child, QUAY[0], 443)


def test_what_was_learned_at_the_edge_is_renewed_with_the_policy(
    lab: Lab, daemon: Daemon, child: Sandbox
) -> None:
    """What a lease means is the policy's: which of them are left there is not known otherwise."""
    client = lab.client
    add_witness(client, "netdev")
    before = sets_of(client, "netdev")
    put_policy(daemon, policy(CORP_REGISTRY, "quay.io", more=NETWORKS))
    wait_until(
        lambda: not holds(client, "netdev", "deny4", QUAY[0]), CHANGE_SECONDS, "the new policy"
    )
    wait_not_denied(client, *QUAY)
    after = sets_of(client, "netdev")
    assert not holds(client, "netdev", "deny4", WITNESS)
    assert after["deny4"].handle != before["deny4"].handle
    assert holds(client, "netdev", "deny4", GHCR[0])
    assert reaches(child, QUAY[0], 443)
    assert not reaches(child, GHCR[0], 443)


def test_another_bridge_makes_no_set_anew_that_it_does_not_concern(
    lab: Lab, daemon: Daemon, another_bridge: list[str]
) -> None:
    """Under scope `cgroup`, whose rules know a packet without a socket by its address."""
    client = lab.client
    add_witness(client, "inet")
    before = sets_of(client, "inet")
    static = {name for name, one in before.items() if any("10.77." in key for key in one.elements)}
    assert static, "control: the networks of the policy are there"
    time.sleep(PASSED_SECONDS)
    ip_in(client, *another_bridge)
    wait_until(lambda: holds(client, "inet", "local4", "172.31.0.1"), CHANGE_SECONDS, "the bridge")
    after = sets_of(client, "inet")
    assert handles(after, without="local4") == handles(before, without="local4")
    assert after["local4"].handle != before["local4"].handle, "control"
    assert older(before, after, PASSED_SECONDS)
    assert holds(client, "inet", "deny4", WITNESS)
    assert status(daemon)["repairs"] == 0

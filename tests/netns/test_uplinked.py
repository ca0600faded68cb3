"""Containers under ``strict`` on a machine whose own network is on a bridge (libvirt, Proxmox).

What comes in by that bridge is not known to be a container's: a machine of the network that asks
for a published port of a container, with that port as its own, is forwarded as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ramnet.lab.lab import Lab
from ramnet.lab.ramnet import Daemon
from ramnet.lab.sandbox import Sandbox
from ramnet.lab.topology import CLIENT_V4, UPLINK, WORLD_V4
from ramnet.lab.world import EVIL
from tests.netns.dnsworld import patched
from tests.netns.macvlan import ip_in
from tests.netns.places import Place, machine, outcomes
from tests.netns.scoped import config
from tests.netns.support import CORP_REGISTRY, policy, remove_rules, status, wait_status

pytestmark = pytest.mark.netns

OUTSIDE_BRIDGE = "br-out"
# The lab has no card, and the end of a veth pair could be a container's: this stands for one.
CARD = "card0"
CARDS = """
import ramnet.host.uplinks as found
found._PARENTS |= {"vxlan"}
"""
PUBLISHED = 8080
REFUSED = [(EVIL[0], 443), (EVIL[0], 80), (EVIL[0], 8443)]
ASKED = [(CLIENT_V4, PUBLISHED)]
STRICT = policy(CORP_REGISTRY, more='\n[enforcement]\ncontainers = "strict"\n')
NAT = """
table ip published {{
  chain p {{
    type nat hook prerouting priority -100
    tcp dport {} dnat to {}:80
  }}
}}
"""
_SERVE = """
import socket
with socket.create_server(("", 80)) as listener:
    print("ready", flush=True)
    while True:
        listener.accept()[0].close()
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(engine_cgroup=True) as made:
        yield made


@pytest.fixture(scope="module")
def container(lab: Lab) -> Sandbox:
    """A container with a published port."""
    made = lab.container()
    shown = made.run(["ip", "-4", "-o", "address", "show", "dev", UPLINK]).stdout
    address = shown.partition("inet ")[2].partition("/")[0]
    lab.client.run(["nft", "-f", "-"], input=NAT.format(PUBLISHED, address))
    argv = ["python3", "-I", "-S", "-c", _SERVE]
    made.popen(argv, log=lab.directory / "published").wait_for_line("ready")
    return made


@pytest.fixture
def outside(lab: Lab, container: Sandbox) -> Iterator[Place]:
    """A machine of the network that is on a bridge of the client, for the length of a test."""
    assert container.name
    ip_in(
        lab.client,
        f"link add {OUTSIDE_BRIDGE} type bridge",
        f"link set {OUTSIDE_BRIDGE} up",
        f"link add {CARD} type vxlan id 5 dstport 4789",
        f"link set {CARD} master {OUTSIDE_BRIDGE}",
        f"address flush dev {UPLINK}",
        f"link set {UPLINK} master {OUTSIDE_BRIDGE}",
        f"address add {CLIENT_V4}/24 dev {OUTSIDE_BRIDGE}",
        f"route add default via {WORLD_V4}",
    )
    yield machine(lab.world, 0)
    ip_in(
        lab.client,
        f"link set {UPLINK} nomaster",
        f"link delete {OUTSIDE_BRIDGE}",
        f"link delete {CARD}",
        f"address add {CLIENT_V4}/24 dev {UPLINK}",
        f"route add default via {WORLD_V4}",
    )


def elements(lab: Lab, name: str) -> str:
    return lab.client.run(["nft", "list", "set", "inet", "ramnet", name]).stdout


def test_control_without_ramnet(lab: Lab, container: Sandbox, outside: Place) -> None:
    assert outcomes(outside, ASKED) == {"reached"}
    assert outcomes(machine(container), REFUSED) == {"reached"}
    assert outcomes(machine(lab.client), REFUSED) == {"reached"}


@contextmanager
def strict(lab: Lab) -> Iterator[Daemon]:
    """Run a daemon that judges containers by the policy; its rules end with it."""
    try:
        with patched(lab, CARDS, STRICT, config(lab, "cgroup")) as daemon:
            assert status(daemon)["classes"]["containers"]["enforced"] == "strict"
            yield daemon
    finally:
        remove_rules(lab.client)


def told(said: dict[str, Any]) -> bool:
    """Whether the operator is told what is given up for the bridge."""
    words = f"containers that are plugged into {OUTSIDE_BRIDGE}, where the network outside is"
    return any(words in item for item in said["not_covered"])


def test_the_network_outside_on_a_bridge_is_no_container(
    lab: Lab, container: Sandbox, outside: Place
) -> None:
    with strict(lab) as daemon, lab.capture() as capture:
        assert told(status(daemon))
        assert OUTSIDE_BRIDGE in elements(lab, "uplinked")
        assert OUTSIDE_BRIDGE not in elements(lab, "bridges")
        assert outcomes(outside, ASKED) == {"reached"}
        assert outcomes(machine(container), REFUSED) == {"refused"}
        assert capture.to([EVIL[0]]) == ()


def test_a_bridge_ceases_to_be_of_the_network_outside_and_becomes_so_again(
    lab: Lab, container: Sandbox, outside: Place
) -> None:
    with strict(lab) as daemon:
        ip_in(lab.client, f"link set {CARD} nomaster")
        wait_status(daemon, lambda said: not told(said), "a bridge of containers")
        # For all that is known a container asks. The reset comes from an address that it knows not.
        assert outcomes(outside, ASKED) == {"timeout"}
        ip_in(lab.client, f"link set {CARD} master {OUTSIDE_BRIDGE}")
        wait_status(daemon, told, "a bridge that the network outside is on")
        assert outcomes(outside, ASKED) == {"reached"}
        assert outcomes(machine(container), REFUSED) == {"refused"}

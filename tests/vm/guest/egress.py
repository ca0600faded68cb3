"""Containers that leave by an uplink past output and forward: each kind, and each way to be judged.

The machines where tests run may have neither ipvlan nor VLANs. ``found`` gets facts only.
"""

from __future__ import annotations

import asyncio
import errno
import json
import select
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from ipaddress import ip_address
from typing import Any

from ramnet.core.allow import allow_list
from ramnet.core.catalog import load_catalog
from ramnet.core.egress import EgressSets, Uplink, compile_egress
from ramnet.core.policy import ClassMode
from ramnet.core.ruleset import Family, render_remove, render_replace
from ramnet.core.terms import TABLE, Book, Held, Rung, Settings
from ramnet.errors import HostError
from ramnet.host.nft import Nft
from ramnet.host.uplinks import Survey, survey
from tests.vm.guest import world

UPLINK, VLAN = "up0", "up0.50"
EVIL, FREE = (world.EVIL, str(world.FRESH_V6 + 66)), (str(world.FRESH_V4 + 1), str(world.FRESH_V6))
# Longer than an emulated machine takes to connect; a SYN that is dropped comes again.
ATTEMPT_SECONDS = 2.0
SETTINGS = Settings(0x0100_0000, 1024, Rung.OBSERVE)
NOTHING = allow_list(None, load_catalog(), date(2026, 1, 1))
DENIED = tuple(Held(ip_address(item), 443, 600.0, "evil.example", Book.DENY) for item in EVIL)

# What of output and of forward sees packets of containers, and whether with a socket.
WATCH = """
table inet watch {
  counter output { }
  counter with_socket { }
  counter own_with_socket { }
  counter forward { }
  chain out {
    type filter hook output priority -160; policy accept;
    ip saddr { 192.0.2.9, 192.0.50.9 } tcp dport 443 counter name output
    ip saddr { 192.0.2.9, 192.0.50.9 } tcp dport 443 socket transparent 0-1 counter name with_socket
    ip saddr 192.0.2.2 tcp dport 443 socket transparent 0-1 counter name own_with_socket
  }
  chain forw {
    type filter hook forward priority -160; policy accept;
    ip saddr { 192.0.2.9, 192.0.50.9 } tcp dport 443 counter name forward
  }
}
"""


@dataclass(frozen=True, slots=True)
class Child:
    """A container: what kind of device it has, and on which parent."""

    kind: str
    parent: str = UPLINK

    @property
    def net(self) -> str:
        """What the addresses of its network begin with."""
        return "192.0.50" if self.parent == VLAN else "192.0.2"

    @property
    def routes(self) -> list[str]:
        """Devices in mode l3 take everything, without asking who has an address (ARP)."""
        if "l3" in self.kind:
            return ["route add default dev up0", "route add ::/0 dev up0"]
        via6 = "2001:db8:50::1" if self.parent == VLAN else "2001:db8:ffff::1"
        return [f"route add default via {self.net}.1", f"route add default via {via6} dev up0"]


CHILDREN = {
    "macvlan": Child("macvlan mode bridge"),
    "ipvlan l2": Child("ipvlan mode l2"),
    "ipvlan l3": Child("ipvlan mode l3"),
    "ipvlan l3s": Child("ipvlan mode l3s"),
    "macvlan on a VLAN": Child("macvlan mode bridge", VLAN),
    "ipvlan on a VLAN": Child("ipvlan mode l2", VLAN),
}


def run(found: dict[str, Any]) -> None:
    """Go through all kinds of containers, then through what devices may do."""
    far = world.FarSide()
    for side, number in ((world.CLIENT, 2), (world.FAR, 1)):
        ip(
            side,
            f"link add link {UPLINK} name {VLAN} type vlan id 50",
            f"address add 192.0.50.{number}/24 dev {VLAN}",
            f"address add 2001:db8:50::{number}/64 dev {VLAN} nodad",
            f"link set {VLAN} up",
            f"link add link {VLAN} name up0.50.60 type vlan id 60",
            f"address add 192.0.60.{number}/24 dev up0.50.60",
            "link set up0.50.60 up",
        )
    apply(WATCH)
    found["uplinks"] = [uplink.name for uplink in look().uplinks]
    found["children"] = {}
    for name, child in CHILDREN.items():
        with attached(child) as netns:
            seen()
            said = {"before": both(netns), "own": attempts(world.CLIENT, EVIL), "seen": seen()}
            for mode in (ClassMode.CATALOG, ClassMode.STRICT):
                said[f"{mode} refusal"] = load(mode)
                far.reached.clear()
                said[mode] = both(netns)
                said[f"{mode} leaks"] = sorted(far.reached & set(EVIL))
                # By the wire, by a VLAN, and by a VLAN within that.
                own = (*EVIL, "192.0.50.1", "192.0.60.1")
                said[f"{mode} own"] = attempts(world.CLIENT, own)
            found["children"][name] = said
            apply(render_remove(TABLE, Family.NETDEV))
    found["devices"] = devices()


def ip(netns: str, *commands: str) -> None:
    """Run ``ip`` in a network namespace."""
    argv = [*world.enter(netns), "ip", "-batch", "-"]
    subprocess.run(argv, input="\n".join(commands), text=True, check=True)


def output(netns: str, *argv: str) -> bytes:
    """Run a program in a network namespace and return what it says."""
    return subprocess.run([*world.enter(netns), *argv], stdout=subprocess.PIPE, check=True).stdout


@contextmanager
def attached(child: Child) -> Iterator[str]:
    """Make the namespace of a container with its device; it goes with the namespace."""
    netns = "child"
    subprocess.run(["ip", "netns", "add", netns], check=True)
    try:
        ip(
            world.CLIENT,
            f"link add link {child.parent} name c0 type {child.kind}",
            f"link set c0 netns {netns} name up0",
        )
        net6 = "2001:db8:50" if child.parent == VLAN else "2001:db8:ffff"
        ip(
            netns,
            "link set lo up",
            f"address add {child.net}.9/24 dev up0",
            f"address add {net6}::9/64 dev up0 nodad",
            "link set up0 up",
            *child.routes,
        )
        if "l3" in child.kind:  # nobody there answers to who asks for it
            mac = json.loads(output(world.CLIENT, "ip", "-j", "link", "show", UPLINK))[0]["address"]
            for address in (f"{child.net}.9", f"{net6}::9"):
                known = f"{address} lladdr {mac} nud reachable dev {child.parent}"
                ip(world.FAR, f"neighbour replace {known}")
        yield netns
    finally:
        subprocess.run(["ip", "netns", "delete", netns], check=True)
        ip(world.FAR, f"neighbour flush dev {child.parent}")


def attempts(netns: str, addresses: Sequence[str], port: int = 443) -> list[str]:
    """Connect to all of these at once: ``connected``, ``timeout`` or an errno for each."""

    def begin(address: str) -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        sock.setblocking(False)  # noqa: FBT003 - a positional argument of the C function
        sock.connect_ex((address, port))
        return sock

    socks = world.inside(netns, lambda: [begin(address) for address in addresses])
    end = time.monotonic() + ATTEMPT_SECONDS
    said = []
    for sock in socks:
        ready = select.select([], [sock], [], max(0.0, end - time.monotonic()))[1]
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        name = errno.errorcode.get(code, str(code)) if code else "connected"
        said.append(name if ready else "timeout")
        sock.close()
    return said


def both(netns: str) -> dict[str, list[str]]:
    """Try what is denied and what is not."""
    said = attempts(netns, (*EVIL, *FREE))
    return {"denied": said[: len(EVIL)], "free": said[len(EVIL) :]}


def look() -> Survey:
    """Survey the client."""
    return world.inside(world.CLIENT, lambda: asyncio.run(survey()))


def apply(text: str) -> str:
    """Run a transaction in the client; return why it was refused."""

    def work() -> str:
        try:
            Nft().apply(text)
        except HostError as err:
            return err.message
        return ""

    return world.inside(world.CLIENT, work)


def load(mode: ClassMode, more: tuple[Uplink, ...] = ()) -> str:
    """Load the table into the client; return why it was refused."""
    known = look()
    uplinks = (*known.uplinks, *more)
    table = compile_egress(uplinks, known.local, mode, EgressSets(NOTHING, DENIED), SETTINGS)
    if table is None:
        raise RuntimeError("there is no uplink")
    return apply(render_replace(table))


def seen() -> dict[str, int]:
    """Return what output and forward have seen of containers since the last time."""
    said = json.loads(output(world.CLIENT, "nft", "-j", "reset", "counters"))
    counters = [item["counter"] for item in said["nftables"] if "counter" in item]
    return {item["name"]: item["packets"] for item in counters if item["table"] == "watch"}


def devices() -> dict[str, Any]:
    """Look at devices that go away, that are not there, and that are bound together."""
    ip(
        world.CLIENT,
        "link add bond0 type bond mode active-backup",
        "link add port0 type veth peer name port1",
        "link set port0 master bond0",
        "link add later0 type bond mode active-backup",
        "link add vrf0 type vrf table 10",
        "link set later0 master vrf0",
    )
    names = [uplink.name for uplink in look().uplinks]
    refusals = [load(ClassMode.CATALOG)]
    ip(world.CLIENT, "link delete later0")
    with attached(CHILDREN["macvlan"]) as netns:
        gone = {"chains": chains(), "reached": both(netns), "refusals": refusals}
        refusal = load(ClassMode.CATALOG, (Uplink(999, "later0"),))
        missing = {"refusal": refusal, "reached": both(netns)}
    return {"names": names, "gone": gone, "missing": missing}


def chains() -> list[str]:
    """Return the devices whose egress has a chain."""
    listing = world.inside(world.CLIENT, lambda: Nft().list_table(Family.NETDEV, TABLE))
    lines = [line.split() for line in listing.splitlines() if "hook egress" in line]
    return sorted(line[line.index("device") + 1].strip('"') for line in lines if "device" in line)

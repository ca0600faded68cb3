"""A container with an address of its own on the network, and frames that it may write itself."""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
from collections.abc import Iterable
from ipaddress import ip_address

from ramnet.core.allow import AllowList
from ramnet.core.egress import EgressSets, compile_egress
from ramnet.core.policy import ClassMode
from ramnet.core.ruleset import Family, Table, render_remove, render_replace
from ramnet.core.terms import TABLE, Held
from ramnet.host.uplinks import Survey, survey
from ramnet.lab.forge import checksum
from ramnet.lab.lab import Lab
from ramnet.lab.pcap import Frame
from ramnet.lab.sandbox import Sandbox
from ramnet.lab.topology import UPLINK, WORLD_V4, WORLD_V6
from tests.netns.dnsworld import family_of, inside
from tests.unit.core.support import SETTINGS

CHILD_V4, CHILD_V6 = "192.0.2.9", "2001:db8:ffff::9"
CHILD_MAC = "02:00:00:00:00:09"
# A SYN that is dropped is sent again after 1 s: a refusal is seen before that.
ATTEMPT_SECONDS = 0.8

ETH_IP, ETH_ARP, ETH_VLAN, ETH_IP6 = 0x0800, 0x0806, 0x8100, 0x86DD
ETH_PPPOE, ETH_LLDP = 0x8864, 0x88CC
FIN, SYN, RST, ACK, ECE, CWR = 0x01, 0x02, 0x04, 0x10, 0x40, 0x80
MORE = 0x2000
IPV4_HEADER, ETHERNET_HEADER = 20, 14


def ip_in(sandbox: Sandbox, *commands: str) -> None:
    """Run ``ip`` in the network namespace of a sandbox; pids in it are the machine's."""
    argv = ["nsenter", f"--net=/proc/{sandbox.pid}/ns/net", "--", "ip", "-batch", "-"]
    subprocess.run(argv, input="\n".join(commands), text=True, check=True)


def macvlan_child(lab: Lab) -> Sandbox:
    """Start a container on a macvlan of the client's uplink, as ``docker network create`` does."""
    child = lab.sandbox("macvlan")
    child.run(["sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad"])
    options = f"address {CHILD_MAC} netns {child.pid} type macvlan mode bridge"
    ip_in(lab.client, f"link add link {UPLINK} name mv0 {options}")
    ip_in(
        child,
        f"link set mv0 name {UPLINK}",
        f"address add {CHILD_V4}/24 dev {UPLINK}",
        f"address add {CHILD_V6}/64 dev {UPLINK} nodad",
        f"link set {UPLINK} up",
        f"route add default via {WORLD_V4}",
        f"route add default via {WORLD_V6} dev {UPLINK}",
    )
    return child


def survey_of(sandbox: Sandbox) -> Survey:
    return inside(sandbox, lambda: asyncio.run(survey()))


def compiled(lab: Lab, mode: ClassMode, sets: EgressSets) -> Table:
    found = survey_of(lab.client)
    table = compile_egress(found.uplinks, found.local, mode, sets, SETTINGS)
    assert table is not None
    return table


def load(
    lab: Lab,
    mode: ClassMode,
    allowed: AllowList,
    held: Iterable[Held] = (),
    resolvers: Iterable[str] = (),
) -> Table:
    """Load the table into the client, for the uplinks that it has."""
    servers = tuple(map(ip_address, resolvers))
    table = compiled(lab, mode, EgressSets(allowed, tuple(held), servers))
    lab.client.run(["nft", "-f", "-"], input=render_replace(table))
    return table


def remove(lab: Lab) -> None:
    lab.client.run(["nft", "-f", "-"], input=render_remove(TABLE, Family.NETDEV))


def listing(lab: Lab) -> str:
    return lab.client.run(["nft", "list", "table", "netdev", TABLE]).stdout


def refused(lab: Lab) -> int:
    """How many packets the table has refused."""
    said = lab.client.run(["nft", "list", "counter", "netdev", TABLE, "refused"]).stdout
    return int(said.partition("packets ")[2].split()[0])


def reaches(sandbox: Sandbox, address: str, port: int, source: str = "") -> bool:
    """Whether a TCP connection comes about at once."""
    sock = inside(sandbox, lambda: socket.socket(family_of(address), socket.SOCK_STREAM))
    with sock:
        sock.settimeout(ATTEMPT_SECONDS)
        if source:
            sock.bind((source, 0))
        try:
            sock.connect((address, port))
        except TimeoutError:
            return False
    return True


# --- frames


def mac_of(sandbox: Sandbox) -> bytes:
    said = sandbox.run(["ip", "-o", "link", "show", "dev", UPLINK]).stdout
    return bytes.fromhex(said.partition("link/ether ")[2][:17].replace(":", ""))


def tcp(port: int, flags: int) -> bytes:
    return struct.pack("!HHIIBBHHH", 40_000, port, 1, 1, 5 << 4, flags, 0xFFFF, 0, 0)


def udp(port: int, payload: bytes = b"") -> bytes:
    return struct.pack("!HHHH", 40_000, port, 8 + len(payload), 0) + payload


def ipv4(
    target: str, protocol: int, payload: bytes, *, fragment: int = 0, length: int = 0
) -> bytes:
    """An IPv4 packet; ``fragment`` is flags and offset, ``length`` what it claims to have."""
    said = length or IPV4_HEADER + len(payload)
    head = struct.pack("!BBHHHBBH", 0x45, 0, said, 7, fragment, 64, protocol, 0)
    head += ip_address(CHILD_V4).packed + ip_address(target).packed
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + payload


def ipv6(target: str, following: int, payload: bytes) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(payload), following, 64)
    return head + ip_address(CHILD_V6).packed + ip_address(target).packed + payload


def ipv6_fragment(following: int, offset: int, payload: bytes, *, more: bool = False) -> bytes:
    """The fragment header (44) and what comes after it; ``offset`` is in bytes."""
    return struct.pack("!BBHI", following, 0, offset | more, 7) + payload


def ipv6_extension(following: int, kind: int = 0) -> bytes:
    """A header of eight bytes: options that say nothing, or with ``kind`` a routing header."""
    body = (kind, 0, 0, 0) if kind else (1, 4, 0, 0)
    return bytes((following, 0, *body, 0, 0))


def to(frame: Frame, address: str) -> bool:
    """Whether a captured frame, tagged or not, is for this address of IP."""
    wanted = ip_address(address)
    begin = ETHERNET_HEADER + (4 if frame.data[12:14] == ETH_VLAN.to_bytes(2, "big") else 0)
    kind = int.from_bytes(frame.data[begin - 2 : begin], "big")
    at = begin + {ETH_IP: 16, ETH_IP6: 24}.get(kind, 0)
    found = frame.data[at : at + len(wanted.packed)]
    return kind == (ETH_IP if wanted.version == 4 else ETH_IP6) and found == wanted.packed

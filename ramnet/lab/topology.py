"""The network of the lab: the machine under protection, the far side, and a wire between them.

All addresses are documentation prefixes (RFC 5737, RFC 3849) and exist only inside the sandboxes.
The far side answers at *every* address of its prefixes (local routes), so that a test may move a
registry to a new address without a change to the network.
"""

from __future__ import annotations

import subprocess

from ramnet.errors import LabError
from ramnet.lab.programs import require
from ramnet.lab.sandbox import Sandbox

CLIENT_V4 = "192.0.2.2"
WORLD_V4 = "192.0.2.1"
CLIENT_V6 = "2001:db8:ffff::2"
WORLD_V6 = "2001:db8:ffff::1"
UPLINK = "eth0"  # the name of both ends of the wire

WORLD_PREFIXES = ("198.51.100.0/24", "203.0.113.0/24", "2001:db8::/64")
DNS_V4 = "203.0.113.53"
DNS_V6 = "2001:db8::53"
UNTRUSTED_DNS_V4 = "203.0.113.66"
UNTRUSTED_DNS_V6 = "2001:db8::6653"

BRIDGE = "br-lab"
BRIDGE_V4 = "172.30.0.1"
BRIDGE_PREFIX_V4 = "172.30.0.0/24"

# Without duplicate address detection an IPv6 address is usable at once. No source filter: the
# forged packets of the tests have to arrive, else ramnet is not what refuses them.
_SYSCTLS = {
    "net/ipv6/conf/all/accept_dad": 0,
    "net/ipv6/conf/default/accept_dad": 0,
    "net/ipv6/conf/default/router_solicitations": 0,
    "net/ipv4/conf/all/rp_filter": 0,
    "net/ipv4/conf/default/rp_filter": 0,
    "net/ipv4/ip_forward": 1,
    "net/ipv6/conf/all/forwarding": 1,
}
# A server may bind an IPv6 address that it has only by a local route.
_WORLD_SYSCTLS = {"net/ipv6/ip_nonlocal_bind": 1}


def connect(client: Sandbox, world: Sandbox) -> None:
    """Lay the wire between two running sandboxes and give both sides addresses and routes."""
    _sysctl(client, _SYSCTLS)
    _sysctl(world, _SYSCTLS | _WORLD_SYSCTLS)
    _ip_in(world, [f"link add {UPLINK} type veth peer name {UPLINK} netns {client.pid}"])
    _ip_in(
        world,
        [
            f"address add {WORLD_V4}/24 dev {UPLINK}",
            f"address add {WORLD_V6}/64 dev {UPLINK} nodad",
            f"link set {UPLINK} up",
            *(f"route add local {prefix} dev lo" for prefix in WORLD_PREFIXES),
            *(f"address add {address}/32 dev lo" for address in (DNS_V4, UNTRUSTED_DNS_V4)),
            *(f"address add {address}/128 dev lo nodad" for address in (DNS_V6, UNTRUSTED_DNS_V6)),
            # Whatever the client forwards without rewriting it finds its way back.
            f"route add default via {CLIENT_V4}",
        ],
    )
    _ip_in(
        client,
        [
            f"address add {CLIENT_V4}/24 dev {UPLINK}",
            f"address add {CLIENT_V6}/64 dev {UPLINK} nodad",
            f"link set {UPLINK} up",
            f"route add default via {WORLD_V4}",
            f"route add default via {WORLD_V6} dev {UPLINK}",
        ],
    )
    _ip_in(world, [f"route add default via {CLIENT_V6} dev {UPLINK}"])


def add_container(client: Sandbox, container: Sandbox, number: int) -> str:
    """Attach a sandbox to a bridge of the client, as Docker attaches a container; return its IPv4.

    ``number`` (2..254) is the last octet. Replies come back through a MASQUERADE rule in the
    client's own namespace, made with iptables like Docker's.
    """
    address = f"{BRIDGE_V4.rpartition('.')[0]}.{number}"
    if client.run([require("ip"), "link", "show", BRIDGE], check=False).returncode:
        _ip_in(
            client,
            [
                f"link add {BRIDGE} type bridge",
                f"address add {BRIDGE_V4}/24 dev {BRIDGE}",
                f"link set {BRIDGE} up",
            ],
        )
        rule = ["-s", BRIDGE_PREFIX_V4, "!", "-o", BRIDGE, "-j", "MASQUERADE"]
        client.run([require("iptables"), "-w", "-t", "nat", "-A", "POSTROUTING", *rule])
    _sysctl(container, _SYSCTLS)
    port = f"lab{number}"
    _ip_in(client, [f"link add {port} type veth peer name {UPLINK} netns {container.pid}"])
    _ip_in(client, [f"link set {port} master {BRIDGE}", f"link set {port} up"])
    _ip_in(
        container,
        [
            f"address add {address}/24 dev {UPLINK}",
            f"link set {UPLINK} up",
            f"route add default via {BRIDGE_V4}",
        ],
    )
    return address


def _sysctl(sandbox: Sandbox, values: dict[str, int]) -> None:
    script = "".join(f"echo {value} >/proc/sys/{key}\n" for key, value in values.items())
    try:
        sandbox.run(["/bin/sh", "-e", "-c", script])
    except LabError as err:
        raise LabError(err.message, hint="the lab needs a kernel with IPv4 and IPv6") from err


def _ip_in(sandbox: Sandbox, commands: list[str]) -> None:
    """Run ``ip`` commands in the network namespace of a sandbox, and nowhere else.

    Only the network is entered: a ``netns PID`` in a command is a pid of the machine.
    """
    argv = [require("nsenter"), f"--net=/proc/{sandbox.pid}/ns/net", "--"]
    argv += [require("ip"), "-batch", "-"]
    done = subprocess.run(
        argv, input="\n".join(commands), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise LabError(
            f"the network of sandbox {sandbox.name} could not be set up: {done.stderr.strip()}",
            hint="the lab needs the kernel's veth, bridge and IPv6 support",
        )

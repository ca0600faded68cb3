"""Who really answers for a resolver: the machine itself may redirect queries (DNAT).

A published DNS container is asked at an address of this machine, but its answers come in by a
bridge. Conntrack knows: one query is sent, and its entry is read back.
"""

from __future__ import annotations

import secrets
import socket
from ipaddress import ip_address

from dnslib import DNSRecord
from pyroute2 import AsyncConntrack
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple

from ramnet.core.dns import DNS_PORT
from ramnet.host.resolvconf import Server


async def responder_of(server: Server) -> Server | None:
    """Return the address that answers queries to ``server``; None when conntrack cannot tell.

    Sends one query for the root's name servers and does not wait for the answer.
    """
    family = socket.AF_INET if server.version == 4 else socket.AF_INET6  # noqa: PLR2004
    query = DNSRecord.question(".", "NS")
    query.header.id = secrets.randbelow(1 << 16)
    try:
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as client:
            client.connect((str(server), DNS_PORT))
            client.send(query.pack())
            source, port = client.getsockname()[:2]
            asked = NFCTAttrTuple(
                family=family,
                saddr=source,
                daddr=str(server),
                proto=socket.IPPROTO_UDP,
                sport=port,
                dport=DNS_PORT,
            )
            return await _look_up(family, asked)
    except OSError:  # it cannot be reached at all
        return None


async def _look_up(family: int, asked: NFCTAttrTuple) -> Server | None:
    async with AsyncConntrack(nfgen_family=family) as conntrack:
        try:
            entry = await conntrack.entry("get", tuple_orig=asked)
        except NetlinkError:  # no entry, or no conntrack in the kernel
            return None
    reply = entry.get_attr("CTA_TUPLE_REPLY") if entry is not None else None
    if reply is None:
        return None
    return ip_address(str(NFCTAttrTuple.from_netlink(family, reply).saddr))

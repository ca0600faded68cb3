"""Addresses that no DNS answer may open."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

IPAddress = IPv4Address | IPv6Address

_NEVER_4: Final = (
    "0.0.0.0/8",  # "this network" (RFC 1122 section 3.2.1.3); Linux takes 0.0.0.0 for itself
    "127.0.0.0/8",
    "169.254.0.0/16",  # link-local; nearly every cloud's metadata service
    "224.0.0.0/4",
    "255.255.255.255/32",
    "100.100.100.200/32",  # Alibaba Cloud, metadata
    "168.63.129.16/32",  # Azure, host agent (WireServer)
    "192.0.0.192/32",  # Oracle Cloud Classic, metadata
)
_NEVER_6: Final = (
    "::/96",  # unspecified, loopback, and the abandoned IPv4-compatible form (RFC 4291)
    "fe80::/10",
    "ff00::/8",
    "fd00:ec2::/32",  # AWS, services of the instance: metadata, credentials, DNS, NTP
    "fd20:ce::254/128",  # Google Cloud, metadata
    "fd00:c1::a9fe:a9fe/128",  # Oracle Cloud, metadata
    "fd00:42::42/128",  # Scaleway, metadata
    "fd00:a9fe:a9fe::1/128",  # Akamai (Linode), metadata
    "fd00:100::100:200/128",  # Alibaba Cloud, metadata
)
_MASKS_4: Final = tuple(
    (int(net.netmask), int(net.network_address)) for net in map(IPv4Network, _NEVER_4)
)
_MASKS_6: Final = tuple(
    (int(net.netmask), int(net.network_address)) for net in map(IPv6Network, _NEVER_6)
)
_MAPPED: Final = int(IPv6Address("::ffff:0:0")) >> 32
#: The well-known prefix only (RFC 6052): a network's own cannot be told from other addresses.
_NAT64: Final = int(IPv6Address("64:ff9b::")) >> 32
_LOW_32: Final = 0xFFFF_FFFF


def teachable(ip: IPAddress) -> bool:
    """Whether a DNS answer may open ``ip`` at all.

    Never the host itself, its link, multicast, broadcast, or a cloud's metadata service: an allowed
    zone could point there (DNS rebinding). An IPv4-mapped (RFC 4291) or NAT64 address (RFC 6052) is
    judged by the IPv4 address inside. Private networks, 100.64.0.0/10 and 198.18.0.0/15 are fine:
    registries and VPNs live there.
    """
    value = int(ip)
    if isinstance(ip, IPv6Address):
        if value >> 32 not in (_MAPPED, _NAT64):
            return all(value & mask != net for mask, net in _MASKS_6)
        value &= _LOW_32
    return all(value & mask != net for mask, net in _MASKS_4)

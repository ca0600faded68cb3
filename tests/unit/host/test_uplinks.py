"""The choice of uplinks. What the kernel tells of real ones: tests/netns/test_host_uplinks.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import pytest
from pyroute2.netlink import NLM_F_DUMP_INTR, NLM_F_MULTI

from ramnet.core.egress import Uplink
from ramnet.host.uplinks import MAX_UPLINKS, TRIES, Link, Survey, choose, whole

LO = Link(1, "lo", mac="00:00:00:00:00:00", ethernet=False)
ETH0 = Link(2, "eth0", mac="02:00:00:00:00:02")
DOCKER0 = Link(3, "docker0", kind="bridge", mac="02:00:00:00:00:03")
PORT = Link(4, "veth1a2b", "veth", "02:00:00:00:00:04", master=3, master_kind="bridge")
MACHINE = (LO, ETH0, DOCKER0, PORT)


def chosen(*links: Link, **addresses: Iterable[str]) -> Survey:
    """Choose among these links; addresses are given by the name of the link."""
    indices = {link.name: link.index for link in links}
    return choose(
        links, {indices[name]: set(map(ip_address, texts)) for name, texts in addresses.items()}
    )


def names(*links: Link, **addresses: Iterable[str]) -> list[str]:
    return [uplink.name for uplink in chosen(*links, **addresses).uplinks]


def test_of_an_ordinary_machine_it_is_the_card() -> None:
    found = chosen(
        *MACHINE,
        lo=["127.0.0.1", "::1"],
        eth0=["192.0.2.2"],
        docker0=["172.17.0.1"],
        veth1a2b=["fe80::4"],
    )
    assert [uplink.name for uplink in found.uplinks] == ["eth0"]
    assert found.left_out == ()
    assert found.bridges == (3,)
    assert found.local.macs == {ETH0.mac, DOCKER0.mac}
    assert found.local.addresses == {
        IPv4Address("127.0.0.1"),
        IPv6Address("::1"),
        IPv4Address("192.0.2.2"),
        IPv4Address("172.17.0.1"),
    }


def test_a_container_that_starts_changes_nothing() -> None:
    """Its veth pair brings a hardware address and one of IP; the table need not be loaded again."""
    known = {"eth0": ["192.0.2.2"], "docker0": ["172.17.0.1"]}
    before = chosen(LO, ETH0, DOCKER0, **known)
    passing = Link(9, "vethtmp", "veth", "02:00:00:00:00:09")  # not enslaved yet
    macvlan = Link(10, "mv0", "macvlan", "02:00:00:00:00:0a")  # not moved yet
    assert chosen(*MACHINE, passing, macvlan, **known, veth1a2b=["fe80::4"]) == before


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        (Link(5, "eth0.50", "vlan"), True),
        (Link(5, "bond0", "bond"), True),
        (Link(5, "team0", "team"), True),
        (Link(5, "wlan0"), True),
        (Link(5, "eth1", master=3, master_kind="bridge"), False),
        (Link(5, "eth1", master=3, master_kind="bond"), False),
        (Link(5, "eth1", master=3, master_kind="openvswitch"), False),
        (Link(5, "vf0", master=2), False),  # a virtual function below hv_netvsc
        (Link(5, "eth1", master=3, master_kind="vrf"), True),
        (Link(5, "macvlan0", "macvlan"), False),
        (Link(5, "ipvlan0", "ipvlan"), False),
        (Link(5, "dummy0", "dummy"), False),
        (Link(5, "tap0", "tun"), False),
        (Link(5, "wg0", "wireguard", ethernet=False), False),
        (Link(5, "ppp0", ethernet=False), False),
        (Link(5, "veth0", "veth"), False),
    ],
    ids=lambda value: value.name if isinstance(value, Link) else "",
)
def test_what_may_be_a_parent_and_leads_outside(link: Link, expected: bool) -> None:
    assert (link.name in names(link)) is expected


def test_the_end_of_a_veth_pair_is_an_uplink_if_the_machine_has_an_address_there() -> None:
    """A container that is routed has one without, or with what every device has by itself."""
    veth = Link(5, "veth0", "veth")
    assert names(veth, veth0=["192.0.2.2"]) == ["veth0"]
    assert names(veth, veth0=["fe80::1"]) == []


@pytest.mark.parametrize("kind", ["", "vlan", "bond"])
def test_a_bridge_with_the_network_outside_on_it_is_an_uplink(kind: str) -> None:
    """The card itself is none then: what containers of the bridge send is no business of ours."""
    port = Link(2, "eth0", kind, master=6, master_kind="bridge")
    found = chosen(port, PORT, DOCKER0, Link(6, "br0", "bridge"))
    assert found.uplinks == (Uplink(6, "br0"),)
    # What comes in there is not known to be a container's.
    assert found.uplinked == (Uplink(6, "br0"),)
    assert found.bridges == (3,)


def test_a_bridge_is_one_of_containers_or_the_network_outside_is_on_it() -> None:
    """Each is one of the two, also where no rule can say its name."""
    port = Link(2, "eth0", master=6, master_kind="bridge")
    found = chosen(port, PORT, DOCKER0, Link(6, "br*", "bridge"), Link(7, "br1", "bridge"))
    assert (found.uplinks, found.left_out) == ((), ("br*",))
    assert found.uplinked == (Uplink(6, "br*"),)
    assert found.bridges == (3, 7)
    assert chosen(*MACHINE).uplinked == ()


def test_a_bridge_that_is_enslaved_itself_is_none_of_the_network_outside() -> None:
    """Its packets are those of what it belongs to."""
    port = Link(2, "eth0", master=6, master_kind="bridge")
    below = Link(6, "br0", "bridge", master=7, master_kind="bond")
    found = chosen(port, below, Link(7, "bond0", "bond"))
    assert [uplink.name for uplink in found.uplinks] == ["bond0"]
    assert (found.bridges, found.uplinked) == ((6,), ())


def test_a_macvlan_of_the_machine_is_its_own_once_it_has_an_address() -> None:
    shim = Link(5, "shim", "macvlan", "02:00:00:00:00:05")
    assert shim.mac not in chosen(ETH0, shim).local.macs
    assert shim.mac in chosen(ETH0, shim, shim=["192.0.2.77"]).local.macs


def test_an_uplink_sends_also_without_an_address() -> None:
    """Say, what tells a switch who is there (LLDP)."""
    assert chosen(ETH0).local.macs == {ETH0.mac}


@pytest.mark.parametrize("name", ['we"ird', "eth*", "back\\slash", "t\x01", "überlink"])
def test_a_name_that_no_rule_can_say_is_left_out(name: str) -> None:
    found = chosen(ETH0, Link(5, name))
    assert [uplink.name for uplink in found.uplinks] == ["eth0"]
    assert found.left_out == (name,)


def test_there_is_a_limit() -> None:
    links = [Link(index, f"eth{index}") for index in range(1, MAX_UPLINKS + 3)]
    found = chosen(*links)
    assert len(found.uplinks) == MAX_UPLINKS
    assert found.left_out == (f"eth{MAX_UPLINKS + 1}", f"eth{MAX_UPLINKS + 2}")


def dumped(*flags: int) -> tuple[list[Any], int]:
    """What is taken of dumps with these flags, and how many were asked for; the last repeats."""
    asked = 0

    async def messages(number: int) -> AsyncIterator[Any]:
        yield {"header": {"flags": NLM_F_MULTI}, "dump": number}
        last = flags[min(number, len(flags) - 1)]
        yield {"header": {"flags": NLM_F_MULTI | last}, "dump": number}

    async def dump() -> AsyncIterator[Any]:
        nonlocal asked
        asked += 1
        return messages(asked - 1)

    found = asyncio.run(whole(dump))
    return [message["dump"] for message in found], asked


def test_a_dump_in_which_something_has_changed_is_asked_for_again() -> None:
    changed = NLM_F_DUMP_INTR
    assert dumped(0) == ([0, 0], 1)
    assert dumped(changed, changed, 0) == ([2, 2], 3)
    assert dumped(changed) == ([TRIES - 1] * 2, TRIES)  # it is announced, and asked again later

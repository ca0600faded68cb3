"""What the kernel tells of devices and addresses, in network namespaces made for it."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from ipaddress import ip_address

import pytest

from ramnet.core.egress import Uplink
from ramnet.host import uplinks
from ramnet.host.routes import Routes
from ramnet.host.scratch import in_scratch_netns
from ramnet.host.uplinks import Survey, survey

UP = """
link set lo up
link add eth0 index 7 address 02:00:00:00:00:07 type veth peer name far0
address add 192.0.2.2/24 dev eth0
address add 2001:db8:ffff::2/64 dev eth0 nodad
link add docker0 index 8 address 02:00:00:00:00:08 type bridge
address add 172.17.0.1/16 dev docker0
link add veth1 index 9 type veth peer name inside1
link set veth1 master docker0
"""


def ip(commands: str) -> None:
    """Run ``ip`` where the calling thread is."""
    subprocess.run(["ip", "-batch", "-"], input=commands, text=True, check=True)


def found(commands: str) -> Survey:
    def work() -> Survey:
        ip(commands)
        return asyncio.run(survey())

    return in_scratch_netns(work)


def test_a_new_namespace_has_no_uplink() -> None:
    empty = found("link set lo up\n")
    assert (empty.uplinks, empty.left_out, empty.bridges) == ((), (), ())
    assert empty.local.macs == frozenset()
    assert {str(address) for address in empty.local.addresses} == {"127.0.0.1", "::1"}


def test_devices_and_addresses_of_a_machine() -> None:
    survey = found(UP)
    assert survey.uplinks == (Uplink(7, "eth0"),)
    assert survey.bridges == (8,)
    assert survey.local.macs == {"02:00:00:00:00:07", "02:00:00:00:00:08"}
    expected = {"127.0.0.1", "::1", "192.0.2.2", "2001:db8:ffff::2", "172.17.0.1"}
    said = {str(address) for address in survey.local.addresses if not address.is_link_local}
    assert said == expected


def test_a_bridge_that_the_network_outside_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the card joins it, while it is there, and after it has left."""
    # No namespace of a test has a card: this kind, which Docker's overlays need, stands for one.
    monkeypatch.setattr(uplinks, "_PARENTS", uplinks._PARENTS | {"vxlan"})  # noqa: SLF001

    def work() -> list[Survey]:
        ip(f"{UP}link add br0 index 20 type bridge\n")
        ip("link add card0 index 21 type vxlan id 5 dstport 4789\n")
        seen = [asyncio.run(survey())]
        for commands in ("link set card0 master br0\n", "link set card0 nomaster\n"):
            ip(commands)
            seen.append(asyncio.run(survey()))
        return seen

    before, on, after = in_scratch_netns(work)
    assert [(found.bridges, found.uplinked) for found in (before, on, after)] == [
        ((8, 20), ()),
        ((8,), (Uplink(20, "br0"),)),
        ((8, 20), ()),
    ]
    assert on.uplinks == (Uplink(7, "eth0"), Uplink(20, "br0"))


def test_both_ends_of_an_address_with_a_peer_are_told_apart() -> None:
    """A point-to-point address: the machine's own is the local one."""
    survey = found(
        "link add eth0 type veth peer name far0\naddress add 192.0.2.2 peer 192.0.2.1 dev eth0\n"
    )
    assert ip_address("192.0.2.2") in survey.local.addresses
    assert ip_address("192.0.2.1") not in survey.local.addresses


def test_a_macvlan_is_no_uplink_and_an_odd_name_is_left_out() -> None:
    survey = found(
        f"{UP}\nlink add link eth0 name shim address 02:00:00:00:00:77 type macvlan\n"
        "address add 192.0.2.77/32 dev shim\n"
        "link add odd* type veth peer name far1\naddress add 192.0.3.2/24 dev odd*\n"
    )
    assert survey.uplinks == (Uplink(7, "eth0"),)
    assert survey.left_out == ("odd*",)
    assert "02:00:00:00:00:77" in survey.local.macs


def test_a_change_of_links_or_addresses_is_announced() -> None:
    async def watched() -> list[str]:
        seen = []
        async with Routes() as routes:
            for commands in (
                "link add eth1 type veth peer name far1\n",
                "address add 192.0.3.2/24 dev eth1\n",
                "address add 2001:db8:3::2/64 dev eth1 nodad\n",
                "link set eth1 address 02:00:00:00:00:01\n",
                "link set eth1 name eth2\n",
                "link delete eth2\n",
            ):
                ip(commands)
                await asyncio.wait_for(routes.changed.wait(), 2)
                routes.changed.clear()
                await asyncio.sleep(0.05)  # what else a change brings with it
                routes.changed.clear()
                seen.append(commands)
        return seen

    assert len(in_scratch_netns(lambda: asyncio.run(watched()))) == 6


def test_what_is_there_all_the_time_is_found_all_the_time() -> None:
    """Other devices come and go while the kernel tells of them."""

    def work() -> list[tuple[Uplink, ...]]:
        ip(UP)
        churn = "".join(
            f"link add c{n} type veth peer name d{n}\nlink delete c{n}\n" for n in range(50)
        )
        thread = threading.Thread(target=ip, args=(churn,))
        thread.start()
        seen = []
        while thread.is_alive():
            seen.append(asyncio.run(survey()).uplinks)
        thread.join()
        return seen

    assert set(in_scratch_netns(work)) == {(Uplink(7, "eth0"),)}

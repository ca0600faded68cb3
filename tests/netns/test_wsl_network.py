"""The network of WSL2: DNS tunnelled by an address on ``lo``, and the tables of mirrored mode.

The resolver is a process of no distribution: who enforces sees its socket, and not the process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

import pytest

from ramnet.host import wsl
from ramnet.lab.dns import records
from ramnet.lab.lab import Lab
from ramnet.lab.ramnet import Daemon
from ramnet.lab.topology import DNS_V4, DNS_V6
from ramnet.lab.world import EVIL, QUAY
from tests.netns.distros import Distro, distro
from tests.netns.dnsworld import learned
from tests.netns.localdns import local_resolver
from tests.netns.places import outcomes, reach
from tests.netns.scoped import PRECISE, enforcing
from tests.netns.scopeworld import program
from tests.netns.support import (
    ALLOWED,
    CORP_REGISTRY,
    DUAL_REGISTRY,
    Target,
    policy,
    status,
    syns_to,
    wait_leases,
    wait_status,
)

pytestmark = pytest.mark.netns

NAMES = {f"r{n}.wild.example": (f"198.51.100.{n}", f"2001:db8::{n}") for n in range(150, 200)}
POLICY = policy(CORP_REGISTRY, DUAL_REGISTRY, "*.wild.example")
REFUSED: list[Target] = [(address, port) for address in (*EVIL, *QUAY) for port in (443, 8443)]

# As the networking service of WSL makes them, for both families; here without the device.
MIRRORED = """\
table {family} filter {{
  chain WSLOUTPUT {{
    type filter hook output priority filter; policy accept;
    counter meta mark set 0x00000001
  }}
}}
table {family} nat {{
  chain WSLPREROUTING {{
    type nat hook prerouting priority dstnat - 1; policy accept;
    iifname "loopback0" counter accept
  }}
  chain WSLPOSTROUTING {{
    type nat hook postrouting priority srcnat - 1; policy accept;
    oifname != "lo" udp sport 1-65535 counter masquerade to :60000-65000
    oifname != "lo" tcp sport 1-65535 counter masquerade to :60000-65000
  }}
}}
"""
FAMILIES = ("ip", "ip6")
_numbers = count(1)


@dataclass(frozen=True, slots=True)
class House:
    """A lab, and the system distribution of WSL, which runs the resolver."""

    lab: Lab
    system: Distro
    fresh: Iterator[str]


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    table = records({name: list(addresses) for name, addresses in NAMES.items()})
    with (
        Lab(engine_cgroup=True, records=table) as lab,
        distro(lab, "system", DNS_V4) as system,
    ):
        lab.engine_cgroup.mkdir(parents=True, exist_ok=True)
        lab.client.run(["ip", "address", "add", f"{wsl.RESOLVER}/32", "dev", "lo"])
        yield House(lab, system, iter(NAMES))


@contextmanager
def tunnelled(house: House) -> Iterator[None]:
    """Have DNS answered at WSL's address, by a process that the client does not see."""
    log = house.lab.directory / f"tunnel-{next(_numbers)}.log"
    with local_resolver(house.system, log, wsl.RESOLVER, DNS_V4):
        house.lab.client.set_resolvers(wsl.RESOLVER)
        try:
            yield
        finally:
            house.lab.client.set_resolvers(DNS_V4, DNS_V6)


@contextmanager
def mirrored(lab: Lab) -> Iterator[None]:
    for family in FAMILIES:
        lab.client.run(["nft", "-f", "-"], input=MIRRORED.format(family=family))
    try:
        yield
    finally:
        for family in FAMILIES:
            for name in ("filter", "nat"):
                lab.client.run(["nft", "delete", "table", family, name])


def judged(house: House, daemon: Daemon) -> None:
    """See that the engine reaches what it may and nothing else, and that others are left alone."""
    lab = house.lab
    wait_leases(daemon, len(ALLOWED))
    engine = program(lab.client, lab.engine_cgroup)
    name = next(house.fresh)
    with lab.capture() as capture:
        assert reach(engine, ALLOWED) == {target: {"reached"} for target in ALLOWED}
        assert outcomes(engine, REFUSED) == {"refused"}
        assert syns_to(capture, REFUSED) == []
        # A name that nobody has asked for: learned from the answer, before the first SYN.
        assert outcomes(engine, [(name, 443)]) == {"reached"}
        syns = capture.to(NAMES[name])
        assert len(syns) == len({(syn.src, syn.sport) for syn in syns}) > 0
    assert learned(lab.client, NAMES[name][0])
    said = status(daemon)
    assert said["scope"]["problem"] is None
    assert said["state"] == "enforcing"


@pytest.mark.parametrize("rung", PRECISE)
def test_names_are_learned_from_a_tunnel_whose_process_is_not_seen(house: House, rung: str) -> None:
    with tunnelled(house), enforcing(house.lab, rung, POLICY) as run:
        assert status(run.daemon)["dns"]["servers"] == [wsl.RESOLVER]
        judged(house, run.daemon)
        root = house.lab.client.path("/")
        assert wsl.tunnelled(root).value == "yes"


@pytest.mark.parametrize("rung", PRECISE)
def test_the_tables_of_mirrored_mode_change_nothing(house: House, rung: str) -> None:
    """They overwrite the whole mark of a packet: ours has been read by then."""
    with mirrored(house.lab), enforcing(house.lab, rung, POLICY) as run:
        judged(house, run.daemon)
        with_mark = house.lab.client.run(["nft", "list", "chain", "ip", "filter", "WSLOUTPUT"])
        assert "packets 0 " not in with_mark.stdout


@pytest.mark.parametrize("rung", PRECISE)
def test_mirrored_mode_and_a_tunnel_that_come_while_ramnet_runs(house: House, rung: str) -> None:
    with enforcing(house.lab, rung, POLICY) as run:
        wait_leases(run.daemon, len(ALLOWED))
        with mirrored(house.lab), tunnelled(house):
            wait_until_servers(run.daemon, wsl.RESOLVER)
            judged(house, run.daemon)


def wait_until_servers(daemon: Daemon, server: str) -> None:
    """Wait until the daemon has seen the new resolv.conf and who answers there."""
    wait_status(daemon, lambda said: said["dns"]["servers"] == [server], "the new resolver")

"""Containers on macvlan: what they send meets the egress hook of the uplink, and nothing else.

Loaded as compiled, into the client of the lab; the far side's capture is the judge.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import pytest

from ramnet.core.allow import ANY_PORT
from ramnet.core.egress import EgressSets, Uplink, compile_egress
from ramnet.core.policy import ClassMode
from ramnet.core.ruleset import render_replace, render_update
from ramnet.core.terms import Book, Held
from ramnet.lab.capture import Capture
from ramnet.lab.lab import Lab
from ramnet.lab.pcap import Frame
from ramnet.lab.sandbox import Sandbox
from ramnet.lab.topology import DNS_V4, DNS_V6, UNTRUSTED_DNS_V4, UPLINK, WORLD_V4
from ramnet.lab.world import CORP, DUAL, EVIL, HUB, QUAY
from tests.netns.dnsworld import inside
from tests.netns.macvlan import (
    ACK,
    CHILD_MAC,
    CHILD_V4,
    CWR,
    ECE,
    ETH_ARP,
    ETH_IP,
    ETH_IP6,
    ETH_LLDP,
    ETH_PPPOE,
    ETH_VLAN,
    FIN,
    MORE,
    SYN,
    compiled,
    ip_in,
    ipv4,
    ipv6,
    ipv6_extension,
    ipv6_fragment,
    listing,
    load,
    mac_of,
    macvlan_child,
    reaches,
    refused,
    remove,
    survey_of,
    tcp,
    to,
    udp,
)
from tests.unit.core.support import SETTINGS, allowed, policy

NOTHING = allowed(policy("registry.other.example"))
V4, V6 = EVIL
FREE_V4, FREE_V6 = QUAY[0], QUAY[-1]
DENIED = tuple(Held(ip_address(address), 443, 300.0, "evil.example", Book.DENY) for address in EVIL)
TCP, UDP, SCTP, GRE = socket.IPPROTO_TCP, socket.IPPROTO_UDP, 132, 47
HOP, ROUTING, FRAGMENT, OPTIONS = 0, 43, 44, 60
CATALOG, STRICT = ClassMode.CATALOG, ClassMode.STRICT


@pytest.fixture(scope="module")
def child(lab: Lab) -> Sandbox:
    return macvlan_child(lab)


@pytest.fixture(autouse=True)
def bare(lab: Lab) -> Iterator[None]:
    """After each test a client without the table."""
    yield
    remove(lab)


@contextmanager
def capturing(lab: Lab) -> Iterator[Capture]:
    with lab.capture(everything=True) as capture:
        yield capture


# --- real connections


def test_a_refused_registry_is_out_of_reach_and_another_site_is_not(
    lab: Lab, child: Sandbox
) -> None:
    assert all(reaches(child, address, 443) for address in EVIL)  # the control run
    load(lab, CATALOG, NOTHING, DENIED)
    with lab.capture() as capture:
        assert not any(reaches(child, address, 443) for address in EVIL)
        assert all(reaches(child, address, 80) for address in EVIL)  # another port of it
        assert reaches(child, FREE_V4, 443)
        assert reaches(child, FREE_V6, 443)
    assert capture.to(EVIL, ports=[443]) == ()
    assert len(capture.to((FREE_V4, FREE_V6))) == 2


def test_an_address_that_the_policy_allows_is_not_refused_for_another_name(
    lab: Lab, child: Sandbox
) -> None:
    for good, other in ((V4, V6), (V6, V4)):
        for port in (443, ANY_PORT):
            held = Held(ip_address(good), port, 300.0, "good.example", Book.HEARD)
            load(lab, CATALOG, NOTHING, [*DENIED, held])
            assert reaches(child, good, 443)
            assert not reaches(child, other, 443)


def test_what_a_registry_has_as_a_network_is_not_refused(lab: Lab, child: Sandbox) -> None:
    load(lab, CATALOG, allowed(policy(V4)), DENIED)
    assert reaches(child, V4, 443)
    assert not reaches(child, V6, 443)


def test_the_machine_and_its_bridges_are_not_touched(lab: Lab, child: Sandbox) -> None:
    """They have hooks of their own; here nothing else is loaded."""
    container = lab.container()
    load(lab, CATALOG, NOTHING, DENIED)
    assert not reaches(child, V4, 443)
    assert all(reaches(lab.client, address, 443) for address in EVIL)
    assert reaches(container, V4, 443)
    assert refused(lab) == 1


def test_strict_does_not_touch_the_machine_and_its_bridges(lab: Lab, child: Sandbox) -> None:
    container = lab.container()
    load(lab, STRICT, NOTHING)
    assert not reaches(child, V4, 443)
    before = refused(lab)
    assert all(reaches(lab.client, address, 443) for address in EVIL)
    assert reaches(container, V4, 443)
    lab.client.run(["busybox", "ping", "-c1", "-W2", WORLD_V4])
    assert refused(lab) == before


def test_forwarded_packets_without_nat_are_judged(lab: Lab) -> None:
    """The forward hook has judged them by the same mode before."""
    container = lab.container()
    shown = container.run(["ip", "-4", "-o", "address", "show", "dev", UPLINK]).stdout
    source = shown.partition("inet ")[2].partition("/")[0]
    nat = ["iptables", "-w", "-t", "nat"]
    rule = ["POSTROUTING", "-s", source, "-j", "ACCEPT"]
    lab.client.run([*nat, "-I", *rule])
    try:
        load(lab, CATALOG, NOTHING, DENIED)
        assert not reaches(container, V4, 443)
        assert reaches(container, FREE_V4, 443)
    finally:
        lab.client.run([*nat, "-D", *rule])


def test_a_macvlan_of_the_machine_itself_is_its_own(lab: Lab) -> None:
    """So that a machine reaches its own containers; it has another hardware address."""
    address = "192.0.2.77"
    ip_in(
        lab.client,
        f"link add link {UPLINK} name shim type macvlan mode bridge",
        f"address add {address}/32 dev shim",
        "link set shim up",
        f"route add {V4} via {WORLD_V4} dev shim onlink src {address}",
    )
    try:
        load(lab, CATALOG, NOTHING, DENIED)
        with lab.capture() as capture:
            assert reaches(lab.client, V4, 443)
        assert {str(syn.src) for syn in capture.to([V4])} == {address}
        load(lab, STRICT, NOTHING)
        assert reaches(lab.client, V4, 443)
    finally:
        ip_in(lab.client, "link delete shim")


def test_strict_lets_pass_what_the_policy_allows(lab: Lab, child: Sandbox) -> None:
    heard = [Held(ip_address(item), 443, 300.0, "dual.example", Book.HEARD) for item in DUAL]
    heard += [Held(ip_address(item), ANY_PORT, 300.0, "hub.example", Book.HEARD) for item in HUB]
    load(lab, STRICT, allowed(policy(f"{CORP[0]}:5000")), heard, (DNS_V4, DNS_V6))
    with lab.capture() as capture:
        assert all(reaches(child, address, 443) for address in DUAL)
        assert all(reaches(child, address, port) for address in HUB for port in (443, 80))
        assert reaches(child, CORP[0], 5000)
        assert not reaches(child, CORP[0], 443)
        assert not reaches(child, DUAL[0], 80)
        assert not any(reaches(child, address, 443) for address in (FREE_V4, FREE_V6))
        assert all(reaches(child, address, 53) for address in (DNS_V4, DNS_V6))
        assert not reaches(child, UNTRUSTED_DNS_V4, 53)
        assert not reaches(child, DNS_V4, 80)
    assert capture.to([FREE_V4, FREE_V6, UNTRUSTED_DNS_V4]) == ()
    for address in (FREE_V4, FREE_V6):
        child.run(["busybox", "ping", "-c1", "-W2", address])


@pytest.mark.parametrize("address", EVIL)
def test_connections_that_stand_outlive_the_rules(lab: Lab, child: Sandbox, address: str) -> None:
    """What is established is not judged: a change of policy cuts nothing by chance."""
    sock = inside(child, lambda: socket.create_connection((address, 80), 2))
    with sock:
        load(lab, STRICT, NOTHING)
        sock.settimeout(2)
        sock.sendall(b"GET /v2/ HTTP/1.0\r\n\r\n")
        assert sock.recv(100)
        assert not reaches(child, address, 80)


# --- what a container writes itself


def ethernet(lab: Lab, kind: int, packet: bytes, source: bytes = b"") -> bytes:
    own = bytes.fromhex(CHILD_MAC.replace(":", ""))
    return mac_of(lab.world) + (source or own) + kind.to_bytes(2, "big") + packet


def send(sandbox: Sandbox, frames: Iterable[tuple[int, bytes]]) -> None:
    """Send frames; the number before each is what the kernel is told that it is."""
    with inside(sandbox, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)) as sock:
        for kind, frame in frames:
            try:
                sock.sendto(frame, (UPLINK, kind))
            except OSError:  # the socket is told of a drop (ENOBUFS)
                continue


def arrived(lab: Lab, child: Sandbox, frames: list[tuple[int, bytes]], address: str) -> list[Frame]:
    """Send frames from the container; return those that reach the far side."""
    with capturing(lab) as capture:
        send(child, frames)
    return [frame for frame in capture.frames() if to(frame, address)]


def fragments4(protocol: int, segment: bytes, target: str = V4) -> list[bytes]:
    """The packets of a segment that is cut into pieces of eight bytes."""
    cuts = range(0, len(segment), 8)
    return [
        ipv4(
            target,
            protocol,
            segment[at : at + 8],
            fragment=at // 8 | (MORE if at + 8 < len(segment) else 0),
        )
        for at in cuts
    ]


def fragments6(following: int, body: bytes, target: str = V6) -> list[bytes]:
    return [
        ipv6(
            target,
            FRAGMENT,
            ipv6_fragment(following, at, body[at : at + 8], more=at + 8 < len(body)),
        )
        for at in range(0, len(body), 8)
    ]


BEGIN = tcp(443, SYN)
# Flags and length are not those of the packet, but of what comes after it in the frame.
TRAILING = ipv4(V4, TCP, BEGIN[:8] + tcp(443, ACK)[8:], fragment=MORE, length=28)
QUIC = udp(443, b"." * 64)

# Each is refused in both modes. The number is that of the frames that arrive nevertheless: the
# later fragments, of which nothing comes.
REFUSED_4: dict[str, tuple[list[bytes], int]] = {
    "a SYN": ([ipv4(V4, TCP, BEGIN)], 0),
    "a SYN with ECN": ([ipv4(V4, TCP, tcp(443, SYN | ECE | CWR))], 0),
    "a SYN with FIN": ([ipv4(V4, TCP, tcp(443, SYN | FIN))], 0),
    "in fragments of 8 bytes": (fragments4(TCP, BEGIN), 2),
    "flags from behind the packet": ([TRAILING, *fragments4(TCP, BEGIN)[1:]], 2),
    "UDP": ([ipv4(V4, UDP, QUIC)], 0),
    "UDP in fragments": (fragments4(UDP, QUIC), 8),
}
REFUSED_6: dict[str, tuple[list[bytes], int]] = {
    "a SYN": ([ipv6(V6, TCP, BEGIN)], 0),
    "behind options": ([ipv6(V6, OPTIONS, ipv6_extension(TCP) + BEGIN)], 0),
    "behind options of the way": ([ipv6(V6, HOP, ipv6_extension(TCP) + BEGIN)], 0),
    "behind a routing header": ([ipv6(V6, ROUTING, ipv6_extension(TCP, kind=4) + BEGIN)], 0),
    "to elsewhere by a routing header": (
        [ipv6(V6, ROUTING, ipv6_extension(TCP, kind=4) + tcp(80, SYN))],
        0,
    ),
    "in fragments of 8 bytes": (fragments6(TCP, BEGIN), 2),
    "in a second fragment": (fragments6(OPTIONS, ipv6_extension(TCP) + BEGIN), 0),
    "a fragment of a fragment": (
        [
            ipv6(
                V6,
                FRAGMENT,
                ipv6_fragment(FRAGMENT, 0, ipv6_fragment(TCP, 0, BEGIN, more=True)),
            )
        ],
        0,
    ),
    "UDP": ([ipv6(V6, UDP, QUIC)], 0),
}


@pytest.mark.parametrize("mode", [CATALOG, STRICT])
@pytest.mark.parametrize("name", REFUSED_4)
def test_raw_frames_of_ipv4_are_refused(
    lab: Lab, child: Sandbox, mode: ClassMode, name: str
) -> None:
    packets, left = REFUSED_4[name]
    frames = [(ETH_IP, ethernet(lab, ETH_IP, packet)) for packet in packets]
    assert len(arrived(lab, child, frames, V4)) == len(frames)  # the control run
    load(lab, mode, NOTHING, DENIED)
    assert len(arrived(lab, child, frames, V4)) == left


@pytest.mark.parametrize("mode", [CATALOG, STRICT])
@pytest.mark.parametrize("name", REFUSED_6)
def test_raw_frames_of_ipv6_are_refused(
    lab: Lab, child: Sandbox, mode: ClassMode, name: str
) -> None:
    packets, left = REFUSED_6[name]
    frames = [(ETH_IP6, ethernet(lab, ETH_IP6, packet)) for packet in packets]
    assert len(arrived(lab, child, frames, V6)) == len(frames)  # the control run
    load(lab, mode, NOTHING, DENIED)
    assert len(arrived(lab, child, frames, V6)) == left


@pytest.mark.parametrize("mode", [CATALOG, STRICT])
@pytest.mark.parametrize("lie", [ETH_ARP, ETH_VLAN, ETH_PPPOE, "the other"])
def test_a_frame_is_judged_by_what_is_on_the_wire(
    lab: Lab, child: Sandbox, mode: ClassMode, lie: int | str
) -> None:
    """The sender of a raw frame tells the kernel what it is, and rules ask the kernel."""
    four = ETH_IP6 if isinstance(lie, str) else lie
    six = ETH_IP if isinstance(lie, str) else lie
    frames = [
        (four, ethernet(lab, ETH_IP, ipv4(V4, TCP, BEGIN))),
        (six, ethernet(lab, ETH_IP6, ipv6(V6, TCP, BEGIN))),
    ]
    assert [len(arrived(lab, child, frames, address)) for address in EVIL] == [1, 1]
    load(lab, mode, NOTHING, DENIED)
    assert [len(arrived(lab, child, frames, address)) for address in EVIL] == [0, 0]


@pytest.mark.parametrize("mode", [CATALOG, STRICT])
def test_the_hardware_address_of_the_machine_is_not_enough(
    lab: Lab, child: Sandbox, mode: ClassMode
) -> None:
    source = mac_of(lab.client)
    frames = [(ETH_IP, ethernet(lab, ETH_IP, ipv4(V4, TCP, BEGIN), source))]
    assert len(arrived(lab, child, frames, V4)) == 1
    load(lab, mode, NOTHING, DENIED)
    assert arrived(lab, child, frames, V4) == []


def test_strict_refuses_other_protocols_and_tags(lab: Lab, child: Sandbox) -> None:
    """Under ``catalog`` they pass: their ports cannot be read."""
    tagged = (50).to_bytes(2, "big") + ETH_IP.to_bytes(2, "big") + ipv4(V4, TCP, BEGIN)
    frames = [
        (ETH_VLAN, ethernet(lab, ETH_VLAN, tagged)),
        (ETH_IP, ethernet(lab, ETH_IP, ipv4(V4, GRE, b"." * 8))),
        (ETH_IP, ethernet(lab, ETH_IP, ipv4(V4, SCTP, b"\0P\0P" + b"." * 8))),
    ]
    load(lab, CATALOG, NOTHING, DENIED)
    assert len(arrived(lab, child, frames, V4)) == len(frames)
    load(lab, STRICT, NOTHING)
    assert arrived(lab, child, frames, V4) == []


@pytest.mark.parametrize("mode", [CATALOG, STRICT])
def test_what_begins_nothing_passes(lab: Lab, child: Sandbox, mode: ClassMode) -> None:
    """Segments of connections that stand, and what ICMP has to say."""
    frames = [
        (ETH_IP, ethernet(lab, ETH_IP, ipv4(V4, TCP, tcp(443, ACK)))),
        (ETH_IP, ethernet(lab, ETH_IP, ipv4(V4, TCP, tcp(443, SYN | ACK)))),
        (ETH_IP, ethernet(lab, ETH_IP, ipv4(V4, TCP, tcp(443, FIN | ACK)))),
        (ETH_IP, ethernet(lab, ETH_IP, ipv4(V4, socket.IPPROTO_ICMP, b"\3\3" + bytes(30)))),
    ]
    load(lab, mode, NOTHING, DENIED)
    assert len(arrived(lab, child, frames, V4)) == len(frames)


@pytest.mark.parametrize("mode", [CATALOG, STRICT])
@pytest.mark.parametrize("target", ["224.0.0.251", "255.255.255.255", "ff02::1:2"])
def test_what_stays_on_the_link_passes(
    lab: Lab, child: Sandbox, mode: ClassMode, target: str
) -> None:
    """Else no container would get an address by DHCP."""
    load(lab, mode, NOTHING, DENIED)
    kind, make = (ETH_IP6, ipv6) if ":" in target else (ETH_IP, ipv4)
    frames = [(kind, ethernet(lab, kind, make(target, UDP, udp(67, b"."))))]
    assert len(arrived(lab, child, frames, target)) == 1


def test_strict_lets_pass_what_is_not_ip_but_belongs_to_a_network(lab: Lab, child: Sandbox) -> None:
    """ARP of everybody, tagged or not; of the machine itself whatever is not IP, such as LLDP."""
    tag = (50).to_bytes(2, "big") + ETH_ARP.to_bytes(2, "big")
    arp = ethernet(lab, ETH_ARP, b"arp" * 10)
    tagged = ethernet(lab, ETH_VLAN, tag + b"arp" * 10)
    lldp = ethernet(lab, ETH_LLDP, b"theirs" * 5)
    own = ethernet(lab, ETH_LLDP, b"ours" * 10, mac_of(lab.client))
    load(lab, STRICT, NOTHING)
    with capturing(lab) as capture:
        send(child, [(ETH_ARP, arp), (ETH_VLAN, tagged), (ETH_LLDP, lldp)])
        send(lab.client, [(ETH_LLDP, own)])
    seen = {frame.data for frame in capture.frames()}
    assert {arp, tagged, own} <= seen
    assert lldp not in seen


def test_long_datagrams_pass_whole(lab: Lab, child: Sandbox) -> None:
    """To what is not refused; the kernel of the container cuts them."""
    load(lab, CATALOG, NOTHING, DENIED)
    receiver = inside(lab.world, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sender = inside(child, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with receiver, sender:
        receiver.bind((DNS_V4, 4433))
        receiver.settimeout(2)
        sender.sendto(b"." * 4000, (DNS_V4, 4433))
        data, peer = receiver.recvfrom(8000)
    assert (len(data), peer[0]) == (4000, CHILD_V4)


# --- devices that come and go


def test_a_device_that_goes_away_takes_its_rules_and_no_others(lab: Lab, child: Sandbox) -> None:
    ip_in(
        lab.client,
        "link add up1 type veth peer name up1-far",
        "address add 192.0.3.2/24 dev up1",
        "link set up1 up",
    )
    try:
        table = load(lab, CATALOG, NOTHING, DENIED)
    finally:
        ip_in(lab.client, "link delete up1")
    assert [chain.device for chain in table.chains] == [None, None, UPLINK, "up1"]
    assert not reaches(child, V4, 443)
    assert [uplink.name for uplink in survey_of(lab.client).uplinks] == [UPLINK]
    load(lab, CATALOG, NOTHING, DENIED)
    assert not reaches(child, V4, 443)


def test_a_device_that_is_not_there_yet(lab: Lab, child: Sandbox) -> None:
    """Up to kernel 6.15 nothing is loaded and what stood stands; later ones wait for the device."""
    found = survey_of(lab.client)
    uplinks = (*found.uplinks, Uplink(999, "later0"))
    sets = EgressSets(NOTHING, DENIED)
    stood = load(lab, CATALOG, NOTHING, DENIED)
    table = compile_egress(uplinks, found.local, CATALOG, sets, SETTINGS)
    assert table is not None
    done = lab.client.run(["nft", "-f", "-"], input=render_replace(table), check=False)
    assert not reaches(child, V4, 443)
    if done.returncode:
        assert "No such file or directory" in done.stderr
        assert listing(lab).count("hook egress") == len(stood.chains) - 1
        return
    before = refused(lab)
    ip_in(lab.client, "link add later0 type veth peer name later1", "link set later0 up")
    try:
        frame = ethernet(lab, ETH_IP, ipv4(V4, TCP, BEGIN))
        make = inside(lab.client, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        with make as sock, pytest.raises(OSError, match="No buffer space"):
            sock.sendto(frame, ("later0", ETH_IP))
    finally:
        ip_in(lab.client, "link delete later0")
    assert refused(lab) == before + 1


# --- changes


def test_an_update_keeps_what_was_learned_and_counted(lab: Lab, child: Sandbox) -> None:
    old = load(lab, CATALOG, NOTHING, DENIED)
    assert not reaches(child, V4, 443)
    new = compiled(lab, CATALOG, EgressSets(allowed(policy(V6))))
    lab.client.run(["nft", "-f", "-"], input=render_update(old, new, [("deny4", f"{V4} . 443")]))
    assert refused(lab) == 1
    assert reaches(child, V4, 443)  # dropped from the set
    assert reaches(child, V6, 443)  # still in the set, and allowed now
    assert f"{V6} . 443" in listing(lab)


def test_an_exchange_of_tables_leaks_nothing(lab: Lab, child: Sandbox) -> None:
    """The old rules judge until the new ones do."""
    frames = [(ETH_IP, ethernet(lab, ETH_IP, ipv4(V4, TCP, BEGIN)))] * 20
    text = render_replace(load(lab, CATALOG, NOTHING, DENIED))
    log = lab.client.directory / "exchange.log"
    lab.client.write("/run/egress.nft", text)
    script = "for _ in $(seq 20); do nft -f /run/egress.nft || exit; done; echo exchanged"
    with capturing(lab) as capture:
        exchange = lab.client.popen(["sh", "-c", script], log=log)
        sent = 0
        while exchange.returncode is None:
            send(child, frames)
            sent += len(frames)
        exchange.wait_for_line("exchanged")
    assert sent > 100
    assert [frame for frame in capture.frames() if to(frame, V4)] == []

"""Changed answers: NXDOMAIN for a refused registry's API host, and nothing else touched."""

from __future__ import annotations

from ipaddress import IPv6Address

import dnslib
import pytest

from ramnet.core import blocker as module
from ramnet.core.blocker import Blocker
from ramnet.core.packet import Datagram, Flow, parse_packet
from ramnet.core.policy import Policy
from tests.unit.core.support import CATALOG, CLIENT, SERVER, allowed, policy, reply, udp

ONE = "198.51.100.1"


def blocker(found: Policy | None) -> Blocker:
    made = Blocker(CATALOG)
    if found is not None:
        made.use(allowed(found), found.organization)
    return made


def what_passes(made: Blocker, packet: bytes) -> bytes | None:
    """Return what passes in the place of a packet; None where that is left alone."""
    return None if made.blocks(packet) is None else made.changed(packet)


def answer(name: str, *addresses: str, edns: bool = False) -> bytes:
    payload = reply(name, *addresses)
    if edns:
        record = dnslib.DNSRecord.parse(payload)
        record.add_ar(dnslib.EDNS0(udp_len=1232))
        payload = bytes(record.pack())
    return udp(SERVER, 53, CLIENT, 40_000, payload)


@pytest.mark.parametrize("name", ["quay.io", "QUAY.io", "registry-1.docker.io", "ghcr.io"])
@pytest.mark.parametrize("edns", [False, True])
def test_the_api_host_of_a_refused_registry_does_not_exist(name: str, edns: bool) -> None:
    made = blocker(policy("registry.corp.example"))
    changed = what_passes(made, answer(name, ONE, edns=edns))
    assert changed is not None
    parsed = parse_packet(changed)
    assert isinstance(parsed, Datagram)
    assert parsed.flow == Flow(SERVER.packed, 53, CLIENT.packed, 40_000)
    said = dnslib.DNSRecord.parse(parsed.payload)
    assert said.header.rcode == dnslib.RCODE.NXDOMAIN
    assert said.header.id == 7
    assert said.rr == []
    assert str(said.q.qname).lower() == f"{name.lower()}."
    assert (b"registry not allowed by acme" in parsed.payload) is edns, "RFC 8914 needs EDNS"
    assert made.blocked == 1


def test_over_ipv6() -> None:
    server, client = IPv6Address("2001:db8::53"), IPv6Address("2001:db8::10")
    packet = udp(server, 53, client, 40_000, reply("quay.io", ONE))
    assert what_passes(blocker(policy("r.example")), packet) is not None


@pytest.mark.parametrize(
    "packet",
    [
        answer("auth.docker.io", ONE),  # also used to log in elsewhere
        answer("production.cloudflare.docker.com", ONE),
        answer("example.com", ONE),
        answer("registry.corp.example", ONE),
        answer("x.quay.io", ONE),
        b"",
        b"\x45" * 60,
        udp(SERVER, 53, CLIENT, 40_000, b""),
        udp(SERVER, 53, CLIENT, 40_000, reply("quay.io", ONE)[:14]),
    ],
)
def test_everything_else_is_left_alone(packet: bytes) -> None:
    made = blocker(policy("registry.corp.example"))
    assert what_passes(made, packet) is None
    assert made.blocked == 0


def test_what_the_policy_allows_is_left_alone() -> None:
    made = blocker(policy("docker.io"))
    assert what_passes(made, answer("registry-1.docker.io", ONE)) is None
    assert what_passes(made, answer("quay.io", ONE)) is not None
    found = policy("quay.io")
    made.use(allowed(found), found.organization)
    assert what_passes(made, answer("quay.io", ONE)) is None, "by the policy of now"


def test_a_registry_that_is_only_a_destination_is_for_engines() -> None:
    made = blocker(policy("r.example", more='[[destination]]\naddress = "quay.io"\n'))
    assert what_passes(made, answer("quay.io", ONE)) is not None


def test_without_a_policy_nothing_is_changed() -> None:
    made = blocker(None)
    assert what_passes(made, answer("quay.io", ONE)) is None
    made = blocker(policy("r.example"))
    made.use(None, "")
    assert what_passes(made, answer("quay.io", ONE)) is None


def test_the_daemons_own_answers_are_left_alone() -> None:
    """It looks refused registries up itself, to know their addresses."""
    made = blocker(policy("r.example"))
    ports: set[int] = set()
    made.own = ports
    packet = answer("quay.io", ONE)
    assert what_passes(made, packet) is not None
    ports.add(40_000)
    assert what_passes(made, packet) is None
    other = udp(SERVER, 53, CLIENT, 40_001, reply("quay.io", ONE))
    assert what_passes(made, other) is not None
    ports.discard(40_000)
    assert what_passes(made, packet) is not None
    assert made.blocked == 3


def test_names_that_were_judged_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_NAMES", 2)
    made = blocker(policy("r.example"))
    for n in range(5):
        assert what_passes(made, answer(f"n{n}.example", ONE)) is None
    assert what_passes(made, answer("quay.io", ONE)) is not None
    assert what_passes(made, answer("quay.io", ONE)) is not None

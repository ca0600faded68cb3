"""Nothing but what the policy allows leaves on the judged ports, whatever the daemon goes through.

The judge is a capture at the far end of the wire. Each zero has a control in which the same
attempts are made without ramnet and are all seen there.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from ramnet.lab.generator import Counts, Generator
from ramnet.lab.lab import Lab
from ramnet.lab.sandbox import HOSTS, Sandbox
from ramnet.lab.world import CORP, DUAL, EVIL
from tests.netns.dnsworld import MODES
from tests.netns.support import (
    ALLOWED,
    CORP_REGISTRY,
    DUAL_REGISTRY,
    REFUSED,
    Ramnet,
    Target,
    attempt,
    hung,
    outcomes,
    policy,
    put_policy,
    status,
    syns_to,
    table,
    wait_leases,
    wait_status,
)

pytestmark = pytest.mark.netns


@pytest.fixture(params=MODES)
def ramnet(request: pytest.FixtureRequest, ramnet: Ramnet) -> Ramnet:
    """Make daemons of either mode: the zeros of this file are zeros in both."""
    return replace(ramnet, config=MODES[request.param])


UNJUDGED = 8443  # served by the lab's registries; judged only when the policy names it

# The generator makes RATE connects a second to ALLOWED and REFUSED in turn. What is refused must
# get at least LEAST of them: the rest is slack for a machine that does other things as well.
RATE = 500.0
LEAST = 200.0
PHASE = 250  # attempts in each phase


@contextlib.contextmanager
def hosts_file(sandbox: Sandbox, *lines: str) -> Iterator[None]:
    sandbox.write("/etc/hosts", HOSTS + "".join(f"{line}\n" for line in lines))
    try:
        yield
    finally:
        sandbox.write("/etc/hosts", HOSTS)


def each(addresses: tuple[str, ...], port: int) -> list[Target]:
    return [(address, port) for address in addresses]


# name: (lines of the hosts file, what the client asks for, what it then dials)
WAYS = {
    "by name": ([], [("evil.example", 443)], each(EVIL, 443)),
    "by name on 80 and 5000": (
        [],
        [("evil.example", 80), ("evil.example", 5000)],
        [*each(EVIL, 80), *each(EVIL, 5000)],
    ),
    "by bare address": ([], each(EVIL, 443), each(EVIL, 443)),
    "by a hosts-file entry": (
        [f"{address} innocent.example" for address in EVIL],
        [("innocent.example", 443)],
        each(EVIL, 443),
    ),
    "by a hosts-file entry for an allowed name": (
        [f"{address} {DUAL_REGISTRY}" for address in EVIL],
        [(DUAL_REGISTRY, 443)],
        each(EVIL, 443),
    ),
    "another port of an allowed name": (
        [],
        [(DUAL_REGISTRY, 80), (DUAL_REGISTRY, 5000), ("registry.corp.example", 443)],
        [*each(DUAL, 80), *each(DUAL, 5000), (CORP[0], 443)],
    ),
    "another port of an allowed address": (
        [],
        [(DUAL[0], 5000), (DUAL[1], 5000), (CORP[0], 80)],
        [(DUAL[0], 5000), (DUAL[1], 5000), (CORP[0], 80)],
    ),
}


def test_what_the_policy_does_not_list_is_refused(lab: Lab, ramnet: Ramnet) -> None:
    with lab.capture() as control:
        for way, (lines, asked, dialled) in WAYS.items():
            with hosts_file(lab.client, *lines):
                said = attempt(lab.client, *asked)
            assert said == dict.fromkeys(dialled, "connected"), way
        everything = {pair for _, _, dialled in WAYS.values() for pair in dialled}
        assert {(str(syn.dst), syn.dport) for syn in control.syns} == everything

    ramnet.enforcing()
    with lab.capture() as capture:
        for way, (lines, asked, dialled) in WAYS.items():
            with hosts_file(lab.client, *lines):
                said = attempt(lab.client, *asked)
            assert said == dict.fromkeys(dialled, "refused"), way
        assert capture.syns == ()
        assert attempt(lab.client, *ALLOWED) == dict.fromkeys(ALLOWED, "connected")


def test_only_judged_ports_are_judged_and_a_port_of_the_policy_is_one(
    lab: Lab, ramnet: Ramnet
) -> None:
    daemon = ramnet.enforcing()
    strange = each(EVIL, UNJUDGED)
    assert UNJUDGED not in status(daemon)["scope"]["ports"]
    assert outcomes(lab.client, *strange) == {"connected"}

    daemon.write_policy(policy(f"registry.corp.example:{UNJUDGED}"))
    said = wait_status(daemon, lambda said: UNJUDGED in said["scope"]["ports"], "the new port")
    assert f"TCP ports other than 80, 443, 5000, {UNJUDGED}" in said["not_covered"][0]
    with lab.capture() as capture:
        assert outcomes(lab.client, *strange) == {"refused"}
        assert syns_to(capture, strange) == []


def test_a_refusal_is_counted_and_told_to_the_client_soon(lab: Lab, ramnet: Ramnet) -> None:
    daemon = ramnet.enforcing()
    before = status(daemon)
    begin = time.monotonic()
    assert outcomes(lab.client, *REFUSED) == {"refused"}
    took = time.monotonic() - begin
    after = status(daemon)
    assert after["refused"] - before["refused"] == len(REFUSED)
    held = after["held_first_syn"] - before["held_first_syn"]
    if before["dns"]["mode"] == "hold":  # at once: no SYN is sent again
        assert took < 1
        assert held == 0
        assert "@seen" not in table(lab.client)
    else:
        # The retransmission comes after 1 s; the one after that, which is not needed, after 3 s.
        assert 1 <= took < 3
        assert held == len(REFUSED)


# --- under load, through the daemon's whole life


def failed(generator: Generator) -> dict[Target, int]:
    """Attempts to allowed targets that did not connect."""
    targets = generator.report.targets
    return {pair: _lost(targets.get(pair, Counts())) for pair in ALLOWED}


def _lost(counts: Counts) -> int:
    return counts.refused + counts.timeout + counts.error


def connected(generator: Generator) -> dict[Target, int]:
    targets = generator.report.targets
    return {pair: targets.get(pair, Counts()).connected for pair in ALLOWED}


def test_control_the_far_side_sees_every_attempt_without_ramnet(lab: Lab) -> None:
    with lab.capture() as capture:
        with lab.generator([*ALLOWED, *REFUSED], rate=RATE) as generator:
            generator.wait_attempts(3 * PHASE)
        report = generator.stop()
        seen = {(str(ip), port): count for (ip, port), count in capture.attempts().items()}
    assert seen == {pair: counts.attempted for pair, counts in report.targets.items()}
    assert {pair: counts.connected for pair, counts in report.targets.items()} == seen
    assert _rate(generator) >= LEAST


def _rate(generator: Generator) -> float:
    report = generator.report
    return sum(report.targets[pair].attempted for pair in REFUSED) / report.seconds


def test_nothing_leaks_from_readiness_on(lab: Lab, ramnet: Ramnet) -> None:
    """The first ruleset stops what passed until then, and the daemon says so only afterwards."""
    daemon = ramnet(policy(CORP_REGISTRY, DUAL_REGISTRY), start=False)
    with lab.capture() as capture:
        with lab.generator([*ALLOWED, *REFUSED], rate=RATE) as generator:
            generator.wait_attempts(PHASE)
            daemon.start(wait=False)
            daemon.wait_ready()
            ready = time.time()
            generator.wait_attempts(PHASE)
        passed = syns_to(capture, REFUSED)
    assert passed, "control: before the first ruleset the attempts are seen"
    assert [syn for syn in passed if syn.time > ready] == []


def test_nothing_leaks_through_reload_hang_stop_kill_and_restart(lab: Lab, ramnet: Ramnet) -> None:
    daemon = ramnet.enforcing()
    texts = [
        policy(CORP_REGISTRY, DUAL_REGISTRY, "quay.io"),
        policy(CORP_REGISTRY, DUAL_REGISTRY, "ghcr.io:8443", "10.0.0.0"),
        policy(CORP_REGISTRY, DUAL_REGISTRY),
    ]
    with lab.capture() as capture:
        with lab.generator([*ALLOWED, *REFUSED], rate=RATE) as generator:
            for text in texts:  # reload
                put_policy(daemon, text)
                generator.wait_attempts(PHASE)
            daemon.write_policy("not a policy")
            generator.wait_attempts(PHASE)
            daemon.write_policy(texts[-1])
            with hung(daemon):
                generator.wait_attempts(PHASE)
            for end in (daemon.stop, daemon.kill):
                end()
                generator.wait_attempts(PHASE)
                daemon.start()
                generator.wait_attempts(PHASE)
            # A start that is cut short, at several moments.
            for tenths in (2, 5, 8):
                daemon.kill()
                daemon.start(wait=False)
                time.sleep(tenths / 10)
            daemon.kill()
            daemon.start()
            generator.wait_attempts(PHASE)
        report = generator.stop()
        leaked = syns_to(capture, REFUSED)
        reached = {(str(syn.dst), syn.dport) for syn in capture.syns}
    assert leaked == []
    assert all(report.targets[pair].attempted > PHASE / 2 for pair in REFUSED)
    assert _rate(generator) >= LEAST
    # What is allowed stayed so, in every one of these moments.
    assert reached == set(ALLOWED)
    assert failed(generator) == dict.fromkeys(ALLOWED, 0)
    assert connected(generator) == {pair: report.targets[pair].attempted for pair in ALLOWED}


def test_an_address_that_moves_under_load_is_followed(lab: Lab, ramnet: Ramnet) -> None:
    """The names' new addresses are reached, and nothing else of the far side is."""
    moved: list[Target] = [("198.51.100.200", 443), ("2001:db8::200", 443)]
    daemon = ramnet.enforcing()
    before = lab.dns.table[DUAL_REGISTRY]
    try:
        with lab.capture() as capture:
            with lab.generator([*moved, *REFUSED], rate=RATE) as generator:
                generator.wait_attempts(PHASE)
                assert syns_to(capture, moved) == []
                lab.dns.set(DUAL_REGISTRY, *(address for address, _ in moved))
                assert attempt(lab.client, (DUAL_REGISTRY, 443)) == dict.fromkeys(
                    moved, "connected"
                )
                wait_leases(daemon, len(ALLOWED) + len(moved))
                generator.wait_attempts(PHASE)
            assert syns_to(capture, REFUSED) == []
            assert {(str(syn.dst), syn.dport) for syn in syns_to(capture, moved)} == set(moved)
    finally:
        lab.dns.update({DUAL_REGISTRY: before})

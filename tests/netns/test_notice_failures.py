"""The notice in trouble: whoever is dead, stuck or replaced, what is refused stays refused.

Refused clients ask a server on the far side as an engine does, under scope ``cgroup``, where an
ordinary user may reach that server: a relay in the responder's place would really be a way round.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from ramnet.lab.lab import Lab
from ramnet.lab.process import Process, wait_until
from ramnet.lab.ramnet import Daemon
from ramnet.lab.world import EVIL
from tests.netns.noticed import (
    PORT,
    ask,
    half_open,
    kinds,
    nuisance,
    resident_peak,
    said_by,
    start_relay,
    start_server,
    waiting_for_ack,
)
from tests.netns.noticing import notice_alive, notice_port, responder_of, wait_notice
from tests.netns.places import machine, reach
from tests.netns.support import (
    ALLOWED,
    CORP_REGISTRY,
    DUAL_REGISTRY,
    hung,
    policy,
    remove_rules,
    wait_leases,
)

pytestmark = pytest.mark.netns

V4, V6 = ((address, PORT) for address in EVIL)
# A sign of life counts for one second; a busy machine may take its time.
FALLBACK_SECONDS = 10.0
RACE_SECONDS = 3.0
MANY = 1000
SOME = 400  # of each family: less than there is room for
RATE = 200.0
# 1,000 sessions of TLS take 45 kB each, see host/responder.py.
GROWTH = 64 * 1024 * 1024
SOON = 5.0


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(engine_cgroup=True) as made:
        start_server(made)
        yield made


@contextmanager
def noticing(lab: Lab) -> Iterator[Daemon]:
    daemon = lab.daemon(policy(CORP_REGISTRY, DUAL_REGISTRY, on_deny=None))
    try:
        wait_leases(daemon, len(ALLOWED))
        wait_notice(lab.client)
        yield daemon
    finally:
        daemon.abandon()
        remove_rules(lab.client)


@pytest.fixture
def daemon(lab: Lab) -> Iterator[Daemon]:
    with noticing(lab) as made:
        yield made


def responder(daemon: Daemon) -> int:
    found = responder_of(daemon)
    assert found is not None
    return found


def outcome(lab: Lab, seconds: float = 10.0) -> set[str]:
    """What a refused client gets, by IPv4 and IPv6."""
    return set(kinds(ask(lab, V4, V6, seconds=seconds)[1]))


def wait_rejecting(lab: Lab) -> None:
    wait_notice(lab.client, alive=False, seconds=FALLBACK_SECONDS)
    assert outcome(lab) == {"refused"}


def test_without_ramnet_the_server_is_reached_and_with_it_the_notice(lab: Lab) -> None:
    with lab.capture() as control:
        assert outcome(lab) == {"real"}
        assert len(control.to(EVIL, ports=[PORT])) == 2
    with noticing(lab), lab.capture() as capture:
        assert outcome(lab) == {"notice"}
        assert capture.syns == ()
        # Who is no engine may go there: this is what makes a relay of one a way round.
        assert reach(machine(lab.client), [V4]) == {V4: {"reached"}}
    assert outcome(lab) == {"real"}


def test_a_responder_that_is_killed_is_replaced(lab: Lab, daemon: Daemon) -> None:
    port, before = notice_port(lab.client), responder(daemon)
    with lab.capture() as capture:
        os.kill(before, signal.SIGKILL)
        # At once, before anything is noticed: whoever is led there waits for the next one.
        assert outcome(lab) <= {"notice", "refused", "reset"}
        wait_until(lambda: responder_of(daemon) not in (None, before), 10, "another responder")
        wait_notice(lab.client)
        assert outcome(lab) == {"notice"}
        assert capture.syns == ()
    assert notice_port(lab.client) == port


def test_a_responder_that_is_stopped_is_not_waited_for(lab: Lab, daemon: Daemon) -> None:
    stopped = responder(daemon)
    with lab.capture() as capture:
        os.kill(stopped, signal.SIGSTOP)
        try:
            wait_rejecting(lab)
            begin = time.monotonic()
            assert outcome(lab) <= {"refused", "notice"}
            assert time.monotonic() - begin < SOON
        finally:
            os.kill(stopped, signal.SIGCONT)
        wait_notice(lab.client)
        assert outcome(lab) == {"notice"}
        assert capture.syns == ()


def test_a_daemon_that_is_stopped_is_not_waited_for(lab: Lab, daemon: Daemon) -> None:
    with lab.capture() as capture:
        with hung(daemon):
            wait_rejecting(lab)
        wait_notice(lab.client)
        assert outcome(lab) == {"notice"}
        assert capture.syns == ()


def test_a_daemon_that_is_killed_leaves_refusals_and_the_next_one_the_notice(
    lab: Lab, daemon: Daemon
) -> None:
    with lab.capture() as capture:
        daemon.kill()
        wait_rejecting(lab)
        assert capture.syns == ()
        daemon.start()
        wait_notice(lab.client)
        assert outcome(lab) == {"notice"}
        assert capture.to(EVIL) == ()


# --- the port in other hands


@contextmanager
def grabbed(lab: Lab, daemon: Daemon) -> Iterator[Process]:
    """Kill responder and daemon while a relay waits for their port, and gets it."""
    relay = start_relay(lab, notice_port(lab.client))
    try:
        pid = responder(daemon)
        assert "has" not in said_by(relay)
        daemon.kill()
        with suppress(ProcessLookupError):  # it ends with the daemon
            os.kill(pid, signal.SIGKILL)
        yield relay
    finally:
        relay.kill()


def has_both(relay: Process) -> bool:
    return "has 127.0.0.1" in said_by(relay) and "has ::1" in said_by(relay)


def keep_alive(lab: Lab) -> None:
    """Give the sign of life that the daemon gives, for the rest of the test."""
    wait_notice(lab.client, alive=False, seconds=FALLBACK_SECONDS)
    element = "inet ramnet notice { tcp timeout 60s }"
    lab.client.run(["nft", "add", "element", *element.split()])
    assert notice_alive(lab.client)


def test_a_relay_that_takes_the_port_at_once_gets_nobody(lab: Lab, daemon: Daemon) -> None:
    with lab.capture() as capture, grabbed(lab, daemon) as relay:
        end = time.monotonic() + RACE_SECONDS
        found: set[str] = set()
        while time.monotonic() < end:
            found |= outcome(lab, seconds=0.5)
        wait_until(lambda: has_both(relay), 5, "the port in other hands")
        assert "real" not in found
        assert "refused" in found
        assert "accepted" not in said_by(relay)
        assert capture.to(EVIL) == ()


def test_a_relay_gets_nobody_even_while_connections_are_led_to_it(lab: Lab, daemon: Daemon) -> None:
    with lab.capture() as capture, grabbed(lab, daemon) as relay:
        wait_until(lambda: has_both(relay), 5, "the port in other hands")
        keep_alive(lab)
        assert outcome(lab, seconds=3) == {"timeout"}
        assert "accepted" not in said_by(relay)
        assert capture.to(EVIL) == ()

        # The control: the same relay, the same client, without the rules that were in the way.
        delete_rules(lab, "noticed", "goto answered")
        assert outcome(lab) == {"real"}
        assert "leads to" in said_by(relay)
        assert len(capture.to(EVIL, ports=[PORT])) == 2


def delete_rules(lab: Lab, chain: str, words: str) -> None:
    listing = lab.client.run(["nft", "-a", "list", "chain", "inet", "ramnet", chain]).stdout
    found = [line for line in listing.splitlines() if words in line]
    assert found
    for line in found:
        place = ["inet", "ramnet", chain, "handle", line.rpartition("# handle ")[2]]
        lab.client.run(["nft", "delete", "rule", *place])


# --- crowds


@pytest.mark.parametrize("tls", [False, True], ids=["http", "tls"])
def test_a_thousand_refused_at_once_are_no_matter_to_those_who_are_allowed(
    lab: Lab, daemon: Daemon, *, tls: bool
) -> None:
    pid = responder(daemon)
    before = resident_peak(pid)
    targets = [(V4, V6)[index % 2] for index in range(MANY)]
    with lab.capture() as capture:
        with lab.generator(ALLOWED, rate=RATE, cgroup=lab.engine_cgroup) as allowed:
            allowed.wait_attempts(50)
            took, answers = ask(lab, *targets, seconds=30, tls=tls)
            allowed.wait_attempts(50)
        total = allowed.report.total
        assert total.connected >= total.attempted - 1
        assert total.refused == 0
        assert capture.to(EVIL) == ()
    found = kinds(answers)
    assert len(answers) == MANY
    assert set(found) <= {"notice", "refused", "reset"}
    assert found["notice"] > MANY / 2
    grown = resident_peak(pid) - before
    sys.stdout.write(f"{dict(found)} in {took:.1f} s, {grown} octets more\n")
    assert responder(daemon) == pid
    assert grown < GROWTH
    assert outcome(lab) == {"notice"}


@pytest.mark.parametrize("kind", ["silent", "slow", "garbage", "header", "hello"])
def test_clients_that_only_take_up_room_hold_nobody_up(lab: Lab, daemon: Daemon, kind: str) -> None:
    pid = responder(daemon)
    before = resident_peak(pid)
    with lab.capture() as capture, ExitStack() as stack:
        for place in (V4, V6):
            stack.callback(nuisance(lab, kind, place, SOME).kill)
        for _ in range(3):
            took, answers = ask(lab, V4, V6)
            assert set(kinds(answers)) == {"notice"}, answers
            assert took < SOON
        assert notice_alive(lab.client)
        assert capture.to(EVIL) == ()
    assert responder(daemon) == pid
    assert resident_peak(pid) - before < GROWTH


def test_connections_that_are_half_open_hold_nobody_up(lab: Lab, daemon: Daemon) -> None:
    with lab.capture() as capture, half_open(lab, V4, MANY):
        assert waiting_for_ack(lab, notice_port(lab.client)) > MANY / 2
        took, answers = ask(lab, V4, V6)
        assert set(kinds(answers)) == {"notice"}, answers
        assert took < SOON
        assert notice_alive(lab.client)
        assert capture.to(EVIL) == ()
    assert daemon.running


@pytest.mark.parametrize("kind", ["silent", "garbage"])
def test_more_of_them_than_there_is_room_for_leave_nobody_waiting(
    lab: Lab, daemon: Daemon, kind: str
) -> None:
    """They come again as soon as they are sent away: there may be no time for words."""
    pid = responder(daemon)
    before = resident_peak(pid)
    with lab.capture() as capture:
        with ExitStack() as stack:
            for place in (V4, V6):
                stack.callback(nuisance(lab, kind, place, MANY).kill)
            for _ in range(3):
                took, answers = ask(lab, V4, V6)
                assert set(kinds(answers)) <= {"notice", "refused", "reset"}, answers
                assert took < SOON
        wait_notice(lab.client)
        wait_until(lambda: outcome(lab) == {"notice"}, SOON, "words again")
        assert capture.to(EVIL) == ()
    assert responder(daemon) == pid
    assert resident_peak(pid) - before < GROWTH

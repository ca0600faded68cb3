"""Mode ``hold``: no SYN is earlier than its element, whoever asks and however fast it dials."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from ramnet.core.terms import COMPAT_CHAINS, NFLOG_GROUP, QUEUE
from ramnet.host.nflog import NflogReader
from ramnet.host.queue import NfQueue
from ramnet.lab.lab import Lab
from ramnet.lab.process import wait_until
from ramnet.lab.ramnet import Daemon
from tests.netns.dnsworld import (
    LEARN_SECONDS,
    Clients,
    Script,
    addr,
    inside,
    policy,
    query,
    reply,
    status,
    wait_learned,
)
from tests.netns.holdworld import (
    RESOLVER,
    RESOLVER_V6,
    SCRIPTED,
    Client,
    Run,
    config,
    elements,
    held,
    measured,
    run,
    total,
    wait_nothing_held,
    without_hold,
    world,
)
from tests.netns.support import Ramnet, put_policy, table

pytestmark = pytest.mark.netns

FRESH = policy("*.fresh.example")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with world() as made:
        yield made


@pytest.fixture
def clients(lab: Lab) -> Iterator[Clients]:
    with Clients(lab.client, "192.0.2.2", "2001:db8:ffff::2") as made:
        yield made


def none_refused(daemon: Daemon, *runs: Run) -> None:
    """The pass of this file: nothing refused, nothing delayed, nothing lost, by either count."""
    said = status(daemon)
    assert said["refused"] == 0, total(runs)
    for one in runs:
        assert (one.refused, one.delayed, one.lost) == (0, 0, 0), (str(one), said)
    hold = said["dns"]["hold"]
    late = {key: hold[key] for key in ("released_late", "written_late", "write_failures")}
    assert not any(late.values()), hold
    assert hold["overruns"] == 0
    assert said["repairs"] == 0


def queue_rules(lab: Lab) -> int:
    """Count the rules with xt's target; nft's own text translates it where it can."""
    listing = json.loads(lab.client.run(["nft", "-j", "list", "ruleset"]).stdout)
    rules = [part["rule"] for part in listing["nftables"] if "rule" in part]
    targets = [item.get("xt", {}) for rule in rules for item in rule["expr"]]
    return sum(item.get("name") == "NFQUEUE" for item in targets)


# --- 10,000 names


def test_ten_thousand_fresh_names_are_never_refused(lab: Lab, ramnet: Ramnet) -> None:
    daemon = ramnet(FRESH, config=config())
    assert status(daemon)["dns"]["rung"] == "compat"
    found = run(lab, "a", 0, 10_000)
    none_refused(daemon, found)
    assert found.said == {"connected": 10_000}
    said = status(daemon)
    assert (said["dns"]["learned"], said["leases"]) == (10_000, 10_000)
    assert said["dns"]["hold"]["held"] == 10_000
    assert sum(said["dns"]["hold"]["hold_us"].values()) == 10_000


def test_parallel_clients_of_both_families_are_never_refused(lab: Lab, ramnet: Ramnet) -> None:
    """Four at once: like glibc, like Go (dockerd), over IPv6, and one family at a time."""
    daemon = ramnet(FRESH, config=config())
    at_once = [
        Client(lab, "one", 1, 1_000),
        Client(lab, "two", 2, 1_000),
        Client(lab, "two", 3, 1_000, server=RESOLVER_V6),
        Client(lab, "aaaa", 4, 1_000),
    ]
    runs = [client.result() for client in at_once]
    none_refused(daemon, *runs)
    assert [one.said for one in runs] == [{"connected": 2_000}] * 3 + [{"connected": 1_000}]
    assert status(daemon)["leases"] == 7_000


def test_without_the_hold_rule_the_same_client_is_refused(lab: Lab, ramnet: Ramnet) -> None:
    """The control: everything else stays, the daemon still learns, from copies."""
    daemon = ramnet(FRESH, config=config())
    without_hold(lab.client)
    found = [run(lab, "a", 5, 300), run(lab, "two", 6, 150)]
    assert all(one.said["ECONNREFUSED"] > 0 for one in found), total(found)
    said = status(daemon)
    assert said["refused"] == sum(one.refused for one in found)
    assert said["dns"]["hold"]["held"] == 0
    # It learned them all, only too late, and the table is as it was: the rule made the difference.
    wait_until(lambda: status(daemon)["leases"] == 600, LEARN_SECONDS, "learning from copies")
    assert status(daemon)["repairs"] == 0


def test_observe_refuses_nothing_and_what_it_costs(lab: Lab, ramnet: Ramnet) -> None:
    daemon = ramnet(FRESH, config=config("observe"))
    found = run(lab, "patient", 7, 300)
    assert (found.refused, found.lost) == (0, 0), found
    said = status(daemon)
    assert (said["dns"]["mode"], said["refused"], said["dns"]["hold"]) == ("observe", 0, None)
    slow = [took for took in found.connects if took > 0.5]
    share = len(slow) / len(found.connects)
    measured(delayed_share=share, delayed_seconds=(min(slow), max(slow)))
    # The cost that the docs tell of is one retransmission, for the first connect to each address.
    assert 0 < share <= 1
    assert 0.9 < min(slow) <= max(slow) < 3
    assert said["held_first_syn"] >= len(slow)


# --- what is held, and what is not


def test_a_known_lease_skips_the_hold(lab: Lab, ramnet: Ramnet) -> None:
    daemon = ramnet(FRESH, config=config())
    first = run(lab, "a", 8, 50)
    before = held(daemon)
    assert (before["seen"], before["held"]) == (50, 50)
    again = run(lab, "a", 8, 50)
    other = run(lab, "a", 8, 50, parent="other.example")  # the same addresses, another name
    after = held(daemon)
    assert (after["seen"], after["held"]) == (150, 50)
    assert sum(after["hold_us"].values()) == 50
    none_refused(daemon, first, again, other)
    assert status(daemon)["dns"]["learned"] == 50


def test_one_batch_for_each_answer(lab: Lab, ramnet: Ramnet, clients: Clients) -> None:
    """Eight addresses are one transaction: the kernel counts generations."""
    ramnet(FRESH, config=config())
    log = lab.directory / "monitor"
    monitor = lab.client.popen(["stdbuf", "-oL", "nft", "monitor"], log=log)
    # The heartbeat changes the table three times a second: the monitor works when it is seen.
    monitor.wait_for_line("element inet ramnet alive")
    addresses = [f"10.100.1.{n}" for n in range(1, 9)]
    with Script(lab.world, SCRIPTED) as script:
        asked = clients.ask(SCRIPTED, query("many.fresh.example"))
        heard = script.wait("many.fresh.example")
        script.say(heard, reply(asked.wire, *(addr(asked.name, one) for one in addresses)))
        asked.sock.recv(2048)
    wait_learned(lab.client, *addresses)
    marker = "10.100.1.8 . 443"
    wait_until(lambda: marker in log.read_text(encoding="utf-8"), LEARN_SECONDS, marker)
    beats = log.read_text(encoding="utf-8").count("alive")
    wait_until(
        lambda: log.read_text(encoding="utf-8").count("alive") > beats, LEARN_SECONDS, "a beat"
    )
    monitor.kill()
    generations = log.read_text(encoding="utf-8").split("# new generation")
    holding = [part for part in generations if "add element inet ramnet allow4" in part]
    assert len(holding) == 1, holding
    assert all(f"{one} . 443" in holding[0] for one in addresses)


def test_answers_for_other_names_are_not_held(lab: Lab, ramnet: Ramnet) -> None:
    daemon = ramnet(FRESH, config=config())
    found = run(lab, "a", 9, 30, parent="other.example")
    assert found.said == {"ECONNREFUSED": 30}, found
    assert found.lost == 0
    after = held(daemon)
    assert (after["seen"], after["held"], after["waiting"]) == (30, 0, 0)
    assert status(daemon)["refused"] == 30


def test_a_wrong_answer_does_not_hide_the_right_one(
    lab: Lab, ramnet: Ramnet, clients: Clients
) -> None:
    """The same words with a wrong ID come first: who is to be believed comes second."""
    daemon = ramnet(FRESH, config=config())
    with Script(lab.world, SCRIPTED) as script:
        for number in range(5):
            address = f"10.100.2.{number}"
            asked = clients.ask(SCRIPTED, query(f"w{number}.fresh.example", ident=7))
            heard = script.wait(asked.name)
            right = reply(asked.wire, addr(asked.name, address))
            script.say(heard, b"\0\x08" + right[2:], right)
            # Only the right one waited, so it may be the second.
            assert {asked.sock.recv(2048)[1], asked.sock.recv(2048)[1]} == {7, 8}
            assert address in elements(lab.client, "10.100.2.")
    assert status(daemon)["dns"]["ignored"]["no-matching-query"] == 5


def test_a_burst_of_queries_does_not_hide_one(lab: Lab, ramnet: Ramnet, clients: Clients) -> None:
    """A thousand other queries left first, without an answer yet; one answer comes at once.

    The daemon is stopped meanwhile, as a busy machine does for a few milliseconds: then all of it
    waits to be read, and the query is behind the others.
    """
    daemon = ramnet(FRESH, config=config())
    with Script(lab.world, SCRIPTED) as script:
        silent = clients.bind(RESOLVER)
        for number in range(5):
            address, name = f"10.100.3.{number}", f"b{number}.fresh.example"
            wire = [query(f"s{other}.other.example", ident=other) for other in range(1_000)]
            os.kill(daemon.pid, signal.SIGSTOP)
            for one in wire:
                silent.sendto(one, (RESOLVER, 53))
            asked = clients.ask(SCRIPTED, query(name))
            script.say(script.wait(name), reply(asked.wire, addr(name, address)))
            os.kill(daemon.pid, signal.SIGCONT)
            asked.sock.recv(2048)
            assert address in elements(lab.client, "10.100.3.")
    assert "no-matching-query" not in status(daemon)["dns"]["ignored"]


# --- counters and modes


def test_status_has_the_counters_and_the_histogram(lab: Lab, ramnet: Ramnet) -> None:
    daemon = ramnet(FRESH, config=config())
    run(lab, "a", 10, 20)
    hold = daemon.status()["dns"]["hold"]  # by the command line, as JSON
    times = hold.pop("hold_us")
    counts = {
        "seen": 20,
        "held": 20,
        "waiting": 0,
        "released_late": 0,
        "written_late": 0,
        "write_failures": 0,
        "overruns": 0,
    }
    assert counts.items() <= hold.items(), hold  # keys are only ever added
    bounds = [int(key) for key in times]
    assert bounds == sorted(bounds)
    assert sum(times.values()) == 20


@pytest.mark.parametrize(
    ("mode", "rung", "because"),
    [
        ("auto", "compat", "xt NFQUEUE"),
        ("hold", "compat", "xt NFQUEUE"),
        ("observe", "observe", "configured"),
    ],
)
def test_the_mode_may_be_forced(
    lab: Lab, ramnet: Ramnet, mode: str, rung: str, because: str
) -> None:
    daemon = ramnet(FRESH, config=config(mode))
    said = status(daemon)["dns"]
    assert said["mode"] == ("observe" if mode == "observe" else "hold")
    assert said["rung"] == rung
    assert because in said["because"]
    assert queue_rules(lab) == (len(COMPAT_CHAINS) if rung == "compat" else 0)


def test_the_compat_rule_comes_and_goes_with_the_table(lab: Lab, ramnet: Ramnet) -> None:
    daemon = ramnet(FRESH, config=config())
    assert queue_rules(lab) == len(COMPAT_CHAINS)
    put_policy(daemon, policy("*.fresh.example", "*.more.example"))  # an update keeps it, once
    assert queue_rules(lab) == len(COMPAT_CHAINS)
    lab.client.run(["nft", "flush", "chain", "inet", "ramnet", "hold"])  # and a repair puts it back
    wait_until(lambda: status(daemon)["repairs"] == 1, LEARN_SECONDS, "the repair")
    assert queue_rules(lab) == len(COMPAT_CHAINS)
    none = run(lab, "a", 11, 20)
    assert (none.refused, none.lost) == (0, 0), none
    daemon.cli("off", check=True)
    daemon.wait()
    assert table(lab.client) == ""
    assert queue_rules(lab) == 0


@pytest.mark.parametrize(
    ("owned", "what"), [(NfQueue, f"queue {QUEUE}"), (NflogReader, f"NFLOG group {NFLOG_GROUP}")]
)
def test_who_owns_the_queue_or_the_copies_locks_a_second_out(
    lab: Lab, ramnet: Ramnet, owned: Callable[[int], NfQueue | NflogReader], what: str
) -> None:
    assert QUEUE == NFLOG_GROUP
    with ExitStack() as stack:
        owner = inside(lab.client, lambda: owned(QUEUE))
        stack.callback(owner.close)
        second = ramnet(FRESH, config=config(), start=False)
        second.start(wait=False)
        assert second.wait() == 1
        assert f"{what} belongs to another process in this network namespace" in second.log
        assert "Traceback" not in second.log
        assert table(lab.client) == ""
    second.start()  # the lock went with its owner
    assert status(second)["dns"]["rung"] == "compat"


# --- policy edits


def test_a_policy_edit_while_learning_at_a_high_rate(lab: Lab, ramnet: Ramnet) -> None:
    """Of a name that was removed, nothing passes any more; of one that stays, all does."""
    both, less = policy("*.kept.example", "*.gone.example"), policy("*.kept.example")
    daemon = ramnet(both, config=config())
    seconds = 7.0
    with lab.capture() as capture:
        kept = Client(lab, "two", 12, 60_000, parent="kept.example", seconds=seconds)
        gone = Client(lab, "one", 13, 60_000, parent="gone.example", seconds=seconds)
        removed: list[tuple[float, float]] = []
        time.sleep(0.5)
        for _ in range(3):
            put_policy(daemon, less)
            begin = time.time()
            time.sleep(0.5)
            # What was under way when the edit came into force has been written by now.
            assert elements(lab.client, "10.77.") == []
            assert elements(lab.client, "2001:db8:64:d:") == []
            removed.append((begin, time.time()))
            put_policy(daemon, both)
            time.sleep(0.5)
        runs = [kept.result(), gone.result()]
        syns = capture.syns
    reached = [syn for syn in syns if str(syn.dst).startswith(("10.77.", "2001:db8:64:d:"))]
    assert len(reached) > 200, total(runs)  # the control: while it was allowed, it was reached
    leaked = [syn for syn in reached if any(a <= syn.time <= b for a, b in removed)]
    assert leaked == []
    assert runs[1].said["ECONNREFUSED"] > 200, total(runs)
    assert runs[0].said == {"connected": 2 * runs[0].names}, total(runs)
    assert (runs[0].lost, runs[1].lost) == (0, 0), total(runs)
    assert status(daemon)["refused"] == runs[1].refused
    assert wait_nothing_held(daemon)["released_late"] == 0


def test_an_address_of_two_names_outlives_the_one_that_goes(
    lab: Lab, ramnet: Ramnet, clients: Clients
) -> None:
    daemon = ramnet(policy("*.kept.example", "*.gone.example"), config=config())
    with Script(lab.world, SCRIPTED) as script:
        for name in ("a.kept.example", "a.gone.example"):
            asked = clients.ask(SCRIPTED, query(name))
            script.say(script.wait(name), reply(asked.wire, addr(name, "10.100.4.1")))
            asked.sock.recv(2048)
    put_policy(daemon, policy("*.kept.example"))
    assert elements(lab.client, "10.100.4.") == ["10.100.4.1"]
    put_policy(daemon, policy("*.none.example"))
    assert elements(lab.client, "10.100.4.") == []


def test_the_client_is_fast_enough_to_be_refused(lab: Lab) -> None:
    """Without any rules it connects everywhere, within milliseconds: what it measures is ramnet."""
    found = run(lab, "two", 14, 300)
    assert found.said == {"connected": 600}, found
    assert sorted(found.asks)[300] < 0.05, found

"""The daemon's own look-ups (host/resolver.py), against servers that behave badly on purpose.

The resolver runs in a thread that has entered a sandbox; its servers are there, on loopback.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import date
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import pytest

from ramnet import __version__
from ramnet.core.catalog import load_catalog
from ramnet.core.config import Limits
from ramnet.core.dns import TYPE_A, TYPE_AAAA, Answer
from ramnet.core.engine import Engine
from ramnet.core.events import PolicyRead, Resolved, Started, TableLoaded, Unresolved
from ramnet.core.names import HostName
from ramnet.core.policy import parse_policy
from ramnet.core.terms import Rung, Settings
from ramnet.host import resolver as resolver_module
from ramnet.host.resolver import LookupFailed, Resolver
from ramnet.lab.dns import Dns, Record
from ramnet.lab.lab import Lab
from ramnet.lab.process import wait_until
from ramnet.lab.sandbox import Sandbox
from tests.netns.dnsworld import (
    CONFIG,
    LEARN_SECONDS,
    SERVERS,
    Behaviour,
    Heard,
    Raw,
    Saying,
    Script,
    addr,
    alias,
    inside,
    leases,
    patched,
    policy,
    reply,
    silence,
    wait_learned,
    zone,
)

T = TypeVar("T")

FIRST, SECOND, THIRD = "127.0.0.11", "127.0.0.12", "127.0.0.13"
SIX = "::1"
NAME = HostName("registry.example")
ADDRESS = "198.51.100.5"
GOOD = zone({NAME: [ADDRESS, "2001:db8::5"]})
SHORT_TIMEOUT = 0.3
REAL_TIMEOUT = resolver_module.TIMEOUT_SECONDS


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with Sandbox("resolver", tmp_path_factory.mktemp("resolver")) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def first(box: Sandbox) -> Iterator[Script]:
    with Script(box, FIRST, SIX) as script:
        yield script


@pytest.fixture(scope="module")
def second(box: Sandbox) -> Iterator[Script]:
    with Script(box, SECOND) as script:
        yield script


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait a fraction of a second where the real resolver waits seconds."""
    monkeypatch.setattr(resolver_module, "TIMEOUT_SECONDS", SHORT_TIMEOUT)


def addresses(*texts: str) -> tuple[IPv4Address | IPv6Address, ...]:
    return tuple(map(ip_address, texts))


def run(box: Sandbox, work: Callable[[], Awaitable[T]]) -> T:
    """Run a coroutine in the network of a sandbox."""

    async def main() -> T:
        async with asyncio.timeout(30):
            return await work()

    return inside(box, lambda: asyncio.run(main()))


def look_up(box: Sandbox, *servers: str, qtype: int = TYPE_A, name: HostName = NAME) -> Answer:
    async def work() -> Answer:
        resolver = Resolver(lambda _: None, concurrency=4)
        resolver.set_servers(addresses(*servers))
        return await resolver.lookup(name, qtype)

    return run(box, work)


def over_tcp(tcp: Behaviour, udp: Behaviour | None = None) -> Behaviour:
    """Say by UDP that the answer is truncated, and something by TCP."""

    def say(heard: Heard) -> Saying:
        if heard.tcp:
            return tcp(heard)
        return udp(heard) if udp else reply(heard.wire, header={"tc": 1})

    return say


def saying(**header: int) -> Behaviour:
    return lambda heard: reply(heard.wire, addr(heard.name, ADDRESS), header=header)


# --- one look-up


@pytest.mark.parametrize("server", [FIRST, SIX])
def test_both_families_are_asked_for(box: Sandbox, first: Script, server: str) -> None:
    first.behave = GOOD
    assert look_up(box, server).addresses == addresses(ADDRESS)
    assert look_up(box, server, qtype=TYPE_AAAA).addresses == addresses("2001:db8::5")


def test_queries_carry_edns_and_cannot_be_guessed(box: Sandbox, first: Script) -> None:
    first.behave = GOOD
    before = len(first.heard())
    for _ in range(8):
        look_up(box, FIRST)
    heard = first.heard()[before:]
    for one in heard:
        (opt,) = one.record.ar
        assert opt.rclass == 1232  # the payload size stands in the class (RFC 6891)
        assert one.record.header.rd == 1
        assert one.record.header.get_qr() == 0
    assert len({one.record.header.id for one in heard}) > 6
    assert len({one.port for one in heard}) > 6  # each from a port of its own


def test_a_chain_is_followed(box: Sandbox, first: Script) -> None:
    first.behave = lambda heard: reply(
        heard.wire,
        alias(NAME, "a.example", ttl=9),
        alias("a.example", "b.example"),
        addr("b.example", ADDRESS),
        addr("c.example", "198.51.100.6"),
    )
    answer = look_up(box, FIRST)
    assert (answer.addresses, answer.ttl) == (addresses(ADDRESS), 9)
    assert answer.chain == ("a.example", "b.example")


def test_a_truncated_answer_is_fetched_over_tcp(box: Sandbox, first: Script) -> None:
    many = [f"10.0.{number >> 8}.{number & 255}" for number in range(200)]
    full = zone({NAME: many})
    first.behave = over_tcp(full)
    answer = look_up(box, FIRST)
    assert set(answer.addresses) == set(addresses(*many))
    udp, tcp = first.heard()[-2:]
    assert (udp.tcp, tcp.tcp) == (False, True)
    assert udp.wire == tcp.wire


def test_a_truncated_answer_of_a_real_server(box: Sandbox, tmp_path: Path) -> None:
    many = tuple(f"198.51.{number >> 7}.{number & 127}" for number in range(1, 161))
    dns = Dns(box, tmp_path, [THIRD], {NAME: Record(addresses=many)})
    dns.start()
    try:
        assert set(look_up(box, THIRD).addresses) == set(addresses(*many))
        assert len(dns.asked(NAME)) == 2  # by UDP and by TCP
        dns.update({"alias.example": Record(cname=NAME)})
        assert len(look_up(box, THIRD, name=HostName("alias.example")).addresses) == len(many)
        assert look_up(box, THIRD, name=HostName("nobody.example")).rcode == 3
    finally:
        dns.stop()


BAD_SERVERS: dict[str, Behaviour] = {
    "servfail": saying(rcode=2),
    "refused": saying(rcode=5),
    "notimp": saying(rcode=4),
    "formerr": saying(rcode=1),
    "silence": silence,
    "wrong-id-only": lambda heard: reply(
        heard.wire, addr(NAME, "10.6.6.6"), header={"id": 0 if heard.wire[0] else 0xFFFF}
    ),
    "garbage-only": lambda _: b"\0" * 40,
    "tcp-closed-at-once": over_tcp(lambda _: Raw(b"")),
    "tcp-half-a-length": over_tcp(lambda _: Raw(b"\0")),
    "tcp-half-a-message": over_tcp(lambda heard: Raw(b"\1\0" + reply(heard.wire))),
    "tcp-empty-message": over_tcp(lambda _: Raw(b"\0\0")),
    "tcp-silent": over_tcp(silence),
    "tcp-garbage": over_tcp(lambda _: b"\xff" * 30),
    "tcp-truncated-too": over_tcp(saying(tc=1)),
    "tcp-servfail": over_tcp(saying(rcode=2)),
    "tcp-wrong-id": over_tcp(saying(id=1)),
    "tcp-wrong-question": over_tcp(
        lambda heard: reply(heard.wire.replace(b"registry", b"registri"), addr(NAME, "10.6.6.6"))
    ),
}


@pytest.mark.parametrize("bad", BAD_SERVERS)
def test_a_server_without_a_usable_answer_is_passed_over(
    box: Sandbox, first: Script, second: Script, bad: str
) -> None:
    first.behave, second.behave = BAD_SERVERS[bad], GOOD
    asked = len(first.heard())
    assert look_up(box, FIRST, SECOND).addresses == addresses(ADDRESS)
    assert len(first.heard()) - asked == (2 if bad.startswith("tcp") else 1)
    # The control: with the servers the other way round the bad one is never asked.
    asked = len(first.heard())
    assert look_up(box, SECOND, FIRST).addresses == addresses(ADDRESS)
    assert len(first.heard()) == asked


def test_a_server_that_is_not_there_is_passed_over_at_once(box: Sandbox, second: Script) -> None:
    second.behave = GOOD
    begin = time.monotonic()
    assert look_up(box, THIRD, SECOND).addresses == addresses(ADDRESS)
    assert time.monotonic() - begin < 10 * SHORT_TIMEOUT  # told by ICMP, so the timeout is no bound


def test_every_server_is_asked_twice_and_the_failure_names_each(
    box: Sandbox, first: Script, second: Script
) -> None:
    first.behave, second.behave = silence, saying(rcode=2)
    before = len(first.heard()), len(second.heard())
    with pytest.raises(LookupFailed) as caught:
        look_up(box, FIRST, SECOND, THIRD)
    said = str(caught.value)
    assert f"{FIRST}: no answer" in said
    assert f"{SECOND}: rcode 2" in said
    assert f"{THIRD}: " in said
    assert (len(first.heard()) - before[0], len(second.heard()) - before[1]) == (2, 2)


def test_without_a_server_the_look_up_says_so(box: Sandbox) -> None:
    with pytest.raises(LookupFailed, match="no resolver"):
        look_up(box)


def test_a_second_round_helps_after_a_lost_packet(box: Sandbox, first: Script) -> None:
    lost = iter([None])
    first.behave = lambda heard: next(lost, GOOD(heard))
    assert look_up(box, FIRST).addresses == addresses(ADDRESS)


@pytest.mark.parametrize("rcode", [0, 3], ids=["no-data", "no-such-name"])
def test_that_there_is_nothing_is_an_answer(
    box: Sandbox, first: Script, second: Script, rcode: int
) -> None:
    first.behave, second.behave = (lambda heard: reply(heard.wire, header={"rcode": rcode})), GOOD
    asked = len(second.heard())
    answer = look_up(box, FIRST, SECOND)
    assert (answer.rcode, answer.addresses) == (rcode, ())
    assert len(second.heard()) == asked


def test_wrong_answers_are_ignored_while_waiting(box: Sandbox, first: Script) -> None:
    bad = addr(NAME, "10.6.6.6")

    def say(heard: Heard) -> Saying:
        ident = int.from_bytes(heard.wire[:2], "big")
        wrong = [
            reply(heard.wire, bad, header={"id": (ident + step) % 65536}) for step in range(1, 200)
        ]
        wrong += [
            reply(heard.wire.replace(b"registry", b"registri"), bad),
            reply(heard.wire, bad, header={"qr": 0}),
            reply(heard.wire, bad)[:-1],
            reply(heard.wire, bad, questions=[]),
            b"",
        ]
        return [*wrong, reply(heard.wire, addr(NAME, ADDRESS))]

    first.behave = say
    asked = len(first.heard())
    assert look_up(box, FIRST).addresses == addresses(ADDRESS)
    assert len(first.heard()) - asked == 1  # it was the same query that was answered in the end
    # The control: the last of the wrong ones with the right ID and question would have been taken.
    first.behave = lambda heard: reply(heard.wire, bad)
    assert look_up(box, FIRST).addresses == addresses("10.6.6.6")


def test_an_answer_from_elsewhere_is_not_heard(box: Sandbox, first: Script, second: Script) -> None:
    def say(heard: Heard) -> Saying:
        lie = reply(heard.wire, addr(NAME, "10.6.6.6"))
        second.tell(SECOND, (heard.client, heard.port), lie)
        return reply(heard.wire, addr(NAME, ADDRESS))

    first.behave = say
    assert look_up(box, FIRST).addresses == addresses(ADDRESS)


# --- the agenda


class Log:
    """What a resolver reported, with the time of each."""

    def __init__(self) -> None:
        self.events: list[tuple[float, Resolved | Unresolved]] = []

    def __call__(self, event: Resolved | Unresolved) -> None:
        self.events.append((time.monotonic(), event))

    def of(self, kind: type[Resolved | Unresolved]) -> list[Resolved | Unresolved]:
        return [event for _, event in self.events if isinstance(event, kind)]

    def holds(self, count: int) -> bool:
        return len(self.events) >= count

    @property
    def times(self) -> list[float]:
        return [when for when, _ in self.events]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - a poll with the deadline of ``run``
        await asyncio.sleep(0.005)


async def working(resolver: Resolver, condition: Callable[[], bool], *, after: float = 0.0) -> None:
    """Let a resolver work until something holds, and then for ``after`` seconds."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(resolver.run())
        await until(condition)
        await asyncio.sleep(after)
        task.cancel()


def keep(
    box: Sandbox,
    names: list[str],
    condition: Callable[[Log], bool],
    *servers: str,
    concurrency: int = 4,
) -> Log:
    """Have names kept resolved until ``condition`` holds; return what was reported."""
    log = Log()

    async def work() -> None:
        resolver = Resolver(log, concurrency=concurrency)
        resolver.set_servers(addresses(*servers))
        resolver.set_names(map(HostName, names))
        await working(resolver, lambda: condition(log))

    run(box, work)
    return log


def test_both_families_and_the_least_ttl_are_reported_together(box: Sandbox, first: Script) -> None:
    first.behave = lambda heard: reply(
        heard.wire,
        addr(NAME, ADDRESS, ttl=50) if heard.qtype == "A" else addr(NAME, "2001:db8::5", ttl=40),
    )
    log = keep(box, [NAME], lambda log: bool(log.events), FIRST)
    assert log.events[0][1] == Resolved(NAME, addresses(ADDRESS, "2001:db8::5"), 40)


def test_a_name_without_addresses_is_no_failure(box: Sandbox, first: Script) -> None:
    first.behave = zone({"there.example": [ADDRESS]})
    log = keep(box, ["gone.example", "there.example"], lambda log: bool(log.events), FIRST)
    assert [event.name for _, event in log.events] == ["there.example"]
    assert log.of(Unresolved) == []


def test_when_one_family_fails_the_other_is_still_learned(box: Sandbox, first: Script) -> None:
    first.behave = lambda heard: (
        GOOD(heard) if heard.qtype == "A" else reply(heard.wire, header={"rcode": 2})
    )
    log = keep(box, [NAME], lambda log: len(log.events) >= 2, FIRST)
    assert log.events[0][1] == Resolved(NAME, addresses(ADDRESS), 60)
    assert isinstance(log.events[1][1], Unresolved)


def test_names_are_refreshed_by_their_ttl(
    box: Sandbox, first: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver_module, "REFRESH_MIN", 0.2)
    served = iter(range(10, 100))
    first.behave = lambda heard: reply(
        heard.wire,
        *([addr(NAME, f"198.51.100.{next(served)}", ttl=0)] if heard.qtype == "A" else []),
    )
    log = keep(box, [NAME], lambda log: len(log.events) >= 4, FIRST)
    seen = [event.addresses for _, event in log.events if isinstance(event, Resolved)]
    assert len(set(seen)) == len(seen) >= 4  # a changed address is followed
    gaps = [later - sooner for sooner, later in pairwise(log.times)]
    assert min(gaps) > 0.2 * (1 - resolver_module.JITTER) - 0.01


@pytest.mark.parametrize(
    ("ttl", "low", "high"), [(0, 24, 30), (30, 24, 30), (300, 240, 300), (10**9, 2880, 3600)]
)
@pytest.mark.parametrize("luck", [0.0, 1.0])
def test_the_next_look_up_comes_with_the_ttl_within_bounds(
    box: Sandbox,
    first: Script,
    monkeypatch: pytest.MonkeyPatch,
    ttl: int,
    low: int,
    high: int,
    luck: float,
) -> None:
    waits: list[float] = []
    schedule = Resolver._schedule  # noqa: SLF001 - what it is told is what is tested

    def spy(self: Resolver, name: HostName, entry: Any, when: float) -> None:
        waits.append(when - asyncio.get_running_loop().time())
        schedule(self, name, entry, when)

    monkeypatch.setattr(Resolver, "_schedule", spy)
    monkeypatch.setattr("random.random", lambda: luck)
    first.behave = zone({NAME: [ADDRESS]}, ttl=ttl)
    keep(box, [NAME], lambda _: len(waits) == 2, FIRST)
    assert waits[0] == pytest.approx(0, abs=0.5)  # a new name is due at once
    assert waits[1] == pytest.approx(low if luck else high, abs=0.5)


def test_a_dead_server_is_asked_less_and_less(
    box: Sandbox, first: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver_module, "BACKOFF_FIRST", 0.1)
    monkeypatch.setattr(resolver_module, "BACKOFF_MAX", 0.8)
    monkeypatch.setattr(resolver_module, "JITTER", 0.0)
    first.behave = saying(rcode=2)
    log = keep(box, [NAME], lambda log: len(log.events) >= 6, FIRST)
    gaps = [later - sooner for sooner, later in pairwise(log.times)]
    assert len(log.of(Unresolved)) >= 6
    for gap, least in zip(gaps, (0.1, 0.2, 0.4, 0.8, 0.8), strict=False):
        assert least - 0.01 < gap < least + 1.0
    assert gaps[4] < 1.6  # bounded


def test_success_ends_the_back_off(
    box: Sandbox, first: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver_module, "BACKOFF_FIRST", 0.05)
    monkeypatch.setattr(resolver_module, "REFRESH_MIN", 0.05)
    answers = iter([2] * 8 + [0] * 2 + [2] * 40)

    def say(heard: Heard) -> Saying:
        # A failed look-up asks twice for each family: eight refusals are two look-ups.
        rcode = next(answers)
        records = [addr(NAME, ADDRESS, ttl=0)] if heard.qtype == "A" and not rcode else []
        return reply(heard.wire, *records, header={"rcode": rcode})

    first.behave = say
    log = keep(box, [NAME], lambda log: len(log.events) >= 5, FIRST)
    kinds = [type(event) for _, event in log.events[:5]]
    assert kinds == [Unresolved, Unresolved, Resolved, Unresolved, Unresolved]
    assert log.times[4] - log.times[3] < 0.05 + 1.0  # the first step again, not the fourth


def test_new_servers_are_tried_at_once(
    box: Sandbox, first: Script, second: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver_module, "BACKOFF_FIRST", 1000.0)
    monkeypatch.setattr(resolver_module, "BACKOFF_MAX", 1000.0)
    first.behave, second.behave = saying(rcode=2), GOOD
    log = Log()

    async def work() -> None:
        resolver = Resolver(log, concurrency=4)
        resolver.set_servers(addresses(FIRST))
        resolver.set_names([NAME])
        async with asyncio.TaskGroup() as group:
            task = group.create_task(resolver.run())
            await until(lambda: bool(log.of(Unresolved)))
            await asyncio.sleep(0.1)
            assert not log.of(Resolved)
            resolver.set_servers(addresses(SECOND))
            await until(lambda: bool(log.of(Resolved)))
            task.cancel()

    run(box, work)


def test_names_that_are_given_up_are_not_asked_for_or_reported(
    box: Sandbox, first: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver_module, "REFRESH_MIN", 0.05)
    other = HostName("other.example")
    slow = HostName("slow.example")
    table = zone({NAME: [ADDRESS], other: [ADDRESS], slow: [ADDRESS]}, ttl=0)
    held: list[Heard] = []

    def say(heard: Heard) -> Saying:
        if heard.name == slow:
            held.append(heard)
            return None
        return table(heard)

    first.behave = say
    log = Log()

    async def work() -> None:
        resolver = Resolver(log, concurrency=4)
        resolver.set_servers(addresses(FIRST))
        resolver.set_names([NAME, other, slow])
        async with asyncio.TaskGroup() as group:
            task = group.create_task(resolver.run())
            await until(lambda: len(held) == 2 and {e.name for _, e in log.events} == {NAME, other})
            resolver.set_names([NAME])
            await asyncio.sleep(0.1)  # what was on its way has come back
            asked, reported = len(first.heard(other)), len(log.events)
            for heard in held:
                answer = table(heard)
                assert isinstance(answer, bytes)
                first.say(heard, answer)
            more = len(first.heard(NAME, "A")) + 5
            await until(lambda: len(first.heard(NAME, "A")) >= more)
            assert len(first.heard(other)) == asked
            assert {event.name for _, event in log.events[reported:]} == {NAME}
            task.cancel()

    run(box, work)


@pytest.mark.parametrize("concurrency", [1, 4])
def test_the_number_of_look_ups_under_way_is_bounded(
    box: Sandbox, first: Script, monkeypatch: pytest.MonkeyPatch, concurrency: int
) -> None:
    monkeypatch.setattr(resolver_module, "RATE", 10_000.0)
    monkeypatch.setattr(resolver_module, "TIMEOUT_SECONDS", 10.0)
    names = [f"n{number}.example" for number in range(4 * concurrency)]
    waiting: list[Heard] = []

    def say(heard: Heard) -> Saying:
        waiting.append(heard)
        return None

    first.behave = say
    most = 0
    log = Log()

    async def work() -> None:
        nonlocal most
        resolver = Resolver(log, concurrency=concurrency)
        resolver.set_servers(addresses(FIRST))
        resolver.set_names(map(HostName, names))
        async with asyncio.TaskGroup() as group:
            task = group.create_task(resolver.run())
            while len(log.events) < len(names):
                await until(lambda: len(waiting) >= 2 * concurrency)
                await asyncio.sleep(0.1)  # more would come now, if more were allowed
                most = max(most, len(waiting))
                for heard in waiting[:]:
                    waiting.remove(heard)
                    first.say(heard, reply(heard.wire, addr(heard.name, ADDRESS)))
                count = len(log.events) + concurrency
                await until(partial(log.holds, count))
            task.cancel()

    run(box, work)
    assert most == 2 * concurrency  # A and AAAA of each
    assert {event.name for _, event in log.events} == set(names)


def test_a_warm_start_is_paced(
    box: Sandbox, first: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver_module, "RATE", 50.0)
    names = [f"paced{number}.example" for number in range(20)]
    first.behave = zone({name: [ADDRESS] for name in names})
    log = keep(box, names, lambda log: len(log.events) == 20, FIRST, concurrency=20)
    times = [one.time for one in first.heard(qtype="A") if one.name in names]
    assert times[-1] - times[0] > 19 / 50 * 0.9
    assert log.of(Unresolved) == []


# --- no answer is no reason to refuse


@pytest.mark.parametrize("servers", [1, 2, 3])
@pytest.mark.parametrize("ttl", [1, 60, 300, 3600])
@pytest.mark.parametrize("jitter", [0.0, 0.1, resolver_module.JITTER])
def test_leases_outlive_servers_that_died(servers: int, ttl: int, jitter: float) -> None:
    """The resolver's pace and the engine's leases together: at no time is the address closed.

    Played through with the real numbers of both, without waiting: one attempt to look a name up
    takes all the timeouts of silent servers, and jitter takes a share off the time between.
    """
    name, ip = HostName("registry.example"), IPv4Address(ADDRESS)
    limits = Limits()
    engine = Engine(
        load_catalog(), limits, Settings(1, limits.leases_total, Rung.OBSERVE), date(2026, 1, 1)
    )
    text = policy(name)
    parsed = parse_policy(text, source="p.toml", ramnet_version=__version__)
    engine.handle(PolicyRead(parsed, "digest"), 0.0)
    engine.handle(Started(()), 0.0)
    engine.handle(TableLoaded(), 0.0)
    engine.handle(Resolved(name, (ip,), ttl), 0.0)
    attempt = servers * resolver_module.ROUNDS * REAL_TIMEOUT
    now = max(ttl, resolver_module.REFRESH_MIN) * (1 - jitter)
    failures = 0
    while now + attempt <= limits.lease_max_seconds:
        now += attempt
        assert engine.learner.leases.find(ip, now), (
            f"closed before {now:g} s, after {failures} failures"
        )
        engine.handle(Unresolved(name, "no answer"), now)
        wait = resolver_module.BACKOFF_FIRST * 2 ** min(failures, 16)
        now += min(wait, resolver_module.BACKOFF_MAX) * (1 - jitter)
        failures += 1
    assert failures > 100


def test_leases_are_kept_in_the_kernel_while_the_server_is_dead() -> None:
    name, address = "kept.example", "198.51.100.7"
    config = f"{CONFIG}[limits]\nlease_min_seconds = 2\nlease_grace_seconds = 1\n"
    # A lease of 3 s; refreshed twice a second, and tried as often when that fails.
    patch = (
        "import ramnet.host.resolver as r\n"
        "r.REFRESH_MIN = r.REFRESH_MAX = r.BACKOFF_FIRST = r.BACKOFF_MAX = 0.5\n"
        "r.TIMEOUT_SECONDS = 0.2"
    )
    with Lab(registries=False) as lab, Script(lab.world, SERVERS[0]) as script:
        script.behave = zone({name: [address]}, ttl=1)
        lab.client.set_resolvers(SERVERS[0])
        with patched(lab, patch, policy(name), config):
            wait_learned(lab.client, address)
            script.behave = silence
            dead = len(script.heard(name))
            deadline = time.monotonic() + 7
            while time.monotonic() < deadline:
                assert (address, 443) in leases(lab.client)
                time.sleep(0.1)
            assert len(script.heard(name)) > dead + 4
        # The control: the daemon is gone too, and nobody extends the lease.
        wait_until(lambda: not leases(lab.client), LEARN_SECONDS, "the end of the lease")

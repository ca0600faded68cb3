from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from ramnet.core.addresses import IPAddress, teachable
from ramnet.core.leases import (
    Key,
    Learned,
    Lease,
    LeaseLimits,
    LeaseTable,
    Refusal,
    Write,
)
from ramnet.core.names import HostName

A = HostName("a.example")
B = HostName("b.example")
C = HostName("c.example")
ONE = IPv4Address("192.0.2.1")
TWO = IPv4Address("192.0.2.2")
SIX = IPv6Address("2001:db8::1")
HTTPS = (443,)
#: A TTL below the floor: 300 s and 60 s of grace.
SHORT = 360


def table(*, per_name: int = 8, names_per_lease: int = 8, total: int = 8) -> LeaseTable:
    return LeaseTable(
        LeaseLimits(
            ttl_min=300,
            ttl_max=86_400,
            grace=60,
            per_name=per_name,
            total=total,
            names_per_lease=names_per_lease,
        )
    )


def learn(
    leases: LeaseTable, name: HostName, *ips: IPAddress, ttl: int = 30, now: float = 0
) -> Learned:
    return leases.learn(name, ips, ttl, HTTPS, now)


def numbered(count: int, start: int = 0) -> list[IPAddress]:
    return [IPv4Address("198.51.100.0") + n for n in range(start, start + count)]


def keys(leases: LeaseTable, now: float = 0) -> set[Key]:
    return {(lease.ip, lease.port) for lease in leases.snapshot(now)}


# Which addresses may be learned


@pytest.mark.parametrize(
    "text",
    [
        "0.0.0.0",
        "0.1.2.3",
        "127.0.0.1",
        "127.255.255.255",
        "169.254.0.1",
        "169.254.169.254",
        "169.254.170.2",
        "224.0.0.1",
        "239.255.255.255",
        "255.255.255.255",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "::",
        "::1",
        "::127.0.0.1",
        "fe80::1",
        "febf::1",
        "fe80::1%eth0",
        "ff02::1",
        "fd00:ec2::254",
        "fd20:ce::254",
        "fd00:c1::a9fe:a9fe",
        "fd00:42::42",
        "fd00:a9fe:a9fe::1",
        "fd00:100::100:200",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::127.0.0.1",
        "64:ff9b::100.100.100.200",
    ],
)
def test_never_learned(text: str) -> None:
    assert not teachable(ip_address(text))


@pytest.mark.parametrize(
    "text",
    [
        "1.0.0.0",
        "10.0.0.1",
        "100.64.0.1",
        "100.100.100.100",
        "100.100.100.201",
        "126.255.255.255",
        "128.0.0.1",
        "169.253.255.255",
        "169.255.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "198.18.0.1",
        "223.255.255.255",
        "240.0.0.1",
        "2001:db8::1",
        "fd12:3456::1",
        "fe7f::1",
        "fec0::1",
        "fd20:ce::253",
        "::ffff:10.0.0.1",
        "64:ff9b::192.0.2.1",
        "65:ff9b::127.0.0.1",
        "64:ff9b:0:0:0:1:7f00:1",
    ],
)
def test_may_be_learned(text: str) -> None:
    assert teachable(ip_address(text))


def test_other_addresses_of_an_answer_are_learned_all_the_same() -> None:
    leases = table()
    loopback = IPv4Address("127.0.0.1")
    learned = learn(leases, A, loopback, ONE)
    assert learned.write == (Write(ONE, 443, SHORT),)
    assert learned.ignored == ((loopback, Refusal.NOT_TEACHABLE),)
    assert leases.refused == {Refusal.NOT_TEACHABLE: 1}
    assert keys(leases) == {(ONE, 443)}


# How long a lease runs


@pytest.mark.parametrize(
    ("ttl", "timeout"),
    [(0, 360), (299, 360), (301, 361), (86_399, 86_459), (86_401, 86_460), (2**31 - 1, 86_460)],
)
def test_ttl_is_clamped_and_grace_added(ttl: int, timeout: int) -> None:
    learned = learn(table(), A, ONE, ttl=ttl)
    assert learned.write == (Write(ONE, 443, timeout),)


def test_limits_that_are_no_whole_seconds_are_rounded_up() -> None:
    leases = LeaseTable(LeaseLimits(ttl_min=1.5, ttl_max=10, grace=0.25, per_name=1, total=1))
    assert learn(leases, A, ONE, ttl=1).write == (Write(ONE, 443, 2),)


def test_each_port_has_a_lease_of_its_own() -> None:
    leases = table()
    learned = leases.learn(A, [ONE, SIX, ONE], 30, [443, 5000], 0)
    assert {(one.ip, one.port) for one in learned.write} == {
        (ONE, 443),
        (ONE, 5000),
        (SIX, 443),
        (SIX, 5000),
    }
    assert len(leases) == len(learned.write) == 4


def test_without_ports_nothing_is_learned() -> None:
    leases = table()
    assert leases.learn(A, [ONE], 30, (), 0) == Learned((), (), 0, ())
    assert len(leases) == 0


def test_an_ipv4_mapped_address_opens_the_ipv4_address() -> None:
    leases = table()
    mapped = IPv6Address("::ffff:192.0.2.1")
    assert learn(leases, A, mapped, ONE).write == (Write(ONE, 443, SHORT),)
    assert leases.find(mapped, 0) == leases.find(ONE, 0) != ()


def test_a_lease_ends_at_its_time() -> None:
    leases = table()
    learn(leases, A, ONE)
    assert leases.expire(SHORT - 0.001) == ()
    assert leases.find(ONE, SHORT - 1) == (Lease(ONE, 443, 1, (A,)),)
    assert leases.expire(SHORT) == ((ONE, 443),)
    assert (len(leases), leases.find(ONE, SHORT), leases.by_name(A, SHORT)) == (0, (), ())


@pytest.mark.parametrize(
    ("now", "ttl", "written"),
    [
        (0, 30, False),
        (180, 30, False),  # exactly half is left
        (181, 30, True),
        (30, 300, False),  # exactly the TTL and half the grace
        (31, 300, True),
        (31, 299, False),
        (0, 400, True),
    ],
)
def test_a_known_lease_is_written_when_too_little_is_left(
    now: float, ttl: int, written: bool
) -> None:
    leases = table()
    learn(leases, A, ONE)
    learned = learn(leases, A, ONE, ttl=ttl, now=now)
    assert bool(learned.write) is written
    assert learned.known == (not written)


def test_answers_from_a_cache_that_counts_down_need_no_write() -> None:
    leases = table()
    learn(leases, A, ONE, ttl=3600)
    assert not any(learn(leases, A, ONE, ttl=3600 - t, now=t).write for t in range(0, 3400, 100))


def test_a_shorter_answer_does_not_cut_an_earlier_one() -> None:
    leases = table()
    learn(leases, A, ONE, ttl=3600)
    assert learn(leases, A, ONE, ttl=0).known == 1
    assert leases.find(ONE, 3659) == (Lease(ONE, 443, 1, (A,)),)


def test_an_element_that_has_just_run_out_is_written_again() -> None:
    leases = table()
    learn(leases, A, ONE)
    assert learn(leases, A, ONE, now=SHORT).write == (Write(ONE, 443, SHORT),)


# Several names at one address


def test_an_element_lasts_as_long_as_any_of_its_names() -> None:
    leases = table()
    learn(leases, A, ONE, ttl=300)
    learn(leases, B, ONE, ttl=600)
    assert leases.find(ONE, 0) == (Lease(ONE, 443, 660, (B, A)),)
    assert leases.find(ONE, 360) == (Lease(ONE, 443, 300, (B,)),)
    assert leases.by_name(A, 360) == ()
    assert leases.expire(660) == ((ONE, 443),)


def test_a_second_name_at_a_long_lease_needs_no_write() -> None:
    leases = table()
    learn(leases, A, ONE, ttl=600)
    learned = learn(leases, B, ONE)
    assert (learned.write, learned.known) == ((), 1)
    assert [lease.ip for lease in leases.by_name(B, 0)] == [ONE]


def test_a_name_never_outlives_the_element() -> None:
    leases = table()
    learn(leases, A, ONE)
    learn(leases, B, ONE, now=100)  # known: ends with the element at 360, not at 460
    assert leases.by_name(B, 359) == (Lease(ONE, 443, 1, (A, B)),)
    assert leases.by_name(B, 360) == ()


def test_of_too_many_names_the_one_that_runs_out_first_is_forgotten() -> None:
    leases = table(names_per_lease=2)
    learn(leases, A, ONE, ttl=900)
    learn(leases, B, ONE, ttl=600)
    learned = learn(leases, C, ONE, ttl=700)
    assert (learned.drop, learned.ignored) == ((), ())
    assert leases.find(ONE, 0)[0].names == (A, C)
    assert leases.by_name(B, 0) == ()


# Caps


def test_a_name_over_its_cap_loses_what_runs_out_first() -> None:
    leases = table(per_name=3)
    first, second, third, fourth = numbered(4)
    learn(leases, A, first, ttl=900)
    learn(leases, A, second, ttl=500)
    learn(leases, A, third, ttl=700)
    learned = learn(leases, A, fourth)
    assert learned.drop == ((second, 443),)
    assert learned.write == (Write(fourth, 443, SHORT),)
    assert keys(leases) == {(first, 443), (third, 443), (fourth, 443)}


def test_over_the_cap_an_extended_lease_is_judged_by_its_new_end() -> None:
    leases = table(per_name=2)
    learn(leases, A, ONE, ttl=300)
    learn(leases, A, TWO, ttl=400)
    learn(leases, A, ONE, ttl=500)
    assert learn(leases, A, *numbered(1)).drop == ((TWO, 443),)


def test_over_the_cap_an_address_of_another_name_stays_open() -> None:
    leases = table(per_name=1)
    learn(leases, B, ONE)
    learn(leases, A, ONE)
    learned = learn(leases, A, TWO)
    assert learned.drop == ()
    assert leases.find(ONE, 0)[0].names == (B,)
    assert leases.find(TWO, 0)[0].names == (A,)


def test_the_addresses_of_one_answer_do_not_drive_each_other_out() -> None:
    leases = table(per_name=2)
    old, kept, new = numbered(3)
    learn(leases, A, kept, ttl=300)
    learn(leases, A, old, ttl=900)
    learned = learn(leases, A, new, kept)
    assert learned.drop == ((old, 443),)
    assert keys(leases) == {(new, 443), (kept, 443)}


def test_an_answer_larger_than_the_cap_is_learned_from_the_front() -> None:
    leases = table(per_name=2)
    ips = numbered(4)
    learned = learn(leases, A, *ips)
    assert [write.ip for write in learned.write] == ips[:2]
    assert learned.ignored == tuple((ip, Refusal.NAME_FULL) for ip in ips[2:])
    assert learned.drop == ()


def test_a_full_table_refuses_what_is_new_and_keeps_the_rest() -> None:
    leases = table(total=2)
    learn(leases, A, ONE, TWO)
    learned = learn(leases, B, SIX)
    assert learned == Learned((), (), 0, ((SIX, Refusal.TABLE_FULL),))
    assert leases.refused == {Refusal.TABLE_FULL: 1}
    assert keys(leases) == {(ONE, 443), (TWO, 443)}
    assert learn(leases, A, ONE, now=200).write == (Write(ONE, 443, SHORT),)


def test_a_full_table_has_room_again_when_leases_run_out() -> None:
    leases = table(total=1)
    learn(leases, A, ONE)
    assert learn(leases, B, TWO, now=SHORT).ignored == ()


def test_names_of_a_lease_count_toward_the_total() -> None:
    leases = table(total=2)
    learn(leases, A, ONE)
    learn(leases, B, ONE)
    assert learn(leases, C, ONE).ignored == ((ONE, Refusal.TABLE_FULL),)


def test_a_full_table_lets_a_full_name_change_its_addresses() -> None:
    leases = table(per_name=2, total=2)
    learn(leases, A, *numbered(2))
    learned = learn(leases, A, *numbered(2, start=2))
    assert {ip for ip, _ in learned.drop} == set(numbered(2))
    assert learned.ignored == ()


# Reload, restart


def test_retain_drops_what_no_allowed_name_leads_to() -> None:
    leases = table()
    learn(leases, A, ONE, TWO)
    learn(leases, B, TWO, SIX)
    assert leases.retain(lambda name, _ip, _port: name == A, 0) == ((SIX, 443),)
    assert leases.find(TWO, 0)[0].names == (A,)
    assert leases.by_name(B, 0) == ()


def test_retain_asks_for_name_address_and_port() -> None:
    leases = table()
    leases.learn(A, [ONE], 30, [443, 5000], 0)
    asked = []

    def allowed(name: HostName, ip: IPAddress, port: int) -> bool:
        asked.append((name, ip, port))
        return port == 443

    assert leases.retain(allowed, 0) == ((ONE, 5000),)
    assert asked == [(A, ONE, 443), (A, ONE, 5000)]


def test_retain_does_not_keep_a_lease_for_a_name_that_ran_out() -> None:
    leases = table()
    learn(leases, A, ONE, ttl=300)
    learn(leases, B, ONE, ttl=600)
    assert leases.retain(lambda name, _ip, _port: name == A, 400) == ((ONE, 443),)


def test_retain_drops_leases_without_a_name() -> None:
    leases = table()
    leases.restore(ONE, 443, None, 100, 0)
    assert leases.retain(lambda _name, _ip, _port: True, 0) == ((ONE, 443),)


def test_restore_brings_back_what_the_snapshot_told() -> None:
    before = table()
    learn(before, A, ONE, SIX)
    learn(before, B, ONE)
    after = table()
    for lease in before.snapshot(100):
        for name in lease.names:
            assert after.restore(lease.ip, lease.port, name, lease.remaining, 5000)
    assert after.snapshot(5000) == before.snapshot(100)
    assert learn(after, A, ONE, now=5000).known == 1


def test_a_restored_lease_without_a_name_counts_and_ends() -> None:
    leases = table()
    assert leases.restore(ONE, 443, None, 100, 0)
    assert leases.snapshot(40) == (Lease(ONE, 443, 60, ()),)
    assert leases.expire(100) == ((ONE, 443),)


def test_restore_takes_the_longer_of_two() -> None:
    leases = table()
    leases.restore(ONE, 443, A, 100, 0)
    leases.restore(ONE, 443, A, 50, 0)
    assert leases.find(ONE, 0)[0].remaining == 100


@pytest.mark.parametrize(
    ("ip", "expires_in"),
    [
        (ONE, 0),
        (ONE, -1),
        (ONE, float("nan")),
        (IPv4Address("127.0.0.1"), 100),
        (IPv6Address("::ffff:192.0.2.1"), 100),
    ],
)
def test_restore_refuses_what_would_not_be_learned(ip: IPAddress, expires_in: float) -> None:
    leases = table()
    assert not leases.restore(ip, 443, A, expires_in, 0)
    assert len(leases) == 0


def test_restore_keeps_to_the_limits() -> None:
    leases = table(per_name=1, total=2)
    assert leases.restore(ONE, 443, A, 100, 0)
    assert leases.restore(TWO, 443, A, 100, 0)
    assert leases.find(TWO, 0)[0].names == ()
    assert not leases.restore(SIX, 443, B, 100, 0)
    assert len(leases) == 2


def test_discarded_leases_are_written_again() -> None:
    leases = table()
    learn(leases, A, ONE)
    assert leases.discard(ONE, 443)
    assert not leases.discard(ONE, 443)
    assert not leases.discard(ONE, 80)
    assert learn(leases, A, ONE).write == (Write(ONE, 443, SHORT),)


def test_memory_does_not_grow_with_what_is_past() -> None:
    leases = table(per_name=4, total=16)
    for step in range(2_000):
        learn(leases, A, ONE, TWO, now=step * 200)
        learn(leases, B, *numbered(2, start=step % 50), now=step * 200)
    assert len(leases._by_ip) == len(leases) <= 16  # noqa: SLF001
    assert len(leases._elements._heap) < 2 * 16 + 80  # noqa: SLF001
    assert len(leases._links._heap) < 2 * 16 + 80  # noqa: SLF001
    assert sum(len(heap._heap) for heap in leases._by_name.values()) < 2 * 80  # noqa: SLF001

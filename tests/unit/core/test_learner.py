"""From packets to leases; what the engine adds is in test_engine."""

from __future__ import annotations

import struct

import pytest

from ramnet.core import learner as module
from ramnet.core.allow import ANY_PORT, NOBODY
from ramnet.core.config import Limits
from ramnet.core.events import WriteLeases
from ramnet.core.learner import SETTLED_SECONDS, Ignored, Learner
from ramnet.core.packet import TCP_SYN
from ramnet.core.terms import Book, Held
from tests.unit.core.support import (
    CLIENT,
    SERVER,
    allowed,
    answer,
    host,
    ip,
    policy,
    query,
    question,
    reply,
)

NAME, ONE, TWO = "r.example", "198.51.100.1", "198.51.100.2"


def taught(**limits: int) -> Learner:
    found = Learner(Limits(**limits))
    found.permit(allowed(policy(NAME, "*.w.example")))
    return found


def tcp(payload: bytes, sequence: int, flags: int = 0x18, *, query: bool = False) -> bytes:
    ports = (40_000, 53) if query else (53, 40_000)
    body = struct.pack("!HHIIBBHHH", *ports, sequence, 0, 0x50, flags, 0, 0, 0) + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, 6, 0)
    ends = CLIENT.packed + SERVER.packed if query else SERVER.packed + CLIENT.packed
    return head + ends + body


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


def test_an_answer_is_a_lesson_with_what_must_be_written() -> None:
    found = taught()
    found.queries.add(query(NAME).packet, 0.0)
    (lesson,) = found.packet(answer(NAME, ONE, TWO).packet, 0.0)
    assert isinstance(lesson.write, WriteLeases)
    assert lesson.keys == ((ip(ONE), 443), (ip(TWO), 443))
    found.queries.add(query(NAME).packet, 0.5)
    (again,) = found.packet(answer(NAME, TWO).packet, 1.0)
    assert (again.write, again.keys) == (None, ((ip(TWO), 443),))


def test_an_answer_over_tcp_in_pieces() -> None:
    found = taught()
    found.queries.add(tcp(b"", 0, TCP_SYN, query=True), 0.0)
    found.queries.add(tcp(framed(question(NAME)) * 2, 1, query=True), 0.0)
    data = framed(reply(NAME, ONE)) + framed(reply(NAME, TWO))
    assert found.packet(tcp(b"", 99, TCP_SYN | 0x10), 0.0) == []
    assert found.packet(tcp(data[:10], 100), 0.0) == []
    lessons = found.packet(tcp(data[10:], 110), 0.0)
    assert [lesson.keys for lesson in lessons] == [((ip(ONE), 443),), ((ip(TWO), 443),)]


def test_names_are_judged_by_every_policy_that_counts() -> None:
    found = Learner(Limits())
    assert found.ports_of(host(NAME)) == frozenset()
    found.permit(allowed(policy(NAME, f"{NAME}:5000")), allowed(policy(f"{NAME}:5000")))
    assert found.ports_of(host(NAME)) == {5000}
    found.permit(allowed(policy(NAME)), allowed(None))
    assert found.ports_of(host(NAME)) == frozenset()
    assert found.teach(host(NAME), [ip(ONE)], 60, 0.0) is None
    assert found.ignored == {Ignored.NOT_ALLOWED: 1}


def test_two_policies_agree_on_a_port_that_one_of_them_gives_with_all_others() -> None:
    found = Learner(Limits())
    one, other = allowed(policy(f"{NAME}:*")), allowed(policy(NAME, f"{NAME}:5000"))
    for permits, ports in (
        ((one,), {ANY_PORT}),
        ((one, other), {443, 5000}),
        ((other, one), {443, 5000}),
        ((one, one), {ANY_PORT}),
        ((one, NOBODY), set()),
    ):
        found.permit(*permits)
        assert found.ports_of(host(NAME)) == ports


@pytest.mark.parametrize("book", list(Book))
def test_what_is_taught_is_for_the_learners_own_book(book: Book) -> None:
    found = Learner(Limits(), book)
    found.permit(allowed(policy(f"{NAME}:*")))
    lesson = found.teach(host(NAME), [ip(ONE)], 60, 0.0)
    assert lesson is not None
    assert lesson.keys == ((ip(ONE), ANY_PORT),)
    assert lesson.write == WriteLeases((Held(ip(ONE), ANY_PORT, 360, NAME, book),), (), book)


@pytest.mark.parametrize(
    ("packet", "concerns"),
    [
        (answer(NAME, ONE).packet, True),
        (answer("R.EXAMPLE", ONE).packet, True),
        (answer("a.w.example", ONE).packet, True),
        (answer("other.example", ONE).packet, False),
        (answer("w.example", ONE).packet, False),
        (tcp(b"", 0), True),
        (b"", True),
        (answer(NAME, ONE).packet[:40], False),
        (answer(NAME, ONE).packet[:28], False),
    ],
)
def test_what_needs_a_look(packet: bytes, concerns: bool) -> None:
    found = taught()
    for _ in range(2):  # the second time from memory
        assert found.concerns(packet, 0.0) is concerns


def test_an_answer_that_was_settled_is_not_looked_at_for_a_moment() -> None:
    found = taught()
    packet = answer(NAME, ONE, ident=1).packet
    same = answer(NAME, ONE, ident=2).packet
    found.settled(packet, 0.0)
    found.settled(b"", 0.0)
    assert not found.concerns(packet, 0.5)
    assert not found.concerns(same, 0.5), "but for the ID it is the same"
    assert found.concerns(answer(NAME, TWO).packet, 0.5)
    assert found.concerns(packet, SETTLED_SECONDS)


def test_what_was_settled_counts_no_more_when_a_lease_was_dropped_or_a_policy_came() -> None:
    found = taught(leases_per_name=8)
    packet = answer(NAME, ONE).packet
    found.teach(host(NAME), [ip(ONE)], 60, 0.0)
    found.settled(packet, 0.0)
    found.teach(host(NAME), [ip(f"203.0.113.{n}") for n in range(8)], 60, 0.1)
    assert found.concerns(packet, 0.2), "its lease made room for others"
    found.settled(packet, 0.3)
    found.permit(allowed(policy(NAME)))
    assert found.concerns(packet, 0.4)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_NAMES", 2)
    monkeypatch.setattr(module, "MAX_SETTLED", 2)
    found = taught()
    for n in range(10):
        packet = answer(f"n{n}.w.example", ONE).packet
        assert found.concerns(packet, 0.0)
        found.settled(packet, 0.0)
        assert not found.concerns(packet, 0.5)
    # As much as a look at what the memory holds: the first was forgotten.
    assert found.concerns(answer("n0.w.example", ONE).packet, 0.5)

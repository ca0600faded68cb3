"""DNS messages out of TCP segments: in order, out of order, twice, and beyond every bound."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramnet.core.packet import TCP_FIN, TCP_RST, TCP_SYN, Flow, Segment
from ramnet.core.streams import MAX_EARLY, MAX_STREAMS, MAX_WAITING, Streams

FLOW = Flow(b"\xc0\x00\x02\x35", 53, b"\xc0\x00\x02\x0a", 40_000)


def segment(sequence: int, payload: bytes = b"", flags: int = 0x10, flow: Flow = FLOW) -> Segment:
    return Segment(flow, sequence % (1 << 32), flags, payload, 40)


def framed(*messages: bytes) -> bytes:
    return b"".join(len(message).to_bytes(2, "big") + message for message in messages)


def opened(sequence: int = 1000) -> Streams:
    streams = Streams()
    assert streams.feed(segment(sequence, flags=TCP_SYN | 0x10)) == []
    return streams


def test_messages_in_one_segment_and_over_several() -> None:
    streams = opened()
    data = framed(b"one", b"", b"three")
    assert streams.feed(segment(1000, data)) == [b"one", b"", b"three"]
    last = framed(b"four")
    assert streams.feed(segment(1000 + len(data), last[:1])) == []
    assert streams.feed(segment(1001 + len(data), last[1:])) == [b"four"]


def test_data_that_comes_with_the_syn() -> None:
    """TCP Fast Open."""
    streams = Streams()
    assert streams.feed(segment(5, framed(b"early"), TCP_SYN)) == [b"early"]


def test_a_stream_whose_beginning_was_not_seen_teaches_nothing() -> None:
    assert Streams().feed(segment(1000, framed(b"one"))) == []


def test_a_stream_ends_with_its_connection() -> None:
    for flags in (TCP_FIN, TCP_RST):
        streams = opened()
        assert streams.feed(segment(1000, framed(b"one"), flags)) == [b"one"]
        assert len(streams) == 0
        assert streams.feed(segment(1005, framed(b"two"))) == []


def test_a_fin_that_overtakes_waits_for_what_is_missing() -> None:
    streams = opened()
    assert streams.feed(segment(1003, b"ne", TCP_FIN)) == []
    assert len(streams) == 1
    assert streams.feed(segment(1000, b"\0\3o")) == [b"one"]


@given(
    st.lists(st.binary(max_size=60), max_size=8),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32),
)
def test_any_order_repeats_and_overlaps_give_the_same_messages(
    messages: list[bytes], start: int, seed: int
) -> None:
    chance = random.Random(seed)
    data = framed(*messages)
    cuts = sorted({0, len(data), *(chance.randint(0, len(data)) for _ in range(8))})
    parts = [(max(0, a - chance.randint(0, 5)), b) for a, b in pairwise(cuts)]
    parts += chance.choices(parts, k=3) if parts else []
    chance.shuffle(parts)
    streams = opened(start)
    found: list[bytes] = []
    for a, b in parts:
        found += streams.feed(segment(start + a, data[a:b]))
    assert found == messages
    assert streams.given_up == 0


def test_streams_are_bounded_and_the_oldest_go_first() -> None:
    streams = Streams()
    flows = [Flow(b"\0\0\0\0", 53, b"\0\0\0\0", port) for port in range(MAX_STREAMS + 1)]
    for flow in flows:
        streams.feed(segment(0, flags=TCP_SYN, flow=flow))
    assert len(streams) == MAX_STREAMS
    assert streams.feed(segment(0, framed(b"x"), flow=flows[0])) == []
    assert streams.feed(segment(0, framed(b"x"), flow=flows[1])) == [b"x"]


@pytest.mark.parametrize("far", [MAX_WAITING + 1, (1 << 31) - 1])
def test_a_segment_from_far_ahead_ends_the_stream(far: int) -> None:
    streams = opened()
    assert streams.feed(segment(1000 + far, b"x")) == []
    assert (len(streams), streams.given_up) == (0, 1)


def test_segments_that_wait_are_bounded() -> None:
    streams = opened()
    for n in range(MAX_EARLY):
        assert streams.feed(segment(1002 + 2 * n, b"x")) == []
        assert len(streams) == 1
    streams.feed(segment(1002 + 2 * MAX_EARLY, b"x"))
    assert (len(streams), streams.given_up) == (0, 1)


def test_octets_that_wait_are_bounded() -> None:
    streams = opened()
    begun, gap, early = b"\xff\xff" + b"x" * 65_000, b"y" * 10, b"z" * 60_000
    end = 1000 + len(begun) + len(gap)
    for at, payload in ((1000, begun), (end, early), (end + len(early), early)):
        assert streams.feed(segment(at, payload)) == []
        assert len(streams) == 1
    assert streams.feed(segment(1000 + len(begun), gap)) == []
    assert (len(streams), streams.given_up) == (0, 1)


def test_a_new_connection_of_the_same_ports_begins_anew() -> None:
    streams = opened()
    streams.feed(segment(1000, b"\0\5he"))
    streams.feed(segment(7, flags=TCP_SYN))
    assert streams.feed(segment(7, framed(b"new"))) == [b"new"]

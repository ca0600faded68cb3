"""The first octets of a connection: what they tell, when they do, and what may pass before."""

from __future__ import annotations

import ssl
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramnet.core.http import HTTP2_PREFACE, MAX_HEAD
from ramnet.core.names import HostName
from ramnet.core.opening import MAX_HELLO_RECORDS, Opener, Opening, Protocol, Waiting
from ramnet.core.tls import MAX_RECORDS_OCTETS
from tests.unit.core.hellos import Hello, ech, in_single_octets, openssl_hello, records, vector

NAME = HostName("registry.example")
REQUEST = b"GET /v2/ HTTP/1.1\r\nHost: registry.example:5000\r\nUser-Agent: docker\r\n\r\n"


def told(*parts: bytes) -> list[Opening | Waiting]:
    """What each part tells, the last one that is asked for included."""
    opener, said = Opener(), []
    for part in parts:
        said.append(opener.feed(part))
        if isinstance(said[-1], Opening):
            break
    return said


def cut(hello: Hello, size: int) -> bytes:
    """A hello in records of so many octets."""
    octets = hello.message()
    return records(octets, range(0, len(octets), size))


def opening(data: bytes) -> Opening:
    """What it opens with, whether it comes at once or octet by octet."""
    (whole,) = told(data)
    assert isinstance(whole, Opening)
    by_octet = told(*(data[at : at + 1] for at in range(len(data))))
    assert by_octet[-1] == whole
    assert all(isinstance(one, Waiting) for one in by_octet[:-1])
    return whole


def test_a_hello_of_openssl_tells_its_name() -> None:
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        data = openssl_hello("registry.example", latest=version)
        assert opening(data) == Opening(Protocol.TLS, NAME)


def test_a_large_hello_in_segments_and_records_passes_on_until_it_is_complete() -> None:
    data = cut(Hello(key_share=1216, padding=900), 700)
    parts = [data[at : at + 1400] for at in range(0, len(data), 1400)]
    assert told(*parts) == [Waiting.PASS] * (len(parts) - 1) + [Opening(Protocol.TLS, NAME)]
    assert opening(data) == Opening(Protocol.TLS, NAME)


def test_a_hello_says_that_there_is_no_name_or_another_one_inside() -> None:
    assert opening(records(Hello(names=None).message())) == Opening(Protocol.TLS)
    hidden = opening(records(Hello(extras=(ech(),)).message()))
    assert hidden == Opening(Protocol.TLS, NAME, ech=True)


def test_what_is_no_hello_is_a_problem() -> None:
    for data in (
        b"\x16\x03\x01\xff\xff",  # longer than a record can be: before it is complete
        b"\x16\x03\x01\x00\x00",
        records(Hello(kind=2).message()),
        records(Hello().message())[:-10] + b"\x16\x03",
        cut(Hello(), 20)[:25] + b"\x17\x03\x03",
    ):
        said = told(*(data[at : at + 1] for at in range(len(data))), b"\0" * 100_000)[-1]
        assert isinstance(said, Opening)
        assert said.protocol is Protocol.TLS
        assert said.problem
        assert said.host is None


def test_records_are_bounded() -> None:
    few = cut(Hello(), -(-len(Hello().message()) // MAX_HELLO_RECORDS))
    assert opening(few) == Opening(Protocol.TLS, NAME)
    assert "records" in opening(in_single_octets(Hello().message())).problem


def test_octets_are_bounded() -> None:
    opener = Opener()
    endless = b"\x16\x03\x01" + vector(2, b"\x01\x00\xff\xff" + bytes(16_000))
    for at in range(0, MAX_RECORDS_OCTETS + len(endless), len(endless)):
        said = opener.feed(endless if at == 0 else b"\x16\x03\x01" + vector(2, bytes(16_000)))
        if isinstance(said, Opening):
            break
    assert isinstance(said, Opening)
    assert len(opener.data) <= MAX_RECORDS_OCTETS + len(endless)
    assert opening(b"GET /" + b"a" * MAX_HEAD).problem


def test_a_request_waits_until_its_line_is_complete_and_then_for_its_head() -> None:
    assert opening(REQUEST) == Opening(Protocol.HTTP, NAME, 5000)
    line = REQUEST.index(b"\r\n") + 2
    said = told(*(REQUEST[at : at + 1] for at in range(len(REQUEST))))
    assert said[: line - 1] == [Waiting.HOLD] * (line - 1)
    assert set(said[line - 1 : -2]) == {Waiting.PASS}
    assert said[-2] is Waiting.HOLD  # a bare CR may be an empty line to a server


@pytest.mark.parametrize(
    "data",
    [
        b"GET /\r\n",  # HTTP/0.9
        b"GET / HTTP/1.1\n",
        b"GET / HTTP/2.0\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\r",
        b"GET / HTTP/1.1\r\nHost: a\n",
        b"GET / HTTP/1.1\r\nHost: a\0",
        b"\r\n\r\nGET / HTTP/1.1\r\n",
        b"GET  / HTTP/1.1\r\n",
    ],
)
def test_nothing_passes_that_a_tolerant_server_might_answer(data: bytes) -> None:
    said = told(*(data[at : at + 1] for at in range(len(data))))
    last = said[-1]
    assert last is Waiting.HOLD or (isinstance(last, Opening) and last.problem)


def test_requests_to_proxies_are_told_apart() -> None:
    connect = b"CONNECT quay.io:443 HTTP/1.1\r\nHost: quay.io:443\r\n\r\n"
    assert opening(connect) == Opening(Protocol.HTTP, HostName("quay.io"), 443, relayed=True)
    absolute = b"GET http://quay.io/v2/ HTTP/1.1\r\nHost: quay.io\r\n\r\n"
    assert opening(absolute) == Opening(Protocol.HTTP, HostName("quay.io"), relayed=True)
    bare = b"GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n"
    assert opening(bare) == Opening(Protocol.HTTP, ip_address("192.0.2.1"))


def test_two_hosts_in_one_request_are_a_problem() -> None:
    said = opening(b"GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n")
    assert said.problem == "more than one host"


def test_what_has_no_name_is_told_at_once() -> None:
    assert opening(HTTP2_PREFACE) == Opening(Protocol.HTTP2)
    assert opening(b"SSH-") == Opening(Protocol.UNKNOWN)
    assert told(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n") == [Opening(Protocol.UNKNOWN)]
    assert opening(b"\0") == Opening(Protocol.UNKNOWN)
    assert opening(b"\x16\x02") == Opening(Protocol.UNKNOWN)


@given(st.binary(min_size=1, max_size=300), st.integers(1, 40))
def test_any_octets_tell_the_same_however_they_are_cut(data: bytes, size: int) -> None:
    whole = told(data)
    parts = told(*(data[at : at + size] for at in range(0, len(data), size)))
    assert parts[-1] == whole[-1] or (isinstance(parts[-1], Opening) and parts[-1].problem)


@given(st.binary(max_size=60), st.integers(0, 400))
def test_changed_hellos_and_requests_give_a_value(noise: bytes, at: int) -> None:
    for data in (cut(Hello(), 90), REQUEST):
        changed = data[:at] + noise + data[at:]
        for said in told(*(changed[i : i + 7] for i in range(0, len(changed), 7))):
            assert isinstance(said, Opening | Waiting)

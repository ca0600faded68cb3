"""The strict reader of requests against octets of any kind, and against heads that are mutated."""

from __future__ import annotations

import re

from hypothesis import assume, given
from hypothesis import strategies as st

from ramnet.core.http import HTTP2_PREFACE, MAX_HEAD, Kind, Request, head_of, kind_of, parse_head
from ramnet.core.names import parse_host
from ramnet.core.notice import asked_of
from ramnet.errors import WireError

PIECES = st.sampled_from(
    (
        *(b"GET ", b"OPTIONS ", b"CONNECT ", b"/", b"*", b" HTTP/1.1", b" HTTP/1.0", b" ", b"\t"),
        *(b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"Host: ", b"Host", b":", b"a.example", b"b.example"),
        *(b":443", b"http://", b"@", b"[", b"::1]", b"%", b"#", b"\\", b"\xff", b"\0", b"Accept: "),
    )
)
STREAMS = st.binary(max_size=300) | st.lists(PIECES, max_size=20).map(b"".join)
HOSTS = st.sampled_from(("a.example", "B.example:5000", "192.0.2.1", "[2001:db8::1]:443", "c."))
NAMES = st.from_regex(r"[A-Za-z!#~-]{1,40}", fullmatch=True).filter(lambda n: n.lower() != "host")
VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_categories=["Cc"]))
PATHS = st.from_regex(r"/([a-z0-9._?:@%-][a-z0-9/._?:@%-]*)?", fullmatch=True)


@st.composite
def heads(draw: st.DrawFn) -> tuple[bytes, str]:
    """Give a head that is in order, and its host as it stands there."""
    host = draw(HOSTS)
    fields = draw(st.lists(st.tuples(NAMES, VALUES), max_size=5))
    fields.insert(
        draw(st.integers(0, len(fields))), (draw(st.sampled_from(("Host", "hOST"))), host)
    )
    form = draw(st.sampled_from(("origin", "absolute", "connect")))
    target = draw(PATHS)
    if form == "absolute":
        target = f"http://{host}{target}"
    first = f"GET {target} HTTP/1.1"
    if form == "connect":
        host = host if re.search(r":\d+$", host) else f"{host}:443"
        first = f"CONNECT {host} HTTP/1.1"
    lines = [first, *(f"{name}: {value}" for name, value in fields)]
    return "\r\n".join((*lines, "", "")).encode("latin-1"), host


def read(data: bytes) -> Request | None:
    try:
        head = head_of(data)
        return None if head is None else parse_head(head)
    except WireError:
        return None


@given(STREAMS)
def test_any_octets_are_a_request_or_an_error(data: bytes) -> None:
    assert kind_of(data) is None or isinstance(kind_of(data), Kind)
    if read(data) is not None:
        assert kind_of(data) is Kind.HTTP1


@given(STREAMS | st.integers(0, 24).map(lambda size: HTTP2_PREFACE[:size]), STREAMS)
def test_more_octets_do_not_change_what_it_is(data: bytes, more: bytes) -> None:
    kind = kind_of(data)
    if kind is not None:
        assert kind_of(data + more) is kind


@given(heads(), st.data())
def test_a_head_in_order_is_read_when_it_is_whole(
    example: tuple[bytes, str], data: st.DataObject
) -> None:
    head, host = example
    assume(len(head) < MAX_HEAD)
    size = data.draw(st.integers(0, len(head) - 1))
    assert head_of(head[:size]) is None
    assert kind_of(head[:size]) in {None, Kind.HTTP1}
    request = read(head + data.draw(st.binary(max_size=20)))
    assert request is not None
    shown = f"[{request.host}]" if ":" in str(request.host) else str(request.host)
    port = "" if request.port is None else f":{request.port}"
    assert f"{shown}{port}" == re.sub(r"\.(?=:|$)", "", host.lower())


@given(heads(), st.data())
def test_no_change_of_an_octet_hides_a_host(
    example: tuple[bytes, str], data: st.DataObject
) -> None:
    """What is still read after it has the host that a tolerant reader finds as well."""
    head, _ = example
    at = data.draw(st.integers(0, len(head) - 1))
    octet = data.draw(st.sampled_from(b"\r\n\t\0 :/@#\\[].,aH\xa0") | st.integers(0, 255))
    size = data.draw(st.integers(0, 1))
    request = read(head[:at] + bytes((octet,)) + head[at + size :])
    if request is None:
        return
    asked = asked_of(head_of(head[:at] + bytes((octet,)) + head[at + size :]) or b"")
    if asked.host is not None:
        assert asked.host == request.host
    else:  # it reads no addresses
        assert not isinstance(request.host, str)
    assert asked.connect == request.connect


@given(heads(), st.sampled_from((b"Host: b.example", b"host:", b" x", b"Host : a", b"\0: a", b"")))
def test_no_line_is_put_into_a_head_unseen(example: tuple[bytes, str], line: bytes) -> None:
    head, _ = example
    first, *rest = head.split(b"\r\n")
    assert read(b"\r\n".join((first, line, *rest))) is None


def test_hosts_are_compared_without_a_dot() -> None:
    request = read(b"CONNECT a.example.:443 HTTP/1.1\r\nHost: A.example\r\n\r\n")
    assert request is not None
    assert request.host == parse_host("a.example")

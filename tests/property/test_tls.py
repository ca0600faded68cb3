"""The ClientHello against octets of any kind, and hellos in pieces of any size."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ramnet.core.names import HostName, parse_host
from ramnet.core.tls import MAX_PROTOCOLS, MAX_RECORDS_OCTETS, ClientHello, is_tls, read_hello
from ramnet.errors import WireError
from tests.unit.core.hellos import (
    Hello,
    ech,
    extension,
    message,
    name_entry,
    openssl_hears,
    records,
    vector,
)

LABELS = st.text("abcXYZ019_", min_size=1, max_size=12)
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(lambda labels: ".".join([*labels, "example"]))
# Numbers that no extension read here has.
UNKNOWN = st.lists(st.integers(1000, 2000), max_size=6, unique=True)
CUTS = st.lists(st.integers(1, 3000), max_size=12)


@st.composite
def hellos(draw: st.DrawFn) -> tuple[Hello, ClientHello]:
    """A hello that is right, and what it says."""
    name = draw(st.none() | NAMES)
    alpn = tuple(draw(st.lists(st.binary(min_size=1, max_size=9), max_size=4)))
    hidden = draw(st.booleans())
    extras = [extension(kind, draw(st.binary(max_size=20))) for kind in draw(UNKNOWN)]
    if hidden:
        extras.insert(draw(st.integers(0, len(extras))), ech(size=draw(st.integers(1, 300))))
    hello = Hello(
        names=None if name is None else (name_entry(name),),
        alpn=alpn,
        versions=draw(st.sampled_from([(), (0x0303,), (0x0304, 0x0303), (0x7A7A, 0x0304)])),
        extras=tuple(extras),
        grease=draw(st.booleans()),
        key_share=draw(st.sampled_from([0, 32, 1216])),
        padding=draw(st.sampled_from([0, 1, 512])),
        session_id=draw(st.binary(max_size=32)),
    )
    server_name = None if name is None else HostName(name.lower())
    protocols = tuple(protocol.decode("latin-1") for protocol in alpn)
    return hello, ClientHello(server_name, ech=hidden, alpn=protocols)


HELLOS = hellos()
# Octets that begin as a hello does, so that they get further than the first check.
SHAPED = st.builds(
    lambda body, tail, cuts: records(message(b"\3\3" + bytes(32) + body), cuts) + tail,
    st.binary(max_size=100)
    | st.binary(max_size=80).map(lambda octets: b"\0\0\2\x13\1\1\0" + vector(2, octets))
    | st.binary(max_size=60).map(
        lambda octets: b"\0\0\2\x13\1\1\0" + vector(2, extension(0, octets))
    ),
    st.binary(max_size=10),
    CUTS,
)


def outcome(data: bytes) -> ClientHello | str | None:
    """What is read, or "error"; any other exception, and a value that cannot be, fails the test."""
    try:
        hello = read_hello(data)
    except WireError as err:
        return "error" if err.where == "ClientHello" and len(err.message) < 250 else err.message
    if hello is not None:
        assert is_tls(data)
        assert hello.server_name is None or parse_host(hello.server_name) == hello.server_name
        assert len(hello.alpn) <= MAX_PROTOCOLS
    elif data[1:]:
        assert is_tls(data)
        assert len(data) < MAX_RECORDS_OCTETS
    return hello


def check_parts(data: bytes, sizes: list[int]) -> None:
    """What a part of the octets already says, the whole says as well."""
    whole = outcome(data)
    for size in sizes:
        assert outcome(data[: size % (len(data) + 1)]) in (None, whole)


def check_openssl(data: bytes) -> None:
    """OpenSSL reads no other name where we read one, and none where we still wait.

    It may refuse what we take; what we refuse it is not asked.
    """
    hello = outcome(data)
    if hello is None:
        assert openssl_hears(data) == []
    elif isinstance(hello, ClientHello):
        for name in openssl_hears(data):
            assert (name and name.lower()) == hello.server_name


@given(HELLOS, CUTS, st.binary(max_size=20))
def test_what_was_built_is_read_in_any_records(
    built: tuple[Hello, ClientHello], cuts: list[int], behind: bytes
) -> None:
    hello, expected = built
    assert read_hello(hello.wire()) == expected
    assert read_hello(records(hello.message(), cuts) + behind) == expected


@given(HELLOS, CUTS, st.lists(st.integers(0, 5000), min_size=1, max_size=20))
def test_a_part_of_a_hello_is_not_complete(
    built: tuple[Hello, ClientHello], cuts: list[int], sizes: list[int]
) -> None:
    wire = records(built[0].message(), cuts)
    for size in sizes:
        assert read_hello(wire[: size % len(wire)]) is None


@given(st.binary(max_size=300) | SHAPED, st.lists(st.integers(0, 400), max_size=10))
def test_any_octets(data: bytes, sizes: list[int]) -> None:
    check_parts(data, sizes)
    for size in (0, 1, 2, len(data)):
        assert is_tls(data[:size]) in (None, is_tls(data))


@given(
    HELLOS,
    CUTS,
    st.lists(st.tuples(st.integers(0, 5000), st.binary(max_size=3), st.integers(0, 3)), max_size=4),
    st.lists(st.integers(0, 5000), max_size=10),
)
def test_hellos_with_octets_put_in_taken_out_and_changed(
    built: tuple[Hello, ClientHello],
    cuts: list[int],
    changes: list[tuple[int, bytes, int]],
    sizes: list[int],
) -> None:
    data = bytearray(records(built[0].message(), cuts))
    for where, octets, removed in changes:
        at = where % (len(data) + 1)
        data[at : at + removed] = octets
    check_parts(bytes(data), sizes)
    check_openssl(bytes(data))


@given(HELLOS, CUTS, st.integers(0, 5000), st.binary(min_size=1, max_size=2))
def test_records_do_not_change_what_a_wrong_message_says(
    built: tuple[Hello, ClientHello], cuts: list[int], where: int, octets: bytes
) -> None:
    body = bytearray(built[0].body())
    at = where % len(body)
    body[at : at + len(octets)] = octets
    wrong = message(bytes(body))
    assert outcome(records(wrong, cuts)) == outcome(records(wrong))
    check_openssl(records(wrong, cuts))

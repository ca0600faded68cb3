"""ClientHellos, right ones and wrong ones, whole and in pieces."""

from __future__ import annotations

import ssl
from dataclasses import replace

import pytest

from ramnet.core.names import HostName
from ramnet.core.tls import (
    MAX_EXTENSIONS,
    MAX_HELLO,
    MAX_PROTOCOLS,
    MAX_RECORDS,
    MAX_RECORDS_OCTETS,
    ClientHello,
    is_tls,
    read_hello,
)
from ramnet.errors import WireError
from tests.unit.core.hellos import (
    ALPN,
    CHANGE_CIPHER_SPEC,
    ECH,
    ESNI,
    GREASE,
    PRE_SHARED_KEY,
    SERVER_NAME,
    SESSION_TICKET,
    Hello,
    ech,
    extension,
    in_single_octets,
    message,
    name_entry,
    openssl_hears,
    openssl_hello,
    protocols,
    record,
    records,
    server_names,
    vector,
)

NAME = HostName("registry.example")
PLAIN = ClientHello(NAME, ech=False, alpn=())
FULL = Hello(alpn=(b"h2", b"http/1.1"), grease=True, key_share=1216, extras=(ech(),))
ONE = name_entry("registry.example")
OTHER = name_entry("other.example")
SSL2 = b"\x80\x2e\x01\x03\x01\x00\x15\x00\x00\x00\x10\x01\x00\x80"


def named(*entries: bytes) -> Hello:
    return Hello(names=entries)


def refused(data: bytes) -> str:
    """Expect an error and return what it says; it must be the same with octets behind."""
    with pytest.raises(WireError) as found:
        read_hello(data)
    assert found.value.where == "ClientHello"
    with pytest.raises(WireError):
        read_hello(data + b"\x17\x03\x03\x00\x01x")
    return found.value.message


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", None),
        (b"\x16", None),
        (b"\x16\x03", True),
        (b"\x16\x03\x00", True),
        (b"\x16\x03\x01\x02\x00\x01", True),
        (b"\x16\x02", False),
        (b"\x16\xfe\xfd", False),  # DTLS
        (b"\x15", False),
        (b"\x15\x03\x01", False),
        (b"\x17\x03\x03", False),
        (b"GET / HTTP/1.1\r\n", False),
        (b"\0", False),
        (SSL2, False),
    ],
)
def test_what_is_tls(data: bytes, expected: bool | None) -> None:
    assert is_tls(data) is expected


def test_the_name_and_the_protocols() -> None:
    assert read_hello(Hello().wire()) == PLAIN
    assert read_hello(bytearray(Hello().wire())) == PLAIN
    assert read_hello(FULL.wire()) == ClientHello(NAME, ech=True, alpn=("h2", "http/1.1"))
    # GREASE among the protocols (RFC 8701 section 3.1).
    strange = Hello(alpn=(b"\xfa\xfa", b"h2"))
    assert read_hello(strange.wire()) == ClientHello(NAME, ech=False, alpn=("\xfa\xfa", "h2"))


def test_a_hello_without_a_name() -> None:
    nameless = ClientHello(None, ech=False, alpn=())
    assert read_hello(Hello(names=None).wire()) == nameless
    assert read_hello(Hello(without_extensions=True).wire()) == nameless
    assert read_hello(Hello(without_extensions=True, trailing=b"\0\0").wire()) == nameless


@pytest.mark.parametrize("latest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("name", ["registry.example", None])
@pytest.mark.parametrize("alpn", [(), ("h2", "http/1.1")])
def test_what_openssl_sends(
    latest: ssl.TLSVersion, name: str | None, alpn: tuple[str, ...]
) -> None:
    data = openssl_hello(name, latest=latest, alpn=alpn)
    expected = ClientHello(NAME if name else None, ech=False, alpn=alpn)
    assert is_tls(data)
    assert read_hello(data) == expected
    assert {read_hello(data[:size]) for size in range(len(data))} == {None}
    assert read_hello(in_single_octets(data[5:])) == expected


def test_openssl_reads_the_same_name() -> None:
    """What the comparison in tests/property rests on: it hears names, and takes what is built."""
    for hello in (Hello(), replace(FULL, key_share=32), Hello().padded_to(17_000)):
        assert openssl_hears(hello.wire()) == [NAME]
        assert openssl_hears(records(hello.message(), [1, 70, 150])) == [NAME]
    assert openssl_hears(Hello(names=None).wire()) == [None]
    assert openssl_hears(named(ONE, OTHER).wire()) == []


def test_an_address_is_no_name_for_openssl_either() -> None:
    assert read_hello(openssl_hello("192.0.2.1")) == ClientHello(None, ech=False, alpn=())


@pytest.mark.parametrize(
    "hello",
    [
        Hello(),
        Hello(names=None),
        FULL,
        Hello(without_extensions=True),
        Hello(session_id=b"", extras=(extension(SESSION_TICKET),)),
    ],
)
def test_every_part_of_a_hello_is_not_complete(hello: Hello) -> None:
    wire = hello.wire()
    for size in range(len(wire)):
        assert read_hello(wire[:size]) is None
    assert read_hello(wire) is not None
    # In small records, every part ends within a header at some size.
    pieces = records(hello.message(), range(0, 5000, 7))
    for size in range(0, len(pieces), 3):
        assert read_hello(pieces[:size]) is None
    assert read_hello(pieces) == read_hello(wire)


def test_records_cut_anywhere() -> None:
    whole = Hello().message()
    for cut in range(1, len(whole)):
        assert read_hello(records(whole, [cut])) == PLAIN
        assert read_hello(records(whole, [cut, cut + 1])) == PLAIN
    assert read_hello(in_single_octets(whole)) == PLAIN
    assert read_hello(in_single_octets(FULL.message())) == read_hello(FULL.wire())


def test_a_hello_longer_than_a_record() -> None:
    long = Hello().padded_to(17_000)
    wire = long.wire()
    assert len(wire) == 17_000 + 2 * 5
    assert read_hello(wire) == PLAIN
    assert read_hello(wire[:-1]) is None
    assert read_hello(wire[: 5 + (1 << 14)]) is None


@pytest.mark.parametrize(
    "behind",
    [
        b"\0",
        b"\x17",
        b"\x17\x03\x03\x00\x05early",
        CHANGE_CIPHER_SPEC,
        b"GET / HTTP/1.1\r\n",
        Hello(names=(name_entry("other.example"),)).wire(),
        bytes(MAX_RECORDS_OCTETS),
    ],
)
def test_what_follows_the_hello_is_not_looked_at(behind: bytes) -> None:
    assert read_hello(Hello().wire() + behind) == PLAIN


@pytest.mark.parametrize("behind", [b"\0", b"\x14\0\0\x20", Hello().message()])
def test_nothing_else_is_in_the_last_record(behind: bytes) -> None:
    data = record(Hello().message() + behind)
    assert "last record" in refused(data)
    assert "last record" in refused(data[:9])  # the two lengths say it
    whole = Hello().message()
    assert "last record" in refused(record(whole[:-1]) + record(whole[-1:] + behind))


def test_other_records_before_the_end_of_the_hello() -> None:
    whole = Hello().message()
    for other in (
        CHANGE_CIPHER_SPEC,
        b"\x15\x03\x01\x00\x02\x01\x00",
        b"\x17\x03\x03\x00\x01x",
        b"\x16\x02\x00",
    ):
        assert "record" in refused(other)
        assert "record" in refused(record(whole[:50]) + other + record(whole[50:]))
        assert "record" in refused(record(whole[:50]) + other[:2])
    assert "record" in refused(SSL2)
    assert "record" in refused(b"GET / HTTP/1.1\r\nHost: registry.example\r\n\r\n")


def test_sizes_of_records() -> None:
    whole = Hello().padded_to(20_000).message()
    most = 1 << 14
    assert read_hello(record(whole[:most]) + record(whole[most:])) == PLAIN
    assert "16385 octets" in refused(record(whole[: most + 1]) + record(whole[most + 1 :]))
    assert "16385 octets" in refused(record(bytes(most + 1))[:5])
    empty = record(b"")
    assert "0 octets" in refused(empty)
    assert "0 octets" in refused(empty + record(whole[:most]))
    assert "0 octets" in refused(record(whole[:most]) + empty + record(whole[most:]))
    # Behind the hello an empty record is the server's business.
    assert read_hello(Hello().wire() + empty) == PLAIN


@pytest.mark.parametrize("version", [0x0300, 0x0301, 0x0303, 0x0304, 0x03FF])
def test_the_version_of_a_record_means_nothing(version: int) -> None:
    assert read_hello(record(Hello().message(), version=version)) == PLAIN


@pytest.mark.parametrize("version", [0x0301, 0x0302, 0x0303, 0x0304, 0x03FF])
def test_versions(version: int) -> None:
    assert read_hello(Hello(legacy_version=version).wire()) == PLAIN


@pytest.mark.parametrize("version", [0, 0x0002, 0x0200, 0x0300, 0x0400, 0x7F1C, 0xFEFD, 0xFEFF])
def test_versions_that_are_not_tls(version: int) -> None:
    wire = Hello(legacy_version=version).wire()
    assert refused(wire) == refused(wire[:11]) == f"version 0x{version:04x}"


def test_another_message_than_a_hello() -> None:
    for kind in (0, 2, 4, 11, 255):
        wire = Hello(kind=kind).wire()
        assert refused(wire) == refused(wire[:6]) == f"handshake message {kind}"


@pytest.mark.parametrize(
    ("hello", "says"),
    [
        (Hello(session_id=bytes(33)), "session ID of 33"),
        (Hello(session_id=bytes(255)), "session ID of 255"),
        (Hello(suites=b""), "cipher suites of 0"),
        (Hello(suites=b"\x13\x01\x13"), "cipher suites of 3"),
        (Hello(compression=b""), "no compression"),
        (Hello(trailing=b"\0"), "octets of extensions"),
        (Hello(without_extensions=True, trailing=b"\0"), "a field of 2"),
        (Hello(without_extensions=True, trailing=b"\0\1"), "octets of extensions"),
        (Hello(without_extensions=True, trailing=b"\0\0\0"), "octets of extensions"),
        (Hello(without_extensions=True, trailing=b"\0\1\0"), "a field of 2"),
        (Hello(extras=(b"\x12\x34\x00",)), "a field of 2"),
        (Hello(extras=(b"\x12\x34\x00\x02x",)), "a field of 2"),
    ],
)
def test_fields_that_break_a_rule(hello: Hello, says: str) -> None:
    assert says in refused(hello.wire())


@pytest.mark.parametrize("session_id", [b"", b"x", bytes(32)])
def test_session_ids(session_id: bytes) -> None:
    assert read_hello(Hello(session_id=session_id, compression=b"\0\1").wire()) == PLAIN


def test_a_message_that_ends_early() -> None:
    body = Hello(without_extensions=True).body()
    for size in range(len(body)):
        assert "a field of" in refused(records(message(body[:size])))
    full = Hello().body()
    for size in range(len(body) + 1, len(full)):
        refused(records(message(full[:size])))


def test_faults_are_told_before_the_hello_is_complete() -> None:
    wire = Hello(extras=(b"\x12\x34\xff\xff", extension(1, bytes(500)))).wire()
    at = wire.index(b"\x12\x34\xff\xff") + 4
    assert read_hello(wire[: at - 1]) is None
    assert "a field of 65535" in refused(wire[:at])
    wire = Hello(session_id=bytes(33)).wire()
    assert read_hello(wire[:43]) is None
    assert "session ID" in refused(wire[:44])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Registry.EXAMPLE", "registry.example"),
        ("localhost", "localhost"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("a_b.registry.example", "a_b.registry.example"),
        ("1.2.3.example", "1.2.3.example"),
        (".".join(["a" * 63] * 3 + ["b" * 61]), ".".join(["a" * 63] * 3 + ["b" * 61])),
    ],
)
def test_names(name: str, expected: str) -> None:
    hello = read_hello(named(name_entry(name)).wire())
    assert hello is not None
    assert hello.server_name == expected


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "registry.example.",
        "registry..example",
        ".registry.example",
        "-registry.example",
        "registry.example\0",
        "registry.example\0.other.example",
        "registry.example:443",
        "registry.example\n",
        " registry.example",
        "registry.example/",
        "*.example",
        "b\xfccher.example",
        "b\u00c3\u00bccher.example",
        "192.0.2.1",
        "3221225985",
        "0x7f.1",
        "2001:db8::1",
        "[2001:db8::1]",
        "::ffff:192.0.2.1",
        "a" * 64 + ".example",
        ".".join(["a" * 63] * 4),
        "a." * 2000 + "example",
    ],
)
def test_names_that_are_none(name: str) -> None:
    assert "name" in refused(named(name_entry(name)).wire())


def test_an_address_of_four_or_sixteen_octets_is_no_name() -> None:
    for octets in (b"\xc0\0\2\1", b"\x20\1\x0d\xb8" + bytes(12)):
        assert "server name" in refused(named(name_entry(octets)).wire())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "a field of 2"),  # as servers send it
        (b"\0", "a field of 2"),
        (b"\0\0", "a field of 1"),  # an empty list
        (b"\0\1\0", "a field of 2"),
        (vector(2, b"\0\0"), "a field of 2"),
        (vector(2, ONE + OTHER), "more than one"),
        (vector(2, ONE + ONE), "more than one"),
        (vector(2, ONE + name_entry("x", kind=1)), "more than one"),
        (vector(2, name_entry("x", kind=1) + ONE), "kind 1"),
        (vector(2, name_entry("registry.example", kind=1)), "kind 1"),
        (vector(2, name_entry("registry.example", kind=255)), "kind 255"),
        (vector(2, ONE + b"\0"), "more than one"),
        (vector(2, ONE) + b"\0", "a list of"),
        (vector(2, ONE) + OTHER, "a list of"),
        (vector(2, ONE[:-1]), "a field of 16"),
        (vector(2, ONE)[:-1], "a list of"),
        ((len(ONE) - 1).to_bytes(2, "big") + ONE, "a list of"),
        ((len(ONE) + 1).to_bytes(2, "big") + ONE, "a list of"),
    ],
)
def test_lists_of_names(content: bytes, says: str) -> None:
    hello = Hello(names=None, extras=(extension(SERVER_NAME, content),))
    assert says in refused(hello.wire())


def test_the_length_of_a_list_reaches_into_the_next_extension() -> None:
    content = (len(ONE) + 4).to_bytes(2, "big") + ONE
    hello = Hello(names=None, extras=(extension(SERVER_NAME, content), extension(SESSION_TICKET)))
    assert "a list of" in refused(hello.wire())


@pytest.mark.parametrize(
    "twice",
    [
        server_names(ONE),
        server_names(OTHER),
        extension(SERVER_NAME),
    ],
)
def test_two_server_names(twice: bytes) -> None:
    assert refused(Hello(extras=(twice,)).wire()) == "extension 0 twice"
    first = Hello(names=None, extras=(server_names(ONE), extension(SESSION_TICKET), twice))
    assert refused(first.wire()) == "extension 0 twice"


def test_an_extension_stands_once() -> None:
    for kind, once in ((ALPN, protocols(b"h2")), (ECH, ech()), (0x1234, extension(0x1234))):
        read_hello(Hello(extras=(once,)).wire())
        assert refused(Hello(extras=(once, once)).wire()) == f"extension {kind} twice"
    # So do those of RFC 8701; two different ones are two.
    assert read_hello(Hello(grease=True).wire()) == PLAIN
    doubled = Hello(grease=True, extras=(extension(GREASE[0]),))
    assert refused(doubled.wire()) == f"extension {GREASE[0]} twice"


def test_extensions_in_another_order() -> None:
    # That a pre-shared key comes last is a rule that does not bear on the name.
    hello = Hello(names=None, extras=(extension(PRE_SHARED_KEY, b"x"), server_names(ONE)))
    assert read_hello(hello.wire()) == PLAIN


def test_encrypted_hellos() -> None:
    outer = Hello(extras=(ech(),))
    assert read_hello(outer.wire()) == replace(PLAIN, ech=True)
    nameless = replace(outer, names=None)
    assert read_hello(nameless.wire()) == ClientHello(None, ech=True, alpn=())
    assert read_hello(Hello(extras=(ech(kind=1),)).wire()) == PLAIN
    assert "type 2" in refused(Hello(extras=(extension(ECH, b"\2"),)).wire())
    assert "a field of 1" in refused(Hello(extras=(extension(ECH),)).wire())
    for names in (None, (ONE,)):
        draft = Hello(names=names, extras=(extension(ESNI, bytes(100)),))
        assert "draft" in refused(draft.wire())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "a field of 2"),
        (b"\0\0", "a list of 0"),
        (b"\0\1\0", "an empty protocol"),
        (vector(2, b"\2h2\0"), "an empty protocol"),
        (vector(2, b"\3h2"), "a field of 3"),
        (vector(2, b"\2h2") + b"\0", "a list of 3"),
        (vector(2, b"\2h2" * (MAX_PROTOCOLS + 1)), "more than 32 protocols"),
    ],
)
def test_lists_of_protocols(content: bytes, says: str) -> None:
    assert says in refused(Hello(extras=(extension(ALPN, content),)).wire())


def test_as_many_protocols_as_there_may_be() -> None:
    hello = read_hello(Hello(alpn=(b"x" * 255,) * MAX_PROTOCOLS).wire())
    assert hello is not None
    assert hello.alpn == ("x" * 255,) * MAX_PROTOCOLS


def test_the_number_of_extensions_is_bounded() -> None:
    free = MAX_EXTENSIONS - len(Hello().extensions())
    many = tuple(extension(1000 + number) for number in range(free + 1))
    assert read_hello(Hello(extras=many[:-1]).wire()) == PLAIN
    assert f"more than {MAX_EXTENSIONS} extensions" in refused(Hello(extras=many).wire())


def test_the_size_of_a_hello_is_bounded() -> None:
    # One extension cannot be longer than 64 kB, but two can.
    long = Hello(extras=(extension(1000, bytes(30_000)),))
    assert read_hello(long.padded_to(MAX_HELLO).wire()) == PLAIN
    whole = message(bytes(MAX_HELLO - 3))
    assert len(whole) == MAX_HELLO + 1
    assert refused(records(whole)) == f"a message of {MAX_HELLO + 1} octets"
    assert refused(records(whole)[:9]) == f"a message of {MAX_HELLO + 1} octets"
    assert "a message of" in refused(b"\x16\x03\x01\x40\x00\x01\xff\xff\xff")


def test_the_number_of_records_is_bounded() -> None:
    most = Hello().padded_to(MAX_RECORDS).message()
    pieces = in_single_octets(most)
    assert read_hello(pieces) == PLAIN
    assert read_hello(pieces[:-1]) is None
    more = in_single_octets(Hello().padded_to(MAX_RECORDS + 1).message())
    assert read_hello(more[: 6 * MAX_RECORDS - 1]) is None
    assert refused(more[: 6 * MAX_RECORDS]) == f"more than {MAX_RECORDS} records"
    assert refused(more) == f"more than {MAX_RECORDS} records"


def test_so_many_octets_are_always_enough() -> None:
    """The longest hello in as many records as there may be."""
    long = Hello(extras=(extension(1000, bytes(30_000)),)).padded_to(MAX_HELLO).message()
    pieces = records(long, range(1, MAX_RECORDS - 3))
    assert len(pieces) == MAX_RECORDS_OCTETS
    assert read_hello(pieces) == PLAIN
    assert read_hello(pieces[:-1]) is None

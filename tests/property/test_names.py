from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import TypeVar

from hypothesis import example, given
from hypothesis import strategies as st

from ramnet.core.names import (
    MAX_LABEL,
    MAX_NAME,
    host_from_wire,
    parse_address,
    parse_host,
    parse_pattern,
)
from ramnet.errors import NameFault

T = TypeVar("T")

LABEL = st.from_regex(r"[a-z_]([a-z0-9_-]{0,12}[a-z0-9_])?", fullmatch=True)
HOST = st.lists(LABEL, min_size=1, max_size=6).map(".".join)
# Text that comes near to what is accepted, so that the search does not stay in the first check.
NEARLY = st.text(alphabet="aZ09-_.*:[]/@% xn\u00fc\u3002\uff0f\u0660\u00ad\u200d", max_size=40)
ANYTHING = st.one_of(st.text(max_size=80), NEARLY, HOST)


def outcome(parse: Callable[[str], T], text: str) -> T | NameFault:
    """Return what ``parse`` makes of the text; any error but a fault ends the test."""
    try:
        return parse(text)
    except NameFault as fault:
        return fault


@given(ANYTHING)
@example("\u00ad")
@example("\u00ad.io")
def test_any_text_gives_a_canonical_name_or_a_fault_with_a_hint(text: str) -> None:
    name = outcome(parse_host, text)
    if isinstance(name, NameFault):
        assert name.hint
        assert name.message.isprintable()
        return
    assert parse_host(name) == name
    assert name == name.lower()
    assert 1 <= len(name) <= MAX_NAME
    for label in name.split("."):
        assert 1 <= len(label) <= MAX_LABEL
        assert not label.startswith("-")
        assert not label.endswith("-")
        assert set(label) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_")
    assert host_from_wire(tuple(label.encode() for label in name.split("."))) == name


@given(HOST, st.data())
def test_case_and_the_last_dot_do_not_matter(host: str, data: st.DataObject) -> None:
    upper = data.draw(st.lists(st.booleans(), min_size=len(host), max_size=len(host)))
    mixed = "".join(char.upper() if up else char for char, up in zip(host, upper, strict=True))
    assert parse_host(f"{mixed}.") == host
    assert host_from_wire(tuple(label.encode() for label in mixed.split("."))) == host


@given(st.lists(st.binary(max_size=70), max_size=8).map(tuple))
def test_any_labels_give_none_or_a_name_that_parses_and_has_these_labels(
    labels: tuple[bytes, ...],
) -> None:
    name = host_from_wire(labels)
    if name is not None:
        assert parse_host(name) == name
        assert tuple(name.encode().split(b".")) == tuple(label.lower() for label in labels)


@given(ANYTHING)
def test_any_text_gives_a_pattern_that_reads_back_or_a_fault(text: str) -> None:
    pattern = outcome(parse_pattern, text)
    if not isinstance(pattern, NameFault):
        assert parse_pattern(str(pattern)) == pattern
        assert pattern.wildcard == text.startswith("*.")


@given(ANYTHING)
@example("[::ffff:0.0.0.0]:1")
def test_any_text_gives_an_address_that_reads_back_or_a_fault(text: str) -> None:
    address = outcome(parse_address, text)
    if isinstance(address, NameFault):
        assert address.hint
        return
    assert (address.pattern is None) != (address.ip is None)
    assert not (address.any_port and address.port is not None)
    assert parse_address(str(address)) == address


@given(st.ip_addresses(), st.none() | st.integers(1, 65535))
def test_every_address_of_a_machine_is_taken_with_and_without_a_port(
    ip: object, port: int | None
) -> None:
    parsed = ip_address(str(ip))
    host = f"[{ip}]" if parsed.version == 6 else str(ip)
    text = host if port is None else f"{host}:{port}"
    address = outcome(parse_address, text)
    if isinstance(address, NameFault):
        mapped = getattr(parsed, "ipv4_mapped", None) or parsed
        assert mapped.is_multicast or mapped.is_unspecified or getattr(mapped, "scope_id", None)
        return
    assert address.ip in (parsed, getattr(parsed, "ipv4_mapped", None))
    assert address.port == port

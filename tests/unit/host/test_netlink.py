"""The bytes that frame netfilter's netlink messages."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink import nlmsg

from ramnet.errors import HostError
from ramnet.host import netlink
from ramnet.host.netlink import (
    HEADER,
    NLM_F_REQUEST,
    NetfilterSocket,
    attribute,
    attributes,
    batch_edge,
    error_of,
    message,
    messages,
    nested,
)

KINDS = st.integers(0, netlink.NLA_TYPE_MASK)
PAYLOADS = st.binary(max_size=40)


class Sample(nlmsg):  # type: ignore[misc]
    """A message as pyroute2, the independent reader, sees it."""

    fields = (("family", "B"), ("version", "B"), ("resource", ">H"))
    nla_map = (("S_UNSPEC", "none"), ("S_NAME", "asciiz"), ("S_NUMBER", "be32"))


def test_an_attribute_is_read_by_pyroute2_as_it_was_meant() -> None:
    body = netlink.NFGEN.pack(1, 0, 7261)
    body += attribute(1, b"name\0") + attribute(2, struct.pack(">I", 0xDEADBEEF))
    data = message(0x0A0C, NLM_F_REQUEST, 77, body)
    read = Sample(data)
    read.decode()
    assert read["header"]["length"] == len(data)
    assert (read["header"]["type"], read["header"]["flags"]) == (0x0A0C, 1)
    assert read["header"]["sequence_number"] == 77
    assert (read["family"], read["resource"]) == (1, 7261)
    assert read.get_attr("S_NAME") == "name"
    assert read.get_attr("S_NUMBER") == 0xDEADBEEF


@given(st.lists(st.tuples(KINDS, PAYLOADS)))
def test_attributes_come_back(items: list[tuple[int, bytes]]) -> None:
    data = b"".join(attribute(kind, payload) for kind, payload in items)
    assert len(data) % 4 == 0
    assert [(kind, bytes(value)) for kind, value in attributes(data)] == items
    inner = next(attributes(nested(3, data)))
    assert inner[0] == 3, "the flag of a nested attribute is not of its type"
    assert [(kind, bytes(value)) for kind, value in attributes(inner[1])] == items


@given(st.lists(st.tuples(st.integers(0, 0xFFFF), st.integers(0, 2**32 - 1), PAYLOADS)))
def test_messages_come_back(items: list[tuple[int, int, bytes]]) -> None:
    data = b""
    for kind, sequence, payload in items:
        data += message(kind, 0, sequence, payload)
        data += b"\0" * (-len(data) % 4)
    assert [(kind, seq, bytes(part)) for kind, seq, part in messages(data)] == items


@given(st.binary(max_size=200))
def test_any_bytes_are_read_to_their_end(data: bytes) -> None:
    """None is read twice, none beyond the end."""
    assert sum(4 + len(value) for _, value in attributes(data)) <= len(data)
    assert sum(HEADER.size + len(part) for _, _, part in messages(data)) <= len(data)


def test_the_edges_of_a_transaction() -> None:
    (kind, sequence, payload) = next(messages(batch_edge(netlink.NFNL_MSG_BATCH_BEGIN, 5)))
    assert (kind, sequence) == (0x10, 5)
    assert bytes(payload) == struct.pack(">BBH", 0, 0, 10), "the subsystem is nftables"


@pytest.mark.parametrize("code", [0, errno.ENOENT, errno.EPERM])
def test_an_error_is_a_positive_number(code: int) -> None:
    assert error_of(memoryview(struct.pack("=i", -code) + b"\0" * 16)) == code


# The socket. Opening one needs no privilege; what it may ask for does.


@pytest.fixture
def opened() -> Iterator[NetfilterSocket]:
    made = NetfilterSocket("test")
    yield made
    made.close()


def test_sequence_numbers_are_fresh_and_wrap(opened: NetfilterSocket) -> None:
    assert [opened.next_sequence() for _ in range(3)] == [1, 2, 3]
    vars(opened)["_sequence"] = 0x7FFFFFFF
    assert [opened.next_sequence() for _ in range(2)] == [0, 1]
    opened.close()


def test_nothing_is_waiting_on_a_new_socket(opened: NetfilterSocket) -> None:
    assert opened.fileno() >= 0
    assert opened.receive_now() is None
    opened.close()


def test_who_is_not_the_kernel_is_not_listened_to(opened: NetfilterSocket) -> None:
    """Any process may send to a netlink port id: only port id 0 is the kernel."""
    port = socket.socket(fileno=os.dup(opened.fileno()))
    with port, socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as stranger:
        stranger.bind((0, 0))
        try:
            stranger.sendto(message(0x0401, 0, 0, b"lie"), (port.getsockname()[0], 0))
        except PermissionError:
            pytest.skip("only root may send to another process")
        assert opened.receive_now() == b""
        assert opened.receive_now() is None
    opened.close()


def test_a_kernel_that_does_not_answer_is_an_error(
    opened: NetfilterSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(netlink, "ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(opened, "send", lambda _data: None)
    with pytest.raises(HostError, match="test: the kernel did not answer"):
        opened.acknowledged(b"", range(1, 2))


def test_a_closed_socket_is_an_error_of_ours(opened: NetfilterSocket) -> None:
    opened.close()
    with pytest.raises(HostError, match="test: netlink send: Bad file descriptor"):
        opened.send(b"x")


def test_a_kernel_without_netfilter_is_told_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_arguments: object) -> socket.socket:
        raise OSError(errno.EPROTONOSUPPORT, os.strerror(errno.EPROTONOSUPPORT))

    monkeypatch.setattr(socket, "socket", refused)
    with pytest.raises(HostError, match="test: cannot open a netfilter netlink socket") as caught:
        NetfilterSocket("test")
    assert "CONFIG_NETFILTER_NETLINK" in caught.value.hint

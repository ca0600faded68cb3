"""Single objects of our table by netlink: its elements, counters and identity.

A lease is usable only once the kernel has acknowledged it, and that may be awaited by a DNS answer:
no subprocess, no text. Source: ``linux/netfilter/nf_tables.h``; the layout of a concatenated key
(each field padded to four bytes) and of the comment is that of libnftnl, so that
``nft list set`` shows our elements like any other.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from ramnet.errors import HostError
from ramnet.host import netlink
from ramnet.host.netlink import NetfilterSocket, attribute, nested

NFT_MSG_NEWSETELEM = netlink.NFNL_SUBSYS_NFTABLES << 8 | 12
NFT_MSG_GETSETELEM = netlink.NFNL_SUBSYS_NFTABLES << 8 | 13
NFT_MSG_DELSETELEM = netlink.NFNL_SUBSYS_NFTABLES << 8 | 14

NFT_MSG_GETTABLE = netlink.NFNL_SUBSYS_NFTABLES << 8 | 1

NFT_MSG_GETCHAIN = netlink.NFNL_SUBSYS_NFTABLES << 8 | 4

NFTA_CHAIN_TABLE = 1
NFTA_CHAIN_NAME = 3
NFTA_CHAIN_USE = 6
NFTA_TABLE_NAME = 1
NFTA_TABLE_HANDLE = 4
NFTA_SET_ELEM_LIST_TABLE = 1
NFTA_SET_ELEM_LIST_SET = 2
NFTA_SET_ELEM_LIST_ELEMENTS = 3
NFTA_LIST_ELEM = 1
NFTA_SET_ELEM_KEY = 1
NFTA_SET_ELEM_TIMEOUT = 4
NFTA_SET_ELEM_EXPIRATION = 5
NFTA_SET_ELEM_USERDATA = 6
NFTA_DATA_VALUE = 1
NFTNL_UDATA_SET_ELEM_COMMENT = 0

NFT_MSG_GETOBJ = netlink.NFNL_SUBSYS_NFTABLES << 8 | 19
NFT_OBJECT_COUNTER = 1
NFTA_OBJ_TABLE = 1
NFTA_OBJ_NAME = 2
NFTA_OBJ_TYPE = 3
NFTA_OBJ_DATA = 4
NFTA_COUNTER_PACKETS = 2

NFPROTO_INET = 1
_NFGEN_INET = netlink.NFGEN.pack(NFPROTO_INET, 0, 0)

# nft prints and accepts comments of at most 128 bytes (NFTNL_UDATA_COMMENT_MAXLEN), with the NUL.
COMMENT_BYTES = 127
# One netlink datagram must fit the send buffer (212,992 bytes by default); an add-delete-add of an
# IPv6 element with its comment takes about 600 bytes.
BATCH_ELEMENTS = 128


# The table's number, and each chain with the count of its rules and of the jumps to it.
Identity = tuple[int, tuple[tuple[str, int], ...]]


@dataclass(frozen=True, slots=True)
class Element:
    """An ``address . port`` element.

    ``timeout`` is in seconds from now; ``comment`` is the name that led there.
    """

    address: IPv4Address | IPv6Address
    port: int
    timeout: float = 0.0
    comment: str = ""


def _key(element: Element) -> bytes:
    value = element.address.packed + struct.pack(">HH", element.port, 0)
    return nested(NFTA_SET_ELEM_KEY, attribute(NFTA_DATA_VALUE, value))


def _comment(text: str) -> bytes:
    data = text.encode("ascii", "replace") + b"\0"
    if not text or len(data) > COMMENT_BYTES:
        return b""
    udata = bytes((NFTNL_UDATA_SET_ELEM_COMMENT, len(data))) + data
    return attribute(NFTA_SET_ELEM_USERDATA, udata)


def _body(table: str, set_name: str, element: bytes) -> bytes:
    return (
        _NFGEN_INET
        + attribute(NFTA_SET_ELEM_LIST_TABLE, table.encode() + b"\0")
        + attribute(NFTA_SET_ELEM_LIST_SET, set_name.encode() + b"\0")
        + nested(NFTA_SET_ELEM_LIST_ELEMENTS, nested(NFTA_LIST_ELEM, element))
    )


class Elements:
    """Writes and reads the host sets ``<name>4`` and ``<name>6`` of one table."""

    def __init__(self, table: str) -> None:
        self._table = table
        self._socket = NetfilterSocket("set elements")

    def close(self) -> None:
        """Close the netlink socket."""
        self._socket.close()

    def write(self, name: str, add: Iterable[Element], drop: Iterable[Element] = ()) -> None:
        """Add or extend ``add`` and remove ``drop`` in set ``name``; returns once acknowledged.

        At most ``BATCH_ELEMENTS`` go into one transaction; each is applied whole or not at all.
        Raises ``HostError`` naming the errno of the first refused element.
        """
        work: list[tuple[Element, bool]] = [(item, True) for item in add]
        work += [(item, False) for item in drop]
        for start in range(0, len(work), BATCH_ELEMENTS):
            self._transaction(name, work[start : start + BATCH_ELEMENTS])

    def _transaction(self, name: str, work: list[tuple[Element, bool]]) -> None:
        """Send one batch.

        A kernel before 6.12 cannot change the timeout of an element that exists, and a delete
        fails on one that has just expired. Add, delete, add is right in every case, and a
        commit is atomic: no packet sees the element missing. A removal is add, delete.
        """
        begin = self._socket.next_sequence()
        parts = [netlink.batch_edge(netlink.NFNL_MSG_BATCH_BEGIN, begin)]
        first = last = begin + 1
        new, gone = NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM
        for element, keep in work:
            set_name = f"{name}{element.address.version}"
            key = _key(element)
            bare = _body(self._table, set_name, key)
            full = _body(
                self._table,
                set_name,
                key
                + attribute(NFTA_SET_ELEM_TIMEOUT, struct.pack(">Q", _milliseconds(element)))
                + _comment(element.comment),
            )
            steps = (
                [(new, full), (gone, bare), (new, full)] if keep else [(new, full), (gone, bare)]
            )
            for kind, body in steps:
                last = self._socket.next_sequence()
                flags = netlink.NLM_F_REQUEST | netlink.NLM_F_ACK
                flags |= netlink.NLM_F_CREATE if kind == new else 0
                parts.append(netlink.message(kind, flags, last, body))
        end = self._socket.next_sequence()
        parts.append(netlink.batch_edge(netlink.NFNL_MSG_BATCH_END, end))
        failed = self._socket.acknowledged(b"".join(parts), range(first, last + 1))
        if failed:
            code = next(iter(failed.values()))
            raise HostError(
                f"writing {len(work)} elements to set {name} of table {self._table}:"
                f" {os.strerror(code)}",
                hint="is the table still there? `ramnet status` tells",
            )

    def identity(self) -> Identity | None:
        """Tell our table from any other and from what it was; None when there is none.

        The kernel numbers tables, and counts the rules of a chain and the jumps to it: it differs
        once the table was made anew or a rule came or went.
        """
        sequence = self._socket.next_sequence()
        payload = _NFGEN_INET + attribute(NFTA_TABLE_NAME, self._table.encode() + b"\0")
        flags = netlink.NLM_F_REQUEST
        request = netlink.message(NFT_MSG_GETTABLE, flags, sequence, payload)
        try:
            answer = self._socket.answer(request, sequence)
        except FileNotFoundError:
            return None
        found = dict(netlink.attributes(answer[netlink.NFGEN.size :]))
        handle = int.from_bytes(found[NFTA_TABLE_HANDLE], "big")
        return handle, tuple(sorted(self._chains()))

    def _chains(self) -> Iterator[tuple[str, int]]:
        for part in self._socket.dump(NFT_MSG_GETCHAIN, _NFGEN_INET):
            found = dict(netlink.attributes(part[netlink.NFGEN.size :]))
            if _text(found[NFTA_CHAIN_TABLE]) == self._table:
                yield _text(found[NFTA_CHAIN_NAME]), int.from_bytes(found[NFTA_CHAIN_USE], "big")

    def counters(self) -> dict[str, int]:
        """Return the packets of each named counter; none where there is no table.

        Not through libnftables: it reads every element of the table to list a counter.
        """
        request = (
            _NFGEN_INET
            + attribute(NFTA_OBJ_TABLE, self._table.encode() + b"\0")
            + attribute(NFTA_OBJ_TYPE, struct.pack(">I", NFT_OBJECT_COUNTER))
        )
        try:
            parts = list(self._socket.dump(NFT_MSG_GETOBJ, request))
        except FileNotFoundError:
            return {}
        return dict(map(_parse_counter, parts))

    def list(self, name: str) -> Iterator[Element]:
        """Yield the elements of ``<name>4`` and ``<name>6`` with their remaining seconds.

        A table or set that does not exist yields nothing.
        """
        for version, width in ((4, 4), (6, 16)):
            request = (
                _NFGEN_INET
                + attribute(NFTA_SET_ELEM_LIST_TABLE, self._table.encode() + b"\0")
                + attribute(NFTA_SET_ELEM_LIST_SET, f"{name}{version}".encode() + b"\0")
            )
            try:
                for part in self._socket.dump(NFT_MSG_GETSETELEM, request):
                    yield from _parse_list(part, width)
            except FileNotFoundError:
                continue


def _text(value: memoryview) -> str:
    return bytes(value).rstrip(b"\0").decode("ascii", "replace")


def _parse_counter(part: memoryview) -> tuple[str, int]:
    found = dict(netlink.attributes(part[netlink.NFGEN.size :]))
    data = dict(netlink.attributes(found[NFTA_OBJ_DATA]))
    return _text(found[NFTA_OBJ_NAME]), int.from_bytes(data[NFTA_COUNTER_PACKETS], "big")


def _milliseconds(element: Element) -> int:
    return max(1, int(element.timeout * 1000))


def _parse_list(part: memoryview, width: int) -> Iterator[Element]:
    for kind, value in netlink.attributes(part[netlink.NFGEN.size :]):
        if kind == NFTA_SET_ELEM_LIST_ELEMENTS:
            for _, element in netlink.attributes(value):
                parsed = _parse_element(element, width)
                if parsed is not None:
                    yield parsed


def _parse_element(data: memoryview, width: int) -> Element | None:
    key, seconds, comment = b"", 0.0, ""
    for kind, value in netlink.attributes(data):
        if kind == NFTA_SET_ELEM_KEY:
            key = next(
                (bytes(v) for k, v in netlink.attributes(value) if k == NFTA_DATA_VALUE), b""
            )
        elif kind == NFTA_SET_ELEM_EXPIRATION:
            seconds = int.from_bytes(value, "big") / 1000
        elif kind == NFTA_SET_ELEM_USERDATA:
            comment = _parse_comment(bytes(value))
    if len(key) != width + 4:
        return None
    port = int.from_bytes(key[width : width + 2], "big")
    return Element(ip_address(key[:width]), port, seconds, comment)


def _parse_comment(data: bytes) -> str:
    offset = 0
    while offset + 2 <= len(data):
        kind, length = data[offset], data[offset + 1]
        value = data[offset + 2 : offset + 2 + length]
        if kind == NFTNL_UDATA_SET_ELEM_COMMENT:
            return value.rstrip(b"\0").decode("ascii", "replace")
        offset += 2 + length
    return ""

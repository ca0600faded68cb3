"""Single objects of our table by netlink: its elements, counters and identity.

A lease is usable only once the kernel has acknowledged it, and that may be awaited by a DNS answer:
no subprocess, no text. Source: ``linux/netfilter/nf_tables.h``; the layout of a concatenated key
(each field padded to four bytes) and of the comment is that of libnftnl, so that
``nft list set`` shows our elements like any other.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import product

from ramnet.core.allow import ANY_PORT
from ramnet.core.packet import IPPROTO_TCP, IPPROTO_UDP
from ramnet.core.ruleset import Family
from ramnet.core.scope import engines_set
from ramnet.core.terms import ALIVE, ALIVE_SECONDS, NOTICE, host_set
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

NFT_MSG_NEWRULE = netlink.NFNL_SUBSYS_NFTABLES << 8 | 6
NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS = 1, 2, 4
NFTA_EXPR_NAME, NFTA_EXPR_DATA = 1, 2
NFTA_TARGET_NAME, NFTA_TARGET_REV, NFTA_TARGET_INFO = 1, 2, 3

NFPROTO_INET = 1
NFPROTO_IPV4 = 2
NFPROTO_NETDEV = 5
_FAMILIES = {Family.INET: NFPROTO_INET, Family.NETDEV: NFPROTO_NETDEV}

# nft prints and accepts comments of at most 128 bytes (NFTNL_UDATA_COMMENT_MAXLEN), with the NUL.
COMMENT_BYTES = 128
# An id of a cgroup in a set of type cgroupsv2: 64 bits in the order of the machine.
_GROUP = struct.Struct("=Q")
# One netlink datagram must fit the send buffer (212,992 bytes by default); an add-delete-add of an
# IPv6 element with its comment takes about 600 bytes.
BATCH_ELEMENTS = 128
# So often at most is a set read that comes out with an element twice: the kernel resizes a table a
# few times in a row at most, a few milliseconds each.
READINGS = 10


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


# A message of a transaction: its type, its flags beyond the usual, its body.
_Step = tuple[int, int, bytes]
_ACKNOWLEDGED = netlink.NLM_F_REQUEST | netlink.NLM_F_ACK


def _key(value: bytes) -> bytes:
    return nested(NFTA_SET_ELEM_KEY, attribute(NFTA_DATA_VALUE, value))


def _port(port: int) -> bytes:
    """Pack what follows the address in a key; nothing where every port is meant."""
    return b"" if port == ANY_PORT else struct.pack(">HH", port, 0)


def _timeout(seconds: float) -> bytes:
    return attribute(NFTA_SET_ELEM_TIMEOUT, struct.pack(">Q", max(1, int(seconds * 1000))))


def _renewal(full: bytes, bare: bytes) -> list[_Step]:
    """Make the steps that give an element a new timeout, whether it exists or not.

    A kernel before 6.12 cannot change the timeout of an element that exists, and a delete fails on
    one that has just expired. Add, delete, add is right in every case, and a commit is atomic: no
    packet sees the element missing. Without the last step it is a removal.
    """
    add = NFT_MSG_NEWSETELEM, netlink.NLM_F_CREATE, full
    return [add, (NFT_MSG_DELSETELEM, 0, bare), add]


def _comment(text: str) -> bytes:
    data = text.encode("ascii", "replace") + b"\0"
    if not text or len(data) > COMMENT_BYTES:
        return b""
    udata = bytes((NFTNL_UDATA_SET_ELEM_COMMENT, len(data))) + data
    return attribute(NFTA_SET_ELEM_USERDATA, udata)


class Elements:
    """Writes and reads the host sets ``<name>4`` and ``<name>6`` of one table."""

    def __init__(self, table: str, family: Family = Family.INET) -> None:
        self._table = table
        self._nfgen = netlink.NFGEN.pack(_FAMILIES[family], 0, 0)
        self._head = self._nfgen + attribute(NFTA_SET_ELEM_LIST_TABLE, table.encode() + b"\0")
        self._socket = NetfilterSocket("set elements")

    def close(self) -> None:
        """Close the netlink socket."""
        self._socket.close()

    def write(self, name: str, add: Iterable[Element], drop: Iterable[Element] = ()) -> None:
        """Add or extend ``add`` and remove ``drop`` in set ``name``; returns once acknowledged.

        At most ``BATCH_ELEMENTS`` go into one transaction; each is applied whole or not at all.
        Raises ``HostError`` naming the errno of the first refused element.
        """
        # First what goes: a set that is full has no room before.
        work: list[tuple[Element, bool]] = [(item, False) for item in drop]
        work += [(item, True) for item in add]
        for start in range(0, len(work), BATCH_ELEMENTS):
            self._transaction(name, work[start : start + BATCH_ELEMENTS])

    def _transaction(self, name: str, work: list[tuple[Element, bool]]) -> None:
        steps: list[_Step] = []
        for element, keep in work:
            set_name = host_set(name, element.address.version, element.port).encode()
            key = _key(element.address.packed + _port(element.port))
            full = key + _timeout(element.timeout) + _comment(element.comment)
            steps += _renewal(self._body(set_name, full), self._body(set_name, key))
            if not keep:
                steps.pop()
        self._commit(steps, f"writing {len(work)} elements to set {name}")

    def _body(self, set_name: bytes, element: bytes) -> bytes:
        return (
            self._head
            + attribute(NFTA_SET_ELEM_LIST_SET, set_name + b"\0")
            + nested(NFTA_SET_ELEM_LIST_ELEMENTS, nested(NFTA_LIST_ELEM, element))
        )

    def _commit(self, steps: Iterable[_Step], what: str) -> None:
        """Send one transaction and wait until every step is acknowledged.

        Raises ``HostError`` with the errno of the first step that was refused: then none was done.
        """
        begin = self._socket.next_sequence()
        parts = [netlink.batch_edge(netlink.NFNL_MSG_BATCH_BEGIN, begin)]
        last = begin
        for kind, flags, body in steps:
            last = self._socket.next_sequence()
            parts.append(netlink.message(kind, _ACKNOWLEDGED | flags, last, body))
        end = self._socket.next_sequence()
        parts.append(netlink.batch_edge(netlink.NFNL_MSG_BATCH_END, end))
        failed = self._socket.acknowledged(b"".join(parts), range(begin + 1, last + 1))
        if failed:
            code = next(iter(failed.values()))
            raise HostError(
                f"{what} of table {self._table}: {os.strerror(code)}",
                hint="is the table still there? `ramnet status` tells",
            )

    def identity(self) -> Identity | None:
        """Tell our table from any other and from what it was; None when there is none.

        The kernel numbers tables, and counts the rules of a chain and the jumps to it: it differs
        once the table was made anew or a rule came or went.
        """
        sequence = self._socket.next_sequence()
        payload = self._nfgen + attribute(NFTA_TABLE_NAME, self._table.encode() + b"\0")
        flags = netlink.NLM_F_REQUEST
        request = netlink.message(NFT_MSG_GETTABLE, flags, sequence, payload)
        try:
            # EINVAL: the kernel has no nf_tables, and so no table.
            answer = self._socket.answer(request, sequence, missing=(errno.ENOENT, errno.EINVAL))
        except FileNotFoundError:
            return None
        found = dict(netlink.attributes(answer[netlink.NFGEN.size :]))
        handle = int.from_bytes(found[NFTA_TABLE_HANDLE], "big")
        return handle, tuple(sorted(self._chains()))

    def _chains(self) -> Iterator[tuple[str, int]]:
        for part in self._socket.dump(NFT_MSG_GETCHAIN, self._nfgen):
            found = dict(netlink.attributes(part[netlink.NFGEN.size :]))
            if _text(found[NFTA_CHAIN_TABLE]) == self._table:
                yield _text(found[NFTA_CHAIN_NAME]), int.from_bytes(found[NFTA_CHAIN_USE], "big")

    def append_queue_rule(self, chain: str, queue: int, *, family: int = NFPROTO_INET) -> None:
        """Append a rule that queues every packet, by xt's NFQUEUE through nft_compat.

        For kernels without nft's own queue expression; nft's language cannot say it. A queue
        without an owner lets packets pass (bypass). Raises ``HostError`` where it is missing.
        """
        info = struct.pack("=HHHxx", queue, 1, 1)  # xt_NFQ_info_v3: number, total, flags: bypass
        target = (
            attribute(NFTA_TARGET_NAME, b"NFQUEUE\0")
            + attribute(NFTA_TARGET_REV, struct.pack(">I", 3))
            + attribute(NFTA_TARGET_INFO, info)
        )
        expression = attribute(NFTA_EXPR_NAME, b"target\0") + nested(NFTA_EXPR_DATA, target)
        body = (
            netlink.NFGEN.pack(family, 0, 0)
            + attribute(NFTA_RULE_TABLE, self._table.encode() + b"\0")
            + attribute(NFTA_RULE_CHAIN, chain.encode() + b"\0")
            + nested(NFTA_RULE_EXPRESSIONS, nested(NFTA_LIST_ELEM, expression))
        )
        step = NFT_MSG_NEWRULE, netlink.NLM_F_CREATE | netlink.NLM_F_APPEND, body
        self._commit([step], f"appending xt target NFQUEUE to chain {chain}")

    def refresh_alive(self) -> None:
        """Say that the daemon is alive, for the next ``ALIVE_SECONDS``."""
        self._refresh(ALIVE, (IPPROTO_TCP, IPPROTO_UDP))

    def refresh_notice(self) -> None:
        """Say that the responder is alive, for the next ``ALIVE_SECONDS``."""
        self._refresh(NOTICE, (IPPROTO_TCP,))

    def _refresh(self, name: str, protocols: Iterable[int]) -> None:
        steps: list[_Step] = []
        for protocol in protocols:
            key = _key(bytes((protocol,)))
            full = self._body(name.encode(), key + _timeout(ALIVE_SECONDS))
            steps += _renewal(full, self._body(name.encode(), key))
        self._commit(steps, f"refreshing set {name}")

    def forget_alive(self) -> None:
        """Let answers pass from now on, as when the daemon were dead."""
        self._forget(ALIVE, (IPPROTO_TCP, IPPROTO_UDP))

    def forget_notice(self) -> None:
        """Lead nobody to the responder from now on, as when it were dead."""
        self._forget(NOTICE, (IPPROTO_TCP,))

    def _forget(self, name: str, protocols: Iterable[int]) -> None:
        steps: list[_Step] = []
        for protocol in protocols:
            key = _key(bytes((protocol,)))
            full = self._body(name.encode(), key + _timeout(ALIVE_SECONDS))
            steps += _renewal(full, self._body(name.encode(), key))[:2]
        self._commit(steps, f"emptying set {name}")

    def feed_groups(self, level: int, add: Iterable[int], drop: Iterable[int] = ()) -> None:
        """Add the ids of cgroups to the set of their ``level``, and drop others, all at once.

        nft itself takes paths only, and looks them up when it runs. What is not there may be
        dropped all the same. Raises ``HostError``; then nothing was done.
        """
        name = engines_set(level).encode()
        adding = dict.fromkeys(add)
        steps: list[_Step] = []
        for ident in dict.fromkeys((*adding, *drop)):
            body = self._body(name, _key(_GROUP.pack(ident)))
            steps.append((NFT_MSG_NEWSETELEM, netlink.NLM_F_CREATE, body))
            if ident not in adding:  # only what is there can be deleted, so it is added before
                steps.append((NFT_MSG_DELSETELEM, 0, body))
        if steps:
            self._commit(steps, f"feeding cgroups to set {name.decode()}")

    def groups(self, level: int) -> frozenset[int]:
        """Return the ids in the set of cgroups of this level; none where there is no such set."""
        request = self._head + attribute(
            NFTA_SET_ELEM_LIST_SET, engines_set(level).encode() + b"\0"
        )
        try:
            parts = list(self._socket.dump(NFT_MSG_GETSETELEM, request))
        except FileNotFoundError:
            return frozenset()
        return frozenset(ident for part in parts for ident in _parse_groups(part))

    def counters(self) -> dict[str, int]:
        """Return the packets of each named counter; none where there is no table.

        Not through libnftables: it reads every element of the table to list a counter.
        """
        request = (
            self._nfgen
            + attribute(NFTA_OBJ_TABLE, self._table.encode() + b"\0")
            + attribute(NFTA_OBJ_TYPE, struct.pack(">I", NFT_OBJECT_COUNTER))
        )
        try:
            parts = list(self._socket.dump(NFT_MSG_GETOBJ, request))
        except FileNotFoundError:
            return {}
        return dict(map(_parse_counter, parts))

    def find(self, name: str, address: IPv4Address | IPv6Address, port: int) -> Element | None:
        """Return the element of the set with this very name that holds an address and port.

        ``ANY_PORT`` where the set's key has no port. In a set of intervals it is the one that the
        address is in, told by where it begins. None where there is no such element, or set.
        """
        sequence = self._socket.next_sequence()
        body = self._body(name.encode(), _key(address.packed + _port(port)))
        flags = netlink.NLM_F_REQUEST
        request = netlink.message(NFT_MSG_GETSETELEM, flags, sequence, body)
        try:
            part = self._socket.answer(request, sequence)
        except FileNotFoundError:
            return None
        return next(_parse_list(part, len(address.packed)), None)

    def list(self, name: str) -> Iterator[Element]:
        """Yield the elements of the host sets of ``name`` with their remaining seconds.

        A table or set that does not exist yields nothing.
        """
        for (version, width), port in product(((4, 4), (6, 16)), (1, ANY_PORT)):
            set_name = host_set(name, version, port).encode()
            request = self._head + attribute(NFTA_SET_ELEM_LIST_SET, set_name + b"\0")
            with suppress(FileNotFoundError):
                yield from self._whole_list(request, width)

    def _whole_list(self, request: bytes, width: int) -> Iterable[Element]:
        """Read a set, again where its table was resized meanwhile.

        The kernel goes on where it was by a number of elements (nft_rhash_walk): in a table that it
        has just resized they stand in another order, so as many are left out as come twice.
        """
        for _ in range(READINGS):
            parts = self._socket.dump(NFT_MSG_GETSETELEM, request)
            found = [element for part in parts for element in _parse_list(part, width)]
            once = {(element.address, element.port): element for element in found}
            if len(once) == len(found):
                break
        return once.values()


def _text(value: memoryview) -> str:
    return bytes(value).rstrip(b"\0").decode("ascii", "replace")


def _parse_counter(part: memoryview) -> tuple[str, int]:
    found = dict(netlink.attributes(part[netlink.NFGEN.size :]))
    data = dict(netlink.attributes(found[NFTA_OBJ_DATA]))
    return _text(found[NFTA_OBJ_NAME]), int.from_bytes(data[NFTA_COUNTER_PACKETS], "big")


def _parse_list(part: memoryview, width: int) -> Iterator[Element]:
    for element in _elements_of(part):
        parsed = _parse_element(element, width)
        if parsed is not None:
            yield parsed


def _parse_groups(part: memoryview) -> Iterator[int]:
    for element in _elements_of(part):
        key = _key_of(dict(netlink.attributes(element)).get(NFTA_SET_ELEM_KEY, b""))
        if len(key) == _GROUP.size:
            yield _GROUP.unpack(key)[0]


def _elements_of(part: memoryview) -> Iterator[memoryview]:
    for kind, value in netlink.attributes(part[netlink.NFGEN.size :]):
        if kind == NFTA_SET_ELEM_LIST_ELEMENTS:
            yield from (element for _, element in netlink.attributes(value))


def _key_of(data: bytes | memoryview) -> bytes:
    return next((bytes(v) for k, v in netlink.attributes(data) if k == NFTA_DATA_VALUE), b"")


def _parse_element(data: memoryview, width: int) -> Element | None:
    key, seconds, comment = b"", 0.0, ""
    for kind, value in netlink.attributes(data):
        if kind == NFTA_SET_ELEM_KEY:
            key = _key_of(value)
        elif kind == NFTA_SET_ELEM_EXPIRATION:
            seconds = int.from_bytes(value, "big") / 1000
        elif kind == NFTA_SET_ELEM_USERDATA:
            comment = _parse_comment(bytes(value))
    if len(key) not in (width, width + 4):
        return None
    port = int.from_bytes(key[width : width + 2], "big")  # none: ANY_PORT
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

"""Copies of packets from the kernel: nfnetlink_log (NFLOG).

Our rules log two kinds of packets to one group: DNS queries to a trusted resolver as they leave
(output hook), and answers as they arrive (input hook) that conntrack ties to such a query. Taken
behind conntrack, unlike an AF_PACKET tap, a copy exists only of what the rules believe. What is
refused goes to a second group, with the prefix "<verdict> <class>".

A group has one owner in a network namespace: binding it is also the lock against a second daemon.
Source: ``linux/netfilter/nfnetlink_log.h``.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

from ramnet.core.activity import RefusalCopy, Verdict
from ramnet.core.events import AnswerCopy, QueryCopy
from ramnet.core.packet import asks
from ramnet.core.terms import HOST_QUERY, TrafficClass
from ramnet.errors import HostError, OccupiedError
from ramnet.host import netlink
from ramnet.host.netlink import NetfilterSocket, attribute

NFNL_SUBSYS_ULOG = 4
NFULNL_MSG_PACKET = NFNL_SUBSYS_ULOG << 8 | 0
NFULNL_MSG_CONFIG = NFNL_SUBSYS_ULOG << 8 | 1
NFULA_PACKET_HDR = 1
NFULA_IFINDEX_INDEV = 4
NFULA_IFINDEX_OUTDEV = 5
NFULA_PAYLOAD = 9
NFULA_PREFIX = 10
NFULA_UID = 11
NFULA_GID = 14
NFULA_CFG_CMD = 1
NFULA_CFG_MODE = 2
NFULA_CFG_TIMEOUT = 4
NFULA_CFG_QTHRESH = 5
NFULNL_CFG_CMD_BIND = 1
NFULNL_COPY_PACKET = 2
NF_INET_FORWARD = 2
NF_INET_LOCAL_OUT = 3
NFPROTO_NETDEV = 5
# Where an Ethernet frame says what is in it, and that it is IP, or one of a VLAN (IEEE 802.1Q).
_ETHER_TYPE = 12
_ETHER_IP = (b"\x08\x00", b"\x86\xdd")
_VLAN = b"\x81\x00"


# Datagrams read in one turn of the event loop: a flood of answers must not starve timers, the
# control socket or the resolver. What is left waits in the socket buffer.
BURST = 128

C = TypeVar("C")


class GroupReader(Generic[C]):
    """Owns one NFLOG group and turns what arrives there into copies."""

    def __init__(self, group: int, descriptor: int | None = None) -> None:
        """Bind ``group``, or take over a socket that is bound to it, with the copies in it.

        Raises ``OccupiedError`` if it has an owner, ``HostError`` if the kernel has no NFLOG.
        """
        self.number = group
        self.lost = 0
        self._waiting: deque[bytes] = deque()
        self._socket = NetfilterSocket("nflog", descriptor=descriptor)
        try:
            self._configure(group, bound=descriptor is not None)
        except BaseException:
            self._socket.close()
            raise

    def _configure(self, group: int, *, bound: bool) -> None:
        head = netlink.NFGEN.pack(0, 0, group)
        # Deliver each packet at once: the default gathers them for a second.
        settings = (
            attribute(NFULA_CFG_MODE, struct.pack(">IBB", 0xFFFF, NFULNL_COPY_PACKET, 0))
            + attribute(NFULA_CFG_QTHRESH, struct.pack(">I", 1))
            + attribute(NFULA_CFG_TIMEOUT, struct.pack(">I", 1))
        )
        bind = attribute(NFULA_CFG_CMD, bytes((NFULNL_CFG_CMD_BIND,)))
        aside, self.lost = self._socket.take_waiting()
        for payload in (settings,) if bound else (bind, settings):
            sequence = self._socket.next_sequence()
            flags = netlink.NLM_F_REQUEST | netlink.NLM_F_ACK
            data = netlink.message(NFULNL_MSG_CONFIG, flags, sequence, head + payload)
            answers = self._socket.acknowledged(data, range(sequence, sequence + 1), aside)
            code = answers.get(sequence)
            if code in (errno.EBUSY, errno.EPERM):
                raise OccupiedError(
                    f"NFLOG group {group} belongs to another process in this network namespace",
                    hint="another ramnet runs here; `ramnet status` tells, `ramnet off` ends it",
                )
            if code:
                raise HostError(
                    f"binding NFLOG group {group}: {os.strerror(code)}",
                    hint="the kernel needs CONFIG_NETFILTER_NETLINK_LOG",
                )
        self._waiting.extend(aside)

    def fileno(self) -> int:
        """Return the file descriptor to wait on."""
        return self._socket.fileno()

    def close(self) -> None:
        """Give the group back."""
        self._socket.close()

    @property
    def waiting(self) -> bool:
        """Whether copies are there that ``fileno`` does not tell of."""
        return bool(self._waiting)

    def _parse(self, family: int, payload: memoryview) -> C | None:
        """Turn the attributes of a message into a copy; None for what is none of ours."""
        raise NotImplementedError

    def read(self) -> Iterator[C]:
        """Yield what has arrived, at most ``BURST`` datagrams; never blocks.

        Overruns (ENOBUFS) are counted in ``lost``.
        """
        for _ in range(BURST):
            try:
                data = self._waiting.popleft() if self._waiting else self._socket.receive_now()
            except OSError as err:
                if err.errno != errno.ENOBUFS:
                    raise HostError(f"nflog: netlink receive: {err.strerror}") from err
                self.lost += 1
                continue
            if data is None:
                return
            for kind, _, payload in netlink.messages(data):
                if kind == NFULNL_MSG_PACKET:
                    packet = self._parse(payload[0], payload[netlink.NFGEN.size :])
                    if packet is not None:
                        yield packet


class NflogReader(GroupReader[QueryCopy | AnswerCopy]):
    """Reads the copies of DNS packets."""

    def _parse(self, family: int, payload: memoryview) -> QueryCopy | AnswerCopy | None:  # noqa: ARG002
        hook = 0
        host = False
        packet: bytes | None = None
        for kind, value in netlink.attributes(payload):
            if kind == NFULA_PACKET_HDR:
                hook = value[2]
            elif kind == NFULA_PAYLOAD:
                packet = bytes(value)
            elif kind == NFULA_PREFIX:
                host = bytes(value).rstrip(b"\0") == HOST_QUERY.encode()
        if packet is None:
            return None
        if hook == NF_INET_FORWARD:  # to the resolver's port, or from it
            return (QueryCopy if asks(packet) else AnswerCopy)(packet, forwarded=True)
        if hook == NF_INET_LOCAL_OUT:
            return QueryCopy(packet, host=host)
        return AnswerCopy(packet)


class RefusalReader(GroupReader[RefusalCopy]):
    """Reads the copies of what is refused."""

    def _parse(self, family: int, payload: memoryview) -> RefusalCopy | None:
        found = {kind: bytes(value) for kind, value in netlink.attributes(payload)}
        words = found.get(NFULA_PREFIX, b"").rstrip(b"\0").decode("ascii", "replace").split(" ")
        packet = found.get(NFULA_PAYLOAD)
        try:
            verdict, traffic = words
            kinds = Verdict(verdict), TrafficClass(traffic)
        except ValueError:  # of a rule that is not ours
            return None
        if packet is None:
            return None
        return RefusalCopy(
            *kinds,
            _behind_ethernet(packet) if family == NFPROTO_NETDEV else packet,
            _number(found.get(NFULA_UID)),
            _number(found.get(NFULA_GID)),
            _device(found.get(NFULA_IFINDEX_INDEV)),
            _device(found.get(NFULA_IFINDEX_OUTDEV)),
        )


def _behind_ethernet(frame: bytes) -> bytes:
    """Return the IP packet of a frame, whose header a copy of the egress hook begins with."""
    at = _ETHER_TYPE
    if frame[at : at + 2] == _VLAN:
        at += 4
    return frame[at + 2 :] if frame[at : at + 2] in _ETHER_IP else frame


def _number(value: bytes | None) -> int | None:
    return int.from_bytes(value, "big") if value is not None else None


def _device(value: bytes | None) -> str:
    """Name a device; empty where there is none, or none any more."""
    index = _number(value)
    if not index:
        return ""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""

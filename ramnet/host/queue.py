"""NFQUEUE over netlink: packets wait in the kernel until they get a verdict.

pyroute2 has no nfnetlink_queue. This is the hot path of mode ``hold``, so messages are packed with
``struct`` and nothing is allocated that need not be. Source: ``linux/netfilter/nfnetlink_queue.h``.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass

from ramnet.errors import HostError, OccupiedError
from ramnet.host import netlink
from ramnet.host.netlink import NetfilterSocket, attribute

NFNL_SUBSYS_QUEUE = 3
NFQNL_MSG_PACKET = NFNL_SUBSYS_QUEUE << 8 | 0
NFQNL_MSG_VERDICT = NFNL_SUBSYS_QUEUE << 8 | 1
NFQNL_MSG_CONFIG = NFNL_SUBSYS_QUEUE << 8 | 2
NFQNL_MSG_VERDICT_BATCH = NFNL_SUBSYS_QUEUE << 8 | 3
NFQNL_CFG_CMD_BIND = 1
NFQNL_COPY_PACKET = 2
NFQA_CFG_CMD, NFQA_CFG_PARAMS, NFQA_CFG_QUEUE_MAXLEN, NFQA_CFG_MASK, NFQA_CFG_FLAGS = 1, 2, 3, 4, 5
NFQA_CFG_F_FAIL_OPEN, NFQA_CFG_F_GSO = 1, 4
NFQA_PACKET_HDR, NFQA_VERDICT_HDR, NFQA_PAYLOAD = 1, 2, 10
NF_ACCEPT = 1
NF_INET_FORWARD = 2

# Packets that may wait at once; more pass unheld (FAIL_OPEN). A third of a second of the greatest
# load that was measured; each takes about 1 KiB of kernel memory.
QUEUE_LENGTH = 16_384
# Whole packets: an answer is parsed to its end.
COPY_RANGE = 0xFFFF
# Packets that come as one netlink datagram each wait in this much socket memory: an skb of a small
# answer is accounted with about 1 KiB.
RECEIVE_BUFFER_BYTES = 32 * 1024 * 1024

# The kernel numbers packets by 32 bits, from 1 on, and looks whether the difference of two is below
# zero: these, one after the other, are behind every number.
_LAST_IDENTS = (0x7FFF_FFFF, 0xFFFF_FFFF, 0x7FFF_FFFF)

_ID = struct.Struct(">I")
_NLA = struct.Struct("=HH")
_VERDICT_HDR_LENGTH = 12
# nlmsghdr, nfgenmsg, one attribute with verdict and id.
_VERDICT = struct.Struct("=IHHII4sHH8s")
_FIRST_ATTRIBUTE = netlink.HEADER.size + netlink.NFGEN.size
# The first attribute is NFQA_PACKET_HDR: id, EtherType, hook.
_HDR_AT = _FIRST_ATTRIBUTE + 4
_HDR = struct.Struct(">IxxB")


@dataclass(frozen=True, slots=True)
class Queued:
    """A packet that waits: its number in the queue, the IP packet, and whether it is forwarded."""

    ident: int
    packet: bytes
    forwarded: bool


class NfQueue:
    """Owns one queue number of the network namespace; binding it is a lock."""

    def __init__(self, number: int, descriptor: int | None = None) -> None:
        """Bind, or take over a socket that is bound; what waits there passes.

        Raises ``OccupiedError`` when the number has an owner, ``HostError`` when the kernel has no
        NFQUEUE.
        """
        self.number = number
        self.overruns = 0
        self._nfgen = netlink.NFGEN.pack(0, 0, number)
        self._payload_at = _FIRST_ATTRIBUTE
        self._socket = NetfilterSocket("nfqueue", RECEIVE_BUFFER_BYTES, descriptor=descriptor)
        try:
            self._configure(number, bound=descriptor is not None)
            if descriptor is not None:  # who knew what waits is gone
                for ident in _LAST_IDENTS:
                    self.accept(ident, up_to=True)
        except BaseException:
            self._socket.close()
            raise

    def _configure(self, number: int, *, bound: bool) -> None:
        # Not GSO: of datagrams that were put together (UDP GRO) only the first would be read.
        flags = NFQA_CFG_F_FAIL_OPEN
        settings = (
            attribute(NFQA_CFG_PARAMS, struct.pack(">IB", COPY_RANGE, NFQNL_COPY_PACKET))
            + attribute(NFQA_CFG_QUEUE_MAXLEN, _ID.pack(QUEUE_LENGTH))
            + attribute(NFQA_CFG_MASK, _ID.pack(flags))
            + attribute(NFQA_CFG_FLAGS, _ID.pack(flags))
        )
        bind = attribute(NFQA_CFG_CMD, struct.pack(">BBH", NFQNL_CFG_CMD_BIND, 0, 0))
        self._socket.take_waiting()  # passes, unread
        for payload in (settings,) if bound else (bind, settings):
            sequence = self._socket.next_sequence()
            kinds = netlink.NLM_F_REQUEST | netlink.NLM_F_ACK
            data = netlink.message(NFQNL_MSG_CONFIG, kinds, sequence, self._nfgen + payload)
            code = self._socket.acknowledged(data, range(sequence, sequence + 1)).get(sequence)
            if code in (errno.EBUSY, errno.EPERM):
                raise OccupiedError(
                    f"queue {number} belongs to another process in this network namespace",
                    hint="another ramnet runs here; `ramnet status` tells, `ramnet off` ends it",
                )
            if code:
                raise HostError(
                    f"binding queue {number}: {os.strerror(code)}",
                    hint="the kernel needs CONFIG_NETFILTER_NETLINK_QUEUE",
                )

    def fileno(self) -> int:
        """Return the file descriptor to wait on."""
        return self._socket.fileno()

    def close(self) -> None:
        """Give the queue back; the kernel drops what still waits in it."""
        self._socket.close()

    def receive(self) -> Queued | None:
        """Return a waiting packet, None when there is none; never blocks.

        An overrun (ENOBUFS: the kernel passed packets without us) is counted.
        """
        while True:
            try:
                data = self._socket.receive_now()
            except OSError as err:
                if err.errno != errno.ENOBUFS:
                    raise HostError(f"nfqueue: netlink receive: {err.strerror}") from err
                self.overruns += 1
                continue
            if data is None:
                return None
            queued = self._parse(data)
            if queued is not None:
                return queued

    def _parse(self, data: bytes) -> Queued | None:
        """Find id and payload: the id is first, the payload last, mostly where it was before."""
        size = len(data)
        if size < _HDR_AT + _HDR.size or netlink.HEADER.unpack_from(data)[1] != NFQNL_MSG_PACKET:
            return None
        ident, hook = _HDR.unpack_from(data, _HDR_AT)
        forwarded = hook == NF_INET_FORWARD
        at = self._payload_at
        if at + _NLA.size <= size:
            length, kind = _NLA.unpack_from(data, at)
            if kind == NFQA_PAYLOAD and at + (length + 3 & ~3) == size:
                return Queued(ident, data[at + 4 : at + length], forwarded)
        at = _FIRST_ATTRIBUTE
        while at + _NLA.size <= size:
            length, kind = _NLA.unpack_from(data, at)
            if kind == NFQA_PAYLOAD:
                self._payload_at = at
                return Queued(ident, data[at + 4 : at + length], forwarded)
            if length < _NLA.size:
                break
            at += length + 3 & ~3
        return Queued(ident, b"", forwarded)

    def accept(self, ident: int, *, up_to: bool = False) -> None:
        """Let a packet pass; with ``up_to`` all that came before it as well, in one message.

        Thread-safe. A packet that is not waiting any more is none of our business.
        """
        kind = NFQNL_MSG_VERDICT_BATCH if up_to else NFQNL_MSG_VERDICT
        self._socket.send(
            _VERDICT.pack(
                _VERDICT.size,
                kind,
                netlink.NLM_F_REQUEST,
                0,
                0,
                self._nfgen,
                _VERDICT_HDR_LENGTH,
                NFQA_VERDICT_HDR,
                struct.pack(">II", NF_ACCEPT, ident),
            )
        )

    def accept_with(self, ident: int, packet: bytes) -> None:
        """Let ``packet`` pass in the place of the one that waits."""
        body = attribute(NFQA_VERDICT_HDR, struct.pack(">II", NF_ACCEPT, ident))
        body += attribute(NFQA_PAYLOAD, packet)
        head = netlink.message(NFQNL_MSG_VERDICT, netlink.NLM_F_REQUEST, 0, self._nfgen + body)
        self._socket.send(head)

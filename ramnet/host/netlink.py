"""A netlink socket of NETLINK_NETFILTER, and the few bytes that frame its messages.

pyroute2 has neither nfnetlink_log nor batches that touch several sets, and builds each message out
of Python objects; what waits for a DNS answer cannot afford that. So this module packs messages
with ``struct``; names and numbers are those of ``linux/netlink.h`` and ``linux/netfilter``.

A socket belongs to the network namespace of the thread that opened it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator

from ramnet.errors import HostError

NETLINK_NETFILTER = 12
SOL_NETLINK = 270
NETLINK_CAP_ACK = 10
SIOCGSKNS = 0x894C  # the network namespace of a socket, as a descriptor; since Linux 4.10

NLM_F_REQUEST = 0x001
NLM_F_ACK = 0x004
NLM_F_DUMP = 0x300
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800

NLMSG_ERROR = 0x2
NLMSG_DONE = 0x3
NFNL_MSG_BATCH_BEGIN = 0x10
NFNL_MSG_BATCH_END = 0x11
NFNL_SUBSYS_NFTABLES = 10

NLA_TYPE_MASK = 0x3FFF
NLA_F_NESTED = 0x8000

HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port id
NFGEN = struct.Struct(">BBH")  # family, version, resource id (big endian)
_NLA = struct.Struct("=HH")

# A dump part of the kernel is at most 32 KiB; twice that never truncates.
RECEIVE_BYTES = 64 * 1024
# How long one acknowledgement may take before the call counts as failed. The commit of a
# transaction waits for other writers of the same namespace, which load whole rulesets.
ANSWER_SECONDS = 5.0
# Room for the acknowledgements of a large batch, and for bursts of logged packets.
RECEIVE_BUFFER_BYTES = 4 * 1024 * 1024


def attribute(kind: int, payload: bytes) -> bytes:
    """Pack one netlink attribute, padded to four bytes."""
    length = 4 + len(payload)
    return _NLA.pack(length, kind) + payload + b"\0" * (-length % 4)


def nested(kind: int, payload: bytes) -> bytes:
    """Pack an attribute that holds attributes."""
    return attribute(kind | NLA_F_NESTED, payload)


def attributes(data: bytes | memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield ``(type, payload)`` of each attribute; stops at the first that does not fit."""
    view = memoryview(data)
    offset, end = 0, len(view)
    while offset + _NLA.size <= end:
        length, kind = _NLA.unpack_from(view, offset)
        if length < _NLA.size or offset + length > end:
            return
        yield kind & NLA_TYPE_MASK, view[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def message(kind: int, flags: int, sequence: int, payload: bytes) -> bytes:
    """Pack one netlink message."""
    return HEADER.pack(HEADER.size + len(payload), kind, flags, sequence, 0) + payload


def batch_edge(kind: int, sequence: int) -> bytes:
    """Pack the begin or the end of an nftables transaction."""
    return message(kind, NLM_F_REQUEST, sequence, NFGEN.pack(0, 0, NFNL_SUBSYS_NFTABLES))


def messages(data: bytes) -> Iterator[tuple[int, int, memoryview]]:
    """Yield ``(type, sequence, payload)`` of each message in a datagram."""
    view = memoryview(data)
    offset, end = 0, len(view)
    while offset + HEADER.size <= end:
        length, kind, _flags, sequence, _port = HEADER.unpack_from(view, offset)
        if length < HEADER.size or offset + length > end:
            return
        yield kind, sequence, view[offset + HEADER.size : offset + length]
        offset += (length + 3) & ~3


def error_of(payload: memoryview) -> int:
    """Return the positive errno of an NLMSG_ERROR payload; 0 is an acknowledgement."""
    return -int(struct.unpack_from("=i", payload)[0])


def _adopted(descriptor: int) -> socket.socket:
    """Take over an open socket of this kind and network namespace; OSError for any other."""
    try:
        found = socket.socket(fileno=descriptor)
    except OSError:  # no socket at all
        os.close(descriptor)
        raise
    try:
        _check(found)
        found.set_inheritable(False)
    except OSError:
        found.close()
        raise
    return found


def _check(found: socket.socket) -> None:
    if (found.family, found.proto) != (socket.AF_NETLINK, NETLINK_NETFILTER):
        raise OSError(errno.EPROTOTYPE, os.strerror(errno.EPROTOTYPE))
    if not _is_of_this_namespace(found):
        raise OSError(errno.EXDEV, "it belongs to another network namespace")


def _is_of_this_namespace(found: socket.socket) -> bool:
    namespace = fcntl.ioctl(found, SIOCGSKNS)
    try:
        return os.path.samestat(os.fstat(namespace), os.stat("/proc/thread-self/ns/net"))  # noqa: PTH116 - beside fstat
    finally:
        os.close(namespace)


class NetfilterSocket:
    """One NETLINK_NETFILTER socket: calls that wait for an answer, or a reader that does not."""

    def __init__(
        self,
        what: str,
        buffer_bytes: int = RECEIVE_BUFFER_BYTES,
        *,
        descriptor: int | None = None,
    ) -> None:
        """``what`` names the user of the socket in errors; ``buffer_bytes`` wait to be read.

        ``descriptor`` is such a socket that is open already; it belongs to this object from then
        on. Raises ``HostError``.
        """
        self._what = what
        self._sequence = 0
        try:
            if descriptor is not None:
                self._socket = _adopted(descriptor)
            else:
                self._socket = socket.socket(
                    socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER
                )
                self._socket.bind((0, 0))
            # An error quotes the message that caused it; without this a large one overflows us.
            self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        except OSError as err:
            raise HostError(
                f"{what}: cannot open a netfilter netlink socket: {err.strerror}",
                hint="ramnet needs a kernel with CONFIG_NETFILTER_NETLINK, and root",
            ) from err
        self._set_buffer(buffer_bytes)

    def _set_buffer(self, size: int) -> None:
        try:
            forced = 33  # SO_RCVBUFFORCE; the module ``socket`` does not name it
            self._socket.setsockopt(socket.SOL_SOCKET, forced, size)
        except OSError:  # no CAP_NET_ADMIN in the initial user namespace: the limit of rmem_max
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

    def fileno(self) -> int:
        """Return the file descriptor, for an event loop."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket; what was bound to it is unbound by the kernel."""
        self._socket.close()

    def next_sequence(self) -> int:
        """Return a fresh sequence number."""
        self._sequence = (self._sequence + 1) & 0x7FFFFFFF
        return self._sequence

    def send(self, data: bytes) -> None:
        """Send one datagram to the kernel."""
        try:
            self._socket.sendto(data, (0, 0))
        except OSError as err:
            raise HostError(f"{self._what}: netlink send: {err.strerror}") from err

    def receive_now(self) -> bytes | None:
        """Return one waiting datagram of the kernel, None if there is none.

        Raises ``OSError`` with ``ENOBUFS`` when the kernel had to throw messages away.
        """
        try:
            data, sender = self._socket.recvfrom(RECEIVE_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        # Any process may send to our port id; only the kernel has port id 0.
        return data if sender[0] == 0 else b""

    def take_waiting(self) -> tuple[list[bytes], int]:
        """Return all that waits, and how often the kernel had to throw messages away.

        A socket whose buffer is full hears no acknowledgement.
        """
        found: list[bytes] = []
        overruns = 0
        while True:
            try:
                data = self.receive_now()
            except OSError as err:
                if err.errno != errno.ENOBUFS:
                    raise HostError(f"{self._what}: netlink receive: {err.strerror}") from err
                overruns += 1
                continue
            if data is None:
                return found, overruns
            found.append(data)

    def _receive(self) -> bytes:
        self._socket.settimeout(ANSWER_SECONDS)
        try:
            while True:
                data, sender = self._socket.recvfrom(RECEIVE_BYTES)
                if sender[0] == 0:
                    return bytes(data)
        except TimeoutError as err:
            raise HostError(f"{self._what}: the kernel did not answer") from err
        except OSError as err:
            raise HostError(f"{self._what}: netlink receive: {err.strerror}") from err
        finally:
            self._socket.settimeout(None)

    def acknowledged(
        self, data: bytes, sequences: range, aside: list[bytes] | None = None
    ) -> dict[int, int]:
        """Send ``data`` and wait until each message of ``sequences`` is acknowledged.

        Returns ``{sequence: errno}`` of those that failed, empty when all is well. A failed
        transaction may be answered for its begin alone; then that one is reported. Datagrams of
        anything else that come meanwhile are put ``aside``.
        """
        self.send(data)
        waiting = set(sequences)
        failed: dict[int, int] = {}
        while waiting:
            datagram = self._receive()
            found = tuple(messages(datagram))
            if aside is not None and all(kind != NLMSG_ERROR for kind, _, _ in found):
                aside.append(datagram)
            for kind, sequence, payload in found:
                if kind != NLMSG_ERROR:
                    continue
                code = error_of(payload)
                if code:
                    failed[sequence] = code
                    if sequence not in sequences:  # begin or end of the batch: nothing follows
                        return failed
                waiting.discard(sequence)
        return failed

    def answer(
        self, data: bytes, sequence: int, *, missing: tuple[int, ...] = (errno.ENOENT,)
    ) -> memoryview:
        """Send a request for one object and return its payload.

        Raises ``FileNotFoundError`` for the errors ``missing``, ``HostError`` for any other.
        """
        self.send(data)
        while True:
            for kind, answered, part in messages(self._receive()):
                if answered != sequence:
                    continue
                if kind == NLMSG_ERROR:
                    raise self._error(error_of(part), missing)
                return part

    def _error(self, code: int, missing: tuple[int, ...] = (errno.ENOENT,)) -> Exception:
        if code in missing:
            return FileNotFoundError(code, os.strerror(code))
        return HostError(f"{self._what}: netlink: {os.strerror(code)}")

    def dump(self, kind: int, payload: bytes) -> Iterator[memoryview]:
        """Yield the payload of each message of a dump. Raises ``FileNotFoundError`` for ENOENT."""
        sequence = self.next_sequence()
        self.send(message(kind, NLM_F_REQUEST | NLM_F_DUMP, sequence, payload))
        while True:
            for answer, answered, part in messages(self._receive()):
                if answered != sequence:
                    continue
                if answer == NLMSG_DONE:
                    return
                if answer == NLMSG_ERROR:
                    raise self._error(error_of(part))
                yield part

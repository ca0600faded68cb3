"""The responder: tells refused clients why, in TLS and in HTTP. It has no rights (``confine``).

One thread and one epoll. Whoever connects here is not trusted: connections, their octets and their
time are bounded, and when there is no more room the oldest one goes, so that silent clients do not
keep out those who ask. What a client wanted is told to the daemon over the control socket, by whose
pings the daemon knows that this still runs.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, Final

from ramnet.core.http import head_of
from ramnet.core.notice import Asked, Message, asked_of, http_answer, wanted_host
from ramnet.errors import HostError, WireError
from ramnet.host.certificates import Certificates

# A TLS session takes 45 kB: 45 MB at most.
MAX_CONNECTIONS: Final = 1000
# A client that has not got its answer by then does not want it.
CLIENT_SECONDS: Final = 5.0
# When there is no room: for so long a client may take its time.
ROOM_SECONDS: Final = 0.25
# A connection's octets: a request with whatever follows it, which is not read by anybody.
MAX_OCTETS: Final = 64 * 1024
# Descriptors besides: the sockets and what the interpreter has open.
DESCRIPTORS: Final = MAX_CONNECTIONS + 64
# Sent to a service manager so often; ramnet-notice.service says how long it may be missing.
ALIVE_SECONDS: Final = 1.0
# What is done before the daemon's ping is looked for again: a TLS handshake takes 0.5 ms.
_AT_ONCE: Final = 64
_CHUNK: Final = 16 * 1024
# A line of the daemon: an organisation and a contact.
MAX_LINE: Final = 8 * 1024
# What the daemon has not read; more is not told.
MAX_UNREAD: Final = 64 * 1024

_HANDSHAKE: Final = 0x16  # the first octet of TLS, and of no request
_RECORD_HEAD: Final = 5
_SO_ORIGINAL_DST: Final = 80
_SIZE_OF_ADDRESS: Final = {socket.AF_INET: 16, socket.AF_INET6: 28}
_LEVEL: Final = {socket.AF_INET: socket.IPPROTO_IP, socket.AF_INET6: socket.IPPROTO_IPV6}
_NO_MEANS: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_READABLE: Final = select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR
_GONE: Final = select.EPOLLHUP | select.EPOLLERR


class _Client:
    """A connection: what it has sent, what it is still to get."""

    __slots__ = (
        "answered",
        "began",
        "heard",
        "named",
        "octets",
        "out",
        "peer",
        "sent",
        "sock",
        "tls",
    )

    def __init__(self, sock: socket.socket, peer: tuple[Any, ...], began: float) -> None:
        self.sock = sock
        self.peer = peer
        self.began = began
        self.octets = 0
        self.heard = bytearray()
        self.out = bytearray()
        self.tls: _Tls | None = None
        self.named = False
        self.answered = False  # what it gets is made
        self.sent = False  # and gone


class _Tls:
    """The server's end of a TLS session, in memory."""

    __slots__ = ("incoming", "outgoing", "ready", "session")

    def __init__(self, context: ssl.SSLContext) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.session = context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.ready = False


class _Control:
    """The daemon's connection."""

    __slots__ = ("heard", "out", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.heard = bytearray()
        self.out = bytearray()


class Responder:
    """Serves ``listening`` and, for the daemon, ``control``, until ``life`` comes to its end.

    ``manager`` is a socket to the service manager, which is told again and again that this runs.
    """

    def __init__(
        self,
        listening: tuple[socket.socket, ...],
        control: socket.socket,
        *,
        life: int | None = None,
        manager: socket.socket | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._listening = {sock.fileno(): sock for sock in listening}
        self._inodes = sorted(_inode(sock) for sock in listening)
        self._listener = control
        self._life = life
        self._manager = manager
        self._alive_due = clock()
        self._clock = clock
        self._clients: dict[int, _Client] = {}  # the oldest first
        self._control: _Control | None = None
        self._message = Message()
        self._certificates = Certificates()
        self._greeting: _Client | None = None
        self._paused: float | None = None
        self._poll = select.epoll()
        for sock in (*listening, control):
            sock.setblocking(False)  # noqa: FBT003 - as the standard library has it
            self._poll.register(sock, select.EPOLLIN)
        if manager is not None:
            manager.setblocking(False)  # noqa: FBT003
        if life is not None:
            self._poll.register(life, select.EPOLLIN)
        # What is loaded when it is first used is loaded before there is a filter.
        self._rehearse()

    def _rehearse(self) -> None:
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
        theirs, ours = _Tls(self._certificates.context(self._message)), ssl.MemoryBIO()
        session = client.wrap_bio(theirs.outgoing, ours, server_hostname="ramnet.invalid")
        for _ in range(3):
            with contextlib.suppress(ssl.SSLWantReadError):
                session.do_handshake()
            theirs.incoming.write(ours.read())
            with contextlib.suppress(ssl.SSLWantReadError):
                theirs.session.do_handshake()
        self._certificates.context(self._message, ip_address("::1"))
        http_answer(asked_of(b"GET / HTTP/1.1\r\nHost: ramnet.invalid"), Message("\u00e9"))

    def serve(self) -> None:
        """Run until the daemon that started this has gone; for ever where systemd did."""
        while True:
            self._say_alive()
            events = dict(self._poll.poll(self._patience(), _AT_ONCE))
            if self._life in events:
                return
            # First, however much is to be done.
            if self._control is not None and (fd := self._control.sock.fileno()) in events:
                self._on_control(self._control, events.pop(fd))
            # Those that are there before new ones, which may get the number of one that goes.
            for fd in events.keys() & self._clients.keys():
                self._on_client(self._clients[fd], events[fd])
            for fd in events.keys() & self._listening.keys():
                self._accept(self._listening[fd])
            if self._listener.fileno() in events:
                self._accept_control()
            self._tidy()

    def _say_alive(self) -> None:
        now = self._clock()
        if self._manager is not None and now >= self._alive_due:
            self._alive_due = now + ALIVE_SECONDS
            with contextlib.suppress(OSError):  # one that hears nothing starts this anew
                self._manager.send(b"READY=1\nWATCHDOG=1")

    # --- room and time

    def _oldest(self) -> _Client | None:
        return next(iter(self._clients.values()), None)

    def _patience(self) -> float | None:
        """Return how many seconds nothing is to be done but what is asked for."""
        ends = [] if self._paused is None else [self._paused]
        if self._manager is not None:
            ends.append(self._alive_due)
        if (oldest := self._oldest()) is not None:
            ends.append(oldest.began + CLIENT_SECONDS)
        return max(min(ends) - self._clock(), 0.001) if ends else None

    def _tidy(self) -> None:
        now = self._clock()
        while (oldest := self._oldest()) is not None and now - oldest.began >= CLIENT_SECONDS:
            self._reset(oldest)
        if self._paused is not None and now >= self._paused:
            self._pause(None)

    def _pause(self, until: float | None) -> None:
        """Accept nobody until then; who connects waits in the kernel."""
        self._paused = until
        for fd in self._listening:
            self._poll.modify(fd, select.EPOLLIN if until is None else 0)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            now, oldest = self._clock(), self._oldest()
            full = len(self._clients) >= MAX_CONNECTIONS
            if full and oldest is not None and now - oldest.began < ROOM_SECONDS:
                self._pause(oldest.began + ROOM_SECONDS)
                return
            try:
                sock, peer = listening.accept()
            except BlockingIOError:
                return
            except OSError as err:
                if err.errno not in _NO_MEANS:
                    continue  # it is gone already
                self._pause(now + ROOM_SECONDS)
                return
            if full and oldest is not None:
                self._reset(oldest)
            sock.setblocking(False)  # noqa: FBT003
            self._clients[sock.fileno()] = _Client(sock, peer, now)
            self._poll.register(sock, select.EPOLLIN)

    def _reset(self, client: _Client) -> None:
        """Let go of a connection so that nothing of it is left in the kernel."""
        with contextlib.suppress(OSError):
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._close(client)

    def _close(self, client: _Client) -> None:
        if self._clients.pop(client.sock.fileno(), None) is not None:
            client.sock.close()
            if self._paused is not None:
                self._paused = self._clock()

    # --- one client

    def _on_client(self, client: _Client, event: int) -> None:
        try:
            if event & _GONE:
                self._close(client)
                return
            if event & select.EPOLLIN and not self._hear(client):
                return
            self._send(client)
        except (OSError, ssl.SSLError):
            self._close(client)

    def _hear(self, client: _Client) -> bool:
        """Take in what has arrived; False once the connection is closed."""
        try:
            data = client.sock.recv(_CHUNK)
        except BlockingIOError:
            return True
        client.octets += len(data)
        if not data or client.octets > MAX_OCTETS:
            self._close(client)
            return False
        if client.answered:
            return True
        if client.tls is not None:
            client.tls.incoming.write(data)
            return self._on_tls(client, client.tls)
        client.heard += data
        if client.heard[0] == _HANDSHAKE:
            tls = self._begin_tls(client)
            return tls is None or self._on_tls(client, tls)
        self._on_plain(client)
        return True

    def _begin_tls(self, client: _Client) -> _Tls | None:
        # A session is made for a whole record only: it takes far more memory than its first octet.
        heard = client.heard
        if len(heard) < _RECORD_HEAD:
            return None
        if len(heard) < min(_RECORD_HEAD + int.from_bytes(heard[3:5], "big"), _CHUNK):
            return None
        context = self._certificates.context(self._message)
        context.sni_callback = self._named
        client.tls = _Tls(context)
        client.tls.incoming.write(bytes(heard))
        heard.clear()
        return client.tls

    def _named(self, session: ssl.SSLObject, name: str | None, _context: object) -> None:
        if self._greeting is None:
            return
        self._tell(self._greeting, wanted_host(name) or "", "sni")
        if name is None:  # it wants a bare address
            address, _ = _original_destination(self._greeting.sock)
            with contextlib.suppress(HostError):  # refused all the same, in other words
                there = ip_address(address)
                session.context = self._certificates.context(self._message, there)

    def _on_tls(self, client: _Client, tls: _Tls) -> bool:
        try:
            if not tls.ready:
                self._greeting = client
                tls.session.do_handshake()
                tls.ready = True
            while (data := tls.session.read(_CHUNK)) and not client.answered:
                client.heard += data
                self._on_plain(client)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:  # what most clients do: they do not accept the certificate
            client.out += tls.outgoing.read()
            self._send(client)
            self._close(client)
            return False
        finally:
            self._greeting = None
        client.out += tls.outgoing.read()
        return True

    def _on_plain(self, client: _Client) -> None:
        try:
            head = head_of(client.heard)
            if head is None:
                return
            asked = asked_of(head)
        except WireError:
            asked = Asked()  # whatever it is, it may print what it gets
        if client.tls is None:
            self._tell(client, asked.host or "", "connect" if asked.connect else "host")
        answer = http_answer(asked, self._message)
        client.heard.clear()
        client.answered = True
        if client.tls is None:
            client.out += answer
            return
        client.tls.session.write(answer)
        with contextlib.suppress(ssl.SSLError):  # its own end of the session is not waited for
            client.tls.session.unwrap()

    def _send(self, client: _Client) -> None:
        if client.out:
            with contextlib.suppress(BlockingIOError):
                del client.out[: client.sock.send(client.out)]
        if client.out:
            self._poll.modify(client.sock, select.EPOLLIN | select.EPOLLOUT)
        elif client.answered and not client.sent:
            client.sent = True
            # Closed when the client has: octets that are not read would take the answer back.
            client.sock.shutdown(socket.SHUT_WR)
            self._poll.modify(client.sock, select.EPOLLIN)

    # --- the daemon

    def _tell(self, client: _Client, name: str, origin: str) -> None:
        """Tell the daemon, once a connection, what a client wanted."""
        if client.named or self._control is None:
            return
        client.named = True
        address, port = _original_destination(client.sock)
        seen = {"name": name, "from": origin, "address": address, "port": port}
        source = {"source": _plain(client.peer[0]), "source_port": client.peer[1]}
        self._answer(self._control, {"seen": {**seen, **source}})

    def _accept_control(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        uid = struct.unpack("=iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
        if uid != 0:
            sock.close()
            return
        if self._control is not None:  # of a daemon that has gone, or is about to
            self._control.sock.close()
        sock.setblocking(False)  # noqa: FBT003
        self._control = _Control(sock)
        self._poll.register(sock, select.EPOLLIN)

    def _on_control(self, control: _Control, event: int) -> None:
        try:
            if not event & _READABLE or self._hear_control(control):
                self._send_control(control)
                return
        except BlockingIOError:
            return
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            pass
        control.sock.close()
        self._control = None

    def _hear_control(self, control: _Control) -> bool:
        """Do what the daemon says; False where it has gone, or says too much at once."""
        data = control.sock.recv(_CHUNK)
        control.heard += data
        *lines, rest = bytes(control.heard).split(b"\n")
        control.heard[:] = rest
        for line in lines:
            self._obey(control, json.loads(line))
        return bool(data) and len(rest) <= MAX_LINE

    def _obey(self, control: _Control, line: dict[str, Any]) -> None:
        if "ping" in line:
            self._answer(control, {"pong": int(line["ping"]), "sockets": self._inodes})
        else:
            self._message = Message(str(line["organization"]), str(line["contact"]))
            self._certificates.context(self._message)

    def _answer(self, control: _Control, line: dict[str, Any]) -> None:
        if len(control.out) > MAX_UNREAD:
            return
        control.out += json.dumps(line).encode() + b"\n"
        with contextlib.suppress(OSError):  # one that has gone is seen when it is read
            self._send_control(control)

    def _send_control(self, control: _Control) -> None:
        if control.out:
            with contextlib.suppress(BlockingIOError):
                del control.out[: control.sock.send(control.out)]
        more = select.EPOLLOUT if control.out else 0
        self._poll.modify(control.sock, select.EPOLLIN | more)


def _inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


def _original_destination(sock: socket.socket) -> tuple[str, int]:
    """Return where the client wanted to go; where it is, if nothing was redirected."""
    try:
        raw = sock.getsockopt(_LEVEL[sock.family], _SO_ORIGINAL_DST, _SIZE_OF_ADDRESS[sock.family])
    except OSError:
        there = sock.getsockname()
        return _plain(there[0]), int(there[1])
    address = raw[4:8] if sock.family == socket.AF_INET else raw[8:24]
    return str(ip_address(address)), int.from_bytes(raw[2:4], "big")


def _plain(address: str) -> str:
    return address.partition("%")[0]  # without the zone of a link-local one


def sorted_sockets(
    descriptors: tuple[int, ...],
) -> tuple[tuple[socket.socket, ...], socket.socket | None]:
    """Return the listening sockets of clients, and the one of the daemon."""
    found = [socket.socket(fileno=descriptor) for descriptor in descriptors]
    clients = tuple(sock for sock in found if sock.family in _LEVEL)
    return clients, next((sock for sock in found if sock.family == socket.AF_UNIX), None)

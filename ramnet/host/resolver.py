"""The daemon's own look-ups of exact names: A and AAAA, kept fresh, never in anybody's way.

dnslib builds the queries; the answers are judged by the same parser as everybody's
(``core.dns``): ID, question and CNAME chain. UDP with EDNS (RFC 6891), TCP when truncated.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import secrets
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from itertools import count

from dnslib import EDNS0, DNSRecord

from ramnet.core.dns import DNS_PORT, TYPE_A, TYPE_AAAA, Answer, parse_answer
from ramnet.core.events import Addr, Resolved, Unresolved
from ramnet.core.names import HostName
from ramnet.errors import WireError
from ramnet.host.resolvconf import Server, without_zone

# What DNS flag day 2020 settled on: never fragmented on the usual paths.
UDP_PAYLOAD = 1232
# A server that has not answered by then is asked again, or the next one is.
TIMEOUT_SECONDS = 2.0
ROUNDS = 2
# A TTL below this is not followed to the second: clients that ask see the new answer themselves,
# and thousands of names must not become a load on the resolver.
REFRESH_MIN = 30.0
REFRESH_MAX = 3600.0
# Up to this share of a TTL is taken off, so that names listed together do not ask together.
JITTER = 0.2
# After a failure: 1 s, doubled up to two minutes. Each failure renews what the name had, and must
# come well within half of the shortest lease (300 s and 60 s of grace).
BACKOFF_FIRST = 1.0
BACKOFF_MAX = 120.0
# While no server says anything at all the trouble is not the name's: a machine that gets its
# network late is not to wait for the doubling. What failed is then due at the first answer.
BACKOFF_SILENT = 10.0
# Look-ups begun per second: a warm start of 10,000 names is spread over less than two minutes.
RATE = 100.0

NOERROR, NXDOMAIN = 0, 3


@dataclass(slots=True)
class _Entry:
    serial: int
    failures: int = 0


class LookupFailed(Exception):
    """No server gave a usable answer; the message says what each did.

    ``silent``: none of them said anything.
    """

    def __init__(self, message: str, *, silent: bool) -> None:
        super().__init__(message)
        self.silent = silent


class Resolver:
    """Keeps a list of names resolved and reports each result as an event.

    ``ports`` are the local UDP ports from which it asks at the moment.
    """

    def __init__(
        self, report: Callable[[Resolved | Unresolved], None], *, concurrency: int
    ) -> None:
        self.servers: tuple[Server, ...] = ()
        self._report = report
        self._entries: dict[HostName, _Entry] = {}
        self._due: list[tuple[float, int, HostName]] = []
        self._serials = count(1)
        self._wake = asyncio.Event()
        self._slots = asyncio.Semaphore(concurrency)
        self._interfaces: dict[Server, int] = {}
        self._silent = False
        self._answered = 0.0  # when a server last said something, in the loop's time
        self.ports: set[int] = set()

    def set_names(self, names: Iterable[HostName]) -> None:
        """Resolve exactly these names from now on; those that are new are due at once."""
        wanted = dict.fromkeys(names)
        self._entries = {name: old for name, old in self._entries.items() if name in wanted}
        now = asyncio.get_running_loop().time()
        for name in wanted:
            if name not in self._entries:
                self._schedule(name, _Entry(0), now)

    def set_servers(
        self, servers: tuple[Server, ...], interfaces: Mapping[Server, int] | None = None
    ) -> None:
        """Ask these servers from now on; what failed before is tried with them at once.

        ``interfaces`` holds, by address without zone, the index of the interface by which a
        server's answers must come in; of a server that is not there they may come by any.
        """
        found = dict(interfaces or {})
        if (servers, found) == (self.servers, self._interfaces):
            return
        self.servers, self._interfaces = servers, found
        self._hurry()

    def _hurry(self) -> None:
        """Make due at once what has failed."""
        now = asyncio.get_running_loop().time()
        for name, entry in self._entries.items():
            if entry.failures:
                self._schedule(name, _Entry(0), now)

    def _schedule(self, name: HostName, entry: _Entry, when: float) -> None:
        """Put a name on the agenda; an older entry of it in the heap is stale by its serial."""
        entry.serial = next(self._serials)
        self._entries[name] = entry
        heapq.heappush(self._due, (when, entry.serial, name))
        self._wake.set()

    async def run(self) -> None:
        """Look names up as they fall due, until cancelled."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                wait = self._due[0][0] - loop.time() if self._due else None
                if wait is None or wait > 0:
                    await _wait(self._wake, wait)
                    continue
                _, serial, name = heapq.heappop(self._due)
                entry = self._entries.get(name)
                if entry is None or entry.serial != serial:
                    continue
                await self._slots.acquire()
                group.create_task(self._refresh(name, entry))
                await asyncio.sleep(1 / RATE)

    async def _refresh(self, name: HostName, entry: _Entry) -> None:
        begin = asyncio.get_running_loop().time()
        try:
            results = await asyncio.gather(
                self.lookup(name, TYPE_A), self.lookup(name, TYPE_AAAA), return_exceptions=True
            )
            if self._entries.get(name) is entry:
                self._done(name, entry, results, begin)
        finally:
            self._slots.release()

    def _done(
        self,
        name: HostName,
        entry: _Entry,
        results: Iterable[Answer | BaseException],
        begin: float,
    ) -> None:
        """Report what each of the two look-ups gave, and put the name on the agenda again."""
        answers: list[Answer] = []
        problems: list[LookupFailed] = []
        for item in results:
            if isinstance(item, Answer):
                answers.append(item)
            elif isinstance(item, LookupFailed):
                problems.append(item)
            else:
                raise item
        addresses: tuple[Addr, ...] = tuple(a for item in answers for a in item.addresses)
        ttl = min((item.ttl for item in answers if item.addresses), default=0)
        if addresses:
            self._report(Resolved(name, addresses, ttl))
        self._listen(answers, problems, begin)
        if problems:
            self._report(Unresolved(name, str(problems[0])))
            entry.failures += 1
            most = min(BACKOFF_SILENT, BACKOFF_MAX) if self._silent else BACKOFF_MAX
            wait = min(BACKOFF_FIRST * 2 ** min(entry.failures - 1, 16), most)
        else:
            entry.failures = 0
            wait = min(max(ttl, REFRESH_MIN), REFRESH_MAX)
        self._again(name, entry, wait)

    def _listen(self, answers: list[Answer], problems: list[LookupFailed], begin: float) -> None:
        """Note whether servers say anything at all; the first answer makes due what failed."""
        if answers or not all(item.silent for item in problems):
            self._answered = asyncio.get_running_loop().time()
            if self._silent:
                self._silent = False
                self._hurry()
        elif self._answered < begin:
            self._silent = True

    def _again(self, name: HostName, entry: _Entry, wait: float) -> None:
        jittered = wait * (1 - JITTER * random.random())  # noqa: S311 - spreads load, no secret
        self._schedule(name, entry, asyncio.get_running_loop().time() + jittered)

    async def lookup(self, name: HostName, qtype: int) -> Answer:
        """Ask the servers in order, ``ROUNDS`` times; return the first answer that is one.

        NXDOMAIN is an answer, without addresses; SERVFAIL, REFUSED and silence are not. Raises
        ``LookupFailed``.
        """
        problems: dict[str, None] = {}
        silent = True
        for server in self.servers * ROUNDS:
            interface = self._interfaces.get(without_zone(server))
            try:
                answer = await _ask(server, interface, name, qtype, self.ports)
            except (OSError, TimeoutError, WireError) as err:
                problems.setdefault(f"{server}: {str(err) or 'no answer'}")
                continue
            if answer.rcode in (NOERROR, NXDOMAIN):
                return answer
            silent = False
            problems.setdefault(f"{server}: rcode {answer.rcode}")
        raise LookupFailed("; ".join(problems) or "there is no resolver to ask", silent=silent)


async def _wait(event: asyncio.Event, seconds: float | None) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


def _query(name: HostName, qtype: int) -> tuple[int, bytes]:
    record = DNSRecord.question(name, "A" if qtype == TYPE_A else "AAAA")
    record.header.id = secrets.randbelow(1 << 16)
    record.add_ar(EDNS0(udp_len=UDP_PAYLOAD))
    return record.header.id, bytes(record.pack())


async def _ask(
    server: Server, interface: int | None, name: HostName, qtype: int, ports: set[int]
) -> Answer:
    ident, query = _query(name, qtype)
    async with asyncio.timeout(TIMEOUT_SECONDS):
        made = _udp_socket(server, interface)
        port = made.getsockname()[1]
        ports.add(port)
        try:
            answer = await _ask_udp(made, ident, query, name, qtype)
        finally:
            ports.discard(port)
    if not answer.truncated:
        return answer
    async with asyncio.timeout(TIMEOUT_SECONDS):
        return await _ask_tcp(server, ident, query, name, qtype)


class _Udp(asyncio.DatagramProtocol):
    """Collects datagrams of one connected socket; the kernel filters by the server's address."""

    def __init__(self) -> None:
        self.answers: asyncio.Queue[bytes | Exception] = asyncio.Queue(maxsize=16)

    def datagram_received(self, data: bytes, _addr: object) -> None:
        self._put(data)

    def error_received(self, exc: Exception) -> None:
        self._put(exc)

    def _put(self, item: bytes | Exception) -> None:
        if not self.answers.full():  # a flood of wrong answers; the right one is asked for again
            self.answers.put_nowait(item)


def _udp_socket(server: Server, interface: int | None) -> socket.socket:
    """Make a socket that is connected to the server and hears nothing but by its interface.

    A container can forge the server's address, but not the interface (SO_BINDTODEVICE, socket(7)).
    """
    family = socket.AF_INET if isinstance(server, IPv4Address) else socket.AF_INET6
    made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if interface is not None:
            device = socket.if_indextoname(interface).encode()
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
        made.connect((str(server), DNS_PORT))
    except BaseException:
        made.close()
        raise
    return made


async def _ask_udp(
    made: socket.socket, ident: int, query: bytes, name: HostName, qtype: int
) -> Answer:
    """Send one query from a fresh port and wait for the answer that belongs to it."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(_Udp, sock=made)
    try:
        transport.sendto(query)
        while True:
            item = await protocol.answers.get()
            if isinstance(item, Exception):
                raise item
            try:
                answer = parse_answer(item)
            except WireError:
                continue  # not from our server, or not for us: the right one may still come
            if _belongs(answer, ident, name, qtype):
                return answer
    finally:
        transport.close()


async def _ask_tcp(server: Server, ident: int, query: bytes, name: HostName, qtype: int) -> Answer:
    reader, writer = await asyncio.open_connection(str(server), DNS_PORT)
    try:
        writer.write(len(query).to_bytes(2, "big") + query)
        size = int.from_bytes(await reader.readexactly(2), "big")
        answer = parse_answer(await reader.readexactly(size))
    except asyncio.IncompleteReadError as err:
        raise WireError("the server closed the connection early", where="tcp") from err
    finally:
        writer.close()
    if not _belongs(answer, ident, name, qtype) or answer.truncated:
        raise WireError("the answer is to another question", where="tcp")
    return answer


def _belongs(answer: Answer, ident: int, name: HostName, qtype: int) -> bool:
    question = answer.question
    return (answer.id, question.name, question.qtype) == (ident, name, qtype)

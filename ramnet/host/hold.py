"""Mode ``hold``: a DNS answer waits in the kernel until the set knows what it says.

Two threads (and one for the heartbeat). The reader takes answers from the queue and lets pass at
once whatever teaches nothing or nothing new. What needs a set update goes to the writer, which
releases the answer when the kernel has acknowledged; a slow update therefore delays its own answer
and no other. An answer is never held for longer than ``DEADLINE``: then it passes, is counted, and
the update follows late.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from ramnet.core.blocker import Blocker
from ramnet.core.engine import Engine
from ramnet.core.events import AnswerCopy, QueryCopy, TableLost, WriteLeases
from ramnet.core.learner import Learner
from ramnet.core.leases import Key
from ramnet.core.names import HostName
from ramnet.core.packet import tcp_ends
from ramnet.core.ruleset import Family
from ramnet.core.terms import ALIVE_SECONDS, TABLE
from ramnet.errors import HostError
from ramnet.host.elements import Elements
from ramnet.host.leasing import Books
from ramnet.host.nflog import BURST as COPIES
from ramnet.host.nflog import NflogReader
from ramnet.host.queue import NfQueue, Queued
from ramnet.host.recorder import Recorder

# How long an answer may wait for its set update. Clients ask again after 5 s; a set update takes
# well under a millisecond unless somebody else's transaction is in the way.
DEADLINE = 0.5
# Packets taken before the verdicts go out: fewer system calls under load, no wait without.
BURST = 32
# Reads of copies before an answer is judged: the copy of its query is among those that wait,
# however many do. More than this does not fit into the socket's buffer.
COPY_ROUNDS = 128
# Updates in line for a writer that is stuck; beyond that answers pass unread, and are counted.
MAX_WORK = 16_384
# However slow the machine: then the verdicts go out, and the deadlines are looked at.
TURN_SECONDS = 0.02
# How often a reader without work looks whether it is to stop, or a deadline has come.
IDLE_MILLISECONDS = 250
HELD_MILLISECONDS = 10
# A reader that has not come round for this long is stuck: answers are to pass without it.
STUCK_SECONDS = 0.6
# The heartbeat: three in the time that the kernel waits for one.
HEARTBEAT_SECONDS = ALIVE_SECONDS / 3.5
# The upper bounds of the histogram of hold times, in microseconds.
HOLD_BUCKETS = (50, 100, 200, 500, 1_000, 5_000, 50_000, 1_000_000)


@dataclass(slots=True)
class HoldCounters:
    """What became of the answers that were queued. Times are in microseconds."""

    seen: int = 0
    held: int = 0
    unread: int = 0
    released_late: int = 0
    written_late: int = 0
    write_failures: int = 0
    hold_times: Counter[int] = field(default_factory=Counter)


@dataclass(slots=True, eq=False)
class _Line:
    """One queue and who learns from it; a ``blocker`` may change what the queue lets pass.

    ``held`` is what waits, by its number in the queue, and since when: the reader adds, both
    threads remove.
    """

    queue: NfQueue
    learner: Learner
    blocker: Blocker | None = None
    held: dict[int, tuple[float, bytes]] = field(default_factory=dict)

    def let_go(self, ident: int) -> bool:
        """Let a packet pass that was held; False when somebody else has."""
        if self.held.pop(ident, None) is None:
            return False
        self.queue.accept(ident)
        return True


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A packet that is held."""

    line: _Line
    ident: int


@dataclass(slots=True)
class _Work:
    """Set updates to make, and the packet that waits for them, if one does."""

    writes: list[WriteLeases]
    keys: tuple[Key, ...]
    waiting: _Waiting | None
    since: float
    epoch: int


class Holder:
    """Owns the queues and, in this mode, the copies of queries; shares learners by ``lock``."""

    def __init__(
        self,
        queues: tuple[NfQueue, NfQueue],
        queries: NflogReader,
        books: Books,
        engine: Engine,
        lock: threading.Lock,
        report: Callable[[TableLost, int], None],
        recorder: Recorder,
    ) -> None:
        """``queues``: of the answers that engines hear, and of those of everybody else.

        ``report`` is called from the writer's thread when an update failed, with the ``epoch`` of
        the table that it was for.
        """
        self.counters = HoldCounters()
        self._lines = (
            _Line(queues[0], engine.learner),
            _Line(queues[1], engine.heard, engine.blocker),
        )
        self._queries = queries
        self._books = books
        self._engine = engine
        self._lock = lock
        self._report = report
        self._recorder = recorder
        self._work: SimpleQueue[_Work | threading.Event | None] = SimpleQueue()
        self._failed: deque[_Work] = deque(maxlen=MAX_WORK)
        # How many submitted updates name a key.
        self._pending: dict[Key, int] = {}
        self._counting = threading.Lock()
        # Held while something is written. Every whole table begins an epoch: what was in line
        # before is in it, or is not allowed any more.
        self._writing = threading.Lock()
        self.epoch = 0
        self._stopping = threading.Event()
        # Whether everything is let go of at the moment: nothing new is to be held.
        self._letting_go = False
        self._wake, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.failure: BaseException | None = None
        self._turned = time.monotonic()
        self._threads = (
            threading.Thread(target=self._guard, args=(self._read,), name="hold-reader"),
            threading.Thread(target=self._guard, args=(self._write,), name="hold-writer"),
            threading.Thread(target=self._guard, args=(self._beat,), name="hold-heartbeat"),
        )

    def start(self) -> None:
        """Begin to take answers."""
        for thread in self._threads:
            thread.start()

    def stop(self, elements: Elements) -> None:
        """Finish what is being written, let everything pass, end both threads."""
        self._stopping.set()
        os.write(self._waker, b"x")
        self._work.put(None)
        for thread in self._threads:
            thread.join()
        self.let_go(elements)
        for line in self._lines:
            line.queue.close()
        os.close(self._wake)
        os.close(self._waker)

    @property
    def queues(self) -> tuple[NfQueue, ...]:
        """The queues in use."""
        return tuple(line.queue for line in self._lines)

    @property
    def well(self) -> bool:
        """Whether both threads live and the reader is not stuck."""
        return self.failure is None and time.monotonic() - self._turned < STUCK_SECONDS

    def report(self) -> dict[str, Any]:
        """Describe what became of the answers; hold times are counts up to so many microseconds."""
        counters = self.counters
        return {
            "seen": counters.seen,
            "held": counters.held,
            "waiting": sum(len(line.held) for line in self._lines),
            "unread": counters.unread,
            "released_late": counters.released_late,
            "written_late": counters.written_late,
            "write_failures": counters.write_failures,
            "overruns": sum(line.queue.overruns for line in self._lines),
            "hold_us": {str(limit): counters.hold_times[limit] for limit in HOLD_BUCKETS},
        }

    def write(self, command: WriteLeases) -> None:
        """Have leases written that no packet waits for (the daemon's own look-ups)."""
        keys = tuple((item.address, item.port) for item in command.add)
        self._submit([command], keys, None, time.monotonic())

    def flush(self, seconds: float) -> bool:
        """Wait until all that was submitted before is written; False when it takes too long."""
        done = threading.Event()
        self._work.put(done)
        return done.wait(seconds)

    @contextmanager
    def replacing(self) -> Iterator[None]:
        """Put a whole table in place inside; the caller holds the lock of the learner.

        Nothing is written meanwhile. What is still in line afterwards was asked for before the
        table was compiled: it is in there, or the policy that is now in force left it out.
        """
        with self._writing:
            yield
            self.epoch += 1

    def _guard(self, body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as err:  # noqa: BLE001 - the daemon's thread ends the daemon with it
            self.failure = err
            self._report(TableLost(f"the DNS thread failed: {err!r}"), self.epoch)

    # The reader

    def _read(self) -> None:
        poll = select.poll()
        queues = (line.queue.fileno() for line in self._lines)
        for descriptor in (*queues, self._queries.fileno(), self._wake):
            poll.register(descriptor, select.POLLIN)
        while not self._stopping.is_set():
            self._turned = time.monotonic()
            waiting = any(line.held for line in self._lines)
            poll.poll(HELD_MILLISECONDS if waiting else IDLE_MILLISECONDS)
            self._take_queries()
            for line in self._lines:
                self._take_turn(line)

    def _take_turn(self, line: _Line) -> None:
        """Take some of what waits in a queue."""
        passed: list[int] = []
        end = time.monotonic() + TURN_SECONDS
        for _ in range(BURST):
            queued = line.queue.receive()
            if queued is None:
                break
            self._take(line, queued, passed)
            self._turned = time.monotonic()
            if self._turned > end:
                break
        self._pass(line, passed)
        if line.held:
            self._release_overdue(line)

    def _take_queries(self) -> None:
        """Note the queries that have left. Their copies were made before any answer came."""
        now = time.monotonic()
        for _ in range(COPY_ROUNDS):
            copies = list(self._queries.read())
            for copy in copies:
                if isinstance(copy, QueryCopy):
                    self._engine.note_query(copy, now)
                else:
                    self._learn_late(copy, now)
            if len(copies) < COPIES:
                return

    def _learn_late(self, copy: AnswerCopy, now: float) -> None:
        """Learn from an answer that passed unheld, while the heartbeat was late."""
        with self._lock:
            for lesson in self._engine.listener(forwarded=copy.forwarded).packet(copy.packet, now):
                if lesson.write is not None:
                    self._submit([lesson.write], lesson.keys, None, now)

    def _take(self, line: _Line, queued: Queued, passed: list[int]) -> None:
        counters = self.counters
        counters.seen += 1
        self._recorder.heard(queued.packet)
        if line.blocker is not None:
            name = line.blocker.blocks(queued.packet)
            if name is not None and self._blocked(line, line.blocker, queued, name):
                return
            if not queued.forwarded:  # another program's than an engine: it teaches nothing
                passed.append(queued.ident)
                return
        learner = line.learner
        now = time.monotonic()
        if not learner.concerns(queued.packet, now):
            passed.append(queued.ident)
            return
        if self._work.qsize() >= MAX_WORK:
            counters.unread += 1
            passed.append(queued.ident)
            return
        self._take_queries()
        with self._lock:
            lessons = learner.packet(queued.packet, now)
            writes = [lesson.write for lesson in lessons if lesson.write is not None]
            keys = tuple(key for lesson in lessons for key in lesson.keys)
            if not writes and not any(key in self._pending for key in keys):
                if lessons:  # not what nobody asked: the same answer may be to another's query
                    learner.settled(queued.packet, now)
                if not _overtakes(line, queued.packet):
                    passed.append(queued.ident)
                    return
            self._hold(line, queued, writes, keys, now)

    def _hold(
        self,
        line: _Line,
        queued: Queued,
        writes: list[WriteLeases],
        keys: tuple[Key, ...],
        now: float,
    ) -> None:
        """Keep an answer until the kernel has been told."""
        self.counters.held += 1
        line.held[queued.ident] = now, tcp_ends(queued.packet)
        self._submit(writes, keys, _Waiting(line, queued.ident), now)

    def _blocked(self, line: _Line, blocker: Blocker, queued: Queued, name: HostName) -> bool:
        """Keep who asked from a refused registry; tell whether the packet is dealt with.

        A program of the host may hear where it is, where a notice tells it why it is refused there.
        """
        if not queued.forwarded and self._engine.leads_host and self._led(line, queued, name):
            return True
        changed = blocker.changed(queued.packet)
        if changed is None:
            return False
        self._recorder.blocked(name, queued.packet, forwarded=queued.forwarded)
        line.queue.accept_with(queued.ident, changed)
        return True

    def _led(self, line: _Line, queued: Queued, name: HostName) -> bool:
        """Let an answer pass once its addresses are refused; False where they cannot be."""
        now, denied = time.monotonic(), self._engine.denied
        if not denied.ports_of(name):
            return False
        if not denied.concerns(queued.packet, now):  # settled a moment ago
            line.queue.accept(queued.ident)
            return True
        self._take_queries()
        with self._lock:
            lesson = self._engine.refuse_answer(name, queued.packet, now)
            if lesson is None:
                return False
            if lesson.write is None and not any(key in self._pending for key in lesson.keys):
                denied.settled(queued.packet, now)
                line.queue.accept(queued.ident)
                return True
            writes = [lesson.write] if lesson.write is not None else []
            self._hold(line, queued, writes, lesson.keys, now)
        return True

    def _submit(
        self,
        writes: list[WriteLeases],
        keys: tuple[Key, ...],
        waiting: _Waiting | None,
        since: float,
    ) -> None:
        """Hand over to the writer; until it is done the keys are not to be taken for known."""
        with self._counting:
            for key in keys:
                self._pending[key] = self._pending.get(key, 0) + 1
        self._work.put(_Work(writes, keys, waiting, since, self.epoch))

    def _pass(self, line: _Line, passed: list[int]) -> None:
        """Let packets pass: by one message for all when nothing before them is held."""
        if not passed:
            return
        if len(passed) > 1 and not line.held:
            line.queue.accept(passed[-1], up_to=True)
            return
        for ident in passed:
            line.queue.accept(ident)

    def _release_overdue(self, line: _Line) -> None:
        limit = time.monotonic() - DEADLINE
        for ident, (since, _) in list(line.held.items()):
            if since > limit:
                return  # in order of their coming
            self.counters.released_late += line.let_go(ident)

    # The heartbeat

    def _beat(self) -> None:
        """Keep the kernel holding answers, as long as the reader comes round.

        In a thread of its own: the event loop may be late by seconds on a busy machine.
        """
        elements = Elements(TABLE)
        try:
            while not self._stopping.is_set():
                self._refresh(elements)
                self._stopping.wait(HEARTBEAT_SECONDS)
        finally:
            elements.close()

    def _refresh(self, elements: Elements) -> None:
        if self.well and not self._letting_go:
            with suppress(HostError):  # the table is gone; the daemon sees to it
                elements.refresh_alive()

    # The writer

    def _write(self) -> None:
        elements, edge = Elements(TABLE), Elements(TABLE, Family.NETDEV)
        try:
            while True:
                work = self._work.get()
                if work is None:
                    return
                if isinstance(work, threading.Event):
                    work.set()
                else:
                    self._carry_out(elements, edge, work)
        finally:
            elements.close()
            edge.close()

    def _carry_out(self, elements: Elements, edge: Elements, work: _Work) -> None:
        try:
            try:
                self._write_now(elements, edge, work)
            except HostError:
                self.counters.write_failures += 1
                # Once more: to replace the table, which is the other way out, ends every wait.
                self._write_now(elements, edge, work)
        except HostError as err:
            self._failed.append(work)  # released when the table is back, or by its deadline
            self._report(TableLost(err.message), work.epoch)
        else:
            self._release(work)
        finally:
            self._settle(work)

    def _write_now(self, elements: Elements, edge: Elements, work: _Work) -> None:
        with self._writing:
            for command in work.writes if work.epoch == self.epoch else ():
                self._books.write(command, elements, edge)

    def _settle(self, work: _Work) -> None:
        with self._counting:
            for key in work.keys:
                left = self._pending[key] - 1
                if left:
                    self._pending[key] = left
                else:
                    del self._pending[key]

    def _release(self, work: _Work) -> None:
        waiting = work.waiting
        if waiting is None:
            return
        if not waiting.line.let_go(waiting.ident):
            self.counters.written_late += 1
            return
        took = (time.monotonic() - work.since) * 1e6
        bucket = next((limit for limit in HOLD_BUCKETS if took <= limit), HOLD_BUCKETS[-1])
        self.counters.hold_times[bucket] += 1

    def let_go(self, elements: Elements) -> None:
        """Release all that waits: to replace the table makes the kernel drop it.

        The kernel flushes every queue of the namespace when a base chain goes away. Nothing is held
        until ``hold_again``.
        """
        self._letting_go = True
        with suppress(HostError):  # there may be no table
            elements.forget_alive()
        for line in self._lines:
            for ident in list(line.held):
                self.counters.released_late += line.let_go(ident)
            while (queued := line.queue.receive()) is not None:
                line.queue.accept(queued.ident)

    def hold_again(self, elements: Elements) -> None:
        """End ``let_go``: hold from now on, not from the next heartbeat."""
        self._letting_go = False
        self._refresh(elements)

    def table_is_back(self) -> None:
        """Release what failed: a table that was loaded again holds every lease."""
        while self._failed:
            self._release(self._failed.popleft())


def _overtakes(line: _Line, packet: bytes) -> bool:
    """Tell whether a TCP segment may repeat or follow one of its stream that is held."""
    ends = tcp_ends(packet)
    return bool(ends) and any(ends == other for _, other in list(line.held.values()))

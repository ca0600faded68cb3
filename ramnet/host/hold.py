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

from ramnet.core.compiler import ALIVE_SECONDS, ALLOW, TABLE, Held
from ramnet.core.engine import Engine
from ramnet.core.events import AnswerCopy, QueryCopy, TableLost, WriteLeases
from ramnet.core.leases import Key
from ramnet.core.packet import tcp_ends
from ramnet.errors import HostError
from ramnet.host.elements import Element, Elements
from ramnet.host.nflog import BURST as COPIES
from ramnet.host.nflog import NflogReader
from ramnet.host.queue import NfQueue, Queued

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


@dataclass(slots=True)
class _Work:
    """Set updates to make, and the packet that waits for them, if one does."""

    writes: list[WriteLeases]
    keys: tuple[Key, ...]
    ident: int | None
    since: float
    epoch: int


class Holder:
    """Owns the queue and, in this mode, the copies of queries; shares the learner by ``lock``."""

    def __init__(
        self,
        queue: NfQueue,
        queries: NflogReader,
        engine: Engine,
        lock: threading.Lock,
        report: Callable[[TableLost], None],
    ) -> None:
        """``report`` is called from the writer's thread when an update failed."""
        self.counters = HoldCounters()
        self._queue = queue
        self._queries = queries
        self._learner = engine.learner
        self._blocker = engine.blocker
        self._lock = lock
        self._report = report
        self._work: SimpleQueue[_Work | threading.Event | None] = SimpleQueue()
        # What waits, by its number, and since when: the reader adds, both remove.
        self._held: dict[int, tuple[float, bytes]] = {}
        self._failed: deque[_Work] = deque(maxlen=MAX_WORK)
        # How many submitted updates name a key.
        self._pending: dict[Key, int] = {}
        self._counting = threading.Lock()
        # Held while something is written. Every whole table begins an epoch: what was in line
        # before is in it, or is not allowed any more.
        self._writing = threading.Lock()
        self._epoch = 0
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
        self._queue.close()
        os.close(self._wake)
        os.close(self._waker)

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
            "waiting": len(self._held),
            "unread": counters.unread,
            "released_late": counters.released_late,
            "written_late": counters.written_late,
            "write_failures": counters.write_failures,
            "overruns": self._queue.overruns,
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
            self._epoch += 1

    def _guard(self, body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as err:  # noqa: BLE001 - the daemon's thread ends the daemon with it
            self.failure = err
            self._report(TableLost(f"the DNS thread failed: {err!r}"))

    # The reader

    def _read(self) -> None:
        poll = select.poll()
        for descriptor in (self._queue.fileno(), self._queries.fileno(), self._wake):
            poll.register(descriptor, select.POLLIN)
        while not self._stopping.is_set():
            self._turned = time.monotonic()
            poll.poll(HELD_MILLISECONDS if self._held else IDLE_MILLISECONDS)
            self._take_queries()
            passed: list[int] = []
            end = time.monotonic() + TURN_SECONDS
            for _ in range(BURST):
                queued = self._queue.receive()
                if queued is None:
                    break
                self._take(queued, passed)
                self._turned = time.monotonic()
                if self._turned > end:
                    break
            self._pass(passed)
            if self._held:
                self._release_overdue()

    def _take_queries(self) -> None:
        """Note the queries that have left. Their copies were made before any answer came."""
        now = time.monotonic()
        note = self._learner.query
        for _ in range(COPY_ROUNDS):
            copies = list(self._queries.read())
            for copy in copies:
                if isinstance(copy, QueryCopy):
                    note(copy.packet, now)
                else:
                    self._learn_late(copy, now)
            if len(copies) < COPIES:
                return

    def _learn_late(self, copy: AnswerCopy, now: float) -> None:
        """Learn from an answer that passed unheld, while the heartbeat was late."""
        with self._lock:
            for lesson in self._learner.packet(copy.packet, now):
                if lesson.write is not None:
                    self._submit([lesson.write], lesson.keys, None, now)

    def _take(self, queued: Queued, passed: list[int]) -> None:
        counters = self.counters
        counters.seen += 1
        if queued.forwarded:
            self._forward(queued, passed)
            return
        learner = self._learner
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
                if not self._overtakes(queued.packet):
                    passed.append(queued.ident)
                    return
            counters.held += 1
            self._held[queued.ident] = now, tcp_ends(queued.packet)
            self._submit(writes, keys, queued.ident, now)

    def _overtakes(self, packet: bytes) -> bool:
        """Tell whether a TCP segment may repeat or follow one of its stream that is held."""
        ends = tcp_ends(packet)
        return bool(ends) and any(ends == other for _, other in list(self._held.values()))

    def _forward(self, queued: Queued, passed: list[int]) -> None:
        """Judge an answer that a container is to hear; it teaches nothing."""
        changed = self._blocker.packet(queued.packet)
        if changed is None:
            passed.append(queued.ident)
        else:
            self._queue.accept_with(queued.ident, changed)

    def _submit(
        self, writes: list[WriteLeases], keys: tuple[Key, ...], ident: int | None, since: float
    ) -> None:
        """Hand over to the writer; until it is done the keys are not to be taken for known."""
        with self._counting:
            for key in keys:
                self._pending[key] = self._pending.get(key, 0) + 1
        self._work.put(_Work(writes, keys, ident, since, self._epoch))

    def _pass(self, passed: list[int]) -> None:
        """Let packets pass: by one message for all when nothing before them is held."""
        if not passed:
            return
        if len(passed) > 1 and not self._held:
            self._queue.accept(passed[-1], up_to=True)
            return
        for ident in passed:
            self._queue.accept(ident)

    def _release_overdue(self) -> None:
        limit = time.monotonic() - DEADLINE
        for ident, (since, _) in list(self._held.items()):
            if since > limit:
                return  # in order of their coming
            if self._held.pop(ident, None) is not None:
                self.counters.released_late += 1
                self._queue.accept(ident)

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
        elements = Elements(TABLE)
        try:
            while True:
                work = self._work.get()
                if work is None:
                    return
                if isinstance(work, threading.Event):
                    work.set()
                else:
                    self._carry_out(elements, work)
        finally:
            elements.close()

    def _carry_out(self, elements: Elements, work: _Work) -> None:
        try:
            try:
                self._write_now(elements, work)
            except HostError:
                self.counters.write_failures += 1
                # Once more: to replace the table, which is the other way out, ends every wait.
                self._write_now(elements, work)
        except HostError as err:
            self._failed.append(work)  # released when the table is back, or by its deadline
            self._report(TableLost(err.message))
        else:
            self._release(work)
        finally:
            self._settle(work)

    def _write_now(self, elements: Elements, work: _Work) -> None:
        with self._writing:
            for command in work.writes if work.epoch == self._epoch else ():
                elements.write(ALLOW, map(_element, command.add), map(_bare, command.drop))

    def _settle(self, work: _Work) -> None:
        with self._counting:
            for key in work.keys:
                left = self._pending[key] - 1
                if left:
                    self._pending[key] = left
                else:
                    del self._pending[key]

    def _release(self, work: _Work) -> None:
        if work.ident is None:
            return
        if self._held.pop(work.ident, None) is None:
            self.counters.written_late += 1
            return
        self._queue.accept(work.ident)
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
        for ident in list(self._held):
            if self._held.pop(ident, None) is not None:
                self.counters.released_late += 1
                self._queue.accept(ident)
        while (queued := self._queue.receive()) is not None:
            self._queue.accept(queued.ident)

    def hold_again(self, elements: Elements) -> None:
        """End ``let_go``: hold from now on, not from the next heartbeat."""
        self._letting_go = False
        self._refresh(elements)

    def table_is_back(self) -> None:
        """Release what failed: a table that was loaded again holds every lease."""
        while self._failed:
            self._release(self._failed.popleft())


def _element(item: Held) -> Element:
    return Element(item.address, item.port, item.seconds, item.name)


def _bare(key: Key) -> Element:
    return Element(*key)

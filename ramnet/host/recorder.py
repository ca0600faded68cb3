"""What the daemon tells of refusals, failures and policies, on its way to the record.

Whoever has something to tell only puts it down, from any thread and at once. ``flush`` does the
work: it pairs, names, counts and writes, in a thread that may wait for a disk.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from ipaddress import ip_address

from ramnet.core.activity import (
    MAX_TEXT,
    REFUSALS,
    Addr,
    Ledger,
    NameFrom,
    Record,
    RefusalCopy,
    Seen,
    Verdict,
    journal_fields,
)
from ramnet.core.changes import policy_changes
from ramnet.core.heard import HeardNames
from ramnet.core.pairing import Pairing, answered, notice_may_see, refused
from ramnet.core.policy import Policy
from ramnet.core.terms import TrafficClass
from ramnet.errors import HostError
from ramnet.host.activity import Store
from ramnet.host.journal import Journal

#: What waits for ``flush``: a second of refusals at the pace that the kernel copies them at, many
#: times over. More is counted and left out.
MAX_WAITING = 4_096
#: How often ``flush`` is to be called: who follows the record sees it so late.
FLUSH_SECONDS = 0.25

Names = Callable[[Addr, int | None], Iterable[tuple[str, NameFrom]]]
Why = Callable[[TrafficClass | None, str, Addr | None, int | None], str]


@dataclass(frozen=True, slots=True)
class _Blocked:
    name: str
    packet: bytes
    forwarded: bool


@dataclass(frozen=True, slots=True)
class _Failed:
    name: str
    problem: str


@dataclass(frozen=True, slots=True)
class _Changed:
    old: Policy | None
    new: Policy
    path: str
    digest: str


@dataclass(frozen=True, slots=True)
class _Rejected:
    path: str
    problem: str


@dataclass(frozen=True, slots=True)
class _Tried:
    path: str
    what: str


_Told = RefusalCopy | Seen | _Blocked | _Failed | _Changed | _Rejected | _Tried


def _listed(_traffic: TrafficClass | None, _name: str, _address: object, _port: object) -> str:
    return "the policy does not allow it"


def _nobody(_address: Addr, _port: int | None) -> tuple[tuple[str, NameFrom], ...]:
    return ()


class Recorder:
    """Owns the ledger, the store and the way to the journal.

    ``tell`` gets a line when the store cannot be written, once, and when it can be again. ``names``
    gives the names that leases and the catalogue know for an address and port, ``why`` a sentence;
    both are called by ``flush``, in its thread.

    ``noticed`` says whether refused connections of engines and the host are led to a notice: their
    records then wait a moment for the name that it saw. ``cgroup`` is that of the engines, for the
    record. ``problem`` is why the store is not written; empty when it is.
    """

    def __init__(
        self,
        state_dir: str,
        tell: Callable[[str], None],
        names: Names = _nobody,
        why: Why = _listed,
        journal: Journal | None = None,
    ) -> None:
        self.noticed = False
        self.cgroup = ""
        self.problem = ""
        self._dropped = 0
        self._unwritten = 0
        self._tell = tell
        self._names = names
        self._why = why
        self._heard = HeardNames()
        self.heard = self._heard.heard
        self._store = Store(state_dir)
        self._journal = journal or Journal()
        self._ledger = Ledger()
        self._pairing = Pairing()
        self._waiting: deque[tuple[float, _Told]] = deque()
        self._flushing = threading.Lock()

    def refused(self, copy: RefusalCopy) -> None:
        """Note that a connection was refused, or would have been."""
        self._put(copy)

    def seen(self, seen: Seen) -> None:
        """Note what the notice saw of a connection."""
        self._put(seen)

    def blocked(self, name: str, packet: bytes, *, forwarded: bool) -> None:
        """Note that the answer in ``packet`` was changed, to say that ``name`` does not exist."""
        self._put(_Blocked(name, packet, forwarded))

    def failed(self, name: str, problem: str) -> None:
        """Note what nobody refused: a name without an answer, a resolver that is down."""
        self._put(_Failed(name, problem))

    def policy_changed(self, old: Policy | None, new: Policy, path: str, digest: str) -> None:
        """Note that another policy is in force; ``old`` is None at the start."""
        self._put(_Changed(old, new, path, digest))

    def policy_rejected(self, path: str, problem: str) -> None:
        """Note that the policy file is not valid; what was in force stays."""
        self._put(_Rejected(path, problem))

    def policy_tried(self, path: str, what: str) -> None:
        """Note how the trial of a policy ended."""
        self._put(_Tried(path, what))

    def flush(self) -> None:
        """Write what is due. Never raises for what the disk does."""
        with self._flushing:
            now = time.monotonic()
            self._write([*self._new(now), *self._ledger.due(now)])

    def close(self) -> None:
        """Write all that is left, and close."""
        with self._flushing:
            now = time.monotonic()
            found = self._new(now)
            late = (self._ledger.add(self._complete(item), now) for item in self._pairing.close())
            found += filter(None, late)
            found += self._ledger.close()
            self._write(found)
            self._journal.close()

    def _put(self, told: _Told) -> None:
        if len(self._waiting) >= MAX_WAITING:
            self._dropped += 1
            return
        self._waiting.append((time.time(), told))

    def _new(self, now: float) -> list[Record]:
        """Return what is to be written at once of what was told since the last time."""
        found: list[Record] = []
        for _ in range(len(self._waiting)):
            at, told = self._waiting.popleft()
            found += self._records(told, at, now)
        found += self._pairing.due(now)
        if self._dropped:
            at, count, self._dropped = time.time(), self._dropped, 0
            self._ledger.leave_out(Record(Verdict.DENIED, at, at, count=count), now)
        written = (self._ledger.add(self._complete(record), now) for record in found)
        return [record for record in written if record is not None]

    def _records(self, told: _Told, at: float, now: float) -> Iterable[Record]:
        match told:
            case RefusalCopy():
                record, ends = refused(told, at)
                if ends is None or not self.noticed or not notice_may_see(told):
                    return (record,)
                found = self._pairing.refusal(record, ends, now)
            case Seen():
                found = self._pairing.seen(told, now)
            case _Blocked(name, packet, forwarded):  # in audit no answer is changed
                found = answered(name, packet, at, Verdict.DENIED, forwarded=forwarded)
            case _Failed(name, problem):
                origin = NameFrom.POLICY if name else None
                found = Record(
                    Verdict.FAILED, at, at, name=name, name_from=origin, why=problem[:MAX_TEXT]
                )
            case _Changed(old, new, path, digest):
                return policy_changes(old, new, path, digest, at)
            case _Rejected(path, problem):
                why = f"not valid, what was in force stays: {problem}"[:MAX_TEXT]
                found = Record(Verdict.POLICY, at, at, why=why, file=path)
            case _Tried(path, what):
                found = Record(Verdict.POLICY, at, at, why=what[:MAX_TEXT], file=path)
        return () if found is None else (found,)

    def _complete(self, record: Record) -> Record:
        """Add the name of a refused address, and the reason."""
        if record.verdict not in REFUSALS:
            return record
        address = ip_address(record.address) if record.address else None
        if not record.name and address is not None:
            name, origin = self._name_of(address, record.port)
            record = replace(record, name=name, name_from=origin)
        if record.traffic is TrafficClass.ENGINE:
            record = replace(record, cgroup=self.cgroup)
        why = self._why(record.traffic, record.name, address, record.port)
        # Of an answer that was changed, what was done about it is known already.
        return replace(record, why=f"{why}; {record.why}" if record.why else why)

    def _name_of(self, address: Addr, port: int | None) -> tuple[str, NameFrom | None]:
        """Name an address: as leases and the catalogue know it, else as it was heard in DNS."""
        for name, origin in self._names(address, port):
            return name, origin
        for heard in self._heard.names_of(address):
            return heard, NameFrom.DNS
        return "", None

    def _write(self, records: list[Record]) -> None:
        if self._unwritten and records:
            records = [self._gap(), *records]
        for record in records:
            self._journal.send(journal_fields(record))
        try:
            self._store.append(records)
        except HostError as err:
            self._unwritten += sum(record.count for record in records)
            if not self.problem:
                self._tell(f"the record is incomplete: {err.message}")
            self.problem = err.message
            return
        if self.problem and records:
            self._tell("the record is written again")
            self.problem, self._unwritten = "", 0

    def _gap(self) -> Record:
        """Make the record of what the store would not take."""
        at = time.time()
        why = f"{self._unwritten} could not be written: {self.problem}"
        return Record(Verdict.FAILED, at, at, why=why, count=0, left_out=self._unwritten)

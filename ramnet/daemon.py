"""The daemon: the only place where events meet commands."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any

from ramnet import __version__
from ramnet.core.activity import NameFrom
from ramnet.core.allow import Addr, allow_list
from ramnet.core.catalog import load_catalog
from ramnet.core.cautions import KeptCautions
from ramnet.core.config import Config
from ramnet.core.engine import Engine
from ramnet.core.engineconf import Finding
from ramnet.core.events import (
    AnswerCopy,
    Command,
    EgressLoaded,
    EgressLost,
    Event,
    Level,
    LoadEgress,
    LoadTable,
    Log,
    PolicyChanged,
    PolicyRead,
    PolicyRejected,
    Resolved,
    ResolveNames,
    Started,
    TableLoaded,
    TableLost,
    TableRefused,
    Tick,
    Unresolved,
    WriteLeases,
)
from ramnet.core.explain import why_refused
from ramnet.core.kernel import Feature
from ramnet.core.modes import Modes, choose, settings_for
from ramnet.core.names import HostName
from ramnet.core.policy import policy_digest
from ramnet.core.report import Facts, status_report
from ramnet.core.ruleset import Table
from ramnet.core.terms import (
    NFLOG_GROUP,
    OTHERS_QUEUE,
    QUEUE,
    Book,
    Held,
    Rung,
    TrafficClass,
)
from ramnet.errors import ControlError, HostError, PolicyError, RamnetError
from ramnet.host.clock import today
from ramnet.host.control import ControlServer
from ramnet.host.engineconf import engine_findings
from ramnet.host.explaining import explain_request
from ramnet.host.files import POLL_SECONDS, FollowedFile, read_config, read_policy
from ramnet.host.hold import Holder
from ramnet.host.kept import keep, kept_group, kept_queue
from ramnet.host.kernel import Kernel, look_at_kernel
from ramnet.host.loading import Loading, Removed, remove_all
from ramnet.host.lockdown import locked_text, write_locked
from ramnet.host.nflog import NflogReader
from ramnet.host.notify import FdStore, notify
from ramnet.host.recorder import Recorder
from ramnet.host.resolver import Resolver as NameResolver
from ramnet.host.routes import Routes
from ramnet.host.scopekeeper import ScopeKeeper
from ramnet.host.scoping import Scoping
from ramnet.host.trial import Trials
from ramnet.surroundings import Surroundings
from ramnet.witness import Witness

TICK_SECONDS = 1.0
# The engines' own settings and processes are looked at so often: it is for people to read.
ENGINES_EVERY_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Options:
    """Where the daemon finds and keeps its things."""

    policy: str
    config: str
    runtime_dir: str
    state_dir: str


def remove_all_without_daemon(config: str) -> Removed:
    """Remove our table and marks where no daemon runs; ``HostError`` where one does after all.

    ``config`` is the path of the configuration, which names the engines' cgroups.
    """
    cgroups = read_config(config).scope.cgroups
    lock = NflogReader(NFLOG_GROUP)
    try:
        return remove_all(cgroups)
    finally:
        lock.close()


class Daemon:
    """Owns the adapters and carries the engine's commands out, one after the other."""

    def __init__(self, options: Options, store: FdStore, lock: NflogReader | None = None) -> None:
        """Check everything that can refuse a start, before anything is changed.

        ``store`` has what the service manager kept of the daemon before; ``lock`` is the group of
        copies where the caller has bound it. Raises ``UnsupportedKernel``, ``PolicyError`` (of the
        configuration) or ``HostError``, which is ``OccupiedError`` where another ramnet enforces.
        """
        self._options = options
        self._config: Config = read_config(options.config)
        self._kernel: Kernel = look_at_kernel()
        kernel = self._kernel
        self._modes: Modes = choose(self._config, kernel.decision, kernel.evidence, kernel.release)
        limits = self._config.limits
        # Binding the group is the lock: a second daemon of this namespace ends here.
        self._store = store
        self._nflog = lock or kept_group(store, NFLOG_GROUP)
        rung = self._modes.rung
        self._scoping = Scoping(
            self._modes.scope, self._config.scope.cgroups, self._config.mark.engine
        )
        self._loading = Loading(rung, self._scoping)
        recorder = Recorder(
            options.state_dir, lambda text: log(Level.WARNING, text), self._names_at, self._why
        )
        cgroups = self._config.scope.cgroups
        recorder.cgroup = cgroups[0] if self._modes.scope.precise and len(cgroups) == 1 else ""
        self._witness = Witness(
            store,
            options.runtime_dir,
            kernel.evidence.get(Feature.NAT),
            self._loading.elements,
            recorder,
            lambda text: log(Level.WARNING, text),
        )
        self._keeper = ScopeKeeper(
            self._scoping, self._loading.elements, self._dispatch, log, self._table_is_ours
        )
        self._trials = Trials(options.policy, options.state_dir, self._tell_trial)
        self._findings: tuple[Finding, ...] = ()
        self._cautions = KeptCautions(load_catalog())
        self._settings = settings_for(
            self._config,
            self._modes,
            self._scoping.groups,
            kernel.evidence,
            self._witness.port,
            self._witness.families,
        )
        self._engine = Engine(load_catalog(), limits, self._settings, today())
        # Guards the engine where the threads of mode hold share it.
        self._lock = threading.Lock()
        self._holder: Holder | None = None
        if rung is not Rung.OBSERVE:
            self._holder = self._loading.holder = Holder(
                (kept_queue(store, QUEUE), kept_queue(store, OTHERS_QUEUE)),
                self._nflog,
                self._loading.books,
                self._engine,
                self._lock,
                self._from_thread,
                recorder,
            )
        self._names = NameResolver(self._looked_up, concurrency=limits.resolve_concurrency)
        self._engine.blocker.own = self._names.ports
        self._surroundings = Surroundings(
            self._config.dns.servers,
            self._names,
            self._dispatch,
            lambda: self._engine.local_resolvers,
        )
        store.settle()
        self._stop = asyncio.Event()
        self._events: deque[Event] = deque()
        self._working = False

    # Events and commands

    def _dispatch(self, event: Event) -> None:
        """Let the engine take an event in, and carry out what it answers, in order."""
        if self._stop.is_set():  # after `off`, nothing may bring the table back
            return
        self._events.append(event)
        if self._working:
            return
        self._working = True
        try:
            while self._events:
                event = self._events.popleft()
                with self._lock:
                    commands = self._engine.handle(event, time.monotonic())
                    for command in commands:
                        self._execute_locked(command)
                for command in commands:
                    self._execute(command)
        finally:
            self._working = False

    def _execute_locked(self, command: Command) -> None:
        """Carry out what must happen before anything else is learned.

        A lease is in line to be written before it counts as known, and a whole table holds every
        lease that counts.
        """
        match command:
            case WriteLeases():
                self._write(command)
            case LoadTable(before=None):
                self._load(command)
            case LoadEgress():
                self._load_egress(command)
            case _:
                pass

    def _execute(self, command: Command) -> None:
        match command:
            case LoadTable(before=Table()):
                self._load(command)
            case ResolveNames():
                self._names.set_names(command.names)
            case Log():
                log(command.level, command.message)
            case PolicyChanged():
                self._policy_changed(command)
            case _:
                pass  # done under the lock

    def _policy_changed(self, command: PolicyChanged) -> None:
        """Have everybody who speaks of the policy speak of the one in force, and the next boot."""
        plan = self._engine.applied
        assert plan is not None  # noqa: S101 - a policy is in force by being applied
        self._witness.policy(command.now, plan.refusal)
        if command.now is not None:
            self._witness.recorder.policy_changed(
                command.before, command.now, self._options.policy, command.digest
            )
        self._write_locked()

    def _load(self, command: LoadTable) -> None:
        try:
            self._loading.load(command)
        except HostError as err:
            self._events.appendleft(TableRefused(err.message))
        else:
            if command.before is None:
                self._keeper.doubt()
            self._events.appendleft(TableLoaded())

    def _load_egress(self, command: LoadEgress) -> None:
        try:
            self._loading.load_egress(command)
        except HostError as err:
            self._events.appendleft(EgressLost(err.message))
        else:
            self._events.appendleft(EgressLoaded())

    def _write(self, command: WriteLeases) -> None:
        try:
            self._loading.write(command)
        except HostError as err:
            self._events.appendleft(TableLost(err.message))

    # Life

    async def run(self) -> None:
        """Enforce until told to stop. The rules stay; only ``off`` removes them.

        Raises ``HostError`` when the first ruleset cannot be loaded.
        """
        self._loop = loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            routes = await stack.enter_async_context(Routes())
            stack.callback(self._nflog.close)
            stack.callback(self._loading.close)
            stack.callback(self._witness.close)
            stack.callback(self._scoping.close)
            await self._first_ruleset(routes)
            self._prepare_next_start()
            control = ControlServer(
                self._options.runtime_dir,
                self._answer,
                root_only=frozenset({"off", "trial", "confirm", "revert"}),
                clients=self._config.limits.control_clients,
                in_turn=frozenset({"explain"}),  # it looks through the whole policy
            )
            await control.start()
            stack.push_async_callback(control.close)
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._stop.set)
            self._follow_answers(stack)
            self._announce()
            await self._work(routes)
        notify("STOPPING=1")

    def _follow_answers(self, stack: AsyncExitStack) -> None:
        """Begin to learn: by the threads of mode hold, or from copies in this one."""
        if self._holder is not None:
            self._holder.start()
            stack.callback(self._stop_holding)
            return
        loop = asyncio.get_running_loop()
        loop.add_reader(self._nflog.fileno(), self._read_packets)
        stack.callback(loop.remove_reader, self._nflog.fileno())
        while self._nflog.waiting:
            self._read_packets()

    def _stop_holding(self) -> None:
        if self._holder is not None:
            self._holder.stop(self._loading.elements)

    def _from_thread(self, event: TableLost, epoch: int) -> None:
        self._loop.call_soon_threadsafe(self._lost, event, epoch)

    def _lost(self, event: TableLost, epoch: int) -> None:
        """Take in that a table was lost, unless another has been loaded since."""
        if self._holder is not None and self._holder.epoch == epoch:
            self._dispatch(event)

    async def _first_ruleset(self, routes: Routes) -> None:
        await self._surroundings.find(routes)
        self._trials.check()  # a reboot undoes what nobody confirmed before it is in force again
        self._dispatch(self._policy_event())
        held = [
            Held(item.address, item.port, item.timeout, item.comment, book)
            for book in Book
            for item in self._loading.elements.list(book)
        ]
        self._dispatch(Started(tuple(held)))
        if self._engine.applied is None:
            raise HostError(f"the first ruleset was refused: {self._engine.table_problem}")
        await self._keeper.prove()

    def _prepare_next_start(self) -> None:
        """Have the next daemon find what waits for its verdict; enforcing does not depend on it.

        What the next boot is to find was written when the policy came into force.
        """
        keep(self._store, self._nflog)
        for queue in self._holder.queues if self._holder is not None else ():
            keep(self._store, queue)

    def _write_locked(self) -> None:
        plan = self._engine.applied
        audit = plan is not None and plan.refusal.audit
        try:
            write_locked(self._options.state_dir, locked_text(self._settings, audit=audit))
        except HostError as err:
            log(Level.WARNING, f"the next boot will compile the locked ruleset anew: {err.message}")

    def _announce(self) -> None:
        state = self._engine.state
        notify(f"READY=1\nSTATUS={state}")
        log(Level.INFO, f"ready: state={state}")

    async def _work(self, routes: Routes) -> None:
        """Run the workers until one is told to stop; a worker that fails ends the daemon."""
        try:
            await self._workers(routes)
        except* RamnetError as group:
            raise _first(group) from group

    async def _workers(self, routes: Routes) -> None:
        async with asyncio.TaskGroup() as group:
            workers = [
                group.create_task(self._names.run()),
                group.create_task(self._follow_policy()),
                group.create_task(self._follow_trial()),
                group.create_task(self._surroundings.follow(routes)),
                group.create_task(self._keeper.run()),
                group.create_task(self._follow_engines()),
                group.create_task(self._tick()),
                group.create_task(self._witness.run()),
                group.create_task(self._watch_threads()),
            ]
            await self._stop.wait()
            for worker in workers:
                worker.cancel()

    def _read_packets(self) -> None:
        for packet in self._nflog.read():
            if isinstance(packet, AnswerCopy):
                self._witness.recorder.heard(packet.packet)
            self._dispatch(packet)

    def _looked_up(self, event: Resolved | Unresolved) -> None:
        if isinstance(event, Unresolved):
            self._witness.recorder.failed(event.name, event.why)
        self._dispatch(event)

    def _policy_event(self) -> PolicyRead | PolicyRejected:
        try:
            policy = read_policy(self._options.policy)
        except (PolicyError, HostError) as err:
            self._witness.recorder.policy_rejected(self._options.policy, err.message)
            return PolicyRejected(err.message)
        allowed = allow_list(policy, load_catalog(), today())
        return PolicyRead(policy, policy_digest(policy), allowed)

    async def _follow_policy(self) -> None:
        file = FollowedFile(self._options.policy)
        while True:
            # A long policy takes seconds to read; DNS must be followed meanwhile. The first time:
            # it may have changed since the start.
            self._dispatch(await asyncio.to_thread(self._policy_event))
            plan = self._engine.applied  # what it warns of is ready before anybody asks
            await asyncio.to_thread(self._cautions.of, plan.policy if plan else None, today())
            while not file.changed():  # noqa: ASYNC110 - a file has no event to wait for
                await asyncio.sleep(POLL_SECONDS)

    async def _follow_trial(self) -> None:
        """Put the old policy back where nobody confirmed a new one; the change is then followed."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            await asyncio.to_thread(self._trials.check)

    def _tell_trial(self, what: str) -> None:
        log(Level.WARNING, f"{self._options.policy}: {what}")
        self._witness.recorder.policy_tried(self._options.policy, what)

    async def _follow_engines(self) -> None:
        """Look what the engines' own settings mean for enforcement."""
        while True:
            plan = self._engine.applied
            allowed = plan.allowed if plan is not None and plan.policy is not None else None
            mode = self._modes.scope
            self._findings = await asyncio.to_thread(
                engine_findings, self._config, allowed, mode=mode
            )
            await asyncio.sleep(ENGINES_EVERY_SECONDS)

    def _table_is_ours(self) -> bool:
        """Look whether our table is what was loaded; have it put back where it is not.

        Without it nothing is told apart either, but that is no reason to judge everybody.
        """
        with suppress(HostError):  # told by the next write that matters
            if self._loading.tampered:
                self._dispatch(TableLost("another program changed or removed our table"))
                return False
        return True

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._table_is_ours()
            with suppress(HostError):  # told by the next write that matters
                if self._loading.edge_tampered and not self._engine.edge.problem:
                    self._dispatch(EgressLost("its table is not what was loaded"))
            self._dispatch(Tick(today()))
            # Sent only where the answers of DNS are read as well: a hang is ended by who waits.
            if self._holder is None or self._holder.well:
                notify("WATCHDOG=1")

    async def _watch_threads(self) -> None:
        """End with the threads of mode hold, should one of them fail."""
        while self._holder is not None:
            if self._holder.failure is not None:
                raise HostError(f"the DNS threads ended: {self._holder.failure!r}")
            await asyncio.sleep(TICK_SECONDS)

    # For the record: called in the thread that writes it

    def _names_at(self, address: Addr, _port: int | None) -> list[tuple[str, NameFrom]]:
        with self._lock:
            found = list(self._engine.names_at(address, time.monotonic()))
        by = {Book.DENY: NameFrom.CATALOG}
        return [(name, by.get(book, NameFrom.LEASE)) for name, book in found]

    def _why(self, _who: TrafficClass | None, name: str, _at: Addr | None, port: int | None) -> str:
        plan = self._engine.applied
        assert plan is not None  # noqa: S101 - the record is written once rules are in force
        organization = plan.policy.organization if plan.policy else None
        return why_refused(plan.allowed, organization, HostName(name) if name else None, port or 0)

    # Control

    async def _answer(self, request: Any) -> dict[str, Any]:
        verbs: dict[str, Callable[[Any], dict[str, Any]]] = {
            "status": lambda _request: self._status(),
            "off": lambda _request: self._off(),
            "trial": self._trials.begin,
            "confirm": lambda _request: self._confirm(),
            "revert": lambda _request: self._trials.revert(),
        }
        if request["verb"] == "explain":
            return await explain_request(request, self._engine, self._loading, self._lock)
        verb = verbs.get(str(request["verb"]))
        if verb is None:
            raise ControlError(
                f"the daemon does not know '{request['verb']}'",
                hint=f"it is ramnet {__version__}; is the command line of another version?",
            )
        return verb(request)

    def _status(self) -> dict[str, Any]:
        plan = self._engine.applied
        facts = Facts(
            version=__version__,
            pid=os.getpid(),
            kernel=os.uname().release,
            missing=self._kernel.decision.missing,
            modes=self._modes,
            pinned=bool(self._config.dns.servers),
            servers=tuple(map(str, self._surroundings.servers)),
            policy_path=self._options.policy,
            counters=self._loading.elements.counters(),
            lost=self._nflog.lost,
            groups=self._scoping.groups,
            findings=self._findings,
            left_out=self._surroundings.devices.left_out,
            plugged=tuple(link.name for link in self._surroundings.devices.uplinked),
            hold=self._holder.report() if self._holder is not None else None,
            notice=self._witness.notice,
            record_problems=self._witness.warnings,
            cautions=self._cautions.of(plan.policy if plan else None, today()),
            trial=self._trials.plain,
            trial_problem=self._trials.problem,
        )
        return status_report(self._engine, facts)

    def _confirm(self) -> dict[str, Any]:
        said = self._trials.confirm()
        self._tell_trial("the policy on trial was confirmed")
        return said

    def _off(self) -> dict[str, Any]:
        self._stop.set()  # from here on nothing may bring the table back
        removed = remove_all(self._config.scope.cgroups)
        log(Level.WARNING, "off: the rules were removed by root; nothing is enforced any more")
        return {"removed": True, "problem": removed.problem or None}


def _first(group: BaseExceptionGroup[RamnetError]) -> RamnetError:
    """Return one error of a group: the command line tells one, the log has the rest."""
    found = group.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found


def log(level: Level, message: str) -> None:
    """Write one line to stderr; where journald reads it, with the priority of sd-daemon(3)."""
    priority = {Level.ERROR: "<3>", Level.WARNING: "<4>", Level.INFO: "<6>"}[level]
    prefix = priority if "JOURNAL_STREAM" in os.environ else ""
    for line in message.splitlines():
        sys.stderr.write(f"{prefix}ramnet: {line}\n")
    sys.stderr.flush()

"""The daemon: the only place where events meet commands."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any

from ramnet import __version__
from ramnet.core.catalog import load_catalog
from ramnet.core.compiler import ALLOW, NFLOG_GROUP, TABLE, Held, Marks, Resolver
from ramnet.core.config import Config
from ramnet.core.engine import Engine
from ramnet.core.events import (
    Command,
    Event,
    Level,
    LoadTable,
    Log,
    PolicyRead,
    PolicyRejected,
    ResolveNames,
    ResolversFound,
    Started,
    TableLoaded,
    TableLost,
    TableRefused,
    Tick,
    WriteLeases,
)
from ramnet.core.explain import explain, parse_target
from ramnet.core.kernel import Decision, Evidence, Feature, Release, decide, parse_release
from ramnet.core.modes import Modes, choose
from ramnet.core.policy import policy_digest
from ramnet.core.report import Facts, explain_report, status_report
from ramnet.core.ruleset import render_remove, render_replace, render_update
from ramnet.errors import ControlError, HostError, PolicyError
from ramnet.host import resolvconf
from ramnet.host.clock import today
from ramnet.host.control import ControlServer
from ramnet.host.elements import Element, Elements, Identity
from ramnet.host.files import POLL_SECONDS, FollowedFile, read_config, read_policy
from ramnet.host.nflog import NflogReader
from ramnet.host.nft import Nft
from ramnet.host.notify import notify
from ramnet.host.probe import probe
from ramnet.host.resolver import Resolver as NameResolver
from ramnet.host.routes import Routes

TICK_SECONDS = 1.0
# Routes change in bursts: an interface that comes up announces itself a dozen times.
SETTLE_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Options:
    """Where the daemon finds and keeps its things."""

    policy: str
    config: str
    runtime_dir: str


@dataclass(frozen=True, slots=True)
class Kernel:
    """What the probe found, and what follows."""

    release: Release | None
    evidence: dict[Feature, Evidence]
    decision: Decision


def look_at_kernel() -> Kernel:
    """Probe the running kernel. Raises ``HostError`` where nothing can be tried."""
    release = parse_release(os.uname().release)
    evidence = probe()
    return Kernel(release, evidence, decide(release, evidence))


def remove_table() -> bool:
    """Remove our table from this network namespace; tell whether there was one."""
    elements = Elements(TABLE)
    try:
        found = elements.identity() is not None
    finally:
        elements.close()
    Nft().apply(render_remove(TABLE))
    return found


def remove_table_without_daemon() -> bool:
    """Remove our table where no daemon runs; ``HostError`` where one does after all."""
    lock = NflogReader(NFLOG_GROUP)
    try:
        return remove_table()
    finally:
        lock.close()


class Daemon:
    """Owns the adapters and carries the engine's commands out, one after the other."""

    def __init__(self, options: Options) -> None:
        """Check everything that can refuse a start, before anything is changed.

        Raises ``UnsupportedKernel``, ``PolicyError`` (of the configuration) or ``HostError``.
        """
        self._options = options
        self._config: Config = read_config(options.config)
        self._kernel = look_at_kernel()
        self._modes: Modes = choose(self._config, self._kernel.decision)
        limits = self._config.limits
        # Binding the group is the lock: a second daemon of this namespace ends here.
        self._nflog = NflogReader(NFLOG_GROUP)
        self._nft = Nft()
        self._elements = Elements(TABLE)
        marks = Marks(self._config.mark.ct_dns, limits.leases_total)
        self._engine = Engine(load_catalog(), limits, marks, today())
        self._servers: tuple[resolvconf.Server, ...] = ()
        self._identity: Identity | None = None
        self._names = NameResolver(self._dispatch, concurrency=limits.resolve_concurrency)
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
                for command in self._engine.handle(self._events.popleft(), time.monotonic()):
                    self._execute(command)
        finally:
            self._working = False

    def _execute(self, command: Command) -> None:
        match command:
            case LoadTable():
                self._load(command)
            case WriteLeases():
                self._write(command)
            case ResolveNames():
                self._names.set_names(command.names)
            case Log():
                log(command.level, command.message)

    def _load(self, command: LoadTable) -> None:
        if command.before is None:
            text = render_replace(command.table)
        else:
            text = render_update(command.before, command.table, command.drop)
        try:
            self._nft.apply(text)
            self._identity = self._elements.identity()
        except HostError as err:
            self._events.appendleft(TableRefused(err.message))
        else:
            self._events.appendleft(TableLoaded())

    def _write(self, command: WriteLeases) -> None:
        add = [Element(item.address, item.port, item.seconds, item.name) for item in command.add]
        drop = [Element(address, port) for address, port in command.drop]
        try:
            self._elements.write(ALLOW, add, drop)
        except HostError as err:
            self._events.appendleft(TableLost(err.message))

    # Life

    async def run(self) -> None:
        """Enforce until told to stop. The rules stay; only ``off`` removes them.

        Raises ``HostError`` when the first ruleset cannot be loaded.
        """
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            routes = await stack.enter_async_context(Routes())
            stack.callback(self._nflog.close)
            stack.callback(self._elements.close)
            await self._first_ruleset(routes)
            control = ControlServer(
                self._options.runtime_dir,
                self._answer,
                root_only=frozenset({"off"}),
                clients=self._config.limits.control_clients,
            )
            await control.start()
            stack.push_async_callback(control.close)
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._stop.set)
            loop.add_reader(self._nflog.fileno(), self._read_packets)
            stack.callback(loop.remove_reader, self._nflog.fileno())
            self._announce()
            await self._work(routes)
        notify("STOPPING=1")

    async def _first_ruleset(self, routes: Routes) -> None:
        await self._find_resolvers(routes)
        self._dispatch(self._policy_event())
        held = [
            Held(item.address, item.port, item.timeout, item.comment)
            for item in self._elements.list(ALLOW)
        ]
        self._dispatch(Started(tuple(held)))
        if self._engine.applied is None:
            raise HostError(f"the first ruleset was refused: {self._engine.table_problem}")

    def _announce(self) -> None:
        state = self._engine.state
        notify(f"READY=1\nSTATUS={state}")
        log(Level.INFO, f"ready: state={state}")

    async def _work(self, routes: Routes) -> None:
        """Run the workers until one is told to stop; a worker that fails ends the daemon."""
        async with asyncio.TaskGroup() as group:
            workers = [
                group.create_task(self._names.run()),
                group.create_task(self._follow_policy()),
                group.create_task(self._follow_resolvers(routes)),
                group.create_task(self._tick()),
            ]
            await self._stop.wait()
            for worker in workers:
                worker.cancel()

    def _read_packets(self) -> None:
        for packet in self._nflog.read():
            self._dispatch(packet)

    def _policy_event(self) -> PolicyRead | PolicyRejected:
        try:
            policy = read_policy(self._options.policy)
        except (PolicyError, HostError) as err:
            return PolicyRejected(err.message)
        return PolicyRead(policy, policy_digest(policy))

    async def _follow_policy(self) -> None:
        file = FollowedFile(self._options.policy)
        while True:
            # A long policy takes seconds to read; DNS must be followed meanwhile. The first time:
            # it may have changed since the start.
            self._dispatch(await asyncio.to_thread(self._policy_event))
            while not file.changed():  # noqa: ASYNC110 - a file has no event to wait for
                await asyncio.sleep(POLL_SECONDS)

    async def _follow_resolvers(self, routes: Routes) -> None:
        files = [FollowedFile(resolvconf.PATH), FollowedFile(resolvconf.UPSTREAMS)]
        while True:
            await self._find_resolvers(routes)
            while True:
                await asyncio.sleep(POLL_SECONDS)
                moved = [file.changed() for file in files]  # every one is to be looked at
                if routes.changed.is_set() or any(moved):
                    break
            await asyncio.sleep(SETTLE_SECONDS)
            routes.changed.clear()

    async def _find_resolvers(self, routes: Routes) -> None:
        servers = self._config.dns.servers or resolvconf.read()
        self._servers = servers
        trusted = (*servers, *resolvconf.upstreams(servers))
        found: tuple[Resolver, ...] = await routes.resolvers(trusted)
        self._dispatch(ResolversFound(found))
        self._names.set_servers(servers, {item.address: item.interface for item in found})

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            with suppress(HostError):  # told by the next write that matters
                if self._elements.identity() != self._identity:
                    self._dispatch(TableLost("another program changed or removed our table"))
            self._dispatch(Tick(today()))

    # Control

    async def _answer(self, request: Any) -> dict[str, Any]:
        verbs: dict[str, Callable[[Any], dict[str, Any]]] = {
            "status": lambda _request: self._status(),
            "explain": self._explain,
            "off": lambda _request: self._off(),
        }
        verb = verbs.get(str(request["verb"]))
        if verb is None:
            raise ControlError(
                f"the daemon does not know '{request['verb']}'",
                hint=f"it is ramnet {__version__}; is the command line of another version?",
            )
        return verb(request)

    def _status(self) -> dict[str, Any]:
        facts = Facts(
            version=__version__,
            pid=os.getpid(),
            kernel=os.uname().release,
            missing=self._kernel.decision.missing,
            modes=self._modes,
            pinned=bool(self._config.dns.servers),
            servers=tuple(map(str, self._servers)),
            policy_path=self._options.policy,
            counters=self._elements.counters(),
            lost=self._nflog.lost,
        )
        return status_report(self._engine, facts)

    def _explain(self, request: Any) -> dict[str, Any]:
        plan = self._engine.applied
        if plan is None:
            raise ControlError("the daemon is still starting", hint="try again")
        target = parse_target(str(request.get("target", "")))
        now = time.monotonic()
        found = explain(target, plan.allowed, self._engine.leases, now)
        return explain_report(found, source="daemon")

    def _off(self) -> dict[str, Any]:
        remove_table()
        log(Level.WARNING, "off: the rules were removed by root; nothing is enforced any more")
        self._stop.set()
        return {"removed": True}


def log(level: Level, message: str) -> None:
    """Write one line to stderr; where journald reads it, with the priority of sd-daemon(3)."""
    priority = {Level.ERROR: "<3>", Level.WARNING: "<4>", Level.INFO: "<6>"}[level]
    prefix = priority if "JOURNAL_STREAM" in os.environ else ""
    for line in message.splitlines():
        sys.stderr.write(f"{prefix}ramnet: {line}\n")
    sys.stderr.flush()

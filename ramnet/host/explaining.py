"""``explain`` as the daemon answers it: what is in force, and what the kernel really holds."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

from ramnet.core.allow import ANY_PORT, Addr
from ramnet.core.catalog import load_catalog
from ramnet.core.engine import Engine
from ramnet.core.explain import explain, parse_target
from ramnet.core.explainpolicy import Rulebook, background
from ramnet.core.explainreport import why_report
from ramnet.core.explainrule import Holds, InSet, told_by_table
from ramnet.core.explainwhy import InForce, known_leases, names_of, why
from ramnet.core.plan import Plan
from ramnet.core.ruleset import Table
from ramnet.core.terms import Book, TrafficClass
from ramnet.errors import ControlError
from ramnet.host.clock import today
from ramnet.host.elements import Elements
from ramnet.host.loading import Loading


async def explain_request(
    request: Any, engine: Engine, loading: Loading, lock: threading.Lock
) -> dict[str, Any]:
    """Answer a request for ``target``, for the ``class`` that is asked for (engines).

    ``lock`` guards the leases. Raises ``NameFault``, ``ReferenceFault``, ``ControlError``, or
    ``HostError`` where the kernel cannot be asked.
    """
    target = parse_target(str(request.get("target", "")))
    who = _class_of(request.get("class", str(TrafficClass.ENGINE)))
    plan, table = engine.applied, engine.table
    if plan is None or table is None:
        raise ControlError("the daemon is still starting", hint="try again")
    now = time.monotonic()
    books = {
        Book.ALLOW: engine.learner.leases,
        Book.HEARD: engine.heard.leases,
        Book.DENY: engine.denied.leases,
    }
    with lock:  # looking a lease up forgets those that have run out
        found = explain(target, plan.allowed, books[Book.ALLOW], now)
        known = known_leases(target, books, now)
    book = Rulebook(plan.policy, plan.allowed, load_catalog(), today())
    # A long policy takes a second to look through; DNS must be followed meanwhile.
    behind = await asyncio.to_thread(background, target, names_of(known), book)
    if engine.table is not table:
        raise ControlError("the policy has just changed", hint="ask again")
    notes = tuple(_notes(engine, plan, loading))
    in_force = InForce(table, asks(loading.elements, table), known, plan.judged, notes)
    said = why(found, who, plan.classes, book, in_force, behind)
    return why_report(said, plan.policy, source="daemon")


def _class_of(word: object) -> TrafficClass:
    try:
        return TrafficClass(str(word))
    except ValueError as err:
        known = ", ".join(TrafficClass)
        raise ControlError(f"there is no class {str(word)[:20]!r}", hint=f"known: {known}") from err


def asks(elements: Elements, table: Table) -> Holds:
    """Ask the kernel what a set of a table holds, as far as it was not compiled into the rules."""
    derived = told_by_table(table)
    live = {item.name for item in table.sets if item.learned or "interval" in item.flags}

    def holds(name: str, address: Addr, port: int | None) -> InSet | None:
        told = derived(name, address, port)
        if name not in live:
            return told
        found = elements.find(name, address, ANY_PORT if port is None else port)
        if found is None:
            return None
        if told is not None:  # a network, of which the kernel tells only where it begins
            return told
        key = str(found.address) if port is None else f"{found.address} . {found.port}"
        return InSet(key, found.timeout or None, found.comment)

    return holds


def _notes(engine: Engine, plan: Plan, loading: Loading) -> Iterator[str]:
    """Tell what is to be known beside the verdict."""
    if plan.policy is None:
        yield f"there is no valid policy: {plan.without_policy}"
    if engine.policy_problem:
        yield "the policy file was rejected; this is by what was in force before"
    if engine.scope_problem:
        yield f"engines are not told apart now: {engine.scope_problem}"
    if engine.table_problem:
        yield f"the kernel refused a newer ruleset: {engine.table_problem}"
    if engine.lost or loading.tampered:
        yield "another program changed or removed the rules; they are being put back"

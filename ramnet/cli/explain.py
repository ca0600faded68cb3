"""``ramnet explain`` (alias ``why``): allowed or not, and why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from ramnet.cli.exits import (
    DENIED,
    OK,
    json_option,
    policy_option,
    print_json,
    runtime_dir_option,
)
from ramnet.core.allow import allow_list
from ramnet.core.catalog import load_catalog
from ramnet.core.enginefacts import printable
from ramnet.core.explain import parse_target
from ramnet.core.explainpolicy import Rulebook
from ramnet.core.explainreport import why_report
from ramnet.core.explainwhy import by_policy
from ramnet.core.policy import ClassMode
from ramnet.core.scope import Classes
from ramnet.core.terms import TrafficClass
from ramnet.host.clock import today
from ramnet.host.control import ask
from ramnet.host.files import read_policy

# A name at a CDN leads to hundreds of addresses; a person reads a few, --json has more of them.
SHOWN = 8


@click.command()
@click.argument("target", metavar="REF|HOST|IP")
@click.option(
    "--class",
    "traffic",
    type=click.Choice([str(item) for item in TrafficClass]),
    help="Who dials it: judge for this class only. Otherwise the verdict is that for engines.",
)
@policy_option
@json_option
@runtime_dir_option
def explain(
    target: str, traffic: str | None, policy_path: str, as_json: bool, runtime_dir: str
) -> int:
    """Explain whether an image, host or address is allowed, and why.

    The whole chain: the policy's entry, what the catalogue knows, the names and DNS leases, the
    elements in the kernel, and the rule that decides. Asks the daemon; without one, judges by the
    policy file alone and says so. What is not refused is allowed, in audit as well, or where only
    known registries are refused; the reason tells. Exit code: 0 allowed, 1 denied.
    """
    parse_target(target)  # a malformed target is told without a daemon
    who = TrafficClass(traffic or TrafficClass.ENGINE)
    # A daemon of an older version knows no classes, and need not be told of the usual one.
    asked: dict[str, Any] = {"target": target} | ({"class": traffic} if traffic else {})
    try:
        report = ask(runtime_dir, "explain", **asked)
    except (FileNotFoundError, ConnectionRefusedError):
        report = _by_policy(target, who, policy_path)
    if as_json:
        print_json(report)
    else:
        _show(report, traffic)
    return OK if report["allowed"] else DENIED


def _by_policy(target: str, who: TrafficClass, policy_path: str) -> dict[str, Any]:
    policy, catalog, day = read_policy(policy_path), load_catalog(), today()
    book = Rulebook(policy, allow_list(policy, catalog, day), catalog, day)
    wanted = policy.enforcement
    # How programs of the host are judged is not the policy's: it is catalog unless set otherwise.
    classes = Classes(wanted.engine, wanted.containers, ClassMode.CATALOG)
    return why_report(by_policy(parse_target(target), who, classes, book), policy, source="policy")


def _show(report: dict[str, Any], traffic: str | None) -> None:
    verdict = "allowed" if report["allowed"] else "denied"
    to = f" to {traffic}" if traffic else ""
    click.echo(f"{printable(report['target'])}: {verdict}{to}")
    for label, text in _lines(report, traffic):
        click.echo(f"  {label:<9} {printable(text)}")


def _lines(report: dict[str, Any], traffic: str | None) -> Iterator[tuple[str, str]]:
    """Yield the lines of a report; of a daemon of another version, as far as it tells."""
    yield "host", f"{report['host']} port {report['port']}"
    yield "reason", report["reason"]
    if report["registry"]:
        yield "registry", report["registry"]
    yield from _some("policy", map(_entry, report.get("entries", ())))
    for owner in report.get("catalogue", ()):
        yield "catalogue", _owner(owner)
        if owner["note"]:
            yield "", owner["note"]
    yield from _companions(report)
    elements = report.get("elements", ())
    if elements:
        yield from _some("lease", map(_element, elements))
    else:
        yield from _some("lease", map(_lease, report["leases"]))
    for who, judged in report.get("classes", {}).items():
        if traffic in (None, who):
            yield from _judged(who, judged)
    for note in report.get("notes", ()):
        yield "note", note
    if report.get("advice"):
        yield "to list" if report["allowed"] else "to allow", report["advice"]["command"]
    if report["source"] == "policy":
        yield "source", "the policy file alone: no daemon is running"


def _some(label: str, texts: Iterator[str]) -> Iterator[tuple[str, str]]:
    every = list(texts)
    yield from ((label, text) for text in every[:SHOWN])
    if len(every) > SHOWN:
        yield label, f"and {len(every) - SHOWN} more (--json)"


def _entry(entry: dict[str, Any]) -> str:
    nickname = f" ({entry['nickname']})" if entry["nickname"] else ""
    ports = entry["ports"]
    on = "any port" if ports == "any" else f"port {', '.join(map(str, ports))}"
    text = f"{entry['table']} {entry['number']}: {entry['address']}{nickname}, {on}"
    if entry["pattern"] != entry["address"]:
        text += f", by {entry['pattern']}"
    if entry["standing"] == "expired":
        return f"{text}; expired, {entry['expires']} was its last day"
    if entry["standing"] == "other-port":
        text += "; not this port"
    if entry["expires"]:
        text += f"; until {entry['expires']}"
    return f"{text}; {entry['admits']}" if entry["admits"] else text


def _owner(owner: dict[str, Any]) -> str:
    text = f"{owner['role']} host of {owner['registry']} ({owner['title']})"
    if owner["region"]:
        text += f", in region {owner['region']}"
    if owner["optional"]:
        text += ", not verified"
    return f"{text}; its addresses may serve others too" if owner["shared"] else text


def _companions(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what a pull needs besides; a registry that is one host needs nothing."""
    hosts: dict[str, list[str]] = {}
    for item in report.get("companions", ()):
        unwanted = item["optional"] and not item["allowed"]
        if item["pattern"] != report["host"] and not unwanted:
            kind = f"{'allowed' if item['allowed'] else 'denied'}, {item['role']}"
            hosts.setdefault(kind, []).append(item["pattern"])
    for kind, patterns in hosts.items():
        yield "hosts", f"{kind}: {_several(patterns)}"


def _several(texts: list[str], shown: int = SHOWN) -> str:
    more = f" and {len(texts) - shown} more" if len(texts) > shown else ""
    return f"{', '.join(texts[:shown])}{more}"


def _lease(lease: dict[str, Any]) -> str:
    port = f"port {lease['port']}" if lease["port"] else "any port"
    names = ", ".join(lease["names"][:SHOWN]) or "a name that has run out"
    return f"{lease['address']} {port}, {lease['seconds']} s left, from {names}"


def _element(element: dict[str, Any]) -> str:
    if not element["held"]:
        return f"{_lease(element)}; NOT in set {element['set']} of the kernel"
    seconds = element["kernel_seconds"]
    left = f", {seconds} s" if seconds is not None else ""
    return f"{_lease(element)}; in set {element['set']} of the kernel{left}"


def _judged(who: str, judged: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "class", f"{who} ({judged['mode']}): {judged['verdict']}: {judged['because']}"
    rules: dict[str, list[str]] = {}
    for item in judged["decisions"]:
        rules.setdefault(_rule(item), []).append(item["address"])
    for text, addresses in rules.items():
        yield "rule", text
        yield "", f"for {_several(addresses, 4)}"


def _rule(item: dict[str, Any]) -> str:
    if item["chain"] is None:
        return f"{item['verdict']}: no rule concerns it"
    comment = f" # {item['comment']}" if item["comment"] else ""
    late = "; a first packet is dropped, its retransmission refused" if item["delayed"] else ""
    return f"{item['verdict']} by chain {item['chain']}: {item['rule']}{comment}{late}"

"""Which rule of our table decides the first packet of a connection, and by which element.

The table is followed as the kernel would, from where a class's packets are judged, for a TCP SYN
without IPv6 extension headers. Rules are in few forms; of one in another form the verdict is
unknown, never a guess. What a set holds is asked of whoever can tell, which is the kernel.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import ip_network
from typing import Final

from ramnet.core.allow import Addr
from ramnet.core.ruleset import Rule, Set, Table
from ramnet.core.terms import ENGINE, OUTPUT, TrafficClass


class Verdict(StrEnum):
    """What becomes of a connection."""

    ACCEPTED = "accepted"  #: it passes, by a rule for what the policy allows
    REFUSED = "refused"
    PASSES = "passes"  #: nothing judges it, or nothing in the catalogue speaks against it
    RECORDED = "recorded"  #: in audit: it would be refused, is recorded and passes
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class InSet:
    """What a set holds for an address: ``seconds`` until it runs out, None where it stays."""

    element: str
    seconds: float | None = None
    comment: str = ""


# (name of a set, address, port or None where the key has none) -> what the set holds of it.
Holds = Callable[[str, Addr, int | None], InSet | None]


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a connection to one address, and where the table decides that.

    ``chain``, ``rule`` and ``comment`` are empty where no rule decides. ``found`` is what the rule
    found in set ``name``. ``delayed``: a first packet may be dropped, its retransmission is judged.
    """

    address: Addr
    verdict: Verdict
    chain: str = ""
    rule: str = ""
    comment: str = ""
    name: str = ""
    found: InSet | None = None
    delayed: bool = False


def enters(table: Table, who: TrafficClass) -> str:
    """Return the chain that judges what a class begins; empty where there is none."""
    chains = {chain.name: chain for chain in table.chains}
    names = {
        TrafficClass.ENGINE: (ENGINE,),
        TrafficClass.HOST: ("host",),
        TrafficClass.CONTAINERS: ("contained", f"catalog_{TrafficClass.CONTAINERS}"),
    }[who]
    if who is TrafficClass.HOST and any(rule.text == _TO_ENGINE for rule in chains[OUTPUT].rules):
        names = (ENGINE,)  # nobody is told apart
    return next((name for name in names if name in chains), "")


def decide(table: Table, who: TrafficClass, address: Addr, port: int, holds: Holds) -> Decision:
    """Say what the table does with a TCP connection that a class begins."""
    chains = {chain.name: chain.rules for chain in table.chains}
    name = enters(table, who)
    found = Decision(address, Verdict.PASSES)
    while name:
        here, name = name, ""
        for rule in chains[here]:
            says = _judge(rule, address, port, holds)
            if says is None:
                continue
            text, item, where = says
            if text == _FIRST_SYN:
                found = replace(found, delayed=True)
                continue
            if text.startswith(_GOTO) and not text.startswith(_REFUSE):
                name = text.removeprefix(_GOTO)
                break
            # What the rule before said of a late answer is no matter once it is allowed.
            verdict = _verdict(text, by_policy=item is not None)
            if verdict is Verdict.REFUSED and _only_records(chains, text):
                verdict = Verdict.RECORDED
            late = found.delayed and verdict is Verdict.REFUSED
            return Decision(address, verdict, here, rule.text, rule.comment, where, item, late)
    return found


_TO_ENGINE: Final = f"goto {ENGINE}"
_GOTO: Final = "goto "
_REFUSE: Final = "goto refuse_"
_FIRST_SYN: Final = "first SYN"

# The matches of a rule, each at the start of what is left of its text.
_SYN: Final = re.compile(r"tcp flags & \(fin\|syn\|rst\|ack\) (==|!=) syn ")
_PAIR: Final = re.compile(r"(ip6?) daddr \. (?:tcp dport|th dport) @(\S+) ")
_ADDRESS: Final = re.compile(r"(ip6?) daddr @(\S+) ")
_RESOLVER: Final = re.compile(r"(ip6?) daddr \. oif @(\S+) ")
_PORT: Final = re.compile(r"tcp dport (\d+) ")
_PORTS: Final = re.compile(r"tcp dport != @(\S+) ")
_PROTOCOL: Final = re.compile(r"meta l4proto (!= )?(\w+|\{[\w, ]+\}) ")
# Of other protocols, of extension headers, of one address for the probe, within one bridge.
_OTHERS: Final = re.compile(r"(udp|ip6 nexthdr|ip daddr 127|iif \. oif @bridges)\b")
_UNSEEN: Final = re.compile(r"ip6? saddr \. ip6? daddr \. tcp sport \. tcp dport != @\S+ add ")
_LAST: Final = re.compile(r"(?:ct mark set .*)?(accept|drop|goto \w+)")

_Says = tuple[str, InSet | None, str]


def _judge(rule: Rule, address: Addr, port: int, holds: Holds) -> _Says | None:
    """Return what a rule does with the connection, what it found and where; None if no match."""
    text = rule.text
    item: InSet | None = None
    where = ""
    ip = "ip6" if address.version == 6 else "ip"  # noqa: PLR2004 - the version of IP
    while True:
        if found := _SYN.match(text):
            fits = found[1] == "=="
        elif found := _PAIR.match(text) or _ADDRESS.match(text) or _RESOLVER.match(text):
            where = found[2]
            key = port if found.re is _PAIR else None
            item = holds(where, address, key) if found[1] == ip else None
            fits = item is not None
        elif found := _PORT.match(text):
            fits = int(found[1]) == port
        elif found := _PORTS.match(text):
            fits = holds(found[1], address, port) is None
        elif found := _PROTOCOL.match(text):
            fits = ("tcp" in re.findall(r"\w+", found[2])) is (found[1] is None)
        elif _OTHERS.match(text):
            return None
        elif _UNSEEN.match(text):
            return (_FIRST_SYN, None, "") if text.startswith(f"{ip} ") else None
        else:
            break
        if not fits:
            return None
        text = text[found.end() :]
    last = _LAST.fullmatch(text)
    return (last[1] if last else "", item, where)


def _verdict(text: str, *, by_policy: bool) -> Verdict:
    if text == "accept":
        return Verdict.ACCEPTED if by_policy else Verdict.PASSES
    refused = text == "drop" or text.startswith(_REFUSE)
    return Verdict.REFUSED if refused else Verdict.UNKNOWN


def _only_records(chains: dict[str, tuple[Rule, ...]], text: str) -> bool:
    """Whether the chain that refuses lets everything pass in the end, as it does in audit."""
    rules = chains.get(text.removeprefix(_GOTO), ())
    return bool(rules) and rules[-1].text == "accept"


def told_by_table(table: Table) -> Holds:
    """Ask the table itself, as it was compiled: for sets that nothing is learned into."""
    sets = {item.name: item for item in table.sets}

    def holds(name: str, address: Addr, port: int | None) -> InSet | None:
        item = sets.get(name)
        for element in item.elements if item is not None else ():
            key = element.split(" timeout ")[0]
            if item is not None and _holds(item, key, address, port):
                return InSet(key)
        return None

    return holds


def _holds(item: Set, key: str, address: Addr, port: int | None) -> bool:
    if item.kind == "inet_service":
        return key == str(port)
    if "interval" in item.flags:
        return address in ip_network(key)
    if item.kind.endswith("iface_index"):
        return key.partition(" . ")[0] == str(address)
    return key == (str(address) if port is None else f"{address} . {port}")

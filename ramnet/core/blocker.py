"""Blocked answers: what ``catalog`` mode says to whoever asks for a refused registry.

NXDOMAIN instead of the address, for names that the catalogue marks as a registry's API and nothing
else, and that the policy does not allow. Best effort by nature: ``--dns``, DNS over TCP or HTTPS
and bare addresses pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from ramnet.core.allow import AllowList, Registries
from ramnet.core.catalog import Catalog
from ramnet.core.dns import blocked_answer, parse_answer_head
from ramnet.core.names import HostName
from ramnet.core.packet import Datagram, parse_packet, with_payload
from ramnet.errors import WireError

# Names judged once; when full, all are forgotten.
MAX_NAMES = 16_384


@dataclass(frozen=True, slots=True)
class _Rule:
    allowed: AllowList
    text: str
    judged: dict[HostName, bool]


class Blocker:
    """Judges the answers that containers are to hear, and programs that are no engines.

    ``own`` are the local ports from which the daemon asks: its answers stay as they are.
    """

    def __init__(self, catalog: Catalog) -> None:
        self.blocked = 0
        self.own: set[int] = set()
        self._catalog = catalog
        # One value, exchanged whole: packets are judged in another thread than policies change in.
        self._rule: _Rule | None = None

    def use(self, allowed: AllowList | None, organization: str) -> None:
        """Judge by this policy from now on; None blocks nothing."""
        text = f"registry not allowed by {organization}"
        self._rule = None if allowed is None else _Rule(allowed, text, {})

    def blocks(self, packet: bytes) -> HostName | None:
        """Return the name that a packet answers for, where nobody is to hear that answer."""
        rule = self._rule
        if rule is None:
            return None
        parsed = parse_packet(packet)
        if not isinstance(parsed, Datagram) or parsed.flow.target_port in self.own:
            return None
        try:
            name = parse_answer_head(parsed.payload).question.name
        except WireError:
            return None
        return name if name is not None and self._blocks(name, rule) else None

    def changed(self, packet: bytes) -> bytes | None:
        """Return what is to pass in the place of a packet that is blocked; None to let it pass."""
        rule, parsed = self._rule, parse_packet(packet)
        if rule is None or not isinstance(parsed, Datagram):
            return None
        try:
            answer = blocked_answer(parsed.payload, rule.text)
        except WireError:
            return None
        self.blocked += 1
        return with_payload(packet, answer)

    def _blocks(self, name: HostName, rule: _Rule) -> bool:
        judged = rule.judged
        verdict = judged.get(name)
        if verdict is None:
            verdict = (
                not Registries(rule.allowed).ports_of(name)
                and self._catalog.registry_of(name) is not None
            )
            if len(judged) >= MAX_NAMES:
                judged.clear()
            judged[name] = verdict
        return verdict

"""Blocked answers: what ``catalog`` mode says to a container that asks for a refused registry.

NXDOMAIN instead of the address, for names that the catalogue marks as a registry's API and nothing
else, and that the policy does not allow. Best effort by nature: ``--dns``, DNS over TCP or HTTPS
and bare addresses pass.
"""

from __future__ import annotations

from ramnet.core.allow import AllowList
from ramnet.core.catalog import Catalog
from ramnet.core.dns import blocked_answer, parse_answer_head
from ramnet.core.names import HostName
from ramnet.core.packet import Datagram, parse_packet, with_payload
from ramnet.errors import WireError

# Names judged once; when full, all are forgotten.
MAX_NAMES = 16_384


class Blocker:
    """Judges answers that are forwarded to containers."""

    def __init__(self, catalog: Catalog) -> None:
        self.blocked = 0
        self._catalog = catalog
        self._allowed: AllowList | None = None
        self._text = ""
        self._judged: dict[HostName, bool] = {}

    def use(self, allowed: AllowList | None, organization: str) -> None:
        """Judge by this policy from now on; None blocks nothing."""
        self._allowed = allowed
        self._text = f"registry not allowed by {organization}"
        self._judged = {}

    def packet(self, packet: bytes) -> bytes | None:
        """Return the packet that is to pass in the place of ``packet``; None to leave it alone."""
        if self._allowed is None:
            return None
        parsed = parse_packet(packet)
        if not isinstance(parsed, Datagram):
            return None
        try:
            name = parse_answer_head(parsed.payload).question.name
            if name is None or not self._blocks(name, self._allowed):
                return None
            answer = blocked_answer(parsed.payload, self._text)
        except WireError:
            return None
        self.blocked += 1
        return with_payload(packet, answer)

    def _blocks(self, name: HostName, allowed: AllowList) -> bool:
        judged = self._judged
        verdict = judged.get(name)
        if verdict is None:
            verdict = not allowed.ports_of(name) and self._catalog.registry_of(name) is not None
            if len(judged) >= MAX_NAMES:
                judged.clear()
            judged[name] = verdict
        return verdict

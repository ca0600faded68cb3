"""The guard: an allowed address is not an allowed registry.

Registries share addresses with others (CDNs, object stores), so of a connection to a learned
address the name is judged as well that its client opens it with. ``Guard`` gets every packet of the
client until the connection is judged, the SYN first, and says what becomes of each; ``why_refused``
is the judgement. No I/O and no clock: ``now`` is in seconds of CLOCK_MONOTONIC.

Only octets that follow on what is known are read: the kernel of an honest client sends them in
order, and sends again what does not pass. So nothing has to be kept for a gap that may close.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from ramnet.core.allow import AllowList
from ramnet.core.names import HostName
from ramnet.core.opening import Opener, Opening, Protocol, Waiting
from ramnet.core.packet import TCP_RST, TCP_SYN, Flow, Segment, parse_packet

#: Connections that have begun and are not judged yet, or were a moment ago; 1 kB each without
#: what they sent. The longest untouched one goes first, and is refused when it says more.
MAX_CONNECTIONS: Final = 16_384
#: Octets of all of them that wait for more. A usual hello comes at once, and leaves nothing.
MAX_OCTETS: Final = 32 * 1024 * 1024
#: Packets of one connection that wait for its next: a head of HTTP comes in one or two.
MAX_HELD: Final = 16
#: Seconds after which a connection is forgotten that says nothing; clients keep one in a pool for a
#: minute or two, and the kernel keeps a connection that is not answered for two.
IDLE_SECONDS: Final = 900.0
#: The same for one that is judged: what was in the queue behind the last packet is through by then.
JUDGED_SECONDS: Final = 30.0

_WRAP: Final = 1 << 32


class Action(Enum):
    """What becomes of a packet.

    ``VERIFY``: it passes, and the kernel lets the rest of its connection pass without asking.
    ``REFUSE``: its connection is reset.
    """

    ACCEPT = "accept"
    VERIFY = "verify"
    REFUSE = "refuse"
    DROP = "drop"


#: What becomes of packets, by their numbers in the queue.
Actions = list[tuple[int, Action]]
#: Judges an opening; returns why it is refused, empty where it is not. The last argument tells
#: whether it is forwarded.
Judge = Callable[[Flow, Opening, bool], str]


@dataclass(slots=True)
class _Connection:
    """One client's side. ``first`` is the sequence number of its first octet."""

    first: int
    touched: float
    opener: Opener = field(default_factory=Opener)
    held: list[int] = field(default_factory=list)
    passes: bool = False
    action: Action | None = None


class Guard:
    """Follows connections from their SYN to the judgement."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._connections: OrderedDict[Flow, _Connection] = OrderedDict()
        self._octets = 0
        self.verified = 0
        self.refused = 0
        self.forgotten = 0

    def __len__(self) -> int:
        return len(self._connections)

    def packet(self, ident: int, packet: bytes, now: float, *, forwarded: bool) -> Actions:
        """Take a client's packet in: what becomes of it, and of those that waited for it.

        What is neither returned here nor by ``expire`` waits.
        """
        segment = parse_packet(packet)
        if not isinstance(segment, Segment):
            return [(ident, Action.DROP)]
        if segment.flags & TCP_SYN:
            return self._begin(ident, segment, now)
        connection = self._connections.get(segment.flow)
        if connection is None:
            return self._unknown(ident, segment, forwarded=forwarded)
        connection.touched = now
        self._connections.move_to_end(segment.flow)
        if connection.action is not None:
            return [(ident, connection.action)]
        if segment.flags & TCP_RST:
            return [*self._forget(segment.flow), (ident, Action.ACCEPT)]
        return self._said(ident, segment, connection, forwarded=forwarded)

    def expire(self, now: float) -> Actions:
        """Forget connections that nobody uses any more; to be called every few seconds."""
        due = [
            flow
            for flow, one in self._connections.items()
            if now - one.touched > (JUDGED_SECONDS if one.action else IDLE_SECONDS)
        ]
        return [done for flow in due for done in self._forget(flow)]

    def _begin(self, ident: int, segment: Segment, now: float) -> Actions:
        """Note where a connection begins.

        A SYN with data (TCP Fast Open, RFC 7413) would open the connection before it is judged:
        dropped, it is sent again without.
        """
        if segment.payload:
            return [(ident, Action.DROP)]
        flow, actions = segment.flow, []
        known = self._connections.get(flow)
        if known is None or known.first != segment.sequence:
            actions = self._forget(flow) if known is not None else []
            self._connections[flow] = _Connection(segment.sequence, now)
            while len(self._connections) > MAX_CONNECTIONS:
                actions += self._forget_oldest()
        return [*actions, (ident, Action.ACCEPT)]

    def _unknown(self, ident: int, segment: Segment, *, forwarded: bool) -> Actions:
        """Refuse who says something on a connection whose beginning nobody saw."""
        if not segment.payload:
            return [(ident, Action.ACCEPT)]
        late = Opening(Protocol.UNKNOWN, problem="it began before ramnet did")
        return [(ident, self._judged(segment.flow, late, forwarded=forwarded))]

    def _said(
        self, ident: int, segment: Segment, connection: _Connection, *, forwarded: bool
    ) -> Actions:
        """Take in what a client says on a connection that is not judged yet."""
        if not segment.payload:
            return [(ident, Action.ACCEPT)]
        opener = connection.opener
        known = len(opener.data)
        start = (segment.sequence - connection.first) % _WRAP
        if start > known:  # behind a gap, or before the first octet
            return [(ident, Action.DROP)]
        again, new = segment.payload[: known - start], segment.payload[known - start :]
        said: Opening | Waiting
        if opener.data[start : start + len(again)] != again:
            said = Opening(Protocol.UNKNOWN, problem="octets that are sent again are not the same")
        elif not new:  # what passed did not arrive; what waits is still there
            return [(ident, Action.ACCEPT if connection.passes else Action.DROP)]
        else:
            said = opener.feed(new)
            self._octets += len(new)
        if isinstance(said, Waiting):
            actions = _wait(ident, connection, said)
            while self._octets > MAX_OCTETS:
                actions += self._forget_oldest()
            return actions
        action = self._judged(segment.flow, said, forwarded=forwarded)
        # One packet tells of a refusal; what else is on its way is nobody's.
        connection.action = Action.DROP if action is Action.REFUSE else action
        waited = _all(connection, connection.action)
        self._empty(connection)
        return [*waited, (ident, action)]

    def _judged(self, flow: Flow, opening: Opening, *, forwarded: bool) -> Action:
        if self._judge(flow, opening, forwarded):
            self.refused += 1
            return Action.REFUSE
        self.verified += 1
        return Action.VERIFY

    def _forget_oldest(self) -> Actions:
        self.forgotten += 1
        return self._forget(next(iter(self._connections)))

    def _forget(self, flow: Flow) -> Actions:
        connection = self._connections.pop(flow)
        self._empty(connection)
        return _all(connection, Action.DROP)

    def _empty(self, connection: _Connection) -> None:
        self._octets -= len(connection.opener.data)
        connection.opener = Opener()


def _wait(ident: int, connection: _Connection, how: Waiting) -> Actions:
    """Let a packet pass with those before it, or wait; too many to wait are sent again later."""
    connection.passes = how is Waiting.PASS
    if connection.passes:
        return [*_all(connection, Action.ACCEPT), (ident, Action.ACCEPT)]
    if len(connection.held) < MAX_HELD:
        connection.held.append(ident)
        return []
    return [(ident, Action.DROP)]


def _all(connection: _Connection, action: Action) -> Actions:
    """Say what becomes of the packets that wait."""
    found = [(ident, action) for ident in connection.held]
    connection.held.clear()
    return found


_NAMELESS: Final = {
    Protocol.TLS: "it has no server name (SNI)",
    Protocol.HTTP: "it has no host",
    Protocol.HTTP2: "HTTP/2 without TLS does not begin with a name",
    Protocol.UNKNOWN: "it is neither TLS nor HTTP: there is no name to judge it by",
}


def why_refused(
    opening: Opening,
    address: str,
    port: int,
    led: Collection[HostName],
    allowed: AllowList,
    *,
    forwarded: bool,
) -> str:
    """Judge a connection to a learned address; empty where it may go on.

    ``led`` are the names that led there on this port and that the class may use. The name must be
    one of them. A destination need not say any: it may speak whatever it does, but no name that is
    not its own either. Containers have none.
    """
    host = opening.host
    if opening.problem:
        return f"what it opens with is not accepted: {opening.problem}"
    if opening.ech:
        return "its server name is encrypted (ECH)"
    if opening.relayed:
        return f"a proxy is asked for {host}, and {address} is not declared as one"
    if host is None:
        free = not forwarded and any(allowed.is_destination(name, port) for name in led)
        return "" if free and opening.protocol is not Protocol.TLS else _NAMELESS[opening.protocol]
    known = isinstance(host, str) and port in allowed.ports_of(host)
    why = f"it is for {host}, which the policy does not allow"
    if known:
        why = f"it is for {host}, to which no answer of a trusted resolver led at {address}"
    return "" if host in led else why

"""Requests of a walk: each judged before it is sent, and followed where it redirects.

What authorizes goes to the one server that it is for, and to no other that this one names.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from ramnet.core.challenge import Credentials
from ramnet.core.enginefacts import printable
from ramnet.core.hops import Hop, Judge, Role, Verdict
from ramnet.core.urls import Url, parse_url
from ramnet.errors import WireError
from ramnet.host.dial import Answer, DialFailed, Trust, ask, lookup

# net/http of Go follows as many.
MAX_REDIRECTS: Final = 10

_OK, UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND = 200, 401, 403, 404
#: What a login may help against.
LOGIN: Final = frozenset({UNAUTHORIZED, _FORBIDDEN})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_MEANING: Final = {
    UNAUTHORIZED: "it wants another login",
    _FORBIDDEN: "it refuses",
    _NOT_FOUND: "there is no such image",
    429: "too many requests, try later",
}


@dataclass(frozen=True, slots=True)
class Arrived:
    """The end of a chain of redirects: its last hop, which is not told yet, and the answer."""

    hop: Hop
    answer: Answer

    @property
    def ok(self) -> bool:
        """Whether it is what was asked for."""
        return self.answer.status == _OK


Steps = Generator[Hop, None, Arrived | None]


@dataclass(slots=True)
class Client:
    """Asks for one walk. ``authorization`` is for the server of ``origin`` (``Url.origin``)."""

    judge: Judge
    trust: Trust
    origin: tuple[object, ...] = ()
    authorization: str = ""

    def follow(
        self,
        role: Role,
        url: Url,
        headers: Mapping[str, str],
        limit: int,
        body: bytes | None = None,
    ) -> Steps:
        """Ask, and follow redirects: hops on the way are told, the last one is returned."""
        hop = Hop(role, url, self._verdict(url), purpose=role)
        seen = {url}
        while True:
            hop, answer = self._ask(hop, headers, limit, body)
            if answer is None:
                yield hop
                return None
            if answer.status not in _REDIRECTS:
                return Arrived(hop, answer)
            try:
                onward = parse_url(answer.header("Location") or "nowhere:", url)
            except WireError as err:
                yield replace(hop, error=f"it redirects to {err.message}")
                return None
            if onward in seen or len(seen) > MAX_REDIRECTS:
                circle = "in a circle" if onward in seen else f"more than {MAX_REDIRECTS} times"
                yield replace(hop, error=f"it redirects {circle}")
                return None
            yield hop
            if onward.origin != url.origin:
                headers = {name: text for name, text in headers.items() if name == "Accept"}
            if body is not None and onward.origin != url.origin:
                yield self.unmade(Role.REDIRECT, onward, "a login is not sent on to another host")
                return None
            seen.add(onward)
            url = onward
            hop = Hop(Role.REDIRECT, url, self._verdict(url), purpose=role)

    def _ask(
        self, hop: Hop, headers: Mapping[str, str], limit: int, body: bytes | None
    ) -> tuple[Hop, Answer | None]:
        """Look the host up, and ask it if the policy allows that."""
        url = hop.url
        dns, addresses = lookup(url.host, url.port)
        hop = replace(hop, dns=dns)
        if not hop.verdict.allowed:
            return hop, None
        if not addresses:
            return replace(hop, error=f"no address: {dns.error or 'DNS has none'}"), None
        sent = dict(headers)
        if url.origin == self.origin and self.authorization and "Authorization" not in sent:
            sent["Authorization"] = self.authorization
        try:
            context = self.trust.own if self.at_home(url) else self.trust.others
            answer = ask(url, addresses, context, sent, limit, body)
        except DialFailed as err:
            return replace(hop, dialled=True, address=err.address, error=str(err)), None
        return replace(hop, dialled=True, address=answer.address, status=answer.status), answer

    def at_home(self, url: Url) -> bool:
        """Tell whether this is the registry's own host and port, by either scheme."""
        return url.origin[1:] == self.origin[1:]

    def unmade(self, role: Role, url: Url, error: str) -> Hop:
        """A hop that is not made, because of what is wrong before it."""
        return Hop(role, url, self._verdict(url), error=error)

    def _verdict(self, url: Url) -> Verdict:
        return self.judge.verdict(url.host, url.port)


def collected(steps: Steps) -> tuple[list[Hop], Arrived | None]:
    """Go through steps before anything of them is told."""
    hops: list[Hop] = []
    while True:
        try:
            hops.append(next(steps))
        except StopIteration as end:
            found: Arrived | None = end.value
            return hops, found


def basic(who: Credentials) -> str:
    """Return the header of a name and password."""
    return f"Basic {base64.b64encode(f'{who.user}:{who.secret}'.encode()).decode()}"


def meaning(answer: Answer, what: str) -> str:
    """Say what a status means, with the message of the registry where it gives one."""
    found = f"{_MEANING.get(answer.status, what)}: status {answer.status}"
    try:
        error = json.loads(answer.body)["errors"][0]
        return printable(f"{found}, {error['code']}: {error['message']}")
    except (ValueError, LookupError, TypeError, RecursionError):
        return found

"""How a registry asks who is there: ``WWW-Authenticate`` and the request for a token.

The header is RFC 9110, 11.6.1; the token's endpoint is that of distribution (its
``docs/spec/auth/token.md``): a GET on the realm, which gives JSON with a ``token``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from ramnet.core.urls import Url, parse_url
from ramnet.errors import WireError

# A registry sends one challenge of some 200 octets; proxies may add two or three of theirs.
MAX_HEADER: Final = 16 * 1024
MAX_CHALLENGES: Final = 16
MAX_PARAMS: Final = 32
# The token of ECR has 4 kB, JWTs with many scopes a few more.
MAX_TOKEN: Final = 64 * 1024

_TOKEN_CHARS: Final = frozenset(
    "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
)
_TOKEN68_CHARS: Final = frozenset(
    "-._~+/0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
)
_BLANK: Final = " \t"


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to authenticate: its scheme and the names of its parameters in lower case."""

    scheme: str
    params: Mapping[str, str] = field(default_factory=dict)


def parse_challenges(headers: Iterable[str]) -> tuple[Challenge, ...]:
    """Return the challenges of all ``WWW-Authenticate`` fields, in their order.

    Raises ``WireError`` where one does not parse.
    """
    found: list[Challenge] = []
    for text in headers:
        if len(text) > MAX_HEADER:
            raise WireError("a challenge that is too long", where="www-authenticate")
        found += _Scanner(text).challenges()
        if len(found) > MAX_CHALLENGES:
            raise WireError("more challenges than any server has", where="www-authenticate")
    return tuple(found)


class _Scanner:
    """Reads one field from left to right; the position only ever grows, but for one look ahead."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def challenges(self) -> list[Challenge]:
        found: list[Challenge] = []
        self._skip(_BLANK + ",")
        while self._at < len(self._text):
            scheme = self._word()
            if not scheme or self._peek() not in ("", ",", *_BLANK):
                raise WireError("a challenge that does not parse", where="www-authenticate")
            self._skip(_BLANK)
            self._token68()
            found.append(Challenge(scheme.lower(), self._params()))
        return found

    def _params(self) -> dict[str, str]:
        params: dict[str, str] = {}
        self._skip(_BLANK + ",")
        while (pair := self._param()) is not None:
            params[pair[0]] = pair[1]  # the last one counts, as to Docker
            if len(params) > MAX_PARAMS:
                raise WireError("more parameters than any server has", where="www-authenticate")
            self._skip(_BLANK)
            if self._peek() not in ("", ","):
                raise WireError("a challenge that does not parse", where="www-authenticate")
            self._skip(_BLANK + ",")
        return params

    def _param(self) -> tuple[str, str] | None:
        """Read ``name=value``; None, and nothing is read, where another challenge begins."""
        begin = self._at
        name = self._word()
        self._skip(_BLANK)
        if not name or self._peek() != "=":
            self._at = begin
            return None
        self._at += 1
        self._skip(_BLANK)
        return name.lower(), self._quoted() if self._peek() == '"' else self._word()

    def _token68(self) -> None:
        """Pass over the other form of a challenge, which nobody here needs."""
        begin = self._at
        while self._peek() in _TOKEN68_CHARS:
            self._at += 1
        self._skip("=")
        some = self._at > begin
        self._skip(_BLANK)
        if not some or self._peek() not in ("", ","):
            self._at = begin

    def _word(self) -> str:
        begin = self._at
        while self._peek() in _TOKEN_CHARS:
            self._at += 1
        return self._text[begin : self._at]

    def _quoted(self) -> str:
        self._at += 1
        found: list[str] = []
        while (char := self._peek()) != '"':
            if char == "\\":
                self._at += 1
                char = self._peek()
            if not char:
                raise WireError("a challenge with an open quote", where="www-authenticate")
            found.append(char)
            self._at += 1
        self._at += 1
        return "".join(found)

    def _skip(self, chars: str) -> None:
        while self._peek() and self._peek() in chars:
            self._at += 1

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who logs in. ``identity``: the secret is a token that is exchanged for others (OAuth 2)."""

    user: str
    secret: str = field(repr=False)
    identity: bool = False


def pull_scope(path: str) -> str:
    """Return what a token has to be good for to pull from a repository."""
    return f"repository:{path}:pull"


def wanted(challenges: Iterable[Challenge]) -> Challenge | None:
    """Return the challenge that a client of a registry takes: bearer before basic, else None."""
    known = {challenge.scheme: challenge for challenge in reversed(tuple(challenges))}
    return known.get("bearer") or known.get("basic")


def token_realm(challenge: Challenge, base: Url) -> Url:
    """Return where the challenge sends its client for a token.

    Raises ``WireError`` where it names no place that a client would ask.
    """
    realm = challenge.params.get("realm", "")
    if not realm:
        raise WireError("the challenge names no realm", where="realm")
    try:
        return parse_url(realm, base)
    except WireError as err:
        raise WireError(f"the challenge's realm is {err.message}", where="realm") from err


def token_pairs(
    challenge: Challenge, scope: str, credentials: Credentials | None
) -> list[tuple[str, str]]:
    """Return what is asked of the realm: service, scope, and who asks."""
    pairs = []
    if service := challenge.params.get("service"):
        pairs.append(("service", service))
    # What the registry itself asks for may be more than what a client of a pull would think of.
    scopes = dict.fromkeys([*challenge.params.get("scope", "").split(), scope])
    if credentials is not None and credentials.identity:
        return [
            *pairs,
            ("scope", " ".join(scopes)),
            ("grant_type", "refresh_token"),
            ("client_id", "ramnet"),
            ("refresh_token", credentials.secret),
        ]
    pairs += [("scope", one) for one in scopes]
    if credentials is not None:
        pairs.append(("account", credentials.user))
    return pairs


def read_token(body: bytes) -> str:
    """Return the token in a realm's answer. Raises ``WireError`` where there is none."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as err:
        raise WireError("the realm's answer is not JSON", where="token") from err
    if isinstance(answer, dict):
        for key in ("token", "access_token"):
            token = answer.get(key)
            if isinstance(token, str) and token:
                return _usable(token)
    raise WireError("the realm's answer has no token", where="token")


def _usable(token: str) -> str:
    """A token goes into a header as it is."""
    if len(token) > MAX_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise WireError("the realm's token is not one", where="token")
    return token

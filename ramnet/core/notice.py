"""What a refused client is told: the name in a certificate, an HTTP answer.

Go programs print the names of a certificate that is not for the host that they wanted, so the
message is a DNS name: ``registry-access-denied-by-acme.ramnet.invalid``. A request that arrives in
the clear gets the error of the distribution protocol, or a page where a browser asks.

Clients use the text of an answer as a format: there is no ``%`` in any.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ramnet.core.http import split_head
from ramnet.core.names import MAX_LABEL, HostName, parse_host
from ramnet.errors import NameFault

# Octets. X.520 (ub-common-name, ub-organization-name): longer ones are refused by many.
MAX_ATTRIBUTE: Final = 64

_DENIED: Final = "registry access denied"
_SOMEBODY: Final = "your organization"
_ZONE: Final = "ramnet.invalid"  # RFC 2606: no name below it will ever exist
_FIRST_LABEL: Final = "registry-access-denied-by"
# NFKD takes an accent from its letter; these letters are not made of two.
_LETTERS: Final = str.maketrans(
    {"ß": "ss", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "ł": "l"}
    | {"Ł": "L", "đ": "d", "Đ": "D", "þ": "th", "Þ": "Th", "ð": "d", "\u0131": "i"}
)
_FULLWIDTH_PERCENT: Final = "\uff05"
_NOT_LDH: Final = re.compile(r"[^a-z0-9]+")
_NOT_PRINTABLE: Final = re.compile(r"[^ -~]+")


@dataclass(frozen=True, slots=True)
class Message:
    """Who refuses, and whom to ask; either may be empty."""

    organization: str = ""
    contact: str = ""

    @property
    def certificate_name(self) -> str:
        """The message as a DNS name of plain labels; a long organisation has several of them."""
        words = _NOT_LDH.sub(" ", _ascii(self.organization).lower()).split()
        words = words or _SOMEBODY.split()
        return ".".join((*_labels([*_FIRST_LABEL.split("-"), *words]), _ZONE))

    @property
    def common_name(self) -> str:
        """The message for programs that show the subject of a certificate."""
        return _shortened(f"{_DENIED} by {self.organization or _SOMEBODY}")

    @property
    def organization_name(self) -> str:
        """The organisation, as a subject of a certificate has room for it."""
        return _shortened(self.organization or _SOMEBODY)

    def sentence(self, wanted: str = "") -> str:
        """Say in one line that the host that was ``wanted`` is not allowed."""
        ask = f"; contact {self.contact}" if self.contact else ""
        said = f"{_DENIED} by {self.organization or _SOMEBODY}"
        whole = f"{said}: {wanted or 'this registry'} is not allowed{ask}"
        return whole.replace("%", _FULLWIDTH_PERCENT)


def _ascii(text: str) -> str:
    """Fold to ASCII as far as letters have a likeness there, without ``%``; the rest is dropped."""
    folded = unicodedata.normalize("NFKD", text.translate(_LETTERS))
    plain = "".join(char for char in folded if not unicodedata.combining(char))
    return " ".join(_NOT_PRINTABLE.sub(" ", plain.replace("%", " ")).split())


def _labels(words: Iterable[str]) -> list[str]:
    """Join words by hyphens into few labels; a word that fits into one stays whole."""
    labels = [""]
    for word in words:
        joined = f"{labels[-1]}-{word}".lstrip("-")
        if len(joined) <= MAX_LABEL:
            labels[-1] = joined
            continue
        labels += [word[at : at + MAX_LABEL] for at in range(0, len(word), MAX_LABEL)]
    return labels


def _shortened(text: str) -> str:
    """Cut to what an attribute may have, at a space where one is near the end."""
    octets = text.encode()
    if len(octets) <= MAX_ATTRIBUTE:
        return text
    cut = octets[:MAX_ATTRIBUTE].decode(errors="ignore")
    space = cut.rfind(" ")
    return cut[: space if space > len(cut) // 2 else None].rstrip()


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, as far as the answer depends on it; ``host`` is None where it names none."""

    host: HostName | None = None
    connect: bool = False
    head_only: bool = False
    html: bool = False


def asked_of(head: bytes) -> Asked:
    """Read the head of an HTTP/1 request as well as it goes: there is an answer to each.

    Raises ``WireError`` where it is none.
    """
    parts = split_head(head)
    scheme, authority = parts.absolute
    connect = parts.method == "CONNECT"
    if connect:
        authority = parts.target
    elif not scheme:  # else it is asked of a proxy: the target is what counts
        authority = dict(parts.fields).get("host", "").strip()
    return Asked(_host(authority), connect, parts.method == "HEAD", parts.html)


def _host(authority: str) -> HostName | None:
    """Return the name in ``user@host:port``; an address is none."""
    host, colon, port = authority.rpartition("@")[2].partition(":")
    if colon and not (port.isascii() and (port.isdecimal() or not port)):
        return None
    return wanted_host(host)


def wanted_host(text: str | None) -> HostName | None:
    """Return what a client said that it wanted, if it is a host name."""
    # As octets it came: no program sends another alphabet here.
    if not text or not text.isascii():
        return None
    try:
        return parse_host(text)
    except NameFault:
        return None


def http_answer(asked: Asked, message: Message) -> bytes:
    """Make the whole answer to a request: 403, and why.

    The reason phrase says it as well: it is all that a client shows of a refused CONNECT.
    """
    sentence = message.sentence(asked.host or "")
    if asked.html:
        kind, body = "text/html; charset=utf-8", _page(asked, message)
    else:
        error = {"code": "DENIED", "message": sentence}
        kind, body = "application/json", json.dumps({"errors": [error]}) + "\n"
    octets = body.encode()
    plain = Message(_ascii(message.organization), _ascii(message.contact))
    head = (
        f"HTTP/1.1 403 {plain.sentence(asked.host or '')}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(octets)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
        "\r\n",
    )
    return "\r\n".join(head).encode("ascii") + (b"" if asked.head_only else octets)


def _page(asked: Asked, message: Message) -> str:
    def shown(text: str) -> str:
        return html.escape(text.replace("%", _FULLWIDTH_PERCENT))

    who = message.organization or _SOMEBODY
    ask = f"\n<p>Contact: {shown(message.contact)}</p>" if message.contact else ""
    return (
        "<!doctype html>\n"
        '<html lang="en"><meta charset="utf-8"><title>Registry access denied</title>\n'
        f"<h1>Registry access denied by {shown(who)}</h1>\n"
        f"<p>{shown(asked.host or 'This registry')} is not an allowed container registry.</p>"
        f"{ask}\n</html>\n"
    )

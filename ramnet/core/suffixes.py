"""The public suffixes: names below which anybody can have a name of their own.

The list is that of publicsuffix.org, as the package ``publicsuffixlist`` brings it: registries of
the DNS (``co.uk``), and the private section, in which clouds and hosters enter themselves
(``s3.amazonaws.com``). A wildcard over such a name admits strangers.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Final

from ramnet.core.names import HostName

_PRIVATE_BEGINS: Final = "===BEGIN PRIVATE DOMAINS==="
# Listed so that browsers keep apart what is below them, but nobody can register there: RFC 8375.
_HOME: Final = frozenset({"home.arpa"})
# What the list lacks: the first label is an account's or a bucket's name.
_MORE: Final = frozenset(
    {"r2.cloudflarestorage.com", "storage.googleapis.com", "trafficmanager.net"}
)


class Suffixes:
    """A list of public suffixes, to be asked about one name at a time."""

    __slots__ = ("_above", "_except", "_icann", "_private")

    def __init__(self, lines: Iterable[str]) -> None:
        self._icann: set[str] = set()
        self._private: set[str] = set(_MORE)
        self._except: set[str] = set()
        rules = self._icann
        for line in lines:
            rule = line.strip()
            if rule.endswith(_PRIVATE_BEGINS):
                rules = self._private
            if not rule or rule.startswith("//") or rule in _HOME:
                continue
            if rule.startswith("!"):
                self._except.add(_a_labels(rule[1:]))
            else:
                rules.add(_a_labels(rule))
        # Every name that has a suffix below it, with the shortest as an example.
        self._above: dict[str, str] = {}
        for suffix in sorted(self._icann | self._private, key=lambda item: (len(item), item)):
            parent = suffix.partition(".")[2]
            while parent:
                self._above.setdefault(parent, suffix)
                parent = parent.partition(".")[2]

    def is_registry_suffix(self, name: HostName) -> bool:
        """Whether a registry of the DNS sells names below ``name``."""
        return self._listed(name, self._icann)

    def is_private_suffix(self, name: HostName) -> bool:
        """Whether customers of a cloud or hoster have names below ``name``."""
        return self._listed(name, self._private)

    def below(self, name: HostName) -> str:
        """Return one suffix (or ``*.`` and a name) below ``name``; empty if there is none."""
        return self._above.get(name, "")

    def _listed(self, name: str, rules: set[str]) -> bool:
        if name in self._except:
            return False
        return name in rules or f"*.{name.partition('.')[2]}" in rules


@cache
def load_suffixes() -> Suffixes:
    """Return the list that is installed, read once; some 20 ms."""
    file = resources.files("publicsuffixlist").joinpath("public_suffix_list.dat")
    return Suffixes(file.read_text(encoding="utf-8").splitlines())


def _a_labels(rule: str) -> str:
    """Return a rule as DNS has its names; the list holds them folded and normalised already."""
    if rule.isascii():
        return rule
    return ".".join(
        label if label.isascii() else f"xn--{label.encode('punycode').decode('ascii')}"
        for label in rule.split(".")
    )

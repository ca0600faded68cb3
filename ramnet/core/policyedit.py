"""Adds an entry to the text of a policy, or takes one out; everything else stays as it is written.

In TOML only the lines of the one entry are touched: comments, order and spelling of the rest stay,
octet for octet. Whatever the text looks like, the result is read again and must mean exactly what
was wanted; otherwise nothing is changed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, MutableMapping
from dataclasses import dataclass, fields, replace
from datetime import date
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from ramnet.core.names import Address, HostPattern, parse_address
from ramnet.core.policy import Policy, RegistryEntry, parse_policy, policy_digest
from ramnet.core.reference import parse_reference
from ramnet.core.textfile import Document, Format, place, read_document, shown, tables_of
from ramnet.errors import Fault, NameFault, PolicyError

#: Characters of a file whose entries stand in one inline list. It is edited as a whole, at about a
#: megabyte a second; the usual form, [[registry]], has no limit of its own.
MAX_INLINE: Final = 4 * 1024 * 1024

_NEW_ENTRY: Final = '[[registry]]\naddress = ""\n'


@dataclass(frozen=True, slots=True)
class Edited:
    """The text after an edit, and what the policy said before and says now."""

    text: str
    before: Policy
    after: Policy

    @property
    def changed(self) -> bool:
        """Whether the edit changed anything."""
        return policy_digest(self.before) != policy_digest(self.after)


def registry_address(text: str) -> Address:
    """Return the registry that an image reference, a host or an address means.

    What is an image and what is a host is told as ``explain`` does: an image has a slash, or is a
    plain word. Patterns (``*.example.com``, ``localhost:*``) are hosts. Raises ``NameFault`` or
    ``ReferenceFault``.
    """
    word = text.strip()
    host, _, port = word.partition(":")
    bare_ipv6 = word.count(":") > 1 and "@" not in word
    if "/" not in word and (
        word.startswith("[")
        or "." in host
        or host == "localhost"
        or port.isdigit()
        or port == "*"
        or bare_ipv6
    ):
        return parse_address(word)
    return parse_address(parse_reference(word).domain)


def entry_of(address: Address, options: Mapping[str, object]) -> RegistryEntry:
    """Make an entry of its keys as the policy file has them.

    Raises ``PolicyError`` with every fault.
    """
    try:
        made: RegistryEntry = TypeAdapter(RegistryEntry).validate_python(
            {"address": str(address), **options}
        )
    except ValidationError as error:
        faults = [
            Fault(place(item["loc"]), None, item["ctx"]["message"], item["ctx"]["hint"])
            for item in error.errors()
        ]
        raise PolicyError(f"the entry for {address}", faults) from error
    return made


def add_registry(
    text: str | bytes, wanted: RegistryEntry, today: date, *, source: str, ramnet_version: str
) -> Edited:
    """List a registry; where it is listed already, its entry gets what ``wanted`` has besides.

    Lists only grow, other keys are replaced. Unless ``wanted`` names another day, an entry that has
    expired loses its last day: adding it means that it is to count. Raises ``PolicyError``.
    """
    file = _File(text, source, ramnet_version)
    index = file.find(wanted.address)
    if index is None:
        return file.edited(None, wanted)
    return file.edited(index, _merged(file.policy.registry[index], wanted, today))


def remove_registry(
    text: str | bytes, address: Address, *, source: str, ramnet_version: str
) -> Edited:
    """Take the entry of a registry out. Raises ``PolicyError`` and ``NameFault``."""
    file = _File(text, source, ramnet_version)
    return file.edited(file.listed(address), None)


def remove_extra_hosts(
    text: str | bytes,
    address: Address,
    hosts: Collection[HostPattern],
    *,
    source: str,
    ramnet_version: str,
) -> Edited:
    """Take some ``extra_hosts`` of a registry out. Raises ``PolicyError`` and ``NameFault``."""
    file = _File(text, source, ramnet_version)
    index = file.listed(address)
    entry = file.policy.registry[index]
    for host in hosts:
        if host not in entry.extra_hosts:
            known = ", ".join(map(str, entry.extra_hosts[:5])) or "none"
            raise NameFault(f"{host} is no extra host of {address}", hint=f"they are: {known}")
    left = tuple(host for host in entry.extra_hosts if host not in hosts)
    return file.edited(index, replace(entry, extra_hosts=left))


def _merged(old: RegistryEntry, wanted: RegistryEntry, today: date) -> RegistryEntry:
    found: dict[str, Any] = {}
    for field in fields(RegistryEntry):
        was, new = getattr(old, field.name), getattr(wanted, field.name)
        if isinstance(new, tuple):
            found[field.name] = (*was, *(item for item in new if item not in was))
        else:
            found[field.name] = new or was
    if wanted.expires is None and old.expires is not None and old.expires < today:
        found["expires"] = None
    return RegistryEntry(**found)


class _File:
    """A valid policy file, and the one change that is made to it."""

    def __init__(self, text: str | bytes, source: str, ramnet_version: str) -> None:
        self._source = source
        self._version = ramnet_version
        self.policy: Policy = parse_policy(text, source=source, ramnet_version=ramnet_version)
        self._document: Document = read_document(text, source=source)
        start = text[:3] if isinstance(text, bytes) else text[:1].encode()
        self._mark = "\ufeff" if start == "\ufeff".encode() else ""

    def find(self, address: Address) -> int | None:
        """Return the number of the entry with this address."""
        listed = (index for index, e in enumerate(self.policy.registry) if e.address == address)
        return next(listed, None)

    def listed(self, address: Address) -> int:
        """Return the number of the entry with this address; ``NameFault`` where there is none."""
        index = self.find(address)
        if index is None:
            raise NameFault(f"{self._source} does not list {address}", hint=self._near(address))
        return index

    def _near(self, address: Address) -> str:
        asked = address.pattern
        for entry in self.policy.registry:
            known = entry.address.pattern
            if asked and known and (known.name == asked.name or known.matches(asked.name)):
                return f"it lists {entry.address}"
        return "`ramnet policy show` lists what it has"

    def edited(self, index: int | None, entry: RegistryEntry | None) -> Edited:
        """Put ``entry`` where entry ``index`` is: at the end for None; without one, remove it."""
        listed = list(self.policy.registry)
        old = None if index is None else listed[index]
        if old == entry:
            return Edited(self._mark + self._document.text, self.policy, self.policy)
        at = len(listed) if index is None else index
        listed[at : at + 1] = [] if entry is None else [entry]
        wanted = self.policy.model_copy(update={"registry": tuple(listed)})
        try:
            text = self._mark + self._text(at, old, entry)
        except ValueError as error:  # of tomlkit, or a number in an x- key that JSON cannot say
            raise self._cannot(str(error)) from error
        after = parse_policy(text, source=self._source, ramnet_version=self._version)
        if policy_digest(after) != policy_digest(wanted):
            raise self._cannot("the result would mean something else")
        return Edited(text, self.policy, after)

    def _cannot(self, why: str) -> PolicyError:
        message = f"the file is written in a way that cannot be edited here: {why}"
        return PolicyError(self._source, [Fault("", None, message, "change it by hand")])

    def _text(self, at: int, old: RegistryEntry | None, new: RegistryEntry | None) -> str:
        text = self._document.text
        if self._document.format is Format.JSON:
            return _in_json(text, at, old, new)
        spans = tables_of(text, "registry")
        if not spans and "registry" in self._document.data:
            return _in_inline_list(text, at, old, new)
        ending = "\r\n" if "\r\n" in text else "\n"
        if old is None and new is not None:
            return _with_entry(text, spans[-1] if spans else None, new, ending)
        start, end = spans[at]
        end = _end_of_keys(text, start, end)
        if new is None:
            return _without(text[:start], text[end:], ending)
        return text[:start] + _lines(text[start:end], old, new, ending) + text[end:]


def _put(entry: MutableMapping[str, Any], old: RegistryEntry | None, new: RegistryEntry) -> None:
    """Change the keys of an entry, as TOML or as JSON has it, in which ``new`` differs."""
    for field in fields(RegistryEntry):
        key, value = field.name, getattr(new, field.name)
        was = getattr(old, key) if old is not None else None
        if value == was or (was is None and not value):
            continue
        if not value:
            del entry[key]
        elif not isinstance(value, tuple):
            entry[key] = str(value) if key == "address" else value
        elif not was:
            entry[key] = [str(item) for item in value]
        else:
            items = entry[key]
            for index in range(len(was) - 1, -1, -1):
                if was[index] not in value:
                    del items[index]
            items.extend(str(item) for item in value if item not in was)


def _in_json(text: str, at: int, old: RegistryEntry | None, new: RegistryEntry | None) -> str:
    data = json.loads(text, object_pairs_hook=_table)
    entries = data.setdefault("registry", [])
    if new is None:
        del entries[at]
    else:
        if old is None:
            entries.append({})
        _put(entries[at], old, new)
    found = re.search(r"\n([ \t]+)\S", text)

    def written(*, escape: bool) -> str:
        indent = found[1] if found else None
        told = json.dumps(data, indent=indent, ensure_ascii=escape, allow_nan=False, default=str)
        return told + "\n"

    plain = written(escape=False)
    # Half of a pair can only be said by an escape.
    return written(escape=True) if re.search("[\ud800-\udfff]", plain) else plain


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a table of its keys; one that is there twice, as x- tables may have it, is no table."""
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"the key {shown(key)} is given more than once in its table")
        made[key] = value
    return made


def _in_inline_list(
    text: str, at: int, old: RegistryEntry | None, new: RegistryEntry | None
) -> str:
    # Here and not on top: only these verbs need it, and every start would pay for it.
    import tomlkit  # noqa: PLC0415

    if len(text) > MAX_INLINE:
        raise ValueError("its registries stand in one long list; write them as [[registry]]")
    document = tomlkit.parse(text)
    entries: Any = document["registry"]
    if new is None:
        del entries[at]
    else:
        if old is None:
            entries.append(tomlkit.inline_table())
        _put(entries[at], old, new)
    return tomlkit.dumps(document)


def _lines(lines: str, old: RegistryEntry | None, new: RegistryEntry, ending: str) -> str:
    """Edit the lines of one [[registry]]."""
    import tomlkit  # noqa: PLC0415 - as above

    document = tomlkit.parse(lines)
    registry: Any = document["registry"]
    _put(registry[0], old, new)
    return re.sub(r"\r?\n", ending, tomlkit.dumps(document))


def _with_entry(text: str, last: tuple[int, int] | None, new: RegistryEntry, ending: str) -> str:
    """Write a new entry behind the last one, or at the end.

    Comments right below the last one stay with it; those behind an empty line stay with what they
    are written above.
    """
    position = len(text)
    if last is not None:
        end = _end_of_keys(text, *last)
        below = re.compile(r"(?:[ \t]*#[^\n]*\n)*(?=[ \t\r]*\n)").match(text, end, last[1])
        if below or last[1] < len(text):
            position = below.end() if below else end
    head, tail = text[:position], text[position:]
    if head and not head.endswith("\n"):
        head += ending
    if tail and not re.match(r"[ \t\r]*\n", tail):
        tail = ending + tail
    return head + ending + _lines(_NEW_ENTRY, None, new, ending) + tail


def _end_of_keys(text: str, start: int, end: int) -> int:
    """Return where the last key of a table ends, before the comments and empty lines behind it."""
    while True:  # at the latest until its header
        line = text.rfind("\n", start, end - 1) + 1
        if text[line:end].strip() and not text[line:end].lstrip().startswith("#"):
            return end
        end = line


def _without(head: str, tail: str, ending: str) -> str:
    """Put together what was on either side of an entry, with no more empty lines than before."""
    if not tail.strip():
        return head.rstrip() + ending
    empty = re.match(r"[ \t\r]*\n", tail)
    if empty and (not head or re.search(r"\n[ \t\r]*\n$", head)):
        tail = tail[empty.end() :]
    return head + tail

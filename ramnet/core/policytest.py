"""Holds a policy against lists of what it must allow and what it must refuse."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from ramnet.core.allow import AllowList
from ramnet.core.enginefacts import printable
from ramnet.core.explain import Target, explain, parse_target
from ramnet.errors import NameFault, RamnetError, ReferenceFault

#: Octets of a list: a hundred thousand images, each with its digest.
MAX_LIST: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Case:
    """One line of a list: an image, host or address, and what is expected of it.

    ``target`` is None where the line cannot be read; ``fault`` then says why.
    """

    source: str
    line: int
    text: str
    allow: bool
    target: Target | None
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a case; one that cannot be read has failed."""

    case: Case
    passed: bool
    reason: str

    def __str__(self) -> str:
        case = self.case
        expected, other = ("allowed", "denied") if case.allow else ("denied", "allowed")
        said = f"is {other}, expected {expected}" if case.target is not None else "cannot be read"
        return f"{case.source}:{case.line}: {case.text}: {said}: {self.reason}"

    @property
    def plain(self) -> dict[str, Any]:
        """The result as JSON values."""
        case = self.case
        found: bool | None = None
        if case.target is not None:
            found = case.allow if self.passed else not case.allow
        return {
            "source": case.source,
            "line": case.line,
            "text": case.text,
            "expected": "allowed" if case.allow else "denied",
            "allowed": found,
            "passed": self.passed,
            "reason": self.reason,
        }


def read_cases(data: bytes, *, source: str, allow: bool) -> list[Case]:
    """Read a list: a reference, host or address a line, with comments behind a #.

    Raises ``RamnetError`` where nothing is in it: such a test would pass whatever the policy says.
    """
    found = []
    # Not splitlines(): it also ends a line at characters that no editor counts.
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        text = raw.decode("utf-8", "replace").partition("#")[0].strip()
        if text:
            found.append(_case(source, number, text, allow=allow))
    if not found:
        raise RamnetError(f"{source} holds nothing to test", hint="write one image or host a line")
    return found


def _case(source: str, line: int, text: str, *, allow: bool) -> Case:
    shown = printable(text)
    try:
        return Case(source, line, shown, allow, parse_target(text))
    except (NameFault, ReferenceFault) as error:
        return Case(source, line, shown, allow, None, error.message)


def judge_cases(cases: list[Case], allowed: AllowList) -> Iterator[Result]:
    """Judge each case as ``explain`` does, by the policy alone."""
    for case in cases:
        if case.target is None:
            yield Result(case, passed=False, reason=case.fault)
            continue
        found = explain(case.target, allowed, None, 0.0)
        yield Result(case, passed=found.allowed == case.allow, reason=found.reason)

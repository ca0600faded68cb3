"""docs/coverage.md: which path an image can take is enforced on which rung, as the tests found it.

A test states what it has seen, ``cover(Section.ENGINE, "docker pull", rung, Outcome.ENFORCED)``,
and the cell is written only if that test passed. ``pytest --coverage-table FILE`` writes the table
at the end of the run.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import pytest

from ramnet.core.config import ScopeMode

DECISIONS = Path(__file__).resolve().parents[1] / "docs/decisions"
RUNGS = (ScopeMode.CGROUP, ScopeMode.MARK, ScopeMode.UID, ScopeMode.NETNS)
FAMILIES = (4, 6)
NOT_TRIED = "-"


class Section(StrEnum):
    """Whose connections a row is about: one of the traffic classes."""

    ENGINE = "The Docker engine itself"
    CONTAINERS = "What runs in containers"
    HOST = "Other programs of the machine"
    OTHER = "Beside the traffic classes"


class Outcome(StrEnum):
    """What became of the attempts of a test."""

    ENFORCED = "enforced"
    BY_NAME = "by name"
    FREE = "free"
    NOT_COVERED = "gets through"
    OVER = "refused as well"


LEGEND = {
    Outcome.ENFORCED: "refused unless the policy allows it; nothing arrived at the far side",
    Outcome.BY_NAME: "a catalogued registry that the policy does not list is refused, as designed "
    "for this class; everything else is reachable",
    Outcome.FREE: "not touched, as designed",
    Outcome.NOT_COVERED: "wanted, but not enforced on this rung; the decision says why",
    Outcome.OVER: "innocent traffic that this rung refuses too; the decision says why",
}
NEEDS_DECISION = frozenset({Outcome.NOT_COVERED, Outcome.OVER})

_HEAD = """\
# Coverage

Which path an image or a connection can take is enforced on which rung of the scope ladder.

This file is generated: every cell is what a test with a real engine saw in the lab, with a capture
at the far side and a control run without ramnet that got through. The columns `uid` and `netns` are
for `[scope] weak = "strict"`, unless a row says otherwise. `.ci/run` makes the table again
and fails when it differs. After a change:
`sudo ./bootstrap test -m "netns or docker" --coverage-table docs/coverage.md`

"""


@dataclass(frozen=True, slots=True)
class Cell:
    """What one test found; ``family`` is 4, 6, or None for both or where it makes no difference."""

    section: Section
    path: str
    rung: ScopeMode
    outcome: Outcome
    family: int | None = None
    decision: str = ""

    def __post_init__(self) -> None:
        if self.rung not in RUNGS:
            raise ValueError(f"{self.path}: {self.rung} is no rung, but one of {', '.join(RUNGS)}")
        if self.family not in (None, *FAMILIES):
            raise ValueError(f"{self.path}: the family is 4 or 6, not {self.family}")
        if not self.path or "|" in self.path or "\n" in self.path:
            raise ValueError(f"{self.path!r} is no row of a table")
        if self.outcome in NEEDS_DECISION and not self.decision:
            raise ValueError(f"{self.path}: '{self.outcome}' needs a decision record")
        if self.decision and not (DECISIONS / self.decision).is_file():
            raise ValueError(f"{self.path}: docs/decisions has no {self.decision}")

    @property
    def words(self) -> str:
        """The outcome, with a link to the decision record if there is one."""
        if not self.decision:
            return self.outcome
        return f"{self.outcome} ([{self.decision.partition('-')[0]}](decisions/{self.decision}))"


class Table:
    """The cells of a run."""

    def __init__(self) -> None:
        self._cells: dict[tuple[Section, str, ScopeMode, int | None], Cell] = {}

    def __bool__(self) -> bool:
        return bool(self._cells)

    def add(self, cell: Cell) -> None:
        """Keep a cell; ValueError when another test has seen something else there."""
        key = cell.section, cell.path, cell.rung, cell.family
        before = self._cells.setdefault(key, cell)
        if before != cell:
            raise ValueError(
                f"{cell.path}, {cell.rung}: one test found '{before.words}', another "
                f"'{cell.words}': these are two rows"
            )

    def render(self) -> str:
        """Write the table in Markdown, rows in the order of their words."""
        lines = [_HEAD]
        lines += [f"- **{outcome}**: {LEGEND[outcome]}\n" for outcome in Outcome]
        lines.append(f"- **{NOT_TRIED}**: no test tries this path on this rung\n")
        for section in Section:
            paths = sorted({cell.path for cell in self._cells.values() if cell.section is section})
            if not paths:
                continue
            lines.append(f"\n## {section}\n\n| path | {' | '.join(RUNGS)} |\n")
            lines.append(f"|---|{'---|' * len(RUNGS)}\n")
            for path in paths:
                words = (self._words(section, path, rung) for rung in RUNGS)
                lines.append(f"| {path} | {' | '.join(words)} |\n")
        return "".join(lines)

    def _words(self, section: Section, path: str, rung: ScopeMode) -> str:
        """Say what was found on one rung: one word, unless IPv4 and IPv6 differ."""
        both = self._cells.get((section, path, rung, None))
        found = {
            family: cell.words
            for family in FAMILIES
            if (cell := self._cells.get((section, path, rung, family))) is not None
        }
        if both is not None:
            found = dict.fromkeys(FAMILIES, both.words) | found
        if len(found) == len(FAMILIES) and len(set(found.values())) == 1:
            return found[FAMILIES[0]]
        return "; ".join(f"{words} (IPv{family})" for family, words in found.items()) or NOT_TRIED


class Cover(Protocol):
    """The fixture ``cover``: what the running test has seen."""

    def __call__(
        self,
        section: Section,
        path: str,
        rung: str,
        outcome: Outcome,
        *,
        family: int | None = None,
        decision: str = "",
    ) -> None: ...


TABLE = pytest.StashKey[Table]()
SEEN = pytest.StashKey[list[Cell]]()


@pytest.fixture
def cover(request: pytest.FixtureRequest) -> Cover:
    """Note a cell of the table, which counts when the test has passed."""
    seen = request.node.stash.setdefault(SEEN, [])

    def note(
        section: Section,
        path: str,
        rung: str,
        outcome: Outcome,
        *,
        family: int | None = None,
        decision: str = "",
    ) -> None:
        seen.append(Cell(section, path, ScopeMode(rung), outcome, family, decision))

    return note


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that names the file."""
    parser.addoption(
        "--coverage-table",
        type=Path,
        metavar="FILE",
        help="write the table path x rung of what the tests have covered",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Begin with an empty table."""
    config.stash[TABLE] = Table()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep what a test that passed has seen; fail it when another has seen something else."""
    report = yield
    if call.when == "call" and report.passed:
        try:
            for cell in item.stash.get(SEEN, []):
                item.config.stash[TABLE].add(cell)
        except ValueError as err:
            report.outcome = "failed"
            report.longrepr = str(err)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the table, if somebody asked for it."""
    file: Path | None = session.config.getoption("--coverage-table")
    if file is not None:
        file.write_text(session.config.stash[TABLE].render(), encoding="utf-8")

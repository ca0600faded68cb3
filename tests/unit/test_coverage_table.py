"""The table path x rung: what it shows, and what it refuses to be told."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ramnet.core.config import ScopeMode
from tests.coverage_table import DECISIONS, Cell, Outcome, Section, Table

ROOT = Path(__file__).resolve().parents[2]
DECISION = min(DECISIONS.iterdir()).name


def cell(
    rung: ScopeMode = ScopeMode.CGROUP,
    outcome: Outcome = Outcome.ENFORCED,
    family: int | None = None,
    *,
    path: str = "docker pull",
    decision: str = "",
) -> Cell:
    return Cell(Section.ENGINE, path, rung, outcome, family, decision)


def rows(*cells: Cell) -> list[str]:
    table = Table()
    for one in cells:
        table.add(one)
    found = [line for line in table.render().splitlines() if line.startswith("| ")]
    assert found[0] == "| path | cgroup | mark | uid | netns |"
    return found[1:]


def test_a_row_has_a_column_for_each_rung() -> None:
    assert rows(cell(), cell(ScopeMode.NETNS, Outcome.FREE)) == [
        "| docker pull | enforced | - | - | free |"
    ]


def test_rows_are_in_the_order_of_their_words() -> None:
    assert rows(cell(path="docker push"), cell(path="docker build")) == [
        "| docker build | enforced | - | - | - |",
        "| docker push | enforced | - | - | - |",
    ]


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ([cell(family=4), cell(family=6)], "enforced"),
        ([cell(family=4)], "enforced (IPv4)"),
        ([cell(family=6)], "enforced (IPv6)"),
        (
            [cell(family=4), cell(family=6, outcome=Outcome.FREE)],
            "enforced (IPv4); free (IPv6)",
        ),
        (
            [cell(), cell(family=6, outcome=Outcome.FREE)],
            "enforced (IPv4); free (IPv6)",
        ),
        (
            [cell(outcome=Outcome.NOT_COVERED, decision=DECISION)],
            f"gets through ([0001](decisions/{DECISION}))",
        ),
    ],
)
def test_a_cell_says_for_which_family_it_holds(cells: list[Cell], words: str) -> None:
    assert rows(*cells) == [f"| docker pull | {words} | - | - | - |"]


def test_the_same_may_be_found_twice() -> None:
    assert rows(cell(), cell()) == rows(cell())


def test_two_tests_that_contradict_each_other_are_two_rows() -> None:
    with pytest.raises(ValueError, match=r"docker pull, cgroup: .* 'enforced', another 'free'"):
        rows(cell(), cell(outcome=Outcome.FREE))


@pytest.mark.parametrize("outcome", [Outcome.NOT_COVERED, Outcome.OVER])
def test_a_weakness_needs_a_decision_record(outcome: Outcome) -> None:
    with pytest.raises(ValueError, match="needs a decision record"):
        cell(outcome=outcome)


def test_a_decision_record_must_be_there() -> None:
    with pytest.raises(ValueError, match=r"docs/decisions has no 9999-nothing\.md"):
        cell(outcome=Outcome.OVER, decision="9999-nothing.md")


@pytest.mark.parametrize("path", ["", "a | b", "a\nb"])
def test_a_row_is_one_line_of_a_table(path: str) -> None:
    with pytest.raises(ValueError, match="no row of a table"):
        cell(path=path)


def test_the_ladder_has_no_rung_auto() -> None:
    with pytest.raises(ValueError, match="auto is no rung"):
        cell(ScopeMode.AUTO)


def test_a_family_is_4_or_6() -> None:
    with pytest.raises(ValueError, match="4 or 6, not 5"):
        cell(family=5)


def test_the_table_that_is_kept_was_made_by_this_code_and_its_decisions_exist() -> None:
    """Its cells are compared where the tests run with everything there is: in .ci/run."""
    text = (ROOT / "docs/coverage.md").read_text(encoding="utf-8")
    assert text.startswith(Table().render())
    linked = set(re.findall(r"\(decisions/([^)]+)\)", text))
    assert [name for name in linked if not (DECISIONS / name).is_file()] == []


TESTS = """
import pytest
from tests.coverage_table import Outcome, Section

def test_passes(cover):
    cover(Section.ENGINE, "passes", "cgroup", Outcome.ENFORCED)

def test_fails(cover):
    cover(Section.ENGINE, "fails", "cgroup", Outcome.ENFORCED)
    pytest.fail("too bad")

def test_contradicts(cover):
    cover(Section.ENGINE, "passes", "cgroup", Outcome.FREE)
"""


def test_only_what_a_passed_test_has_seen_is_written(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS, encoding="utf-8")
    table = tmp_path / "coverage.md"
    argv = [sys.executable, "-m", "pytest", "-p", "tests.coverage_table", "-p", "no:cacheprovider"]
    argv += ["--rootdir", str(tmp_path), "-c", "/dev/null", "--coverage-table", str(table)]
    done = subprocess.run(
        [*argv, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "2 failed, 1 passed" in done.stdout, done.stdout
    assert "these are two rows" in done.stdout
    text = table.read_text(encoding="utf-8")
    assert "| passes | enforced | - | - | - |" in text
    assert "fails" not in text.partition("## ")[2]

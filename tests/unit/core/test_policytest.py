"""A policy held against lists."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramnet.core.policytest import Result, judge_cases, read_cases
from ramnet.errors import RamnetError
from tests.unit.core.support import allowed, policy

LIST = b"""\xef\xbb\xbf# what must work
registry.example:5000/app:1   # with its port
  quay.io

registry.example:5000\r
"""


def results(data: bytes, *, allow: bool) -> list[Result]:
    found = allowed(policy("registry.example:5000"))
    return list(judge_cases(read_cases(data, source="list", allow=allow), found))


def test_lines_are_read_with_their_numbers() -> None:
    cases = read_cases(LIST, source="list", allow=True)
    assert [(case.line, case.text) for case in cases] == [
        (2, "registry.example:5000/app:1"),
        (3, "quay.io"),
        (5, "registry.example:5000"),
    ]


@pytest.mark.parametrize("allow", [True, False])
def test_each_line_is_judged(allow: bool) -> None:
    found = results(LIST, allow=allow)
    assert [result.passed for result in found] == [allow, not allow, allow]
    assert all(result.reason for result in found)


def test_what_failed_is_told_with_its_place() -> None:
    _, quay, _ = results(LIST, allow=True)
    assert str(quay).startswith("list:3: quay.io: is denied, expected allowed: ")
    first, _, _ = results(LIST, allow=False)
    told = "list:2: registry.example:5000/app:1: is allowed, expected denied: "
    assert str(first).startswith(told)
    assert first.plain == {
        "source": "list",
        "line": 2,
        "text": "registry.example:5000/app:1",
        "expected": "denied",
        "allowed": True,
        "passed": False,
        "reason": first.reason,
    }


@pytest.mark.parametrize("allow", [True, False])
@pytest.mark.parametrize(
    "line", [b"https://quay.io", b"quay.io/UPPER", b"*.example", b"\xff\x1b[2J"]
)
def test_a_line_that_cannot_be_read_fails(line: bytes, allow: bool) -> None:
    """Also where it must be refused: nobody can pull it, but that is not what was to be tested."""
    (found,) = results(line, allow=allow)
    assert not found.passed
    assert found.plain["allowed"] is None
    assert ": cannot be read: " in str(found)
    assert str(found).isprintable()


@pytest.mark.parametrize("data", [b"", b"\n\n", b"# nothing\n", b"\xef\xbb\xbf"])
def test_a_list_of_nothing_is_no_test(data: bytes) -> None:
    with pytest.raises(RamnetError, match="nothing to test"):
        read_cases(data, source="list", allow=True)


@given(st.binary(max_size=200))
def test_any_octets_are_cases_or_an_error(data: bytes) -> None:
    try:
        found = results(data, allow=False)
    except RamnetError:
        return
    assert all(str(result) for result in found)

"""Which kernel a run takes: named, all, or by the commit."""

from __future__ import annotations

import pytest

from tests.vm.kernels import ALL, KERNELS, KernelError, choose

COMMIT = "824d1aca0cc5bcb273a9719f1de9e487f3a22d18"


def test_commit_chooses_one_and_the_same_each_time() -> None:
    first, again = choose("", COMMIT), choose("", COMMIT)
    assert first == again
    assert len(first.kernels) == 1
    assert COMMIT[:12] in str(first)


def test_every_kernel_gets_its_turn() -> None:
    commits = (f"{number:040x}" for number in range(len(KERNELS)))
    assert {choose("", commit).kernels[0].name for commit in commits} == set(KERNELS)


def test_named_kernel_is_taken_whatever_the_commit() -> None:
    choice = choose("6.12", COMMIT)
    assert [str(kernel) for kernel in choice.kernels] == ["6.12"]
    assert "RAMNET_VM_KERNEL=6.12" in str(choice)


def test_all_are_taken_in_their_order() -> None:
    assert [str(kernel) for kernel in choose(ALL, COMMIT).kernels] == list(KERNELS)


@pytest.mark.parametrize(
    ("wanted", "thorough"),
    [("", False), ("6.1", False), ("6.1,5.10,thorough", True), ("thorough", True), (ALL, True)],
)
def test_what_is_dear_is_tried_where_it_is_asked_for(wanted: str, thorough: bool) -> None:
    assert choose(wanted, COMMIT).thorough is thorough


def test_without_a_commit_there_is_one_all_the_same() -> None:
    assert len(choose("", "").kernels) == 1


def test_unknown_kernel_is_an_error_that_names_the_known() -> None:
    known = r"'7\.1' is not one of 5\.10, 6\.1, 6\.12, newest, all, thorough"
    with pytest.raises(KernelError, match=known):
        choose("6.1,7.1", COMMIT)


def test_age_is_told_by_version() -> None:
    older = [name for name, kernel in KERNELS.items() if kernel.before(6, 12)]
    assert older == ["5.10", "6.1"]

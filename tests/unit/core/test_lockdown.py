"""The locked ruleset as a file: its head, and what a power cut or a stranger makes of it."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramnet.core.allow import allow_list
from ramnet.core.compiler import compile_table
from ramnet.core.config import ScopeMode, Weak
from ramnet.core.lockdown import Locked, read_locked, refuses_nothing, render_locked
from ramnet.core.ruleset import render_create
from ramnet.core.scope import Scope, classes_for
from ramnet.core.terms import Rung
from tests.unit.core.support import CATALOG, CGROUP, MARK, NETNS, STRICT, TODAY, UID, settings

MOUNT = "/sys/fs/cgroup/unified"
SCRIPT = Path(__file__).resolve().parents[3] / "systemd/ramnet-lock"
SCOPES = (CGROUP, MARK, UID, NETNS, STRICT)
# For each file named on standard input, what the script takes from it.
ASK = """
while read -r file; do
    printf '%s ' "$file"
    said scope | tr '\\n' ' '
    echo
done
"""


def text(scope: Scope = CGROUP, rung: Rung = Rung.NATIVE, today: date = TODAY) -> str:
    return render_locked(settings(scope, rung), CATALOG, today, mount=MOUNT)


def head(scope: Scope) -> list[str]:
    lines = text(scope).splitlines()
    return lines[: next(n for n, line in enumerate(lines) if not line.startswith("#"))]


def scopes_said(files: list[Path]) -> dict[Path, str]:
    """Ask the functions of the script itself which scope these files are of."""
    functions = SCRIPT.read_text(encoding="utf-8").partition("\nif in_force")[0]
    done = subprocess.run(
        ["/bin/sh", "-c", functions + ASK],
        input="".join(f"{file}\n" for file in files),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stderr == ""
    said = (line.split(" ") for line in done.stdout.splitlines())
    return {Path(file): " ".join(rest).strip() for file, *rest in said}


@pytest.mark.parametrize(
    ("scope", "lines"),
    [
        (
            CGROUP,
            [
                "# scope cgroup",
                "# mark 0x00000000",
                f"# mount {MOUNT}",
                f"# group {MOUNT}/ramnetengines.slice",
                '# again add element inet ramnet engines1 { "unified/ramnetengines.slice" }',
                f"# group {MOUNT}/user.slice/podman.service",
                '# again add element inet ramnet engines2 { "unified/user.slice/podman.service" }',
            ],
        ),
        (
            MARK,
            [
                "# scope mark",
                "# mark 0x02000000",
                f"# mount {MOUNT}",
                f"# group {MOUNT}/ramnetengines.slice",
                f"# group {MOUNT}/user.slice/podman.service",
            ],
        ),
        (UID, ["# scope uid", "# mark 0x00000000"]),
        (NETNS, ["# scope netns", "# mark 0x00000000"]),
    ],
    ids=["cgroup", "mark", "uid", "netns"],
)
def test_the_head_says_what_has_to_be_done_before(scope: Scope, lines: list[str]) -> None:
    assert head(scope) == ["# ramnet locked ruleset 1", *lines]
    assert read_locked(text(scope)) == Locked(scope.mode, scope.mark)


@pytest.mark.parametrize("scope", SCOPES)
def test_the_body_is_the_table_that_stands_without_a_policy(scope: Scope) -> None:
    wanted = settings(scope, Rung.NATIVE)
    table = compile_table(
        allow_list(None, CATALOG, TODAY), (), (), wanted, classes_for(None, scope)
    )
    body = text(scope).splitlines()[len(head(scope)) :]
    # It never takes the place of a table that is there: `table` alone would add to it.
    assert body[0] == "create table inet ramnet"
    assert "\n".join(body[1:]) == f"{render_create(table)}# end"
    assert "delete" not in text(scope)
    assert "flush" not in text(scope)


def test_the_file_does_not_depend_on_the_day() -> None:
    """A start writes nothing that is there already."""
    assert text(today=date(2026, 3, 1)) == text(today=date(2031, 12, 31))


@pytest.mark.parametrize(
    ("scope", "nothing"),
    [(CGROUP, False), (MARK, False), (STRICT, False), (NETNS, True), (UID, True)],
)
def test_where_nobody_is_told_apart_nothing_is_refused(scope: Scope, nothing: bool) -> None:
    assert refuses_nothing(settings(scope)) is nothing


def test_who_tells_nobody_apart_may_be_strict_with_all() -> None:
    assert not refuses_nothing(settings(replace(UID, weak=Weak.STRICT)))


@pytest.mark.parametrize("scope", SCOPES)
def test_no_part_of_the_file_is_taken_for_the_whole(scope: Scope) -> None:
    whole = text(scope)
    for size in range(len(whole) - 1):  # only the last newline may be missing
        assert read_locked(whole[:size]) is None, whole[:size][-40:]
    assert read_locked(whole[:-1]) == read_locked(whole) == Locked(scope.mode, scope.mark)


def test_no_part_of_the_file_is_taken_for_the_whole_by_the_script(tmp_path: Path) -> None:
    whole = text()
    beginnings = {index for index, char in enumerate(whole) if char == "\n"}
    sizes = {*range(0, len(whole) - 1, 41), *range(len(whole) - 40, len(whole) - 1)}
    sizes |= beginnings | {size + 1 for size in beginnings}
    files = {}
    for size in sorted(sizes - {len(whole), len(whole) - 1}):
        file = tmp_path / f"{size}.nft"
        file.write_text(whole[:size], encoding="utf-8")
        files[file] = ""
    for size in (len(whole) - 1, len(whole)):
        file = tmp_path / f"{size}.nft"
        file.write_text(whole[:size], encoding="utf-8")
        files[file] = "cgroup"
    assert scopes_said(list(files)) == files


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:0],
        lambda whole: whole.replace("ruleset 1", "ruleset 2", 1),
        lambda whole: "\n" + whole,
        lambda whole: whole + "\n",
        lambda whole: whole + "#",
        lambda whole: whole.replace("# end", "# END"),
        lambda whole: "\0" * len(whole),
        lambda whole: whole.replace("ramnetengines", "ramnet\0\0\0\0\0\0\0"),
        lambda whole: whole.replace("drop", "\0\0\0\0", 1),
        lambda whole: "\ufffd" + whole,
        lambda whole: whole.replace("# scope cgroup\n", "", 1),
    ],
)
def test_damage_is_seen_by_both(tmp_path: Path, damage: object) -> None:
    assert callable(damage)
    damaged = damage(text())
    file = tmp_path / "locked.nft"
    file.write_text(damaged, encoding="utf-8")
    assert read_locked(damaged) is None
    assert scopes_said([file, tmp_path / "missing"]) == {file: "", tmp_path / "missing": ""}


@pytest.mark.parametrize("scope", ["everything", "", "CGROUP", "cgroup uid"])
def test_a_scope_of_another_version(scope: str) -> None:
    assert read_locked(text().replace("# scope cgroup", f"# scope {scope}", 1)) is None


@pytest.mark.parametrize("mark", ["", "many", "0x"])
def test_a_mark_that_is_none(mark: str) -> None:
    assert read_locked(text(MARK).replace("# mark 0x02000000", f"# mark {mark}", 1)) is None


@given(st.binary(max_size=400))
def test_any_bytes_give_a_value_or_none(data: bytes) -> None:
    found = read_locked(data.decode("utf-8", "replace"))
    assert found is None or isinstance(found, Locked)


@given(
    st.sampled_from(SCOPES),
    st.integers(0, 200),
    st.integers(0, 60),
    st.text(st.characters(codec="utf-8"), max_size=12),
)
def test_a_head_with_anything_in_it(scope: Scope, at: int, size: int, other: str) -> None:
    whole = text(scope)
    found = read_locked(whole[:at] + other + whole[at + size :])
    assert found is None or found.scope in ScopeMode

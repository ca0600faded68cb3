"""``ramnet policy test``, as an organisation's CI runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Run

POLICY = (
    'version = 1\norganization = "acme"\n[[registry]]\naddress = "registry.corp.example:5000"\n'
)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "policy.toml").write_text(POLICY)
    (tmp_path / "allow").write_text("registry.corp.example:5000/app\n")
    (tmp_path / "deny").write_text("quay.io/x  # not yet\nregistry.corp.example\n")
    return tmp_path


def arguments(files: Path, *more: str) -> tuple[str, ...]:
    return ("policy", "test", "--policy", str(files / "policy.toml"), *more)


def test_all_pass(ramnet: Run, files: Path) -> None:
    lists = ("--allow", str(files / "allow"), "--deny", str(files / "deny"))
    said = ramnet(*arguments(files, *lists))
    assert (said.code, said.err) == (0, "")
    assert said.out == f"{files / 'policy.toml'}: 3 tested, all passed\n"


def test_every_line_that_fails_is_told(ramnet: Run, files: Path) -> None:
    said = ramnet(*arguments(files, "--allow", str(files / "deny"), "--deny", str(files / "allow")))
    assert said.code == 1
    lines = said.out.splitlines()
    assert [line.split(": ")[1] for line in lines[:-1]] == [
        "quay.io/x",
        "registry.corp.example",
        "registry.corp.example:5000/app",
    ]
    assert lines[0].startswith(f"{files / 'deny'}:1: ")
    assert lines[-1].endswith("3 tested, 3 failed")


def test_as_json(ramnet: Run, files: Path) -> None:
    said = ramnet(*arguments(files, "--deny", str(files / "allow"), "--json"))
    found = json.loads(said.out)
    assert said.code == 1
    assert set(found) == {"schema", "source", "digest", "tested", "failed", "passed", "results"}
    assert (found["schema"], found["tested"], found["failed"], found["passed"]) == (1, 1, 1, False)
    (result,) = found["results"]
    assert (result["expected"], result["allowed"], result["line"]) == ("denied", True, 1)


def test_a_test_of_nothing_is_a_usage_error(ramnet: Run, files: Path) -> None:
    said = ramnet(*arguments(files))
    assert said.code == 2
    assert "--allow" in said.err


@pytest.mark.parametrize("name", ["gone", ".", "empty"])
def test_a_list_that_cannot_be_read(ramnet: Run, files: Path, name: str) -> None:
    (files / "empty").touch()
    said = ramnet(*arguments(files, "--allow", str(files / name)))
    assert (said.code, said.out) == (1, "")
    assert str(files / name) in said.err


def test_a_policy_that_is_not_valid(ramnet: Run, files: Path) -> None:
    (files / "policy.toml").write_text("version = 2\n")
    said = ramnet(*arguments(files, "--allow", str(files / "allow")))
    assert (said.code, said.out) == (1, "")

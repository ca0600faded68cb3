"""``ramnet policy``: files good and bad, and the JSON that tools depend on."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from ramnet.core.policy import parse_policy
from ramnet.core.textfile import MAX_FILE_BYTES
from tests.unit.cli.conftest import Run

GOOD = """\
version = 1
organization = "acme"

[[registry]]
address = "docker.io"
nickname = "Docker Hub"

[[registry]]
address = "registry.corp.example:5000"
extra_hosts = ["blobs.corp.example"]
networks = ["10.0.0.0/8"]
expires = 2027-01-31

[[destination]]
address = "github.com"
"""
BAD = 'version = 2\norganisation = "acme"\n[[registry]]\naddress = "https://quay.io"\n'


@pytest.fixture
def good(tmp_path: Path) -> str:
    path = tmp_path / "policy.toml"
    path.write_text(GOOD)
    return str(path)


@pytest.fixture
def bad(tmp_path: Path) -> str:
    path = tmp_path / "policy.toml"
    path.write_text(BAD)
    return str(path)


# validate


def test_a_valid_policy(ramnet: Run, good: str) -> None:
    said = ramnet("policy", "validate", good)
    assert said.code == 0
    (line,) = said.out.splitlines()
    assert line.startswith(f"{good}: valid, 2 registries, sha256:")


def test_a_valid_policy_as_json(ramnet: Run, good: str) -> None:
    said = ramnet("policy", "validate", "--json", good)
    found = json.loads(said.out)
    assert (said.code, said.err) == (0, "")
    assert set(found) == {
        "schema",
        "valid",
        "source",
        "faults",
        "digest",
        "warnings",
        "not_yet_in_force",
    }
    assert (found["schema"], found["valid"], found["source"], found["faults"]) == (
        1,
        True,
        good,
        [],
    )
    assert found["not_yet_in_force"] == []


def test_every_fault_is_told_with_its_place(ramnet: Run, bad: str) -> None:
    said = ramnet("policy", "validate", bad)
    assert (said.code, said.out) == (1, "")
    for part in ("version", "organisation", "organization", "registry[0].address", "line 4"):
        assert part in said.err


def test_faults_as_json(ramnet: Run, bad: str) -> None:
    said = ramnet("policy", "validate", bad, "--json")
    found = json.loads(said.out)
    assert (said.code, said.err) == (1, "")
    assert set(found) == {"schema", "valid", "source", "faults"}
    assert (found["schema"], found["valid"]) == (1, False)
    assert len(found["faults"]) >= 3
    for fault in found["faults"]:
        assert set(fault) == {"place", "line", "message", "hint"}
    (address,) = (item for item in found["faults"] if item["place"] == "registry[0].address")
    assert address["line"] == 4
    assert address["hint"]


def nothing(_path: Path) -> None:
    pass


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)


def content(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


@pytest.mark.parametrize(
    "make",
    [
        nothing,
        Path.mkdir,
        os.mkfifo,
        huge,
        lambda path: path.symlink_to(path),
        content(b""),
        content(b"\n\n# nothing\n"),
        content(b"\x7fELF\x02\x01\x01\x00" + bytes(range(256))),
        content(b"\xff\xfev\x00e\x00r\x00"),
        content(b"version = 1\norganization = '\xed\xa0\x80'\n"),
        content(b"[" * 100_000),
        content(b"a." * 2_000 + b"a = 1"),
        content(b"x = " + b"[" * 50_000),
        content(b"version = " + b"1" * 10_000),
        content(b"version = 1\nversion = 1\n"),
        content(b"registry = 3\n"),
        content(b"[[registry]]\naddress = 2027-01-31T00:00:00Z\n"),
        content(b'organization = """\n\n\n"""\n'),
    ],
)
@pytest.mark.parametrize("suffix", ["toml", "json"])
@pytest.mark.parametrize("verb", [("policy", "validate"), ("policy", "show"), ("explain", "x.io")])
def test_whatever_is_no_policy_is_an_error_and_no_traceback(
    ramnet: Run,
    tmp_path: Path,
    make: Callable[[Path], object],
    suffix: str,
    verb: tuple[str, ...],
) -> None:
    path = tmp_path / f"policy.{suffix}"
    make(path)
    runtime = ("--runtime-dir", str(tmp_path), "--policy") if verb[0] == "explain" else ()
    said = ramnet(*verb, *runtime, str(path))
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("ramnet: ")
    assert str(path) in said.err
    assert len(said.err) < 10_000


@pytest.mark.parametrize("text", ["[" * 100_000, '{"version": ' * 50_000, '{"version": NaN}', "1"])
def test_json_that_is_no_policy(ramnet: Run, tmp_path: Path, text: str) -> None:
    path = tmp_path / "policy.json"
    path.write_text(text)
    said = ramnet("policy", "validate", "--json", str(path))
    assert said.code == 1
    assert json.loads(said.out)["valid"] is False


# Warnings. The file has what no day changes: GOOD has an entry that will expire.

ODD = """\
# what is valid and not meant
version = 1
organization = "acme"

[[registry]]
address = "quay.io"
extra_hosts = [
    "blobs.example",
    "*.s3.amazonaws.com",
]
"""


@pytest.fixture
def odd(tmp_path: Path) -> str:
    path = tmp_path / "odd.toml"
    path.write_text(ODD)
    return str(path)


def test_warnings_are_told_with_their_line_and_change_no_exit_code(ramnet: Run, odd: str) -> None:
    said = ramnet("policy", "validate", odd)
    assert said.code == 0
    assert said.out.startswith(f"{odd}: valid, 1 registries, sha256:")
    hub, tenant = said.err.splitlines()
    assert hub.startswith("warning: line 5: registry: docker.io is not listed")
    assert hub.endswith(" [docker-hub-missing]")
    assert tenant.startswith("warning: line 9: registry[0].extra_hosts[1]: any customer there")
    assert tenant.endswith(" [tenant-chosen]")


def test_warnings_as_json(ramnet: Run, odd: str) -> None:
    said = ramnet("policy", "validate", "--json", odd)
    assert (said.code, said.err) == (0, "")
    hub, tenant = json.loads(said.out)["warnings"]
    for warning in (hub, tenant):
        assert set(warning) == {"kind", "place", "line", "message", "hint"}
    assert (tenant["kind"], tenant["line"]) == ("tenant-chosen", 9)
    assert tenant["place"] == "registry[0].extra_hosts[1]"


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_strict_makes_a_warning_a_failure_unless_it_is_ignored(
    ramnet: Run, odd: str, form: tuple[str, ...]
) -> None:
    strict = ("policy", "validate", "--strict", *form, odd)
    ignore = ("--ignore", "docker-hub-missing")
    assert ramnet(*strict).code == 1
    assert ramnet(*strict, *ignore).code == 1
    assert ramnet(*strict, *ignore, "--ignore", "tenant-chosen").code == 0


def test_a_kind_of_warning_that_there_is_not(ramnet: Run, odd: str) -> None:
    said = ramnet("policy", "validate", "--ignore", "nonsense", odd)
    assert said.code == 2
    assert "docker-hub-missing" in said.err


def test_a_warning_of_a_policy_in_json_has_its_line(ramnet: Run, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    entries = '[\n{"address": "docker.io"},\n{"address": "*.com"}\n]'
    path.write_text(f'{{"version": 1, "organization": "acme",\n"registry": {entries}}}')
    said = ramnet("policy", "validate", str(path))
    assert said.err.startswith("warning: line 4: registry[1].address: anybody can register")


def test_show_has_the_warnings(ramnet: Run, odd: str) -> None:
    said = ramnet("policy", "show", odd)
    assert said.code == 0
    lines = [line for line in said.out.splitlines() if line.startswith("warning       line ")]
    assert len(lines) == 2
    shown = json.loads(ramnet("policy", "show", "--json", odd).out)["warnings"]
    assert [warning["kind"] for warning in shown] == ["docker-hub-missing", "tenant-chosen"]


# show


def test_show_spells_the_policy_out(ramnet: Run, good: str) -> None:
    said = ramnet("policy", "show", good)
    assert said.code == 0
    for line in (
        "registry      docker.io  (Docker Hub)",
        "registry      registry.corp.example:5000  until 2027-01-31",
        "  extra host  blobs.corp.example",
        "  network     10.0.0.0/8",
        "destination   github.com",
        "enforcement   mode = enforce",
    ):
        assert line in said.out.splitlines()


def test_show_as_json_gives_a_policy_of_the_same_digest(
    ramnet: Run, good: str, tmp_path: Path
) -> None:
    said = ramnet("policy", "show", "--json", good)
    found: dict[str, Any] = json.loads(said.out)
    assert said.code == 0
    assert set(found) == {"schema", "source", "digest", "warnings", "policy", "not_yet_in_force"}
    assert (found["schema"], found["source"]) == (1, good)
    again = tmp_path / "again.json"
    again.write_text(json.dumps(found["policy"]))
    shown = json.loads(ramnet("policy", "show", "--json", str(again)).out)
    assert shown["digest"] == found["digest"]
    assert shown["policy"] == found["policy"]


def test_a_path_that_is_no_text_can_be_told_as_json(ramnet: Run, tmp_path: Path) -> None:
    """Python hands on a byte that is not UTF-8 as a lone surrogate, which UTF-8 cannot say."""
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.toml")
    Path(path).write_text(GOOD)
    said = ramnet("policy", "show", "--json", path)
    assert said.code == 0
    assert json.loads(said.out)["source"] == path


# init


def test_a_first_policy_is_valid(ramnet: Run) -> None:
    said = ramnet("policy", "init", "--organization", 'Größe & "Söhne"')
    assert said.code == 0
    assert tomllib.loads(said.out)["organization"] == 'Größe & "Söhne"'
    assert tomllib.loads(said.out)["enforcement"] == {"mode": "audit"}
    found = parse_policy(said.out, source="policy.toml", ramnet_version="0.1.0")
    assert [str(entry.address) for entry in found.active(date(2026, 1, 1))] == ["docker.io"]


def test_a_first_policy_in_a_file_that_is_never_overwritten(ramnet: Run, tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    init = ("policy", "init", "--organization", "acme", "--output", str(path))
    assert ramnet(*init).out == f"wrote {path}\n"
    assert ramnet("policy", "validate", str(path)).code == 0
    path.write_text("mine")
    said = ramnet(*init)
    assert said.code == 1
    assert said.err == f"ramnet: {path} exists already\nhint: choose another --output\n"
    assert path.read_text() == "mine"


@pytest.mark.parametrize("output", ["gone/policy.toml", "", "file/x"])
def test_a_place_that_cannot_be_written(
    ramnet: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    said = ramnet("policy", "init", "--organization", "acme", "--output", output)
    assert said.code == 1
    assert said.err.startswith("ramnet: ")


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 1000, "\x1b[31m"])
def test_an_organization_that_is_no_name(ramnet: Run, name: str) -> None:
    said = ramnet("policy", "init", "--organization", name)
    assert (said.code, said.out) == (1, "")
    assert "organization" in said.err

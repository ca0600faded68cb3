"""``ramnet doctor`` without a reference.

The policies here allow nothing that DNS could be asked for: no query leaves the machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ramnet.core.policy import policy_digest
from ramnet.host.files import read_policy
from tests.unit.cli.conftest import Answer, Run

KEYS = {"schema", "organization", "audit", "passed", "registries", "left_out", "entries"}
KEYS |= {"unreadable", "dns", "policy", "in_force"}
ROW = {"source", "registry", "host", "port", "roles", "verdict", "reason", "entry", "note"}
ROW |= {"advice", "remarks"}
POLICY = 'version = 1\norganization = "acme"\n[[registry]]\naddress = "localhost:5000"\n'


class World:
    """A home, a Dockerfile and a policy; the machine's own settings may say more."""

    def __init__(self, base: Path, run: Run) -> None:
        self.base = base
        self.run = run
        self.policy = base / "policy.toml"
        self.policy.write_text(POLICY)
        self.docker = base / "home/.docker/config.json"
        self.docker.parent.mkdir(parents=True)
        self.dockerfile = base / "Dockerfile"
        self.dockerfile.write_text("FROM scratch\n")
        self.log_in("localhost:5000")

    def log_in(self, *hosts: str) -> None:
        self.docker.write_text(json.dumps({"auths": {host: {"auth": "hunter2"} for host in hosts}}))

    @property
    def arguments(self) -> tuple[str, ...]:
        paths = ("--home", str(self.base / "home"), "--dockerfile", str(self.dockerfile))
        return ("doctor", *paths, "--policy", str(self.policy), "--runtime-dir", str(self.base))

    def text(self) -> str:
        said = self.run(*self.arguments)
        assert said.err == ""
        return said.out

    def report(self) -> dict[str, Any]:
        said = self.run(*self.arguments, "--json")
        report = json.loads(said.out)
        assert (report.keys(), report["schema"], said.code) == (KEYS, 1, int(not report["passed"]))
        assert all(row.keys() == ROW for row in report["registries"])
        assert isinstance(report, dict)
        return report

    def rows(self) -> list[dict[str, Any]]:
        """Give the rows that come from the files here."""
        rows = self.report()["registries"]
        return [row for row in rows if row["source"].startswith(str(self.base))]


@pytest.fixture
def world(tmp_path: Path, ramnet: Run, monkeypatch: pytest.MonkeyPatch) -> World:
    for name in ("DOCKER_CONFIG", "SUDO_USER"):
        monkeypatch.delenv(name, raising=False)
    return World(tmp_path, ramnet)


def test_what_is_allowed(world: World) -> None:
    (row,) = world.rows()
    assert (row["registry"], row["verdict"], row["entry"]) == (
        "localhost:5000",
        "allowed",
        "localhost:5000",
    )
    assert row["source"] == str(world.docker)


def test_what_is_denied_fails_and_says_what_to_add(world: World) -> None:
    world.log_in("https://index.docker.io/v1/", "10.9.8.7:5000")
    world.dockerfile.write_text("# syntax=quay.io/acme/frontend:1\n")
    said = world.run(*world.arguments)
    assert said.code == 1
    for line in (
        f"quay.io ({world.dockerfile}): denied",
        '  in the policy: [[registry]], address = "quay.io"',
        "  or run: ramnet policy add quay.io",
        "  or run: ramnet policy add docker.io",
        "  or run: ramnet policy add 10.9.8.7:5000",
        f"judged by {world.policy} alone: no daemon is running",
    ):
        assert line in said.out.splitlines()
    assert "hunter2" not in said.out
    assert [(row["registry"], row["roles"]) for row in world.rows()] == [
        ("index.docker.io", ["login"]),
        ("10.9.8.7:5000", ["login"]),
        ("quay.io", ["frontend"]),
    ]


def test_a_file_that_cannot_be_read_fails(world: World) -> None:
    world.docker.write_text('{"auths": "hunter2"')
    said = world.run(*world.arguments)
    assert said.code == 1
    assert (
        f"{world.docker}: it is not valid JSON (line 1): what it names was not judged" in said.out
    )
    assert "hunter2" not in said.out


def test_a_note_of_the_catalogue_is_printed_once(world: World) -> None:
    world.log_in("a.azurecr.io", "b.azurecr.io")
    assert world.text().count("note: ") == 1


def test_a_hostile_name_does_not_reach_the_terminal(world: World) -> None:
    path = world.base / "a\x1b[31mb"
    path.write_text("# syntax=quay.io/a/b\n")
    world.dockerfile = path
    text = world.text()
    assert "\x1b" not in text
    assert "quay.io" in text


def test_audit_and_unknown_are_said(world: World) -> None:
    world.policy.write_text(POLICY + '[enforcement]\nmode = "audit"\n')
    world.log_in("///")
    (row,) = world.rows()
    assert row["verdict"] == "unknown"
    text = world.text()
    assert "UNKNOWN" in text
    assert f"{world.policy} only audits: what is denied here passes, and is recorded" in text


def test_whether_the_daemon_enforces_this_policy(world: World, daemon: dict[str, Answer]) -> None:
    digest = policy_digest(read_policy(str(world.policy)))
    daemon["status"] = {"policy": {"digest": digest}}
    assert world.report()["in_force"] is True
    assert "judged by" not in world.text()
    daemon["status"] = {"policy": {"digest": None}}
    assert world.report()["in_force"] is False
    assert f"judged by {world.policy}; the daemon enforces another policy" in world.text()
    daemon["status"] = {}
    assert world.report()["in_force"] is False


@pytest.mark.parametrize(
    ("option", "hint"),
    [("--home", "--home names the home of a user"), ("--dockerfile", "--dockerfile names a Doc")],
)
def test_what_is_not_there_is_told(world: World, option: str, hint: str) -> None:
    said = world.run(*world.arguments, option, str(world.base / "gone"))
    assert (said.code, said.out) == (1, "")
    assert hint in said.err


def test_without_a_policy_there_is_nothing_to_judge_by(world: World) -> None:
    world.policy.unlink()
    said = world.run(*world.arguments)
    assert (said.code, said.out) == (1, "")
    assert "does not exist" in said.err

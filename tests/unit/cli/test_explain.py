"""``ramnet explain``, with and without a daemon."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ramnet.errors import ControlError
from tests.unit.cli.conftest import Answer, Run

KEYS = {"schema", "target", "host", "port", "allowed", "reason", "registry", "leases", "source"}
REPORT = {
    "schema": 1,
    "target": "quay.io",
    "host": "quay.io",
    "port": 443,
    "allowed": True,
    "reason": "catalogue: api host of quay.io",
    "registry": "quay.io",
    "leases": [
        {"address": "198.51.100.1", "port": 443, "seconds": 300, "names": ["quay.io", "b.example"]}
    ],
    "source": "daemon",
}


@pytest.fixture
def arguments(tmp_path: Path) -> tuple[str, ...]:
    path = tmp_path / "policy.toml"
    path.write_text('version = 1\norganization = "acme"\n[[registry]]\naddress = "docker.io"\n')
    return ("--policy", str(path), "--runtime-dir", str(tmp_path))


@pytest.mark.parametrize("verb", ["explain", "why"])
def test_without_a_daemon_the_policy_file_is_asked(
    ramnet: Run, arguments: tuple[str, ...], verb: str
) -> None:
    said = ramnet(verb, "nginx", *arguments)
    assert said.code == 0
    assert said.out.splitlines() == [
        "nginx: allowed",
        "  host      registry-1.docker.io port 443",
        "  reason    catalogue: api host of docker.io",
        "  registry  docker.io",
        "  source    the policy file alone: no daemon is running",
    ]


def test_denied_is_an_exit_code(ramnet: Run, arguments: tuple[str, ...]) -> None:
    said = ramnet("why", "quay.io/org/app:v1", *arguments)
    assert said.code == 1
    assert said.out.splitlines()[0] == "quay.io/org/app:v1: denied"
    assert "registry" not in said.out.replace("no registry of", "")


@pytest.mark.parametrize(("target", "code"), [("nginx", 0), ("quay.io", 1), ("10.0.0.1:5000", 1)])
def test_the_keys_of_json(ramnet: Run, arguments: tuple[str, ...], target: str, code: int) -> None:
    said = ramnet("explain", "--json", target, *arguments)
    found = json.loads(said.out)
    assert (said.code, said.err) == (code, "")
    assert set(found) == KEYS
    assert (found["schema"], found["target"], found["source"]) == (1, target, "policy")
    assert found["allowed"] is (code == 0)


@pytest.mark.parametrize(
    "target", ["", " ", "https://quay.io", "*.quay.io", "a b", "x:99999/a", "UPPER", "\x1b[31m"]
)
def test_a_target_that_is_none(ramnet: Run, arguments: tuple[str, ...], target: str) -> None:
    said = ramnet("explain", target, *arguments)
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("ramnet: ")
    assert "hint: " in said.err
    assert "\x1b" not in said.err


def test_a_daemon_is_asked_first(
    ramnet: Run, arguments: tuple[str, ...], daemon: dict[str, Answer]
) -> None:
    daemon["explain"] = REPORT
    said = ramnet("explain", "quay.io", *arguments)
    assert said.code == 0
    assert said.out.splitlines() == [
        "quay.io: allowed",
        "  host      quay.io port 443",
        "  reason    catalogue: api host of quay.io",
        "  registry  quay.io",
        "  lease     198.51.100.1 port 443, 300 s left, from quay.io, b.example",
    ]
    assert json.loads(ramnet("explain", "--json", "quay.io", *arguments).out) == REPORT
    daemon["explain"] = REPORT | {"allowed": False}
    assert ramnet("explain", "quay.io", *arguments).code == 1


def test_a_daemon_that_refuses_is_not_passed_over(
    ramnet: Run, arguments: tuple[str, ...], daemon: dict[str, Answer]
) -> None:
    daemon["explain"] = ControlError("the daemon is still starting", hint="try again")
    said = ramnet("explain", "nginx", *arguments)
    assert (said.code, said.out) == (1, "")
    assert said.err == "ramnet: the daemon is still starting\nhint: try again\n"


def test_the_runtime_dir_may_come_from_the_environment(
    ramnet: Run, tmp_path: Path, daemon: dict[str, Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon["explain"] = REPORT
    monkeypatch.setenv("RAMNET_RUNTIME_DIR", str(tmp_path))
    assert ramnet("explain", "quay.io").out.startswith("quay.io: allowed\n")

"""``ramnet check``, and what ``ramnet run`` refuses, with a kernel that is pretended."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ramnet import daemon
from ramnet.core.kernel import NEEDS, Evidence, Feature, decide, parse_release
from ramnet.host import kernel as module
from ramnet.host.kernel import Kernel
from tests.unit.cli.conftest import Run

STRICT = '[scope]\nmode = "netns"\nweak = "strict"\n'


def pretend(monkeypatch: pytest.MonkeyPatch, *absent: Feature, release: str = "6.12.0") -> None:
    evidence = {
        feature: Evidence(feature, feature not in absent, f"[tried] {feature}")
        for feature in Feature
    }
    parsed = parse_release(release)
    kernel = Kernel(parsed, evidence, decide(parsed, evidence))
    for user in (module, daemon):
        monkeypatch.setattr(user, "look_at_kernel", lambda: kernel)
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "ramnet.toml"
    path.write_text(STRICT)
    return str(path)


def checked(ramnet: Run, config: str) -> tuple[int, dict[str, Any]]:
    said = ramnet("check", "--json", "--config", config)
    found: dict[str, Any] = json.loads(said.out)
    return said.code, found


def test_a_kernel_that_can(ramnet: Run, config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, Feature.QUEUE)
    code, found = checked(ramnet, config)
    assert code == 0
    assert set(found) == {
        "schema",
        "kernel",
        "supported",
        "can_run",
        "problem",
        "hint",
        "modes",
        "features",
        "not_covered",
        "warnings",
    }
    assert (found["schema"], found["kernel"]) == (1, "6.12.0")
    assert (found["supported"], found["can_run"]) == (True, True)
    assert (found["problem"], found["hint"]) == (None, None)
    assert found["modes"] == {"scope": "netns", "dns": "hold", "rung": "compat"}


def test_every_feature_is_tabled_with_what_its_absence_costs(
    ramnet: Run, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, Feature.LOG)
    code, found = checked(ramnet, config)
    assert code == 3
    assert {item["feature"] for item in found["features"]} == {str(f) for f in Feature}
    for item in found["features"]:
        need = NEEDS[Feature(item["feature"])]
        assert item == {
            "feature": item["feature"],
            "present": item["feature"] != "log",
            "required": need.required,
            "evidence": f"[tried] {item['feature']}",
            "option": need.option,
            "cost_if_absent": need.cost,
            "remedy": need.remedy,
        }
    text = ramnet("check", "--config", config)
    assert text.code == 3
    plain = " ".join(text.out.replace("│", " ").split())
    for feature in Feature:
        assert f"[tried] {feature}" in plain
    assert "DNS answers cannot be seen" in plain
    assert "ramnet cannot run: this kernel cannot enforce:" in plain


def test_a_kernel_that_is_too_old(
    ramnet: Run, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, release="4.19.128-microsoft-standard")
    code, found = checked(ramnet, config)
    assert (code, found["supported"], found["can_run"]) == (3, False, False)
    assert "older than 5.4" in found["problem"]
    assert "wsl --update" in found["problem"]
    assert found["modes"] == {}


def test_a_release_that_cannot_be_read(
    ramnet: Run, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, release="custom")
    code, found = checked(ramnet, config)
    assert (code, found["kernel"]) == (0, None)


@pytest.mark.parametrize(
    ("absent", "scope"),
    [
        ((), "cgroup"),
        ((Feature.SOCKET_CGROUP,), "mark"),
        ((Feature.SOCKET_CGROUP, Feature.CGROUP_BPF), "uid"),
    ],
)
def test_without_a_configuration_the_best_scope_is_taken(
    ramnet: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    absent: tuple[Feature, ...],
    scope: str,
) -> None:
    pretend(monkeypatch, *absent)
    code, found = checked(ramnet, str(tmp_path / "gone.toml"))
    assert (code, found["can_run"], found["modes"]["scope"]) == (0, True, scope)


@pytest.fixture
def asking(tmp_path: Path) -> str:
    """A configuration that asks for a scope."""
    path = tmp_path / "asking.toml"
    path.write_text('[scope]\nmode = "cgroup"\n')
    return str(path)


def test_a_good_kernel_without_the_scope_that_is_asked_for(
    ramnet: Run, asking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, Feature.SOCKET_CGROUP)
    code, found = checked(ramnet, asking)
    assert (code, found["supported"], found["can_run"]) == (3, True, False)
    assert "scope 'cgroup' is configured" in found["problem"]
    assert "[tried] socket-cgroupv2" in found["problem"]
    assert 'mode = "auto"' in found["hint"]
    assert found["modes"] == {}


@pytest.mark.parametrize("verb", ["check", "run"])
def test_a_configuration_with_faults(
    ramnet: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    pretend(monkeypatch)
    path = tmp_path / "ramnet.toml"
    path.write_text("[scope]\nmode = 'all'\n[dsn]\n")
    said = ramnet(verb, "--config", str(path))
    assert (said.code, said.out) == (1, "")
    assert "2 faults" in said.err
    assert "line 2" in said.err
    path.unlink()
    path.mkdir()
    assert ramnet(verb, "--config", str(path)).code == 1


def test_run_refuses_what_check_refuses(
    ramnet: Run, asking: str, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, Feature.SOCKET_CGROUP)
    said = ramnet("run", "--config", asking)
    assert said.code == 3
    assert "scope 'cgroup' is configured" in said.err
    pretend(monkeypatch, Feature.SETS)
    said = ramnet("run", "--config", config)
    assert said.code == 3
    assert "sets: allowed addresses cannot be held" in said.err
    assert "hint: `ramnet check`" in said.err

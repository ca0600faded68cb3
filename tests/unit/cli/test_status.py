"""``ramnet status`` and ``ramnet off``, against a daemon that says what it is told to."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ramnet.core.config import DnsMode, ScopeMode
from ramnet.core.events import PolicyRejected
from ramnet.core.modes import Modes
from ramnet.core.policy import ClassMode, parse_policy
from ramnet.core.report import Facts, Notice, standby_report, status_report
from ramnet.core.scope import Scope
from ramnet.core.terms import Rung
from ramnet.errors import ControlError
from ramnet.host.loading import Removed
from tests.unit.cli.conftest import Answer, Run
from tests.unit.core.support import CGROUP, STRICT, Story, settings

FACTS = Facts(
    version="0.1.0",
    pid=1,
    kernel="6.12.0",
    missing=(),
    modes=Modes(
        ScopeMode.NETNS,
        "configured",
        DnsMode.OBSERVE,
        "copies",
        Rung.OBSERVE,
        ClassMode.CATALOG,
        "by default",
    ),
    pinned=False,
    servers=("192.0.2.53", "2001:db8::53"),
    policy_path="/etc/ramnet/policy.toml",
    counters={"refused": 42},
    lost=0,
    groups=(),
    findings=(),
    left_out=(),
    plugged=(),
    hold=None,
    notice=Notice(7261, 3, ""),
)


def report(organization: str = "acme", problem: str = "", scope: Scope = STRICT) -> dict[str, Any]:
    text = json.dumps(
        {"version": 1, "organization": organization, "registry": [{"address": "[::1]:5000"}]}
    )
    story = Story(settings=settings(scope))
    story.start(parse_policy(text, source="p.json", ramnet_version="0.1.0"))
    if problem:
        story.tell(PolicyRejected(problem))
    modes = replace(FACTS.modes, scope=scope.mode)
    return status_report(story.engine, replace(FACTS, modes=modes, groups=scope.groups))


def test_no_daemon_is_running(ramnet: Run, tmp_path: Path) -> None:
    said = ramnet("status", "--runtime-dir", str(tmp_path))
    assert (said.code, said.out) == (3, "")
    assert f"not running: no daemon answers in {tmp_path}" in said.err
    assert "hint: a daemon that stopped leaves its rules in force" in said.err


def test_no_daemon_is_running_as_json(ramnet: Run, tmp_path: Path) -> None:
    said = ramnet("status", "--json", "--runtime-dir", str(tmp_path))
    found = json.loads(said.out)
    assert said.code == 3
    assert set(found) == {"schema", "state", "running", "warnings"}
    assert (found["schema"], found["state"], found["running"]) == (1, "off", False)


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ("enforcing", 0),
        ("auditing", 0),
        ("degraded", 4),
        ("locked-down", 4),
        ("paused", 4),
        ("off", 4),
        ("of a later version", 4),
    ],
)
def test_exit_codes_of_states(
    ramnet: Run, tmp_path: Path, daemon: dict[str, Answer], state: str, code: int
) -> None:
    daemon["status"] = report() | {"state": state}
    for arguments in ((), ("--json",)):
        said = ramnet("status", "--runtime-dir", str(tmp_path), *arguments)
        assert (said.code, said.err) == (code, "")
        assert state in said.out


def test_one_that_stands_by_is_well_and_says_whose_rules_hold(
    ramnet: Run, tmp_path: Path, daemon: dict[str, Answer]
) -> None:
    daemon["status"] = standby_report("0.1.0", 7, "6.12.0")
    said = ramnet("status", "--runtime-dir", str(tmp_path))
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines() == [
        "state      standby: another ramnet enforces its own policy in this network namespace",
        "hint: its `ramnet status` tells what is enforced; this one takes over from it",
    ]
    said = ramnet("status", "--json", "--runtime-dir", str(tmp_path))
    assert (said.code, json.loads(said.out)) == (0, daemon["status"])


def test_one_that_stands_by_claims_nothing() -> None:
    """Whoever reads the JSON of one state reads that of another: the keys are the same."""
    said, other = standby_report("0.1.0", 7, "6.12.0"), report()
    assert set(said) - {"because"} <= set(other)
    assert (said["schema"], said["pid"], said["kernel"]) == (other["schema"], 7, "6.12.0")
    for name in ("scope", "dns", "policy", "classes"):
        assert set(said[name]) <= set(other[name]), name
    assert set(said["classes"]) == set(other["classes"])
    for judged in said["classes"].values():
        assert (judged["wanted"], judged["enforced"]) == ("unknown", "unknown")
    assert "enforcing" not in json.dumps(said)


def test_json_is_what_the_daemon_said(
    ramnet: Run, tmp_path: Path, daemon: dict[str, Answer]
) -> None:
    daemon["status"] = report("Größe")
    said = ramnet("status", "--json", "--runtime-dir", str(tmp_path))
    assert json.loads(said.out) == daemon["status"]


def test_the_text_tells_what_matters(
    ramnet: Run, tmp_path: Path, daemon: dict[str, Answer]
) -> None:
    daemon["status"] = report(problem="line 3: bad")
    lines = ramnet("status", "--runtime-dir", str(tmp_path)).out.splitlines()
    assert lines[0] == "state      enforcing"
    assert lines[1].startswith("policy     acme  sha256:")
    assert "registries [::1]:5000" in lines
    assert "scope      netns (TCP ports 80, 443, 5000): configured" in lines
    (counts,) = (line for line in lines if line.startswith("leases "))
    assert counts.split() == ["leases", "0", "denied", "0", "refused", "42"]
    assert any(line.split()[:3] == ["engine", "strict", "strict"] for line in lines)
    assert any(line.split()[:3] == ["containers", "catalog", "catalog"] for line in lines)
    assert "not covered:" in lines
    assert "  - policy rejected (the policy before stands): line 3: bad" in lines


def test_a_scope_that_judges_every_port(
    ramnet: Run, tmp_path: Path, daemon: dict[str, Answer]
) -> None:
    daemon["status"] = report(scope=CGROUP)
    lines = ramnet("status", "--runtime-dir", str(tmp_path)).out.splitlines()
    assert "scope      cgroup (all ports): configured" in lines


@pytest.mark.parametrize("name", ["[/b]", "[red]acme[/red]", "[acme]", "acme [/]", "[link=x]y"])
def test_a_name_in_brackets_is_shown_as_it_is(
    ramnet: Run, tmp_path: Path, daemon: dict[str, Answer], name: str
) -> None:
    daemon["status"] = report(name)
    said = ramnet("status", "--runtime-dir", str(tmp_path))
    assert said.code == 0
    assert f"policy     {name}  sha256:" in said.out


def test_a_daemon_that_refuses(ramnet: Run, tmp_path: Path, daemon: dict[str, Answer]) -> None:
    daemon["status"] = ControlError("no", hint="later")
    said = ramnet("status", "--runtime-dir", str(tmp_path))
    assert (said.code, said.err) == (1, "ramnet: no\nhint: later\n")


def test_off_tells_that_nothing_is_enforced_any_more(
    ramnet: Run, tmp_path: Path, daemon: dict[str, Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    daemon["off"] = {"removed": True, "problem": None}
    said = ramnet("off", "--runtime-dir", str(tmp_path))
    assert said.code == 0
    assert "nothing is enforced" in said.out


@pytest.mark.parametrize(
    ("found", "problem", "says"),
    [
        (True, "", "the rules were removed"),
        (True, "a mark may be left", "the rules were removed"),
        (False, "", "there were no rules to remove"),
    ],
)
def test_off_without_a_daemon_removes_the_rules_itself(
    ramnet: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    found: bool,
    problem: str,
    says: str,
) -> None:
    configs: list[str] = []

    def remove(config: str) -> Removed:
        configs.append(config)
        return Removed(found, problem)

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("ramnet.daemon.remove_all_without_daemon", remove)
    path = str(tmp_path / "ramnet.toml")
    said = ramnet("off", "--runtime-dir", str(tmp_path), "--config", path)
    assert said.code == 0
    assert configs == [path], "which names the cgroups that may be marked"
    assert said.out == f"ramnet: {says}; no daemon was running\n"
    assert said.err == ("ramnet: a mark may be left\n" if problem else "")


def test_it_says_how_refusals_look(ramnet: Run, tmp_path: Path, daemon: dict[str, Answer]) -> None:
    said = report()
    daemon["status"] = said
    lines = ramnet("status", "--runtime-dir", str(tmp_path)).out.splitlines()
    assert "refusals   engine reject, host reject, containers reject; 3 got a notice" in lines
    daemon["status"] = said | {"refusal": said["refusal"] | {"mode": "audit"}}
    lines = ramnet("status", "--runtime-dir", str(tmp_path)).out.splitlines()
    assert any(line.startswith("refusals   none: the policy only watches") for line in lines)

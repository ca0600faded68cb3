"""``ramnet wsl`` on a tree of files that stands for a distribution."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ramnet.host import wsl
from tests.unit.cli.conftest import Answer, Run

KERNEL = "6.6.87.2-microsoft-standard-WSL2"
CONF = "[user]\ndefault=dev\n"


def write(root: Path, path: str, text: str) -> None:
    place = root / path.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(wsl, "ROOT", tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    write(tmp_path, "proc/sys/kernel/osrelease", KERNEL)
    write(tmp_path, wsl.HOOK, "")
    write(tmp_path, wsl.CONF, CONF)
    return tmp_path


def test_elsewhere_every_verb_says_so(ramnet: Run, root: Path) -> None:
    write(root, "proc/sys/kernel/osrelease", "6.12.0")
    for verb in ("install", "uninstall", "status"):
        said = ramnet("wsl", verb)
        assert said.code == 3
        assert "not a distribution of WSL2" in said.err
    said = ramnet("wsl", "status", "--json")
    assert said.code == 3
    assert json.loads(said.out)["wsl2"] is False


def test_changes_need_root(ramnet: Run, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for verb in ("install", "uninstall"):
        assert ramnet("wsl", verb).code == 77
    assert (root / wsl.CONF).read_text() == CONF


def test_a_dry_run_shows_what_would_be_done(ramnet: Run, root: Path) -> None:
    said = ramnet("wsl", "install", "--dry-run", "--engine-command", "service docker start")
    assert said.code == 0
    assert "would write /etc/wsl.conf\n" in said.out
    assert f"  +command = {wsl.HOOK}\n" in said.out
    assert "would write /etc/ramnet/wsl/engine-command" in said.out
    assert (root / wsl.CONF).read_text() == CONF


def test_install_and_uninstall(ramnet: Run, root: Path) -> None:
    said = ramnet("wsl", "install", "--json", "--engine-command", "service docker start")
    found = json.loads(said.out)
    assert (said.code, found["done"], found["start"]) == (0, True, "hook")
    assert "/etc/wsl.conf" in found["changed"]
    assert any("wsl --terminate" in note for note in found["notes"])
    assert "nothing to do" in ramnet("wsl", "install").out
    said = ramnet("wsl", "uninstall")
    assert said.code == 0
    assert f"  -command = {wsl.HOOK}\n" in said.out
    assert (root / wsl.CONF).read_text() == CONF


def test_status(ramnet: Run, root: Path, daemon: dict[str, Answer], tmp_path: Path) -> None:
    arguments = ("wsl", "status", "--runtime-dir", str(tmp_path), "--config", str(tmp_path / "no"))
    daemon["status"] = {"state": "enforcing"}
    assert ramnet(*arguments).code == 4  # nobody starts it
    ramnet("wsl", "install", "--engine-command", "service docker start")
    write(root, "run/ramnet/booted", "today")
    (root / "mnt/wsl/docker-desktop").mkdir(parents=True)
    said = ramnet(*arguments, "--json")
    found = json.loads(said.out)
    assert said.code == 0
    assert (found["start"], found["daemon"], found["kernel"]) == ("hook", "enforcing", KERNEL)
    assert found["hook"]["engine_command"] == "service docker start"
    assert found["docker_desktop"]["covered"] is False
    assert "Registry Access Management" in found["docker_desktop"]["because"]
    shown = ramnet(*arguments).out
    for words in ("started by     hook", "not covered    Docker Desktop", "service docker start"):
        assert words in shown

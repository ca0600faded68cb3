"""``ramnet lock``, its usage; what it does to a kernel is in tests/netns/test_lock.py."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ramnet.core.config import Config
from ramnet.errors import HostError, UnsupportedKernel
from tests.unit.cli.conftest import Run

Asked = list[tuple[Config, str, bool]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Be root, and note what the verb asks for in the place of doing it."""
    found: Asked = []

    def lock(config: Config, state_dir: str, *, load: bool = True) -> str:
        found.append((config, state_dir, load))
        return "done"

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("ramnet.host.lockdown.lock", lock)
    monkeypatch.delenv("RAMNET_STATE_DIR", raising=False)
    return found


def test_it_loads_by_default(ramnet: Run, asked: Asked, tmp_path: Path) -> None:
    said = ramnet("lock", "--config", str(tmp_path / "none.toml"))
    assert (said.code, said.out, said.err) == (0, "ramnet: done\n", "")
    assert asked == [(Config(), "/var/lib/ramnet", True)]


def test_it_can_only_write(ramnet: Run, asked: Asked, tmp_path: Path) -> None:
    config = tmp_path / "ramnet.toml"
    config.write_text('[scope]\nmode = "uid"\nuids = [7]\n', encoding="utf-8")
    said = ramnet("lock", "--config", str(config), "--state-dir", "/state", "--write-only")
    assert said.code == 0
    ((found, state_dir, load),) = asked
    assert (found.scope.uids, state_dir, load) == ((7,), "/state", False)


def test_the_script_names_the_state_directory_by_its_environment(
    ramnet: Run, asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAMNET_STATE_DIR", "/elsewhere")
    assert ramnet("lock", "--config", str(tmp_path / "none.toml")).code == 0
    assert asked[0][1] == "/elsewhere"


def test_a_broken_configuration_locks_nothing(ramnet: Run, asked: Asked, tmp_path: Path) -> None:
    config = tmp_path / "ramnet.toml"
    config.write_text("[scope\n", encoding="utf-8")
    said = ramnet("lock", "--config", str(config))
    assert said.code == 1
    assert str(config) in said.err
    assert asked == []


@pytest.mark.parametrize(
    ("error", "code"),
    [(HostError("no room", hint="make some"), 1), (UnsupportedKernel("too old", hint="newer"), 3)],
)
def test_failures_say_why(
    ramnet: Run, asked: Asked, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    def lock(*_: Any, **__: Any) -> str:
        raise error

    assert asked == []
    monkeypatch.setattr("ramnet.host.lockdown.lock", lock)
    said = ramnet("lock", "--config", "/nowhere/at/all.toml")
    assert (said.code, said.out) == (code, "")
    assert said.err.startswith("ramnet: ")
    assert "\nhint: " in said.err

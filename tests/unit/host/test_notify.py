"""sd_notify(3), with a socket in the place of the service manager."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from ramnet.host.notify import notify


def test_without_a_service_manager_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")


@pytest.mark.parametrize(
    "address", ["", "relative", "vsock:2:1", "/nowhere/at/all", "/" + "x" * 200]
)
def test_an_address_that_leads_nowhere(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not notify("READY=1")


@pytest.mark.parametrize("abstract", [False, True])
def test_the_state_arrives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, abstract: bool) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{path}" if abstract else path)
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{path}" if abstract else path)
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count
        assert notify("READY=1\nSTATUS=enforcing")
        assert manager.recv(100) == b"READY=1\nSTATUS=enforcing"
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208

"""The units as systemd reads them, and how little the daemon is left with."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramnet.host.notice import START_SECONDS
from ramnet.host.notify import NOTICE_SOCKETS
from ramnet.host.responder import ALIVE_SECONDS

ROOT = Path(__file__).resolve().parents[2]
SYSTEMD = ROOT / "systemd"
KINDS = ("service", "slice", "socket")
UNITS = sorted(path.name for path in SYSTEMD.iterdir() if path.suffix[1:] in KINDS)
ENGINES = ("docker", "containerd", "podman", "buildkit")
EXPOSURE = 2.0
EXPOSURE_OF_NOTICE = 0.6
ANALYZE = shutil.which("systemd-analyze")
LOCK = "/opt/ramnet/current/libexec/ramnet-lock"
WAIT = "/opt/ramnet/current/libexec/ramnet-wait"

needs_systemd = pytest.mark.skipif(
    ANALYZE is None and os.environ.get("CI") != "true", reason="needs systemd-analyze"
)


def settings(name: str) -> dict[str, list[str]]:
    """Return what a unit sets, each key with all its values in order."""
    found: dict[str, list[str]] = {}
    for line in (SYSTEMD / name).read_text("utf-8").splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith(("#", "[")):
            found.setdefault(key, []).append(value)
    return found


def words(name: str, key: str) -> set[str]:
    """Return the words of all lines of a key."""
    return {word for value in settings(name).get(key, []) for word in value.split()}


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments], check=False, capture_output=True, text=True
    )


# --- as systemd reads them


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """The file system of a machine on which all of it, and an engine of each kind, is installed."""
    folder = tmp_path / "etc/systemd/system"
    folder.mkdir(parents=True)
    for name in UNITS:
        shutil.copy(SYSTEMD / name, folder)
    for program in programs():
        place = tmp_path / program.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("#!/bin/sh\n", encoding="utf-8")
        place.chmod(0o755)
    for name in ENGINES:
        text = "[Service]\nType=notify\nExecStart=/usr/bin/dockerd\n"
        (folder / f"{name}.service").write_text(text, encoding="utf-8")
        drop_in = folder / f"{name}.service.d"
        drop_in.mkdir()
        shutil.copy(SYSTEMD / "engine.conf", drop_in / "10-ramnet.conf")
    # What the others refer to is the distribution's.
    for name in ("network-pre", "multi-user", "shutdown", "local-fs", "sysinit", "basic"):
        (folder / f"{name}.target").write_text("[Unit]\nDescription=x\n", encoding="utf-8")
    return tmp_path


def programs() -> Iterator[str]:
    for name in (*UNITS, "engine.conf"):
        for key in ("ExecStart", "ExecStartPre"):
            yield from (value.lstrip("-+").split()[0] for value in settings(name).get(key, []))
    yield "/usr/bin/dockerd"


@needs_systemd
def test_systemd_finds_nothing_to_complain_about(machine: Path) -> None:
    names = [*UNITS, *(f"{name}.service" for name in ENGINES)]
    done = analyze("verify", "--man=no", "--generators=no", f"--root={machine}", *names)
    said = done.stdout + done.stderr
    assert (done.returncode, said) == (0, "")


@needs_systemd
def test_a_fault_in_a_unit_is_found(machine: Path) -> None:
    """The control."""
    unit = machine / "etc/systemd/system/ramnet.service"
    unit.write_text(unit.read_text("utf-8").replace("WatchdogSec=", "WatchdogSecs="), "utf-8")
    done = analyze("verify", "--man=no", "--generators=no", f"--root={machine}", "ramnet.service")
    assert "WatchdogSecs" in done.stderr


def exposure(name: str) -> float:
    done = analyze("security", "--offline=true", str(SYSTEMD / name))
    found = re.search(rf"Overall exposure level for {name}: ([0-9.]+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    return float(found[1])


@needs_systemd
def test_the_daemon_is_left_with_little() -> None:
    assert exposure("ramnet.service") <= EXPOSURE
    # Anything more than this would have to go through the helper.
    assert words("ramnet.service", "CapabilityBoundingSet") == {"CAP_NET_ADMIN"}


def test_the_daemon_can_put_a_policy_back() -> None:
    """Without it `policy apply --confirm` is refused. A folder that is not there is no fault."""
    assert settings("ramnet.service")["ReadWritePaths"] == ["-/etc/ramnet"]
    assert settings("ramnet.service")["ProtectSystem"] == ["strict"]


@needs_systemd
def test_who_speaks_with_anybody_is_left_with_nothing() -> None:
    assert exposure("ramnet-notice.service") <= EXPOSURE_OF_NOTICE
    for key in ("CapabilityBoundingSet", "AmbientCapabilities"):
        assert settings("ramnet-notice.service")[key] == [""]
    assert settings("ramnet-notice.service")["DynamicUser"] == ["yes"]


# --- what they promise


@pytest.mark.parametrize("unit", ["ramnet.service", "ramnet-notice.service"])
def test_no_start_has_the_sockets_of_the_notice_block(unit: str) -> None:
    """Whether they do is one flag for both services, and systemd sets it at each start."""
    assert settings(unit)["NonBlocking"] == ["yes"]


def test_engines_start_only_with_rules_in_force() -> None:
    """The start itself depends on it: a job that failed by a dependency is never tried again."""
    assert settings("engine.conf")["ExecStartPre"] == [f"+{LOCK}", f"-+{WAIT}"]
    assert settings("engine.conf")["StartLimitIntervalSec"] == ["0"]
    assert settings("engine.conf")["Slice"] == ["ramnetengines.slice"]
    assert "ramnet-lock.service" in words("engine.conf", "After")


def test_no_order_has_an_engine_wait_for_a_daemon_that_cannot_start() -> None:
    """A start that is tried again has not ended for systemd: it would wait, and not say so."""
    assert "ramnet.service" not in words("engine.conf", "After")
    assert "Before" not in settings("ramnet.service")


@pytest.mark.parametrize(
    ("state", "waits"),
    [
        ("active running 0", False),
        ("active running 7", False),
        ("activating start-pre 7", True),
        ("activating start 7", True),
        ("inactive dead 7", True),  # its turn has not come yet
        ("activating auto-restart 7", False),
        ("activating auto-restart-queued 7", False),
        ("inactive dead 0", False),
        ("failed failed 0", False),
        ("deactivating stop-sigterm 0", False),
    ],
)
def test_an_engine_waits_for_the_daemon_as_long_as_there_is_hope(
    tmp_path: Path, state: str, waits: bool
) -> None:
    active, sub, job = state.split()
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(
        f"#!/bin/sh\necho ActiveState={active}\necho SubState={sub}\necho Job={job}\n", "utf-8"
    )
    systemctl.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        [SYSTEMD / "ramnet-wait"],
        env={"PATH": path, "RAMNET_WAIT_SECONDS": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    assert ("is not ready" in done.stderr) is waits


@pytest.mark.parametrize("key", ["Requires", "Requisite", "BindsTo", "PartOf"])
def test_no_engine_is_restarted_with_us(key: str) -> None:
    """By any of these a restart of ours would be one of the engine, and end its containers."""
    assert key not in settings("engine.conf")


def test_the_lock_comes_before_any_network() -> None:
    assert "network-pre.target" in words("ramnet-lock.service", "Before")
    assert "network-pre.target" in words("ramnet-lock.service", "Wants")
    assert settings("ramnet-lock.service")["DefaultDependencies"] == ["no"]
    # Which flushes every rule, at its start and at its end.
    assert "nftables.service" in words("ramnet-lock.service", "After")
    assert "shutdown.target" in words("ramnet-lock.service", "Conflicts")


@pytest.mark.parametrize("name", UNITS)
def test_no_condition_stands_for_success(name: str) -> None:
    assert not [key for key in settings(name) if key.startswith("Condition")]


@pytest.mark.parametrize(
    "name", ["ramnet.service", "ramnet-helper.service", "ramnet-notice.service"]
)
def test_nothing_gives_up(name: str) -> None:
    assert settings(name)["StartLimitIntervalSec"] == ["0"]
    assert settings(name)["Restart"] in (["on-failure"], ["always"])


def test_a_lock_that_fails_does_not_keep_the_network_waiting() -> None:
    """The start of a oneshot that is tried again is not over. Engines do try again."""
    assert "Restart" not in settings("ramnet-lock.service")
    assert settings("ramnet-lock.service")["TimeoutStartSec"] == ["90"]
    assert settings("ramnet.service")["ExecStartPre"] == [f"-+{LOCK}"]


def test_a_daemon_that_was_turned_off_stays_off() -> None:
    """`ramnet off` ends it with status 0."""
    assert settings("ramnet.service")["Restart"] == ["on-failure"]


def test_the_port_of_the_notice_is_never_let_go() -> None:
    """Whoever had it could lead refused connections on: neither a restart nor a flood frees it."""
    assert settings("ramnet.service")["Sockets"] == ["ramnet-notice.socket"]
    assert settings("ramnet-notice.socket")["TriggerLimitIntervalSec"] == ["0"]
    for key in ("PartOf", "BindsTo", "Requires", "StopPropagatedFrom"):
        assert key not in settings("ramnet-notice.socket")
    assert settings("ramnet-notice.service")["PartOf"] == ["ramnet.service"]


def test_a_notice_that_hangs_is_started_again() -> None:
    """A process that is stopped ends by SIGKILL only."""
    found = settings("ramnet-notice.service")
    assert found["Type"] == ["notify"]
    assert float(found["WatchdogSec"][0]) >= 3 * ALIVE_SECONDS
    assert found["WatchdogSignal"] == ["SIGKILL"]
    assert found["TimeoutStartSec"] == [f"{START_SECONDS:g}"]
    assert "AF_UNIX" in words("ramnet-notice.service", "RestrictAddressFamilies")


def test_the_notice_listens_where_only_this_machine_reaches_it() -> None:
    places = settings("ramnet-notice.socket")["ListenStream"]
    assert places == ["127.0.0.1:7261", "[::1]:7261", "/run/ramnet-notice.sock"]
    assert settings("ramnet-notice.socket")["SocketMode"] == ["0600"]
    assert settings("ramnet-notice.socket")["FileDescriptorName"] == [NOTICE_SOCKETS]


def test_the_slice_is_at_the_top() -> None:
    """A dash would put it below another slice; rules and defaults name it as it is."""
    assert not [name for name in UNITS if name.endswith(".slice") and "-" in name]
    assert "ramnet-lock.service" in words("ramnetengines.slice", "After")
    assert "ramnetengines.slice" not in words("ramnet-lock.service", "After")  # a cycle


@pytest.mark.parametrize("name", UNITS)
def test_units_name_the_release_in_use(name: str) -> None:
    for key in ("ExecStart", "ExecStartPre", "ExecStop"):
        for value in settings(name).get(key, []):
            assert value.lstrip("-+").startswith("/opt/ramnet/current/"), value

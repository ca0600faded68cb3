"""WSL2: recognised by files, wsl.conf edited and restored, the network as far as it is seen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ramnet.core.wslconf import BOM, COMMAND, parse
from ramnet.errors import HostError, UnsupportedKernel
from ramnet.host import wsl
from ramnet.host.wsl import HOOK, Start

KERNEL = "5.15.167.4-microsoft-standard-WSL2"
CONF = b"# mine\n[user]\ndefault = dev\n"


def write(root: Path, path: str, text: str | bytes) -> Path:
    place = root / path.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(text if isinstance(text, bytes) else text.encode())
    return place


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A distribution of WSL2 on which ramnet is installed, without systemd."""
    write(tmp_path, "proc/sys/kernel/osrelease", f"{KERNEL}\n")
    write(tmp_path, "run/WSL/1_interop", "")
    write(tmp_path, HOOK, "#!/bin/sh\n")
    write(tmp_path, "usr/lib/systemd/system/ramnet.service", "[Service]\n")
    return tmp_path


def conf(root: Path) -> bytes:
    return (root / wsl.CONF).read_bytes()


def settings(root: Path) -> dict[str, str]:
    folder = root / wsl.SETTINGS
    return {item.name: item.read_text() for item in folder.iterdir()} if folder.exists() else {}


def files_of(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if not path.is_dir())


def install(root: Path, command: str | None = None) -> wsl.Plan:
    plan = wsl.plan_install(root, command)
    wsl.carry_out(plan, root)
    return plan


def uninstall(root: Path) -> wsl.Plan:
    plan = wsl.plan_uninstall(root)
    wsl.carry_out(plan, root)
    return plan


# --- what this is


@pytest.mark.parametrize(
    ("release", "version"),
    [
        (KERNEL, 2),
        ("6.6.36.3-microsoft-standard-WSL2+", 2),
        ("4.19.128-microsoft-standard", 2),
        ("5.4.72-Microsoft-of-mine", 2),
        ("4.4.0-19041-Microsoft", 1),
    ],
)
def test_a_kernel_of_microsoft(tmp_path: Path, release: str, version: int) -> None:
    write(tmp_path, "proc/sys/kernel/osrelease", release + "\n")
    found = wsl.detect(tmp_path)
    assert found is not None
    assert found.version == version
    assert release in found.evidence


@pytest.mark.parametrize("sign", ["run/WSL/1_interop", "proc/sys/fs/binfmt_misc/WSLInterop"])
def test_a_kernel_of_ones_own(tmp_path: Path, sign: str) -> None:
    write(tmp_path, "proc/sys/kernel/osrelease", "6.12.0-custom\n")
    assert wsl.detect(tmp_path) is None
    write(tmp_path, sign, "")
    found = wsl.detect(tmp_path)
    assert found is not None
    assert found.version == 2


def test_a_container_on_wsl_is_none(root: Path) -> None:
    write(root, ".dockerenv", "")
    assert wsl.detect(root) is not None  # it was exported from a container
    (root / "run/WSL/1_interop").unlink()
    (root / "run/WSL").rmdir()
    assert wsl.detect(root) is None


def test_elsewhere_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedKernel, match="not a distribution of WSL2"):
        wsl.require_wsl2(tmp_path)
    write(tmp_path, "proc/sys/kernel/osrelease", "4.4.0-19041-Microsoft\n")
    with pytest.raises(UnsupportedKernel, match="WSL1"):
        wsl.require_wsl2(tmp_path)


# --- without systemd


@pytest.mark.parametrize("before", [None, b"", CONF, CONF.replace(b"\n", b"\r\n"), BOM + CONF])
def test_the_hook_is_set_and_all_is_as_before_after_its_removal(
    root: Path, before: bytes | None
) -> None:
    if before is not None:
        write(root, wsl.CONF, before)
    files = files_of(root)
    plan = install(root, "service docker start")
    assert plan.start is Start.HOOK
    assert not plan.programs
    found = parse(conf(root)).first(COMMAND)
    assert found is not None
    assert found.value == HOOK.encode()
    assert settings(root) == {wsl.ENGINE: "service docker start"}
    if before is not None:
        assert (root / wsl.BACKUP).read_bytes() == before
    uninstall(root)
    assert files_of(root) == files
    if before is not None:
        assert conf(root) == before


def test_a_second_installation_changes_nothing(root: Path) -> None:
    write(root, wsl.CONF, CONF)
    install(root, "service docker start")
    first = conf(root)
    plan = install(root)
    assert plan.changes == ()
    assert conf(root) == first
    assert (root / wsl.BACKUP).read_bytes() == CONF
    assert settings(root) == {wsl.ENGINE: "service docker start"}
    install(root, "service podman start")
    assert settings(root) == {wsl.ENGINE: "service podman start"}
    install(root, "")
    assert settings(root) == {}


def test_the_plan_alone_changes_nothing(root: Path) -> None:
    write(root, wsl.CONF, CONF)
    before = sorted(root.rglob("*"))
    assert {change.path for change in wsl.plan_install(root, "a").changes} == {
        wsl.CONF,
        wsl.BACKUP,
        f"{wsl.SETTINGS}/{wsl.ENGINE}",
    }
    assert sorted(root.rglob("*")) == before
    assert conf(root) == CONF


def test_a_command_that_was_there_is_kept_and_comes_back(root: Path) -> None:
    before = b'[boot]\n  Command = "service cron start" # mine\n[user]\ndefault=dev\n'
    write(root, wsl.CONF, before)
    plan = install(root, "service docker start")
    assert any("service cron start" in note and "outside" in note for note in plan.notes)
    kept = settings(root)
    assert kept[wsl.EARLIER] == "service cron start"
    assert kept[wsl.ENGINE] == "service docker start"
    # Something else is changed meanwhile: then only our line goes, and that one comes back.
    write(root, wsl.CONF, conf(root) + b"[network]\nhostname=x\n")
    uninstall(root)
    assert conf(root) == before + b"[network]\nhostname=x\n"
    assert settings(root) == {}
    assert not (root / wsl.BACKUP).exists()


def test_a_command_that_starts_an_engine_is_run_as_one(root: Path) -> None:
    write(root, wsl.CONF, b"[boot]\ncommand = service docker start; service cron start\n")
    plan = install(root)
    assert settings(root)[wsl.EARLIER_ENGINE] == "service docker start; service cron start"
    assert wsl.EARLIER not in settings(root)
    assert any("in the engines' cgroup" in note for note in plan.notes)
    assert wsl.look(root).earlier_command.startswith("service docker start")


def test_a_command_that_took_our_place_stays(root: Path) -> None:
    write(root, wsl.CONF, CONF)
    install(root)
    other = b"[boot]\ncommand = mine\n"
    write(root, wsl.CONF, other)
    assert wsl.look(root).start is Start.NOBODY
    plan = uninstall(root)
    assert conf(root) == other
    assert settings(root) == {}
    assert plan.start is Start.NOBODY


def test_mode_owner_and_link_of_the_file_stay(root: Path) -> None:
    file = write(root, "etc/real.conf", CONF)
    file.chmod(0o640)
    (root / wsl.CONF).symlink_to("real.conf")
    install(root)
    assert (root / wsl.CONF).is_symlink()
    assert file.stat().st_mode & 0o777 == 0o640
    assert HOOK.encode() in file.read_bytes()
    assert not [path for path in (root / "etc").iterdir() if path.name.startswith(".")]


def test_what_is_no_file_is_refused(root: Path) -> None:
    (root / wsl.CONF).mkdir(parents=True)
    with pytest.raises(HostError, match="not a regular file"):
        wsl.plan_install(root)


def test_without_the_hook_nothing_is_changed(root: Path) -> None:
    (root / HOOK.lstrip("/")).unlink()
    with pytest.raises(HostError, match="ramnet-boot is not installed") as caught:
        wsl.plan_install(root)
    assert "bootstrap install" in caught.value.hint


def test_a_folder_that_cannot_be_written_to(root: Path) -> None:
    write(root, wsl.CONF, CONF)
    write(root, "etc/ramnet", "in the way")
    with pytest.raises(HostError, match="cannot be written"):
        install(root, "a")
    assert conf(root) == CONF  # it is the last one to be changed


# --- with systemd


@pytest.mark.parametrize(
    ("text", "running", "by_systemd"),
    [
        (b"[boot]\nsystemd=true\n", True, True),
        (b"[boot]\nsystemd=true\n", False, True),
        (b"", True, True),
        (b"[boot]\nsystemd=false\n", True, False),
        (b"[boot]\nsystemd=false\n", False, False),
        (b"", False, False),
    ],
)
def test_who_starts_it(root: Path, text: bytes, running: bool, by_systemd: bool) -> None:
    write(root, wsl.CONF, text)
    if running:
        (root / "run/systemd/system").mkdir(parents=True)
    plan = wsl.plan_install(root)
    assert plan.start is (Start.SYSTEMD if by_systemd else Start.HOOK)
    assert bool(plan.programs) is by_systemd
    assert bool(plan.changes) is not by_systemd
    differs = b"systemd" in text and running != by_systemd
    assert any("wsl --terminate`: it is configured otherwise" in note for note in plan.notes) is (
        differs
    )


def test_the_units_take_the_place_of_the_hook(root: Path) -> None:
    write(root, wsl.CONF, CONF)
    install(root, "service docker start")
    write(root, wsl.CONF, conf(root) + b"systemd=true\n")
    plan = wsl.plan_install(root, "service docker start")
    assert plan.programs == (("systemctl", "enable", "ramnet-lock.service", "ramnet.service"),)
    assert any("--engine-command is not used" in note for note in plan.notes)
    wsl.carry_out(wsl.Plan(plan.start, plan.changes, (), ()), root)
    assert conf(root) == CONF + b"[boot]\nsystemd=true\n"
    assert settings(root) == {}


def test_units_that_are_not_there(root: Path) -> None:
    write(root, wsl.CONF, b"[boot]\nsystemd=true\n")
    (root / "usr/lib/systemd/system/ramnet.service").unlink()
    with pytest.raises(HostError, match=r"ramnet\.service is not installed"):
        wsl.plan_install(root)


def test_units_are_disabled_by_the_removal(root: Path) -> None:
    write(root, wsl.CONF, b"[boot]\nsystemd=true\n")
    assert wsl.look(root).start is Start.NOBODY
    link = root / "etc/systemd/system/multi-user.target.wants/ramnet.service"
    link.parent.mkdir(parents=True)
    link.symlink_to("/usr/lib/systemd/system/ramnet.service")
    assert wsl.look(root).start is Start.SYSTEMD
    assert wsl.plan_uninstall(root).programs == (
        ("systemctl", "disable", "ramnet-lock.service", "ramnet.service"),
    )


def test_a_program_that_fails_is_told(root: Path) -> None:
    for argv, said in ((("false",), "`false` failed"), (("/no/such",), "cannot be run")):
        with pytest.raises(HostError, match=said):
            wsl.carry_out(wsl.Plan(Start.SYSTEMD, (), (argv,), ()), root)


# --- what is said


def test_warnings_of_the_file_and_of_a_hook_that_has_not_run(root: Path) -> None:
    write(root, wsl.CONF, CONF.replace(b"\n", b"\r\n"))
    install(root)
    said = "\n".join(wsl.look(root).warnings)
    assert "/etc/wsl.conf: it has Windows line ends" in said
    assert "the hook has not run since this distribution started" in said
    write(root, "run/ramnet/booted", "Mon Jan  5 10:00:00 UTC 2026\n")
    boot = wsl.look(root)
    assert boot.ran == "Mon Jan  5 10:00:00 UTC 2026"
    assert "has not run" not in "\n".join(boot.warnings)


def test_the_networking_mode(root: Path) -> None:
    assert wsl.networking(root).value is None
    (root / "sys/class/net/loopback0").mkdir(parents=True)
    assert wsl.networking(root).value == "mirrored"
    program = write(
        root, "usr/bin/wslinfo", '#!/bin/sh\n[ "$1" = --networking-mode ] && echo nat\n'
    )
    program.chmod(0o755)
    assert wsl.networking(root) == wsl.Seen("nat", "wslinfo says so")
    program.write_text("#!/bin/sh\nexit 1\n")
    assert wsl.networking(root).value == "mirrored"


def test_dns_tunnelling(root: Path) -> None:
    assert wsl.tunnelled(root).value == "no"
    write(root, "proc/net/fib_trie", "  |-- 10.255.255.254\n     /32 host LOCAL\n")
    assert wsl.tunnelled(root).value == "unused"
    write(root, "etc/resolv.conf", "nameserver 10.255.255.254\n")
    assert wsl.tunnelled(root) == wsl.Seen("yes", "/etc/resolv.conf names 10.255.255.254")
    write(root, "proc/net/fib_trie", "")
    assert "not on lo" in wsl.tunnelled(root).because


def test_processes_of_another_pid_namespace_are_counted(tmp_path: Path) -> None:
    write(tmp_path, "a.slice/cgroup.procs", "0\n10\n0\n")
    places = [tmp_path / "a.slice", tmp_path / "missing.slice"]
    assert wsl.engines_elsewhere(places) == 2
    assert os.getpid()

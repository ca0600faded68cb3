"""The files that hold the settings of container engines, in a directory that stands for a machine.

No process runs there; those are for tests/netns and tests/docker.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ramnet.core.config import Config, parse_config
from ramnet.core.engineconf import Kind
from ramnet.core.enginefacts import Unit
from ramnet.host.conffiles import MAX_BYTES, MAX_FILES
from ramnet.host.engineconf import engine_facts, engine_findings
from tests.unit.core.test_enginefiles import brief

SECRET = "hunter2"
ETC = "etc/systemd/system"
USR = "usr/lib/systemd/system"


def write(root: Path, path: str, text: str | bytes = "") -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def facts(root: Path) -> list[str]:
    return brief(engine_facts(root))


def subjects(root: Path) -> list[str]:
    return [item.subject for item in engine_findings(Config(), None, root=root)]


def test_a_machine_without_engines(tmp_path: Path) -> None:
    assert engine_facts(tmp_path) == ()
    assert engine_findings(Config(), None, root=tmp_path) == ()
    assert engine_facts(tmp_path / "gone") == ()


def test_each_file_is_read(tmp_path: Path) -> None:
    write(tmp_path, "etc/docker/daemon.json", '{"registry-mirrors": ["https://a.example"]}')
    write(tmp_path, "etc/default/docker", "export HTTP_PROXY=http://b.example:1\n")
    config = '[plugins.cri.registry]\nconfig_path = "/opt/certs.d"\n'
    write(tmp_path, "etc/containerd/config.toml", config)
    for number, folder in enumerate(("etc/containerd/certs.d", "opt/certs.d")):
        text = f'[host."https://c{number}.example"]\n'
        write(tmp_path, f"{folder}/quay.io/hosts.toml", text)
        write(tmp_path, f"{folder}/README", "no folder\n")
    mirror = '[[registry]]\nprefix = "ghcr.io"\n[[registry.mirror]]\nlocation = "{}.example"\n'
    write(tmp_path, "etc/containers/registries.conf", mirror.format("d"))
    write(tmp_path, "etc/containers/registries.conf.d/x.conf", mirror.format("e"))
    write(tmp_path, "etc/containers/registries.conf.d/x.conf.bak", mirror.format("f"))
    assert facts(tmp_path) == [
        "mirror docker.io a.example:443",
        "proxy HTTP_PROXY b.example:1",
        "mirror quay.io c0.example:443",
        "mirror quay.io c1.example:443",
        "mirror ghcr.io d.example:443",
        "mirror ghcr.io e.example:443",
    ]


@pytest.mark.parametrize("unit", ["docker", "containerd", "podman", "buildkit"])
@pytest.mark.parametrize(
    "folder", [ETC, "run/systemd/system", "usr/local/lib/systemd/system", USR, "lib/systemd/system"]
)
def test_a_proxy_of_a_unit_or_of_its_drop_in(tmp_path: Path, folder: str, unit: str) -> None:
    text = '[Service]\nEnvironment="HTTPS_PROXY=http://user:hunter2@{}.example:3128"\n'
    write(tmp_path, f"{folder}/{unit}.service", text.format("unit"))
    (found,) = engine_findings(Config(), None, root=tmp_path)[-1:]
    assert [line for line in facts(tmp_path) if "unit.example:3128" in line]
    write(tmp_path, f"{folder}/{unit}.service.d/proxy.conf", text.format("dropin"))
    said = engine_findings(Config(), None, root=tmp_path)
    (found,) = (item for item in said if item.subject.startswith("proxy "))
    assert found.subject == "proxy dropin.example:3128"
    assert f"HTTPS_PROXY of /{folder}/{unit}.service.d/proxy.conf" in found.text
    assert SECRET not in repr(said)


def test_drop_ins_apply_by_name_and_the_first_folder_hides_the_others(tmp_path: Path) -> None:
    text = "[Service]\nEnvironment=HTTP_PROXY=http://{}.example\n"
    write(tmp_path, f"{USR}/docker.service", text.format("vendor"))
    write(tmp_path, f"{USR}/docker.service.d/20.conf", text.format("hidden"))
    write(tmp_path, f"{ETC}/docker.service.d/20.conf", text.format("twenty"))
    write(tmp_path, f"{ETC}/docker.service.d/10.conf", text.format("ten"))
    write(tmp_path, f"{ETC}/docker.service.d/30.conf.rpmsave", text.format("saved"))
    assert facts(tmp_path) == ["proxy HTTP_PROXY twenty.example:80"]
    write(tmp_path, f"{ETC}/docker.service", "[Service]\n")
    (tmp_path / f"{ETC}/docker.service.d/20.conf").unlink()
    (tmp_path / f"{ETC}/docker.service.d/20.conf").symlink_to("/dev/null")
    assert facts(tmp_path) == ["proxy HTTP_PROXY ten.example:80"], "20.conf is masked"


def test_the_environment_files_of_a_unit(tmp_path: Path) -> None:
    unit = "[Service]\nEnvironment=HTTP_PROXY=http://a.example NO_PROXY=x\n"
    unit += "EnvironmentFile=-/etc/sysconfig/docker\nEnvironmentFile=/etc/env.d/*.env\n"
    unit += "EnvironmentFile=/etc/missing\n"
    write(tmp_path, f"{USR}/docker.service", unit)
    write(tmp_path, "etc/sysconfig/docker", "HTTPS_PROXY='http://user:hunter2@b.example:1'\n")
    write(tmp_path, "etc/env.d/1.env", "HTTP_PROXY=http://c.example\n")
    write(tmp_path, "etc/env.d/1.txt", "HTTP_PROXY=http://d.example\n")
    assert facts(tmp_path) == [
        "proxy HTTP_PROXY c.example:80 direct",
        "proxy HTTPS_PROXY b.example:1 direct",
    ]
    said = engine_findings(Config(), None, root=tmp_path)
    assert ["HTTP_PROXY of /etc/env.d/1.env" in item.text for item in said] == [True, False]
    assert SECRET not in repr(said)


def test_a_unit_is_told_only_where_systemd_runs(tmp_path: Path) -> None:
    write(tmp_path, f"{USR}/podman.service", "[Service]\nSlice=a.slice\n")
    write(tmp_path, f"{ETC}/docker.service.d/x.conf", "[Service]\nSlice=a.slice\n")
    assert engine_facts(tmp_path) == ()
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    (unit,) = engine_facts(tmp_path)
    assert isinstance(unit, Unit)
    assert (unit.name, unit.slice) == ("podman.service", "a.slice")
    drop_in = "[Service]\nSlice=ramnetengines.slice\n"
    assert subjects(tmp_path) == ["podman.service"]
    write(tmp_path, f"{ETC}/podman.service.d/ramnet.conf", drop_in)
    assert subjects(tmp_path) == []
    (tmp_path / f"{ETC}/podman.service").symlink_to("/dev/null")
    assert engine_facts(tmp_path) == (), "masked"


def test_the_command_of_a_unit(tmp_path: Path) -> None:
    text = "[Service]\nExecStart=/usr/bin/dockerd -H fd:// --registry-mirror=https://m.example\n"
    write(tmp_path, f"{USR}/docker.service", text)
    write(tmp_path, f"{USR}/podman.service", text)
    assert facts(tmp_path) == ["mirror docker.io m.example:443"]


# --- what is out of reach


@pytest.mark.parametrize(
    "name", [".config/docker/daemon.json", ".config/systemd/user/docker.service"]
)
def test_a_rootless_engine_in_a_home(tmp_path: Path, name: str) -> None:
    file = write(tmp_path, f"home/jane/{name}")
    os.chown(file, 1234, 1234)
    (found,) = engine_findings(Config(), None, root=tmp_path)
    assert (found.kind, found.subject) == (Kind.NOT_COVERED, f"/home/jane/{name}")
    assert "user 1234 has a rootless engine" in found.text


@pytest.mark.parametrize(
    ("path", "link", "evidence"),
    [
        ("mnt/wsl/docker-desktop-bind-mounts", None, "/mnt/wsl/docker-desktop-bind-mounts"),
        ("mnt/wsl/docker-desktop", None, "/mnt/wsl/docker-desktop"),
        ("run/guest-services", None, "/run/guest-services"),
        (
            "var/run/docker.sock",
            "/mnt/wsl/docker-desktop/shared-sockets/guest-services/docker.proxy.sock",
            "/var/run/docker.sock leads to /mnt/wsl/docker-desktop/",
        ),
        ("run/docker.sock", "/run/guest-services/docker.sock", "/run/docker.sock leads to"),
    ],
)
def test_docker_desktop_is_recognised(
    tmp_path: Path, path: str, link: str | None, evidence: str
) -> None:
    place = tmp_path / path
    place.parent.mkdir(parents=True)
    if link is None:
        place.mkdir()
    else:
        place.symlink_to(link)
    (found,) = engine_findings(Config(), None, root=tmp_path)
    assert (found.kind, found.subject) == (Kind.NOT_COVERED, "Docker Desktop")
    assert evidence in found.text


def test_the_kernel_of_docker_desktop(tmp_path: Path) -> None:
    write(tmp_path, "proc/sys/kernel/osrelease", "6.12.5-linuxkit\n")
    (found,) = engine_findings(Config(), None, root=tmp_path)
    assert "(seen: the kernel 6.12.5-linuxkit)" in found.text
    write(tmp_path, "proc/sys/kernel/osrelease", "6.12.5-microsoft-standard-WSL2\n")
    assert subjects(tmp_path) == []


def test_an_ordinary_docker_socket_is_not_docker_desktop(tmp_path: Path) -> None:
    (tmp_path / "var/run").mkdir(parents=True)
    (tmp_path / "var/run/docker.sock").symlink_to("/run/user/1000/docker.sock")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/docker.sock").touch()
    assert subjects(tmp_path) == []


# --- files that cannot be read


def damage_folder(file: Path) -> None:
    file.mkdir()


def damage_pipe(file: Path) -> None:
    os.mkfifo(file)


def damage_size(file: Path) -> None:
    file.write_bytes(b" " * (MAX_BYTES + 1))


def damage_loop(file: Path) -> None:
    file.symlink_to(file)


FILES = ["etc/docker/daemon.json", "etc/default/docker", "etc/containerd/config.toml"]
FILES += ["etc/containers/registries.conf", "etc/containerd/certs.d/quay.io/hosts.toml"]
FILES += [f"{ETC}/docker.service", f"{USR}/podman.service.d/a.conf"]


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (damage_folder, "it is not a regular file"),
        (damage_pipe, "it is not a regular file"),
        (damage_size, f"is larger than {MAX_BYTES} bytes"),
        (damage_loop, "it cannot be read: Too many levels of symbolic links"),
    ],
)
@pytest.mark.parametrize("path", FILES)
def test_a_file_that_cannot_be_read_is_told(
    tmp_path: Path, path: str, damage: object, why: str
) -> None:
    assert callable(damage)
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    damage(file)
    (found,) = engine_findings(Config(), None, root=tmp_path)
    assert (found.kind, found.subject) == (Kind.WARNING, f"/{path}")
    assert found.text == f"{why}: what it means is not known"


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero"])
def test_a_device_is_never_opened(tmp_path: Path, path: str) -> None:
    (tmp_path / "etc/docker").mkdir(parents=True)
    (tmp_path / "etc/docker/daemon.json").symlink_to(path)
    assert engine_facts(tmp_path) == ()


def test_a_file_at_its_limit_is_read(tmp_path: Path) -> None:
    text = b'{"dns": ["192.0.2.1"]}'
    write(tmp_path, "etc/docker/daemon.json", text + b" " * (MAX_BYTES - len(text)))
    assert facts(tmp_path) == ["dns 192.0.2.1"]


def test_a_path_that_is_none(tmp_path: Path) -> None:
    unit = b"[Service]\nEnvironmentFile=/etc/a\0b\nEnvironmentFile=/etc/a\0b/*.env\n"
    write(tmp_path, f"{ETC}/docker.service", unit)
    text = '[plugins.a.registry]\nconfig_path = "/etc/a\\u0000b"\n'
    write(tmp_path, "etc/containerd/config.toml", text)
    assert facts(tmp_path) == ["unreadable: it cannot be read: no such path"]


def test_folders_are_read_to_their_limit(tmp_path: Path) -> None:
    mirror = '[[registry]]\nprefix = "ghcr.io"\n[[registry.mirror]]\nlocation = "m{}.example"\n'
    for number in range(MAX_FILES + 1):
        write(tmp_path, f"etc/containers/registries.conf.d/{number:03}.conf", mirror.format(number))
    lines = facts(tmp_path)
    assert len([line for line in lines if line.startswith("mirror")]) == MAX_FILES
    left = f"of its {MAX_FILES + 1} files only the first {MAX_FILES} are read"
    assert f"unreadable: {left}" in lines


def test_files_may_bear_any_name(tmp_path: Path) -> None:
    name = os.fsdecode(b"a\x1b[31m\n\xff.conf")
    write(tmp_path, f"etc/containers/registries.conf.d/{name}", "[")
    (found,) = engine_findings(Config(), None, root=tmp_path)
    assert found.subject == "/etc/containers/registries.conf.d/a?[31m??.conf"


# --- the resolvers that containers ask


def test_the_resolvers_of_the_machine_are_trusted(tmp_path: Path) -> None:
    write(tmp_path, "etc/docker/daemon.json", '{"dns": ["192.0.2.53"]}')
    assert subjects(tmp_path) == ["dns of containers"]
    write(tmp_path, "etc/resolv.conf", "nameserver 192.0.2.53\n")
    assert subjects(tmp_path) == []
    write(tmp_path, "etc/resolv.conf", "nameserver 127.0.0.53\n")
    write(tmp_path, "run/systemd/resolve/resolv.conf", "nameserver 192.0.2.53\n")
    assert subjects(tmp_path) == []
    pinned = parse_config('[dns]\nservers = ["192.0.2.54"]\n', source="ramnet.toml")
    assert [item.subject for item in engine_findings(pinned, None, root=tmp_path)]

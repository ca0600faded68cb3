"""The files that name registries, in a directory that stands for a machine."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from ramnet.errors import HostError
from ramnet.host.configured import configured_facts, dockerfiles_of, homes_of
from tests.unit.core.test_enginefiles import brief
from tests.unit.host.test_engineconf import write

HOME = Path("/home/u")
LOGIN = '{{"auths": {{"{}.example": {{}}}}}}'
MIRROR = '[registry."docker.io"]\nmirrors = ["{}.example"]\n'


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DOCKER_CONFIG", "SUDO_USER"):
        monkeypatch.delenv(name, raising=False)


def facts(root: Path, *homes: Path, dockerfiles: tuple[Path, ...] = ()) -> list[str]:
    return brief(configured_facts(homes, dockerfiles, root=root))


def test_each_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "etc/docker/daemon.json", '{"registry-mirrors": ["https://a.example"]}')
    write(tmp_path, "etc/buildkit/buildkitd.toml", MIRROR.format("b"))
    write(tmp_path, "etc/containerd/certs.d/c.example/hosts.toml")
    search = 'unqualified-search-registries = ["{}.example"]\n'
    write(tmp_path, "etc/containers/registries.conf", search.format("d"))
    write(tmp_path, "home/u/.docker/config.json", LOGIN.format("e"))
    write(tmp_path, "home/u/.config/containers/auth.json", LOGIN.format("f"))
    write(tmp_path, "home/u/.config/containers/registries.conf", search.format("g"))
    write(tmp_path, "home/u/.config/buildkit/buildkitd.toml", MIRROR.format("h"))
    write(tmp_path, "home/u/.docker/buildx/buildkitd.default.toml", MIRROR.format("i"))
    write(tmp_path, "home/v/.docker/config.json", LOGIN.format("nobody"))
    write(tmp_path, "run/containers/0/auth.json", LOGIN.format("j"))
    write(tmp_path, "src/Dockerfile", "# syntax=k.example/a/b\n")
    write(tmp_path, "opt/docker/config.json", LOGIN.format("l"))
    monkeypatch.setenv("DOCKER_CONFIG", "/opt/docker")
    assert facts(tmp_path, HOME, dockerfiles=(Path("/src/Dockerfile"),)) == [
        "mirror docker.io a.example:443",
        "named c.example:443 settings",
        "named d.example:443 search",
        "mirror docker.io b.example:443",
        "named e.example:443 login",
        "named f.example:443 login",
        "named g.example:443 search",
        "mirror docker.io h.example:443",
        "mirror docker.io i.example:443",
        "named j.example:443 login",
        "named k.example:443 frontend",
        "named l.example:443 login",
    ]


def test_the_source_is_the_path_on_the_machine(tmp_path: Path) -> None:
    write(tmp_path, "home/u/.docker/config.json", "[")
    (fact,) = configured_facts([HOME], root=tmp_path)
    assert "source='/home/u/.docker/config.json'" in repr(fact)


def test_a_machine_without_settings(tmp_path: Path) -> None:
    assert configured_facts([HOME], [Path("/src/Dockerfile")], root=tmp_path) == ()


def test_a_home_that_is_named_twice_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "home/u/.docker/config.json", LOGIN.format("e"))
    monkeypatch.setenv("DOCKER_CONFIG", "/home/u/.docker")
    assert facts(tmp_path, HOME, HOME) == ["named e.example:443 login"]


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_what_is_no_file_is_told_and_never_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "home/u/.docker/config.json"
    path.parent.mkdir(parents=True)
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case _:
            path.symlink_to("/dev/zero")
    told = [] if kind == "device" else ["unreadable: it is not a regular file"]
    assert facts(tmp_path, HOME) == told


def test_whose_homes_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Path(pwd.getpwuid(os.geteuid()).pw_dir)
    daemon = pwd.getpwnam("daemon")
    assert homes_of(None) == (mine,)
    monkeypatch.setenv("SUDO_USER", daemon.pw_name)
    assert homes_of(str(tmp_path)) == (mine, Path(daemon.pw_dir), tmp_path)
    monkeypatch.setenv("SUDO_USER", "no-such-user-here")
    monkeypatch.chdir(tmp_path)
    assert homes_of(".") == (mine, tmp_path)
    with pytest.raises(HostError, match="gone is not a folder"):
        homes_of("gone")


def test_which_dockerfiles_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert dockerfiles_of(None) == (tmp_path / "Dockerfile", tmp_path / "Containerfile")
    write(tmp_path, "build.docker")
    assert dockerfiles_of("build.docker") == (tmp_path / "build.docker",)
    with pytest.raises(HostError, match=r"gone\.docker does not exist"):
        dockerfiles_of("gone.docker")

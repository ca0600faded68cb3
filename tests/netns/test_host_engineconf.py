"""Container engines among the processes of a machine: real processes that bear their names.

Each is a copy of the shell under the name of an engine; it waits for its input to end. A real
dockerd is looked at in tests/docker.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ramnet.host.engines import MAX_ENGINES
from ramnet.lab.lab import Lab
from ramnet.lab.process import Process, wait_until
from ramnet.lab.programs import PYTHON_PATH, require

pytestmark = pytest.mark.netns

WAIT = "read -r forever"
USER = 1234
SECRET = "hunter2"

LOOK = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from ramnet.core.config import parse_config
from ramnet.host.engineconf import engine_facts, engine_findings
facts = [{"fact": type(fact).__name__, **asdict(fact)} for fact in engine_facts(Path(sys.argv[1]))]
config = parse_config(sys.argv[2], source="ramnet.toml")
found = [asdict(item) for item in engine_findings(config, None, root=Path(sys.argv[1]))]
said = {"facts": facts, "findings": found, "repr": repr(facts) + repr(found)}
json.dump(said, sys.stdout, default=str)
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(registries=False, engine_cgroup=True) as made:
        yield made


def look(lab: Lab, root: str = "/") -> dict[str, Any]:
    """Collect facts and findings as seen from within the client."""
    config = f'[scope]\ncgroups = ["{lab.engine_group}"]\n'
    argv = [sys.executable, "-c", LOOK, root, config]
    said: dict[str, Any] = json.loads(
        lab.client.run(argv, env={"PYTHONPATH": str(PYTHON_PATH)}).stdout
    )
    return said


def engines(lab: Lab) -> list[dict[str, Any]]:
    return [fact for fact in look(lab)["facts"] if fact["fact"] == "Engine"]


@contextmanager
def running(
    lab: Lab,
    program: Path,
    *args: str,
    under: tuple[str, ...] = (),
    script: str = WAIT,
    user: int | None = None,
    env: Mapping[str, str] | None = None,
    cgroup: Path | None = None,
) -> Iterator[Process]:
    """Run a shell under the name of an engine, as the last of the programs in ``under``."""
    folder = program.parent
    if not program.exists():
        shutil.copy(Path("/bin/sh").resolve(), program)
    for place in (folder, *folder.parents[:2]):
        place.chmod(0o755)
    log = folder / "log"
    log.touch()
    process = lab.client.popen(
        [*under, str(program), "-c", f"echo up; {script}", *args],
        log=log,
        feed=True,
        user=user,
        env=env,
        cgroup=cgroup,
    )
    try:
        process.wait_for_line("up")
        yield process
    finally:
        process.kill()
        log.unlink()


@pytest.mark.parametrize("name", ["dockerd", "containerd", "buildkitd"])
def test_an_engine_is_found_with_its_cgroup(lab: Lab, tmp_path: Path, name: str) -> None:
    with running(lab, tmp_path / name, cgroup=lab.engine_cgroup):
        (engine,) = engines(lab)
        assert engine["cgroup"] == lab.engine_group
        assert (engine["name"], engine["uid"]) == (name, 0)
        assert (engine["own"], engine["rootless"]) == (True, "")
        assert [one for one in look(lab)["findings"] if one["kind"] == "not_covered"] == []
    assert engines(lab) == []


def test_an_engine_outside_its_group_is_not_covered(lab: Lab, tmp_path: Path) -> None:
    with running(lab, tmp_path / "containerd"):
        (found,) = look(lab)["findings"]
    assert found["kind"] == "not_covered"
    assert f"outside {lab.engine_group}: it is not judged as an engine" in found["text"]
    mount = lab.engine_cgroup.parents[1]
    assert f"{mount}/{lab.engine_group}/cgroup.procs && exec containerd" in found["hint"]


def test_of_podman_only_the_service_is_an_engine(lab: Lab, tmp_path: Path) -> None:
    with running(lab, tmp_path / "podman", "pull", "service", "system"):
        assert engines(lab) == []
    with running(lab, tmp_path / "podman", "--log-level=info", "system", "service", "--time=0"):
        assert [engine["name"] for engine in engines(lab)] == ["podman"]


def test_other_programs_are_none(lab: Lab, tmp_path: Path) -> None:
    with running(lab, tmp_path / "dockerd-like"), running(lab, tmp_path / ".." / "containerd-shim"):
        assert look(lab)["facts"] == []
    (tmp_path / "../containerd-shim").unlink()


def test_an_engine_whose_file_was_replaced_is_still_one(lab: Lab, tmp_path: Path) -> None:
    """Started by a link of another name, so that only its file tells what it is."""
    shutil.copy(Path("/bin/sh").resolve(), tmp_path / "dockerd")
    (tmp_path / "engine").symlink_to(tmp_path / "dockerd")
    with running(lab, tmp_path / "engine"):
        (tmp_path / "dockerd").unlink()
        assert [engine["name"] for engine in engines(lab)] == ["dockerd"]


def test_an_engine_that_an_interpreter_runs_is_known_by_its_own_word(
    lab: Lab, tmp_path: Path
) -> None:
    script = tmp_path / "dockerd"
    script.write_text(f"#!/bin/sh\necho up\n{WAIT}\n")
    script.chmod(0o755)
    with running(lab, tmp_path / "dockerd"):
        assert [engine["name"] for engine in engines(lab)] == ["dockerd"]


# --- rootless, and in namespaces of their own


def test_an_engine_that_a_user_runs_is_rootless(lab: Lab, tmp_path: Path) -> None:
    with running(lab, tmp_path / "podman", "system", "service", user=USER):
        (engine,) = engines(lab)
        (found,) = look(lab)["findings"]
    assert (engine["uid"], engine["rootless"], engine["own"]) == (USER, "not run by root", True)
    assert f"it is rootless (not run by root, uid {USER})" in found["text"]


def test_an_engine_in_a_user_namespace_is_rootless(lab: Lab, tmp_path: Path) -> None:
    unshare = (require("unshare"), "--user", "--map-root-user")
    with running(lab, tmp_path / "dockerd", under=unshare, user=USER):
        (engine,) = engines(lab)
    assert (engine["uid"], engine["rootless"]) == (USER, "in a user namespace of its own")


def test_a_child_of_rootlesskit_is_rootless(lab: Lab, tmp_path: Path) -> None:
    shutil.copy(Path("/bin/sh").resolve(), tmp_path / "dockerd")
    child = f"{tmp_path}/dockerd -c 'echo up; {WAIT}'; exit"
    with running(lab, tmp_path / "rootlesskit", script=child):
        wait_until(lambda: bool(engines(lab)), 5.0, "the child")
        (engine,) = engines(lab)
    assert (engine["name"], engine["rootless"]) == ("dockerd", "started by rootlesskit")


def test_an_engine_in_another_network_namespace_is_not_covered(lab: Lab, tmp_path: Path) -> None:
    unshare = (require("unshare"), "--net")
    environment = {"HTTPS_PROXY": "http://proxy.example:3128"}
    with running(
        lab, tmp_path / "buildkitd", under=unshare, env=environment, cgroup=lab.engine_cgroup
    ):
        said = look(lab)
    (engine,) = said["facts"]
    assert (engine["own"], engine["cgroup"]) == (False, lab.engine_group)
    (found,) = said["findings"]
    assert found["kind"] == "not_covered"
    assert "in a network namespace of its own" in found["text"]


# --- what it was started with


def test_the_proxy_in_the_environment_of_an_engine(lab: Lab, tmp_path: Path) -> None:
    environment = {
        "https_proxy": f"http://user:{SECRET}@proxy.example:3128",
        "NO_PROXY": "localhost",
        "TOKEN": SECRET,
    }
    with running(lab, tmp_path / "dockerd", env=environment, cgroup=lab.engine_cgroup) as process:
        said = look(lab)
        assert SECRET.encode() in Path(f"/proc/{process.pid}/environ").read_bytes()
    (found,) = (item for item in said["findings"] if item["subject"].startswith("proxy "))
    assert found["subject"] == "proxy proxy.example:3128"
    assert "https_proxy of dockerd (pid " in found["text"]
    assert "but for the hosts of NO_PROXY" in found["text"]
    assert SECRET not in said["repr"]


def test_the_arguments_of_dockerd_and_the_file_that_they_name(lab: Lab, tmp_path: Path) -> None:
    settings = tmp_path / "other.json"
    settings.write_text('{"registry-mirrors": ["https://mirror.example"]}')
    args = ("--config-file", str(settings), "--insecure-registry=old.example:5000")
    with running(lab, tmp_path / "dockerd", *args, cgroup=lab.engine_cgroup):
        found = {item["subject"]: item["text"] for item in look(lab)["findings"]}
    assert found["mirror mirror.example:443"].startswith(f"{settings}: ")
    assert found["insecure registry old.example:5000"].startswith("dockerd (pid ")


@pytest.mark.parametrize("why", ["mount namespace", "user"])
def test_the_files_of_somebody_else_are_not_opened(lab: Lab, tmp_path: Path, why: str) -> None:
    """A path of another mount namespace or of a user may be, here, that of a device."""
    settings = tmp_path / "other.json"
    settings.write_text('{"registry-mirrors": ["https://mirror.example"]}')
    under = (require("unshare"), "--mount") if why == "mount namespace" else ()
    user = USER if why == "user" else None
    args = ("--config-file", str(settings))
    with running(lab, tmp_path / "dockerd", *args, under=under, user=user):
        facts = look(lab)["facts"]
    assert [fact["fact"] for fact in facts] == ["Engine"]


# --- docker-proxy, Docker Desktop


def test_a_docker_proxy_is_found_with_its_cgroup(lab: Lab, tmp_path: Path) -> None:
    with running(lab, tmp_path / "docker-proxy", cgroup=lab.engine_cgroup):
        (fact,) = look(lab)["facts"]
    assert (fact["fact"], fact["cgroup"]) == ("DockerProxy", lab.engine_group)


@pytest.mark.parametrize(
    "name", ["docker-desktop-user-distro", "com.docker.proxy", "vpnkit-bridge"]
)
def test_the_programs_of_docker_desktop_are_known(lab: Lab, tmp_path: Path, name: str) -> None:
    with running(lab, tmp_path / name, user=USER):
        (found,) = look(lab)["findings"]
    assert (found["kind"], found["subject"]) == ("not_covered", "Docker Desktop")
    assert f"the process {name}" in found["text"]


# --- limits


def test_many_processes_with_the_name_of_an_engine_do_not_hide_a_real_one(
    lab: Lab, tmp_path: Path
) -> None:
    more = 3
    (tmp_path / "crowd").mkdir()
    shutil.copy(Path("/bin/sh").resolve(), tmp_path / "crowd/buildkitd")
    count = MAX_ENGINES + more
    one = f'{tmp_path}/crowd/buildkitd -c "{WAIT}" <&3 &'  # else its input is /dev/null
    many = f"exec 3<&0; n=0; while [ $n -lt {count} ]; do n=$((n + 1)); {one} done; {WAIT}"
    with (
        running(lab, tmp_path / "crowd.sh", script=many, user=USER),
        running(lab, tmp_path / "crowd" / "dockerd", cgroup=lab.engine_cgroup),
    ):
        wait_until(lambda: _count(tmp_path) == count, 20.0, "the crowd")
        said = look(lab)
    names = [fact["name"] for fact in said["facts"] if fact["fact"] == "Engine"]
    assert len(names) == MAX_ENGINES
    assert names[0] == "dockerd"
    (left,) = (fact for fact in said["facts"] if fact["fact"] == "Unreadable")
    assert left["why"].startswith(f"{more + 1} more processes bear the name of an engine")


def _count(folder: Path) -> int:
    """Count the processes that run a program of the crowd."""
    found = 0
    for entry in Path("/proc").iterdir():
        try:
            found += str((entry / "exe").readlink()) == f"{folder}/crowd/buildkitd"
        except OSError:
            continue
    return found

"""The wrapper around docker-proxy, without an engine: where it goes, and what it hands on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramnet.lab.lab import Lab
from ramnet.lab.programs import require

pytestmark = pytest.mark.netns

WRAPPER = Path(__file__).resolve().parents[2] / "systemd/ramnet-docker-proxy"
STAYS = "docker-proxy stays in the cgroup of the engine"

# Tells its cgroup, its arguments and, as docker-proxy does, on descriptor 3 that it is ready.
PROXY = f"""\
#!/bin/sh
{require("sed")} -n 's/^0:://p' /proc/self/cgroup
printf '<%s>\\n' "$@"
printf '0\\n' >&3
"""
# The descriptor has to be 3 for the program: that is the number that dockerd hands over.
HAND_OVER = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.execvp(sys.argv[2], sys.argv[2:])"
ARGUMENTS = ["-proto", "tcp", "-host-ip", "127.0.0.1", "with a blank", "", "*"]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(registries=False, engine_cgroup=True) as made:
        yield made


@pytest.fixture
def proxy(tmp_path: Path) -> Path:
    program = tmp_path / "docker-proxy"
    program.write_text(PROXY)
    program.chmod(0o755)
    return program


def run(*under: str, **environment: str) -> tuple[list[str], str, str]:
    """Run the wrapper; return what the program behind it wrote, its errors, and descriptor 3."""
    read, write = os.pipe()
    try:
        done = subprocess.run(
            [
                sys.executable,
                "-I",
                "-S",
                "-c",
                HAND_OVER,
                str(write),
                *under,
                str(WRAPPER),
                *ARGUMENTS,
            ],
            check=True,
            capture_output=True,
            text=True,
            pass_fds=[write],
            env={"PATH": os.environ["PATH"], **environment},
        )
    finally:
        os.close(write)
    with os.fdopen(read) as pipe:
        return done.stdout.splitlines(), done.stderr, pipe.read()


def test_it_moves_itself_and_hands_everything_on(lab: Lab, proxy: Path) -> None:
    group = f"{lab.name}/made/by-itself"
    for _ in range(2):  # made, and then found
        out, errors, told = run(RAMNET_PROXY_CGROUP=group, RAMNET_DOCKER_PROXY=str(proxy))
        assert (out[0], errors, told) == (f"/{group}", "", "0\n")
        assert out[1:] == [f"<{argument}>" for argument in ARGUMENTS]


@pytest.mark.parametrize("how", ["a file in the way", "no hierarchy"])
def test_where_it_cannot_move_it_says_so_and_runs_all_the_same(
    lab: Lab, proxy: Path, how: str
) -> None:
    under: list[str] = []
    if how == "no hierarchy":
        hide = 'umount --recursive --lazy /sys/fs/cgroup && exec "$@"'
        under = [require("unshare"), "--mount", "--propagation=private", "sh", "-c", hide, "sh"]
    group = f"{lab.name}/cgroup.procs/x"
    out, errors, told = run(*under, RAMNET_PROXY_CGROUP=group, RAMNET_DOCKER_PROXY=str(proxy))
    assert STAYS in errors
    assert ("no cgroup v2 hierarchy is mounted" in errors) == (how == "no hierarchy")
    assert lab.name not in out[0]
    assert (out[1:], told) == ([f"<{argument}>" for argument in ARGUMENTS], "0\n")


def test_a_cgroup_that_takes_no_processes_is_told(lab: Lab, proxy: Path) -> None:
    frozen = lab.engine_cgroup.parent / "threads"
    frozen.mkdir()
    (frozen / "below").mkdir()
    (frozen / "below/cgroup.type").write_text("threaded")
    # Below a threaded group one may not put a process into an invalid one.
    (frozen / "below/deeper").mkdir()
    group = f"{lab.name}/threads/below/deeper"
    _, errors, told = run(RAMNET_PROXY_CGROUP=group, RAMNET_DOCKER_PROXY=str(proxy))
    assert f"{group} cannot be joined" in errors
    assert STAYS in errors
    assert told == "0\n"


def test_by_default_it_is_a_slice_beside_that_of_the_engines(lab: Lab, proxy: Path) -> None:
    """On a machine whose whole hierarchy is v2; here the group of the lab stands for its root."""
    top = lab.engine_cgroup.parent
    mount = "umount --recursive --lazy /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup"
    inner = [require("unshare"), "--mount", "--cgroup", "--propagation=private"]
    inner += ["sh", "-c", f'{mount} && exec "$@"', "sh"]
    join = ["sh", "-c", 'echo 0 >"$1/cgroup.procs" && shift && exec "$@"', "sh", str(top)]
    out, errors, _ = run(*join, *inner, RAMNET_DOCKER_PROXY=str(proxy))
    assert (out[0], errors) == ("/ramnetproxy.slice", "")
    assert (top / "ramnetproxy.slice").is_dir()


def test_docker_proxy_is_found_in_its_usual_place(lab: Lab, proxy: Path) -> None:
    """Here that is a mount of its own, so that it does not matter whether Docker is installed."""
    mount = f'mount --bind "{proxy.parent}" /usr/local/bin && for real in /usr/bin /usr/sbin; do'
    mount += f' [ ! -e $real/docker-proxy ] || mount --bind "{proxy}" $real/docker-proxy; done'
    # No search path: what is found is found by its place.
    last = 'exec env PATH=/nonexistent "$@"'
    unshare = [require("unshare"), "--mount", "--propagation=private"]
    under = [*unshare, "sh", "-c", f"{mount}; {last}", "sh"]
    (lab.engine_cgroup.parent / "usual").mkdir()
    out, errors, told = run(*under, RAMNET_PROXY_CGROUP=f"{lab.name}/usual")
    assert (out[0], errors, told) == (f"/{lab.name}/usual", "", "0\n")


def test_without_a_docker_proxy_it_fails_and_says_so(lab: Lab) -> None:
    environment = {"RAMNET_PROXY_CGROUP": f"{lab.name}/none", "RAMNET_DOCKER_PROXY": "/nonexistent"}
    done = subprocess.run(
        [WRAPPER], check=False, capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 127
    assert "/nonexistent" in done.stderr


def test_the_script_is_plain_posix_shell() -> None:
    assert os.access(WRAPPER, os.X_OK)
    assert WRAPPER.read_text().startswith("#!/bin/sh\n")
    shellcheck = shutil.which("shellcheck")
    if shellcheck is not None:
        subprocess.run([shellcheck, WRAPPER], check=True)

"""The lab with a real engine and without ramnet: the control run of every "nothing leaked"."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from ramnet.errors import LabError
from ramnet.lab import janitor, programs
from ramnet.lab.engine import Engine
from ramnet.lab.forge import Datagram, forge
from ramnet.lab.lab import Lab
from ramnet.lab.process import wait_until
from ramnet.lab.topology import CLIENT_V4, DNS_V4
from ramnet.lab.world import CHAIN, CORP, DUAL, EVIL, GHCR, HUB, QUAY, V6ONLY

pytestmark = pytest.mark.docker

GONE_SECONDS = 10.0


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    options = {"insecure-registries": ["evil.example:80"]}
    with Lab(engine=True, engine_options=options) as made:
        yield made


@pytest.fixture(scope="module")
def pulled(lab: Lab) -> str:
    """An image that the engine has."""
    reference = "ghcr.io/acme/app"
    assert lab.engine.pull(reference).returncode == 0
    return reference


def footprint() -> tuple[object, ...]:
    """What an engine could spoil on the machine; "docker" is its default group for containers."""
    return (
        sorted(entry.name for entry in Path("/sys/class/net").iterdir()),
        janitor.cgroups("docker"),
        Path("/proc/self/mounts").read_text(encoding="utf-8"),
        [
            Path(path).exists()
            for path in ("/run/docker", "/etc/docker/key.json", "/var/lib/docker")
        ],
    )


@pytest.mark.parametrize(
    ("reference", "addresses", "port"),
    [
        ("busybox", HUB, 443),
        ("docker.io/library/busybox", HUB, 443),
        ("ghcr.io/acme/app", GHCR, 443),
        ("quay.io/acme/app", QUAY, 443),
        ("registry.corp.example:5000/acme/app", CORP, 5000),
        ("v6only.example/acme/app", V6ONLY, 443),
        ("dual.example/acme/app", DUAL, 443),
        ("chain.example/acme/app", CHAIN, 443),
        ("evil.example/acme/app", EVIL, 443),
        ("evil.example:8443/acme/app", EVIL, 8443),
        ("evil.example:80/acme/app", EVIL, 80),
        ("198.51.100.66/acme/app", EVIL, 443),
    ],
)
def test_without_ramnet_every_pull_works_and_is_seen(
    lab: Lab, reference: str, addresses: tuple[str, ...], port: int
) -> None:
    lab.engine.forget(reference)
    with lab.capture() as capture:
        done = lab.engine.pull(reference)
    assert done.returncode == 0, done.stderr
    assert capture.to(addresses, ports=[port])
    assert {(syn.dst, syn.dport) for syn in capture.syns} <= {
        (ip_address(address), port) for address in addresses
    }


def test_a_hosts_file_entry_leads_a_pull_elsewhere(lab: Lab) -> None:
    before = lab.client.path("/etc/hosts").read_text(encoding="utf-8")
    lab.client.write("/etc/hosts", f"{before}{EVIL[0]} hosts.example\n")
    try:
        lab.engine.stop()  # a Go program reads the file again after 5 s only
        lab.engine.start()
        with lab.capture() as capture:
            done = lab.engine.pull("hosts.example/acme/app")
        assert done.returncode == 0, done.stderr
        assert capture.to(EVIL)
    finally:
        lab.client.write("/etc/hosts", before)


def test_the_engine_follows_a_change_of_address(lab: Lab) -> None:
    moved = "198.51.100.201"
    lab.dns.set("dual.example", moved)
    try:
        with lab.capture() as capture:
            assert lab.engine.pull("dual.example/acme/app").returncode == 0
        assert capture.to([moved])
        assert not capture.to(DUAL)
    finally:
        lab.dns.set("dual.example", *DUAL)


def test_the_registry_on_localhost_serves_the_engine(lab: Lab) -> None:
    lab.local_registry()
    with lab.capture() as capture:
        done = lab.engine.pull("localhost:5000/acme/app")
    assert done.returncode == 0, done.stderr
    assert capture.syns == ()


def test_an_unknown_name_and_an_unknown_image_fail(lab: Lab) -> None:
    assert "no such host" in lab.engine.pull("unknown.example/acme/app").stderr
    assert "manifest unknown" in lab.engine.pull("ghcr.io/acme/unknown").stderr


@pytest.mark.parametrize("buildkit", ["0", "1"])
def test_build_and_push(lab: Lab, buildkit: str) -> None:
    context = lab.directory / f"context{buildkit}"
    context.mkdir()
    dockerfile = f"FROM quay.io/acme/app\nRUN echo {buildkit} >/made\n"
    (context / "Dockerfile").write_text(dockerfile, encoding="utf-8")
    target = f"registry.corp.example:5000/acme/built:{buildkit}"
    environment = {"DOCKER_BUILDKIT": buildkit}
    lab.engine.forget("quay.io/acme/app")
    build = ["build", "--no-cache", "--tag", target, str(context)]
    built = lab.engine.docker(*build, env=environment)
    assert built.returncode == 0, built.stderr
    pushed = lab.engine.docker("push", target)
    assert pushed.returncode == 0, pushed.stderr
    assert lab.engine.pull(target).returncode == 0
    ran = lab.engine.docker("run", "--rm", target, "cat", "/made", check=True)
    assert ran.stdout == f"{buildkit}\n"


def test_containers_resolve_and_reach_the_world(lab: Lab, pulled: str) -> None:
    fetch = "wget -q -O - http://evil.example/v2/"
    with lab.capture() as capture:
        done = lab.engine.docker("run", "--rm", pulled, "sh", "-c", fetch, check=True)
    assert done.stdout == "{}"
    assert {str(syn.src) for syn in capture.to(EVIL[:1], ports=[80])} == {CLIENT_V4}


def test_a_container_can_forge_the_resolvers_address(lab: Lab, pulled: str) -> None:
    name = "forger"
    lab.engine.docker("run", "--detach", "--name", name, pulled, "sleep", "1000", check=True)
    lie = Datagram(DNS_V4, 53, "198.51.100.9", 5555, b"forged in a container")
    with lab.capture(everything=True) as capture:
        forge(lab.client, [lie], netns_of=lab.engine.container_pid(name))
    lab.engine.docker("rm", "--force", name, check=True)
    seen = [frame.data for frame in capture.frames() if frame.data.endswith(lie.payload)]
    assert len(seen) == 1


def test_the_engine_stops_with_its_containers_and_starts_again(lab: Lab, pulled: str) -> None:
    run = ["run", "--detach", "--name", "stayer", pulled, "sleep", "1000"]
    lab.engine.docker(*run, check=True)
    pid = lab.engine.pid
    lab.engine.stop()
    assert not Path(f"/proc/{pid}").exists()
    assert str(lab.directory) not in lab.client.run(["cat", "/proc/self/mounts"]).stdout
    with pytest.raises(LabError, match="not running"):
        _ = lab.engine.pid
    with pytest.raises(LabError, match="not started"):
        lab.engine.wait_ready()
    lab.engine.start()
    lab.engine.docker("rm", "stayer", check=True)


def test_the_engine_runs_in_a_cgroup_of_its_own(lab: Lab) -> None:
    found = re.search(r" (\S+) cgroup2 ", Path("/proc/self/mounts").read_text(encoding="utf-8"))
    if found is None:
        pytest.skip("no cgroup v2 hierarchy")
    group = Path(found[1]) / lab.name / "engine"  # removed with the lab
    group.mkdir(parents=True)
    lab.engine.stop()
    lab.engine.start(cgroup=group)
    assert str(lab.engine.pid) in (group / "cgroup.procs").read_text().split()


def test_an_engine_that_does_not_start_is_reported_with_its_log(lab: Lab, tmp_path: Path) -> None:
    broken = Engine(lab.client, tmp_path, lab.name, options={"storage-driver": "nonsense"})
    with pytest.raises(LabError, match="dockerd ended with 1") as caught:
        broken.start()
    assert "driver not supported" in caught.value.hint


def test_an_engine_is_invisible_outside_and_leaves_nothing() -> None:
    before = footprint()
    with Lab(engine=True) as lab:
        lab.engine.pull("ghcr.io/acme/app")
        run = ["run", "--detach", "ghcr.io/acme/app", "sleep", "1000"]
        lab.engine.docker(*run, check=True)
        assert any(line.startswith("cgroup") for line in lab.leftovers())
        assert footprint() == before
    assert lab.leftovers() == []
    assert footprint() == before


HOLD = """
import time
from ramnet.lab.lab import Lab
with Lab(engine=True) as lab:
    lab.engine.pull("ghcr.io/acme/app")
    lab.engine.docker("run", "--detach", "ghcr.io/acme/app", "sleep", "1000", check=True)
    print(lab.directory, flush=True)
    time.sleep(1000)
"""


def test_a_killed_process_leaves_nothing_of_its_engine() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(programs.PYTHON_PATH)},
    ) as process:
        assert process.stdout is not None
        directory = Path(process.stdout.readline().strip())
        assert janitor.cgroups(directory.name)
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: not janitor.leftovers(directory), GONE_SECONDS, "the lab's end")

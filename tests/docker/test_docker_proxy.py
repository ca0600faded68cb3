"""Ports published on localhost, where the engine's own connections are judged by its cgroup.

docker-proxy connects to the container. In the engine's cgroup that is a connection of the engine,
and refused; through the wrapper, and so in a cgroup beside, it is not.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ramnet.lab.lab import Lab
from ramnet.lab.process import wait_until
from tests.docker.containers import IMAGE
from tests.docker.support import docker

pytestmark = pytest.mark.docker

WRAPPER = Path(__file__).resolve().parents[2] / "systemd/ramnet-docker-proxy"
PORT = 8080
UP_SECONDS = 10.0
FETCH = """
import sys
from http.client import HTTPConnection
connection = HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=3)
connection.request("GET", "/")
sys.stdout.write(connection.getresponse().read().decode())
"""
# What ramnet does with new connections of the engine, without anything else.
RULES = """
table inet judged {{
    chain output {{
        type filter hook output priority -160; policy accept;
        socket cgroupv2 level 2 "{place}" tcp flags & (fin|syn|rst|ack) == syn reject with tcp reset
    }}
}}
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    options = {"userland-proxy-path": str(WRAPPER)}
    with Lab(engine=True, engine_cgroup=True, engine_options=options) as made:
        made.engine.docker("pull", IMAGE, check=True)
        yield made


@contextmanager
def judged(lab: Lab) -> Iterator[None]:
    place = lab.engine_cgroup.relative_to("/sys/fs/cgroup")
    lab.client.run(["nft", "--file", "-"], input=RULES.format(place=place))
    try:
        yield
    finally:
        lab.client.run(["nft", "delete", "table", "inet", "judged"])


@contextmanager
def published(lab: Lab) -> Iterator[None]:
    """Serve one page in a container, published on the machine's loopback."""
    serve = f"echo page >/index.html && exec httpd -f -p {PORT} -h /"
    argv = ("--publish", f"127.0.0.1:{PORT}:{PORT}", IMAGE, "sh", "-c", serve)
    said = docker(lab, "run", "--detach", "--name", "web", *argv)
    try:
        assert said.worked, said.everything
        yield
    finally:
        docker(lab, "rm", "--force", "web")


def fetch(lab: Lab) -> str:
    """Return the page; empty where docker-proxy takes the connection and reaches nobody."""
    argv = [sys.executable, "-I", "-S", "-c", FETCH, str(PORT)]
    return lab.client.run(argv, check=False).stdout


def proxies(lab: Lab) -> list[str]:
    """Return the cgroup v2 path of each docker-proxy of the lab."""
    found = []
    for entry in lab.client.path("/proc").iterdir():
        try:
            if (entry / "comm").read_text() == "docker-proxy\n":
                groups = (entry / "cgroup").read_text().splitlines()
                found += [line.removeprefix("0::") for line in groups if line.startswith("0::")]
        except OSError:  # no process, or ended meanwhile
            continue
    return found


def restart(lab: Lab, group: str) -> None:
    lab.engine.stop()
    lab.engine.start(env={"RAMNET_PROXY_CGROUP": group})


def test_a_port_on_localhost_works_through_the_wrapper(lab: Lab) -> None:
    group = f"{lab.name}/proxies"
    restart(lab, group)
    with judged(lab), published(lab):
        assert set(proxies(lab)) == {f"/{group}"}
        wait_until(lambda: fetch(lab) == "page\n", UP_SECONDS, "the page")
    assert proxies(lab) == [], "dockerd ends what it started"


def test_a_port_on_localhost_is_refused_where_the_wrapper_cannot_move(lab: Lab) -> None:
    """The control: docker-proxy in the cgroup of the engine. It runs, as dockerd wants it to."""
    restart(lab, f"{lab.name}/cgroup.procs/nowhere")
    with published(lab):
        assert set(proxies(lab)) == {f"/{lab.engine_group}"}
        wait_until(lambda: fetch(lab) == "page\n", UP_SECONDS, "the page, without rules")
        with judged(lab):
            assert fetch(lab) == ""
        assert fetch(lab) == "page\n"

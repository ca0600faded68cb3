"""Published ports under ``strict``: docker-proxy dials from a cgroup of its own, beside the engine.

docker-proxy is a child of dockerd, and what it dials is a container's address, which no policy
lists. ``systemd/ramnet-docker-proxy``, named in daemon.json, moves it out of the engine's cgroup.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ramnet.lab.lab import Lab
from ramnet.lab.process import wait_until
from ramnet.lab.programs import require
from ramnet.lab.topology import CLIENT_V4, CLIENT_V6
from tests.coverage_table import Cover, Outcome, Section
from tests.docker.containers import PYTHON, container
from tests.docker.support import pull
from tests.netns.places import Place, machine
from tests.netns.scoped import PRECISE, enforcing
from tests.netns.support import policy

pytestmark = pytest.mark.docker

OWN, WRAPPED = "docker-proxy alone", "by the wrapper"
POLICY = policy("registry.corp.example:5000")
PORT = 8081
START_SECONDS = 20.0

SERVE = """
import socket, threading
def udp():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("", 80))
        while True:
            sock.sendto(b"hello", sock.recvfrom(64)[1])
threading.Thread(target=udp).start()
with socket.create_server(("", 80)) as listener:
    while True:
        with listener.accept()[0] as sock:
            sock.sendall(b"hello")
"""
# A proxy that listens says nothing yet of whom it reaches: what is heard does.
HEAR = """
import json, socket, sys
address, port, protocol = json.loads(sys.argv[1])
kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
said = b""
with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as sock:
    sock.settimeout(1)
    try:
        sock.connect((address, port))
        if protocol == "udp":
            sock.send(b"?")
        said = sock.recv(16)
    except OSError as err:
        said = str(err).encode()
print(json.dumps(said.decode()))
"""


@pytest.fixture(scope="module", params=[OWN, WRAPPED])
def proxy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def lab(proxy: str) -> Iterator[Lab]:
    # The lab names the wrapper itself where the engine has a cgroup.
    alone = {"userland-proxy-path": require("docker-proxy")} if proxy == OWN else {}
    with Lab(engine=True, engine_cgroup=True, engine_options=alone) as made:
        assert pull(made, "busybox").worked
        yield made


@pytest.fixture(scope="module")
def server(lab: Lab) -> Iterator[str]:
    ports = ("--publish", f"{PORT}:80", "--publish", f"{PORT}:80/udp")
    with container(lab, *ports, argv=(str(PYTHON), "-I", "-S", "-c", SERVE)) as name:
        near = machine(lab.client, 0)
        wait_until(lambda: hear(near, CLIENT_V4) == "hello", START_SECONDS, "the server")
        yield name


def hear(place: Place, address: str, protocol: str = "tcp") -> str:
    """Return what is heard at the published port; if nothing, why."""
    return str(place(HEAR, f'["{address}", {PORT}, "{protocol}"]'))


def heard(lab: Lab) -> dict[tuple[str, str, str], str]:
    """Ask from this machine and from outside, by every address that it has."""
    addresses = {
        "here": ("127.0.0.1", "::1", CLIENT_V4, CLIENT_V6),
        "outside": (CLIENT_V4, CLIENT_V6),
    }
    places = {"here": machine(lab.client), "outside": machine(lab.world, 0)}
    return {
        (who, address, protocol): hear(places[who], address, protocol)
        for who, reached in addresses.items()
        for address in reached
        for protocol in ("tcp", "udp")
    }


def test_without_ramnet_the_port_is_heard_everywhere(lab: Lab, server: str) -> None:
    assert server
    assert set(heard(lab).values()) == {"hello"}


@pytest.mark.parametrize("rung", PRECISE)
def test_published_ports(lab: Lab, proxy: str, server: str, rung: str, cover: Cover) -> None:
    """Without the wrapper what takes docker-proxy is refused: all but what Docker redirects."""
    assert server
    with enforcing(lab, rung, POLICY):
        said = heard(lab)
        silent = {where for where, words in said.items() if words != "hello"}
    if proxy == WRAPPED:
        assert silent == set()
        row = "published ports, with ramnet-docker-proxy"
        cover(Section.ENGINE, row, rung, Outcome.FREE)
    else:
        assert ("here", "127.0.0.1", "tcp") in silent
        assert all(address != CLIENT_V4 for _, address, _ in silent)

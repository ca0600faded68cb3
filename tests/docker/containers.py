"""Containers of a real engine, and programs of the machine inside them."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ramnet.lab.lab import Lab
from ramnet.lab.process import wait_until
from ramnet.lab.programs import require
from tests.docker.support import docker
from tests.netns.places import Place

IMAGE = "busybox"
START_SECONDS = 20.0
PYTHON = Path(sys.executable).resolve()

# What a program of the machine needs to run in a container, in the same places and read-only. The
# rest of the container stays its own, /etc/resolv.conf too.
_MACHINE = ("/usr", "/lib", "/lib64", str(PYTHON.parents[1]))


def machine() -> list[str]:
    """Return the options of ``docker run`` that lend the machine's programs to a container."""
    places = [one for one in dict.fromkeys(_MACHINE) if Path(one).exists()]
    return [part for one in places for part in ("--volume", f"{one}:{one}:ro")]


@contextmanager
def container(lab: Lab, *options: str, argv: Sequence[str] = ("sleep", "600")) -> Iterator[str]:
    """Run a container in the background; it is removed at the end."""
    name = f"c{secrets.token_hex(4)}"
    detached = ("--detach", "--name", name, "--init", *machine())
    said = docker(lab, "run", *detached, *options, IMAGE, *argv)
    try:
        assert said.worked, said.everything
        yield name
    finally:
        docker(lab, "rm", "--force", name)


@contextmanager
def network(lab: Lab, *options: str) -> Iterator[str]:
    """Make a user-defined network: there containers ask the engine's own server for names."""
    name = f"n{secrets.token_hex(4)}"
    said = docker(lab, "network", "create", *options, name)
    assert said.worked, said.everything
    try:
        yield name
    finally:
        docker(lab, "network", "rm", name)


@contextmanager
def resolver(lab: Lab, upstream: str) -> Iterator[str]:
    """Run a DNS server in a container, published on port 53 of every address of the machine."""
    argv = [require("dnsmasq"), "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv"]
    argv += ["--no-hosts", "--no-poll", "--cache-size=0", "--user=root", "--pid-file"]
    argv += ["--log-facility=-", "--log-queries", f"--server={upstream}"]
    ports = ("--publish", "53:53/udp", "--publish", "53:53/tcp")
    with container(lab, *ports, argv=argv) as name:
        wait_until(
            lambda: "using nameserver" in docker(lab, "logs", name).everything,
            START_SECONDS,
            "the DNS server in a container",
        )
        yield name


def nslookup(lab: Lab, where: str, name: str, *server: str) -> str:
    """Ask for an address from within a running container; return all that was said."""
    return docker(lab, "exec", where, "nslookup", "-type=a", name, *server).everything


def python(lab: Lab, where: str, script: str, *args: str) -> Any:
    """Run a Python program in a running container; return what it wrote, read as JSON."""
    said = docker(lab, "exec", where, str(PYTHON), "-I", "-S", "-c", script, *args)
    assert said.worked, said.everything
    return json.loads(said.everything)


def inside(lab: Lab, where: str) -> Place:
    """Return the place that is a running container."""
    return lambda script, *args: python(lab, where, script, *args)

"""The clients that pull: Docker's engine, containerd, skopeo and podman, each in two generations.

Those that are a program of their own run in the engine's cgroup, like the engines themselves, or as
a user; each pulls afresh, so that a registry is asked each time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ramnet.lab.engine import Engine
from ramnet.lab.lab import Lab
from ramnet.lab.programs import require
from ramnet.lab.sandbox import Sandbox, joining
from tests.docker.support import Said, said_of
from tests.docker.tree import Tree


@dataclass(frozen=True, slots=True)
class Place:
    """Where programs run: the client of the lab, or the same by another tree, and its engine."""

    lab: Lab
    sandbox: Sandbox
    engine: Engine

    def program(self, name: str) -> str:
        """Return what to execute: as the lab finds it, or as the tree does."""
        return name if isinstance(self.sandbox, Tree) else require(name)

    def run(
        self, argv: list[str], env: Mapping[str, str] | None = None, user: int | None = None
    ) -> Said:
        """Run a program as an engine, or as a user who is none."""
        whole = argv if user is not None else [*joining(self.lab.engine_cgroup), *argv]
        begin = time.monotonic()
        done = self.sandbox.run(whole, check=False, env=env, user=user, timeout=60)
        return said_of(done, begin)


# How a client pulls: where, what, whether by plain HTTP if need be, and its environment.
Pull = Callable[[Place, str, bool, Mapping[str, str]], Said]


def docker(place: Place, reference: str, plain: bool, env: Mapping[str, str]) -> Said:  # noqa: ARG001 - the engine's own settings say it
    place.engine.forget(reference)
    begin = time.monotonic()
    return said_of(place.engine.docker("pull", reference), begin)


def ctr(place: Place, reference: str, plain: bool, env: Mapping[str, str]) -> Said:
    socket = place.engine.socket.parent / "exec/containerd/containerd.sock"
    images = [place.program("ctr"), f"--address={socket}", "images"]
    place.run([*images, "rm", "--sync", f"{reference}:latest"])
    options = ["--plain-http"] if plain else []
    return place.run([*images, "pull", *options, f"{reference}:latest"], env)


def skopeo(place: Place, reference: str, plain: bool, env: Mapping[str, str]) -> Said:
    options = ["--src-tls-verify=false"] if plain else []
    return place.run([*_copy(place), *options, *_from_to(reference)], env)


def skopeo_by(user: int, place: Place, reference: str) -> Said:
    """Pull as a user who is no engine."""
    home = place.lab.directory / f"home-{user}"
    home.mkdir(exist_ok=True)
    os.chown(home, user, user)
    env = {"HOME": str(home), "XDG_RUNTIME_DIR": str(home)}
    return place.run([*_copy(place), *_from_to(reference)], env, user)


def _copy(place: Place) -> list[str]:
    return [place.program("skopeo"), "--insecure-policy", "copy"]


def _from_to(reference: str) -> list[str]:
    return [f"docker://{reference}", "oci-archive:/dev/null"]


def podman(place: Place, reference: str, plain: bool, env: Mapping[str, str]) -> Said:
    # In the overlay of the tree, which ends with it: afresh each time.
    options = ["--tls-verify=false"] if plain else []
    argv = [place.program("podman"), "--storage-driver=vfs", "pull", *options, reference]
    return place.run(argv, {"PODMAN_IGNORE_CGROUPSV1_WARNING": "1", **env})


@dataclass(frozen=True, slots=True)
class Client:
    """One of them, of the machine's Debian or of the newest."""

    pull: Pull
    newest: bool = True


CLIENTS = {
    "docker": Client(docker, newest=False),
    "docker-newest": Client(docker),
    "ctr": Client(ctr, newest=False),
    "ctr-newest": Client(ctr),
    "skopeo": Client(skopeo, newest=False),
    "skopeo-newest": Client(skopeo),
    "podman-newest": Client(podman),
}


@dataclass(frozen=True, slots=True)
class World:
    """A lab with both engines."""

    lab: Lab
    old: Place
    new: Place

    def place(self, client: Client) -> Place:
        return self.new if client.newest else self.old

    def pull(
        self,
        name: str,
        reference: str,
        *,
        plain: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> Said:
        """Pull with one of ``CLIENTS``."""
        client = CLIENTS[name]
        return client.pull(self.place(client), reference, plain, env or {})


@contextmanager
def world_of(lab: Lab, tree: Path, *insecure: str) -> Iterator[World]:
    """Run the newest engine beside the lab's own."""
    sandbox = Tree(lab, tree)
    engine = sandbox.engine(cgroup=lab.engine_cgroup, insecure=insecure)
    engine.start()
    try:
        yield World(lab, Place(lab, lab.client, lab.engine), Place(lab, sandbox, engine))
    finally:
        engine.abandon()
